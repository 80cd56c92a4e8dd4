"""Values to bytes and back: msgpack, with an extension type for what msgpack lacks.

Plain values go through msgpack's C code untouched; a hook sees the rest. Arrays and
bytes of BUFFER_BYTES_MIN or more are kept out of the bytes, as buffers that travel
beside them without a copy. What has no wire form is refused with its path, or pickled
where the caller allows it.

Rules of this file: nothing is unpickled here, no library is imported for a value that
does not need it; malformed bytes give RemoteProtocolError, whatever they are.

Source: design section 4, "Values on the wire"; schemas/protocol.md section 5.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgpack

from activestore.errors import (
    ActiveStoreError,
    RemoteProtocolError,
    TooLargeError,
    UnsupportedValueError,
    error_from_wire,
)
from activestore.wire.kept import Opaque as Opaque  # noqa: PLC0414 - shown here too
from activestore.wire.kept import Ref as Ref  # noqa: PLC0414 - shown here too
from activestore.wire.limits import (
    BUFFER_BYTES_MIN,
    VALUE_DEPTH_MAX,
    VALUE_ELEMENTS_MAX,
)
from activestore.wire.messages import Buffer
from activestore.wire.scan import count_elements

if TYPE_CHECKING:
    from types import ModuleType

TUPLE, SET, FROZENSET, INTEGER, COMPLEX = 1, 2, 3, 4, 5
DATE, TIME, DATETIME, TIMEDELTA, DECIMAL, UUID = 6, 7, 8, 9, 10, 11
REF, ARRAY, SCALAR, TENSOR, FRAME, SERIES, ERROR, PICKLE, BYTES = range(12, 21)

RefOf = Callable[[object], "bytes | None"]
Pickle = Callable[[object], "tuple[str, bytes]"]
Resolve = Callable[[bytes], object]
Unpickle = Callable[[str, bytes], object]

_CONTAINERS = frozenset({list, tuple, dict, set, frozenset})
_COMPLEX = struct.Struct(">dd")
# Bodies up to this size cannot nest deeper than the limit, for a level takes a byte.
_SURELY_SHALLOW_BYTES = VALUE_DEPTH_MAX
# Extensions whose payload is itself a value, with elements and depth of its own.
_VALUE_EXTENSIONS = frozenset({
    TUPLE, SET, FROZENSET, DATE, TIME, DATETIME, TIMEDELTA, ARRAY, SCALAR, TENSOR, FRAME,
    SERIES, ERROR, PICKLE, BYTES,
})  # fmt: skip
REF_ID_BYTES = 16


class _Large:
    """Marks bytes that go out as a buffer."""

    __slots__ = ("value",)

    def __init__(self, value: bytes) -> None:
        self.value = value


class Encoder:
    """Encodes one value; collects its buffers."""

    def __init__(self, ref_of: RefOf | None, pickle: Pickle | None) -> None:
        self._ref_of = ref_of
        self._pickle = pickle
        self._depth = 0
        self.buffers: list[Buffer] = []

    def pack(self, value: object) -> bytes:
        """Return the bytes of a value."""
        packed: bytes = msgpack.packb(
            value, default=self._hook, strict_types=True, use_bin_type=True
        )
        return packed

    def extension(self, code: int, content: object) -> Any:
        """Return an extension whose payload is an encoded value."""
        self._depth += 1
        if self._depth > VALUE_DEPTH_MAX:
            raise TooLargeError("depth of a value", self._depth, VALUE_DEPTH_MAX)
        try:
            return msgpack.ExtType(code, self.pack(content))
        finally:
            self._depth -= 1

    def block(self, data: Buffer) -> Any:
        """Return how a block of bytes stands in a payload: itself, or a buffer's index."""
        view = memoryview(data).cast("B")
        if view.nbytes < BUFFER_BYTES_MIN:
            return bytes(view)
        self.buffers.append(view)
        return len(self.buffers) - 1

    def _hook(self, value: Any) -> Any:
        kind = type(value)
        encoder = _ENCODERS.get(kind)
        if encoder is not None:
            return encoder(self, value)
        if self._ref_of is not None:
            ref = self._ref_of(value)
            if ref is not None:
                return msgpack.ExtType(REF, bytes(ref))
        if isinstance(value, ActiveStoreError):
            return self.extension(ERROR, [value.code, list(value.args)])
        by_library = _library_encoder(kind)
        if by_library is not None:
            found = by_library(self, value)
            if found is not None:
                return found
        if self._pickle is not None:
            type_name, pickled = self._pickle(value)
            return self.extension(PICKLE, [type_name, self.block(pickled)])
        raise UnsupportedValueError(_type_name(kind), "value")


