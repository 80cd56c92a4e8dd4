"""The class that dataClay's backend and its clients import alike."""

from __future__ import annotations

from typing import Any

from dataclay import DataClayObject, activemethod


class Target(DataClayObject):
    """What is called."""

    value: int
    text: str
    array: Any

    def __init__(self, value: int = 0, array: Any = None) -> None:
        self.value = value
        self.text = ""
        self.array = array

    @activemethod
    def nothing(self) -> None:
        """Return nothing."""

    @activemethod
    async def nothing_async(self) -> None:
        """Return nothing, in the backend's event loop."""

    @activemethod
    def total(self, array: Any) -> float:
        """Take an array."""
        return float(array.sum())

    @activemethod
    def make(self, count: int) -> Any:
        """Return an array."""
        import numpy as np

        return np.ones(count)
