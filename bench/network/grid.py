"""The class of the network table: an array, and what is computed beside it."""

from __future__ import annotations

from typing import Any

from activestore import ActiveObject, activemethod

VALUE_BYTES = 8


class Grid(ActiveObject):
    """Numbers that do not compress, so many that their bytes are a round number."""

    cells: Any

    def __init__(self, size_bytes: int) -> None:
        import numpy as np

        self.cells = np.random.default_rng(1).random(size_bytes // VALUE_BYTES)

    @activemethod(readonly=True)
    def nothing(self) -> None:
        """Return nothing: what is left of a call is its way."""

    @activemethod(readonly=True)
    def mean(self) -> float:
        """Return the mean, computed where the numbers lie."""
        return float(self.cells.mean())

    @activemethod(readonly=True)
    def all_cells(self) -> Any:
        """Return all numbers: the field, by a call that can be told to be forwarded."""
        return self.cells
