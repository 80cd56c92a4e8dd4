"""Answers that are kept with an object: which one tells of a request.

Rules of this file: it reads and never writes.

Source: reliability.md 3.7.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from activestore.errors import InvalidRequestError
from activestore.ids import ObjectId, SessionId
from activestore.storage.engine import ReplyRecord
from activestore.storage.records import decode_reply, reply_key


def telling_reply(
    transaction: Any,
    tables: Mapping[str, Any],
    object_id: ObjectId,
    session: SessionId,
    sequence: int,
) -> ReplyRecord | None:
    """Return the answer to a request, or to a later one that tells that it is over.

    Raises:
        CorruptRecordError: a record that tells it is damaged.
    """
    cursor = transaction.cursor(db=tables["replies"])
    if not cursor.set_range(reply_key(object_id, session, sequence)):
        return None
    for key, value in cursor:
        if not bytes(key).startswith(object_id + session):
            return None
        record = decode_reply(key, value)
        if record.sequence == sequence or record.is_over(sequence):
            return record
    return None


def too_late(sequence: int, later: int) -> InvalidRequestError:
    """Return the refusal of a request that is over, as a later one of its client told."""
    return InvalidRequestError(
        f"request {sequence} came after its client had the answer, as its request {later} "
        "told; it was not run again",
        "reply",
    )
