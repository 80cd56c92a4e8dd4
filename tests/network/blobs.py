"""The class of the tests of slow lines: bytes that are long on their way."""

from __future__ import annotations

from activestore import ActiveObject, activemethod


class Blob(ActiveObject):
    """Some bytes."""

    data: bytes

    def __init__(self, data: bytes = b""):
        self.data = data

    @activemethod(readonly=True)
    def size(self) -> int:
        """Return how many there are."""
        return len(self.data)
