"""Requests that may have been answered already, and what of their session waits for them.

Whether a request has a recorded answer is read from storage. What the same session wants
of the same object meanwhile stays behind it: it sent them in that order.

    begin ... end | leave -> ready          (follow -> ready, once what is before it is)

Rules of this file: order within a session and an object; it reads nothing and decides
nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TypeAlias

from activestore.core.calls import Call, Client
from activestore.ids import ObjectId, SessionId

_Key: TypeAlias = tuple[SessionId, ObjectId]


class Lookups:
    """Lines of calls, each of one session at one object, the first one looked up."""

    def __init__(self) -> None:
        # By call id, in order of arrival.
        self.lines: dict[_Key, dict[int, Call]] = {}
        self.ready: deque[Call] = deque()
        self._open: set[int] = set()

    def begin(self, call: Call) -> None:
        """Note that the answer to a call is looked up."""
        self._open.add(call.call_id)
        self.lines.setdefault(_key_of(call), {})[call.call_id] = call

    def follow(self, call: Call) -> bool:
        """Have a call wait for those before it; False where there are none."""
        if type(call.origin) is not Client:
            return False
        line = self.lines.get(_key_of(call))
        if line is None:
            return False
        line[call.call_id] = call
        return True

    def end(self, call: Call) -> None:
        """Note that a call has no recorded answer."""
        self._open.discard(call.call_id)
        self._advance(call)

    def leave(self, call: Call) -> None:
        """Forget a call that is answered."""
        line = self.lines.get(_key_of(call))
        if line is not None and line.pop(call.call_id, None) is not None:
            self._open.discard(call.call_id)
            self._advance(call)

    def _advance(self, call: Call) -> None:
        key = _key_of(call)
        line = self.lines.get(key, {})
        while line:
            first = next(iter(line))
            if first in self._open:
                return
            self.ready.append(line.pop(first))
        self.lines.pop(key, None)

    def check(self, calls: Mapping[int, Call]) -> None:
        """Assert that nothing waits here for what has ended; for tests."""
        waiting = {one for line in self.lines.values() for one in line}
        assert waiting <= calls.keys(), waiting - calls.keys()
        assert self._open <= waiting, self._open - waiting
        for line in self.lines.values():
            assert next(iter(line)) in self._open, "a line waits for nothing"


def _key_of(call: Call) -> _Key:
    origin = call.origin
    assert type(origin) is Client
    return origin.session, call.object_id
