"""An object's state as bytes: what storage keeps, executors load and peers will ship.

*Plain* fields (None, bool, int, float, str, bytes, refs, ... : values that nothing can share
or change in place) are encoded one by one. All other fields are pickled together as one
*graph*, so that what two fields share is still shared after a load; its large buffers lie
beside it, each with a digest, so that only changed ones are written.

Rules of this file: data only; nobody here decodes a field or a graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias, Union

from activestore.wire.messages import Buffer


class FileBuffer(NamedTuple):
    """A buffer that is a file or a piece of shared memory: descriptor, start, size.

    Whoever holds it last closes `fd`.
    """

    fd: int
    offset: int
    nbytes: int


AnyBuffer: TypeAlias = Union[Buffer, FileBuffer]


class ObjectState(NamedTuple):
    """The whole state of one object.

    `class_name`: "module.Class". `revision`: digest of the published code, 16 bytes.
    `class_version`: the author's integer. `graph`: pickle (protocol 5) of a dict of
    `graph_fields`, b"" where there are none; `buffers`: its out-of-band buffers, in order.
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

    `fields`: new encodings of changed plain fields. `removed`: plain fields that are gone
    (deleted, or moved into the graph). `graph`: None where the graph is as it was, and then
    `graph_fields` and `buffers` mean nothing; else the new pickle, and for each of its
    buffers either the new bytes or the index of the same buffer in the state before.
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
    """Return the size of a buffer of either kind in bytes."""
    if isinstance(buffer, FileBuffer):
        return buffer.nbytes
    return memoryview(buffer).nbytes


def state_bytes_count(state: ObjectState) -> int:
    """Return the size of a whole state in bytes."""
    plain = sum(map(len, state.fields.values()))
    return plain + len(state.graph) + sum(map(buffer_bytes_count, state.buffers))
