"""One commit in the making: changes applied in memory, then every object put once.

A change is checked before anything of it is done; what refuses it refuses it alone, or with
its group. Many deltas of one object in a batch become one record.

Rules of this file: it works inside a transaction that the engine begins and ends; the
engine's cache of heads is read here and written only after the commit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from activestore.errors import (
    ActiveStoreError,
    AliasExistsError,
    CorruptRecordError,
    InvalidRequestError,
    ObjectNotFoundError,
    UnavailableError,
)
from activestore.ids import ObjectId, PeerId, check_alias
from activestore.storage.engine import (
    EPOCH_FIRST,
    EPOCH_MAX,
    Change,
    ReplyRecord,
    not_built,
)
from activestore.storage.facts import check_rows, growth_bytes, has_row, put_rows
from activestore.storage.records import (
    CHUNK_BYTES,
    Document,
    chunk_key,
    decode_document,
    encode_document,
    encode_reply,
    reply_bytes,
    reply_key,
    seal,
)
from activestore.storage.replies import telling_reply, too_late
from activestore.storage.room import RECORD_BYTES, Room
from activestore.storage.work import (
    PartPlaces,
    Work,
    is_chunked,
    is_file,
    replaced,
    table_bytes,
    values_of,
)
from activestore.wire import packing
from activestore.wire.state import AnyBuffer, buffer_bytes_count


class _Refused(Exception):  # noqa: N818 - carries an error to where it is kept
    def __init__(self, error: ActiveStoreError) -> None:
        self.error = error


class Batch:
    """The changes of one transaction."""

    def __init__(  # noqa: PLR0913, PLR0917 - what the engine lends for one transaction
        self,
        transaction: Any,
        tables: Mapping[str, Any],
        documents: Mapping[bytes, Document],
        files: Mapping[int, bytes],
        room: Room,
        peer_id: PeerId,
        wall_clock: Callable[[], float],
        ran_s: float,
    ) -> None:
        self._transaction = transaction
        self._tables = tables
        self._documents = documents
        self._files = files
        self._room = room
        self._peer_id = peer_id
        self._wall_clock = wall_clock
        self._ran_s = ran_s
        self._works: dict[ObjectId, Work] = {}
        self._aliases: dict[str, ObjectId | None] = {}
        self._refused: dict[ObjectId, int] = {}
        # What the files in use, and those in use by nothing, grow by with this batch.
        self.blob_bytes = 0
        self.dead_bytes = 0
        # A damaged head was deleted: what files it used is not known.
        self.lost_references = False
        self._grown_bytes = 0

    def apply(
        self, changes: Sequence[Change], refusals: Mapping[int, ActiveStoreError]
    ) -> list[ActiveStoreError | None]:
        """Apply changes in order; return why each was refused, None where it was not.

        `refusals`: changes, by index, that are refused already.
        """
        results: list[ActiveStoreError | None] = []
        position = 0
        while position < len(changes):
            end = group_end(changes, position)
            refusal = next(
                (refusals[i] for i in range(position, end) if i in refusals), None
            )
            if refusal is None:
                refusal = self._why_not_built(changes[position:end])
            if end - position > 1 and refusal is None:
                refusal = self._why_not_group(changes[position:end])
            for change in changes[position:end]:
                error = refusal or self._apply(change)
                if error is not None and change.has_effect:
                    self._refused.setdefault(change.object_id, change.version)
                results.append(error)
            position = end
        return results

    def _why_not_built(self, changes: Sequence[Change]) -> ActiveStoreError | None:
        """Refuse what was made from a state that an earlier change of the batch lacks."""
        for change in changes if self._refused else ():
            refused = self._refused.get(change.object_id)
            if refused is None or change.state is not None:  # It is built on nothing.
                continue
            if change.version > refused:
                return not_built(change.object_id)
        return None

    def put(self) -> dict[ObjectId, Document | None]:
        """Put everything into the transaction; return the new heads of touched objects."""
        self._put_works()
        self._put_aliases()
        return {object_id: work.document for object_id, work in self._works.items()}

    def _work_of(self, object_id: ObjectId) -> Work:
        work = self._works.get(object_id)
        if work is None:
            document = self._documents.get(object_id)
            if document is None:
                value = self._transaction.get(object_id, db=self._tables["heads"])
                document = None if value is None else decode_document(value, object_id)
            work = self._works[object_id] = Work(document)
        return work

    def _why_not_group(self, group: Sequence[Change]) -> ActiveStoreError | None:
        """Return what refuses a member of a group, before any of it is applied."""
        claimed: dict[str, ObjectId | None] = dict(self._aliases)
        pending_bytes = self._room.pending_bytes
        try:
            for change in group:
                self._check(change, claimed)
                self._room.pending_bytes += self._grown_bytes
                if change.alias:
                    claimed[change.alias] = change.object_id
        except _Refused as refused:
            return refused.error
        except (
            ActiveStoreError
        ) as error:  # A head is damaged, or an alias cannot be one.
            return error
        finally:
            self._room.pending_bytes = pending_bytes
        return None

    def _check(self, change: Change, aliases: dict[str, ObjectId | None]) -> bool:
        """Raise what refuses a change; return whether it was done before.

        Leaves in `_grown_bytes` by how much the change makes the store larger.
        """
        self._grown_bytes = 0
        if change.rows:
            check_rows(change.rows)
        if change.is_about_object and self._check_object(change, aliases):
            if change.rows:
                raise _Refused(_rows_left_out(change.object_id))
            return True
        if change.rows:
            self._check_growth_of_rows(change)
        return False

    def _check_growth_of_rows(self, change: Change) -> None:
        table = self._tables["facts"]
        grown = growth_bytes(self._transaction, table, change.rows)
        if grown > 0:
            self._grown_bytes += grown
            if not change.is_delete:  # It works always, and so does what it must leave.
                room = self._room
                full = room.why_not_rows(self._grown_bytes) or room.why_not_on_disk(
                    grown, 0
                )
                if full is not None:
                    raise _Refused(full)

    def _check_object(
        self, change: Change, aliases: dict[str, ObjectId | None]
    ) -> bool:
        if not 0 <= change.epoch <= EPOCH_MAX:
            raise InvalidRequestError(
                f"the epoch is {change.epoch}, it must be 0 to {EPOCH_MAX}",
                change.object_id.hex(),
            )
        work = self._work_of(change.object_id)
        exists = work.document is not None
        if change.state is not None and change.is_new and self._was_done(change):
            return True
        if change.state is not None and exists and change.is_new:
            raise _Refused(
                InvalidRequestError(
                    "an object with this id exists", change.object_id.hex()
                )
            )
        if change.is_new and self._has_register(change.object_id):
            raise _Refused(_only_register(change.object_id))
        if not exists and _needs_object(change):
            raise _Refused(ObjectNotFoundError(change.object_id, (self._peer_id,)))
        if change.alias and not change.is_copy:
            check_alias(change.alias)
            holder = self._holder(change.alias, aliases)
            if holder is not None and holder != change.object_id:
                raise _Refused(AliasExistsError(change.alias, holder))
        full = None
        if change.state is not None or change.delta is not None:
            grown = self._table_growth(change)
            why_not = self._room.why_not_grow if exists else self._room.why_not_new
            self._grown_bytes = max(0, grown + self._file_bytes(change))
            # Files are on the disk by now; only the budget may refuse them.
            full = why_not(self._grown_bytes) or self._room.why_not_on_disk(grown, 0)
        if full is not None:
            raise _Refused(full)
        return False

    def _table_growth(self, change: Change) -> int:
        """Return how much larger the tables get; files are counted where they are written."""
        stored = self._work_of(change.object_id).document
        if change.state is not None:
            state = change.state
            buffers = [*state.fields.values(), state.graph, *state.buffers]
            old = 0 if stored is None else sum(map(table_bytes, stored.parts()))
            new = self._new_bytes(buffers) + sum(map(reply_bytes, change.replies))
            return new - old + (RECORD_BYTES if not stored else 0)
        if change.delta is None or stored is None:
            return 0
        return self._new_bytes(values_of(change.delta)) - sum(
            map(table_bytes, replaced(stored, change.delta))
        )

    def _file_bytes(self, change: Change) -> int:
        source = change.state or change.delta
        return sum(
            buffer_bytes_count(buffer)
            for buffer in (source.buffers if source is not None else ())
            if not isinstance(buffer, int) and id(buffer) in self._files
        )

    def _new_bytes(self, buffers: Sequence[AnyBuffer]) -> int:
        return sum(
            buffer_bytes_count(buffer)
            for buffer in buffers
            if id(buffer) not in self._files
        )

    def _was_done(self, change: Change) -> bool:
        """Whether this very request made the object, which may be deleted since.

        Raises:
            _Refused: its client had the answer long ago; a copy of it came late.
        """
        reply = change.reply
        if reply is None:
            return False
        found = telling_reply(
            self._transaction, self._tables, change.object_id, reply.session,
            reply.sequence,
        )  # fmt: skip
        if found is None:
            return False
        if found.sequence != reply.sequence:
            raise _Refused(too_late(reply.sequence, found.sequence))
        # Of one that did not end well there may be a promise, made before it ended.
        return not found.code or self._work_of(change.object_id).document is not None

    def _has_register(self, object_id: ObjectId) -> bool:
        table = self._tables["facts"]
        return has_row(self._transaction, table, "register", object_id)

    def _holder(
        self, alias: str, aliases: dict[str, ObjectId | None]
    ) -> ObjectId | None:
        if alias in aliases:
            return aliases[alias]
        value = self._transaction.get(alias.encode(), db=self._tables["aliases"])
        return None if value is None else ObjectId(bytes(value))

    def _apply(self, change: Change) -> ActiveStoreError | None:
        try:
            if self._check(change, self._aliases):
                return None
        except _Refused as refused:
            return refused.error
        except InvalidRequestError as error:
            return error
        except CorruptRecordError as error:
            refusal = self._make_way(change, error)
            if refusal is not None:
                return refusal
        self._room.pending_bytes += self._grown_bytes
        if change.is_about_object:
            self._apply_to_object(self._works[change.object_id], change)
            self._apply_replies(change)
        if change.rows:
            put_rows(self._transaction, self._tables["facts"], change.rows)
        return None

    def _apply_to_object(self, work: Work, change: Change) -> None:
        if change.is_delete:
            self._rename(work, change, "")
            if work.document is not None:
                work.removed.extend(work.document.parts())
            work.document = None
        elif change.state is not None:
            self._rename(work, change, change.alias)
            self._apply_state(work, change)
        elif change.delta is not None:
            self._apply_delta(work, change)
        if work.document is None or change.state is not None:
            return
        if change.epoch:
            work.document = work.document._replace(epoch=change.epoch)
        if change.is_rename:
            self._rename(work, change, change.alias)
            work.document = work.document._replace(alias=change.alias)

    def _rename(self, work: Work, change: Change, alias: str) -> None:
        """Give the name of an object back, and take the new one for it, if any.

        What a copy is called may be the name of another object here, which keeps it.
        """
        known, object_id = self._aliases, change.object_id
        old = work.document.alias if work.document is not None else ""
        if old and self._holder(old, known) == object_id:
            known[old] = None
        if alias:
            holder = self._holder(alias, known) if change.is_copy else None
            if holder in {None, object_id}:
                known[alias] = object_id

    def _make_way(
        self, change: Change, damage: CorruptRecordError
    ) -> ActiveStoreError | None:
        """Take away a damaged object for a change that needs nothing of it."""
        object_id = change.object_id
        if change.state is not None and not change.is_new:
            self._works[object_id] = Work(None)
            try:
                self._check(change, self._aliases)
            except _Refused as refused:
                del self._works[object_id]
                return refused.error
            except ActiveStoreError as error:
                del self._works[object_id]
                return error
        elif not change.is_delete:
            return damage
        elif change.rows:
            self._check_growth_of_rows(change)
        self._sweep(object_id)
        return None

    def _sweep(self, object_id: ObjectId) -> None:
        """Take away an object whose head cannot be read: by its keys, not by its head.

        The files that it used stay counted until the engine counts them anew.
        """
        self._works[object_id] = Work(None)
        self.lost_references = True
        transaction, tables = self._transaction, self._tables
        transaction.delete(object_id, db=tables["heads"])
        for key in keys_of(transaction, tables["parts"], object_id):
            transaction.delete(key, db=tables["parts"])
        for alias in aliases_of(transaction, tables, object_id):
            self._aliases[alias] = None

    def _apply_replies(self, change: Change) -> None:
        table = self._tables["replies"]
        if change.forgets_replies:
            for key in keys_of(self._transaction, table, change.object_id):
                self._transaction.delete(key, db=table)
        for session, sequence in change.drop_replies:
            self._transaction.delete(
                reply_key(change.object_id, session, sequence), db=table
            )
        for reply in change.replies:
            self._put_reply(change.object_id, reply)
        if change.reply is not None:
            self._room.pending_bytes += reply_bytes(change.reply)
            self._put_reply(change.object_id, change.reply)

    def _put_reply(self, object_id: ObjectId, reply: ReplyRecord) -> None:
        key = reply_key(object_id, reply.session, reply.sequence)
        value = encode_reply(reply, self._ran_s)
        self._transaction.put(key, value, db=self._tables["replies"])

    def _apply_state(self, work: Work, change: Change) -> None:
        state = change.state
        assert state is not None
        epoch = change.epoch or EPOCH_FIRST
        if work.document is not None:
            work.removed.extend(work.document.parts())
            epoch = change.epoch or work.document.epoch
        now_s = self._wall_clock()
        store = PartPlaces(work, self._files, work.next_part)
        fields = {name: store.put(value) for name, value in state.fields.items()}
        graph = store.put(state.graph)
        buffers = tuple(store.put(buffer) for buffer in state.buffers)
        work.document = Document(
            state.class_name, state.revision, state.class_version, epoch,
            change.version, change.alias, int(change.durability),
            change.created_s or now_s, now_s, store.next_part, fields, graph,
            tuple(state.graph_fields), buffers,
        )  # fmt: skip

    def _apply_delta(self, work: Work, change: Change) -> None:
        delta, old = change.delta, work.document
        assert delta is not None
        assert old is not None
        store = PartPlaces(work, self._files, old.next_part)
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

    def _put_works(self) -> None:  # noqa: C901 - one branch per kind
        """Put every touched object once, and take away what it no longer names."""
        heads, parts = self._tables["heads"], self._tables["parts"]
        for object_id, work in self._works.items():
            if work.document is work.stored:
                continue
            self._count_files(work)
            still = set()
            if work.document is not None:
                still = {p[1] for p in work.document.parts() if is_chunked(p)}
            for part in work.removed:
                if is_chunked(part) and part[1] not in still:
                    if part[1] not in work.new:
                        for chunk in range(-(-part[0] // CHUNK_BYTES)):
                            self._transaction.delete(
                                chunk_key(object_id, part[1], chunk), db=parts
                            )
                    work.new.pop(part[1], None)
            for number, content in work.new.items():
                for chunk, start in enumerate(range(0, len(content), CHUNK_BYTES)):
                    self._transaction.put(
                        chunk_key(object_id, number, chunk),
                        seal(content[start : start + CHUNK_BYTES]),
                        db=parts,
                    )
            if work.document is None:
                self._transaction.delete(object_id, db=heads)
            else:
                self._transaction.put(
                    object_id, encode_document(work.document), db=heads
                )

    def _put_aliases(self) -> None:
        table = self._tables["aliases"]
        for alias, object_id in self._aliases.items():
            if object_id is None:
                self._transaction.delete(alias.encode(), db=table)
            else:
                self._transaction.put(alias.encode(), object_id, db=table)

    def _count_files(self, work: Work) -> None:
        """Bring the reference counts of files from the stored to the new document."""
        counts: dict[bytes, list[int]] = {}
        for document, step in ((work.stored, -1), (work.document, 1)):
            for part in document.parts() if document is not None else ():
                if is_file(part):
                    entry = counts.setdefault(part[1], [0, part[0]])
                    entry[0] += step
        table = self._tables["blobs"]
        for digest, (step, size) in counts.items():
            if not step:
                continue
            value = self._transaction.get(digest, db=table)
            references = packing.unpack(value)[0] if value is not None else 0
            if value is None:
                self.blob_bytes += size
            elif references <= 0 < references + step:
                self.dead_bytes -= size
            if references + step <= 0 < references or (value is None and step < 0):
                self.dead_bytes += size
            now = [references + step, size, self._wall_clock()]
            self._transaction.put(digest, packing.pack(now), db=table)


def _rows_left_out(object_id: ObjectId) -> InvalidRequestError:
    return InvalidRequestError(
        "a change that was done before came with rows again, which were not written; what "
        "makes an object must bring none",
        object_id.hex(),
    )


def _only_register(object_id: ObjectId) -> UnavailableError:
    return UnavailableError(
        f"object {object_id.hex()}",
        "it was made before: its register is here, and its state at other members of its "
        "group, or it is being deleted; it was not made again",
    )


def _needs_object(change: Change) -> bool:
    """Whether a change is one of an object that exists."""
    if change.is_copy:
        return change.delta is not None
    is_step = change.delta is not None or change.is_delete
    return is_step or (change.state is None and bool(change.epoch or change.is_rename))


def keys_of(transaction: Any, table: Any, object_id: bytes) -> list[bytes]:
    """Return the keys of a table that begin with an object's id."""
    cursor = transaction.cursor(db=table)
    found: list[bytes] = []
    if cursor.set_range(object_id):
        for key in cursor.iternext(values=False):
            if not key.startswith(object_id):
                break
            found.append(bytes(key))
    return found


