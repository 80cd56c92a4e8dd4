"""An object's state as bytes: what storage keeps, executors load and peers will ship.

*Plain* fields (None, bool, int, float, str, bytes, refs, ... : values that nothing can
share or change in place) are encoded one by one. All other fields are pickled together
as one *graph*, so that what two fields share is still shared after a load; its large
buffers lie beside it, each with a digest, so that only changed ones are written.

Rules of this file: data only; nobody here decodes a field or a graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgpack

from activestore.errors import RemoteProtocolError, TooLargeError
from activestore.ids import OBJECT_ID_BYTES
from activestore.wire.limits import VALUE_ELEMENTS_MAX
from activestore.wire.messages import Buffer, PartedBuffer, bytes_count
from activestore.wire.scan import count_elements


class FileBuffer(NamedTuple):
    """A buffer that is a file or a piece of shared memory: descriptor, start, size.

    Whoever holds it last closes `fd`.
    """

    fd: int
    offset: int
    nbytes: int


AnyBuffer: TypeAlias = Buffer | FileBuffer | PartedBuffer


class ObjectState(NamedTuple):
    """The whole state of one object.

    `class_name`: "module.Class". `revision`: digest of the published code, 16 bytes.
    `class_version`: the author's integer. `graph`: pickle (protocol 5) of a dict of
    `graph_fields`, b"" where there are none; `buffers`: its out-of-band buffers, in
    order.
    """

    class_name: str
    revision: bytes
    class_version: int
    fields: Mapping[str, bytes]
    graph: bytes
    graph_fields: Sequence[str]
    buffers: Sequence[AnyBuffer]


class StateDelta(NamedTuple):
    """What one call changed, against the state it ran on.

    `fields`: new encodings of changed plain fields. `removed`: plain fields that are
    gone (deleted, or moved into the graph). `graph`: None where the graph is as it was,
    and then `graph_fields` and `buffers` mean nothing; else the new pickle, and for
    each of its buffers either the new bytes or the index of the same buffer in the
    state before.
    """

    class_name: str
    revision: bytes
    class_version: int
    fields: Mapping[str, bytes]
    removed: Sequence[str]
    graph: bytes | None
    graph_fields: Sequence[str]
    buffers: Sequence[AnyBuffer | int]


def buffer_bytes_count(buffer: AnyBuffer) -> int:
    """Return the size of a buffer of any kind in bytes."""
    if isinstance(buffer, FileBuffer):
        return buffer.nbytes
    return bytes_count(buffer)


def state_bytes_count(state: ObjectState) -> int:
    """Return the size of a whole state in bytes."""
    plain = sum(map(len, state.fields.values()))
    return plain + len(state.graph) + sum(map(buffer_bytes_count, state.buffers))


class NamedState(NamedTuple):
    """A state with the id and the alias it is to be kept under, as Persist carries it."""

    object_id: bytes
    alias: str
    state: ObjectState


# A field's name and its bytes, the smallest elements of a state, take five bytes.
_BYTES_PER_ELEMENT_MIN = 2
_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def encode_states(states: Sequence[NamedState]) -> tuple[bytes, list[AnyBuffer]]:
    """Return the body and the buffers of a Persist: the states, buffers in their order."""
    rows = []
    buffers: list[AnyBuffer] = []
    for object_id, alias, state in states:
        rows.append([
            object_id, alias, state.class_name, state.revision, state.class_version,
            dict(state.fields), state.graph, list(state.graph_fields),
            len(state.buffers),
        ])  # fmt: skip
        buffers.extend(state.buffers)
    return _pack(rows), buffers


def decode_states(body: Buffer, buffers: Sequence[AnyBuffer]) -> list[NamedState]:
    """Return the states of a Persist.

    Raises:
        RemoteProtocolError: the body is not what `encode_states` makes.
    """
    try:
        count_elements(body, VALUE_ELEMENTS_MAX + len(body) // _BYTES_PER_ELEMENT_MIN)
        rows = msgpack.unpackb(body, use_list=True, raw=False, max_array_len=100_000)
        states = [_state_of_row(row) for row in rows]
    except TooLargeError as error:
        raise RemoteProtocolError(f"states are malformed: {error}") from None
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise RemoteProtocolError(f"states are malformed: {str(error)[:80]}") from None
    used = 0
    found = []
    for named, count in states:
        if count > len(buffers) - used:
            raise RemoteProtocolError(
                f"a state needs {count} buffers, {len(buffers) - used} are left"
            )
        state = named.state._replace(buffers=list(buffers[used : used + count]))
        found.append(named._replace(state=state))
        used += count
    if used < len(buffers):
        raise RemoteProtocolError(f"{len(buffers) - used} buffers belong to no state")
    return found


def _state_of_row(row: list[Any]) -> tuple[NamedState, int]:
    object_id, alias, name, revision, version, fields, graph, graph_fields, count = row[
        :9
    ]
    expected = (bytes, str, str, bytes, int, dict, bytes, list, int)
    seen = tuple(map(type, row[:9]))
    if seen != expected or len(object_id) != OBJECT_ID_BYTES or count < 0:
        raise ValueError(f"a state row has types {[t.__name__ for t in seen]}")
    if not all(type(k) is str and type(v) is bytes for k, v in fields.items()):
        raise ValueError("fields must map text to bytes")
    if not all(type(k) is str for k in graph_fields):
        raise ValueError("graph fields must be texts")
    state = ObjectState(name, revision, version, fields, graph, tuple(graph_fields), ())
    return NamedState(object_id, alias, state), count


def encode_delta(delta: StateDelta) -> tuple[bytes, list[AnyBuffer]]:
    """Return a delta as bytes, and its new buffers in order."""
    kept = [entry if isinstance(entry, int) else None for entry in delta.buffers]
    new = [entry for entry in delta.buffers if not isinstance(entry, int)]
    body = _pack([
        delta.class_name, delta.revision, delta.class_version, dict(delta.fields),
        list(delta.removed), delta.graph, list(delta.graph_fields), kept,
    ])  # fmt: skip
    return body, new


def decode_delta(body: Buffer, buffers: Sequence[AnyBuffer]) -> StateDelta:
    """Return the delta that `encode_delta` made.

    Raises:
        RemoteProtocolError: the body is not what `encode_delta` makes.
    """
    try:
        row = msgpack.unpackb(body, use_list=True, raw=False)
        name, revision, version, fields, removed, graph, graph_fields, kept = row[:8]
        rest = iter(buffers)
        entries = [next(rest) if entry is None else int(entry) for entry in kept]
    except (ValueError, TypeError, StopIteration, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"a delta is malformed: {str(error)[:80]}") from None
    return StateDelta(
        name,
        revision,
        version,
        fields,
        tuple(removed),
        graph,
        tuple(graph_fields),
        entries,
    )


def apply_delta(state: ObjectState, delta: StateDelta) -> ObjectState:
    """Return the state after `delta`.

    Raises:
        RemoteProtocolError: the delta keeps a buffer that the state does not have.
    """
    fields = {**state.fields, **delta.fields}
    for name in delta.removed:
        fields.pop(name, None)
    graph, graph_fields, buffers = state.graph, state.graph_fields, state.buffers
    if delta.graph is not None:
        graph, graph_fields = delta.graph, delta.graph_fields
        try:
            buffers = [
                state.buffers[entry] if isinstance(entry, int) else entry
                for entry in delta.buffers
            ]
        except IndexError:
            raise RemoteProtocolError(
                "a delta keeps a buffer that is not there"
            ) from None
    return ObjectState(
        delta.class_name, delta.revision, delta.class_version, fields, graph,
        graph_fields, buffers,
    )  # fmt: skip
