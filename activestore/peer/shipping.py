"""How a state travels to a replica, and how it lies on the replica's disk.

A change is packed with all that a replica must do to become the same: what changed, the
version, the name, the answers. There it is written in one commit with the register, so
that what a replica says it has accepted is what it has.

    leader    Change -> outgoing -> committed here -> body, buffers
    replica   unpack_change -> Change (is_copy) -> apply_copies -> "" | "base" | "space"
    lagging   contents_of -> leader: read_whole -> what differs from those contents

Of a large buffer only the chunks travel that differ from what the replica has: from the
buffer before, which the commit here compares it with, or from what a replica that fell
behind says it has.

Rules of this file: it decides nothing about who leads. A change is applied only to the
state that it follows on; what comes from another peer is checked before it is kept.

Source: reliability.md 3.2, 3.3, 3.4 R5; schemas/protocol.md section 14.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from activestore.core.register import (
    Register,
    Vouch,
    pack_register,
    unpack_register,
    unpack_vouch,
)
from activestore.errors import (
    ActiveStoreError,
    CorruptRecordError,
    ObjectNotFoundError,
    RemoteProtocolError,
    StorageFullError,
    UnavailableError,
)
from activestore.ids import (
    ObjectId,
)
from activestore.peer.transit import pack_change, unpack_change
from activestore.storage.blobs import view_of
from activestore.storage.engine import (
    Change,
    Damage,
    Engine,
    Patch,
    Row,
    Snapshot,
)
from activestore.storage.patches import chunk_digests, patch_of, spans_unlike
from activestore.storage.records import CHUNKED_BYTES_MAX as FILE_BYTES_MIN
from activestore.wire.replicas import Point, Shipment
from activestore.wire.state import (
    AnyBuffer,
    FileBuffer,
    ObjectState,
    buffer_bytes_count,
)

__all__ = [
    "Content", "Copy", "Outgoing", "apply_copies", "claim_name", "contents_from",
    "contents_of", "has_files", "mend_register", "outgoing", "pack_change",
    "problem_of", "read_whole", "register_row", "registers_of", "remove_copy",
    "unpack_change",
]  # fmt: skip

_log = logging.getLogger(__name__)

# Large buffers of one object that a copy tells of: 1,024 of 2 MiB have 64 KiB of digests.
CONTENTS_MAX = 1024


class Copy(NamedTuple):
    """One step of the copy of an object: as effect `Store` of replication orders it."""

    object_id: ObjectId
    register: Register
    base: Point | None
    change: Change | None
    is_delete: bool = False
    vouch: Vouch | None = None


# -- on its way ------------------------------------------------------------------------


class Outgoing:
    """A change on its way to replicas, as `wire.replicas.Shipment`, once it is committed.

    It is packed when it is first sent: the commit has told by then what it differs in.
    """

    __slots__ = ("_change", "_packed")

    def __init__(self, change: Change) -> None:
        self._change: Change | None = change
        self._packed: tuple[bytes, list[AnyBuffer]] = (b"", [])

    @property
    def body(self) -> bytes:
        """The packed change."""
        return self._pack()[0]

    @property
    def buffers(self) -> list[AnyBuffer]:
        """What travels beside it."""
        return self._pack()[1]

    def _pack(self) -> tuple[bytes, list[AnyBuffer]]:
        change = self._change
        if change is not None:
            patches = tuple(change.compared or ())
            self._packed = pack_change(dataclasses.replace(change, patches=patches))
            self._change = None  # And with it the buffers of which only a part is sent.
        return self._packed


def outgoing(change: Change) -> tuple[Change, Shipment | Outgoing]:
    """Return a change as it is to be committed here, and as it is sent after that."""
    source = change.delta or change.state
    for buffer in source.buffers if source is not None else ():
        if not isinstance(buffer, int) and buffer_bytes_count(buffer) > FILE_BYTES_MIN:
            compared = dataclasses.replace(change, compared=[])
            return compared, Outgoing(compared)
    body, buffers = pack_change(change)
    return change, Shipment(body, buffers)  # type: ignore[arg-type]  # no files: of calls


# -- on disk ---------------------------------------------------------------------------


def register_row(
    object_id: ObjectId, register: Register | None, vouch: Vouch | None = None
) -> Row:
    """Return the row of a register and of what is known of it; None takes it away."""
    value = None if register is None else pack_register(register, vouch)
    return Row("register", object_id, value)


def apply_copies(engine: Engine, copies: Sequence[Copy]) -> list[tuple[str, str]]:
    """Write steps of copies and their registers in one commit; durable on return.

    Runs in the thread that writes. Returns of each "", or why it was not done: "base",
    the state that it follows on is not the one on disk, or not readable; "space", the
    disk or its budget is full; and the error's text, as far as there was one. Steps of
    one object build on each other in their order.

    Raises:
        OSError: the disk failed; nothing that was not reported is durable.
    """
    points: dict[ObjectId, Point | None] = {}
    found = [("base", "")] * len(copies)
    changes: list[Change] = []
    ordered: list[int] = []
    for index, copy in enumerate(copies):
        if copy.object_id not in points:
            points[copy.object_id] = _point_on_disk(engine, copy.object_id)
        at = points[copy.object_id]
        if not _follows(copy, at):
            continue
        register = copy.register
        points[copy.object_id] = None if register.is_lost else register.point
        if _is_left_over(engine, copy):
            changes.append(_witnessed(copy))
        else:
            changes.append(_change_with_row(copy, at))
        ordered.append(index)
    for index, error in zip(ordered, engine.commit(changes), strict=True):
        if error is not None:
            found[index] = (problem_of(error), _text_of(error))
        else:
            found[index] = ("", "")
    return found


def _point_on_disk(engine: Engine, object_id: ObjectId) -> Point | None:
    """Return which state is on disk, None where no delta can be applied to any."""
    value = _readable_row(engine, object_id)
    register = None if value is None else _readable(value)
    return None if register is None or register.is_lost else register.point


def _follows(copy: Copy, at: Point | None) -> bool:
    """Whether a step may be done to the state that is at this point.

    Where only the register is written, the state must be the one that it tells of: an
    earlier step of it may have been refused.
    """
    if copy.base is not None:
        return copy.base == at
    if copy.change is not None and not copy.is_delete:
        return copy.change.state is not None or copy.change.is_delete
    if copy.is_delete or at is None:
        return True
    register = copy.register
    has_state = register.has_state and not register.is_deleted
    return not has_state or at.number in {0, register.number}


def _is_left_over(engine: Engine, copy: Copy) -> bool:
    """Whether a state is here of when the witness was a member.

    Until a config without the one before is accepted, the change that makes it the
    witness may not be committed.
    """
    register = copy.register
    is_witness = register.is_stateless and register.is_voter
    if not is_witness or register.config.before or register.is_deleted:
        return False
    if copy.change is not None:
        return False
    try:
        return engine.head(copy.object_id) is not None
    except CorruptRecordError:
        return True


def _witnessed(copy: Copy) -> Change:
    """Return what keeps a register and no state."""
    rows = (register_row(copy.object_id, copy.register, copy.vouch),)
    return Change(
        copy.object_id, is_delete=True, is_copy=True, rows=rows, forgets_replies=True
    )


def _change_with_row(copy: Copy, at: Point | None) -> Change:
    """Return what is committed for a step: the change, and the row beside it."""
    object_id, register, change = copy.object_id, copy.register, copy.change
    rows = (register_row(object_id, register, copy.vouch),)
    counter = register.epoch.counter
    if change is None:
        # A promise leaves the head alone, which tells the counter of its state; and of a
        # state that is lost there may be none that can be read.
        is_same = at is not None and at.counter == counter
        leaves_head = is_same or register.is_lost or copy.is_delete
        return Change(
            object_id, is_delete=copy.is_delete, rows=rows, is_copy=True,
            epoch=0 if leaves_head else counter,
        )  # fmt: skip
    return Change(
        object_id, change.version,
        None if copy.is_delete else change.state,
        None if copy.is_delete else change.delta,
        is_delete=copy.is_delete or change.is_delete,
        alias=change.alias,
        durability=change.durability,
        reply=change.reply,
        drop_replies=change.drop_replies,
        rows=rows,
        epoch=counter,
        replies=change.replies,
        # What a whole brings is all that is kept of its object; a delete needs no base,
        # and the answers before it stay.
        forgets_replies=change.forgets_replies
        or (copy.base is None and not change.is_delete),
        is_rename=change.is_rename,
        created_s=change.created_s,
        is_copy=True,
        patches=change.patches,
        addresses=change.addresses,
    )  # fmt: skip


def problem_of(error: ActiveStoreError) -> str:
    """Return what the refusal of a step means: "base" or "space", see `apply_copies`."""
    if isinstance(error, StorageFullError):
        return "space"
    if isinstance(error, (ObjectNotFoundError, UnavailableError, CorruptRecordError)):
        return "base"
    # Ours to find: what came was checked, and a copy is refused for nothing else.
    _log.error("copy refused reason=%s", error)
    return "space"


def _text_of(error: ActiveStoreError) -> str:
    """Return a refusal in words, for those who read it at another peer.

    That reads and deletes still work is true of this disk, and not of the object.
    """
    if not isinstance(error, StorageFullError):
        return str(error)
    why = f": {error.reason}" if error.reason else ""
    return (
        f"storage is full: {error.used_bytes:,} of {error.budget_bytes:,} bytes used{why}; "
        "delete other objects there, or raise its disk_budget_mb"
    )


def remove_copy(engine: Engine, object_id: ObjectId, rows: Sequence[Row] = ()) -> None:
    """Remove register, state and answers of an object that is not kept here any more.

    `rows`: what is written with it. The answers stay until they expire where it was
    deleted: the delete is asked again of whoever has one.

    Raises:
        OSError: the disk failed.
        StorageFullError: it is too full even for that; nothing is removed.
    """
    value = _readable_row(engine, object_id)
    register = None if value is None else _readable(value)
    change = Change(
        object_id, is_delete=True, is_copy=True,
        rows=(register_row(object_id, None), *rows),
        forgets_replies=register is None or not register.is_deleted,
    )  # fmt: skip
    (refused,) = engine.commit((change,))
    if refused is not None:
        raise refused


# -- the whole of an object ------------------------------------------------------------


class Content(NamedTuple):
    """A large buffer that a copy has: which one, and the digests of its chunks."""

    at: int
    nbytes: int
    address: bytes
    digests: bytes


def contents_of(engine: Engine, object_id: ObjectId) -> list[Content]:
    """Return the large buffers of an object here, as a leader needs to know them.

    Reads all of them; runs in a thread that reads.

    Raises:
        CorruptRecordError: a checksum fails.
    """
    _, state, addresses = _snapshot(engine, object_id)
    found = []
    for at, address in enumerate(addresses[:CONTENTS_MAX] if state else ()):
        if address:
            content = view_of(state.buffers[at])  # type: ignore[union-attr]
            digests = chunk_digests(content)
            found.append(Content(at, content.nbytes, address, digests))
    return found


def contents_from(rows: Any) -> list[Content]:
    """Return the contents that another peer tells.

    Raises:
        RemoteProtocolError: they are malformed.
    """
    try:
        contents = [Content(*row[:4]) for row in rows]
        for content in contents:
            types = tuple(map(type, content))
            if types != (int, int, bytes, bytes) or content.at < 0:
                raise ValueError(f"a content has types {types}")
    except (TypeError, ValueError) as error:
        raise RemoteProtocolError(f"contents are malformed: {error}", "Reply") from None
    return contents


def read_whole(
    engine: Engine,
    object_id: ObjectId,
    contents: Sequence[Content] = (),
    *,
    is_sent: bool = True,
) -> tuple[Register, Change] | None:
    """Return the register of an object, and the change that makes a replica the same.

    Both are of one moment. None where there is no register, or no state to send: at a
    witness, or where it is lost. Large buffers are mapped files, checked where the whole
    `is_sent`; what the replica has of them, as `contents` tell, is left out.

    Raises:
        CorruptRecordError: a checksum fails.
    """
    snapshot, state, addresses = _snapshot(engine, object_id, is_sent=is_sent)
    if snapshot.row is None:
        return None
    register = unpack_register(snapshot.row)
    head = snapshot.head
    if head is None or state is None:
        if not register.is_deleted:
            return None
        change = Change(
            object_id, is_delete=True, replies=snapshot.replies, forgets_replies=True,
            epoch=register.epoch.counter, is_copy=True,
        )  # fmt: skip
        return register, change
    change = Change(
        object_id, head.version, state, alias=head.alias, durability=head.durability,
        replies=snapshot.replies, forgets_replies=True, created_s=head.created_s,
        epoch=register.epoch.counter, is_copy=True,
        patches=tuple(_differences(state, addresses, contents)) if contents else (),
        addresses=addresses if any(addresses) else (),
    )  # fmt: skip
    return register, change


def has_files(change: Change) -> bool:
    """Whether a whole has buffers of which only a part may need to be sent."""
    buffers = change.state.buffers if change.state is not None else ()
    return any(buffer_bytes_count(buffer) > FILE_BYTES_MIN for buffer in buffers)


def _snapshot(
    engine: Engine, object_id: ObjectId, *, is_sent: bool = False
) -> tuple[Snapshot, ObjectState | None, Sequence[bytes]]:
    """Return all of an object, its state with files mapped, and the files' addresses."""
    snapshot = engine.snapshot(object_id, "register", is_sent=is_sent)
    state = snapshot.state
    if state is not None:
        state = state._replace(buffers=list(map(_mapped, state.buffers)))
    return snapshot, state, snapshot.addresses


