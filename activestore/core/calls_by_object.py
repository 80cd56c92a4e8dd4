"""The calls of one object, without a look at all calls of the peer.

A peer that loses or takes over many objects asks this for each of them, while thousands
of calls may be open. A call itself pays nothing for it: what came since the last question
is sorted in with the next one.

Rules of this file: it keeps numbers only, so that what a call holds goes when it ends.
"""

from __future__ import annotations

from activestore.core.calls import Call
from activestore.ids import ObjectId

# Numbers of calls that have ended may be kept, as many as those of the others and these.
ENDED_MAX = 1024


class CallsByObject:
    """Finds calls by object.

    Args:
        calls: All that are open, by numbers that grow, in the order of these.
    """

    def __init__(self, calls: dict[int, Call]) -> None:
        self._calls = calls
        self._numbers: dict[ObjectId, list[int]] = {}
        self._highest = 0
        self.kept_count = 0  # numbers, of calls that have ended too

    def of(self, object_id: ObjectId) -> list[Call]:
        """Return the open calls of an object, in order of arrival."""
        if self.kept_count > 2 * len(self._calls) + ENDED_MAX:
            self._numbers.clear()
            self.kept_count = self._highest = 0
        self._sort_in()
        numbers = self._numbers.get(object_id, ())
        return [self._calls[one] for one in numbers if one in self._calls]

    def _sort_in(self) -> None:
        """Note the calls that came since the last time."""
        new: list[Call] = []
        for number in reversed(self._calls):
            if number <= self._highest:
                break
            new.append(self._calls[number])
        for call in reversed(new):
            self._numbers.setdefault(call.object_id, []).append(call.call_id)
        if new:
            self._highest = new[0].call_id
        self.kept_count += len(new)
