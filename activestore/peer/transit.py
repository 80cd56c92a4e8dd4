"""Changes as bytes, on their way from the leader of an object to its replicas.

A change is packed with all that a replica must do to become the same: what changed, the
version, the name, the answers. A large buffer may be told by what it differs in from a
file that the replica has.

    body      [kind, content, version, alias, is_rename, durability, answer or nil,
               answers that go, answers, are all others forgotten, created_s, epoch,
               patches, addresses: there with files only]; nil: the body is the first
               buffer
    content   of wire.state: encode_states of one, or encode_delta
    patch     [place, address and size of the base, address and size, spans]; ascending
    buffers   those of the content without the patched, then the content of each patch

Rules of this file: what comes from another peer is checked here, before it is kept; what
is wrong with it is named.

Source: reliability.md 3.2 and 3.3; schemas/protocol.md section 14.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from activestore.errors import InvalidRequestError, RemoteProtocolError, TooLargeError
from activestore.ids import (
    OBJECT_ID_BYTES,
    ObjectId,
    check_alias,
)
from activestore.peer.answers import reply_of, request_of, row_of
from activestore.storage.engine import (
    EPOCH_MAX,
    Change,
    Durability,
    Patch,
)
from activestore.storage.records import CHUNKED_BYTES_MAX as FILE_BYTES_MIN
from activestore.storage.records import DIGEST_BYTES
from activestore.wire import packing
from activestore.wire.limits import VALUE_ELEMENTS_MAX
from activestore.wire.messages import whole
from activestore.wire.scan import count_elements
from activestore.wire.state import (
    AnyBuffer,
    FileBuffer,
    NamedState,
    ObjectState,
    StateDelta,
    buffer_bytes_count,
    decode_delta,
    decode_states,
    encode_delta,
    encode_states,
)

# What a change does to the state.
_NOTHING, _STATE, _DELTA, _DELETE = range(4)
# A larger body travels as the first of the buffers: entries of many objects share a frame.
BODY_BYTES_MAX = 64 * 1024
_BESIDE = packing.pack(None)
_ZERO = ObjectId(bytes(OBJECT_ID_BYTES))
# The smallest elements of a body, a span and its two numbers, take a byte each.
_BYTES_PER_ELEMENT_MIN = 2
_VERSION_MAX = 2**64 - 1


def pack_change(change: Change) -> tuple[bytes, list[AnyBuffer]]:
    """Return what a replica must do for a change, as bytes, and the buffers beside it.

    Rows and group stay here: they are about this peer.
    """
    kind, content = _NOTHING, b""
    buffers: list[AnyBuffer] = []
    delta, state = change.delta, change.state
    if delta is not None:
        kind = _DELTA
        if change.patches:
            delta = delta._replace(buffers=_without(delta.buffers, change.patches))
        content, buffers = encode_delta(delta)
    elif state is not None:
        kind = _STATE
        if change.patches:
            state = state._replace(buffers=_without(state.buffers, change.patches))
        content, buffers = encode_states((NamedState(_ZERO, change.alias, state),))
    elif change.is_delete:
        kind = _DELETE
    reply = None if change.reply is None else row_of(change.reply)
    replies = [row_of(one) for one in change.replies] if change.replies else ()
    later = (change.addresses,) if change.addresses else ()
    body: bytes = packing.pack((
        kind, content, change.version, change.alias, change.is_rename,
        int(change.durability), reply, change.drop_replies, replies,
        change.forgets_replies, change.created_s, change.epoch,
        [patch[:-1] for patch in change.patches] if change.patches else (),
        *later,
    ))  # fmt: skip
    buffers.extend(patch.content for patch in change.patches)
    if len(body) > BODY_BYTES_MAX:
        return _BESIDE, [body, *buffers]
    return body, buffers


def _without(buffers: Sequence[Any], patches: Sequence[Patch]) -> list[Any]:
    """Return the buffers that no patch tells."""
    told = {patch.at for patch in patches}
    return [buffer for at, buffer in enumerate(buffers) if at not in told]


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
        forgets, created_s, epoch, patched, *later,
    ) = row  # fmt: skip
    patches, buffers = _patches_of(patched, buffers)
    if type(version) is not int or not 0 <= version <= _VERSION_MAX:
        raise ValueError(f"version is {str(version)[:20]!r}")
    if type(epoch) is not int or not 0 <= epoch <= EPOCH_MAX:
        raise ValueError(f"epoch is {str(epoch)[:20]!r}, it must be 0 to {EPOCH_MAX}")
    if type(alias) is not str or type(created_s) not in (float, int):
        raise ValueError("alias or time of creation has a wrong type")
    if alias:
        check_alias(alias)
    state, delta = _step_of(kind, content, buffers, patches)
    return Change(
        object_id, version, state, delta,
        is_delete=kind == _DELETE,
        alias=alias,
        durability=Durability(durability),
        reply=None if reply is None else reply_of(reply),
        drop_replies=tuple(map(request_of, dropped)) if dropped else (),
        epoch=epoch,
        replies=tuple(map(reply_of, replies)) if replies else (),
        forgets_replies=bool(forgets),
        is_rename=bool(is_rename),
        created_s=float(created_s),
        is_copy=True,
        patches=patches,
        addresses=_addresses_of(later[0], state) if later else (),
    )  # fmt: skip


def _step_of(
    kind: Any, content: Any, buffers: Sequence[AnyBuffer], patches: Sequence[Patch]
) -> tuple[ObjectState | None, StateDelta | None]:
    """Return the state or the delta of a change, with places for what is patched."""
    if kind == _DELTA:
        delta = _delta_of(content, buffers)
        return None, delta._replace(buffers=_with_places(delta.buffers, patches))
    if kind == _STATE:
        state = _state_of(content, buffers)
        return state._replace(buffers=_with_places(state.buffers, patches)), None
    if kind not in {_NOTHING, _DELETE}:
        raise ValueError(f"kind is {str(kind)[:20]!r}, it must be 0 to {_DELETE}")
    if buffers or patches:
        raise ValueError(f"{len(buffers) + len(patches)} buffers belong to nothing")
    return None, None


def _addresses_of(told: Any, state: ObjectState | None) -> Sequence[bytes]:
    """Return the addresses that the files of a whole have at its sender."""
    count = 0 if state is None else len(state.buffers)
    if type(told) is not tuple or len(told) != count:
        raise ValueError(f"a whole has {count} buffers, and not an address for each")
    for address in told:
        if type(address) is not bytes or len(address) not in (0, DIGEST_BYTES):
            raise ValueError(f"the address of a file has {DIGEST_BYTES} bytes")
    return told


def _patches_of(
    rows: Sequence[Any], buffers: Sequence[AnyBuffer]
) -> tuple[tuple[Patch, ...], Sequence[AnyBuffer]]:
    """Return the patches of a change, and the buffers that are not theirs."""
    if not rows:
        return (), buffers
    own_count = len(buffers) - len(rows)
    if own_count < 0:
        raise ValueError(f"{len(rows)} patches have {len(buffers)} buffers")
    patches = []
    for row, content in zip(rows, buffers[own_count:], strict=True):
        at, base, base_bytes, address, nbytes, spans = row[:6]
        spans = tuple((offset, length) for offset, length in spans)
        patch = Patch(at, base, base_bytes, address, nbytes, spans, whole(content))  # type: ignore[arg-type]  # from the wire
        _check_patch(patch)
        patches.append(patch)
    return tuple(patches), buffers[:own_count]


def _check_patch(patch: Patch) -> None:
    content_bytes = buffer_bytes_count(patch.content)
    for address in (patch.base, patch.address):
        if type(address) is not bytes or len(address) != DIGEST_BYTES:
            raise ValueError(f"the address of a file has {DIGEST_BYTES} bytes")
    sizes = (patch.at, patch.base_bytes, patch.nbytes)
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError("place or sizes of a patch are no counts")
    largest = patch.base_bytes + content_bytes
    if not FILE_BYTES_MIN < patch.nbytes <= largest:
        raise ValueError(
            f"a patch makes {patch.nbytes} bytes, it may make {FILE_BYTES_MIN + 1} to "
            f"{largest}"
        )
    end = 0
    for offset, length in patch.spans:
        if type(offset) is not int or type(length) is not int or length < 1:
            raise ValueError("a span is no offset and length")
        if not end <= offset <= patch.nbytes - length:
            raise ValueError(f"a span at {offset} is not behind {end}, or past the end")
        end = offset + length
    if sum(length for _, length in patch.spans) != content_bytes:
        raise ValueError(f"the spans of a patch do not hold {content_bytes} bytes")


def _with_places(buffers: Sequence[Any], patches: Sequence[Patch]) -> Sequence[Any]:
    """Return buffers with a place for each that a patch makes, which has its size."""
    if not patches:
        return buffers
    left = list(buffers)
    before = -1
    for patch in patches:
        if not before < patch.at <= len(left):
            raise ValueError(f"a patch of buffer {patch.at} is not in order")
        before = patch.at
        left.insert(patch.at, FileBuffer(-1, 0, patch.nbytes))
    return left


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
