"""Chunks of large messages as they come, and what is sent when some have arrived.

Rules of this file: it answers and hands on; what the message says is the loop's affair.

Source: schemas/protocol.md section 13; `wire.chunks` decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from activestore.errors import RemoteProtocolError
from activestore.peer import greeting
from activestore.peer.links import Links
from activestore.peer.table import Table
from activestore.wire.messages import Buffer, Chunk, Refused

_NONE: Sequence[Buffer] = ()


def take(table: Table, links: Links, route: bytes, message: Any) -> Sequence[Buffer]:
    """Take a Chunk or Taken; return the frames of a message that is whole now."""
    lanes, send, now_s = table.lanes, table.transport.send, table.clock()
    if route not in lanes:
        send(route, Refused("hello_needed", f"{type(message).__name__} before Hello"))
        return _NONE
    if type(message) is not Chunk:
        for one in lanes.taken(route, message, now_s):
            send(route, one)
        return _NONE
    try:
        taken, frames = lanes.arrived(route, message, now_s)
    except RemoteProtocolError as error:
        greeting.sent_garbage(table, links, route, str(error))
        send(route, Refused(error.code, str(error)[:1000]))
        return _NONE
    send(route, taken)
    return frames or _NONE
