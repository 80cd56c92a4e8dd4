"""numpy arrays and scalars and torch tensors as values; and Array, where numpy is missing.

    array   [dtype, shape, order, data]     scalar  [dtype, data]
    tensor  [dtype, shape, data]            data: bytes, or the index of a buffer
    dtype   numpy's text ("<f8", ">i4", "<M8[ns]"), or a list of fields for a structure

Rules of this file: a dtype is checked before numpy sees it, and never holds Python
objects; sizes are checked before a view is made.

Source: schemas/protocol.md section 5.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

from activestore.errors import RemoteProtocolError, UnsupportedValueError
from activestore.wire import values
from activestore.wire.messages import Buffer
from activestore.wire.values import Decoder, Encoder

DIMENSIONS_MAX = 32
_DTYPE = re.compile(
    r"[<>|]?(?:\?|b1|[iu][1248]|f[248]|c8|c16|[SUV]\d{1,9}"
    r"|[mM]8(?:\[(?:\d{1,9})?(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?)"
)
_BFLOAT16 = "bfloat16"
_TORCH_DTYPES = frozenset({
    "float64", "float32", "float16", _BFLOAT16, "complex64", "complex128", "int64",
    "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool",
    "float8_e4m3fn", "float8_e5m2",
})  # fmt: skip
_TORCH_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, _BFLOAT16: 2, "complex64": 8,
    "complex128": 16, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
    "uint16": 2, "uint32": 4, "uint64": 8, "bool": 1, "float8_e4m3fn": 1,
    "float8_e5m2": 1,
}  # fmt: skip
_NUMPY_OF_TORCH = {
    "float64": "<f8", "float32": "<f4", "float16": "<f2", "complex64": "<c8",
    "complex128": "<c16", "int64": "<i8", "int32": "<i4", "int16": "<i2", "int8": "|i1",
    "uint8": "|u1", "uint16": "<u2", "uint32": "<u4", "uint64": "<u8", "bool": "|b1",
}  # fmt: skip
# struct's letters for the dtypes that Array can list without numpy.
_LETTERS = {
    "i1": "b", "u1": "B", "b1": "?", "i2": "h", "u2": "H", "i4": "i", "u4": "I",
    "i8": "q", "u8": "Q", "f2": "e", "f4": "f", "f8": "d", "m8": "q", "M8": "q",
}  # fmt: skip


class Array:
    """An array where numpy is not installed: `dtype`, `shape`, `memoryview`, `tolist()`.

    Indexed and iterated by its first dimension: `a[0]` is a number, or an Array of one
    dimension less over the same memory; `a[1:3]` is an Array.

    `dtype` is numpy's text such as "<f8" or "bfloat16"; `memoryview` is the content,
    row by row, as bytes. It can be an argument again.
    """

    __slots__ = ("dtype", "memoryview", "shape")

    def __init__(self, dtype: Any, shape: tuple[int, ...], data: Buffer) -> None:
        self.dtype = dtype
        self.shape = tuple(shape)
        self.memoryview = memoryview(data).cast("B")

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without dimensions")
        return self.shape[0]

    def __getitem__(self, index: int | slice) -> Any:
        size = len(self)
        rows = range(size)[index]  # Raises IndexError and TypeError as a list does.
        step = self.memoryview.nbytes // size if size else 0
        if isinstance(rows, int):
            part = self.memoryview[rows * step : (rows + 1) * step]
            one = Array(self.dtype, self.shape[1:], part)
            return one if one.shape else one.tolist()
        if rows.step == 1:
            block: Any = self.memoryview[rows.start * step : rows.stop * step]
        else:
            block = b"".join(self.memoryview[i * step : (i + 1) * step] for i in rows)
        return Array(self.dtype, (len(rows), *self.shape[1:]), block)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Array)
            and (self.dtype, self.shape) == (other.dtype, other.shape)
            and self.memoryview == other.memoryview
        )

    __hash__ = None  # type: ignore[assignment]  # as numpy's: it may be a view of changing memory

    def __repr__(self) -> str:
        return f"Array(dtype={self.dtype!r}, shape={self.shape})"

    def tolist(self) -> Any:
        """Return nested lists of Python values; a number for an array without dimensions.

        Raises:
            UnsupportedValueError: the dtype has no Python values without numpy.
        """
        flat = self._flat()
        for size in reversed(self.shape[1:]):
            flat = (
                [flat[i : i + size] for i in range(0, len(flat), size)] if size else []
            )
        if self.shape and not math.prod(self.shape):
            return _empty(self.shape)
        return flat if self.shape else flat[0]

    def _flat(self) -> list[Any]:
        dtype = self.dtype
        count = math.prod(self.shape)
        if dtype == _BFLOAT16:
            words = struct.unpack(f"<{count}H", self.memoryview)
            return [struct.unpack("<f", struct.pack("<I", w << 16))[0] for w in words]
        if type(dtype) is str:
            order = ">" if dtype[0] == ">" else "<"
            kind = dtype.lstrip("<>|").partition("[")[0]
            letter = "?" if kind == "?" else _LETTERS.get(kind)
            if letter is not None:
                return list(struct.unpack(f"{order}{count}{letter}", self.memoryview))
            if kind in ("c8", "c16"):
                half = "f" if kind == "c8" else "d"
                pairs = struct.unpack(f"{order}{2 * count}{half}", self.memoryview)
                return [complex(*pairs[i : i + 2]) for i in range(0, 2 * count, 2)]
            if kind[0] in "SU" and count:
                return self._texts(kind, order, count)
        raise UnsupportedValueError(f"array of {dtype}", "tolist", "needs numpy")

    def _texts(self, kind: str, order: str, count: int) -> list[Any]:
        size = self.memoryview.nbytes // count
        cells = [
            bytes(self.memoryview[i * size : (i + 1) * size]) for i in range(count)
        ]
        if kind[0] == "S":
            return [cell.rstrip(b"\x00") for cell in cells]
        coding = "utf-32-be" if order == ">" else "utf-32-le"
        return [cell.decode(coding).rstrip("\x00") for cell in cells]


def _empty(shape: tuple[int, ...]) -> list[Any]:
    if len(shape) == 1 or not shape[0]:
        return []
    return [_empty(shape[1:]) for _ in range(shape[0])]


# -- encoding --------------------------------------------------------------------------


def encoder_of(kind: type) -> Callable[[Encoder, Any], Any] | None:
    """Return the encoder of a numpy or torch type, None for others."""
    top = kind.__module__.partition(".")[0]
    if top == "numpy":
        numpy: Any = values.library("numpy")
        if kind is numpy.ndarray:
            return _encode_array
        if issubclass(kind, numpy.generic):
            return _encode_scalar
    if top == "torch":
        torch: Any = values.library("torch")
        if kind in (torch.Tensor, torch.nn.Parameter):
            return _encode_tensor
    return None


def _dtype_text(dtype: Any) -> Any:
    """Return a dtype as it travels.

    Raises:
        UnsupportedValueError: it holds Python objects.
    """
    if dtype.hasobject:
        raise UnsupportedValueError(
            f"array of {dtype}", "value", "its elements are Python objects; use a list"
        )
    if dtype.names is None:
        if dtype.subdtype is not None or not _DTYPE.fullmatch(dtype.str):
            raise UnsupportedValueError(
                f"array of {dtype}", "value",
                "this dtype is not the same on every machine; convert it with astype()",
            )  # fmt: skip
        return dtype.str
    fields = []
    for name in dtype.names:
        inner, offset = dtype.fields[name][:2]
        shape: list[int] = []
        if inner.subdtype is not None:
            inner, dimensions = inner.subdtype
            shape = list(dimensions)
        fields.append([name, _dtype_text(inner), shape, offset])
    return [fields, dtype.itemsize]


def _encode_array(encoder: Encoder, array: Any) -> Any:
    numpy: Any = values.library("numpy")
    dtype = _dtype_text(array.dtype)
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    flat = array.T if order == "F" else numpy.ascontiguousarray(array)
    content = memoryview(flat.reshape(-1).view(numpy.uint8)) if array.size else b""
    return encoder.extension(
        values.ARRAY, [dtype, list(array.shape), order, encoder.block(content)]
    )


def _encode_scalar(encoder: Encoder, scalar: Any) -> Any:
    return encoder.extension(
        values.SCALAR, [_dtype_text(scalar.dtype), scalar.tobytes()]
    )


def _encode_tensor(encoder: Encoder, tensor: Any) -> Any:
    torch: Any = values.library("torch")
    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout is not torch.strided or name not in _TORCH_DTYPES:
        raise UnsupportedValueError(
            f"torch.Tensor of {tensor.dtype}, {tensor.layout}", "value",
            "only dense tensors of plain numbers travel",
        )  # fmt: skip
    plain = tensor.detach().resolve_conj().resolve_neg().to("cpu").contiguous()
    content: Buffer = b""
    if plain.numel():
        content = memoryview(plain.reshape(-1).view(torch.uint8).numpy())
    return encoder.extension(
        values.TENSOR, [name, list(tensor.shape), encoder.block(content)]
    )


# -- decoding --------------------------------------------------------------------------


def _check_shape(shape: Any) -> tuple[int, ...]:
    if type(shape) is not list or len(shape) > DIMENSIONS_MAX:
        raise RemoteProtocolError("an array's shape must be a list of at most 32 sizes")
    if not all(type(size) is int and 0 <= size < 1 << 48 for size in shape):
        raise RemoteProtocolError("an array's shape must hold sizes of 0 or more")
    return tuple(shape)


def _make_dtype(numpy: Any, text: Any, depth: int = 0) -> Any:
    """Return the numpy dtype of a dtype from the wire."""
    if type(text) is str:
        if not _DTYPE.fullmatch(text):
            raise RemoteProtocolError(f"unknown dtype {text[:40]!r}")
        return numpy.dtype(text)
    if depth > 8 or type(text) is not list or len(text) != 2:
        raise RemoteProtocolError("a malformed structured dtype")
    fields, size = text
    names, formats, offsets = [], [], []
    for name, inner, shape, offset in fields:
        if type(name) is not str or type(offset) is not int:
            raise RemoteProtocolError("a malformed field of a structured dtype")
        names.append(name)
        made = _make_dtype(numpy, inner, depth + 1)
        formats.append((made, _check_shape(shape)) if shape else made)
        offsets.append(offset)
    return numpy.dtype(
        {"names": names, "formats": formats, "offsets": offsets, "itemsize": size}
    )


def _decode_array(decoder: Decoder, payload: bytes) -> Any:
    dtype, shape, order, where = decoder.unpack(payload)
    sizes = _check_shape(shape)
    block = decoder.block(where)
    if order not in ("C", "F"):
        raise RemoteProtocolError(f"unknown array order {str(order)[:10]!r}")
    numpy: Any = values.library("numpy")
    if numpy is None:
        return _stand_in(dtype, sizes, order, block)
    made = _make_dtype(numpy, dtype)
    count = math.prod(sizes)
    if memoryview(block).nbytes != count * made.itemsize:
        raise RemoteProtocolError(
            f"an array of {count} x {made.itemsize} bytes came with "
            f"{memoryview(block).nbytes}"
        )
    if not count:
        return numpy.empty(sizes, made, order=order)
    flat = numpy.frombuffer(block, numpy.uint8).view(made)
    return flat.reshape(sizes, order=order)


def _stand_in(dtype: Any, sizes: tuple[int, ...], order: str, block: Buffer) -> Array:
    if type(dtype) is str and not _DTYPE.fullmatch(dtype):
        raise RemoteProtocolError(f"unknown dtype {dtype[:40]!r}")
    if order == "F" and len(sizes) > 1:
        block = _by_rows(sizes, block)
    return Array(dtype, sizes, block)


def _by_rows(sizes: tuple[int, ...], block: Buffer) -> bytes:
    """Return column-ordered content in row order, in plain Python."""
    view = memoryview(block).cast("B")
    count = math.prod(sizes)
    item = view.nbytes // count if count else 1
    strides, step = [], item
    for size in sizes:
        strides.append(step)
        step *= size
    offsets = [0]
    for size, stride in zip(sizes, strides, strict=True):
        offsets = [base + i * stride for base in offsets for i in range(size)]
    return b"".join(bytes(view[offset : offset + item]) for offset in offsets)


def _decode_scalar(decoder: Decoder, payload: bytes) -> Any:
    dtype, content = decoder.unpack(payload)
    if type(content) is not bytes:
        raise RemoteProtocolError("a scalar without content")
    numpy: Any = values.library("numpy")
    if numpy is None:
        return _stand_in(dtype, (), "C", content).tolist()
    made = _make_dtype(numpy, dtype)
    if made.itemsize != len(content):
        raise RemoteProtocolError("a scalar of the wrong size")
    if not content:
        return numpy.zeros((), made)[()]
    return numpy.frombuffer(content, numpy.uint8).view(made)[0]


def _decode_tensor(decoder: Decoder, payload: bytes) -> Any:
    name, shape, where = decoder.unpack(payload)
    sizes = _check_shape(shape)
    block = decoder.block(where)
    if name not in _TORCH_DTYPES:
        raise RemoteProtocolError(f"unknown tensor dtype {str(name)[:40]!r}")
    seen, expected = memoryview(block).nbytes, math.prod(sizes) * _TORCH_BYTES[name]
    if seen != expected:
        raise RemoteProtocolError(f"a tensor of {expected} bytes came with {seen}")
    torch: Any = values.library("torch")
    if torch is not None:
        if not seen:
            return torch.empty(sizes, dtype=getattr(torch, name))
        # torch has no read-only tensors: memory that is not ours to change is copied.
        view = memoryview(block)
        content = bytearray(view) if view.readonly else view
        return torch.frombuffer(content, dtype=getattr(torch, name)).reshape(sizes)
    plain = _NUMPY_OF_TORCH.get(name)
    numpy: Any = values.library("numpy")
    if numpy is None or plain is None:
        return Array(plain or name, sizes, block)
    return numpy.frombuffer(block, plain).reshape(sizes)


DECODERS: dict[int, Callable[[Decoder, bytes], Any]] = {
    values.ARRAY: _decode_array,
    values.SCALAR: _decode_scalar,
    values.TENSOR: _decode_tensor,
}

values._ENCODERS[Array] = values._encode_array_stand_in  # noqa: SLF001 - its other half
