"""The time by which what is kept of copies is dated: a wall clock that never goes back.

    the wall clock goes back while this peer runs: as much is added to it from then on
    it is found to have gone back while the peer was down: what was dated before is of
    unknown age for good, and what is dated from then on comes after it

A wall clock that goes forward is believed: the machine may have slept, and what is too
old harms nobody.

Rules of this file: it reads no clock. Nothing is dated by what is not on disk: until then
dates are too early, which makes what they are of too old.

Source: reliability.md 3.8; decision 11.
"""

from __future__ import annotations

from typing import NamedTuple

# A step back of less is not noticed, and two clocks are never read at once. An age over a
# restart may be too low by this.
STEP_S = 0.1


class Dates(NamedTuple):
    """What is on disk of it, in milliseconds.

    `added_ms`: to the wall clock; `unknown_ms`: what was dated until then has no age.
    """

    added_ms: int = 0
    unknown_ms: int = 0


class KeptTime:
    """The wall clock of one peer, as far as it may be believed."""

    def __init__(self, now_s: float, wall_s: float) -> None:
        """Begin with nothing on disk; `now_s`: by a clock that has no steps."""
        self.saved = self.wanted = Dates()
        self._offset_s = wall_s - now_s

    def restore(self, dates: Dates | None, latest_ms: int, wall_s: float) -> None:
        """Take what is on disk; None: it cannot be read, so no date there says anything.

        `latest_ms`: the latest of all dates that are there.
        """
        self.saved = self.wanted = dates or Dates()
        latest_ms = max(latest_ms, self.saved.unknown_ms)
        behind_ms = max(0, latest_ms - self.at_ms(wall_s))
        if behind_ms or dates is None:
            self.wanted = Dates(self.saved.added_ms + behind_ms, latest_ms)

    def look(self, now_s: float, wall_s: float) -> bool:
        """Compare the clocks; return whether there is something to be saved."""
        back_s = self._offset_s - (wall_s - now_s)
        if back_s >= STEP_S:
            added_ms = self.wanted.added_ms + int(back_s * 1000)
            self.wanted = self.wanted._replace(added_ms=added_ms)
        if back_s >= STEP_S or back_s < 0.0:
            self._offset_s = wall_s - now_s
        return self.wanted != self.saved

    def at_ms(self, wall_s: float) -> int:
        """Return the date of now, by what is on disk."""
        return int(wall_s * 1000) + self.saved.added_ms

    def age_s(self, at_ms: int, wall_s: float) -> float | None:
        """Return how long ago a date was, None where nobody knows."""
        if at_ms <= self.wanted.unknown_ms:
            return None
        return max(0.0, (self.at_ms(wall_s) - at_ms) / 1000)
