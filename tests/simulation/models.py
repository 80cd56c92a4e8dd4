"""Classes whose objects live in simulated clusters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from activestore import ActiveObject, activemethod, checkpoint
from activestore.errors import BusyError


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


class LazyCounter(Counter):
    durability = "none"


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


class Puller(ActiveObject):
    """Reads a stream of another object, and waits for a third one in the middle."""

    source: Counter
    other: Counter

    def __init__(self, source: Counter, other: Counter) -> None:
        self.source = source
        self.other = other

    @activemethod
    def pull(self, count: int) -> None:
        for number in self.source.numbers.stream(count):
            if number == 0:
                self.other.add_slowly()


class Maker(ActiveObject):
    last: Counter | None

    def __init__(self) -> None:
        self.last = None

    @activemethod
    def make(self, count: int) -> Counter:
        self.last = Counter(count)
        return self.last

    @activemethod(readonly=True)
    def last_peek(self) -> int:
        assert self.last is not None
        return self.last.peek()


class Knot(ActiveObject):
    """One of a ring of objects whose methods call the next one, after a while."""

    beyond: Any
    brake: Any  # an object beside it, whose methods take their time
    pulls: int

    def __init__(self) -> None:
        self.beyond = self.brake = None
        self.pulls = 0

    @activemethod
    def tie(self, beyond: Any, brake: Any) -> None:
        self.beyond, self.brake = beyond, brake

    @activemethod(readonly=True)
    def hold(self) -> None:
        pass

    @activemethod
    def touch(self) -> int:
        self.pulls += 1
        return self.pulls

    @activemethod(readonly=True)
    def take_long(self) -> None:
        pass

    @activemethod(readonly=True)
    def look(self) -> int:
        return self.pulls

    @activemethod
    def pull(self) -> bool:
        """Hold this one and change the next; False where that was refused."""
        return self._calls("touch")

    @activemethod
    def pull_long(self) -> bool:
        """Hold this one and the next for long."""
        return self._calls("touch_long")

    @activemethod
    def touch_long(self) -> int:
        self.brake.take_long()
        return self.touch()

    @activemethod
    def take_long_and_pull(self) -> bool:
        self.brake.take_long()
        return self._calls("touch")

    @activemethod
    def pull_and_look(self) -> bool:
        """Hold this one and read the next."""
        return self._calls("look")

    @activemethod(readonly=True)
    def look_and_pull(self) -> bool:
        """Read this one and change the next."""
        return self._calls("touch")

    @activemethod
    def pull_two(self) -> bool:
        """Hold this one and have the next one pull."""
        return self._calls("pull_gently")

    @activemethod
    def pull_gently(self) -> bool:
        """Hold this one and change the next, or raise."""
        self.brake.hold()
        self.beyond.touch()
        return True

    @activemethod
    def pull_round(self, hops: int) -> int:
        """Hold all of a ring, and come back to this one."""
        return 0 if not hops else 1 + self.beyond.pull_round(hops - 1)

    def _calls(self, method: str) -> bool:
        self.brake.hold()
        try:
            getattr(self.beyond, method)()
        except BusyError:
            return False
        return True


class Letterbox(ActiveObject):
    """Keeps the last of what was put in, and the first byte of each."""

    last: bytes
    kept: list[int]

    def __init__(self) -> None:
        self.last = b""
        self.kept = []

    @activemethod
    def put(self, letter: bytes) -> bytes:
        """Keep a letter and return the one before."""
        before, self.last = self.last, letter
        self.kept.append(letter[0])
        return before

    @activemethod(readonly=True)
    def numbers(self) -> list[int]:
        """Return the first byte of every letter."""
        return list(self.kept)


class Ledger(ActiveObject):
    """Keeps every mark that was put in, in order."""

    marks: str  # each with a comma behind it

    def __init__(self) -> None:
        self.marks = ""

    @activemethod
    def put(self, mark: int) -> None:
        """Keep a mark."""
        self.marks += f"{mark},"

    @activemethod(readonly=True)
    def read(self) -> list[int]:
        """Return all marks."""
        return [int(mark) for mark in self.marks.split(",")[:-1]]


class Journal(ActiveObject):
    """Keeps what was written into it, in order."""

    lines: list[int]

    def __init__(self) -> None:
        self.lines = []

    @activemethod
    def write(self, line: int) -> int:
        """Write a line and return how many there are."""
        self.lines.append(line)
        return len(self.lines)

    @activemethod
    def rest(self) -> None:
        """Take as long as the speed of executors says."""

    @activemethod(readonly=True)
    def read(self) -> list[int]:
        """Return all lines."""
        return list(self.lines)


class Author(ActiveObject):
    """Writes the same line several times into a journal, with rests in between."""

    journal: Journal
    couch: Journal
    written: int

    def __init__(self, journal: Journal, couch: Journal) -> None:
        self.journal, self.couch = journal, couch
        self.written = 0

    @activemethod
    def write(self, line: int, count: int) -> int:
        """Write a line so often, and return how often anything was written."""
        for number in range(count):
            if number:
                self.couch.rest()
            self.journal.write(line)
            self.written += 1
        return self.written