def _type_name(kind: type) -> str:
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


# -- encoding --------------------------------------------------------------------------


def encode(
    value: object,
    *,
    ref_of: RefOf | None = None,
    pickle: Pickle | None = None,
    path: str = "value",
) -> tuple[bytes, list[Buffer]]:
    """Return a value as bytes, and the buffers that travel beside them.

    Args:
        value: Any value of design section 4.
        ref_of: Returns the ref (object id, then class name) of an active object.
        pickle: Returns type name and pickle of a value without a wire form.
        path: What the value is called in an error, for example "result".

    Raises:
        UnsupportedValueError: something in it cannot travel; names its path and type.
        TooLargeError: it is nested too deeply or has too many elements.
    """
    if type(value) is bytes and len(value) >= BUFFER_BYTES_MIN:
        value = _Large(value)
    encoder = Encoder(ref_of, pickle)
    try:
        packed = encoder.pack(value)
    except (
        UnsupportedValueError,
        UnicodeEncodeError,
        ValueError,
        RecursionError,
    ) as error:
        raise _explained(value, error, ref_of, pickle, path) from None
    if len(packed) > _SURELY_SHALLOW_BYTES:
        _check_depth(value, path)
        if len(packed) >= BUFFER_BYTES_MIN:
            lifted = lift(value)
            if lifted is not value:
                encoder = Encoder(ref_of, pickle)
                packed = encoder.pack(lifted)
        _check_elements(packed, path)
    return packed, encoder.buffers


_NO_ARGUMENTS: bytes = msgpack.packb([[], {}])


def encode_arguments(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    ref_of: RefOf | None = None,
    pickle: Pickle | None = None,
) -> tuple[bytes, list[Buffer]]:
    """Return the arguments of a call as a body and its buffers; errors as `encode`."""
    if not args and not kwargs:
        return _NO_ARGUMENTS, []
    try:
        return encode([list(args), kwargs], ref_of=ref_of, pickle=pickle, path="@")
    except UnsupportedValueError as error:
        where = error.path.replace("@[0]", "args", 1).replace("@[1]", "kwargs", 1)
        raise UnsupportedValueError(error.type_name, where, error.reason) from None


def encode_error(error: ActiveStoreError) -> bytes:
    """Return the fields of an error, the body of a Failure; whatever text is in them.

    Raises:
        UnsupportedValueError: a field is no value, as an error of a user may have.
    """
    fields = [
        one.encode(errors="backslashreplace").decode() if type(one) is str else one
        for one in error.args
    ]
    return encode(fields)[0]


def _check_elements(data: Buffer, path: str) -> None:
    """Refuse a value with too many elements; only a large one can have them."""
    if len(data) <= VALUE_ELEMENTS_MAX:
        return
    try:
        count_elements(data, VALUE_ELEMENTS_MAX, _VALUE_EXTENSIONS)
    except TooLargeError as error:
        raise TooLargeError(
            f"{path}: the number of elements (an array has none)", error.size,
            VALUE_ELEMENTS_MAX,
        ) from None  # fmt: skip


def _check_depth(value: Any, path: str) -> None:
    """Refuse what is nested too deeply."""
    if type(value) not in _CONTAINERS:
        return
    level: list[Any] = [value]
    for _ in range(VALUE_DEPTH_MAX):
        inner: list[Any] = []
        for container in level:
            if type(container) is dict:
                inner.extend(v for v in container.values() if type(v) in _CONTAINERS)
            else:
                inner.extend(v for v in container if type(v) in _CONTAINERS)
        if not inner:
            return
        level = inner
    raise TooLargeError(f"{path}: the depth", VALUE_DEPTH_MAX + 1, VALUE_DEPTH_MAX)


