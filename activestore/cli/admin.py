"""Commands for those who run peers: status, peers, drain, stop, backup.

Rules of this file: they ask a running peer; what works on a directory is in `offline`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import click

from activestore.cli.output import (
    connected,
    peer_options,
    plain,
    progress,
    show,
    size_text,
    table,
)
from activestore.client.client import connect
from activestore.errors import ActiveStoreError, UnavailableError

# How often a long operation is asked for its progress.
ASK_S = 0.2
# Erase cycles of cheap flash, for the projection of its life.
FLASH_CYCLES = 3000
YEAR_S = 365.25 * 86400


@click.command()
@peer_options
def status(endpoint: str, timeout_s: float, *, as_json: bool) -> None:
    """Show how the peer is."""
    with connected(endpoint, timeout_s) as store:
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
@peer_options
def peers(endpoint: str, timeout_s: float, *, as_json: bool) -> None:
    """List the peers that this one knows."""
    with connected(endpoint, timeout_s) as store:
        rows = store.peers()
    if as_json:
        show(rows, as_json=True)
        return
    table(
        ("peer", "id", "endpoint"),
        ((row["peer"], row["peer_id"].hex(), row["endpoint"]) for row in rows),
    )


@click.command()
@peer_options
def drain(endpoint: str, timeout_s: float, *, as_json: bool) -> None:
    """Let running calls end, take no new ones, then stop the peer."""
    _end(endpoint, timeout_s, "drain", as_json=as_json)


@click.command()
@peer_options
def stop(endpoint: str, timeout_s: float, *, as_json: bool) -> None:
    """Stop the peer, and wait until it is gone."""
    _end(endpoint, timeout_s, "stop", as_json=as_json)


def _end(endpoint: str, timeout_s: float, operation: str, *, as_json: bool) -> None:
    with connected(endpoint, timeout_s) as store:
        pid = store.status()["pid"]
        store.request(operation)
    until_s = time.monotonic() + timeout_s
    while _answers(endpoint):
        if time.monotonic() > until_s:
            raise UnavailableError(endpoint, f"it still answers after {timeout_s:g} s")
    if as_json:
        show({"stopped": endpoint, "pid": pid}, as_json=True)
    else:
        click.echo(f"stopped the peer at {endpoint} (pid {pid})")


def _answers(endpoint: str) -> bool:
    try:
        connect(endpoint, timeout_s=0.3, name="cli").close()
    except ActiveStoreError:
        return False
    time.sleep(ASK_S)
    return True


@click.command()
@click.argument("directory", type=click.Path())
@peer_options
def backup(endpoint: str, timeout_s: float, directory: str, *, as_json: bool) -> None:
    """Copy a consistent snapshot to an empty DIRECTORY on the peer's machine."""
    with connected(endpoint, timeout_s) as store:
        outcome: dict[str, Any] = {}

        def run() -> None:
            try:
                outcome["done"] = store.request("backup", directory=directory)
            except ActiveStoreError as error:
                outcome["error"] = error

        thread = threading.Thread(target=run)
        thread.start()

        def steps() -> Iterator[tuple[int, int]]:
            while thread.is_alive():
                done = store.status()["backups"].get(directory)
                if done is not None:
                    yield done[0], done[1]
                thread.join(ASK_S)

        progress("backup", steps(), quiet=as_json)
        thread.join()
    if "error" in outcome:
        raise outcome["error"]
    if as_json:
        show(outcome["done"], as_json=True)
    else:
        click.echo(f"{size_text(outcome['done']['bytes'])} copied to {directory}")
