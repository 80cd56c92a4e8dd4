"""Recorded answers on their way to another disk: with a change, or with an object.

    row      [session, sequence, code, body, written_s, buffers, first_unacked, still_open,
              age_s]; older peers leave out the last ones
    packed   some rows, as bytes: an object may have more answers than a value elements

Rules of this file: what comes from another peer is checked here, before it is kept.

Source: reliability.md 3.7; schemas/protocol.md sections 9 and 14.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from activestore.errors import TooLargeError
from activestore.ids import SESSION_ID_BYTES, SessionId
from activestore.storage.engine import ReplyRecord
from activestore.wire import packing
from activestore.wire.limits import VALUE_ELEMENTS_MAX
from activestore.wire.scan import count_elements

# Answers that are packed together: their rows are far from the elements that a value of
# VALUE_ELEMENTS_MAX may have, and ten million of them are not too many packs.
PACKED_COUNT = 1000
# What an older peer does not tell: the last parts of a row.
_ROW_COUNT_MIN = 6
_UNTOLD = (0, (), 0.0)
_SEQUENCE_MAX = 2**64 - 1


def row_of(reply: ReplyRecord) -> tuple[Any, ...]:
    """Return a recorded answer as it is told."""
    return (
        reply.session, reply.sequence, reply.code, reply.body, reply.written_s,
        reply.buffers, reply.first_unacked, reply.still_open, max(0.0, reply.age_s),
    )  # fmt: skip


def reply_of(row: Sequence[Any]) -> ReplyRecord:
    """Return the recorded answer that a row tells.

    Raises:
        ValueError, TypeError: it is malformed.
    """
    told = (*row, *_UNTOLD[max(0, len(row) - _ROW_COUNT_MIN) :])
    session, sequence, code, body, written_s, buffers, first, still_open, age_s = told[
        :9
    ]
    seen = (*request_of((session, sequence)), code, body, written_s, first, age_s)
    expected = (bytes, int, str, bytes, float, int, float)
    if tuple(map(type, seen)) != expected:
        raise ValueError(f"an answer has types {[type(v).__name__ for v in seen]}")
    if not all(type(one) is bytes for one in buffers):
        raise ValueError("what is beside an answer must be bytes")
    return ReplyRecord(
        SessionId(session), sequence, code, body, written_s, tuple(buffers), first,
        tuple(map(int, still_open)), age_s,
    )  # fmt: skip


def request_of(row: Sequence[Any]) -> tuple[SessionId, int]:
    """Return the session and number of a request.

    Raises:
        ValueError: they are malformed.
    """
    session, sequence = row
    if type(session) is not bytes or len(session) != SESSION_ID_BYTES:
        raise ValueError(f"a session id has {SESSION_ID_BYTES} bytes")
    if type(sequence) is not int or not 0 <= sequence <= _SEQUENCE_MAX:
        raise ValueError(f"a request has number {str(sequence)[:20]!r}")
    return SessionId(session), sequence


def told_answers(replies: Sequence[ReplyRecord]) -> dict[str, Any]:
    """Return the parameters of `install` that tell answers.

    Few go as rows, which peers of version 2 know; they refuse an object with many.
    """
    if len(replies) <= PACKED_COUNT:
        lists = [
            [list(p) if type(p) is tuple else p for p in row_of(r)] for r in replies
        ]
        return {"replies": lists}
    return {
        "answers": [
            packing.pack([row_of(one) for one in replies[at : at + PACKED_COUNT]])
            for at in range(0, len(replies), PACKED_COUNT)
        ]
    }


def answers_in(parameters: dict[str, Any]) -> tuple[ReplyRecord, ...]:
    """Return the answers that an `install` tells.

    Raises:
        KeyError, TypeError, ValueError: they are malformed, or there are none.
    """
    if "answers" not in parameters:
        return tuple(map(reply_of, parameters["replies"]))
    found: list[ReplyRecord] = []
    try:
        for pack in parameters["answers"]:
            count_elements(pack, VALUE_ELEMENTS_MAX)
            found += map(reply_of, packing.unpack(pack, use_list=False))
    except (*packing.UNPACK_ERRORS, TooLargeError, RecursionError) as error:
        raise ValueError(f"answers that come with it: {str(error)[:80]}") from None
    return tuple(found)
