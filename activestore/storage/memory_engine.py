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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from activestore.errors import CorruptRecordError, InvalidRequestError
from activestore.ids import ObjectId, PeerId
from activestore.storage import checking
from activestore.storage.blobs import FILE_MISSING, FILE_WRONG, address_of, view_of
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
        # The keys of a table in order, until one comes or goes; never changed in place.
        self._sorted: dict[str, list[bytes]] = {}
        self.table_bytes = 0
        self.written_bytes = 0
        self.files: dict[bytes, tuple[bytes, float]] = {}  # content and when written

    def keys(self, table: str) -> list[bytes]:
        """Return the keys of a table in order; the list is not the caller's to change."""
        found = self._sorted.get(table)
        if found is None:
            found = self._sorted[table] = sorted(self.tables[table])
        return found

    def put(self, table: str, key: bytes, value: bytes | None) -> None:
        """Put a value, or take it away."""
        rows = self.tables[table]
        old = rows.get(key)
        if (old is None) != (value is None):
            self._sorted.pop(table, None)
        if old is not None:
            self.table_bytes -= len(key) + len(old)
        if value is None:
            rows.pop(key, None)
            return
        rows[key] = value
        self.table_bytes += len(key) + len(value)
        self.written_bytes += len(key) + len(value)


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
        with self._reading() as transaction:
            objects = self._objects_count(transaction, len(disk.tables["heads"]))
        return Usage(
            objects, room.used_bytes, room.budget_bytes, 0, free,
            disk.written_bytes, self.commits, self.changes,
        )  # fmt: skip

    def verify(self) -> Iterator[Damage | int]:
        """Check every record and file; yield each damage, and bytes checked in between."""
        return checking.verify(self._reading, self._tables, self._memory_files)

    def verify_object(self, object_id: ObjectId) -> list[Damage]:
        """Check all that is kept of one object; return what is damaged."""
        found = checking.verify_object(
            self._reading, self._tables, self._memory_files, object_id
        )
        return [one for one in found if isinstance(one, Damage)]

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

    def open(
        self, digest: bytes, size: int, object_id: bytes, *, is_afresh: bool = False
    ) -> AnyBuffer:
        """Return the content, which is checked where that `is_afresh`.

        Raises:
            CorruptRecordError: it is not there, or not what its name says.
        """
        where = f"blob {digest.hex()[:16]}"
        found = self._disk.files.get(digest)
        if found is None or len(found[0]) != size:
            raise CorruptRecordError(object_id, where, FILE_MISSING)
        if is_afresh and address_of(found[0]) != digest:
            raise CorruptRecordError(object_id, where, FILE_WRONG)
        return found[0]

    def remove(self, digest: bytes) -> None:
        """Remove what nothing references."""
        self._disk.files.pop(digest, None)

    def unnamed_before(self, before_s: float) -> Iterator[tuple[bytes, int]]:
        """Yield address and size of what was written before a wall-clock time."""
        for digest, (content, written_s) in list(self._disk.files.items()):
            if written_s <= before_s:
                yield digest, len(content)

    def check(self, digest: bytes, size: int) -> Iterator[int]:
        """Read a content whole; yield its size.

        Raises:
            CorruptRecordError: it is not there, or not what its name says.
        """
        self.open(digest, size, b"", is_afresh=True)
        yield size


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
        table = self._disk.tables[db]
        changed = self._changes.get(db)
        if not changed:
            return _Cursor(table, self._disk.keys(db))
        rows: dict[bytes, bytes | None] = {**table, **changed}
        kept = {key: value for key, value in rows.items() if value is not None}
        return _Cursor(kept, sorted(kept))

    def commit(self) -> None:
        for name, changed in self._changes.items():
            for key, value in changed.items():
                self._disk.put(name, key, value)


class _Cursor:
    """Walks a table in the order of its keys."""

    def __init__(self, rows: Mapping[bytes, bytes], keys: Sequence[bytes]) -> None:
        self._rows = rows
        self._keys = keys
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
        for index in range(self._position, len(self._keys)):
            key = self._keys[index]
            value = self._rows.get(key)
            if value is not None:  # It may go while whoever checks the store pauses.
                yield (key, value) if values else key

    def __iter__(self) -> Iterator[Any]:
        return self.iternext()
