"""A cluster on one machine: its directory, its processes, and what is known of them.

    DIR/cluster.json   which peers there are, and what runs of them
    DIR/NAME           the data directory of a peer
    DIR/NAME.toml      its settings, as `activestore-node start --config` takes them
    DIR/NAME.log       what it says

Rules of this file: a process is one of ours only if its id, its start and its command
line say so, for ids are used again; what was started is written down before it is
waited for; nothing is stopped by name.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

from activestore.cli.blueprint import PlannedPeer, Topology
from activestore.errors import ConfigurationError
from activestore.peer.config import SETTINGS
from activestore.peer.config_sources import ENV_PREFIX

STATE, LOCK = "cluster.json", "cluster.lock"
STATE_FORMAT = 1
# As many addresses as a peer is told to join; any one of them is enough.
JOINS = 3
# The start of a process is counted from the boot, whose time a clock that is set moves.
START_SLACK_S = 3.0
LOG_BYTES_MAX = 16 * 1024 * 1024
LOG_LINES_SHOWN = 5
LOG_BYTES_LOOKED_AT = 64 * 1024
_HOST = "127.0.0.1"


class Entry(NamedTuple):
    """One peer of the cluster; `pid` is 0 where it was stopped."""

    name: str
    node: str
    endpoint: str
    peer: str = ""
    pid: int = 0
    started_s: float = 0.0


class State(NamedTuple):
    """What is known of a cluster."""

    topology: str
    path: str
    cluster: str
    peers: tuple[Entry, ...]

    def with_entry(self, entry: Entry) -> State:
        """Return the state with one peer's entry replaced."""
        peers = [entry if one.name == entry.name else one for one in self.peers]
        return self._replace(peers=tuple(peers))


# -- the directory ---------------------------------------------------------------------


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep others from starting or stopping the same cluster meanwhile.

    Raises:
        ConfigurationError: somebody does, or the directory cannot be used.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / LOCK).open("a")
    except OSError as error:
        reason = f"{directory} cannot be used: {error.strerror or error}"
        raise ConfigurationError("--dir", reason) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigurationError(
                "--dir",
                f"{directory} is in use: another `up` or `down` works there; wait for "
                "it, or choose another --dir",
            ) from None
        yield


def refuse_foreign(directory: Path) -> None:
    """Refuse a directory that holds something, and no cluster.

    Raises:
        ConfigurationError: it does; nothing was put there.
    """
    if not directory.is_dir() or (directory / STATE).exists():
        return
    foreign = sorted(path.name for path in directory.iterdir() if path.name != LOCK)
    if foreign:
        raise ConfigurationError(
            "--dir",
            f"{directory} is in use: it holds {foreign[0]} and no {STATE}; choose an "
            "empty directory",
        )


def read_state(directory: Path) -> State | None:
    """Return what is known of the cluster in a directory, None where there is none.

    Raises:
        ConfigurationError: the file is damaged.
    """
    path = directory / STATE
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if table["format"] != STATE_FORMAT:
            raise ValueError(f"format {table['format']!r}")
        peers = tuple(Entry(**row) for row in table["peers"])
        return State(table["topology"], table["path"], table["cluster"], peers)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigurationError(
            str(path),
            f"cannot be read ({error}); end what still runs of this cluster, then "
            "remove the file: the peers' data beside it stay",
        ) from None


def write_state(directory: Path, state: State) -> None:
    """Write down what is known; whole or not at all."""
    table = {
        "format": STATE_FORMAT,
        "topology": state.topology,
        "path": state.path,
        "cluster": state.cluster,
        "peers": [entry._asdict() for entry in state.peers],
    }
    path = directory / STATE
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    os.replace(fresh, path)


def planned_state(
    directory: Path, topology: Topology, *, base_port: int | None
) -> State:
    """Return the state with an entry and an address for every peer of the topology.

    What runs keeps its address; what does not gets its old one again where that is
    free. `base_port` counts addresses from there.

    Raises:
        ConfigurationError: the directory belongs to another topology, or a port is
            used.
    """
    before = read_state(directory)
    if before is not None and before.topology != topology.name:
        raise ConfigurationError(
            "--dir",
            f"{directory} is in use by the topology {before.topology}; choose another "
            f"--dir, or `up {before.topology}`",
        )
    known = {} if before is None else {entry.name: entry for entry in before.peers}
    entries = []
    with _Ports() as ports:
        for number, peer in enumerate(topology.peers):
            old = known.pop(peer.name, None)
            if old is not None and is_running(directory, old):
                entries.append(old)
                continue
            wanted = None if base_port is None else base_port + number
            port = ports.take(wanted, old, peer.name)
            endpoint = f"tcp://{_HOST}:{port}"
            peer_id = "" if old is None else old.peer
            entries.append(Entry(peer.name, peer.node, endpoint, peer_id))
    # Out of the topology since, but still there for `down`.
    entries += [entry for entry in known.values() if is_running(directory, entry)]
    where = str(topology.path)
    return State(topology.name, where, topology.cluster, tuple(entries))


