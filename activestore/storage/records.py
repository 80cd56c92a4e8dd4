"""What lies on disk for one object: a head record, its parts, its replies; and checksums.

A head names every part of the state: an encoded field, the graph, a buffer of the
graph. A small part is inline in the head, a larger one lies in chunks of the `parts`
table, the largest in a content-addressed file.

    part on disk:  bytes | [size, number]  (chunks) | [size, digest]  (file)
    value on disk: content | XXH3-64 of it

Rules of this file: bytes only; a wrong checksum is an error that says where, never
data.

Source: design section 6; reliability.md 4.2.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias, Union

import xxhash

from activestore.errors import CorruptRecordError
from activestore.ids import ObjectId
from activestore.storage.engine import (
    EPOCH_FIRST,
    ClassRecord,
    Durability,
    Head,
    ReplyRecord,
)
from activestore.storage.room import RECORD_BYTES
from activestore.wire import packing

FORMAT = 1

# A part up to this size is inline, while the inline parts of the head sum up to twice
# it.
INLINE_BYTES_MAX = 4096
# Tiny parts are inline whatever the sum: a chunk of its own would cost more.
INLINE_BYTES_ALWAYS = 256
# Up to this size a part lies in chunks, above it in a file: large values fragment LMDB.
CHUNKED_BYTES_MAX = 1024 * 1024
CHUNK_BYTES = 256 * 1024

CHECKSUM_BYTES = 8
DIGEST_BYTES = 32

_CHUNK_KEY = struct.Struct(">16sIH")
_REPLY_KEY = struct.Struct(">16s16sQ")
_pack = packing.pack
_digest = xxhash.xxh3_64_digest

# bytes inline, (size, number) in chunks, (size, digest) in a file.
Part: TypeAlias = Union[bytes, "tuple[int, int]", "tuple[int, bytes]"]


class Document(NamedTuple):
    """A head record, decoded: the head's facts and where each part lies."""

    class_name: str
    revision: bytes
    class_version: int
    epoch: int  # 0 in what was stored before objects could move
    version: int
    alias: str
    durability: int
    created_s: float
    changed_s: float
    next_part: int
    fields: dict[str, Part]
    graph: Part
    graph_fields: tuple[str, ...]
    buffers: tuple[Part, ...]

    def parts(self) -> Iterator[Part]:
        """Yield every part."""
        yield from self.fields.values()
        yield self.graph
        yield from self.buffers


def part_bytes(part: Part) -> int:
    """Return the size of a part's content."""
    return len(part) if isinstance(part, bytes) else part[0]


def seal(content: bytes) -> bytes:
    """Return content with its checksum behind it."""
    return content + _digest(content)


def unseal(value: bytes | memoryview, object_id: bytes, where: str) -> bytes:
    """Return the content of a sealed value.

    Raises:
        CorruptRecordError: the checksum does not fit.
    """
    content = bytes(value[:-CHECKSUM_BYTES])
    if _digest(content) != bytes(value[-CHECKSUM_BYTES:]):
        raise CorruptRecordError(object_id, where, "its checksum does not fit")
    return content


def encode_document(document: Document) -> bytes:
    """Return a head record as it is stored."""
    return seal(_pack((FORMAT, *document)))


def decode_document(value: bytes | memoryview, object_id: bytes) -> Document:
    """Return the head record of a stored value.

    Raises:
        CorruptRecordError: the checksum does not fit, or it is of an unknown format.
    """
    content = unseal(value, object_id, "head")
    row: list[Any] = packing.unpack(content, use_list=False)
    if row[0] != FORMAT:
        raise CorruptRecordError(
            object_id, "head", f"has format {row[0]}, not {FORMAT}"
        )
    return Document(*row[1:15])


def head_of(object_id: ObjectId, document: Document) -> Head:
    """Return what is told of an object without its fields' bytes."""
    return Head(
        object_id, document.class_name, document.revision, document.class_version,
        document.epoch or EPOCH_FIRST, document.version, document.alias,
        Durability(document.durability), sum(map(part_bytes, document.parts())),
        document.created_s, document.changed_s,
        {name: part_bytes(part) for name, part in document.fields.items()},
        document.graph_fields,
    )  # fmt: skip


def chunk_key(object_id: bytes, number: int, chunk: int) -> bytes:
    """Return the key of one chunk of a part."""
    return _CHUNK_KEY.pack(object_id, number, chunk)


def reply_key(object_id: bytes, session: bytes, sequence: int) -> bytes:
    """Return the key of one recorded reply."""
    return _REPLY_KEY.pack(object_id, session, sequence)


def reply_bytes(reply: ReplyRecord) -> int:
    """Return about how much room a reply takes."""
    return len(reply.body) + sum(map(len, reply.buffers)) + RECORD_BYTES


def encode_reply(reply: ReplyRecord, ran_s: float) -> bytes:
    """Return a reply as it is stored; its key holds session and sequence.

    `ran_s`: for how long peers have run on the disk. What is kept is when it came here,
    by that.
    """
    came_s = ran_s - reply.age_s if reply.age_s > 0 else ran_s
    return seal(_pack((
        reply.code, reply.body, reply.written_s, reply.buffers, reply.first_unacked,
        reply.still_open, came_s,
    )))  # fmt: skip


def decode_reply(key: bytes, value: bytes, ran_s: float = 0.0) -> ReplyRecord:
    """Return the reply of a stored key and value.

    Its age is below zero where it came later than `ran_s`, as one that an older program
    has written, which does not tell when it came.

    Raises:
        CorruptRecordError: the checksum does not fit.
    """
    object_id, session, sequence = _REPLY_KEY.unpack(key)
    code, body, written_s, *more = packing.unpack(
        unseal(value, object_id, f"reply {sequence}")
    )
    buffers = tuple(more[0]) if more else ()
    first_unacked = more[1] if len(more) > 1 else 0
    still_open = tuple(more[2]) if len(more) > 2 else ()
    came_s = more[3] if len(more) > 3 else math.inf
    return ReplyRecord(
        session, sequence, code, body, written_s, buffers, first_unacked, still_open,
        ran_s - came_s,
    )  # fmt: skip


def encode_class(record: ClassRecord) -> bytes:
    """Return a class record as it is stored."""
    return seal(
        _pack((
            record.class_name, record.revision, record.package, record.interface,
            record.published_s,
        ))
    )  # fmt: skip


def decode_class(value: bytes) -> ClassRecord:
    """Return the class record of a stored value.

    Raises:
        CorruptRecordError: the checksum does not fit.
    """
    return ClassRecord(*packing.unpack(unseal(value, b"", "class record")))
