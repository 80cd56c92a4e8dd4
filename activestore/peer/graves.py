"""Objects that were deleted, as their keepers remember them for a while.

Who was away while its group replaced it has a copy of which nobody knows, and nobody is
left to ask once the object is deleted: its keepers are. That they have nothing of an
object is no proof that it was deleted; that it is here is.

Rules of this file: bounded in number and in time. It writes nothing; its caller commits
the rows.

Source: reliability.md 3.4 R10 ("keep tombstones >= 7 days"); decision 11.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from activestore.ids import ObjectId
from activestore.storage.engine import Engine, Row
from activestore.wire import packing

# A peer that was away for longer keeps its copies: an operator's vacation, and a repair.
KEPT_S = 30 * 24 * 3600.0
# 200 bytes of Python each, and 50 on disk.
GRAVES_MAX = 65_536
# Of those that are over so many go with each new one, in one commit.
GO_MAX = 16


class _Grave(NamedTuple):
    buried_s: float  # wall clock
    lineage: int


class Graves:
    """What one keeper remembers of objects that were deleted, the oldest first."""

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self._graves: dict[ObjectId, _Grave] = {}

    def restore(self, engine: Engine) -> None:
        """Read them from disk."""
        found = []
        for key, value in engine.rows("grave"):
            grave = _unpacked(value)
            if grave is not None:
                found.append((ObjectId(key), grave))
        self._graves = dict(sorted(found, key=lambda one: one[1].buried_s))

    def lineage_of(self, object_id: ObjectId) -> int | None:
        """Return the lineage in which an object was deleted; None: nothing is known."""
        grave = self._graves.get(object_id)
        return None if grave is None else grave.lineage

    def bury(self, object_id: ObjectId, lineage: int) -> list[Row]:
        """Remember an object that was deleted; return what is to be written."""
        now_s = self._wall_clock()
        known = self._graves.pop(object_id, None)
        grave = _Grave(now_s, max(lineage, known.lineage if known else 0))
        self._graves[object_id] = grave
        rows = [Row("grave", object_id, bytes(packing.pack(grave)))]
        while len(rows) <= GO_MAX:
            oldest, one = next(iter(self._graves.items()))
            if len(self._graves) <= GRAVES_MAX and now_s - one.buried_s <= KEPT_S:
                break
            del self._graves[oldest]
            rows.append(Row("grave", oldest, None))
        return rows

    def __len__(self) -> int:
        return len(self._graves)


def _unpacked(value: bytes) -> _Grave | None:
    """Return what a row tells; None for one that cannot be read, which proves nothing."""
    try:
        buried_s, lineage = packing.unpack(value)[:2]
        return _Grave(float(buried_s), int(lineage))
    except (ValueError, TypeError, *packing.UNPACK_ERRORS):
        return None