def lift(value: Any) -> Any:
    """Return a value with its large bytes marked to be buffers; itself without them."""
    kind = type(value)
    if kind is bytes:
        return _Large(value) if len(value) >= BUFFER_BYTES_MIN else value
    if kind in (bytearray, memoryview):
        return _Large(value) if memoryview(value).nbytes >= BUFFER_BYTES_MIN else value
    if kind is dict:
        lifted = {key: lift(item) for key, item in value.items()}
        return lifted if any(lifted[key] is not value[key] for key in value) else value
    if kind in (list, tuple):
        row = [lift(item) for item in value]
        if all(new is old for new, old in zip(row, value, strict=True)):
            return value
        return kind(row)
    return value


def _explained(
    value: object,
    error: Exception,
    ref_of: RefOf | None,
    pickle: Pickle | None,
    path: str,
) -> ActiveStoreError:
    """Find the part that cannot travel, with a walk that only a failure pays for."""
    if isinstance(value, _Large):
        value = value.value
    for found, kind, reason in _culprits(value, ref_of, pickle, path, frozenset()):
        return UnsupportedValueError(_type_name(kind), found, reason)
    if isinstance(error, UnsupportedValueError):
        return UnsupportedValueError(error.type_name, path, error.reason)
    if isinstance(error, TooLargeError):
        return error
    return TooLargeError(f"{path}: the depth", VALUE_DEPTH_MAX + 1, VALUE_DEPTH_MAX)


def _culprits(
    value: Any,
    ref_of: RefOf | None,
    pickle: Pickle | None,
    path: str,
    above: frozenset[int],
) -> Iterator[tuple[str, type, str]]:
    kind = type(value)
    if kind in _CONTAINERS:
        if id(value) in above:
            yield path, kind, "it contains itself"
            return
        if len(above) > VALUE_DEPTH_MAX:
            return
        above |= {id(value)}
        if kind is dict:
            for key, item in value.items():
                yield from _culprits(
                    key, ref_of, pickle, f"{path} (key {_key_text(key)})", above
                )
                yield from _culprits(
                    item, ref_of, pickle, f"{path}[{_key_text(key)}]", above
                )
        else:
            for index, item in enumerate(value):
                yield from _culprits(item, ref_of, pickle, f"{path}[{index}]", above)
        return
    try:
        Encoder(ref_of, pickle).pack(value)
    except UnicodeEncodeError:
        yield path, kind, "it holds a lone surrogate, which is no valid text"
    except UnsupportedValueError as error:
        yield path, kind, error.reason
    except (ValueError, TypeError, OverflowError) as error:
        yield path, kind, str(error)[:200]


def _key_text(key: object) -> str:
    text = f'"{key}"' if type(key) is str else repr(key)
    return text.encode(errors="backslashreplace").decode()[:80]


# -- the hook's table ------------------------------------------------------------------

_Encode = Callable[[Encoder, Any], Any]


def _encode_integer(_: Encoder, value: int) -> Any:
    size = value.bit_length() // 8 + 1
    return msgpack.ExtType(INTEGER, value.to_bytes(size, "big", signed=True))


def _encode_array_stand_in(encoder: Encoder, value: Any) -> Any:
    block = encoder.block(value.memoryview)
    if type(value.dtype) is str and value.dtype[0] not in "<>|":
        # A dtype of torch alone, such as bfloat16: it came from a tensor.
        return encoder.extension(TENSOR, [value.dtype, list(value.shape), block])
    return encoder.extension(ARRAY, [value.dtype, list(value.shape), "C", block])


def _encode_opaque(encoder: Encoder, value: Opaque) -> Any:
    pickled = value._pickled  # noqa: SLF001 - of this file
    return encoder.extension(PICKLE, [value.type_name, encoder.block(pickled)])


_ENCODERS: dict[type, _Encode] = {
    tuple: lambda encoder, value: encoder.extension(TUPLE, list(value)),
    set: lambda encoder, value: encoder.extension(SET, list(value)),
    frozenset: lambda encoder, value: encoder.extension(FROZENSET, list(value)),
    int: _encode_integer,
    complex: lambda _, value: msgpack.ExtType(
        COMPLEX, _COMPLEX.pack(value.real, value.imag)
    ),
    Ref: lambda _, value: msgpack.ExtType(
        REF, value.object_id + value.class_name.encode()
    ),
    Opaque: _encode_opaque,
    _Large: lambda encoder, value: encoder.extension(BYTES, encoder.block(value.value)),
}


