"""How a state travels to a replica, and how it lies on the replica's disk.

A change is packed with all that a replica must do to become the same: what changed, the
version, the name, the answers. There it is written in one commit with the register, so
that what a replica says it has accepted is what it has.

    leader    Change -> pack_change -> body, buffers
    replica   unpack_change -> Change (is_copy) -> apply_copies -> "" | "base" | "space"

Rules of this file: it decides nothing about who leads. A change is applied only to the
state that it follows on; what comes from another peer is checked before it is kept.

Source: reliability.md 3.2, 3.3, 3.4 R5; schemas/protocol.md section 14.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from activestore.core.register import Register, pack_register, unpack_register
from activestore.errors import (
    ActiveStoreError,
    CorruptRecordError,
    InvalidRequestError,
    ObjectNotFoundError,
    RemoteProtocolError,
    StorageFullError,
    TooLargeError,
    UnavailableError,
)
from activestore.ids import (
    OBJECT_ID_BYTES,
    SESSION_ID_BYTES,
    ObjectId,
    SessionId,
    check_alias,
)
from activestore.storage.engine import (
    EPOCH_MAX,
    Change,
    Damage,
    Durability,
    Engine,
    ReplyRecord,
    Row,
    Snapshot,
)
from activestore.wire import packing
from activestore.wire.limits import VALUE_ELEMENTS_MAX
from activestore.wire.messages import whole
from activestore.wire.replicas import Point
from activestore.wire.scan import count_elements
from activestore.wire.state import (
    AnyBuffer,
    NamedState,
    ObjectState,
    StateDelta,
    decode_delta,
    decode_states,
    encode_delta,
    encode_states,
)

_log = logging.getLogger(__name__)

# What a change does to the state.
_NOTHING, _STATE, _DELTA, _DELETE = range(4)
# A larger body travels as the first of the buffers: entries of many objects share a frame.
BODY_BYTES_MAX = 64 * 1024
_BESIDE = packing.pack(None)
_ZERO = ObjectId(bytes(OBJECT_ID_BYTES))
# The smallest element of a list of answers takes a byte, an answer has eight.
_BYTES_PER_ELEMENT_MIN = 2
_VERSION_MAX = 2**64 - 1


class Copy(NamedTuple):
    """One step of the copy of an object: as effect `Store` of replication orders it."""

    object_id: ObjectId
    register: Register
    base: Point | None
    change: Change | None
    is_delete: bool = False


# -- as bytes --------------------------------------------------------------------------


def pack_change(change: Change) -> tuple[bytes, list[AnyBuffer]]:
    """Return what a replica must do for a change, as bytes, and the buffers beside it.

    Rows and group stay here: they are about this peer.
    """
    kind, content = _NOTHING, b""
    buffers: list[AnyBuffer] = []
    if change.delta is not None:
        kind = _DELTA
        content, buffers = encode_delta(change.delta)
    elif change.state is not None:
        kind = _STATE
        named = NamedState(_ZERO, change.alias, change.state)
        content, buffers = encode_states((named,))
    elif change.is_delete:
        kind = _DELETE
    reply = None if change.reply is None else _reply_row(change.reply)
    replies = [_reply_row(one) for one in change.replies] if change.replies else ()
    body: bytes = packing.pack((
        kind, content, change.version, change.alias, change.is_rename,
        int(change.durability), reply, change.drop_replies, replies,
        change.forgets_replies, change.created_s, change.epoch,
    ))  # fmt: skip
    if len(body) > BODY_BYTES_MAX:
        return _BESIDE, [body, *buffers]
    return body, buffers


def unpack_change(
    object_id: ObjectId, body: Any, buffers: Sequence[AnyBuffer]
) -> Change:
    """Return the change of an object that `pack_change` made, as one of a copy.

    Raises:
        RemoteProtocolError: it is malformed; says where.
    """
    try:
        if body == _BESIDE:
            body, buffers = _beside(buffers), buffers[1:]
        row = packing.unpack(body, use_list=False)
        if type(row) is not tuple:
            raise ValueError(f"a list of fields expected, not {type(row).__name__}")
        return _change_of(object_id, row, buffers)
    except RemoteProtocolError as error:
        reason = error.reason
    except (TooLargeError, InvalidRequestError) as error:
        reason = str(error)
    except (*packing.UNPACK_ERRORS, RecursionError, OverflowError) as error:
        reason = f"{type(error).__name__}: {str(error)[:80]}"
    raise RemoteProtocolError(
        f"the change of object {object_id.hex()} is malformed: {reason}", "Replicate"
    )


def _beside(buffers: Sequence[AnyBuffer]) -> Any:
    if not buffers:
        raise ValueError("its body is to be the first buffer, there is none")
    body = whole(buffers[0])  # type: ignore[arg-type]  # from the wire: no file
    count_elements(body, VALUE_ELEMENTS_MAX + len(body) // _BYTES_PER_ELEMENT_MIN)
    return body


def _change_of(
    object_id: ObjectId, row: Sequence[Any], buffers: Sequence[AnyBuffer]
) -> Change:
    (
        kind, content, version, alias, is_rename, durability, reply, dropped, replies,
        forgets, created_s, epoch, *_later,
    ) = row  # fmt: skip
    if type(version) is not int or not 0 <= version <= _VERSION_MAX:
        raise ValueError(f"version is {str(version)[:20]!r}")
    if type(epoch) is not int or not 0 <= epoch <= EPOCH_MAX:
        raise ValueError(f"epoch is {str(epoch)[:20]!r}, it must be 0 to {EPOCH_MAX}")
    if type(alias) is not str or type(created_s) not in (float, int):
        raise ValueError("alias or time of creation has a wrong type")
    if alias:
        check_alias(alias)
    state, delta = None, None
    if kind == _DELTA:
        delta = _delta_of(content, buffers)
    elif kind == _STATE:
        state = _state_of(content, buffers)
    elif kind not in {_NOTHING, _DELETE}:
        raise ValueError(f"kind is {str(kind)[:20]!r}, it must be 0 to {_DELETE}")
    if state is None and delta is None and buffers:
        raise ValueError(f"{len(buffers)} buffers belong to nothing")
    return Change(
        object_id, version, state, delta,
        is_delete=kind == _DELETE,
        alias=alias,
        durability=Durability(durability),
        reply=None if reply is None else _reply_of(reply),
        drop_replies=tuple(map(_request_of, dropped)) if dropped else (),
        epoch=epoch,
        replies=tuple(map(_reply_of, replies)) if replies else (),
        forgets_replies=bool(forgets),
        is_rename=bool(is_rename),
        created_s=float(created_s),
        is_copy=True,
    )  # fmt: skip


def _state_of(content: bytes, buffers: Sequence[AnyBuffer]) -> ObjectState:
    states = decode_states(content, buffers)
    if len(states) != 1:
        raise ValueError(f"{len(states)} states, one expected")
    return states[0].state


def _delta_of(content: bytes, buffers: Sequence[AnyBuffer]) -> StateDelta:
    delta = decode_delta(content, buffers)
    if type(delta.fields) is not dict:
        raise ValueError("fields must be a map")
    for name, value in delta.fields.items():
        if type(name) is not str or type(value) is not bytes:
            raise ValueError("fields must map text to bytes")
    new_count = sum(type(entry) is not int for entry in delta.buffers)
    if new_count != len(buffers):
        raise ValueError(f"{new_count} of {len(buffers)} buffers are named")
    is_right = (
        type(delta.class_name) is str
        and type(delta.revision) is bytes
        and type(delta.class_version) is int
        and (delta.graph is None or type(delta.graph) is bytes)
        and all(type(name) is str for name in (*delta.removed, *delta.graph_fields))
        and all(type(entry) is not int or entry >= 0 for entry in delta.buffers)
    )
    if not is_right:
        raise ValueError("a part of the delta has a wrong type")
    return delta


def _reply_row(reply: ReplyRecord) -> tuple[Any, ...]:
    return (
        reply.session, reply.sequence, reply.code, reply.body, reply.written_s,
        reply.buffers, reply.first_unacked, reply.still_open,
    )  # fmt: skip


def _reply_of(row: Sequence[Any]) -> ReplyRecord:
    session, sequence, code, body, written_s, buffers, first_unacked, open_ = row[:8]
    seen = (*_request_of((session, sequence)), code, body, written_s, first_unacked)
    expected = (bytes, int, str, bytes, float, int)
    if tuple(map(type, seen)) != expected:
        raise ValueError(f"an answer has types {[type(v).__name__ for v in seen]}")
    if not all(type(one) is bytes for one in buffers):
        raise ValueError("what is beside an answer must be bytes")
    return ReplyRecord(
        SessionId(session), sequence, code, body, written_s, tuple(buffers),
        first_unacked, tuple(map(int, open_)),
    )  # fmt: skip


def _request_of(row: Sequence[Any]) -> tuple[SessionId, int]:
    session, sequence = row
    if type(session) is not bytes or len(session) != SESSION_ID_BYTES:
        raise ValueError(f"a session id has {SESSION_ID_BYTES} bytes")
    if type(sequence) is not int or not 0 <= sequence <= _VERSION_MAX:
        raise ValueError(f"a request has number {str(sequence)[:20]!r}")
    return SessionId(session), sequence


# -- on disk ---------------------------------------------------------------------------


def register_row(object_id: ObjectId, register: Register | None) -> Row:
    """Return the row of a register; None takes it away."""
    value = None if register is None else pack_register(register)
    return Row("register", object_id, value)


def apply_copy(
    engine: Engine,
    object_id: ObjectId,
    register: Register,
    base: Point | None,
    change: Change | None,
    is_delete: bool,
) -> str:
    """Carry out one step, see `apply_copies`."""
    copy = Copy(object_id, register, base, change, is_delete)
    return apply_copies(engine, (copy,))[0]


def apply_copies(engine: Engine, copies: Sequence[Copy]) -> list[str]:
    """Write steps of copies and their registers in one commit; durable on return.

    Runs in the thread that writes. Returns of each "", or why it was not done: "base",
    the state that it follows on is not the one on disk, or not readable; "space", the
    disk or its budget is full. Steps of one object build on each other in their order.

    Raises:
        OSError: the disk failed; nothing that was not reported is durable.
    """
    points: dict[ObjectId, Point | None] = {}
    found = ["base"] * len(copies)
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
        changes.append(_change_with_row(copy, at))
        ordered.append(index)
    for index, error in zip(ordered, engine.commit(changes), strict=True):
        found[index] = "" if error is None else problem_of(error)
    return found


def _point_on_disk(engine: Engine, object_id: ObjectId) -> Point | None:
    """Return which state is on disk, None where no delta can be applied to any."""
    try:
        value = engine.row("register", object_id)
        register = None if value is None else unpack_register(value)
    except CorruptRecordError:
        return None
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
    has_state = not register.is_lost and not register.is_deleted
    return not has_state or at.number in {0, register.number}


def _change_with_row(copy: Copy, at: Point | None) -> Change:
    """Return what is committed for a step: the change, and the row beside it."""
    object_id, register, change = copy.object_id, copy.register, copy.change
    rows = (register_row(object_id, register),)
    counter = register.epoch.counter
    if change is None:
        # A promise leaves the head alone, which tells the counter of its state.
        is_same = at is not None and at.counter == counter
        return Change(
            object_id, is_delete=copy.is_delete, rows=rows, is_copy=True,
            epoch=0 if is_same or copy.is_delete else counter,
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
        # What a whole brings is all that is kept of its object.
        forgets_replies=change.forgets_replies or copy.base is None,
        is_rename=change.is_rename,
        created_s=change.created_s,
        is_copy=True,
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


def remove_copy(engine: Engine, object_id: ObjectId) -> None:
    """Remove register, state and answers of an object that is not kept here any more.

    Raises:
        OSError: the disk failed.
        StorageFullError: it is too full even for that; nothing is removed.
    """
    change = Change(
        object_id, is_delete=True, forgets_replies=True, is_copy=True,
        rows=(register_row(object_id, None),),
    )  # fmt: skip
    (refused,) = engine.commit((change,))
    if refused is not None:
        raise refused


# -- the whole of an object ------------------------------------------------------------


def read_whole(engine: Engine, object_id: ObjectId) -> tuple[Register, Change] | None:
    """Return the register of an object, and the change that makes a replica the same.

    Both are of one moment. None where there is no register, or no state to send: at a
    witness, or where it is lost. Large buffers come as FileBuffer, whose descriptors the
    caller closes.

    Raises:
        CorruptRecordError: a checksum fails.
    """
    snapshot = engine.snapshot(object_id, "register")
    if snapshot.row is None:
        return None
    register = unpack_register(snapshot.row)
    change = _whole_change(object_id, register, snapshot)
    return None if change is None else (register, change)


def _whole_change(
    object_id: ObjectId, register: Register, snapshot: Snapshot
) -> Change | None:
    head, state = snapshot.head, snapshot.state
    if head is None or state is None:
        if not register.is_deleted:
            return None
        return Change(
            object_id, is_delete=True, replies=snapshot.replies, forgets_replies=True,
            epoch=register.epoch.counter, is_copy=True,
        )  # fmt: skip
    return Change(
        object_id, head.version, state, alias=head.alias, durability=head.durability,
        replies=snapshot.replies, forgets_replies=True, created_s=head.created_s,
        epoch=register.epoch.counter, is_copy=True,
    )  # fmt: skip


def registers_of(engine: Engine) -> Iterator[tuple[ObjectId, Register | None]]:
    """Yield every register on disk; None for one that is damaged.

    Of such an object nothing may be promised or led here: what was promised before is
    not known (R9).
    """
    damaged: list[Damage] = []
    for key, value in engine.rows("register", damaged.append):
        yield ObjectId(key), _readable(value)
    for damage in damaged:
        if damage.object_id is not None:
            yield damage.object_id, None


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
