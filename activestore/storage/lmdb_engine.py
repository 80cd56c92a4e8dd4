"""The engine on LMDB: one environment, one transaction per commit, files beside it.

    heads     object id            -> head record        aliases   alias  -> object id
    parts     id | part | chunk    -> chunk               blobs     digest -> refs, size, since
    replies   id | session | seq   -> reply               classes   name | 0 | revision -> record
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
from typing import Any, TypeGuard

import lmdb
import msgpack

from activestore.errors import (
    ActiveStoreError,
    AliasExistsError,
    ConfigurationError,
    CorruptRecordError,
    InvalidRequestError,
    ObjectNotFoundError,
    StorageFullError,
)
from activestore.ids import ObjectId, PeerId, SessionId
from activestore.storage import maintenance
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
    INLINE_BYTES_ALWAYS,
    INLINE_BYTES_MAX,
    Document,
    Part,
    chunk_key,
    decode_class,
    decode_document,
    decode_reply,
    encode_class,
    encode_document,
    encode_reply,
    head_of,
    part_bytes,
    reply_key,
    seal,
    unseal,
)
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
# Shares of the budget at which new objects, then growth, are refused.
NEW_SHARE, GROWTH_SHARE = 0.80, 0.95
# Decoded heads that the writer keeps: an update need not read and check them again.
HEADS_CACHED_MAX = 4096
# Commits between two looks at how full the tables are.
USAGE_EVERY = 64


class _Refused(Exception):  # noqa: N818 - carries an error to where it is kept
    def __init__(self, error: ActiveStoreError) -> None:
        self.error = error


class _Work:
    """One object in the middle of a commit."""

    __slots__ = ("document", "new", "old_alias", "removed", "stored")

    def __init__(self, document: Document | None) -> None:
        self.stored = document  # what is on disk
        self.document = document  # what shall be
        self.new: dict[int, bytes] = {}  # part number to content, to be put in chunks
        self.removed: list[Part] = []
        self.old_alias = document.alias if document else ""


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
        self._budget_bytes = disk_budget_bytes
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
        self._blob_bytes = self._sum_blobs()
        self._table_bytes = 0
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

    # -- commit ---------------------------------------------------------------------------

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
                    full = self._full("the map cannot grow")
                    return self._only_shrinking(changes, full)
            except lmdb.Error as error:
                self._forget(changes)
                number = getattr(error, "code", 0) or _errno_of(error)
                if number in NO_SPACE:
                    return self._only_shrinking(changes, self._full(str(error)))
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
                if change.state is not None and self._is_over(NEW_SHARE):
                    refusals[index] = self._full("new objects are refused at 80 %")
                    break
                try:
                    files[id(buffer)] = self._blobs.write(buffer)
                except OSError as error:
                    if error.errno not in NO_SPACE:
                        raise
                    refusals[index] = self._full(str(error.strerror))
                    break
        return files

    def _commit_once(
        self,
        changes: Sequence[Change],
        files: dict[int, bytes],
        refusals: dict[int, ActiveStoreError],
    ) -> list[ActiveStoreError | None]:
        results: list[ActiveStoreError | None] = []
        works: dict[ObjectId, _Work] = {}
        with self._env.begin(write=True) as transaction:
            self._look_at_usage(transaction)
            aliases: dict[str, ObjectId | None] = {}
            position = 0
            while position < len(changes):
                end = _group_end(changes, position)
                refusal = next(
                    (refusals[i] for i in range(position, end) if i in refusals), None
                )
                if end - position > 1 and refusal is None:
                    refusal = self._why_not_group(
                        transaction, changes[position:end], works, aliases
                    )
                for change in changes[position:end]:
                    if refusal is not None:
                        results.append(refusal)
                        continue
                    results.append(
                        self._apply(transaction, change, works, aliases, files)
                    )
                position = end
            self._put_works(transaction, works)
            self._put_aliases(transaction, aliases)
        for object_id, work in works.items():
            self._remember(object_id, work.document)
        return results

    def _why_not_group(
        self,
        transaction: Any,
        group: Sequence[Change],
        works: dict[ObjectId, _Work],
        aliases: dict[str, ObjectId | None],
    ) -> ActiveStoreError | None:
        """Return what refuses a member of a group, before any of it is applied."""
        claimed: dict[str, ObjectId | None] = dict(aliases)
        for change in group:
            try:
                self._check(transaction, change, works, claimed)
            except _Refused as refused:
                return refused.error
            if change.alias:
                claimed[change.alias] = change.object_id
        return None

    def _work_of(
        self, transaction: Any, object_id: ObjectId, works: dict[ObjectId, _Work]
    ) -> _Work:
        work = works.get(object_id)
        if work is None:
            document = self._documents.get(object_id)
            if document is None:
                value = transaction.get(object_id, db=self._tables["heads"])
                document = None if value is None else decode_document(value, object_id)
            work = works[object_id] = _Work(document)
        return work

    def _check(
        self,
        transaction: Any,
        change: Change,
        works: dict[ObjectId, _Work],
        aliases: dict[str, ObjectId | None],
    ) -> bool:
        """Raise what refuses a change; return whether it was done before."""
        work = self._work_of(transaction, change.object_id, works)
        exists = work.document is not None
        if change.state is not None and exists and change.is_new:
            if self._was_done(transaction, change):
                return True
            raise _Refused(
                InvalidRequestError(
                    "an object with this id exists", change.object_id.hex()
                )
            )
        if (change.delta is not None or change.is_delete) and not exists:
            raise _Refused(ObjectNotFoundError(change.object_id, (self.peer_id,)))
        if change.alias:
            holder = self._holder(transaction, change.alias, aliases)
            if holder is not None and holder != change.object_id:
                raise _Refused(AliasExistsError(change.alias, holder))
        if change.state is not None and not exists and self._is_over(NEW_SHARE):
            raise _Refused(self._full("new objects are refused at 80 %"))
        if change.delta is not None and self._is_over(GROWTH_SHARE):
            grown = sum(
                0 if isinstance(b, int) else buffer_bytes_count(b)
                for b in change.delta.buffers
            ) + sum(map(len, change.delta.fields.values()))
            if work.document and grown > sum(map(part_bytes, work.document.parts())):
                raise _Refused(self._full("growth is refused at 95 %"))
        return False

    def _was_done(self, transaction: Any, change: Change) -> bool:
        """Whether this very request made the object: a retry of what was committed."""
        reply = change.reply
        if reply is None:
            return False
        key = reply_key(change.object_id, reply.session, reply.sequence)
        return transaction.get(key, db=self._tables["replies"]) is not None

    def _holder(
        self, transaction: Any, alias: str, aliases: dict[str, ObjectId | None]
    ) -> ObjectId | None:
        if alias in aliases:
            return aliases[alias]
        value = transaction.get(alias.encode(), db=self._tables["aliases"])
        return None if value is None else ObjectId(bytes(value))

    def _apply(
        self,
        transaction: Any,
        change: Change,
        works: dict[ObjectId, _Work],
        aliases: dict[str, ObjectId | None],
        files: dict[int, bytes],
    ) -> ActiveStoreError | None:
        try:
            if self._check(transaction, change, works, aliases):
                return None
        except _Refused as refused:
            return refused.error
        except CorruptRecordError as error:
            if not change.is_delete:
                return error
            works[change.object_id] = _Work(None)
            transaction.delete(change.object_id, db=self._tables["heads"])
        work = works[change.object_id]
        if change.is_delete:
            if work.document is not None:
                work.removed.extend(work.document.parts())
                if work.document.alias:
                    aliases[work.document.alias] = None
            work.document = None
        elif change.state is not None:
            self._apply_state(work, change, files)
            if change.alias:
                aliases[change.alias] = change.object_id
        elif change.delta is not None:
            self._apply_delta(work, change, files)
        self._apply_reply(transaction, change)
        return None

    def _apply_reply(self, transaction: Any, change: Change) -> None:
        table = self._tables["replies"]
        for session, sequence in change.drop_replies:
            transaction.delete(reply_key(change.object_id, session, sequence), db=table)
        reply = change.reply
        if reply is not None:
            key = reply_key(change.object_id, reply.session, reply.sequence)
            transaction.put(key, encode_reply(reply), db=table)

    def _apply_state(
        self, work: _Work, change: Change, files: dict[int, bytes]
    ) -> None:
        state = change.state
        assert state is not None
        if work.document is not None:
            work.removed.extend(work.document.parts())
        now_s = self._wall_clock()
        store = _Parts(
            work, files, 1 if work.document is None else work.document.next_part
        )
        fields = {name: store.put(value) for name, value in state.fields.items()}
        graph = store.put(state.graph)
        buffers = tuple(store.put(buffer) for buffer in state.buffers)
        work.document = Document(
            state.class_name, state.revision, state.class_version, 0, change.version,
            change.alias or work.old_alias, int(change.durability), now_s, now_s,
            store.next_part, fields, graph, tuple(state.graph_fields), buffers,
        )  # fmt: skip

    def _apply_delta(
        self, work: _Work, change: Change, files: dict[int, bytes]
    ) -> None:
        delta, old = change.delta, work.document
        assert delta is not None
        assert old is not None
        store = _Parts(work, files, old.next_part)
        fields = old.fields
        if delta.fields or delta.removed:
            fields = dict(fields)
            for name in delta.removed:
                if name in fields:
                    work.removed.append(fields.pop(name))
            for name, value in delta.fields.items():
                if name in fields:
                    work.removed.append(fields[name])
                fields[name] = store.put(value)
        graph, graph_fields, buffers = old.graph, old.graph_fields, old.buffers
        if delta.graph is not None:
            work.removed.append(graph)
            graph, graph_fields = store.put(delta.graph), tuple(delta.graph_fields)
            kept = {entry for entry in delta.buffers if isinstance(entry, int)}
            work.removed.extend(
                part for index, part in enumerate(old.buffers) if index not in kept
            )
            # One old buffer may stand at several places: each new place is a reference.
            buffers = tuple(
                old.buffers[entry] if isinstance(entry, int) else store.put(entry)
                for entry in delta.buffers
            )
        work.document = Document(
            delta.class_name, delta.revision, delta.class_version, old.epoch,
            change.version, old.alias, int(change.durability), old.created_s,
            self._wall_clock(), store.next_part, fields, graph, graph_fields, buffers,
        )  # fmt: skip

    def _put_works(self, transaction: Any, works: dict[ObjectId, _Work]) -> None:
        """Put every touched object once, and take away what it no longer names."""
        heads, parts = self._tables["heads"], self._tables["parts"]
        for object_id, work in works.items():
            if work.document is work.stored:
                continue
            self._count_files(transaction, work)
            still = set()
            if work.document is not None:
                still = {p[1] for p in work.document.parts() if _is_chunked(p)}
            for part in work.removed:
                if _is_chunked(part) and part[1] not in still:
                    if part[1] not in work.new:
                        for chunk in range(-(-part[0] // CHUNK_BYTES)):
                            transaction.delete(
                                chunk_key(object_id, part[1], chunk), db=parts
                            )
                    work.new.pop(part[1], None)
            for number, content in work.new.items():
                for chunk, start in enumerate(range(0, len(content), CHUNK_BYTES)):
                    transaction.put(
                        chunk_key(object_id, number, chunk),
                        seal(content[start : start + CHUNK_BYTES]),
                        db=parts,
                    )
            if work.document is None:
                transaction.delete(object_id, db=heads)
            else:
                transaction.put(object_id, encode_document(work.document), db=heads)

    def _put_aliases(
        self, transaction: Any, aliases: dict[str, ObjectId | None]
    ) -> None:
        table = self._tables["aliases"]
        for alias, object_id in aliases.items():
            if object_id is None:
                transaction.delete(alias.encode(), db=table)
            else:
                transaction.put(alias.encode(), object_id, db=table)

    def _count_files(self, transaction: Any, work: _Work) -> None:
        """Bring the reference counts of files from the stored to the new document."""
        counts: dict[bytes, list[int]] = {}
        for document, step in ((work.stored, -1), (work.document, 1)):
            for part in document.parts() if document is not None else ():
                if _is_file(part):
                    entry = counts.setdefault(part[1], [0, part[0]])
                    entry[0] += step
        table = self._tables["blobs"]
        for digest, (step, size) in counts.items():
            if not step:
                continue
            value = transaction.get(digest, db=table)
            references = msgpack.unpackb(value)[0] if value is not None else 0
            if value is None:
                self._blob_bytes += size
            now = [references + step, size, self._wall_clock()]
            transaction.put(digest, msgpack.packb(now), db=table)

    def _remember(self, object_id: ObjectId, document: Document | None) -> None:
        if document is None:
            self._documents.pop(object_id, None)
            return
        self._documents[object_id] = document
        self._documents.move_to_end(object_id)
        if len(self._documents) > HEADS_CACHED_MAX:
            self._documents.popitem(last=False)

    # -- room -----------------------------------------------------------------------------

    def _look_at_usage(self, transaction: Any) -> None:
        if self._until_usage > 0:
            self._until_usage -= 1
            return
        self._until_usage = USAGE_EVERY
        pages = 0
        for table in self._tables.values():
            stat = transaction.stat(table)
            pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        self._table_bytes = pages * self._env.stat()["psize"]

    @property
    def _used_bytes(self) -> int:
        return self._table_bytes + self._blob_bytes

    def _is_over(self, share: float) -> bool:
        return self._used_bytes > share * self._budget_bytes

    def _full(self, reason: str) -> StorageFullError:
        return StorageFullError(self._used_bytes, self._budget_bytes, reason)

    def _grow(self) -> bool:
        """Double the map, within four times the budget; False where it cannot."""
        size = self._env.info()["map_size"]
        limit = min(4 * self._budget_bytes + RESERVE_BYTES, MAP_BYTES_MAX)
        grown = min(2 * size, max(limit, MAP_BYTES_FIRST))
        if grown <= size:
            return False
        self._env.set_mapsize(grown)
        return True

    def _sum_blobs(self) -> int:
        with self._env.begin() as transaction:
            cursor = transaction.cursor(db=self._tables["blobs"])
            return sum(int(msgpack.unpackb(value)[1]) for _, value in cursor)

    def usage(self) -> Usage:
        """Return how full the engine is."""
        with self._env.begin() as transaction:
            objects = int(transaction.stat(self._tables["heads"])["entries"])
        free = shutil.disk_usage(self.path).free
        return Usage(
            objects, self._used_bytes, self._budget_bytes, self._env.info()["map_size"],
            free, _written_bytes(), self.commits, self.changes,
        )  # fmt: skip

    # -- reading --------------------------------------------------------------------------

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
        return bytes(buffer)

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

    # -- replies --------------------------------------------------------------------------

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

    # -- code -----------------------------------------------------------------------------

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
            except lmdb.MapFullError:
                if not self._grow():
                    raise self._full("the map cannot grow") from None

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

    # -- upkeep ---------------------------------------------------------------------------

    def collect_garbage(self, unreferenced_for_s: float = 3600.0) -> int:
        """Remove large files that nothing references; return the bytes freed."""
        before_s = self._wall_clock() - unreferenced_for_s
        table, gone, freed = self._tables["blobs"], [], 0
        with self._env.begin(write=True) as transaction:
            cursor = transaction.cursor(db=table)
            for digest, value in cursor:
                references, size, since_s = msgpack.unpackb(value)
                if references <= 0 and since_s <= before_s:
                    gone.append(bytes(digest))
                    freed += size
            for digest in gone:
                transaction.delete(digest, db=table)
        for digest in gone:
            self._blobs.remove(digest)
        self._blob_bytes -= freed
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


class _Parts:
    """Chooses where each new part of one object lies."""

    def __init__(self, work: _Work, files: dict[int, bytes], next_part: int) -> None:
        self._work = work
        self._files = files
        self._inline_bytes = 0
        self.next_part = next_part

    def put(self, buffer: AnyBuffer) -> Part:
        """Take a part; it is inline in the head, or goes to the work's new chunks."""
        digest = self._files.get(id(buffer))
        size = buffer_bytes_count(buffer)
        if digest is not None:
            return (size, digest)
        if size <= INLINE_BYTES_ALWAYS or (
            size <= INLINE_BYTES_MAX
            and self._inline_bytes + size <= 2 * INLINE_BYTES_MAX
        ):
            self._inline_bytes += size
            return bytes(view_of(buffer))
        number = self.next_part
        self.next_part += 1
        self._work.new[number] = bytes(view_of(buffer))
        return (size, number)


def _is_chunked(part: Part) -> TypeGuard[tuple[int, int]]:
    return not isinstance(part, bytes) and isinstance(part[1], int)


def _is_file(part: Part) -> TypeGuard[tuple[int, bytes]]:
    return not isinstance(part, bytes) and isinstance(part[1], bytes)


def _group_end(changes: Sequence[Change], start: int) -> int:
    """Return where the group that begins at `start` ends."""
    group, end = changes[start].group, start + 1
    while group and end < len(changes) and changes[end].group == group:
        end += 1
    return end


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
