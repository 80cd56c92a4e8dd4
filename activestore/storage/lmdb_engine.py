"""The engine on LMDB: one environment, one transaction per commit, files beside it.

The map, which is address space and no memory, is made large enough at the start; where
the system gives less it grows when it is full. The file gets its blocks before a commit
needs them (see `disk`), so that a full disk is found before anything is written.

    a commit fails      its pages are named by nothing: what was committed stays as it was
      no room           StorageFullError; the next commit tries again
      anything else     OSError: nobody knows what the disk has kept, the peer must stop

Rules of this file: every error of LMDB is turned into one of ours here, and nowhere else.

Source: design section 6; reliability.md section 4.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from activestore.errors import (
    ActiveStoreError,
    ConfigurationError,
    CorruptRecordError,
    UnavailableError,
)
from activestore.ids import ObjectId, PeerId
from activestore.storage import checking, maintenance
from activestore.storage.blobs import NO_SPACE, Blobs
from activestore.storage.directory import (
    BLOBS,
    DATA,
    TEMPORARY,
    DataDirectory,
    full_disk,
)
from activestore.storage.disk import RESERVE_BYTES, DataFile
from activestore.storage.engine import Damage, Usage
from activestore.storage.room import Room
from activestore.storage.tables import TABLES, TableEngine

MAP_BYTES_FIRST = 64 * 1024 * 1024
MAP_BYTES_MAX = 64 * 1024 * 1024 * 1024
# The map is so much larger than the budget: free pages and old snapshots lie in it too.
MAP_PER_BUDGET = 4
# How long the growth of the map waits for reads to end, in seconds.
GROW_WAIT_S = 5.0
# What LMDB keeps of its readers; it would end the process with SIGBUS where the disk has no
# room for it.
LOCK_FILE_BYTES = 16 * 1024

# What LMDB says when its pages are not what they should be.
DAMAGE = (
    lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError,
    lmdb.VersionMismatchError, lmdb.PanicError,
)  # fmt: skip

_T = TypeVar("_T")


class LmdbEngine(TableEngine):
    """Keeps objects, aliases, replies and published code of one peer."""

    def __init__(
        self,
        directory: DataDirectory,
        *,
        disk_budget_bytes: int,
        wall_clock: Callable[[], float],
    ) -> None:
        self._directory = directory
        self._gate = _Gate()
        self._data = data = directory.path / DATA
        self._env = _open(data, disk_budget_bytes)
        try:
            self._env.reader_check()
            info, self._page_bytes = self._env.info(), self._env.stat()["psize"]
            self._file = DataFile(
                data / "data.mdb", (info["last_pgno"] + 1) * self._page_bytes
            )
            tables = self._open_tables()
            self._blobs = Blobs(directory.path / BLOBS, directory.path / TEMPORARY)
            super().__init__(tables, self._blobs, Room(disk_budget_bytes), wall_clock)
        except lmdb.Error as error:
            self._env.close()
            raise _damaged(data, error) from None
        except BaseException:
            self._env.close()
            raise

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        *,
        disk_budget_bytes: int,
        wall_clock: Callable[[], float],
        must_exist: bool = False,
    ) -> LmdbEngine:
        """Lock and open a data directory, making it where there is none.

        With `must_exist` a directory that is none is refused and left as it is.

        Raises:
            ConfigurationError: it cannot be used, is none, or is of another format.
            DirectoryLockedError: another process uses it.
            StorageFullError: the disk is too full to open it.
            CorruptRecordError: the environment is damaged.
        """
        locked = DataDirectory(directory, must_exist=must_exist)
        try:
            return cls(
                locked, disk_budget_bytes=disk_budget_bytes, wall_clock=wall_clock
            )
        except OSError as error:
            locked.close()
            if error.errno in NO_SPACE:
                raise full_disk(locked.path) from None
            raise ConfigurationError(
                "data_dir", f"{locked.path} cannot be used: {error.strerror}"
            ) from None
        except BaseException:
            locked.close()
            raise

    def _open_tables(self) -> dict[str, Any]:
        with self._env.begin(write=True) as transaction:
            return {
                name: self._env.open_db(name.encode(), txn=transaction)
                for name in TABLES
            }

    @property
    def peer_id(self) -> PeerId:
        """The id made with the data directory."""
        return self._directory.peer_id

    @property
    def path(self) -> Path:
        """The data directory."""
        return self._directory.path

    def close(self) -> None:
        """Close files and release the lock."""
        self._blobs.close()
        self._file.close()
        self._env.close()
        self._directory.close()

    # -- transactions ------------------------------------------------------------------

    def _reading(self, object_id: bytes = b"") -> _Reading:
        return _Reading(self._env, self._gate, self._data, object_id)

    def _write(self, work: Callable[[Any], _T]) -> _T:
        """Do work in a write transaction, durable on return; a full map is grown.

        Raises:
            StorageFullError: there is no room; nothing was done.
            OSError: the disk failed; nothing was done.
        """
        while True:
            try:
                with self._env.begin(write=True) as transaction:
                    return work(transaction)
            except lmdb.MapFullError:  # noqa: PERF203 - once per growth of the map
                if not self._grow():
                    raise self._room.full("the map cannot grow") from None
            except lmdb.Error as error:
                raise self._what_failed(error) from error

    def _what_failed(self, error: lmdb.Error) -> ActiveStoreError | OSError:
        """Return what a failed transaction means: no room, or a disk that failed."""
        number = _errno_of(error)
        is_full = number in NO_SPACE or (number == errno.EIO and self._file.is_full())
        if is_full and self._is_sound():
            return self._room.full("the disk is full")
        return OSError(number, f"commit failed: {error}")

    def _is_sound(self) -> bool:
        """Whether LMDB goes on: not where it could not take back a half-written head."""
        try:
            with self._env.begin(write=True):
                return True
        except lmdb.Error:
            return False

    # -- room --------------------------------------------------------------------------

    def _count_tables(self, transaction: Any) -> int:
        pages = 0
        for table in self._tables.values():
            stat = transaction.stat(table)
            pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return int(pages) * self._page_bytes

    def _look_at_disk(self, needed_bytes: int) -> None:
        room, file = self._room, self._file
        end = (self._env.info()["last_pgno"] + 1) * self._page_bytes
        room.disk_file_bytes = file.free_bytes()
        if file.ensure(end + needed_bytes + RESERVE_BYTES):
            room.disk_table_bytes = sys.maxsize
            return
        # Only free pages are left, of which the tables know: those between what they use
        # and the end of the file.
        with self._env.begin() as transaction:
            used = self._count_tables(transaction)
        room.disk_table_bytes = max(0, file.allocated_bytes - used - RESERVE_BYTES)

    def _grow(self) -> bool:
        """Double the map, within what the budget may need; False where it cannot."""
        size = self._env.info()["map_size"]
        grown = min(2 * size, _map_bytes(self._room.budget_bytes))
        if grown <= size:
            return False
        # The old map goes, and with it the ground that reads in progress stand on.
        with self._gate.closed(GROW_WAIT_S) as is_closed:
            if is_closed:
                self._env.set_mapsize(grown)
        return is_closed

    def usage(self) -> Usage:
        """Return how full the engine is."""
        with self._reading() as transaction:
            heads_count = int(transaction.stat(self._tables["heads"])["entries"])
            objects = self._objects_count(transaction, heads_count)
        room = self._room
        return Usage(
            objects, room.used_bytes, room.budget_bytes, self._env.info()["map_size"],
            shutil.disk_usage(self.path).free, _written_bytes(), self.commits, self.changes,
        )  # fmt: skip

    # -- upkeep ------------------------------------------------------------------------

    def verify(self) -> Iterator[Damage | int]:
        """Check every record and file; yield each damage, and bytes checked in between."""
        try:
            yield from checking.verify(self._reading, self._tables, self._blobs)
        except CorruptRecordError as error:
            yield Damage(
                error.where, None, f"{error.reason}; what comes after is not checked"
            )

    def verify_object(self, object_id: ObjectId) -> list[Damage]:
        """Check all that is kept of one object; return what is damaged."""
        try:
            found = checking.verify_object(
                self._reading, self._tables, self._blobs, object_id
            )
            return [one for one in found if isinstance(one, Damage)]
        except CorruptRecordError as error:
            return [Damage(error.where, object_id, error.reason)]

    def backup(self, directory: str) -> Iterator[tuple[int, int]]:
        """Copy a consistent snapshot to an empty directory; yield (bytes done, total)."""
        self._copies_count += 1
        try:
            with self._gate:
                yield from maintenance.backup(
                    self._env, self._blobs, self._directory, Path(directory)
                )
        finally:
            self._copies_count -= 1


class _Reading:
    """A read transaction; errors of LMDB in it become ours.

    A class and no generator: a load of a small object would spend half its time there.
    """

    __slots__ = ("_data", "_env", "_gate", "_object_id", "_transaction")

    def __init__(
        self, env: lmdb.Environment, gate: _Gate, data: Path, object_id: bytes
    ) -> None:
        self._env = env
        self._gate = gate
        self._data = data
        self._object_id = object_id
        self._transaction: Any = None

    def __enter__(self) -> Any:
        self._gate.__enter__()
        try:
            self._transaction = self._env.begin()
        except lmdb.Error as error:
            self._gate.__exit__()
            raise self._told(error) from None
        return self._transaction

    def __exit__(self, _type: object, error: BaseException | None, _: object) -> None:
        self._transaction.abort()
        self._gate.__exit__()
        if isinstance(error, lmdb.Error):
            raise self._told(error) from None

    def _told(self, error: lmdb.Error) -> ActiveStoreError:
        if not isinstance(error, DAMAGE):
            return UnavailableError("storage", f"cannot read: {error}")
        if self._object_id:
            return CorruptRecordError(self._object_id, "data.mdb", str(error))
        return _damaged(self._data, error)


class _Gate:
    """Lets reads through together, and keeps them out while the map is changed."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside_count = 0

    def __enter__(self) -> None:
        with self._changed:
            self._inside_count += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._inside_count -= 1
            self._changed.notify_all()

    @contextmanager
    def closed(self, timeout_s: float) -> Iterator[bool]:
        """Wait until nobody is inside, and let nobody in; say whether that was in time."""
        with self._changed:
            yield self._changed.wait_for(lambda: not self._inside_count, timeout_s)


