"""When what is kept of copies was so: by a clock that does not go back, kept on disk.

Rules of this file: it reads the clocks and the disk; what follows is decided by the core.

Source: reliability.md 3.8; decision 11.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from activestore.core.kept_time import Dates, KeptTime
from activestore.core.register import Heard, Register, Vouch
from activestore.errors import CorruptRecordError
from activestore.peer.table import Table
from activestore.storage.engine import ZERO_ID, Change, Engine, Row
from activestore.wire import packing

_ROW = b"dates"
# Two clocks that were read farther apart are not compared: a tenth of the least step.
APART_S = 0.01


class Dating:
    """The dates of one peer."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._time = KeptTime(table.clock(), table.wall_clock())
        self._is_writing = False

    def restore(self, engine: Engine, vouches: Iterable[Vouch | None]) -> None:
        """Read what is on disk, of which these are all dates."""
        latest_ms = max((vouch.at_ms for vouch in vouches if vouch), default=0)
        try:
            added_ms, unknown_ms, *_later = packing.unpack(
                engine.row("cluster", _ROW) or packing.pack(Dates())
            )
            dates = Dates(int(added_ms), int(unknown_ms))
        except (CorruptRecordError, *packing.UNPACK_ERRORS):
            dates = None
        self._time.restore(dates, latest_ms, self._table.wall_clock())
        wanted = self._time.wanted
        if wanted != self._time.saved and engine.commit([_change(wanted)]) == [None]:
            self._time.saved = wanted

    def wall_s(self) -> float:
        """Return the time to date something by."""
        return self._time.at_ms(self._table.wall_clock()) / 1000

    def heard(self, register: Register, vouch: Vouch | None) -> Heard | None:
        """Return what was known of a register before this start, as old as it is now."""
        if vouch is None:
            return None
        age_s = self._time.age_s(vouch.at_ms, self._table.wall_clock())
        at_s = None if age_s is None else self._table.clock() - age_s
        return Heard(register.epoch, vouch.committed, at_s)

    def look(self) -> None:
        """Write down where the wall clock went back; called a few times a second."""
        now_s, wall_s = self._table.clock(), self._table.wall_clock()
        is_apart = self._table.clock() - now_s > APART_S
        if is_apart or not self._time.look(now_s, wall_s) or self._is_writing:
            return
        dates = self._time.wanted
        change = _change(dates)
        self._is_writing = True

        def then(refused: Any, error: BaseException | None) -> None:
            self._is_writing = False
            if error is None and refused == [None]:
                self._time.saved = dates

        self._table.storage.write(lambda engine: engine.commit([change]), then)


def _change(dates: Dates) -> Change:
    return Change(ZERO_ID, rows=[Row("cluster", _ROW, bytes(packing.pack(dates)))])
