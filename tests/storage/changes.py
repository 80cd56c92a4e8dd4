"""Changes and states as tests write them: short, and told apart by a number."""

from __future__ import annotations

import os
from typing import Any

from activestore.core.register import Register
from activestore.ids import ObjectId, SessionId
from activestore.peer.shipping import Copy, apply_copies
from activestore.storage.blobs import view_of
from activestore.storage.engine import ZERO_ID, Change, Engine, ReplyRecord, Row
from activestore.wire.replicas import Point
from activestore.wire.state import FileBuffer, ObjectState, StateDelta

REVISION = b"r" * 16
SESSION = SessionId(b"s" * 16)


def oid(number: int) -> ObjectId:
    return ObjectId(b"home66\x00" + number.to_bytes(9, "big"))


def state(*, graph: bytes = b"", buffers: Any = (), **fields: bytes) -> ObjectState:
    names = ("g",) if graph else ()
    return ObjectState("m.C", REVISION, 0, fields, graph, names, buffers)


def delta(
    *, graph: bytes | None = None, buffers: Any = (), **fields: bytes
) -> StateDelta:
    names = ("g",) if graph else ()
    return StateDelta("m.C", REVISION, 0, fields, (), graph, names, buffers)


def new(number: int, content: ObjectState | None = None, **options: Any) -> Change:
    content = state(value=b"\x01") if content is None else content
    return Change(oid(number), 1, content, is_new=True, **options)


def changed(number: int, version: int, content: StateDelta, **options: Any) -> Change:
    return Change(oid(number), version, None, content, **options)


def deleted(number: int) -> Change:
    return Change(oid(number), version=2, is_delete=True)


def content_of(
    engine: Engine, number: int
) -> tuple[dict[str, bytes], bytes, list[bytes]]:
    found = engine.load(oid(number))
    assert found is not None
    buffers = []
    for buffer in found[1].buffers:
        buffers.append(bytes(view_of(buffer)))
        if isinstance(buffer, FileBuffer):
            os.close(buffer.fd)
    return dict(found[1].fields), found[1].graph, buffers


def reply(sequence: int, body: bytes = b"\xc0") -> ReplyRecord:
    return ReplyRecord(SESSION, sequence, "", body, 1000.0)


def rows_only(*rows: Row) -> Change:
    return Change(ZERO_ID, rows=rows)


def place(number: int, value: bytes | None = b"elsewhere") -> Row:
    return Row("place", oid(number), value)


def apply_copy(
    engine: Engine,
    object_id: ObjectId,
    register: Register,
    base: Point | None,
    change: Change | None,
    is_delete: bool,
) -> str:
    """Write one step alone; return why it was not done, "" where it was."""
    copy = Copy(object_id, register, base, change, is_delete)
    ((problem, _text),) = apply_copies(engine, [copy])
    return problem
