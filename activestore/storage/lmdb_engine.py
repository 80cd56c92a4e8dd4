"""The engine on LMDB: one environment, one transaction per commit, files beside it.

    heads     object id            -> head record        aliases   alias  -> object id
    parts     id | part | chunk    -> chunk               blobs     digest -> refs, size, since
    replies   id | session | seq   -> reply
    classes   name | 0 | revision  -> record
    packages  digest               -> archive             latest    name   -> revision

A commit first writes large buffers as files, then applies all changes in memory, then
puts each touched object once. A full map is grown and the transaction done again.

Rules of this file: `commit`, `put_code`, `expire_replies`, `collect_garbage` belong to
one thread, reads to any one other; a record is never changed in place.

Source: design section 6; reliability.md section 4.
"""

from __future__ import annotations

import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lmdb

from activestore.errors import (
    ActiveStoreError,
    ConfigurationError,
    CorruptRecordError,
    StorageFullError,
)
from activestore.ids import ObjectId, PeerId, SessionId
from activestore.storage import maintenance
from activestore.storage.batch import NEW_SHARE, Batch, Room
from activestore.storage.blobs import NO_SPACE, Blobs, view_of
from activestore.storage.directory import BLOBS, DATA, TEMPORARY, DataDirectory
from activestore.storage.engine import (
    Change,
    ClassRecord,
    Damage,
    Head,
    ReplyRecord,
    Usage,
)
from activestore.storage.records import (
    CHUNK_BYTES,
    CHUNKED_BYTES_MAX,
    Document,
    Part,
    chunk_key,
    decode_class,
    decode_document,
    decode_reply,
    encode_class,
    head_of,
    reply_key,
    seal,
    unseal,
)
from activestore.wire import packing
from activestore.wire.state import (
    AnyBuffer,
    FileBuffer,
    ObjectState,
    buffer_bytes_count,
)

TABLES = (
    "heads", "parts", "aliases", "blobs", "replies", "classes", "latest", "packages",
)  # fmt: skip

MAP_BYTES_FIRST = 64 * 1024 * 1024
MAP_BYTES_MAX = 64 * 1024 * 1024 * 1024
# Kept free for commits that only delete.
RESERVE_BYTES = 16 * 1024 * 1024
# Decoded heads that the writer keeps: an update need not read and check them again.
HEADS_CACHED_MAX = 4096
# Commits between two looks at how full the tables are.
USAGE_EVERY = 64


