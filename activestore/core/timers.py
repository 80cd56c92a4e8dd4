"""What a core wants to be woken for: a heap of (time, what), pure.

Rules of this file: an entry is not removed when what it is for ends; whoever gets it
looks whether it still matters. When many have gathered, those that do not are swept out.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Callable


class Timer(enum.IntEnum):
    """Why the core wanted to be woken."""

    DEADLINE = 0  # a call's deadline: key is the call
    GRACE = 1  # an interrupted call must have ended: key is the call
    READER = 2  # a reader has waited long enough for the writer: key is the call
    LONG_RUN = 3  # has this call become a long one? key is the call
    RECALL = 4  # does a slot's first call hold up others? key is the slot
    BEAT = 5  # tell all clients what is still in progress
    PING = 6  # has the executor answered? key is the executor
    RESPAWN = 7  # start an executor again after its back-off: key is the executor
    TIDY = 8  # retire idle extra executors


# Those whose key is a call, and that mean nothing once it is gone.
TIMERS_OF_CALLS = frozenset({
    Timer.DEADLINE, Timer.GRACE, Timer.READER, Timer.LONG_RUN,
})  # fmt: skip
# Fewer entries than this are never swept: 300 kB.
CROWDED_MIN = 4096


class Timers:
    """A heap of wake-ups."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int]] = []
        self._crowded_from = CROWDED_MIN

    def add(self, at_s: float, timer: Timer, key: int = 0) -> None:
        """Ask to be woken at `at_s`."""
        heapq.heappush(self._heap, (at_s, timer, key))

    def due(self, now_s: float) -> list[tuple[Timer, int]]:
        """Take out everything whose time has come, in order."""
        found = []
        heap = self._heap
        while heap and heap[0][0] <= now_s:
            _, timer, key = heapq.heappop(heap)
            found.append((Timer(timer), key))
        return found

    @property
    def is_crowded(self) -> bool:
        """Whether it is worth looking for entries that do not matter any more."""
        return len(self._heap) > self._crowded_from

    def sweep(self, is_live: Callable[[Timer, int], bool]) -> None:
        """Drop the entries that do not matter; what is left may double before the next."""
        self._heap = [
            entry for entry in self._heap if is_live(Timer(entry[1]), entry[2])
        ]
        heapq.heapify(self._heap)
        self._crowded_from = max(CROWDED_MIN, 2 * len(self._heap))

    def has(self, timer: Timer) -> bool:
        """Whether a wake-up of a kind is due some time; it looks at all of them."""
        return any(entry[1] == timer for entry in self._heap)

    def next_s(self) -> float | None:
        """Return the earliest wake-up, None where there is none."""
        return self._heap[0][0] if self._heap else None