class _Ports:
    """Ports that are free now; held until all are chosen, so that no two are one."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def __enter__(self) -> _Ports:
        return self

    def __exit__(self, *_: object) -> None:
        for held in self._held:
            held.close()

    def take(self, wanted: int | None, old: Entry | None, name: str) -> int:
        """Return the port of a peer: the wanted one, the one it had, or any."""
        if wanted is not None:
            if not 1 <= wanted <= 65_535:
                reason = f"{name} would get port {wanted}, expected at most 65535"
                raise ConfigurationError("--base-port", reason)
            if not self._hold(wanted):
                reason = (
                    f"port {wanted}, for {name}, is in use; choose another --base-port, "
                    "or leave it out for free ones"
                )
                raise ConfigurationError("--base-port", reason)
        elif old is None or not self._hold(int(old.endpoint.rpartition(":")[2])):
            self._hold(0)
        return int(self._held[-1].getsockname()[1])

    def _hold(self, port: int) -> bool:
        held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        # As the peer's own socket does: connections that ended a moment ago are no bar.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind((_HOST, port))
            held.listen(1)
        except OSError:
            held.close()
            return False
        self._held.append(held)
        return True


# -- settings --------------------------------------------------------------------------


def write_settings(
    directory: Path, state: State, entry: Entry, planned: PlannedPeer
) -> None:
    """Write a peer's settings, with whom it joins."""
    others = [one.endpoint for one in state.peers if one.name != entry.name]
    settings: dict[str, object] = {
        "name": entry.name,
        "listen": entry.endpoint,
        "data_dir": str(directory / entry.name),
        "cluster": state.cluster,
        "join": others[:JOINS],
        **planned.settings,
    }
    lines = [
        f"# Written by `activestore-node up` from {state.path}"
        + (f" and nodes/{planned.node}" if planned.node else "")
        + "; the next `up` writes it anew."
    ]
    lines += [f"{name} = {_toml(value)}" for name, value in settings.items()]
    text = "\n".join(lines) + "\n"
    (directory / f"{entry.name}.toml").write_text(text, encoding="utf-8")


def _toml(value: object) -> str:
    """Return a setting's value as TOML writes it; JSON does for all but infinity."""
    return json.dumps(list(value) if isinstance(value, tuple) else value)


# -- processes -------------------------------------------------------------------------


def is_running(directory: Path, entry: Entry) -> bool:
    """Return whether the process that was started for a peer still is that process."""
    if not entry.pid:
        return False
    try:
        process = psutil.Process(entry.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if abs(process.create_time() - entry.started_s) > START_SLACK_S:
            return False
        words = process.cmdline()
        # It has no words left while it ends: until then it holds its files and port.
        return not words or str(directory / f"{entry.name}.toml") in words
    except psutil.Error:
        return False


class Start:
    """A peer that was started and is not ready yet."""

    def __init__(self, directory: Path, entry: Entry) -> None:
        """Start the process; it outlives this one."""
        self._log = directory / f"{entry.name}.log"
        if self._log.exists() and self._log.stat().st_size > LOG_BYTES_MAX:
            os.replace(self._log, self._log.with_suffix(".log.old"))
        words = [sys.executable, "-m", "activestore.cli.main", "start", "--json"]
        words += ["--config", str(directory / f"{entry.name}.toml")]
        log_fd = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._log_start = os.fstat(log_fd).st_size
            pid = os.posix_spawn(
                sys.executable,
                words,
                _environment(os.environ),
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, log_fd, 1),
                    (os.POSIX_SPAWN_DUP2, log_fd, 2),
                ],
                # Away from the terminal, whose Ctrl-C is not for it.
                setsid=True,
            )
        finally:
            os.close(log_fd)
        try:
            started_s = psutil.Process(pid).create_time()
        except psutil.Error:  # Over already; `look` says so.
            started_s = 0.0
        self.entry = entry._replace(pid=pid, started_s=started_s)

    def look(self) -> Entry | None:
        """Return the entry once the peer is ready, None before.

        Raises:
            ConfigurationError: it ended.
        """
        ended = _reaped(self.entry.pid)
        with self._log.open("rb") as file:
            file.seek(self._log_start)
            lines = file.read(LOG_BYTES_LOOKED_AT).splitlines()
        if ended is not None:
            said = "\n  ".join(map(_shown, lines[-LOG_LINES_SHOWN:])) or "nothing"
            raise ConfigurationError(
                self.entry.name,
                f"ended while it started ({ended}); {self._log} says last:\n  {said}\n"
                "mend that and `up` again, which starts what is missing; `down` stops "
                "the others",
            )
        for line in lines:
            if line.startswith(b'{"event": "ready"'):
                ready = json.loads(line)
                return self.entry._replace(
                    endpoint=ready["endpoint"], peer=ready["peer"]
                )
        return None


def _shown(line: bytes) -> str:
    """Return a line of a log for people; an error in JSON as the text in it."""
    text = line.decode("utf-8", "replace")
    if not text.startswith('{"error"'):
        return text
    try:
        return f"error: {json.loads(text)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return text


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without settings: the peer's file says all of them."""
    settings = {f"{ENV_PREFIX}{name.upper()}" for name in (*SETTINGS, "config")}
    return {name: text for name, text in environ.items() if name not in settings}


def _reaped(pid: int) -> str | None:
    """Return how a child of ours ended, None where it runs or is nobody's we know."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    if not found:
        return None
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exit code {os.WEXITSTATUS(status)}"


def stop_all(
    directory: Path, entries: Iterable[Entry], *, grace_s: float
) -> Iterator[tuple[Entry, bool]]:
    """Stop peers, the last one first; yields each that is gone, and whether by force.

    All are told at once, as they take no longer then, and are killed after the grace.
    """
    left = [entry for entry in entries if is_running(directory, entry)]
    for entry in reversed(left):
        _send(directory, entry, signal.SIGTERM)
    until_s = time.monotonic() + grace_s
    killed: set[str] = set()
    while left:
        for entry in reversed(left):
            if not is_running(directory, entry):
                _reaped(entry.pid)
                left.remove(entry)
                yield entry, entry.name in killed
        if left and time.monotonic() > until_s:
            for entry in left:
                killed.add(entry.name)
                _send(directory, entry, signal.SIGKILL)
        time.sleep(0.02)


def _send(directory: Path, entry: Entry, number: int) -> None:
    if is_running(directory, entry):
        with contextlib.suppress(ProcessLookupError):
            os.kill(entry.pid, number)
