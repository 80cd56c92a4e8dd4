"""A recorded series as an active object: it stays where it was recorded.

It needs nothing but the standard library, so the smallest board can keep it. Who learns
from it asks for its rows, from any peer.
"""

from __future__ import annotations

from collections.abc import Sequence

from activestore import ActiveObject, activemethod


class Recording(ActiveObject):
    """Rows [cpu, mem] in percent, in the order in which they were recorded."""

    rows: list

    def __init__(self, rows: Sequence[Sequence[float]] = ()) -> None:
        self.rows = [list(row) for row in rows]

    @activemethod
    def append(self, cpu: float, mem: float) -> int:
        """Add a row; return how many there are."""
        self.rows.append([cpu, mem])
        return len(self.rows)

    @activemethod(readonly=True)
    def count(self) -> int:
        """Return how many rows there are."""
        return len(self.rows)

    @activemethod(readonly=True)
    def read(self) -> list:
        """Return all rows."""
        return self.rows
