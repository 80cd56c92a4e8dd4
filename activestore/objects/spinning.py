"""Looking again before blocking: for how long, and when it is better left.

Every look offers its core to whoever is waited for. Where something else took that
offer for longer than a hand-off lasts, the cores are wanted, and for a while nobody
spins.

Rules of this file: decides and yields; what is looked at is its callers' affair.

Source: decision 5; measured by `tests/integration/test_rogues.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable

# A hand-off to a thread of ours takes 5 to 60 us; a slice of the scheduler 1 to 4 ms.
TAKEN_S = 0.0005
# One slice lost in so many seconds is one call in a thousand that come one by one.
PAUSE_S = 0.25
# Work comes close together if the last came within so many times the spin.
CLOSE = 4


class Spin:
    """How one thread spins: `spin_s` at a time, and not while its core is wanted."""

    def __init__(self, spin_s: float, clock: Callable[[], float]) -> None:
        self._spin_s = spin_s
        self._clock = clock
        self._paused_until_s = 0.0

    def until_s(self, now_s: float, last_work_s: float) -> float:
        """Return the time until which to look again; 0 if not at all."""
        is_close = now_s - last_work_s < self._spin_s * CLOSE
        return (
            now_s + self._spin_s if is_close and now_s >= self._paused_until_s else 0.0
        )

    def offer_core(self) -> bool:
        """Let another thread run, if one waits for this core; False: spin no more."""
        before_s = self._clock()
        os.sched_yield()
        now_s = self._clock()
        if now_s - before_s <= TAKEN_S:
            return True
        self._paused_until_s = now_s + PAUSE_S
        return False
