"""What a topology file describes: the peers of a cluster, each with its settings.

    description = "..."          what it is good for
    [settings]                   settings of all peers
    [[peers]]                    one table for each kind of peer
    name = "edge"                with count: edge-1, edge-2, ...
    count = 5
    node = "edge-board"          a folder of nodes/, or a path to a peer.toml
    settings = { zone = "a" }    over those of all, over those of the node

Rules of this file: it reads and starts nothing; what is wrong names the file, the key
and what is known.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from activestore.errors import ConfigurationError
from activestore.peer.addresses import check_word
from activestore.peer.config_sources import (
    CONFIG_FILE_BYTES_MAX,
    settings_of_file,
    settings_of_table,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# One machine; the sockets and processes of more get in each other's way.
PEERS_MAX = 200
# `up` itself decides about these.
RESERVED = ("name", "listen", "advertise", "join", "data_dir", "cluster", "insecure")

# Where nodes/ is: beside this file, copied there by an installation; in a checkout
# a link stands for the copy, and the root has nodes/ even where links were lost.
_HOMES = (Path(__file__).resolve().parent, Path(__file__).resolve().parents[2])
_TOP = {"description": str, "cluster": str, "settings": dict, "peers": list}
_PEER = {"name": str, "count": int, "node": str, "settings": dict}
_KIND_WORDS = {str: "a text", int: "a whole number", dict: "a table", list: "tables"}


class PlannedPeer(NamedTuple):
    """One peer of a topology; `settings` are all that differ from the defaults."""

    name: str
    node: str
    settings: dict[str, Any]


class Topology(NamedTuple):
    """A cluster as its file describes it."""

    name: str
    path: Path
    description: str
    cluster: str
    peers: tuple[PlannedPeer, ...]


def load_topology(text: str) -> Topology:
    """Return the topology that `text` names: a path, or one in nodes/topologies.

    Raises:
        ConfigurationError: there is none, or its file is wrong.
    """
    path = _found(text)
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_FILE_BYTES_MAX + 1)
        if len(data) > CONFIG_FILE_BYTES_MAX:
            reason = f"is over {CONFIG_FILE_BYTES_MAX:,} bytes, no topology"
            raise ConfigurationError(str(path), reason)
        table = tomllib.loads(data.decode("utf-8"))
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        raise ConfigurationError(str(path), reason) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(str(path), f"is not TOML: {error}") from None
    return _topology_of(path, table)


def known_topologies() -> dict[str, Path]:
    """Return those that are found by name: below here, else as they came with this."""
    found: dict[str, Path] = {}
    for root in (Path.cwd(), *_HOMES):
        for path in sorted((root / "nodes" / "topologies").glob("*.toml")):
            found.setdefault(path.stem, path.resolve())
    return found


def _found(text: str) -> Path:
    known = known_topologies()
    if text in known:
        return known[text]
    path = Path(text).expanduser()
    if path.is_file():
        return path.resolve()
    if not known:
        reason = (
            f"no file {text!r}, and no nodes/topologies here to find it by name; name "
            "the path of a topology's file"
        )
    else:
        near = difflib.get_close_matches(text, known, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        reason = f"no {text!r}; known are {', '.join(known)}, or a path{meant}"
    raise ConfigurationError("topology", reason)


def _topology_of(path: Path, table: Mapping[str, Any]) -> Topology:
    where = str(path)
    _check_keys(table, _TOP, where, where)
    name = path.stem
    check_word(name, where)
    cluster = table.get("cluster", name)
    check_word(cluster, f"{where}: cluster")
    shared = _settings(table.get("settings", {}), f"{where}: settings")
    peers: list[PlannedPeer] = []
    for number, row in enumerate(table.get("peers", []), 1):
        at = f"{where}: peers {number}"
        if not isinstance(row, dict):
            raise ConfigurationError(at, "is no table, expected [[peers]]")
        peers += _peers_of(row, path, shared, at)
    if not 1 <= len(peers) <= PEERS_MAX:
        reason = f"has {len(peers)} peers, expected 1 to {PEERS_MAX}"
        raise ConfigurationError(where, reason)
    names = [peer.name for peer in peers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(where, f"names {', '.join(twice)} more than once")
    return Topology(name, path, table.get("description", ""), cluster, tuple(peers))


def _peers_of(
    row: Mapping[str, Any], path: Path, shared: Mapping[str, Any], at: str
) -> list[PlannedPeer]:
    _check_keys(row, _PEER, at, str(path))
    if "name" not in row:
        raise ConfigurationError(at, "has no name")
    name, count, node = row["name"], row.get("count"), row.get("node", "")
    check_word(name, f"{at}: name")
    if "." in name:
        # A peer's files stand beside each other as NAME, NAME.log, NAME.toml.
        raise ConfigurationError(f"{at}: name", f"is {name!r}, expected no '.' in it")
    if count is not None and not 1 <= count <= PEERS_MAX:
        reason = f"is {count}, expected 1 to {PEERS_MAX}"
        raise ConfigurationError(f"{at}: count", reason)
    settings = {
        **_node_settings(node, path, at),
        **shared,
        **_settings(row.get("settings", {}), f"{at}: settings"),
    }
    names = [name] if count is None else [f"{name}-{n}" for n in range(1, count + 1)]
    return [PlannedPeer(one, node, settings) for one in names]


def _node_settings(node: str, path: Path, at: str) -> dict[str, Any]:
    """Return the settings of a folder of nodes/, or of a file beside the topology."""
    if not node:
        return {}
    file = path.parent / node
    if not node.endswith(".toml"):
        file = path.parent.parent / node / "peer.toml"
        if not file.is_file():
            folders = sorted(
                p.parent.name for p in path.parent.parent.glob("*/peer.toml")
            )
            known = ", ".join(folders) or "none"
            reason = f"{node!r} is no folder of {path.parent.parent}; it has {known}"
            raise ConfigurationError(f"{at}: node", reason)
    return {
        key: value
        for key, value in settings_of_file(file).items()
        if key not in RESERVED
    }


def _settings(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    for key in RESERVED:
        if key in table:
            raise ConfigurationError(where, f"holds {key}, which `up` itself decides")
    return settings_of_table(table, f"in {where}")


def _check_keys(
    table: Mapping[str, Any], kinds: Mapping[str, type], at: str, where: str
) -> None:
    for key, value in table.items():
        if key not in kinds:
            reason = f"has the unknown key {key!r}; known are {_listed(kinds)}"
            raise ConfigurationError(at, reason)
        # Exact types: true is no count.
        if type(value) is not kinds[key]:
            expected = _KIND_WORDS[kinds[key]]
            reason = f"{key} is {value!r} in {where}, expected {expected}"
            raise ConfigurationError(at, reason)


def _listed(names: Mapping[str, Any] | Sequence[str]) -> str:
    return ", ".join(names)
