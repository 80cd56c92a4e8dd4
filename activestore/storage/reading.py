"""Reading what the tables hold: one object, a list of them, replies, code.

Each function works inside a read transaction that the engine begins and ends; `tables`
are its handles by name.

Rules of this file: it reads and never writes; what is damaged is an error that names the
object, except in a list, where it is marked and the others are listed all the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from activestore.errors import CorruptRecordError
from activestore.ids import OBJECT_ID_BYTES, ObjectId, SessionId
from activestore.storage.batch import aliases_of, keys_of
from activestore.storage.blobs import view_of
from activestore.storage.engine import ClassRecord, Durability, Head, ReplyRecord
from activestore.storage.records import (
    CHUNK_BYTES,
    Document,
    Part,
    chunk_key,
    decode_class,
    decode_document,
    decode_reply,
    head_of,
    unseal,
)
from activestore.storage.replies import telling_reply, too_late
from activestore.wire.state import AnyBuffer, FileBuffer, ObjectState
from activestore.wire.values import encode_error

# What LMDB takes as a key, in bytes; what is longer is in no table.
KEY_BYTES_MAX = 511

Tables = Mapping[str, Any]
OpenFile = Callable[[bytes, int, bytes], AnyBuffer]


def as_key(text: str) -> bytes | None:
    """Return the key that stands for a name, None where no table can hold it."""
    try:
        key = text.encode()
    except UnicodeEncodeError:  # Half a character, as file names may have.
        return None
    return key if 0 < len(key) <= KEY_BYTES_MAX else None


def document_of(
    transaction: Any, tables: Tables, object_id: ObjectId
) -> Document | None:
    """Return the head record of an object, None where it does not exist."""
    value = transaction.get(object_id, db=tables["heads"])
    return None if value is None else decode_document(value, object_id)


def load(
    transaction: Any, tables: Tables, object_id: ObjectId, open_file: OpenFile
) -> tuple[Head, ObjectState] | None:
    """Return the state of an object; large buffers as `open_file` gives them.

    Raises:
        CorruptRecordError: a checksum fails.
    """
    document = document_of(transaction, tables, object_id)
    if document is None:
        return None
    reader = _Parts(transaction, tables, object_id, open_file)
    opened: list[FileBuffer] = []
    try:
        fields = {name: reader.small(p) for name, p in document.fields.items()}
        graph = reader.small(document.graph)
        buffers: list[AnyBuffer] = []
        for part in document.buffers:
            buffer = reader.buffer(part)
            if isinstance(buffer, FileBuffer):
                opened.append(buffer)
            buffers.append(buffer)
    except BaseException:
        for buffer in opened:
            os.close(buffer.fd)
        raise
    state = ObjectState(
        document.class_name, document.revision, document.class_version, fields, graph,
        document.graph_fields, buffers,
    )  # fmt: skip
    return head_of(object_id, document), state


class _Parts:
    """Reads the parts of one object."""

    def __init__(
        self, transaction: Any, tables: Tables, object_id: bytes, open_file: OpenFile
    ) -> None:
        self._transaction = transaction
        self._table = tables["parts"]
        self._object_id = object_id
        self._open_file = open_file

    def buffer(self, part: Part) -> AnyBuffer:
        if isinstance(part, bytes):
            return part
        size, where = part
        if isinstance(where, bytes):
            return self._open_file(where, size, self._object_id)
        chunks = []
        for chunk in range(-(-size // CHUNK_BYTES)):
            key = chunk_key(self._object_id, where, chunk)
            value = self._transaction.get(key, db=self._table)
            if value is None:
                raise CorruptRecordError(
                    self._object_id, f"part {where}", f"chunk {chunk} is missing"
                )
            place = f"part {where} chunk {chunk}"
            chunks.append(unseal(value, self._object_id, place))
        return b"".join(chunks)

    def small(self, part: Part) -> bytes:
        buffer = self.buffer(part)
        if isinstance(buffer, FileBuffer):
            try:
                return bytes(view_of(buffer))
            finally:
                os.close(buffer.fd)
        return bytes(view_of(buffer))


# -- listings --------------------------------------------------------------------------


def heads(
    transaction: Any,
    tables: Tables,
    after: ObjectId | None,
    alias_prefix: str,
    limit: int,
) -> list[Head]:
    """Return up to `limit` heads after `after`: in id order, or by alias."""
    if alias_prefix:
        ids = _ids_by_alias(transaction, tables, after, alias_prefix)
    else:
        ids = _ids(transaction, tables, after)
    found = []
    for object_id in ids:
        value = transaction.get(object_id, db=tables["heads"])
        if value is None:
            continue
        try:
            found.append(head_of(object_id, decode_document(value, object_id)))
        except CorruptRecordError as error:
            names = aliases_of(transaction, tables, object_id)
            found.append(damaged_head(object_id, names[0] if names else "", error))
        if len(found) >= limit:
            break
    return found


def names(
    transaction: Any, tables: Tables, after: str, limit: int
) -> list[tuple[str, ObjectId, float]]:
    """Return up to `limit` aliases behind `after`, with object and time of creation."""
    cursor = transaction.cursor(db=tables["aliases"])
    found: list[tuple[str, ObjectId, float]] = []
    if not cursor.set_range(after.encode() + b"\x00" if after else b"\x00"):
        return found
    for key, value in cursor:
        object_id = ObjectId(bytes(value))
        try:
            document = document_of(transaction, tables, object_id)
        except CorruptRecordError:
            continue
        if document is not None:
            found.append((bytes(key).decode(), object_id, document.created_s))
        if len(found) >= limit:
            break
    return found


def damaged_head(object_id: ObjectId, alias: str, error: CorruptRecordError) -> Head:
    """Return what can be said of an object whose head cannot be read."""
    return Head(
        object_id, "", b"", 0, 0, 0, alias, Durability.COMMIT, 0, 0.0, 0.0,
        damage=f"{error.where}: {error.reason}",
    )  # fmt: skip


def _ids(
    transaction: Any, tables: Tables, after: ObjectId | None
) -> Iterator[ObjectId]:
    cursor = transaction.cursor(db=tables["heads"])
    if not cursor.set_range(after or b"\x00"):
        return
    for key in cursor.iternext(values=False):
        if key != after:
            yield ObjectId(bytes(key))


def _ids_by_alias(
    transaction: Any, tables: Tables, after: ObjectId | None, alias_prefix: str
) -> Iterator[ObjectId]:
    prefix = as_key(alias_prefix)
    if prefix is None:
        return
    start = prefix
    if after is not None:
        alias = _alias_of(transaction, tables, after)
        start = max(start, alias.encode() + b"\x00")
    cursor = transaction.cursor(db=tables["aliases"])
    if not cursor.set_range(start):
        return
    for key, value in cursor:
        if not bytes(key).startswith(prefix):
            return
        yield ObjectId(bytes(value))


def _alias_of(transaction: Any, tables: Tables, object_id: ObjectId) -> str:
    try:
        document = document_of(transaction, tables, object_id)
    except CorruptRecordError:
        return next(iter(aliases_of(transaction, tables, object_id)), "")
    return "" if document is None else document.alias


def foreign_ids(
    transaction: Any, tables: Tables, home: bytes, after: bytes, limit: int
) -> list[ObjectId]:
    """Return up to `limit` ids after `after` of objects with another home than `home`."""
    cursor = transaction.cursor(db=tables["heads"])
    found: list[ObjectId] = []
    last = b"\xff" * OBJECT_ID_BYTES
    for start, end in ((b"\x00", home), (home + last[len(home) :], last + b"\xff")):
        if after >= end or not cursor.set_range(max(start, after)):
            continue
        for key in cursor.iternext(values=False):
            if key >= end:
                break
            if key != after and not key.startswith(home):
                found.append(ObjectId(bytes(key)))
                if len(found) >= limit:
                    return found
    return found


def reply(
    transaction: Any,
    tables: Tables,
    object_id: ObjectId,
    session: SessionId,
    sequence: int,
) -> ReplyRecord | None:
    """Return the answer to a request, or the refusal of one that is over.

    Raises:
        CorruptRecordError: a record that tells it is damaged.
    """
    found = telling_reply(transaction, tables, object_id, session, sequence)
    if found is None or found.sequence == sequence:
        return found
    error = too_late(sequence, found.sequence)
    return ReplyRecord(session, sequence, error.code, encode_error(error), 0.0)


def replies_of(
    transaction: Any, tables: Tables, object_id: ObjectId, ran_s: float
) -> list[ReplyRecord]:
    """Return every reply that is kept of an object, with its age.

    Raises:
        CorruptRecordError: one is damaged.
    """
    table = tables["replies"]
    return [
        decode_reply(key, transaction.get(key, db=table), ran_s)
        for key in keys_of(transaction, table, object_id)
    ]


# -- classes ---------------------------------------------------------------------------


def classes(
    transaction: Any, tables: Tables
) -> tuple[list[ClassRecord], dict[str, CorruptRecordError]]:
    """Return the latest revision of every class, and by name what is wrong with one."""
    found, damaged = [], {}
    for name, revision in transaction.cursor(db=tables["latest"]):
        key = bytes(name) + b"\x00" + bytes(revision)
        try:
            value = transaction.get(key, db=tables["classes"])
            if value is None:
                raise CorruptRecordError(b"", "", "it is missing")
            found.append(decode_class(value))
        except CorruptRecordError as error:
            text = bytes(name).decode(errors="replace")
            reason = f"{error.reason}; publish it again"
            damaged[text] = CorruptRecordError(b"", f"class {text}", reason)
    return found, damaged
