"""Calls that killed executors: which are refused, and until when; pure.

A crash is charged to every call that ran in the process at that moment, except to
methods that have run well many times: those are taken for bystanders, unless they were
alone. A call that ends, however it ends, is forgiven: what kills executors never does.

Source: reliability.md section 7, poison call; design section 5.
"""

from __future__ import annotations

from collections import OrderedDict

# Crashes after which a call is refused.
CRASHES_MAX = 2
# Good runs after which a method is a bystander of a crash.
RUNS_TRUSTED = 20
# Calls remembered at once; the oldest is forgotten, and would have to crash anew.
ENTRIES_MAX = 1024


class Quarantine:
    """Counts crashes per call, by class, method and arguments."""

    def __init__(self, quarantine_s: float) -> None:
        self._quarantine_s = quarantine_s
        self._crashes: OrderedDict[object, tuple[int, float]] = OrderedDict()

    def blame(self, key: object, now_s: float) -> float:
        """Charge one crash; return for how long the call is refused now, 0 for not."""
        count, _ = self._crashes.pop(key, (0, 0.0))
        count += 1
        self._crashes[key] = (count, now_s + self._quarantine_s)
        if len(self._crashes) > ENTRIES_MAX:
            self._crashes.popitem(last=False)
        return self._quarantine_s if count >= CRASHES_MAX else 0.0

    def forgive(self, key: object) -> None:
        """Forget the crashes of a call that has now ended without one."""
        self._crashes.pop(key, None)

    @property
    def is_empty(self) -> bool:
        """Whether no call has crashed lately: then nobody need make a key."""
        return not self._crashes

    def refused_for_s(self, key: object, now_s: float) -> float:
        """Return for how many more seconds the call is refused, 0 where it may run."""
        entry = self._crashes.get(key)
        if entry is None:
            return 0.0
        count, until_s = entry
        if now_s >= until_s:
            del self._crashes[key]
            return 0.0
        return until_s - now_s if count >= CRASHES_MAX else 0.0
