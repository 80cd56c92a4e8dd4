"""How a graph's stream that was cut into buffers becomes one again.

Rules of this file: the daemon, which looks for references in streams, loads it; so it
loads nothing that pickles.
"""

from __future__ import annotations

import struct
from typing import Any

from activestore.errors import RemoteProtocolError
from activestore.wire.state import ObjectState

CUT = b"cut1"  # A pickle of protocol 5 begins with 80 05.
CUT_COUNT = struct.Struct("<4sI")


def join_stream(state: ObjectState) -> tuple[bytes, int]:
    """Return the stream of a state's graph, and how many buffers it was cut into."""
    if not state.graph.startswith(CUT):
        return state.graph, 0
    _, count = CUT_COUNT.unpack(state.graph)
    if count > len(state.buffers):
        raise RemoteProtocolError(
            f"a graph in {count} pieces came with {len(state.buffers)} buffers",
            state.class_name,
        )
    pieces: Any = state.buffers[:count]
    return b"".join(pieces), count