def aliases_of(
    transaction: Any, tables: Mapping[str, Any], object_id: bytes
) -> list[str]:
    """Return the aliases that name an object, by looking at all of them.

    For an object whose head, which says its alias, cannot be read.
    """
    return [
        bytes(alias).decode()
        for alias, named in transaction.cursor(db=tables["aliases"])
        if bytes(named) == object_id
    ]


def group_end(changes: Sequence[Change], start: int) -> int:
    """Return where the group that begins at `start` ends."""
    group, end = changes[start].group, start + 1
    while group and end < len(changes) and changes[end].group == group:
        end += 1
    return end


def units_of(changes: Sequence[Change]) -> Iterator[Sequence[Change]]:
    """Yield the changes that are done or refused together."""
    start = 0
    while start < len(changes):
        end = group_end(changes, start)
        yield changes[start:end]
        start = end


def only_shrinks(unit: Sequence[Change]) -> bool:
    """Whether what belongs together takes something away, and adds no more than it must."""
    return any(map(_takes_away, unit)) and all(
        _takes_away(c) or not (c.has_effect or c.rows) for c in unit
    )


def _takes_away(change: Change) -> bool:
    if change.is_delete or change.has_effect:
        return change.is_delete
    return bool(change.rows) and all(row.value is None for row in change.rows)
