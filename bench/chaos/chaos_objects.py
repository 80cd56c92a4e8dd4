"""What chaos calls: objects on which a lost or doubled call shows. Published as it is."""

from __future__ import annotations

from activestore import ActiveObject, activemethod


class Tally(ActiveObject):
    """A number; every add returns the sum, so that each sum is returned once."""

    value: int

    def __init__(self) -> None:
        self.value = 0

    @activemethod
    def add(self, mark: str) -> int:
        """Add one; `mark` only tells calls apart."""
        del mark
        self.value += 1
        return self.value

    @activemethod(readonly=True)
    def read(self) -> int:
        """Return the number."""
        return self.value


class Journal(ActiveObject):
    """A list of marks, which grows: what a full disk refuses."""

    marks: list[str]

    def __init__(self) -> None:
        self.marks = []

    @activemethod
    def add(self, mark: str) -> int:
        """Append one; return how many there are."""
        self.marks.append(mark)
        return len(self.marks)

    @activemethod(readonly=True)
    def read(self) -> int:
        """Return how many there are."""
        return len(self.marks)

    @activemethod(readonly=True)
    def content(self) -> list[str]:
        """Return all marks, in order."""
        return list(self.marks)