def _mapped(buffer: AnyBuffer) -> AnyBuffer:
    if not isinstance(buffer, FileBuffer):
        return buffer
    try:
        return view_of(buffer)
    finally:
        os.close(buffer.fd)


def _differences(
    state: ObjectState, addresses: Sequence[bytes], contents: Sequence[Content]
) -> Iterator[Patch]:
    """Yield what is to be sent of those buffers that a replica has in part."""
    for at, (buffer, address) in enumerate(zip(state.buffers, addresses, strict=True)):
        if not address:
            continue
        new = view_of(buffer)
        known = _likely(at, new.nbytes, address, contents)
        if known is None:
            continue
        spans = spans_unlike(known.digests, new)
        patch = patch_of(at, (known.nbytes, known.address), new, address, spans)
        if patch is not None:
            yield patch


def _likely(
    at: int, nbytes: int, address: bytes, contents: Sequence[Content]
) -> Content | None:
    """Return the content that a buffer is most probably like."""
    marks = [
        (one.address == address, one.at == at, one.nbytes == nbytes) for one in contents
    ]
    best = max(range(len(contents)), key=marks.__getitem__, default=0)
    return contents[best] if contents and any(marks[best]) else None


def registers_of(
    engine: Engine,
) -> Iterator[tuple[ObjectId, Register | None, Vouch | None]]:
    """Yield every register on disk, None for one that is damaged; and what was known.

    Of such an object nothing may be promised or led here: what was promised before is
    not known (R9).
    """
    damaged: list[Damage] = []
    for key, value in engine.rows("register", damaged.append):
        yield ObjectId(key), _readable(value), unpack_vouch(value)
    for damage in damaged:
        if damage.object_id is not None:
            yield damage.object_id, None, None


def mend_register(engine: Engine, object_id: ObjectId, register: Register) -> None:
    """Write a register anew whose row cannot be read, as it is known in memory.

    Raises:
        OSError: the disk failed.
    """
    try:
        engine.row("register", object_id)
    except CorruptRecordError:
        rows = (register_row(object_id, register),)
        engine.commit((Change(object_id, is_copy=True, rows=rows),))


def _readable_row(engine: Engine, object_id: ObjectId) -> bytes | None:
    try:
        return engine.row("register", object_id)
    except CorruptRecordError:
        return None


def _readable(value: bytes) -> Register | None:
    try:
        return unpack_register(value)
    except CorruptRecordError:
        return None


def claim_name(engine: Engine, object_id: ObjectId) -> bool:
    """Have the name of a copy, which is the object from now on, name it here.

    Returns False where the name is another object's, which keeps it.
    """
    head = engine.head(object_id)
    if head is None or not head.alias:
        return True
    holder = engine.resolve(head.alias)
    if holder is None:
        engine.commit((
            Change(object_id, is_rename=True, alias=head.alias, is_copy=True),
        ))  # fmt: skip
        holder = engine.resolve(head.alias)
    return holder == object_id
