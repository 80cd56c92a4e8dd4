"""The class that the benchmarks call; published to the peer as it is."""

from __future__ import annotations

from typing import Any

from activestore import ActiveObject, activemethod


class Bench(ActiveObject):
    """Does as little as possible."""

    value: int
    text: str
    array: Any

    def __init__(self, value: int = 0, array: Any = None) -> None:
        self.value = value
        self.text = ""
        self.array = array

    @activemethod(readonly=True)
    def nothing(self) -> None:
        """Return nothing."""

    @activemethod(changes=("value",))
    def add(self, n: int) -> int:
        """Change a field."""
        self.value += n
        return self.value

    @activemethod(changes=("text",))
    def note(self, text: str) -> None:
        """Change 100 bytes."""
        self.text = text

    @activemethod(readonly=True)
    def total(self, array: Any) -> float:
        """Take an array."""
        return float(array.sum())

    @activemethod(readonly=True)
    def make(self, count: int) -> Any:
        """Return an array."""
        import numpy as np

        return np.ones(count)