def _map_bytes(budget_bytes: int) -> int:
    """Return the size of map that a budget may ever need."""
    wanted = MAP_PER_BUDGET * budget_bytes + RESERVE_BYTES
    return min(max(wanted, MAP_BYTES_FIRST), MAP_BYTES_MAX)


def _open(data: Path, budget_bytes: int) -> lmdb.Environment:
    """Open the environment with the largest map that the system gives."""
    file = data / "data.mdb"
    least = max(MAP_BYTES_FIRST, 2 * file.stat().st_size if file.exists() else 0)
    size = max(_map_bytes(budget_bytes), least)
    data.mkdir(mode=0o700, exist_ok=True)
    _make_lock_file(data / "lock.mdb")
    while True:
        try:
            return lmdb.open(
                str(data),
                max_dbs=len(TABLES),
                map_size=size,
                max_readers=64,
                mode=0o600,
            )
        except lmdb.MemoryError as error:  # noqa: PERF203 - once per start
            # The address space is bounded (ulimit -v).
            if size <= least:
                raise ConfigurationError("data_dir", f"{data}: {error}") from None
            size = max(size // 2, least)
        except DAMAGE as error:
            raise _damaged(data, error) from None
        except lmdb.Error as error:
            if _errno_of(error) in NO_SPACE:
                raise full_disk(data) from None
            raise ConfigurationError("data_dir", f"{data}: {error}") from None


def _make_lock_file(path: Path) -> None:
    """Give the file of readers its blocks before it is mapped."""
    if hasattr(os, "posix_fallocate"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_blocks * 512 < LOCK_FILE_BYTES:
                os.posix_fallocate(fd, 0, LOCK_FILE_BYTES)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise
        finally:
            os.close(fd)


def _damaged(data: Path, error: lmdb.Error) -> CorruptRecordError:
    return CorruptRecordError(
        b"", str(data / "data.mdb"),
        f"{error}; move the data directory away and `activestore-node restore` a backup "
        "in its place",
    )  # fmt: skip


def _errno_of(error: lmdb.Error) -> int:
    """Return the system's error number of an lmdb error, EIO where it has none."""
    if isinstance(error, lmdb.DiskError):
        return errno.ENOSPC
    text = str(error)
    for number in NO_SPACE:
        if os.strerror(number) in text:
            return number
    return errno.EIO


def _written_bytes() -> int:
    """Return what this process has caused to be written to disk, 0 where unknown."""
    try:
        for line in Path("/proc/self/io").read_text().splitlines():
            if line.startswith("write_bytes:"):
                return int(line.split()[1])
    except OSError:
        return 0
    return 0
