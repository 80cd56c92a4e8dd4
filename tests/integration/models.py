"""Classes that the integration tests publish: small, and some of them ill-behaved."""

from __future__ import annotations

import builtins
import ctypes
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import activestore.errors
from activestore import ActiveObject, activemethod


class Counter(ActiveObject):
    """A number and a list; what a lost or doubled call would show in."""

    value: int
    seen: list

    def __init__(self, value: int = 0):
        self.value = value
        self.seen = []

    @activemethod
    def add(self, n: int = 1) -> int:
        """Add and return the sum."""
        self.value += n
        return self.value

    @activemethod
    def note(self, mark: str) -> int:
        """Append and count."""
        self.seen.append(mark)
        self.value += 1
        return len(self.seen)

    @activemethod(readonly=True)
    def peek(self) -> int:
        return self.value

    @activemethod(readonly=True)
    def nothing(self) -> None:
        """Do nothing: what a call costs."""

    @activemethod
    def set_then_raise(self, value: int) -> None:
        self.value = value
        self.seen.append("half")
        raise ValueError("after the change")

    @activemethod(readonly=True)
    def assign_in_readonly(self) -> None:
        self.value = -1

    def not_marked(self) -> None:
        """Not remote."""


class Rogue(ActiveObject):
    """Every way to misbehave that the daemon must survive."""

    value: int

    def __init__(self):
        self.value = 0

    @activemethod
    def segfault(self) -> None:
        self.value = -1
        ctypes.string_at(0)

    @activemethod
    def exit_hard(self) -> None:
        self.value = -1
        os._exit(3)

    @activemethod
    def exit_if(self, is_poison: bool) -> int:
        """Run well, except with the one argument."""
        if is_poison:
            os._exit(3)
        return 1

    @activemethod
    def exit_soft(self) -> None:
        self.value = -1
        sys.exit(4)

    @activemethod
    def eat_memory(self) -> None:
        self.value = -1
        kept = []
        while True:
            kept.append(bytearray(16 * 1024 * 1024))

    @activemethod
    def loop(self) -> None:
        self.value = -1
        while True:
            pass

    @activemethod
    def block(self, duration_s: float = 600.0) -> str:
        self.value = -1
        time.sleep(duration_s)
        return "slept"

    @activemethod
    def hold_in_c(self) -> None:
        """Keep the interpreter lock inside one C call."""
        self.value = -1
        re.match(r"(a+)+$", "a" * 64 + "b")

    @activemethod
    def sum_in_c(self) -> int:
        self.value = -1
        return sum(range(10**13))

    @activemethod
    def swallow(self) -> None:
        """Ignore every exception, the one of a cancellation too."""
        while True:
            try:
                while True:
                    pass
            except BaseException:
                pass

    @activemethod
    def work(self, duration_s: float) -> int:
        """Compute for a while, without sleeping."""
        end_s = time.monotonic() + duration_s
        rounds = 0
        while time.monotonic() < end_s:
            rounds += 1
            time.sleep(0.01)
        self.value = rounds
        return rounds

    @activemethod(readonly=True)
    def peek(self) -> int:
        return self.value


class Trainer(ActiveObject):
    """A long generator, checkpoints, and readers beside it."""

    epoch: int
    was_closed: bool

    def __init__(self):
        self.epoch = 0
        self.was_closed = False

    @activemethod
    def train(self, epochs: int, pause_s: float = 0.0):
        for _ in range(epochs):
            self.epoch += 1
            time.sleep(pause_s)
            yield self.epoch

    @activemethod
    def train_with_checkpoints(self, epochs: int, every: int, pause_s: float = 0.0):
        for _ in range(epochs):
            self.epoch += 1
            if self.epoch % every == 0:
                activestore.checkpoint()
            time.sleep(pause_s)
            yield self.epoch

    @activemethod(readonly=True)
    def predict(self) -> int:
        return self.epoch

    @activemethod(readonly=True)
    def count(self, n: int):
        yield from range(n)

    @activemethod(readonly=True)
    def big(self, size: int) -> bytes:
        return bytes(size)

    @activemethod(readonly=True)
    def failing(self):
        yield 1
        raise KeyError("no more")


