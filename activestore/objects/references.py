"""Which objects a stored state refers to, found without running anything it names.

Plain fields are values of the wire, whose refs the decoder hands out. A graph is a
pickle: it is walked by an unpickler for which every class and function is the same
inert one, but for the function that makes a stand-in of a ref.

Rules of this file: no user code runs, and nothing is imported.
"""

from __future__ import annotations

import io
import itertools
import pickle
from typing import Any

from activestore.errors import CorruptRecordError
from activestore.ids import OBJECT_ID_BYTES, ObjectId
from activestore.objects import rebuild
from activestore.objects.cuts import join_stream
from activestore.wire import values
from activestore.wire.state import ObjectState


class _Inert:
    """Stands for whatever a pickle makes; takes everything and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take what the real one would."""

    def __call__(self, *_: Any, **__: Any) -> _Inert:
        return self

    def __setstate__(self, state: Any) -> None:
        """Take the state of the real one."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Take an item of the real one."""

    def append(self, value: Any) -> None:
        """Take an element of the real one."""

    def extend(self, items: Any) -> None:
        """Take elements of the real one."""

    add = append


class _Walker(pickle.Unpickler):
    """Reads a pickle for its refs."""

    def __init__(self, stream: bytes, found: dict[ObjectId, None]) -> None:
        super().__init__(io.BytesIO(stream), buffers=itertools.repeat(bytearray()))
        self._found = found

    def find_class(self, module: str, name: str) -> Any:
        if module == rebuild.__name__ and name == rebuild.ref.__name__:
            return self._note
        return _Inert

    def _note(self, ref: bytes) -> _Inert:
        self._found[ObjectId(ref[:OBJECT_ID_BYTES])] = None
        return _Inert()


def refs_of(state: ObjectState) -> list[ObjectId]:
    """Return the ids of the objects that a state refers to, each once, in order.

    Raises:
        CorruptRecordError: the graph is no pickle.
        RemoteProtocolError: a field is no value.
    """
    found: dict[ObjectId, None] = {}

    def note(ref: bytes) -> None:
        found[ObjectId(bytes(ref[:OBJECT_ID_BYTES]))] = None

    stream, taken = join_stream(state)
    blocks: list[Any] = [bytearray(8)] * len(state.buffers[taken:])
    for encoded in state.fields.values():
        values.decode(encoded, blocks, resolve=note)
    if state.graph:
        try:
            _Walker(stream, found).load()
        except (pickle.UnpicklingError, EOFError, TypeError, ValueError) as error:
            where = f"graph of {state.class_name}"
            raise CorruptRecordError(b"", where, str(error)) from None
    return list(found)
