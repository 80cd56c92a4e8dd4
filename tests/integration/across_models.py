"""Classes for tests of calls that go on at other peers; published by those tests."""

from __future__ import annotations

import time
from typing import Any

from activestore import ActiveObject, activemethod


class Link(ActiveObject):
    """One of a chain or a ring of objects, each at a peer of its own."""

    value: int
    other: Any
    marks: list

    def __init__(self, other: Any = None):
        self.value = 0
        self.other = other
        self.marks = []

    @activemethod
    def link(self, other: Any) -> None:
        self.other = other

    @activemethod
    def add(self, n: int = 1) -> int:
        self.value += n
        return self.value

    @activemethod(readonly=True)
    def peek(self) -> int:
        return self.value

    @activemethod
    def add_there(self, n: int = 1) -> int:
        """Change the other object only."""
        return self.other.add(n)

    @activemethod
    def add_to(self, given: Any) -> int:
        """Call what came as an argument."""
        return given.add(1)

    @activemethod
    def give(self, given: Any) -> int:
        """Have the other one call what is given to it."""
        return self.other.add_to(given)

    @activemethod
    def there_and_back(self) -> int:
        """A -> B -> A: what comes back sees, and adds to, what was begun."""
        self.value += 1
        self.other.add_back(self, 10)
        self.value += 100
        return self.value

    @activemethod
    def add_back(self, caller: Any, n: int) -> int:
        self.value += 1
        return caller.add(n)

    @activemethod
    def round(self, hops: int) -> int:
        """Go round a ring, and count every visit."""
        self.value += 1
        return 0 if hops == 0 else 1 + self.other.round(hops - 1)

    @activemethod
    def submit_there(self, n: int) -> list:
        """Go on beside the other one, and take its result later."""
        future = self.other.add.submit(n)
        self.value += 1
        return [self.value, future.result()]

    @activemethod
    def submit_round(self) -> int:
        """Submit what comes back here, then wait for it."""
        future = self.other.add_back.submit(self, 10)
        time.sleep(0.1)
        future.result()
        return self.value

    @activemethod(readonly=True)
    def rows(self, count: int):
        """Stream numbers."""
        yield from range(count)

    @activemethod
    def read_there(self, count: int) -> int:
        return sum(self.other.rows.stream(count))

    @activemethod
    def read_a_part(self, count: int) -> list:
        """Leave a stream of the other one, then change it."""
        found = []
        for number in self.other.rows.stream(1_000_000):
            found.append(number)
            if len(found) == count:
                break
        return [found, self.other.add(1)]

    @activemethod(readonly=True)
    def pass_rows(self, count: int):
        """Stream what the other one streams."""
        yield from self.other.rows.stream(count)

    @activemethod
    def hold(self, duration_s: float) -> int:
        """Take long, in steps that an interrupt can end."""
        self.value += 1
        end_s = time.monotonic() + duration_s
        while time.monotonic() < end_s:
            time.sleep(0.01)
        return self.value

    @activemethod
    def hold_there(self, duration_s: float) -> int:
        self.value += 1
        return self.other.hold(duration_s)

    @activemethod
    def fail(self) -> None:
        self.value += 1
        raise KeyError("inner")

    @activemethod
    def fail_there(self) -> None:
        self.value += 1
        self.other.fail()

    @activemethod
    def survive_failure_there(self) -> str:
        try:
            self.other.fail()
        except KeyError as error:
            self.value += 1
            return type(error).__mro__[0].__name__
        return "nothing raised"

    @activemethod
    def mark(self, token: int) -> int:
        self.marks.append(token)
        return len(self.marks)

    @activemethod
    def mark_both(self, token: int) -> int:
        """Leave a mark there and here; what is doubled or half done shows."""
        self.other.mark(token)
        self.marks.append(token)
        return len(self.marks)

    @activemethod
    def mark_round(self, token: int) -> int:
        """The same, with the other one calling back."""
        self.other.mark_and_back(self, token)
        return len(self.marks)

    @activemethod
    def mark_and_back(self, caller: Any, token: int) -> None:
        self.marks.append(token)
        caller.mark(token)

    @activemethod
    def make_at(self, peer: str, value: int, alias: str = "") -> Any:
        """Make two objects that know each other at another peer, before going on."""
        first, second = Link(), Link()
        first.other, second.other = second, first
        first.value = second.value = value
        first.make_persistent(alias, peer=peer)
        self.other = first
        self.value = first.add(1)
        return first