class Layer:
    """A plain object kept in fields."""

    def __init__(self, weight: float = 0.0):
        self.weight = weight


class Model(ActiveObject):
    """Fields that share objects, and a transient that reaches into one."""

    layer: Layer
    optimizer: dict
    first: list
    second: list
    table: dict

    def __init__(self):
        self.layer = Layer(1.0)
        self.optimizer = {"of": self.layer}
        self.first = [1]
        self.second = self.first
        self.table = {"rows": []}
        self.on_activate()

    def on_activate(self) -> None:
        self.stepper = (self.layer,)

    @activemethod
    def step(self, by: float) -> float:
        """Change a field's object through a transient."""
        self.stepper[0].weight += by
        return self.layer.weight

    @activemethod
    def append_elsewhere(self, row: int) -> int:
        """Change a field through another name."""
        rows = self.table["rows"]
        rows.append(row)
        return len(rows)

    @activemethod
    def append_first(self, n: int) -> list:
        self.first.append(n)
        return self.second

    @activemethod(readonly=True)
    def weights(self) -> tuple:
        return self.layer.weight, self.optimizer["of"].weight, self.stepper[0].weight

    @activemethod(readonly=True)
    def is_shared(self) -> tuple:
        return self.optimizer["of"] is self.layer, self.first is self.second

    @activemethod(readonly=True)
    def rows(self) -> list:
        return list(self.table["rows"])

    @activemethod(readonly=True)
    def read_and_append(self) -> int:
        """Break the promise of readonly, unseen by an assignment."""
        self.table["rows"].append(-1)
        return len(self.table["rows"])

    @activemethod
    def step_then_raise(self) -> None:
        self.stepper[0].weight = -1.0
        self.table["rows"].append(-1)
        raise LookupError("after the change")


class Node(ActiveObject):
    """Objects that know, call and make each other."""

    name: str
    other: Any
    value: int
    kept: list

    def __init__(self, name: str = "", other: Any = None):
        self.name = name
        self.other = other
        self.value = 0
        self.kept = []

    @activemethod
    def link(self, other: Any) -> None:
        self.other = other

    @activemethod
    def bump(self, by: int = 1) -> int:
        self.value += by
        return self.value

    @activemethod
    def bump_other(self) -> int:
        """Call the other object."""
        return self.other.bump()

    @activemethod
    def there_and_back(self) -> int:
        """A -> B -> A: the inner change of A belongs to the outer call."""
        self.value += 1
        self.other.bump_other()
        self.value += 100
        return self.value

    @activemethod
    def descend(self, levels: int) -> int:
        """Recurse through the store."""
        if levels == 0:
            return 0
        return 1 + self.other.descend(levels - 1)

    @activemethod
    def cross(self, pause_s: float) -> int:
        """Hold this object, then call the other."""
        time.sleep(pause_s)
        return self.other.bump()

    @activemethod
    def block_other(self, duration_s: float) -> int:
        """Wait in the other object."""
        self.value = -1
        return self.other.cross_nothing(duration_s)

    @activemethod
    def cross_nothing(self, duration_s: float) -> int:
        self.value = -1
        time.sleep(duration_s)
        return 1

    @activemethod
    def bump_other_from_a_thread(self) -> str:
        """Call from a thread that runs no method."""
        told = []

        def call() -> None:
            try:
                told.append(str(self.other.bump()))
            except activestore.errors.ActiveStoreError as error:
                told.append(type(error).__name__)

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        return told[0]

    @activemethod
    def bump_other_and_raise(self) -> None:
        self.value = -1
        self.other.bump()
        raise ValueError("after the nested call")

    @activemethod
    def catch_from_other(self) -> str:
        try:
            self.other.bump_other_and_raise()
        except ValueError as error:
            return type(error).__name__
        return "nothing was raised"

    @activemethod
    def sum_stream(self, trainer: Any, n: int) -> int:
        """Read another object's stream inside a method."""
        return sum(trainer.count.stream(n))

    @activemethod
    def fan_out(self, others: list) -> list:
        """Start calls at many objects, then wait for all."""
        return [future.result() for future in [o.bump.submit() for o in others]]

    @activemethod
    def keep_by_alias(self, alias: str) -> str:
        made = Node("by alias")
        made.make_persistent(alias=alias)
        return Node.get_by_alias(alias).get_name()

    @activemethod
    def spawn_kept(self, name: str) -> int:
        self.kept.append(Node(name, self))
        return len(self.kept)

    @activemethod
    def spawn_returned(self, name: str) -> Any:
        return Node(name, self)

    @activemethod(readonly=True)
    def get_other(self) -> Any:
        return self.other

    @activemethod(readonly=True)
    def get_kept(self) -> list:
        return list(self.kept)

    @activemethod(readonly=True)
    def is_other(self, candidate: Any) -> bool:
        return candidate is self.other

    @activemethod(readonly=True)
    def get_name(self) -> str:
        return self.name

    @activemethod(readonly=True)
    def get_value(self) -> int:
        return self.value


