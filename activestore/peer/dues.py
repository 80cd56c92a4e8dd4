"""Which of the requests that wait here have their deadline before all are looked at again.

All are looked at a few times a second, and each deadline is kept in time. Were all looked
at whenever one is due, a thousand that wait would be looked at a million times.

Rules of this file: it keeps keys and times; what becomes of who is late is decided by
`relays`. A key may be one of a request that has ended meanwhile.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import TypeAlias

from activestore.ids import SessionId

# A trip's session and sequence, or the number of what waits for a leader.
Key: TypeAlias = "tuple[SessionId, int] | int"


class Dues:
    """Who is due before the next look at all, the first one first."""

    def __init__(self, look_by: Callable[[float], None]) -> None:
        """Begin with nobody; `look_by` is told when somebody is due."""
        self._look_by = look_by
        self._until_s = 0.0
        # The number keeps those of one time in order of arrival.
        self._heap: list[tuple[float, int, Key]] = []
        self._next_number = 1

    def begin(self, until_s: float, found: Iterable[tuple[float, Key]]) -> None:
        """Begin anew with all that wait; at `until_s` all are looked at again."""
        self._until_s = until_s
        self._heap.clear()
        for at_s, key in found:
            self.add(at_s, key)

    def add(self, at_s: float, key: Key) -> None:
        """Note when one is due, 0 for never; later than the next look is soon enough."""
        if 0.0 < at_s <= self._until_s:
            heapq.heappush(self._heap, (at_s, self._next_number, key))
            self._next_number += 1
            self._look_by(at_s)

    def take(self, now_s: float) -> list[Key]:
        """Return, and forget, who is due by now."""
        found = []
        while self._heap and self._heap[0][0] <= now_s:
            found.append(heapq.heappop(self._heap)[2])
        if self._heap:
            self._look_by(self._heap[0][0])
        return found
