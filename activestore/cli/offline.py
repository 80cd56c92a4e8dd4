"""Commands on data directories: restore, doctor.

Rules of this file: restore never writes over data; doctor reads and never mends.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from typing import Any

import click

from activestore.cli.output import (
    EXIT_FAILED,
    connected,
    guarded,
    json_option,
    peer_options,
    plain,
    progress,
    show,
    size_text,
    table,
)
from activestore.storage.engine import Damage
from activestore.storage.lmdb_engine import LmdbEngine
from activestore.storage.maintenance import restore as restore_backup

# doctor warns when less than this share of the disk, or of the budget, is free.
FREE_SHARE_MIN = 0.10


@click.command()
@click.argument("source", metavar="BACKUP", type=click.Path())
@click.argument("target", metavar="DATA_DIR", type=click.Path())
@click.option(
    "--keep-identity",
    is_flag=True,
    help="Keep the peer id; only where the old peer is gone for good.",
)
@json_option
@guarded
def restore(source: str, target: str, *, keep_identity: bool, as_json: bool) -> None:
    """Make the data directory DATA_DIR of a BACKUP; it must not hold data."""
    steps = restore_backup(source, target, new_identity=not keep_identity)
    done = progress("restore", steps, quiet=as_json)
    if as_json:
        show({"bytes": done, "data_dir": target}, as_json=True)
    else:
        click.echo(
            f"{size_text(done)} restored; start it with "
            f"`activestore-node start --data-dir {target}`"
        )


@click.command()
@click.option(
    "--data-dir", type=click.Path(exists=True), help="Check a stopped peer's data."
)
@peer_options
@click.pass_context
def doctor(
    context: click.Context,
    endpoint: str,
    timeout_s: float,
    data_dir: str | None,
    *,
    as_json: bool,
) -> None:
    """Look for what is wrong: with --data-dir every checksum, else a running peer."""
    if data_dir is not None:
        findings = _check_directory(data_dir, quiet=as_json)
    else:
        findings = _check_peer(endpoint, timeout_s)
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
    engine = LmdbEngine.open(data_dir, disk_budget_bytes=1 << 60, wall_clock=_wall_s)
    findings: list[dict[str, Any]] = []
    checked = 0
    try:
        usage = engine.usage()
        total = max(usage.used_bytes, 1)

        def steps() -> Iterator[tuple[int, int]]:
            nonlocal checked
            for one in engine.verify():
                if isinstance(one, Damage):
                    where = (
                        f"{plain(one.object_id)} {one.where}"
                        if one.object_id
                        else one.where
                    )
                    findings.append(
                        _finding(
                            where,
                            one.reason,
                            "restore it from a backup, or delete the object",
                        )
                    )
                else:
                    checked += one
                    yield min(checked, total), total

        progress("checking", steps(), quiet=quiet)
        findings.append(
            _finding(
                "records and files", f"{usage.objects} objects, {size_text(checked)}"
            )
        )
        findings.append(_disk(data_dir))
    finally:
        engine.close()
    return findings


def _disk(data_dir: str) -> dict[str, Any]:
    disk = shutil.disk_usage(data_dir)
    text = f"{size_text(disk.free)} of {size_text(disk.total)} free"
    if disk.free < FREE_SHARE_MIN * disk.total:
        return _finding("disk", text, "free some, or move the data directory")
    return _finding("disk", text)


def _check_peer(endpoint: str, timeout_s: float) -> list[dict[str, Any]]:
    with connected(endpoint, timeout_s) as store:
        about = store.status()
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
    return findings


def _wall_s() -> float:
    return time.clock_gettime(time.CLOCK_REALTIME)
