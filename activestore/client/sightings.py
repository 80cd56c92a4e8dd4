"""What one client has seen of replicated objects, so that it never sees an older state.

An answer may tell which state it is of: a pair of the leader's counter and the number of
the state. A read that may be stale carries the newest pair that was seen of its object;
a copy that is behind it waits, or sends the client on.

Rules of this file: no I/O; what a peer tells wrong counts as not told; an object that
was not read for long is forgotten, and then no older state is ruled out.

Source: reliability.md 3.8 ("monotonic per client"); schemas/protocol.md section 4.
"""

from __future__ import annotations

from typing import Any

# Objects that are remembered, about 200 bytes each; the one that was seen longest ago
# makes room.
SEEN_MAX = 4096


class Sightings:
    """The newest state that was seen of each object."""

    def __init__(self) -> None:
        self._seen: dict[bytes, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def of(self, object_id: bytes) -> tuple[int, int] | None:
        """Return counter and number of the newest state seen, None for none."""
        return self._seen.get(object_id)

    def note(self, message: Any, told: Any) -> None:
        """Take what the answer to a message tells in its `extra`."""
        object_id = getattr(message, "object_id", None)
        epoch, number = told.get("epoch"), told.get("number")
        if object_id is None or type(epoch) is not int or type(number) is not int:
            return
        before = self._seen.pop(object_id, (0, 0))
        self._seen[object_id] = max(before, (epoch, number))
        if len(self._seen) > SEEN_MAX:
            del self._seen[next(iter(self._seen))]
