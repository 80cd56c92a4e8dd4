"""The class that network tests publish: what a lost or doubled call would show in."""

from __future__ import annotations

from activestore import ActiveObject, activemethod


class Counter(ActiveObject):
    """A number."""

    value: int

    def __init__(self, value: int = 0):
        self.value = value

    @activemethod
    def add(self, n: int = 1) -> int:
        """Add and return the sum."""
        self.value += n
        return self.value
