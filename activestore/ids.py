"""The identities that travel: peers, objects, sessions. Pure values, no clock, no socket.

An object id is 16 bytes: home peer (6) | flags (1) | random (9). Its home is readable
from the id, so that creating an object costs no directory traffic and finding one that
never moved costs no question.

Source: design section 7; reliability.md 2.2.
"""

from __future__ import annotations

import os
from typing import NewType

PeerId = NewType("PeerId", bytes)
ObjectId = NewType("ObjectId", bytes)
SessionId = NewType("SessionId", bytes)

PEER_ID_BYTES = 6
OBJECT_ID_BYTES = 16
SESSION_ID_BYTES = 16


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
        return ObjectId(bytes.fromhex(text))
    except ValueError:
        return None
