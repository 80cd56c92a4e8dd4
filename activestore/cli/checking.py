"""The check of a data directory, in a process of its own: lines of JSON on its output.

    {"objects": n, "total": bytes}     once
    {"checked": bytes}                 now and then
    {"where": ..., "reason": ...}      a damage
    {"error": code, "fields": [...]}   it cannot be opened; nothing follows

A sector of the disk that cannot be read ends whoever has mapped it with SIGBUS: so
doctor has this process do it, and lives to tell.

Rules of this file: it makes no directory, and mends nothing.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

from activestore.errors import ActiveStoreError, ConfigurationError, CorruptRecordError
from activestore.storage.directory import DATA, read_format
from activestore.storage.engine import Damage
from activestore.storage.lmdb_engine import LmdbEngine

# Larger than any disk: a check writes nothing that a budget could forbid.
BUDGET_BYTES = 1 << 60


def check(directory: str) -> None:
    """Print what a check of the directory finds."""
    try:
        _refuse_what_is_none(Path(directory))
        engine = LmdbEngine.open(
            directory, disk_budget_bytes=BUDGET_BYTES, wall_clock=_wall_s
        )
        try:
            usage = engine.usage()
            _print(objects=usage.objects, total=max(usage.used_bytes, 1))
            for found in engine.verify():
                if isinstance(found, Damage):
                    owner = f"{found.object_id.hex()} " if found.object_id else ""
                    _print(where=owner + found.where, reason=found.reason)
                else:
                    _print(checked=found)
        finally:
            engine.close()
    except CorruptRecordError as error:
        owner = f"{error.object_id.hex()} " if error.object_id else ""
        _print(where=owner + error.where, reason=error.reason)
    except ActiveStoreError as error:
        _print(error=error.code, fields=list(error.args))
    except Exception as error:  # noqa: BLE001 - damage shows as any error of the reader
        _print(where="tables", reason=f"{type(error).__name__}: {error}")


def _refuse_what_is_none(path: Path) -> None:
    """Opening would make what is missing, and call it well."""
    read_format(path)
    if not (path / DATA / "data.mdb").is_file():
        raise ConfigurationError(
            "data_dir", f"{path} holds no data: {DATA}/data.mdb is missing"
        )


def _print(**line: object) -> None:
    print(json.dumps(line), flush=True)


def _wall_s() -> float:
    return time.clock_gettime(time.CLOCK_REALTIME)


if __name__ == "__main__":
    # Ctrl-C reaches this process too; whoever started it tells of it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    check(sys.argv[1])
