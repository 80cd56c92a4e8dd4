"""Scrubbing: everything on disk is read again now and then, before it is needed.

A disk forgets in silence: a sector that was good when it was written cannot be read a year
later, and what nobody calls nobody misses, until the other copies are gone too. So each
peer reads all it keeps, at a bounded rate, and compares checksums. What is damaged is
named; an object with replicas is brought back from them, one without waits for a person.

    resting --interval--> walking --end--> resting        damage -> on_damage
    damaged --looked at again: whole--> repaired

Rules of this file: it reads and never mends; a slice at a time, in the keeper's thread, so
that nothing waits for it. When the last walk ended is on disk: a restart begins no walk.

Source: reliability.md 4.2 (scrub; the rates of latent errors).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from activestore.errors import CorruptRecordError
from activestore.ids import ObjectId
from activestore.peer.table import Table
from activestore.storage.engine import ZERO_ID, Change, Damage, Engine, Row
from activestore.wire import packing

# A tenth of what an SD card reads: calls do not feel it, and 1 TiB takes 36 hours.
BYTES_PER_S = 8 * 1024 * 1024
# What one slice reads at most, however late it comes: a large piece of a file more.
SLICE_BYTES_MAX = 2 * BYTES_PER_S
# Records that cost next to no bytes must not make a slice long.
SLICE_RECORDS_MAX = 10_000
# When a walk that failed, or ended for another reason than its end, begins again.
AGAIN_S = 3600.0
# When an object that is being brought back is looked at again; doubled each time.
LOOK_S, LOOK_S_MAX = 5.0, 3600.0
# Damages that are kept in mind; the others are in the log.
DAMAGES_MAX = 1000
# Damages that `status` lists.
SHOWN_MAX = 100
_ROW = b"scrub"


class Walk:
    """One reading of everything, slice by slice; a slice runs in the keeper's thread."""

    def __init__(self) -> None:
        self.checked_bytes = 0
        self.total_bytes = 0
        self._found: Iterator[Damage | int] | None = None

    def slice(self, engine: Engine, allowed_bytes: int) -> tuple[list[Damage], bool]:
        """Read on; return the damages found, and whether that was all.

        Raises:
            ActiveStoreError, OSError: what cannot be read is not one record or file.
        """
        if self._found is None:
            self.total_bytes = engine.usage().used_bytes
            self._found = engine.verify()
        end_bytes = self.checked_bytes + allowed_bytes
        damages: list[Damage] = []
        for _ in range(SLICE_RECORDS_MAX):
            found = next(self._found, None)
            if found is None:
                return damages, True
            if isinstance(found, Damage):
                damages.append(found)
            else:
                self.checked_bytes += found
                if self.checked_bytes >= end_bytes:
                    break
        return damages, False


class _Known(NamedTuple):
    """A damage, in which walk it was seen, and when it is looked at again, if it is."""

    damage: Damage
    walk: Walk
    due_s: float
    wait_s: float


