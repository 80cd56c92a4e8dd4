"""Commands for those who run peers: status, peers, drain, stop, backup.

Rules of this file: they ask a running peer; what works on a directory is in `offline`.
"""

from __future__ import annotations

import os
import time
from typing import Any

import click

from activestore.cli.copies import counts_text
from activestore.cli.options import WORK_S, Target, peer_options
from activestore.cli.output import echo, plain, say, show, size_text, table
from activestore.cli.waiting import ASK_S, Step, spinner, watched
from activestore.client.client import Store
from activestore.errors import ActiveStoreError, UnavailableError

# A peer that ends answers the next greeting at once or never, unless its disk is slow.
ANSWERS_S = (0.2, 0.6)
# Troubles in the table; a person reads no more at once.
TROUBLES_SHOWN = 20
# Erase cycles of cheap flash, for the projection of its life.
FLASH_CYCLES = 3000
# Of what is installed at a peer, in a table; `--json` has all that it told.
SHOWN_MAX = 4
YEAR_S = 365.25 * 86400


@click.command()
@peer_options()
def status(target: Target, *, as_json: bool) -> None:
    """Show how the peer is."""
    with spinner("status", quiet=as_json), target.connected() as store:
        about = store.status()
    about["flash"] = _flash(about)
    if as_json:
        show(about, as_json=True)
        return
    storage = about["storage"]
    calls = about["calls"]
    rows: list[tuple[str, Any]] = [
        ("peer", f"{about['name']} ({plain(about['peer_id'])})"),
        ("endpoint", about["endpoint"]),
        (
            "state",
            f"{about['state']} for {about['uptime_s']:.0f} s, pid {about['pid']}",
        ),
        ("version", f"{about['version']}, protocol {about['protocol_version']}"),
        ("daemon", size_text(about["daemon"]["memory_bytes"])),
        ("objects", f"{storage['objects']}, {about['active_objects']} active"),
        (
            "calls",
            f"{calls['total']}, {calls['running']} running, {calls['waiting']} wait",
        ),
        ("clients", about["sessions"]),
        (
            "disk",
            f"{size_text(storage['used_bytes'])} of {size_text(storage['budget_bytes'])}",
        ),
        (
            "written",
            f"{size_text(storage['written_bytes'])}, {storage['commits']} commits",
        ),
        ("flash life", about["flash"]["text"]),
        ("classes", ", ".join(about["classes"]) or "none"),
    ]
    # Peers of earlier versions tell none of these.
    if about.get("replication"):
        rows.append(("replicas", counts_text(about["replication"])))
    if "scrub" in about:
        rows.append(("checked", _scrub_text(about["scrub"])))
    discovery = about.get("discovery", {})
    if discovery.get("is_on"):
        rows.append(("discovery", discovery["trouble"] or "works"))
    troubles = about.get("troubles", [])
    rows += [(one["title"], _trouble_text(one)) for one in troubles[:TROUBLES_SHOWN]]
    if len(troubles) > TROUBLES_SHOWN:
        count = len(troubles) - TROUBLES_SHOWN
        rows.append(("more trouble", f"{count} others, in `status --json`"))
    rows += [
        ("renamed", f"{one['alias']!r} of {one['object_id'].hex()}: {one['renamed']!r}")
        for one in about.get("names", {}).get("renamed", ())
    ]
    rows += [
        (
            f"executor {one['executor']}",
            f"{one['state']}, pid {one['pid']}, {size_text(one['memory_bytes'])}, "
            f"{one['busy_slots']} of {one['slots']} slots, {one['copies']} objects"
            + (", SILENT" if one["is_silent"] else ""),
        )
        for one in about["executors"]
    ]
    table(("what", "value"), rows)


def _scrub_text(scrub: dict[str, Any]) -> str:
    """Return how what is on disk was checked last, as a line of the table."""
    if scrub["is_running"]:
        text = f"running, {scrub['progress']:.0%}"
    elif scrub["last_s"]:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(scrub["last_s"]))
        text = f"{size_text(scrub['last_bytes'])} at {when}"
    else:
        text = "not yet"
    damaged, repaired = scrub["damaged"], scrub["repaired_count"]
    if damaged:
        text += f"; DAMAGED: {len(damaged)}, see `status --json`"
    return text + (f"; repaired: {repaired}" if repaired else "")


def _trouble_text(one: dict[str, Any]) -> str:
    """Return one trouble as a line of the table."""
    times = f"{one['times']} times, " if one["times"] > 1 else ""
    ago = f"{times}since {one['first_ago_s']:.0f} s"
    return f"{one['about']}: {one['reason']} ({ago}); {one['advice']}"