class LmdbEngine:
    """Keeps objects, aliases, replies and published code of one peer."""

    def __init__(
        self,
        directory: DataDirectory,
        *,
        disk_budget_bytes: int,
        wall_clock: Callable[[], float],
    ) -> None:
        self._directory = directory
        self._room = Room(disk_budget_bytes)
        self._wall_clock = wall_clock
        path = directory.path
        try:
            self._env = lmdb.open(
                str(path / DATA), max_dbs=len(TABLES), map_size=self._first_map(path),
                max_readers=64, mode=0o600,
            )  # fmt: skip
        except lmdb.Error as error:
            raise ConfigurationError("data_dir", f"{path / DATA}: {error}") from None
        self._env.reader_check()
        self._tables: dict[str, Any] = {}
        with self._env.begin(write=True) as transaction:
            for name in TABLES:
                self._tables[name] = self._env.open_db(name.encode(), txn=transaction)
        self._blobs = Blobs(path / BLOBS, path / TEMPORARY)
        self._documents: OrderedDict[bytes, Document] = OrderedDict()
        self._room.blob_bytes = self._sum_blobs()
        self._until_usage = 0
        self._expired_to = b""
        self.commits = 0
        self.changes = 0

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        *,
        disk_budget_bytes: int,
        wall_clock: Callable[[], float],
    ) -> LmdbEngine:
        """Lock and open a data directory, making it where there is none.

        Raises:
            ConfigurationError: it cannot be used, or is of another format.
            DirectoryLockedError: another process uses it.
        """
        locked = DataDirectory(directory)
        try:
            return cls(
                locked, disk_budget_bytes=disk_budget_bytes, wall_clock=wall_clock
            )
        except BaseException:
            locked.close()
            raise

    def _first_map(self, path: Path) -> int:
        used = 0
        data = path / DATA / "data.mdb"
        if data.exists():
            used = data.stat().st_size
        return min(max(MAP_BYTES_FIRST, 2 * used), MAP_BYTES_MAX)

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
        self._env.close()
        self._directory.close()

    # -- commit ------------------------------------------------------------------------

    def commit(self, changes: Sequence[Change]) -> list[ActiveStoreError | None]:
        """Apply changes in order, in one transaction, durable on return.

        Returns one entry per change: None, or why it alone was refused.

        Raises:
            OSError: the disk failed; nothing of the batch is durable.
        """
        refusals: dict[int, ActiveStoreError] = {}
        files = self._write_files(changes, refusals)
        while True:
            try:
                results = self._commit_once(changes, files, refusals)
                break
            except lmdb.MapFullError:
                self._forget(changes)
                if not self._grow():
                    full = self._room.full("the map cannot grow")
                    return self._only_shrinking(changes, full)
            except lmdb.Error as error:
                self._forget(changes)
                number = getattr(error, "code", 0) or _errno_of(error)
                if number in NO_SPACE:
                    return self._only_shrinking(changes, self._room.full(str(error)))
                raise OSError(number, f"commit failed: {error}") from error
        self.commits += 1
        self.changes += len(changes)
        return results

    def _only_shrinking(
        self, changes: Sequence[Change], full: StorageFullError
    ) -> list[ActiveStoreError | None]:
        """Commit the deletes alone: they need little room and make some."""
        deletes = [change for change in changes if change.is_delete]
        if not deletes or len(deletes) == len(changes):
            return [full for _ in changes]
        done = iter(self.commit(deletes))
        return [next(done) if change.is_delete else full for change in changes]

    def _forget(self, changes: Sequence[Change]) -> None:
        for change in changes:
            self._documents.pop(change.object_id, None)

    def _write_files(
        self, changes: Sequence[Change], refusals: dict[int, ActiveStoreError]
    ) -> dict[int, bytes]:
        """Write the large buffers of a batch; return buffer identity to digest."""
        files: dict[int, bytes] = {}
        for index, change in enumerate(changes):
            source = change.state or change.delta
            if source is None:
                continue
            for buffer in source.buffers:
                if (
                    isinstance(buffer, int)
                    or buffer_bytes_count(buffer) <= CHUNKED_BYTES_MAX
                ):
                    continue
                if change.state is not None and self._room.is_over(NEW_SHARE):
                    refusals[index] = self._room.full("new objects are refused at 80 %")
                    break
                try:
                    files[id(buffer)] = self._blobs.write(buffer)
                except OSError as error:
                    if error.errno not in NO_SPACE:
                        raise
                    refusals[index] = self._room.full(str(error.strerror))
                    break
        return files

    def _commit_once(
        self,
        changes: Sequence[Change],
        files: dict[int, bytes],
        refusals: dict[int, ActiveStoreError],
    ) -> list[ActiveStoreError | None]:
        with self._env.begin(write=True) as transaction:
            self._look_at_usage(transaction)
            batch = Batch(
                transaction, self._tables, self._documents, files, self._room,
                self.peer_id, self._wall_clock,
            )  # fmt: skip
            results = batch.apply(changes, refusals)
            documents = batch.put()
        for object_id, document in documents.items():
            self._remember(object_id, document)
        return results

    def _remember(self, object_id: ObjectId, document: Document | None) -> None:
        if document is None:
            self._documents.pop(object_id, None)
            return
        self._documents[object_id] = document
        self._documents.move_to_end(object_id)
        if len(self._documents) > HEADS_CACHED_MAX:
            self._documents.popitem(last=False)

    # -- room --------------------------------------------------------------------------

    def _look_at_usage(self, transaction: Any) -> None:
        if self._until_usage > 0:
            self._until_usage -= 1
            return
        self._until_usage = USAGE_EVERY
        pages = 0
        for table in self._tables.values():
            stat = transaction.stat(table)
            pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        self._room.table_bytes = pages * self._env.stat()["psize"]

    def _grow(self) -> bool:
        """Double the map, within four times the budget; False where it cannot."""
        size = self._env.info()["map_size"]
        limit = min(4 * self._room.budget_bytes + RESERVE_BYTES, MAP_BYTES_MAX)
        grown = min(2 * size, max(limit, MAP_BYTES_FIRST))
        if grown <= size:
            return False
        self._env.set_mapsize(grown)
        return True

    def _sum_blobs(self) -> int:
        with self._env.begin() as transaction:
            cursor = transaction.cursor(db=self._tables["blobs"])
            return sum(int(packing.unpack(value)[1]) for _, value in cursor)

    def usage(self) -> Usage:
        """Return how full the engine is."""
        with self._env.begin() as transaction:
            objects = int(transaction.stat(self._tables["heads"])["entries"])
        room = self._room
        return Usage(
            objects, room.used_bytes, room.budget_bytes, self._env.info()["map_size"],
            shutil.disk_usage(self.path).free, _written_bytes(), self.commits, self.changes,
        )  # fmt: skip

    # -- reading -----------------------------------------------------------------------

    def load(self, object_id: ObjectId) -> tuple[Head, ObjectState] | None:
        """Return the last committed state, None where the object does not exist.

        Raises:
            CorruptRecordError: a checksum fails.
        """
        with self._env.begin() as transaction:
            value = transaction.get(object_id, db=self._tables["heads"])
            if value is None:
                return None
            document = decode_document(value, object_id)
            opened: list[FileBuffer] = []
            try:
                fields = {
                    name: self._small(transaction, object_id, part)
                    for name, part in document.fields.items()
                }
                graph = self._small(transaction, object_id, document.graph)
                buffers: list[AnyBuffer] = []
                for part in document.buffers:
                    buffer = self._buffer(transaction, object_id, part)
                    if isinstance(buffer, FileBuffer):
                        opened.append(buffer)
                    buffers.append(buffer)
            except BaseException:
                for buffer in opened:
                    os.close(buffer.fd)
                raise
        state = ObjectState(
            document.class_name, document.revision, document.class_version, fields, graph,
            document.graph_fields, buffers,
        )  # fmt: skip
        return head_of(object_id, document), state

    def _buffer(self, transaction: Any, object_id: bytes, part: Part) -> AnyBuffer:
        if isinstance(part, bytes):
            return part
        size, where = part
        if isinstance(where, bytes):
            return self._blobs.open(where, size, object_id)
        chunks = []
        for chunk in range(-(-size // CHUNK_BYTES)):
            value = transaction.get(
                chunk_key(object_id, where, chunk), db=self._tables["parts"]
            )
            if value is None:
                raise CorruptRecordError(
                    object_id, f"part {where}", f"chunk {chunk} is missing"
                )
            chunks.append(unseal(value, object_id, f"part {where} chunk {chunk}"))
        return b"".join(chunks)

    def _small(self, transaction: Any, object_id: bytes, part: Part) -> bytes:
        buffer = self._buffer(transaction, object_id, part)
        if isinstance(buffer, FileBuffer):
            try:
                return bytes(view_of(buffer))
            finally:
                os.close(buffer.fd)
        return bytes(view_of(buffer))

    def head(self, object_id: ObjectId) -> Head | None:
        """Return what is known of an object without its fields."""
        with self._env.begin() as transaction:
            value = transaction.get(object_id, db=self._tables["heads"])
            if value is None:
                return None
            return head_of(object_id, decode_document(value, object_id))

    def resolve(self, alias: str) -> ObjectId | None:
        """Return the object that `alias` names."""
        with self._env.begin() as transaction:
            value = transaction.get(alias.encode(), db=self._tables["aliases"])
            return None if value is None else ObjectId(bytes(value))

    def heads(
        self,
        *,
        after: ObjectId | None = None,
        alias_prefix: str = "",
        limit: int = 1000,
    ) -> list[Head]:
        """Return up to `limit` heads after `after`: in id order, or by alias."""
        with self._env.begin() as transaction:
            if alias_prefix:
                ids = self._ids_by_alias(transaction, after, alias_prefix.encode())
            else:
                ids = self._ids(transaction, after)
            found = []
            for object_id in ids:
                value = transaction.get(object_id, db=self._tables["heads"])
                if value is not None:
                    found.append(head_of(object_id, decode_document(value, object_id)))
                if len(found) >= limit:
                    break
            return found

    def _ids(self, transaction: Any, after: ObjectId | None) -> Iterator[ObjectId]:
        cursor = transaction.cursor(db=self._tables["heads"])
        if not cursor.set_range(after or b"\x00"):
            return
        for key in cursor.iternext(values=False):
            if key != after:
                yield ObjectId(bytes(key))

    def _ids_by_alias(
        self, transaction: Any, after: ObjectId | None, prefix: bytes
    ) -> Iterator[ObjectId]:
        start = prefix
        if after is not None:
            value = transaction.get(after, db=self._tables["heads"])
            if value is not None:
                start = decode_document(value, after).alias.encode() + b"\x00"
        cursor = transaction.cursor(db=self._tables["aliases"])
        if not cursor.set_range(start):
            return
        for key, value in cursor:
            if not bytes(key).startswith(prefix):
                return
            yield ObjectId(bytes(value))

    # -- replies -----------------------------------------------------------------------

    def reply(
        self, object_id: ObjectId, session: SessionId, sequence: int
    ) -> ReplyRecord | None:
        """Return the recorded answer to a request, if it is still kept."""
        key = reply_key(object_id, session, sequence)
        with self._env.begin() as transaction:
            value = transaction.get(key, db=self._tables["replies"])
            return None if value is None else decode_reply(key, value)

    def expire_replies(self, written_before_s: float, *, limit: int = 1000) -> int:
        """Drop old replies among the next `limit`; goes round the table call by call."""
        table, dropped, seen = self._tables["replies"], 0, 0
        with self._env.begin(write=True) as transaction:
            cursor = transaction.cursor(db=table)
            is_more = cursor.set_range(self._expired_to or b"\x00")
            while is_more and seen < limit:
                seen += 1
                key = bytes(cursor.key())
                try:
                    is_old = (
                        decode_reply(key, cursor.value()).written_s < written_before_s
                    )
                except CorruptRecordError:
                    is_old = True
                if is_old:
                    dropped += 1
                    is_more = cursor.delete()
                    is_more = bool(is_more and cursor.key())
                else:
                    is_more = cursor.next()
            self._expired_to = bytes(cursor.key()) if is_more else b""
        return dropped

    # -- code --------------------------------------------------------------------------

    def put_code(
        self, package: bytes, archive: bytes, records: Sequence[ClassRecord]
    ) -> None:
        """Keep a package and the classes it defines, durable on return; repeatable."""
        while True:
            try:
                with self._env.begin(write=True) as transaction:
                    transaction.put(package, seal(archive), db=self._tables["packages"])
                    for record in records:
                        name = record.class_name.encode()
                        transaction.put(
                            name + b"\x00" + record.revision, encode_class(record),
                            db=self._tables["classes"],
                        )  # fmt: skip
                        transaction.put(
                            name, record.revision, db=self._tables["latest"]
                        )
                return
            except lmdb.MapFullError:  # noqa: PERF203 - once per growth of the map, or per record
                if not self._grow():
                    raise self._room.full("the map cannot grow") from None

    def code(self, package: bytes) -> bytes | None:
        """Return the archive of a package."""
        with self._env.begin() as transaction:
            value = transaction.get(package, db=self._tables["packages"])
            return (
                None
                if value is None
                else unseal(value, b"", f"package {package.hex()}")
            )

    def classes(self) -> list[ClassRecord]:
        """Return the latest published revision of every class."""
        with self._env.begin() as transaction:
            names = [
                bytes(name) + b"\x00" + bytes(revision)
                for name, revision in transaction.cursor(db=self._tables["latest"])
            ]
            table = self._tables["classes"]
            found = [transaction.get(name, db=table) for name in names]
            return [decode_class(value) for value in found if value is not None]

    def class_revision(self, class_name: str, revision: bytes) -> ClassRecord | None:
        """Return one revision of a class."""
        key = class_name.encode() + b"\x00" + revision
        with self._env.begin() as transaction:
            value = transaction.get(key, db=self._tables["classes"])
            return None if value is None else decode_class(value)

    # -- upkeep ------------------------------------------------------------------------

    def collect_garbage(self, unreferenced_for_s: float = 3600.0) -> int:
        """Remove large files that nothing references; return the bytes freed."""
        before_s = self._wall_clock() - unreferenced_for_s
        table, gone, freed = self._tables["blobs"], [], 0
        with self._env.begin(write=True) as transaction:
            cursor = transaction.cursor(db=table)
            for digest, value in cursor:
                references, size, since_s = packing.unpack(value)
                if references <= 0 and since_s <= before_s:
                    gone.append(bytes(digest))
                    freed += size
            for digest in gone:
                transaction.delete(digest, db=table)
        for digest in gone:
            self._blobs.remove(digest)
        self._room.blob_bytes -= freed
        with self._env.begin() as transaction:
            orphans = [
                (digest, status.st_size)
                for digest, status in self._blobs.files()
                if status.st_mtime <= before_s
                and transaction.get(digest, db=table) is None
            ]
        for digest, size in orphans:
            self._blobs.remove(digest)
            freed += size
        return freed

    def verify(self) -> Iterator[Damage | int]:
        """Check every record and file; yield each damage, and bytes checked in between."""
        return maintenance.verify(self._env, self._tables, self._blobs)

    def backup(self, directory: str) -> Iterator[tuple[int, int]]:
        """Copy a consistent snapshot to an empty directory; yield (bytes done, total)."""
        return maintenance.backup(
            self._env, self._blobs, self._directory, Path(directory)
        )


def _errno_of(error: lmdb.Error) -> int:
    """Return the system's error number in an lmdb error's text, 5 (EIO) where none is."""
    text = str(error)
    for number in NO_SPACE:
        if os.strerror(number) in text:
            return number
    return 5


def _written_bytes() -> int:
    """Return what this process has caused to be written to disk, 0 where unknown."""
    try:
        for line in Path("/proc/self/io").read_text().splitlines():
            if line.startswith("write_bytes:"):
                return int(line.split()[1])
    except OSError:
        return 0
    return 0
