"""How long a suspect has to speak up; pure.

One accuser may be the sick one itself, so a suspicion begins long, and gets shorter with
every other peer that could not reach the suspect either.

Source: Lifeguard (arXiv:1707.00788) section IV; hashicorp/memberlist suspicion.go.
"""

from __future__ import annotations

import math


def suspicion_timeout_s(
    confirmations: int, wanted: int, *, timeout_s_min: float, timeout_s_max: float
) -> float:
    """Return how long a suspect may stay unrefuted, in seconds.

    Falls from maximum to minimum with the logarithm of independent accusers, so that
    one slow peer cannot evict a healthy one quickly.

    Source: Lifeguard (arXiv:1707.00788), dynamic suspicion timeout.
    """
    if wanted < 1:
        return timeout_s_min
    share = math.log(confirmations + 1) / math.log(wanted + 1)
    return max(timeout_s_min, timeout_s_max - share * (timeout_s_max - timeout_s_min))


class Suspicion:
    """One suspect's time: it began, who accuses it, when it ends."""

    __slots__ = ("_bounds_s", "_wanted", "accusers", "deadline_s", "start_s")

    def __init__(
        self, accuser: bytes, now_s: float, bounds: tuple[int, float, float]
    ) -> None:
        self._wanted, *rest = bounds
        self._bounds_s = (rest[0], rest[1])
        self.accusers = {accuser}
        self.start_s = now_s
        self.deadline_s = now_s + self._timeout_s()

    def confirm(self, accuser: bytes) -> bool:
        """Note another accuser; return whether that is news, to be told on."""
        if accuser in self.accusers or len(self.accusers) > self._wanted:
            return False
        before_s = self._timeout_s()
        self.accusers.add(accuser)
        self.deadline_s += self._timeout_s() - before_s
        return True

    def postpone(self, by_s: float) -> None:
        """Give it more time: this peer was itself away, and heard no refutation."""
        self.deadline_s += by_s

    def _timeout_s(self) -> float:
        return suspicion_timeout_s(
            len(self.accusers) - 1, self._wanted,
            timeout_s_min=self._bounds_s[0], timeout_s_max=self._bounds_s[1],
        )  # fmt: skip
