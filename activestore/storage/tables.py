"""What every engine does alike: commits, readings and upkeep, over named tables.

    heads     object id            -> head record        aliases   alias  -> object id
    parts     id | part | chunk    -> chunk               blobs     digest -> refs, size, since
    replies   id | session | seq   -> reply
    classes   name | 0 | revision  -> record
    packages  digest               -> archive             latest    name   -> revision
    facts     kind | 0 | key       -> row, see `facts`

A commit first writes large buffers as files, then applies all changes in memory, then
puts each touched object once. Where there is no room, what grows is refused and the rest
is done; files that a refused change left behind are removed at once.

Rules of this file: `commit`, `put_code`, `expire_replies`, `collect_garbage` belong to
one thread, reads to any other; a record is never changed in place. Where the tables lie
is the subclass's business.

Source: design section 6; reliability.md section 4.
"""

from __future__ import annotations

import abc
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from activestore.errors import (
    ActiveStoreError,
    CorruptRecordError,
    InvalidRequestError,
    StorageFullError,
)
from activestore.ids import ObjectId
from activestore.storage import reading, upkeep
from activestore.storage.batch import Batch, only_shrinks, units_of
from activestore.storage.batch_files import BatchFiles, Files
from activestore.storage.engine import (
    Change,
    ClassRecord,
    Swept,
)
from activestore.storage.reading import KEY_BYTES_MAX, as_key
from activestore.storage.records import (
    CHUNKED_BYTES_MAX,
    Document,
    Part,
    encode_class,
    reply_bytes,
    seal,
)
from activestore.storage.room import Room
from activestore.storage.table_reader import TableReader
from activestore.wire.state import buffer_bytes_count

TABLES = (
    "heads", "parts", "aliases", "blobs", "replies", "classes", "latest", "packages",
    "facts",
)  # fmt: skip

# Decoded heads that the writer keeps: an update need not read and check them again.
HEADS_CACHED_MAX = 4096
# What a change writes beside its content, in pages: a leaf of heads, replies, aliases and
# of the list of free pages.
CHANGE_BYTES = 4 * 4096
# What a row writes beside its content: the page that it lies on.
ROW_BYTES = 4096

_T = TypeVar("_T")


