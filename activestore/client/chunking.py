"""One client's large messages over slow lines: which links have chunks, what waits there.

Rules of this file: no I/O; `wire.chunks` decides. A link that is welcomed again begins
anew: its requests are sent again.

Source: schemas/protocol.md section 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from activestore.client.links import Link
from activestore.wire import codec
from activestore.wire.chunks import CHUNKS, Lanes
from activestore.wire.messages import Cancel, Chunk, Message


class Chunking:
    """What of a session travels in chunks."""

    def __init__(self) -> None:
        self._lanes = Lanes()

    def welcomed(self, link: Link, message: Any) -> None:
        """Use chunks on a link where its peer can."""
        if CHUNKS in message.capabilities and CHUNKS in link.hello.capabilities:
            bytes_max = message.limits.get("message_bytes_max", 1 << 30)
            self._lanes.open(link.route, bytes_max)

    def end(self, link: Link) -> None:
        """Forget a link that has ended."""
        self._lanes.close(link.route)

    def holds(self, link: Link, message: Message) -> bool:
        """Whether a message must not be sent as it is."""
        return self._lanes.holds(link.route, message)

    def on_wire(self, link: Link, message: Message, now_s: float) -> Sequence[Message]:
        """Return what is sent now for a message to be sent on a link."""
        if type(message) is Cancel and self._lanes.drop(link.route, message.sequence):
            return ()
        return self._lanes.send(link.route, message, now_s)

    def take(
        self, link: Link, message: Any, now_s: float
    ) -> tuple[Sequence[Message], Sequence[Message]]:
        """Take a Chunk or Taken; return what came whole, and what is to be sent.

        Raises:
            RemoteProtocolError: it is none that could follow.
        """
        if type(message) is not Chunk:
            return (), self._lanes.taken(link.route, message, now_s)
        taken, frames = self._lanes.arrived(link.route, message, now_s)
        if frames is None:
            return (), (taken,)
        return codec.decode_frames(frames, codec.joined), (taken,)
