"""Looking for an object among all peers: how often, and whom.

The last resort, where the home cannot be asked and nobody else has heard of the object.
It costs a message to each of many, and after a death everybody may want it at once. So
it is bounded three times: searches of a peer in a second, peers in one search, and the
time between two for one object. In a large cluster each search asks the next ones.

Rules of this file: pure; it counts. Who is asked first is its caller's affair.

Source: design section 7; reliability.md 2.2.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from activestore.ids import ObjectId, PeerId

# Peers that one search asks: all of a usual cluster, and a burst that a link bears.
ASKED_MAX = 32
# How soon an object may be looked for again, in seconds.
PAUSE_S = 10.0
# Objects whose last search is remembered. At 20 a second each is, for longer than it must
# wait.
REMEMBERED_MAX = 1024


class Allowance:
    """So many in a second, and as many at once after a quiet second; 0 means never."""

    def __init__(self, per_s: float, now_s: float) -> None:
        self.per_s = per_s
        self._left = per_s
        self._counted_s = now_s

    def take(self, now_s: float) -> bool:
        """Take one, if one is left."""
        earned = (now_s - self._counted_s) * self.per_s
        self._counted_s = now_s
        self._left = min(self._left + earned, self.per_s)
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Searches:
    """When an object may be looked for, and among whom."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        # When it was last looked for, and how many were asked in all; the latest last.
        self._last: OrderedDict[ObjectId, tuple[float, int]] = OrderedDict()

    def begin(
        self, object_id: ObjectId, others: Sequence[PeerId], now_s: float
    ) -> list[PeerId]:
        """Return whom to ask for an object now; nobody where it must wait.

        Args:
            object_id: Nobody who should know where it is does, or can be asked.
            others: All who may have it, the likeliest first.
            now_s: The time.
        """
        last_s, asked_count = self._last.get(object_id, (-PAUSE_S, 0))
        if not others or now_s - last_s < PAUSE_S or not self._allowance.take(now_s):
            return []
        first = asked_count if asked_count < len(others) else 0
        asked = list(others[first : first + ASKED_MAX])
        self._last[object_id] = (now_s, first + len(asked))
        self._last.move_to_end(object_id)
        if len(self._last) > REMEMBERED_MAX:
            self._last.popitem(last=False)
        return asked