class Untellable(Exception):
    """Cannot say what it is about."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def several() -> Exception:
    """Return an exception that holds others, where there is such a thing."""
    group = getattr(builtins, "ExceptionGroup", None)
    if group is None:
        return ValueError("several")
    return group("several", [ValueError(1), KeyError(2)])


ODD_ERRORS: dict[str, Callable[[], BaseException]] = {
    "huge text": lambda: ValueError("x" * 20_000_000),
    "no text": Untellable,
    "odd fields": lambda: activestore.errors.ActiveStoreError(threading.Lock()),
    "huge fields": lambda: activestore.errors.InvalidRequestError("y" * 20_000_000),
    "odd text": lambda: ValueError("\ud800"),
    "odd argument": lambda: KeyError(os.fsdecode(b"name-\xff")),
    "several": several,
    "base": lambda: BaseException("no Exception"),
    "keyboard": KeyboardInterrupt,
    "stop": lambda: StopIteration(3),
    "group": lambda: OSError(2, "No such file", "somewhere"),
}


class Unpicklable:
    """Says no in its own way when it is to be pickled."""

    def __reduce__(self) -> Any:
        raise KeyError("I stay here")


class Echo(ActiveObject):
    """Values in and out."""

    value: Any
    calls: int

    def __init__(self, value: Any = None):
        self.value = value
        self.calls = 0

    @activemethod
    def keep_and_return(self, count: int, size: int) -> list:
        self.calls += 1
        return [bytes([i]) * size for i in range(count)]

    @activemethod(readonly=True)
    def same(self, value: Any) -> Any:
        return value

    @activemethod(readonly=True)
    def rows(self, count: int, size: int) -> list:
        return [bytes(size)] * count

    @activemethod(readonly=True)
    def return_odd(self, kind: str) -> Any:
        return {
            "odd key": {"\ud800": 1},
            "odd text": ["\udfff"],
            "odd pickle": Unpicklable(),
        }[kind]

    @activemethod
    def keep_odd(self) -> None:
        self.value = Unpicklable()

    @activemethod(readonly=True)
    def raise_odd(self, kind: str) -> None:
        """Raise what is hard to tell."""
        raise ODD_ERRORS[kind]()

    @activemethod(readonly=True)
    def lock(self) -> Any:
        return {"inside": [threading.Lock()]}

    @activemethod(readonly=True)
    def generator(self) -> Any:
        return (n for n in range(3))

    @activemethod(readonly=True)
    def two(self, first: int, *, second: int = 2) -> int:
        return first + second

    @activemethod(readonly=True)
    def size_of(self, data: bytes) -> int:
        return len(data)


class Chunk(ActiveObject):
    """A block of numbers, larger than its share of memory."""

    data: Any

    def __init__(self, seed: int, count: int):
        import numpy as np

        self.data = np.full(count, float(seed))

    @activemethod(readonly=True)
    def total(self) -> float:
        return float(self.data.sum())

    @activemethod(readonly=True)
    def bounds(self) -> tuple:
        return float(self.data.min()), float(self.data.max())

    @activemethod
    def shift(self, by: float) -> float:
        self.data += by
        return float(self.data[0])
