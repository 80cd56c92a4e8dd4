"""Commands on data directories: restore, doctor.

Rules of this file: restore never writes over data; doctor reads and never mends.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from activestore.cli.copies import (
    counts_text,
    problem_texts,
    replication_elsewhere,
    replication_of,
)
from activestore.cli.options import Target, guarded, json_option, peer_options
from activestore.cli.output import EXIT_FAILED, echo, show, size_text, table
from activestore.cli.waiting import bar, go_through, spinner
from activestore.errors import error_from_wire
from activestore.storage.maintenance import restore as restore_backup

# doctor warns when less than this share of the disk, or of the budget, is free.
FREE_SHARE_MIN = 0.10
# Peers that could not be asked, in a table.
SILENT_SHOWN = 5
# The process that checks; it is told the directory.
CHECK = (sys.executable, "-m", "activestore.cli.checking")
RESTORE_IT = "restore it from a backup, or delete the object"
RESTORE_ALL = "restore a backup into a new directory"


@click.command()
@click.argument("source", metavar="BACKUP", type=click.Path())
@click.argument("directory", metavar="DATA_DIR", type=click.Path())
@click.option(
    "--keep-identity",
    is_flag=True,
    help="Keep the peer id; only where the old peer is gone for good.",
)
@json_option
@guarded
def restore(source: str, directory: str, *, keep_identity: bool, as_json: bool) -> None:
    """Make the data directory DATA_DIR of a BACKUP; it must not hold data."""
    steps = restore_backup(source, directory, new_identity=not keep_identity)
    done = go_through("restore", steps, quiet=as_json)
    if as_json:
        show({"bytes": done, "data_dir": directory}, as_json=True)
    else:
        echo(
            f"{size_text(done)} restored; start it with "
            f"`activestore-node start --data-dir {directory}`"
        )


@click.command()
@click.option(
    "--data-dir",
    type=click.Path(exists=True, file_okay=False),
    help="Check a stopped peer's data.",
)
@peer_options()
@click.pass_context
def doctor(
    context: click.Context, target: Target, data_dir: str | None, *, as_json: bool
) -> None:
    """Look for what is wrong: with --data-dir every checksum, else a running peer.

    Also objects that lack copies, and copies that are quarantined, there and at the
    other peers that it knows, a hundred at most.

    Exits with 1 where something is wrong, with 4 where DATA_DIR is no data directory.
    """
    if data_dir is not None:
        findings = _check_directory(data_dir, quiet=as_json)
    else:
        findings = _check_peer(target, quiet=as_json)
    wrong = [finding for finding in findings if finding["level"] == "wrong"]
    if as_json:
        show({"findings": findings, "is_well": not wrong}, as_json=True)
    else:
        table(
            ("", "what", "found", "to do"),
            (
                (
                    "!!" if f["level"] == "wrong" else "ok",
                    f["what"],
                    f["found"],
                    f["do"],
                )
                for f in findings
            ),
        )
    if wrong:
        context.exit(EXIT_FAILED)


def _finding(what: str, found: str, do: str = "") -> dict[str, Any]:
    return {"level": "wrong" if do else "ok", "what": what, "found": found, "do": do}


def _check_directory(data_dir: str, *, quiet: bool) -> list[dict[str, Any]]:
    findings: list[dict[str, Any]] = []
    objects: int | None = None
    checked = total = 0
    with bar("checking", quiet=quiet) as move:
        for line in _lines_of_check(data_dir):
            if "error" in line:
                raise error_from_wire(line["error"], tuple(line["fields"]))
            if "where" in line:
                reason, _, advice = line["reason"].partition("; ")
                do = advice or (RESTORE_ALL if objects is None else RESTORE_IT)
                findings.append(_finding(line["where"], reason, do))
            elif "checked" in line:
                checked += line["checked"]
                move(min(checked, total), total)
            else:
                objects, total = line["objects"], line["total"]
    if objects is not None:
        text = f"{objects} objects, {size_text(checked)}"
        findings.append(_finding("records and files", text))
    findings.append(_disk(data_dir))
    return findings


def _lines_of_check(data_dir: str) -> Iterator[dict[str, Any]]:
    """Yield what the process that checks says, and how it ended where it died."""
    command = [*CHECK, str(Path(data_dir).absolute())]
    with subprocess.Popen(  # noqa: S603 - our own module
        command, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        by = f"exit code {process.returncode}"
        if process.returncode < 0:
            by = signal.Signals(-process.returncode).name
        reason = f"reading them ended with {by}: the disk or data.mdb is damaged"
        yield {"where": "tables", "reason": reason}


def _disk(data_dir: str) -> dict[str, Any]:
    disk = shutil.disk_usage(data_dir)
    text = f"{size_text(disk.free)} of {size_text(disk.total)} free"
    if disk.free < FREE_SHARE_MIN * disk.total:
        return _finding("disk", text, "free some, or move the data directory")
    return _finding("disk", text)


def _check_peer(target: Target, *, quiet: bool) -> list[dict[str, Any]]:
    with spinner("doctor", quiet=quiet), target.connected() as store:
        about = store.status()
        copies = replication_of(store)
        elsewhere = ([], []) if copies is None else (
            replication_elsewhere(target, store.peers())
        )  # fmt: skip
    storage = about["storage"]
    used = f"{size_text(storage['used_bytes'])} of {size_text(storage['budget_bytes'])}"
    is_full = storage["used_bytes"] > (1 - 2 * FREE_SHARE_MIN) * storage["budget_bytes"]
    findings = [
        _finding(
            "peer", f"{about['name']} {about['state']} for {about['uptime_s']:.0f} s"
        ),
        _finding(
            "disk budget",
            used,
            "delete objects or raise disk_budget_mb" if is_full else "",
        ),
    ]
    for one in about["executors"]:
        name = f"executor {one['executor']}"
        if one["is_silent"]:
            findings.append(
                _finding(
                    name,
                    "a method holds its interpreter",
                    "wait for it, or give the method a timeout_s",
                )
            )
        else:
            findings.append(_finding(name, f"{one['state']}, {one['copies']} objects"))
    return [*findings, *_of_copies(copies, *elsewhere)]


def _of_copies(
    told: dict[str, Any] | None, others: list[dict[str, Any]], silent: list[str]
) -> list[dict[str, Any]]:
    """Return what is wrong with copies that peers know, object by object."""
    if told is None:
        return []
    rows = list(told["objects"])
    findings = [_finding("replicas", counts_text(told))]
    if silent:
        names = ", ".join(silent[:SILENT_SHOWN])
        text = f"{len(silent)} alive and not asked: {names}"
        findings.append(_finding("other peers", text))
    # While nobody leads an object all who follow it tell of it.
    known = {(row["object_id"], row["problem"]) for row in rows}
    for row in others:
        is_own = row["problem"] == "quarantined"  # Of each peer that has one.
        if is_own or (row["object_id"], row["problem"]) not in known:
            known.add((row["object_id"], row["problem"]))
            rows.append(row)
    for row in rows:
        name = row.get("alias") or row["object_id"].hex()
        findings.append(_finding(f"object {name}", *problem_texts(row)))
    listed = len(told["objects"])
    count = told.get("under", 0) + told.get("quarantined", 0) - listed
    if count > 0:
        findings.append(
            _finding("more objects", f"{count} beyond these", "mend these, look again")
        )
    return findings
