"""Values without a wire form, as one pickle: from developers to executors and back.

Between them a value such as a model can be an argument or a result; a thin client gets
it as `activestore.Opaque` and can hand it on.

Rules of this file: the layout is [stream, buffers] in msgpack; unpickling is
`pickles`'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from activestore.errors import RemoteProtocolError, UnsupportedValueError
from activestore.objects import pickles
from activestore.objects.pickles import NeedsValueError, RefOf
from activestore.wire import packing


def dump_value(value: object, ref_of: RefOf) -> tuple[str, bytes]:
    """Return the type's name and the pickle of a value.

    Raises:
        UnsupportedValueError: it cannot be pickled.
    """
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    try:
        try:
            dump = pickles.dump(value, ref_of=ref_of)
        except NeedsValueError:
            dump = pickles.dump(value, ref_of=ref_of, by_value=True)
    except Exception as error:  # noqa: BLE001 - a __reduce__ of the user's may raise anything
        reason = f"{type(error).__name__}: {error}"[:200]
        raise UnsupportedValueError(name, "value", reason) from None
    packed = packing.pack([dump.stream, [bytes(b) for b in dump.buffers]])
    return name, bytes(packed)


def load_value(name: str, data: bytes, resolve: Callable[[bytes], object]) -> Any:
    """Return the value of a pickle that `dump_value` made.

    Raises:
        RemoteProtocolError: it was not made so.
        UnsupportedValueError: its classes are not here.
    """
    try:
        stream, buffers = packing.unpack(data)
    except packing.UNPACK_ERRORS:
        raise RemoteProtocolError("an opaque value is malformed", name) from None
    try:
        return pickles.unpickle(
            stream, buffers=[bytearray(b) for b in buffers], resolve=resolve
        )
    except (ImportError, AttributeError) as error:
        raise UnsupportedValueError(
            name, "value", f"cannot be loaded: {error}"
        ) from None
