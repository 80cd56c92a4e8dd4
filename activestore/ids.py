"""The identities that travel: peers, objects, sessions, and the names people give.

Pure values: no clock, no socket.

An object id is 16 bytes: home peer (6) | flags (1) | random (9). Its home is readable
from the id, so that creating an object costs no directory traffic and finding one that
never moved costs no question.

Source: design section 7; reliability.md 2.2.
"""

from __future__ import annotations

import os
from typing import NewType

from activestore.errors import InvalidRequestError

PeerId = NewType("PeerId", bytes)
ObjectId = NewType("ObjectId", bytes)
SessionId = NewType("SessionId", bytes)

PEER_ID_BYTES = 6
OBJECT_ID_BYTES = 16
SESSION_ID_BYTES = 16

# An alias, in characters and in bytes of UTF-8. A key of the store has 511 bytes at most.
ALIAS_CHARS_MAX = 256
ALIAS_BYTES_MAX = 500
# Beside the control characters: they end a line where a listing is read by a program.
_LINE_ENDS = "\u2028\u2029"


def new_peer_id() -> PeerId:
    """Return a random peer id of 6 bytes; a data directory keeps its own for ever."""
    return PeerId(os.urandom(PEER_ID_BYTES))


def new_session_id() -> SessionId:
    """Return a random session id of 16 bytes; one per connected client."""
    return SessionId(os.urandom(SESSION_ID_BYTES))


def new_object_id(home: PeerId) -> ObjectId:
    """Return a fresh id for an object whose home is `home`.

    72 random bits: at 1e9 objects of one home a collision has a chance of about 1e-4,
    and the home refuses an id that it already holds.
    """
    return ObjectId(home + b"\x00" + os.urandom(9))


def home_of(object_id: ObjectId) -> PeerId:
    """Return the peer named in `object_id`."""
    return PeerId(object_id[:PEER_ID_BYTES])


def parse_object_id(text: str) -> ObjectId | None:
    """Return the object id that `text` spells in 32 hex digits, None where it is none."""
    if len(text) != 2 * OBJECT_ID_BYTES:
        return None
    try:
        value = bytes.fromhex(text)
    except ValueError:
        return None
    return (
        ObjectId(value) if len(value) == OBJECT_ID_BYTES else None
    )  # It skips blanks.


def check_alias(alias: str) -> None:
    """Make sure that `alias` can name an object.

    Raises:
        InvalidRequestError: it is empty, too long, not one line of text, begins or ends
            with a blank, or reads like an object id.
    """
    seen = _what_is_wrong(alias)
    if seen:
        raise InvalidRequestError(
            f"{seen}; an alias is 1 to {ALIAS_CHARS_MAX} characters, at most "
            f"{ALIAS_BYTES_MAX} bytes of UTF-8, without control characters, without "
            "blanks around it, and not 32 hex digits",
            "alias",
        )


def _what_is_wrong(alias: object) -> str:
    """Return what keeps a value from being an alias, "" where nothing does."""
    if type(alias) is not str:
        return f"got {type(alias).__name__}, not text"
    if not 1 <= len(alias) <= ALIAS_CHARS_MAX:
        return f"it has {len(alias)} characters"
    try:
        size = len(alias.encode())
    except UnicodeEncodeError:
        return f"{alias!r} holds half a character (a surrogate)"
    if size > ALIAS_BYTES_MAX:
        return f"it has {size} bytes"
    if any(c < " " or "\x7f" <= c <= "\x9f" or c in _LINE_ENDS for c in alias):
        return f"{alias!r} holds a control character"
    if alias != alias.strip():
        return f"{alias!r} begins or ends with a blank"
    if parse_object_id(alias) is not None:
        return f"{alias!r} reads like an object id"
    return ""
