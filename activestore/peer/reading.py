"""Reads of a copy that is led elsewhere, and what answers tell of the state they show.

A client that can do with an older state says how old it may be, and which one it has seen
already. A copy here serves it if a leader vouched for it lately enough, if what is on this
disk is known to be committed, as the call comes and as the state is read for it, and if it
is not behind what the client has seen; else the leader is asked, as for other calls.

Rules of this file: it looks and tells; time is this peer's own clock, and what is not
known counts as too old.

Source: design section 8; reliability.md 3.8 (bounded staleness); schemas/protocol.md
section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from activestore.core.effects import Saw
from activestore.core.register import unpack_register
from activestore.core.replication import Replication
from activestore.errors import CorruptRecordError
from activestore.ids import ObjectId, PeerId
from activestore.peer import extras
from activestore.wire.messages import Call

STALENESS = "staleness_ms"


class Reading:
    """What one peer may answer from its copies, and tells of them."""

    def __init__(
        self,
        me: PeerId,
        core: Replication,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._me = me
        self._core = core
        self._clock = clock
        self._wall_clock = wall_clock

    def may_serve(self, message: Call) -> bool:
        """Whether a copy here, led elsewhere, is new enough for a call."""
        object_id, extra = ObjectId(message.object_id), message.extra or {}
        bound_ms = extras.number(extra, STALENESS)
        register = self._core.register_of(object_id)
        if not bound_ms or register is None:
            return False
        if register.is_quarantined or register.is_deleted or not register.is_voter:
            return False
        if not self._core.is_shown(object_id):
            return False
        if tuple(register.point) < _pair(extra.get("seen")):
            return False
        return self._is_within(object_id, bound_ms)

    def is_young(self, message: Call) -> bool:
        """Whether what is committed of an object led here will do for a call as it is.

        Its leader may be cut off and not know it: it has what it was told last.
        """
        object_id, extra = ObjectId(message.object_id), message.extra or {}
        register = self._core.register_of(object_id)
        if register is None or not self._core.is_led(object_id):
            return False
        if not self._core.is_shown(object_id):
            return False  # Something is under way, and may be in doubt.
        if tuple(register.point) < _pair(extra.get("seen")):
            return False
        return self._is_within(object_id, extras.number(extra, STALENESS))

    def _is_within(self, object_id: ObjectId, bound_ms: float) -> bool:
        age_s = self._core.age_s(object_id, self._clock())
        return age_s is not None and age_s * 1000 <= bound_ms

    def is_proven(self, object_id: ObjectId, row: bytes | None) -> bool:
        """Whether what was read of a copy, with this row of its register, is committed.

        It may be newer than what was there as its readers came, and be taken back: with
        five voters a leader and this peer are no majority.
        """
        if row is None:
            return False
        try:
            register = unpack_register(row)
        except CorruptRecordError:
            return False  # Of what it tells nothing is known.
        if register.is_quarantined or not register.has_state:
            return False
        return self._core.is_committed(object_id, register.epoch, register.number)

    def told(self, saw: Saw) -> dict[str, Any]:
        """Return what `extra` of a Reply tells of the state that it shows.

        The pair of epoch and number is at least that of this state.
        """
        object_id = saw.object_id
        register = self._core.register_of(object_id)
        epoch, number, age_s = 0, saw.version, 0.0
        if register is not None:
            epoch, number = register.point
            if self._core.is_led(object_id):
                # What is under way may never be committed under this number.
                number = self._core.committed_of(object_id)
                if saw.is_unasked:
                    age_s = self._core.age_s(object_id, self._clock()) or 0.0
            else:
                told_s = self._core.age_s(object_id, self._clock())
                known_s = max(0.0, self._wall_clock() - register.changed_s)
                age_s = known_s if told_s is None else told_s
        return {
            "version": saw.version, "epoch": epoch, "number": number,
            "age_ms": int(age_s * 1000), "peer_id": self._me,
        }  # fmt: skip


def _pair(seen: Any) -> tuple[int, int]:
    """Return counter and number of what a client has seen, (0, 0) for anything else."""
    if type(seen) is list and len(seen) == 2 and all(type(n) is int for n in seen):
        return seen[0], seen[1]
    return 0, 0