class TableEngine(TableReader):
    """Keeps objects, aliases, replies and published code of one peer in tables."""

    def __init__(
        self,
        tables: Mapping[str, Any],
        files: Files,
        room: Room,
        wall_clock: Callable[[], float],
    ) -> None:
        super().__init__(tables, files)
        self._room = room
        self._wall_clock = wall_clock
        self._documents: OrderedDict[bytes, Document] = OrderedDict()
        self._expired_to = b""
        self._is_recount_due = False
        # Copies that are being made: no file may go while they look for theirs.
        self._copies_count = 0
        self.commits = 0
        self.changes = 0
        with self._reading() as transaction:
            room.blob_bytes, room.dead_bytes = upkeep.sum_files(transaction, tables)
            self._ran_s = upkeep.ran_s(transaction, tables)

    # -- what a subclass gives ---------------------------------------------------------

    @abc.abstractmethod
    def _write(self, work: Callable[[Any], _T]) -> _T:
        """Do work in a write transaction, durable on return; may do it again.

        Raises:
            StorageFullError: there is no room; nothing was done.
            OSError: the disk failed; nothing was done.
        """

    @abc.abstractmethod
    def _count_tables(self, transaction: Any) -> int:
        """Return the bytes that the tables take."""

    @abc.abstractmethod
    def _look_at_disk(self, needed_bytes: int) -> None:
        """Get room for a commit; tell `_room` what the disk still has where it is full."""

    # -- commit ------------------------------------------------------------------------

    def commit(self, changes: Sequence[Change]) -> list[ActiveStoreError | None]:
        """Apply changes in order, in one transaction, durable on return.

        Returns one entry per change: None, or why it alone was refused. Where the disk
        turns out to be full the deletes are done and the rest is refused.

        Raises:
            OSError: the disk failed; nothing that was not reported is durable.
        """
        self._room.pending_bytes = 0
        if self._room.is_garbage_due:
            self._collect_unreferenced(self._wall_clock())
        self._look_at_disk(_needed_bytes(changes))
        written = BatchFiles(self._files, self._room, self._buffers_of)
        try:
            refusals = written.write(changes)
            results = self._apply(changes, written.addresses, refusals)
        except StorageFullError as full:
            self._drop_unnamed(written.addresses)
            return self._only_shrinking(changes, full)
        except BaseException:
            self._drop_unnamed(written.addresses)
            raise
        finally:
            self._room.pending_bytes = 0
        if any(results):
            self._drop_unnamed(written.addresses)
        self.commits += 1
        self.changes += len(changes)
        return results

    def _apply(
        self,
        changes: Sequence[Change],
        files: Mapping[int, bytes],
        refusals: Mapping[int, ActiveStoreError],
    ) -> list[ActiveStoreError | None]:
        room = self._room

        def work(transaction: Any) -> tuple[Any, Any, Batch]:
            room.table_bytes = self._count_tables(transaction)
            room.pending_bytes = 0  # The batch adds its files again, one by one.
            batch = Batch(
                transaction, self._tables, self._documents, files, room, self.peer_id,
                self._wall_clock, self._ran_s,
            )  # fmt: skip
            results = batch.apply(changes, refusals)
            return results, batch.put(), batch

        try:
            results, documents, batch = self._write(work)
        except BaseException:
            for change in changes:
                self._documents.pop(change.object_id, None)
            raise
        for object_id, document in documents.items():
            self._remember(object_id, document)
        room.blob_bytes += batch.blob_bytes
        room.dead_bytes += batch.dead_bytes
        self._is_recount_due |= batch.lost_references
        found: list[ActiveStoreError | None] = results
        return found

    def _only_shrinking(
        self, changes: Sequence[Change], full: StorageFullError
    ) -> list[ActiveStoreError | None]:
        """Commit what takes away, alone, then in ever smaller parts: a few need little room.

        What belongs together, such as a delete and an answer, stays together.
        """
        units = list(units_of(changes))
        small = [unit for unit in units if only_shrinks(unit)]
        if len(small) < len(units):
            found = iter(
                self.commit([c for unit in small for c in unit]) if small else []
            )
            return [
                next(found) if only_shrinks(unit) else full
                for unit in units
                for _ in unit
            ]
        if len(units) == 1:
            return [full] * len(changes)
        half = len(units) // 2
        return [
            result
            for part in (units[:half], units[half:])
            for result in self.commit([c for unit in part for c in unit])
        ]

    def _buffers_of(self, object_id: ObjectId) -> Sequence[Part]:
        """Return where the large buffers of an object lie; none where it is damaged."""
        document = self._documents.get(object_id)
        try:
            if document is None:
                with self._reading(object_id) as transaction:
                    document = reading.document_of(transaction, self._tables, object_id)
        except CorruptRecordError:
            return ()
        return () if document is None else document.buffers

    def _drop_unnamed(self, files: Mapping[int, bytes]) -> None:
        """Remove what a batch wrote and no record names."""
        if not files:
            return
        with self._reading() as transaction:
            table = self._tables["blobs"]
            unnamed = [
                digest
                for digest in files.values()
                if transaction.get(digest, db=table) is None
            ]
        for digest in unnamed:
            self._files.remove(digest)

    def _remember(self, object_id: ObjectId, document: Document | None) -> None:
        if document is None:
            self._documents.pop(object_id, None)
            return
        self._documents[object_id] = document
        self._documents.move_to_end(object_id)
        if len(self._documents) > HEADS_CACHED_MAX:
            self._documents.popitem(last=False)

    # -- code --------------------------------------------------------------------------

    def put_code(
        self, package: bytes, archive: bytes, records: Sequence[ClassRecord]
    ) -> None:
        """Keep a package and the classes it defines, durable on return; repeatable.

        Raises:
            InvalidRequestError: the name of a class is too long.
            StorageFullError: there is no room.
            OSError: the disk failed.
        """
        keys = [_class_key(record) for record in records]
        size = len(archive) + sum(len(record.interface) for record in records)
        self._look_at_disk(size + CHANGE_BYTES * (len(records) + 1))

        def work(transaction: Any) -> None:
            self._room.table_bytes = self._count_tables(transaction)
            full = self._room.why_not_grow(size) or self._room.why_not_on_disk(size, 0)
            if full is not None:
                raise full
            tables = self._tables
            transaction.put(package, seal(archive), db=tables["packages"])
            for record, (name, key) in zip(records, keys, strict=True):
                transaction.put(key, encode_class(record), db=tables["classes"])
                transaction.put(name, record.revision, db=tables["latest"])

        self._write(work)

    # -- upkeep ------------------------------------------------------------------------

    def expire_replies(
        self, ran_s: float, kept_s: float, *, limit: int = 1000
    ) -> Swept:
        """Let replies grow older and drop old ones among the next `limit`.

        What is not there need not grow older: without replies nothing is written.
        """
        tables, after = self._tables, self._expired_to
        counted_s = self._ran_s
        with self._reading() as transaction:
            if upkeep.has_replies(transaction, tables):
                counted_s += ran_s
            old, ahead, following = upkeep.old_replies(
                transaction, tables, after, counted_s, kept_s, limit
            )

        def work(transaction: Any) -> None:
            upkeep.delete(transaction, tables["replies"], old)
            upkeep.put(transaction, tables["replies"], ahead)
            upkeep.put_ran_s(transaction, tables, counted_s)

        if old or ahead or counted_s != self._ran_s:
            self._write(work)
        self._ran_s, self._expired_to = counted_s, following
        return Swept(len(old), not following)

    def collect_garbage(self, unreferenced_for_s: float = 3600.0) -> int:
        """Remove large files that nothing references; return the bytes freed."""
        if self._copies_count:
            return 0
        before_s = self._wall_clock() - unreferenced_for_s
        if self._is_recount_due:
            self._is_recount_due = False
            self._recount()
        freed = self._collect_unreferenced(before_s)
        with self._reading() as transaction:
            table = self._tables["blobs"]
            orphans = [
                (digest, size)
                for digest, size in self._files.unnamed_before(before_s)
                if transaction.get(digest, db=table) is None
            ]
        for digest, size in orphans:
            self._files.remove(digest)
            freed += size
        return freed

    def _collect_unreferenced(self, before_s: float) -> int:
        """Remove files whose record says that nothing has used them since `before_s`."""
        if self._copies_count:
            return 0
        self._room.has_refused = False
        with self._reading() as transaction:
            gone = upkeep.unreferenced(transaction, self._tables, before_s)
        if gone:
            self._write(lambda transaction: upkeep.delete(
                transaction, self._tables["blobs"], list(gone)
            ))  # fmt: skip
        for digest in gone:
            self._files.remove(digest)
        freed = sum(gone.values())
        self._room.blob_bytes -= freed
        self._room.dead_bytes -= freed
        return freed

    def _recount(self) -> None:
        """Count references to files anew, after an object went that could not be read."""
        with self._reading() as transaction:
            wrong = upkeep.wrong_counts(transaction, self._tables, self._wall_clock())
        if wrong:
            self._write(lambda transaction: upkeep.put(
                transaction, self._tables["blobs"], wrong
            ))  # fmt: skip
        with self._reading() as transaction:
            sums = upkeep.sum_files(transaction, self._tables)
            self._room.blob_bytes, self._room.dead_bytes = sums


