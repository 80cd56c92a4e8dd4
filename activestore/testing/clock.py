"""Virtual time: what happens next, and what time each peer believes it is.

Nothing sleeps. The agenda holds what is due, and time jumps from one entry to the next;
entries of the same time come in the order in which they were made.

Rules of this file: no chance and no clock of the machine; times are seconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

# The wall clock of all simulations begins here: 2025-01-01T00:00:00Z.
WALL_START_S = 1_735_689_600.0


class Entry:
    """Something that is due at a time, unless it is cancelled."""

    __slots__ = ("action", "due_s")

    def __init__(self, due_s: float, action: Callable[[], None]) -> None:
        self.due_s = due_s
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Have it not happen; harmless where it has."""
        self.action = None


class Agenda:
    """All that is due, in order, and the time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.count = 0  # entries carried out
        # With due time and number before it: to compare tuples costs a fifth.
        self._entries: list[tuple[float, int, Entry]] = []
        self._next_number = 0

    def at(self, due_s: float, action: Callable[[], None]) -> Entry:
        """Have `action` called at a time; at once, but not now, where that has passed."""
        entry = Entry(max(due_s, self.now_s), action)
        self._next_number += 1
        heapq.heappush(self._entries, (entry.due_s, self._next_number, entry))
        return entry

    def later(self, delay_s: float, action: Callable[[], None]) -> Entry:
        """Have `action` called after a delay."""
        return self.at(self.now_s + delay_s, action)

    def next_s(self) -> float | None:
        """Return when something is due next, None where nothing is."""
        entries = self._entries
        while entries and entries[0][2].action is None:
            heapq.heappop(entries)
        return entries[0][0] if entries else None

    def step(self) -> bool:
        """Carry out what is due next; False where nothing is."""
        if self.next_s() is None:
            return False
        self.now_s, _, entry = heapq.heappop(self._entries)
        self.count += 1
        action, entry.action = entry.action, None
        if action is not None:
            action()
        return True


class LocalClock:
    """The clocks of one peer: a monotonic one that drifts, and the wall's."""

    def __init__(self, agenda: Agenda, *, start_s: float) -> None:
        """Show `start_s` now: a machine's monotonic clock began at some boot."""
        self._agenda = agenda
        self._since_s = agenda.now_s
        self._base_s = start_s
        self._rate = 1.0
        self.skew_s = 0.0

    def monotonic_s(self) -> float:
        """Return this peer's monotonic time."""
        return self._base_s + (self._agenda.now_s - self._since_s) * self._rate

    def wall_s(self) -> float:
        """Return this peer's wall-clock time, which may be wrong."""
        return WALL_START_S + self._agenda.now_s + self.skew_s

    def set_drift(self, drift: float) -> None:
        """Let it run faster by this part from now on: 1e-4 gains 0.1 ms a second."""
        self._base_s = self.monotonic_s()
        self._since_s = self._agenda.now_s
        self._rate = 1.0 + drift

    def real_s(self, local_s: float) -> float:
        """Return how long an interval of this clock lasts."""
        return local_s / self._rate