class Scrubbing:
    """The walks of one peer over what it keeps."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._interval_s = table.settings.scrub_interval_s
        self._walk: Walk | None = None
        self._is_open = False
        self._slice_s = 0.0
        self._due_wall_s: float | None = None
        self._ended_wall_s = 0.0
        self._last_bytes = 0
        self._known: dict[Any, _Known] = {}
        self._damaged_count = self._repaired_count = 0
        # Called with each object that is damaged; says whether it will be brought back.
        self.on_damage: Callable[[ObjectId, Damage], bool] = lambda object_id, damage: (
            False
        )

    def restore(self, engine: Engine) -> None:
        """Read from disk when the last walk ended."""
        now_s = self._table.wall_clock()
        try:
            ended_s, size, *_later = packing.unpack(engine.row("cluster", _ROW) or b"")
            self._ended_wall_s, self._last_bytes = float(ended_s), int(size)
            self._due_wall_s = min(self._ended_wall_s, now_s) + self._interval_s
        except (CorruptRecordError, *packing.UNPACK_ERRORS):
            # Peers that begin together do not read together for ever.
            share = self._table.random() if self._interval_s else 1.0
            self._due_wall_s = now_s + share * self._interval_s

    def begin(self) -> None:
        """Begin a walk now, unless one is under way."""
        if self._walk is None:
            self._walk = Walk()
            self._slice_s = self._table.clock()

    def look(self, now_s: float) -> None:
        """Begin what is due, and go on with what is under way."""
        if self._is_open or self._due_wall_s is None or self._table.storage.is_closing:
            return
        is_due = self._table.wall_clock() >= self._due_wall_s
        if self._walk is None and self._interval_s and is_due:
            self.begin()
        if self._look_again(now_s):
            return
        if self._walk is not None:
            self._read_on(self._walk, now_s)

    # -- a walk ------------------------------------------------------------------------

    def _read_on(self, walk: Walk, now_s: float) -> None:
        passed_s = now_s - self._slice_s
        allowed = min(int(passed_s * BYTES_PER_S), SLICE_BYTES_MAX)
        if allowed <= 0:
            return
        self._is_open, self._slice_s = True, now_s

        def then(found: Any, error: BaseException | None) -> None:
            self._is_open = False
            if error is not None:
                self._give_up(error)
                return
            damages, is_end = found
            for damage in damages:
                self._damaged(damage, walk)
            if is_end:
                self._end(walk)

        self._table.storage.maintain(lambda engine: walk.slice(engine, allowed), then)

    def _give_up(self, error: BaseException) -> None:
        self._walk = None
        self._due_wall_s = self._table.wall_clock() + AGAIN_S
        self._table.note("warning", f"scrub was broken off reason={error}")

    def _end(self, walk: Walk) -> None:
        self._walk = None
        self._ended_wall_s = self._table.wall_clock()
        self._due_wall_s = self._ended_wall_s + self._interval_s
        self._last_bytes = walk.checked_bytes
        # What it did not see again was deleted, or written anew by somebody.
        for key, known in list(self._known.items()):
            if known.walk is not walk:
                del self._known[key]
        self._table.note(
            "info", f"scrub done bytes={walk.checked_bytes} damaged={len(self._known)}"
        )
        value = packing.pack([self._ended_wall_s, walk.checked_bytes])
        change = Change(ZERO_ID, rows=[Row("cluster", _ROW, value)])
        self._table.storage.write(lambda engine: engine.commit([change]), _pass)

    # -- damage ------------------------------------------------------------------------

    def _damaged(self, damage: Damage, walk: Walk) -> None:
        object_id = damage.object_id
        key = (object_id, damage.where)
        is_new = key not in self._known
        is_coming = object_id is not None and self.on_damage(object_id, damage)
        if is_new:
            self._damaged_count += 1
            named = "" if object_id is None else f"object={object_id.hex()} "
            advice = "bringing it back" if is_coming else "restore it from a backup"
            self._table.note(
                "error", f"damaged on disk {named}where={damage.where!r} "
                f"reason={damage.reason!r} advice={advice!r}",
            )  # fmt: skip
        if is_new and len(self._known) >= DAMAGES_MAX:
            return
        due_s = self._table.clock() + LOOK_S if is_coming else float("inf")
        self._known[key] = _Known(damage, walk, due_s, LOOK_S)

    def _look_again(self, now_s: float) -> bool:
        """Look at one object that is being brought back; return whether one is due."""
        key = next(
            (key for key, one in self._known.items() if one.due_s <= now_s), None
        )
        if key is None:
            return False
        object_id = self._known[key].damage.object_id
        assert object_id is not None
        self._is_open = True

        def then(found: Any, error: BaseException | None) -> None:
            self._is_open = False
            left, is_there = found if error is None else (None, True)
            for known_key, known in list(self._known.items()):
                if known_key[0] != object_id:
                    continue
                if left is None or known_key[1] in left:
                    self._still_damaged(known_key, known)
                    continue
                del self._known[known_key]
                if is_there:
                    self._repaired_count += 1
                    self._table.note(
                        "info", f"repaired object={object_id.hex()} "
                        f"where={known.damage.where!r}",
                    )  # fmt: skip

        self._table.storage.maintain(lambda engine: _left(engine, object_id), then)
        return True

    def _still_damaged(self, key: Any, known: _Known) -> None:
        wait_s = min(2 * known.wait_s, LOOK_S_MAX)
        due_s = self._table.clock() + wait_s
        self._known[key] = known._replace(due_s=due_s, wait_s=wait_s)
        self.on_damage(key[0], known.damage)

    # -- status ------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what `status` tells of it; times are of the wall clock."""
        walk = self._walk
        share = 0.0
        if walk is not None and walk.total_bytes:
            share = min(1.0, walk.checked_bytes / walk.total_bytes)
        return {
            "is_running": walk is not None,
            "progress": share,
            "last_s": self._ended_wall_s,
            "last_bytes": self._last_bytes,
            "next_s": (self._due_wall_s or 0.0) if self._interval_s else 0.0,
            "damaged": [
                {
                    "object_id": None
                    if one.damage.object_id is None
                    else bytes(one.damage.object_id),
                    "where": one.damage.where,
                    "reason": one.damage.reason,
                }
                for one in list(self._known.values())[:SHOWN_MAX]
            ],
            "damaged_count": self._damaged_count,
            "repaired_count": self._repaired_count,
        }


def _left(engine: Engine, object_id: ObjectId) -> tuple[set[str], bool]:
    """Return where an object is damaged now, and whether it is there at all."""
    damages = engine.verify_object(object_id)
    if damages:
        return {one.where for one in damages}, True
    return set(), engine.head(object_id) is not None


def _pass(_value: Any, _error: BaseException | None) -> None:
    """Take note of what needs no answer."""
