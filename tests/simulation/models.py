"""Classes whose objects live in simulated clusters."""

from __future__ import annotations

from collections.abc import Iterator

from activestore import ActiveObject, activemethod, checkpoint


class Counter(ActiveObject):
    count: int

    def __init__(self, count: int = 0) -> None:
        self.count = count

    @activemethod
    def add(self, number: int = 1) -> int:
        self.count += number
        return self.count

    @activemethod
    def fail_after_adding(self) -> None:
        self.count += 1
        raise ValueError("never mind")

    @activemethod(readonly=True)
    def peek(self) -> int:
        return self.count

    @activemethod(readonly=True)
    def cheat(self) -> None:
        self.count += 1

    @activemethod
    def add_slowly(self, number: int = 1) -> int:
        self.count += number
        return self.count

    @activemethod
    def numbers(self, stop: int) -> Iterator[int]:
        for number in range(stop):
            self.count += 1
            yield number
        return

    @activemethod
    def in_two_steps(self) -> int:
        self.count += 1
        checkpoint()
        self.count += 1
        return self.count


class Relay(ActiveObject):
    target: Counter
    forwarded: int

    def __init__(self, target: Counter) -> None:
        self.target = target
        self.forwarded = 0

    @activemethod
    def add(self, number: int = 1) -> int:
        self.forwarded += 1
        return self.target.add(number)

    @activemethod
    def make(self) -> Counter:
        made = Counter(7)
        made.make_persistent()
        self.target = made
        return made

    @activemethod
    def call_myself(self, depth: int) -> int:
        self.forwarded += 1
        if depth:
            return self.me().call_myself(depth - 1)
        return self.forwarded

    def me(self) -> Relay:
        return self
