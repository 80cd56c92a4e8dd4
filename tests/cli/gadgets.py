"""The class that tests of the command line publish."""

from __future__ import annotations

import time

from activestore import ActiveObject, activemethod


class Gauge(ActiveObject):
    """A number, a text, and answers of all kinds."""

    value: float
    label: str

    def __init__(self, value: float = 0, label: str = "") -> None:
        self.value = value
        self.label = label

    @activemethod
    def add(self, n: float, *more: float) -> float:
        self.value += n + sum(more)
        return self.value

    @activemethod(readonly=True)
    def ramp(self, steps: int):
        yield from range(steps)

    @activemethod(readonly=True)
    def same(self, value: object) -> object:
        return value

    @activemethod(readonly=True)
    def odd(self) -> dict:
        """Return what JSON has no word for."""
        return {"nan": float("nan"), "bytes": b"\x01\xff", "set": {3}, 7: (1, 2)}

    @activemethod(readonly=True)
    def rest(self, duration_s: float) -> str:
        time.sleep(duration_s)
        return "rested"

    @activemethod
    def fail(self) -> None:
        raise ValueError("as asked")