def _flash(about: dict[str, Any]) -> dict[str, Any]:
    """Project the life of a flash of the budget's size at the present rate of writing."""
    storage = about["storage"]
    rate = storage["written_bytes"] / max(about["uptime_s"], 1.0)
    if not rate:
        return {"bytes_per_s": 0.0, "years": None, "text": "nothing was written yet"}
    years = storage["budget_bytes"] * FLASH_CYCLES / rate / YEAR_S
    text = f"{years:,.1f} years at {size_text(rate)}/s ({FLASH_CYCLES} cycles)"
    return {"bytes_per_s": rate, "years": years, "text": text}


@click.command()
@peer_options()
def peers(target: Target, *, as_json: bool) -> None:
    """List the peers that this one knows."""
    with spinner("peers", quiet=as_json), target.connected() as store:
        rows = store.peers()
    if as_json:
        show(rows, as_json=True)
        return
    table(
        ("peer", "id", "state", "zone", "endpoint", "cores", "busy", "load", "has"),
        (
            (
                row["peer"],
                row["peer_id"].hex(),
                row.get("state", "alive"),  # Peers of version 1 list themselves.
                row.get("zone", ""),
                row["endpoint"],
                *_machine_of(row),
            )
            for row in rows
        ),
    )


def _machine_of(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """Return the cells about a peer's machine; empty where it does not tell."""
    load = row.get("load")
    busy = f"{load['busy_slots']}/{load['slots']}" if load else ""
    per_core = f"{load['per_core']} %" if load else ""
    has = [*row.get("accelerators", ()), *row.get("installed", {})]
    return str(row.get("cores", "")), busy, per_core, ", ".join(has[:SHOWN_MAX])


@click.command()
@peer_options()
def drain(target: Target, *, as_json: bool) -> None:
    """Move all objects off to other peers, let running calls end, then stop the peer.

    It stops only once the last object is gone from it: while one cannot be moved the
    peer stays, and says why. A peer that is alone stops with its objects on its disk.
    Ctrl-C ends the waiting, not the drain.
    """
    _end(target, "drain", as_json=as_json)


@click.command()
@peer_options()
def stop(target: Target, *, as_json: bool) -> None:
    """Stop the peer, and wait until it is gone."""
    _end(target, "stop", as_json=as_json)


def _end(target: Target, operation: str, *, as_json: bool) -> None:
    is_asked = False
    try:
        with spinner(operation, quiet=as_json):
            with target.connected() as store:
                peer = store.status()
                is_asked = True
                # Its id, for if it dies meanwhile, the next peer is asked.
                more = {"is_told_fewer": True} if operation == "drain" else {}
                told = store.request(operation, peer_id=peer["peer_id"], **more)
            _wait_until_gone(target, operation)
    except KeyboardInterrupt:
        if is_asked:
            say(f"the {operation} goes on; `status` shows how far it is")
        raise
    about = {"stopped": target.endpoint, "pid": peer["pid"]}
    text = f"stopped the peer at {target.endpoint} (pid {peer['pid']})"
    moved, fewer = (told["moved"], told["fewer"]) if type(told) is dict else (told, 0)
    if moved is not None:  # How many objects a drain took to others.
        about["moved"] = moved
        text += f", {moved} object{'s' if moved != 1 else ''} moved off it first"
    if operation == "drain":
        about["fewer"] = fewer
    if fewer:
        text += (
            f"; {fewer} of them now ha{'ve' if fewer != 1 else 's'} a copy fewer than "
            "wanted, for no other peer takes it: that is made again when one can"
        )
    if as_json:
        show(about, as_json=True)
    else:
        echo(text)


def _wait_until_gone(target: Target, operation: str) -> None:
    until_s = time.monotonic() + target.timeout_s
    while _answers(target):
        if time.monotonic() > until_s:
            raise UnavailableError(
                f"{operation} {target.endpoint}",
                f"it still answers after {target.timeout_s:g} s",
            )


def _answers(target: Target) -> bool:
    """Return whether the peer still answers; a busy one gets a second chance."""
    for answer_s in ANSWERS_S:
        try:
            target._replace(connect_s=answer_s).connected().close()
        except ActiveStoreError:
            continue
        time.sleep(ASK_S)
        return True
    return False


@click.command()
@click.argument("directory", type=click.Path())
@peer_options(work_s=WORK_S)
def backup(target: Target, directory: str, *, as_json: bool) -> None:
    """Copy a consistent snapshot to an empty DIRECTORY on the peer's machine."""
    # The peer works elsewhere than we do, most often on the same machine.
    directory = os.path.abspath(directory)

    def work(store: Store) -> Any:
        return store.request("backup", directory=directory)

    def progress(store: Store) -> Step | None:
        step = store.status()["backups"].get(directory)
        return None if step is None else (step[0], step[1])

    done = watched(target, "backup", work, progress=progress, quiet=as_json)
    if as_json:
        show(done, as_json=True)
    else:
        echo(f"{size_text(done['bytes'])} copied to {directory}")
