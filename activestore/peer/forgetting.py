"""Answers that nobody may ask for any more go, disk by disk.

How old an answer is, is counted in the time for which a peer ran on the disk that has it:
no two clocks need agree, and one that is set costs nothing. Time in which no peer ran is
not counted, so an answer lives rather longer than it must.

Rules of this file: one bounded look at a time, in the writer; a table of answers of any
size is gone round, with a rest between two looks.

Source: reliability.md 3.7.
"""

from __future__ import annotations

from activestore.peer.table import Table
from activestore.storage.engine import Swept

# How often all answers are looked at, and their age is counted, in seconds.
EXPIRE_S = 60.0
# Answers of one look: some 5 ms in which no commit begins.
EXPIRE_COUNT = 1000
# From one look of a round to the next. So 2,000 answers a second are looked at: clients
# that each ask once leave fewer, and where n a second come, which must stay for k seconds,
# a round takes k * n / (2000 - n) seconds.
REST_S = 0.5


class Forgetting:
    """Drops the old answers of one disk."""

    def __init__(self, table: Table) -> None:
        self._table = table
        # Twice: what a peer may ask again for a client of its own. An answer that came just
        # before its age is counted is taken for as old as the time between two counts.
        self._kept_s = 2 * table.settings.reply_keep_s + EXPIRE_S
        self._counted_s = table.clock()
        self._due_s = self._counted_s + EXPIRE_S
        self._is_looking = False

    def look(self, now_s: float) -> None:
        """Look at some answers where it is time."""
        if now_s < self._due_s or self._is_looking:
            return
        ran_s = 0.0
        if now_s - self._counted_s >= EXPIRE_S:
            # Never more: what came just before, after a long pause, would be old at once.
            ran_s, self._counted_s = EXPIRE_S, now_s
        self._is_looking = True
        self._due_s = now_s + REST_S

        def then(swept: Swept | None, error: BaseException | None) -> None:
            self._is_looking = False
            if error is not None:
                self._table.note("warning", f"old answers stay error={error}")
            if swept is None or swept.is_round:
                self._due_s = self._counted_s + EXPIRE_S

        self._table.storage.write(
            lambda engine: engine.expire_replies(
                ran_s, self._kept_s, limit=EXPIRE_COUNT
            ),
            then,
        )
