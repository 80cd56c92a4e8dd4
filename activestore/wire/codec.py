"""Frames to messages and back.

A ZeroMQ message is one *record frame*, then the buffer frames. The record frame is a
row of records, each `u32le header size | u32le body size | header | body`. Several
small messages share a frame, so that a busy link pays the transport once for many
calls. Only a lone record may have buffers; its header's `extra["buffers"]` lists the
size of each, and a buffer longer than FRAME_BYTES_MAX is cut into several frames.

Rules of this file: headers are decoded here, under HEADER_BYTES_MAX, bodies never;
whatever the bytes, the outcome is messages or RemoteProtocolError.

Source: schemas/protocol.md section 3.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgpack

from activestore.errors import RemoteProtocolError, TooLargeError
from activestore.wire.limits import (
    BODY_BYTES_MAX,
    FRAME_BYTES_MAX,
    HEADER_BYTES_MAX,
    RECORDS_PER_FRAME_MAX,
)
from activestore.wire.messages import (
    HEADERS,
    KIND_OF,
    Buffer,
    Message,
    PartedBuffer,
    bytes_count,
)

# Makes one buffer of several frames and their size together.
Join = Callable[[Sequence[Buffer], int], Any]

_SIZES = struct.Struct("<II")
_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def _is_u64(value: object) -> bool:
    return type(value) is int and value >= 0


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "u64": _is_u64,
    "id16": lambda value: type(value) is bytes and len(value) == 16,
    "id6": lambda value: type(value) is bytes and len(value) == 6,
    "bytes": lambda value: type(value) is bytes,
    "text": lambda value: type(value) is str,
    "bool": lambda value: type(value) is bool,
    "texts": lambda value: type(value) is list and all(type(v) is str for v in value),
    "u64s": lambda value: type(value) is list and all(map(_is_u64, value)),
    "limits": lambda value: type(value) is dict and all(map(_is_u64, value.values())),
    "extra": lambda value: value is None or type(value) is dict,
}
_WORDS = {
    "u64": "an unsigned integer",
    "id16": "16 bytes",
    "id6": "6 bytes",
    "text": "text",
    "texts": "a list of texts",
    "u64s": "a list of unsigned integers",
    "limits": "a map of text to unsigned integers",
    "extra": "a map or nil",
}


class _Kind:
    """What the decoder needs to know of one message class."""

    __slots__ = (
        "checks",
        "cls",
        "defaults",
        "id_positions",
        "required",
        "size",
        "trusted",
        "u64",
    )

    def __init__(self, cls: type[Message], types: tuple[str, ...]) -> None:
        self.cls = cls
        self.size = len(types)
        self.required = self.size - 1  # `extra` alone has a default in version 1.
        self.checks = tuple((_CHECKS[name], name) for name in types)
        # The type tuples that passed the full check and hold only scalars: for those
        # the sizes of ids and the signs of numbers are all that is left to look at.
        self.trusted: set[tuple[type, ...]] = set()
        self.id_positions = tuple(
            (i, int(name[2:]))
            for i, name in enumerate(types)
            if name in ("id16", "id6")
        )
        self.u64 = tuple(i for i, name in enumerate(types) if name == "u64")
        self.defaults = (None,)


_KINDS = {kind: _Kind(cls, types) for cls, (kind, types) in HEADERS.items()}
_SCALARS = {int, str, bytes, bool, type(None), dict}


def encode(message: Message) -> bytes:
    """Return the record of `message`, without its buffers.

    Raises:
        TooLargeError: the header or the body is over its limit.
    """
    header = _pack((KIND_OF[type(message)], *message[:-2]))
    body = message[-2]
    if len(header) > HEADER_BYTES_MAX:
        raise TooLargeError("message header", len(header), HEADER_BYTES_MAX)
    if len(body) > BODY_BYTES_MAX:
        raise TooLargeError("inline part of the message", len(body), BODY_BYTES_MAX)
    return b"".join((_SIZES.pack(len(header), len(body)), header, body))


def encode_frames(message: Message) -> list[Buffer]:
    """Return the frames of one message: the record, then its buffers, cut to frame size."""
    buffers = message[-1]
    if not buffers:
        return [encode(message)]
    sizes = [bytes_count(buffer) for buffer in buffers]
    extra = dict(message.extra or ())
    extra["buffers"] = sizes
    frames: list[Buffer] = [encode(message._replace(extra=extra))]
    for buffer in buffers:
        frames.extend(cut(buffer))
    return frames


def cut(buffer: Buffer | PartedBuffer) -> Iterable[Buffer]:
    """Cut one buffer into frames of at most FRAME_BYTES_MAX, without a copy."""
    if isinstance(buffer, PartedBuffer):
        yield from buffer.parts
        return
    view = memoryview(buffer).cast("B")
    for start in range(0, view.nbytes, FRAME_BYTES_MAX):
        yield view[start : start + FRAME_BYTES_MAX]


def decode_frame(frame: Buffer) -> list[Message]:
    """Return the messages of one record frame, in order, without buffers.

    Bodies are copied out of the frame as bytes.

    Raises:
        RemoteProtocolError: whatever is wrong with the bytes.
    """
    data = bytes(frame) if type(frame) is not bytes else frame
    messages: list[Message] = []
    position, end = 0, len(data)
    if not end:
        raise RemoteProtocolError("empty record frame")
    while position < end:
        if end - position < 8:
            raise RemoteProtocolError(
                f"{end - position} bytes left where a record begins"
            )
        header_bytes, body_bytes = _SIZES.unpack_from(data, position)
        if header_bytes > HEADER_BYTES_MAX:
            raise RemoteProtocolError(
                f"header of {header_bytes} bytes, over {HEADER_BYTES_MAX}"
            )
        body_start = position + 8 + header_bytes
        body_end = body_start + body_bytes
        if body_end > end:
            raise RemoteProtocolError(
                f"record of {body_end - position} bytes is cut short"
            )
        messages.append(
            _decode_header(data[position + 8 : body_start], data[body_start:body_end])
        )
        position = body_end
        if len(messages) > RECORDS_PER_FRAME_MAX:
            raise RemoteProtocolError(
                f"more than {RECORDS_PER_FRAME_MAX} records in a frame"
            )
    return messages


def joined(parts: Sequence[Buffer], nbytes: int) -> Buffer:
    """Return the parts of a buffer as one, a copy: the `join` of who decodes values."""
    del nbytes
    return b"".join(parts)


def decode_frames(frames: Sequence[Buffer], join: Join = PartedBuffer) -> list[Message]:
    """Return the messages of one ZeroMQ message: a record frame, then buffer frames.

    A buffer that came in one frame is handed on as that frame, without a copy.

    Args:
        frames: As they came.
        join: Makes one buffer of several frames; without it they stay parted.

    Raises:
        RemoteProtocolError: whatever is wrong with the frames.
    """
    if not frames:
        raise RemoteProtocolError("a message without frames")
    messages = decode_frame(frames[0])
    if len(frames) == 1:
        extra = messages[0].extra if len(messages) == 1 else None
        listed = extra.get("buffers") if extra else None
        if not listed:
            return messages
        if type(listed) is not list or any(listed):
            raise RemoteProtocolError("the buffers that the header lists did not come")
        # Empty ones need no frame: the array of a state may have no elements.
        if not all(map(_is_u64, listed)):
            raise RemoteProtocolError("the sizes of buffers are no numbers")
        return [messages[0]._replace(buffers=_buffers_of((), listed, join))]
    if len(messages) != 1:
        raise RemoteProtocolError("buffers need a record frame of exactly one record")
    message = messages[0]
    sizes = (message.extra or {}).get("buffers")
    if type(sizes) is not list or not all(map(_is_u64, sizes)):
        raise RemoteProtocolError("buffer frames without a list of sizes in the header")
    return [message._replace(buffers=_buffers_of(frames[1:], sizes, join))]


def _buffers_of(
    frames: Sequence[Buffer], sizes: Sequence[int], join: Join
) -> list[Buffer]:
    """Put frames together to buffers of the given sizes."""
    buffers: list[Buffer] = []
    rest = iter(frames)
    for size in sizes:
        count = max(-(-size // FRAME_BYTES_MAX), 0)
        parts = [part for _, part in zip(range(count), rest, strict=False)]
        seen = [memoryview(part).nbytes for part in parts]
        if sum(seen) != size or any(one != FRAME_BYTES_MAX for one in seen[:-1]):
            raise RemoteProtocolError(
                f"a buffer of {size} bytes came with {sum(seen)} bytes in {len(seen)} "
                f"frames, expected {count} of {FRAME_BYTES_MAX}, the last one shorter"
            )
        buffers.append(parts[0] if count == 1 else join(parts, size))
    if next(rest, None) is not None:
        raise RemoteProtocolError("more buffer frames than the header lists")
    return buffers


def _decode_header(header: bytes, body: bytes) -> Message:  # noqa: C901, PLR0912 - one branch per kind
    try:
        fields = msgpack.unpackb(header, use_list=True, raw=False)
    except Exception as error:  # noqa: BLE001 - msgpack raises ValueError, RecursionError, its own
        raise RemoteProtocolError(
            f"header is not msgpack: {type(error).__name__}"
        ) from None
    if type(fields) is not list or not fields:
        raise RemoteProtocolError("header is not an array")
    kind = _KINDS.get(fields[0]) if type(fields[0]) is int else None
    if kind is None:
        raise RemoteProtocolError(f"unknown message kind {str(fields[0])[:40]!r}")
    del fields[0]
    count = len(fields)
    if count != kind.size:
        if count < kind.required:
            raise RemoteProtocolError(
                f"{kind.cls.__name__} has {count} fields, needs {kind.required}"
            )
        fields = fields[: kind.size] if count > kind.size else [*fields, None]
    types = tuple(map(type, fields))
    if types in kind.trusted:
        for i in kind.u64:
            if fields[i] < 0:
                _fail(kind, i, fields[i])
        for i, size in kind.id_positions:
            if len(fields[i]) != size:
                _fail(kind, i, fields[i])
    else:
        for i, (is_valid, _) in enumerate(kind.checks):
            if not is_valid(fields[i]):
                _fail(kind, i, fields[i])
        if _SCALARS.issuperset(types) and "limits" not in (
            name for _, name in kind.checks
        ):
            kind.trusted.add(types)
    make: Any = kind.cls
    message: Message = make(*fields, body, ())
    return message


def _fail(kind: _Kind, position: int, seen: object) -> None:
    name = kind.checks[position][1]
    field = kind.cls._fields[position]
    raise RemoteProtocolError(
        f"{kind.cls.__name__}.{field} must be {_WORDS.get(name, name)}, got {str(seen)[:40]!r}"
    )