def _library_encoder(kind: type) -> _Encode | None:
    """Return the encoder for a type of a library; remembered for exact types."""
    top = kind.__module__.partition(".")[0]
    encoder: _Encode | None = None
    if top in ("datetime", "decimal", "uuid", "zoneinfo"):
        from activestore.wire import clocks

        encoder = clocks.encoder_of(kind)
    elif top in ("numpy", "torch", "pandas", "ml_dtypes"):
        from activestore.wire import arrays, tables

        encoder = arrays.encoder_of(kind) or tables.encoder_of(kind)
    if encoder is not None:
        _ENCODERS[kind] = encoder
    return encoder


# -- decoding --------------------------------------------------------------------------


class Decoder:
    """Decodes one value."""

    def __init__(
        self,
        buffers: Sequence[Buffer],
        resolve: Resolve | None,
        unpickle: Unpickle | None,
    ) -> None:
        self._buffers = buffers
        self._resolve = resolve
        self._unpickle = unpickle
        # As the encoder counts: extensions within extensions, the value itself not.
        self._depth = -1
        self._named: set[int] = set()

    def unpack(self, data: Buffer) -> Any:
        """Return the value of encoded bytes."""
        self._depth += 1
        if self._depth > VALUE_DEPTH_MAX:
            raise RemoteProtocolError(f"a value nested deeper than {VALUE_DEPTH_MAX}")
        try:
            return msgpack.unpackb(
                data, ext_hook=self._hook, strict_map_key=False, raw=False,
                max_array_len=VALUE_ELEMENTS_MAX, max_map_len=VALUE_ELEMENTS_MAX,
            )  # fmt: skip
        finally:
            self._depth -= 1

    def block(self, where: Any) -> Buffer:
        """Return a block of bytes: itself, or the buffer with this index."""
        if type(where) is bytes:
            return where
        if type(where) is not int or not 0 <= where < len(self._buffers):
            raise RemoteProtocolError(
                f"a value names buffer {str(where)[:20]}, {len(self._buffers)} came"
            )
        if where in self._named:
            # Each use may be a copy: a few bytes could ask for any amount of memory.
            raise RemoteProtocolError(f"a value names buffer {where} twice")
        self._named.add(where)
        return self._buffers[where]

    def _hook(self, code: int, payload: bytes) -> Any:
        decoder = _DECODERS.get(code)
        if decoder is None:
            raise RemoteProtocolError(f"unknown extension type {code}")
        return decoder(self, payload)

    def ref(self, payload: bytes) -> object:
        """Return what a ref stands for."""
        if len(payload) < REF_ID_BYTES:
            raise RemoteProtocolError(f"a ref of {len(payload)} bytes")
        if self._resolve is not None:
            return self._resolve(payload)
        return Ref(payload[:REF_ID_BYTES], payload[REF_ID_BYTES:].decode())

    def pickle(self, payload: bytes) -> object:
        """Return a pickled value, opaque where nobody may unpickle it."""
        type_name, where = self.unpack(payload)
        if type(type_name) is not str:
            raise RemoteProtocolError("an opaque value without a type name")
        block = self.block(where)
        if self._unpickle is not None:
            return self._unpickle(type_name, bytes(block))
        return Opaque(type_name, block)

    def error(self, payload: bytes) -> ActiveStoreError:
        """Return an error of the store."""
        code, args = self.unpack(payload)
        if type(code) is not str or type(args) is not list:
            raise RemoteProtocolError("a malformed error")
        return error_from_wire(code, tuple(args))


