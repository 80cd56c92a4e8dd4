"""An engine in memory: the same commits on dicts, for simulations and tests.

What it keeps lies in a `MemoryDisk`, which outlives it: a simulated crash drops the
engine, a simulated restart opens another one on the same disk, and finds what was
committed and nothing else.

Rules of this file: no file, no clock, no chance; what a commit means is `tables`'.
"""

from __future__ import annotations

import bisect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from activestore.errors import CorruptRecordError, InvalidRequestError
from activestore.ids import PeerId
from activestore.storage import maintenance
from activestore.storage.blobs import FILE_MISSING, address_of, view_of
from activestore.storage.engine import Damage, Usage
from activestore.storage.room import Room
from activestore.storage.tables import TABLES, TableEngine
from activestore.wire.state import AnyBuffer

_T = TypeVar("_T")


class MemoryDisk:
    """What survives a crash: tables, files, and whose they are."""

    def __init__(self, peer_id: PeerId) -> None:
        self.peer_id = peer_id
        self.tables: dict[str, dict[bytes, bytes]] = {name: {} for name in TABLES}
        self.table_bytes = 0
        self.written_bytes = 0
        self.files: dict[bytes, tuple[bytes, float]] = {}  # content and when written


class MemoryEngine(TableEngine):
    """Keeps objects, aliases, replies and published code of one simulated peer."""

    def __init__(
        self,
        disk: MemoryDisk,
        *,
        disk_budget_bytes: int,
        wall_clock: Callable[[], float],
    ) -> None:
        self._disk = disk
        self._lock = threading.RLock()
        self._memory_files = MemoryFiles(disk, wall_clock)
        super().__init__(
            {name: name for name in TABLES}, self._memory_files,
            Room(disk_budget_bytes), wall_clock,
        )  # fmt: skip

    @property
    def peer_id(self) -> PeerId:
        """The id made with the disk."""
        return self._disk.peer_id

    def close(self) -> None:
        """Leave the disk to whoever opens it next."""

    @contextmanager
    def _reading(self, object_id: bytes = b"") -> Iterator[Any]:
        with self._lock:
            yield _Transaction(self._disk)

    def _write(self, work: Callable[[Any], _T]) -> _T:
        with self._lock:
            transaction = _Transaction(self._disk)
            done = work(transaction)
            transaction.commit()
            return done

    def _count_tables(self, transaction: Any) -> int:
        return self._disk.table_bytes

    def _look_at_disk(self, needed_bytes: int) -> None:
        self._room.disk_table_bytes = self._room.disk_file_bytes = sys.maxsize

    def usage(self) -> Usage:
        """Return how full the engine is."""
        disk, room = self._disk, self._room
        free = max(0, room.budget_bytes - room.used_bytes)
        return Usage(
            len(disk.tables["heads"]), room.used_bytes, room.budget_bytes, 0, free,
            disk.written_bytes, self.commits, self.changes,
        )  # fmt: skip

    def verify(self) -> Iterator[Damage | int]:
        """Check every record and file; yield each damage, and bytes checked in between."""
        return maintenance.verify(self._reading, self._tables, self._memory_files)

    def backup(self, directory: str) -> Iterator[tuple[int, int]]:
        """Refuse: what is only in memory has no copy on a disk.

        Raises:
            InvalidRequestError: always.
        """
        raise InvalidRequestError("an engine in memory has no backup", directory)


class MemoryFiles:
    """Large buffers by the digest of their content."""

    def __init__(self, disk: MemoryDisk, wall_clock: Callable[[], float]) -> None:
        self._disk = disk
        self._wall_clock = wall_clock

    def write(self, buffer: AnyBuffer) -> bytes:
        """Keep a buffer and return its address."""
        content = bytes(view_of(buffer))
        digest = address_of(content)
        self._disk.files[digest] = (content, self._wall_clock())
        self._disk.written_bytes += len(content)
        return digest

    def open(self, digest: bytes, size: int, object_id: bytes) -> AnyBuffer:
        """Return the content.

        Raises:
            CorruptRecordError: it is not there.
        """
        found = self._disk.files.get(digest)
        if found is None or len(found[0]) != size:
            where = f"blob {digest.hex()[:16]}"
            raise CorruptRecordError(object_id, where, FILE_MISSING)
        return found[0]

    def remove(self, digest: bytes) -> None:
        """Remove what nothing references."""
        self._disk.files.pop(digest, None)

    def unnamed_before(self, before_s: float) -> Iterator[tuple[bytes, int]]:
        """Yield address and size of what was written before a wall-clock time."""
        for digest, (content, written_s) in list(self._disk.files.items()):
            if written_s <= before_s:
                yield digest, len(content)

    def is_intact(self, digest: bytes, size: int) -> bool:
        """Return whether the content is there and is what its name says."""
        found = self._disk.files.get(digest)
        return found is not None and len(found[0]) == size


class _Transaction:
    """Reads what is committed and what it has put itself, as one of LMDB does."""

    def __init__(self, disk: MemoryDisk) -> None:
        self._disk = disk
        self._changes: dict[str, dict[bytes, bytes | None]] = {}

    def get(self, key: bytes, *, db: str) -> bytes | None:
        changed = self._changes.get(db)
        if changed is not None and key in changed:
            return changed[key]
        return self._disk.tables[db].get(key)

    def put(self, key: bytes, value: bytes, *, db: str) -> None:
        self._changes.setdefault(db, {})[bytes(key)] = bytes(value)

    def delete(self, key: bytes, *, db: str) -> None:
        self._changes.setdefault(db, {})[bytes(key)] = None

    def cursor(self, *, db: str) -> _Cursor:
        rows: Mapping[bytes, bytes | None] = self._disk.tables[db]
        changed = self._changes.get(db)
        if changed:
            rows = {**rows, **changed}
        return _Cursor({k: v for k, v in rows.items() if v is not None})

    def commit(self) -> None:
        for name, changed in self._changes.items():
            table = self._disk.tables[name]
            for key, value in changed.items():
                old = table.pop(key, None)
                if old is not None:
                    self._disk.table_bytes -= len(key) + len(old)
                if value is not None:
                    table[key] = value
                    self._disk.table_bytes += len(key) + len(value)
                    self._disk.written_bytes += len(key) + len(value)


class _Cursor:
    """Walks a table in the order of its keys."""

    def __init__(self, rows: Mapping[bytes, bytes]) -> None:
        self._rows = rows
        self._keys = sorted(rows)
        self._position = 0

    def set_range(self, key: bytes) -> bool:
        self._position = bisect.bisect_left(self._keys, key)
        return self._position < len(self._keys)

    def next(self) -> bool:
        self._position += 1
        return self._position < len(self._keys)

    def key(self) -> bytes:
        return self._keys[self._position]

    def value(self) -> bytes:
        return self._rows[self._keys[self._position]]

    def iternext(self, *, values: bool = True) -> Iterator[Any]:
        for key in self._keys[self._position :]:
            yield (key, self._rows[key]) if values else key

    def __iter__(self) -> Iterator[Any]:
        return self.iternext()
