"""What goes with time: old replies, files that nothing uses, counts that went wrong.

Rules of this file: what to do is found in a read transaction, and done in a short write
transaction after it; both belong to the engine's writing thread.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from activestore.errors import CorruptRecordError
from activestore.ids import OBJECT_ID_BYTES
from activestore.storage.engine import Row
from activestore.storage.facts import has_row, put_rows, row_of
from activestore.storage.records import decode_document, decode_reply, encode_reply
from activestore.wire import packing

Tables = Mapping[str, Any]

# The row that tells for how long peers have run on this disk, and its value.
RAN = ("cluster", b"ran")
_RAN = struct.Struct(">d")


def delete(transaction: Any, table: Any, keys: Iterable[bytes]) -> None:
    """Delete keys of a table."""
    for key in keys:
        transaction.delete(key, db=table)


def put(transaction: Any, table: Any, rows: Mapping[bytes, bytes]) -> None:
    """Put rows into a table."""
    for key, value in rows.items():
        transaction.put(key, value, db=table)


def ran_s(transaction: Any, tables: Tables) -> float:
    """Return for how long peers have run on this disk, as far as it was counted."""
    try:
        value = row_of(transaction, tables["facts"], *RAN)
    except CorruptRecordError:
        return 0.0  # Replies from before are taken for new ones.
    return 0.0 if value is None else _RAN.unpack(value)[0]


def put_ran_s(transaction: Any, tables: Tables, counted_s: float) -> None:
    """Keep for how long peers have run on this disk."""
    put_rows(transaction, tables["facts"], [Row(*RAN, _RAN.pack(counted_s))])


def has_replies(transaction: Any, tables: Tables) -> bool:
    """Return whether there is any reply."""
    return bool(transaction.cursor(db=tables["replies"]).set_range(b"\x00"))


def old_replies(
    transaction: Any, tables: Tables, after: bytes, counted_s: float, kept_s: float,
    limit: int,
) -> tuple[list[bytes], dict[bytes, bytes], bytes]:  # fmt: skip
    """Return the old ones of the next `limit` replies, and where to go on: b"" anew.

    Between them: those that came later than was counted, as replies that came now: the
    count was damaged and began anew, or an older program wrote them.

    A damaged one is old, but where others keep the object: it is had from them again.
    """
    cursor = transaction.cursor(db=tables["replies"])
    old: list[bytes] = []
    ahead: dict[bytes, bytes] = {}
    if not cursor.set_range(after or b"\x00"):
        return old, ahead, b""
    for seen, (key, value) in enumerate(cursor):
        if seen >= limit:
            return old, ahead, bytes(key)
        try:
            reply = decode_reply(bytes(key), value, counted_s)
            is_old = reply.age_s > kept_s
            if reply.age_s < 0:
                young = replace(reply, age_s=0.0)
                ahead[bytes(key)] = encode_reply(young, counted_s)
        except CorruptRecordError:
            object_id = bytes(key[:OBJECT_ID_BYTES])
            facts = tables["facts"]
            is_old = not has_row(transaction, facts, "register", object_id)
        if is_old:
            old.append(bytes(key))
    return old, ahead, b""


def sum_files(transaction: Any, tables: Tables) -> tuple[int, int]:
    """Return the bytes of all files that records name, and of those nothing uses."""
    total = dead = 0
    for _, value in transaction.cursor(db=tables["blobs"]):
        references, size, _since = packing.unpack(value)
        total += size
        dead += size if references <= 0 else 0
    return total, dead


def unreferenced(transaction: Any, tables: Tables, before_s: float) -> dict[bytes, int]:
    """Return address and size of files that nothing has used since a wall-clock time."""
    gone = {}
    for digest, value in transaction.cursor(db=tables["blobs"]):
        references, size, since_s = packing.unpack(value)
        if references <= 0 and since_s <= before_s:
            gone[bytes(digest)] = int(size)
    return gone


def wrong_counts(transaction: Any, tables: Tables, now_s: float) -> dict[bytes, bytes]:
    """Return the rows of files whose count of references is not what all heads say.

    None at all while another head is damaged: what it uses must not go.
    """
    counts: dict[bytes, int] = {}
    for object_id, value in transaction.cursor(db=tables["heads"]):
        try:
            document = decode_document(value, bytes(object_id))
        except CorruptRecordError:
            return {}
        for part in document.parts():
            if not isinstance(part, bytes) and isinstance(part[1], bytes):
                counts[part[1]] = counts.get(part[1], 0) + 1
    wrong = {}
    for digest, value in transaction.cursor(db=tables["blobs"]):
        references, size, _since = packing.unpack(value)
        counted = counts.get(bytes(digest), 0)
        if counted != references:
            wrong[bytes(digest)] = packing.pack([counted, size, now_s])
    return wrong