def decode(
    data: Buffer,
    buffers: Sequence[Buffer] = (),
    *,
    resolve: Resolve | None = None,
    unpickle: Unpickle | None = None,
) -> object:
    """Return the value of encoded bytes.

    An array is a view of its buffer: writable where the buffer is.

    Args:
        data: What `encode` returned.
        buffers: The buffers that came beside it.
        resolve: Makes an object of a ref; without it refs become `Ref`.
        unpickle: Makes a value of a pickle; without it pickles become `Opaque`.

    Raises:
        RemoteProtocolError: the bytes are not what `encode` makes.
        UnsupportedValueError: `unpickle` lacks the classes.
    """
    try:
        _check_elements(data, "value")  # Before memory is taken.
        value = Decoder(buffers, resolve, unpickle).unpack(data)
        if len(data) > _SURELY_SHALLOW_BYTES:
            _check_depth(value, "value")
    except TooLargeError as error:
        raise RemoteProtocolError(str(error)) from None
    except ActiveStoreError:
        raise
    except Exception as error:  # noqa: BLE001 - libraries raise what they like for bad content
        raise RemoteProtocolError(
            f"a malformed value: {type(error).__name__}: {str(error)[:100]}"
        ) from None
    return value


def decode_arguments(
    data: Buffer,
    buffers: Sequence[Buffer] = (),
    *,
    resolve: Resolve | None = None,
    unpickle: Unpickle | None = None,
) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of a call; errors as `decode`."""
    if data == _NO_ARGUMENTS:
        return [], {}
    pair = decode(data, buffers, resolve=resolve, unpickle=unpickle)
    if type(pair) is not list or len(pair) != 2:
        raise RemoteProtocolError("arguments are not a pair of list and map")
    args, kwargs = pair
    if type(args) is not list or type(kwargs) is not dict:
        raise RemoteProtocolError("arguments are not a pair of list and map")
    if not all(type(name) is str for name in kwargs):
        raise RemoteProtocolError("a keyword that is not text")
    return args, kwargs


def _clocks(code: int) -> Callable[[Decoder, bytes], Any]:
    def decode_clock(decoder: Decoder, payload: bytes) -> Any:
        from activestore.wire import clocks

        return clocks.DECODERS[code](decoder, payload)

    return decode_clock


def _arrays(code: int) -> Callable[[Decoder, bytes], Any]:
    def decode_array(decoder: Decoder, payload: bytes) -> Any:
        from activestore.wire import arrays

        return arrays.DECODERS[code](decoder, payload)

    return decode_array


def _tables(code: int) -> Callable[[Decoder, bytes], Any]:
    def decode_table(decoder: Decoder, payload: bytes) -> Any:
        from activestore.wire import tables

        return tables.DECODERS[code](decoder, payload)

    return decode_table


def _row_of(decoder: Decoder, payload: bytes) -> list[Any]:
    row = decoder.unpack(payload)
    if type(row) is not list:
        raise RemoteProtocolError("a tuple or set that is not encoded as an array")
    return row


def _large_bytes(decoder: Decoder, payload: bytes) -> bytes:
    return bytes(decoder.block(decoder.unpack(payload)))


_DECODERS: dict[int, Callable[[Decoder, bytes], Any]] = {
    TUPLE: lambda decoder, payload: tuple(_row_of(decoder, payload)),
    SET: lambda decoder, payload: set(_row_of(decoder, payload)),
    FROZENSET: lambda decoder, payload: frozenset(_row_of(decoder, payload)),
    INTEGER: lambda _, payload: int.from_bytes(payload, "big", signed=True),
    COMPLEX: lambda _, payload: complex(*_COMPLEX.unpack(payload)),
    REF: Decoder.ref,
    ERROR: Decoder.error,
    PICKLE: Decoder.pickle,
    BYTES: _large_bytes,
    **{
        code: _clocks(code) for code in (DATE, TIME, DATETIME, TIMEDELTA, DECIMAL, UUID)
    },
    **{code: _arrays(code) for code in (ARRAY, SCALAR, TENSOR)},
    **{code: _tables(code) for code in (FRAME, SERIES)},
}
EXTENSION_CODES = frozenset(_DECODERS)


def library(name: str) -> ModuleType | None:
    """Return an installed library, imported on first need; None where it is missing.

    sys.modules is not asked: it may hold what another thread has half imported, for
    which an import waits.
    """
    if name in _MISSING:
        return None
    try:
        return __import__(name)
    except ImportError:
        _MISSING.add(name)
        return None


def loaded_library(name: str) -> ModuleType | None:
    """Return a library that this process uses already, else None."""
    return library(name) if sys.modules.get(name) is not None else None


_MISSING: set[str] = set()


def __getattr__(name: str) -> Any:
    if name == "Array":
        from activestore.wire.arrays import Array

        return Array
    raise AttributeError(name)