def _needed_bytes(changes: Sequence[Change]) -> int:
    """Return how much of the data file a batch may write, rather too much."""
    size = 0
    for change in changes:
        size += CHANGE_BYTES
        source = change.state or change.delta
        if source is not None:
            size += sum(map(buffer_bytes_count, source.fields.values()))
            size += 0 if source.graph is None else buffer_bytes_count(source.graph)
            for buffer in source.buffers:
                if not isinstance(buffer, int):
                    count = buffer_bytes_count(buffer)
                    size += count if count <= CHUNKED_BYTES_MAX else 0
        size += sum(map(reply_bytes, change.replies))
        size += reply_bytes(change.reply) if change.reply else 0
        for row in change.rows:
            size += ROW_BYTES + len(row.key) + len(row.value or b"")
    return size + size // 8


def _class_key(record: ClassRecord) -> tuple[bytes, bytes]:
    """Return the keys of a class and of this revision of it."""
    name = as_key(record.class_name)
    key = b"" if name is None else name + b"\x00" + record.revision
    if name is None or len(key) > KEY_BYTES_MAX:
        raise InvalidRequestError(
            f"the name of the class has {len(record.class_name)} characters; it must have "
            f"at most {KEY_BYTES_MAX - 1 - len(record.revision)} bytes of UTF-8",
            record.class_name[:80],
        )
    return name, key
