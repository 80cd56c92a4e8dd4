"""Classes for tests of calls that meet trouble half-way; published by those tests."""

from __future__ import annotations

import os
import time
from typing import Any

import activestore
from activestore import ActiveObject, activemethod


class Worker(ActiveObject):
    """Counts, alone and through another one."""

    value: int
    other: Any

    def __init__(self, other: Any = None):
        self.value = 0
        self.other = other

    @activemethod
    def add(self, n: int = 1) -> int:
        self.value += n
        return self.value

    @activemethod
    def add_then_raise(self, n: int = 1) -> None:
        self.value += n
        raise ValueError("after a change")

    @activemethod(readonly=True)
    def peek(self) -> int:
        return self.value

    @activemethod(readonly=True)
    def assign(self) -> None:
        self.value = -1

    @activemethod
    def add_to_other(self, n: int = 1) -> int:
        """Change the other object only."""
        return self.other.add(n)

    @activemethod
    def add_to_other_then_exit(self) -> None:
        self.other.add()
        os._exit(3)

    @activemethod
    def send_and_leave(self) -> None:
        """Have the other one call back, and do not wait for it."""
        self.other.add_back.submit(self)

    @activemethod
    def add_back(self, caller: Any) -> int:
        return caller.add()

    @activemethod
    def submit_and_wait(self) -> int:
        """Wait for what was submitted, later."""
        future = self.other.add_to_other.submit()
        time.sleep(0.01)
        return future.result()

    @activemethod
    def count(self, steps: int, pause_s: float) -> int:
        for _ in range(steps):
            self.value += 1
            activestore.checkpoint()
            time.sleep(pause_s)
        return self.value

    @activemethod
    def write_garbage(self, data: bytes) -> None:
        """Write to every channel that this process has."""
        for fd in range(3, 64):
            try:
                os.write(fd, data)
            except OSError:
                continue
        time.sleep(5)

    @activemethod
    def hold(self, duration_s: float) -> None:
        time.sleep(duration_s)

    @activemethod(readonly=True)
    def look(self, count: int, pause_s: float):
        """Stream the value, slowly."""
        for _ in range(count):
            yield self.value
            time.sleep(pause_s)

    @activemethod
    def name_other(self, alias: str) -> int:
        """Make another one under a name that may be taken."""
        self.value += 1
        Worker().make_persistent(alias=alias)
        return self.value

    @activemethod
    def submit_many(self, count: int, size: int) -> int:
        """Ask for much and take nothing; return this process's memory in bytes."""
        for _ in range(count):
            self.other.make_bytes.submit(size)
        time.sleep(0.3)
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @activemethod(readonly=True)
    def make_bytes(self, size: int) -> bytes:
        return bytes(size)

    @activemethod
    def enter_and_fail(self, times: int) -> int:
        """Have the other one call back what changes this object and raises."""
        for _ in range(times):
            try:
                self.other.fail_back(self)
            except ValueError:
                continue
        return self.value

    @activemethod
    def fail_back(self, caller: Any) -> None:
        caller.add_then_raise()

    @activemethod
    def give_back(self, value: Any) -> Any:
        return value

    @activemethod
    def is_itself(self) -> list:
        """Return whether what comes back from another object is this one."""
        found = self.other.give_back([self])[0]
        return [found is self, found == self, [found].index(self), len({found, self})]


class SlowToWake(Worker):
    """Takes its time to be activated."""

    def on_activate(self) -> None:
        time.sleep(0.8)


class Careless(Worker):
    """The same, with changes that may be lost for a second."""

    durability = "interval"

    @activemethod
    def make_other(self) -> Any:
        return Worker()


class Source(ActiveObject):
    """Streams more than anybody reads."""

    value: int

    def __init__(self):
        self.value = 0

    @activemethod
    def rows(self, count: int):
        yield from range(count)

    @activemethod
    def add(self) -> int:
        self.value += 1
        return self.value


class Family(ActiveObject):
    """Has others in containers."""

    members: dict

    def __init__(self, members: dict):
        self.members = members

    @activemethod(readonly=True)
    def listed(self) -> list:
        return [list(self.members.values())]


class Reader(ActiveObject):
    """Reads a part of a stream, or nothing."""

    source: Any

    def __init__(self, source: Any):
        self.source = source

    @activemethod
    def read(self, count: int) -> list:
        found = []
        items = self.source.rows.stream(10_000)
        while len(found) < count:
            found.append(next(items))
        return found

    @activemethod
    def read_then_add(self, count: int) -> int:
        """Leave the stream, then call the object that it held."""
        for number in self.source.rows.stream(10_000):
            if number >= count:
                break
        return self.source.add()
