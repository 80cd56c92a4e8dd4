"""Which rows on disk tell less of what is committed than their peer knows.

What a peer learns of a state after that is on its disk goes there with the next commit of
copies, whatever that is of: so it costs no sync, and is lost where none comes.

Rules of this file: it knows times and numbers, and no disk.

Source: reliability.md 3.8; decision 11.
"""

from __future__ import annotations

from collections.abc import Container

from activestore.core.register import Heard, Register
from activestore.core.replication_desk import Desk
from activestore.ids import ObjectId

# Of a state that is replaced sooner nothing is written: a busy object costs nothing.
SETTLE_S = 1.0
# An age on disk may be too high by this: reads have a leader vouch every second.
KEEP_S = 60.0


class Vouches:
    """What the rows of one peer tell, and since when which of them lag."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._kept: dict[ObjectId, Heard] = {}
        # In the order of the times, from when on what is known was so.
        self._lagging: dict[ObjectId, float] = {}

    def wrote(self, object_id: ObjectId, heard: Heard | None) -> None:
        """Note what a row tells."""
        self._lagging.pop(object_id, None)
        if heard is None:
            self._kept.pop(object_id, None)
        else:
            self._kept[object_id] = heard

    def note(self, object_id: ObjectId, register: Register, heard: Heard) -> None:
        """Note what is known of the state on disk, where its row tells less."""
        if heard.epoch != register.epoch or heard.committed < register.number:
            return
        kept, at_s = self._kept.get(object_id), heard.at_s
        if at_s is None or not register.is_voter or not register.has_state:
            return
        if kept is not None and kept.epoch == register.epoch:
            is_told = kept.committed >= register.number and kept.at_s is not None
            if is_told and at_s - (kept.at_s or 0.0) < KEEP_S:
                return
        self._lagging.setdefault(object_id, self._desk.now_s)

    def take(self, count: int) -> list[ObjectId]:
        """Return up to so many objects whose rows lag for long enough, once each."""
        found: list[ObjectId] = []
        for object_id, since_s in self._lagging.items():
            if len(found) >= count or self._desk.now_s - since_s < SETTLE_S:
                break
            found.append(object_id)
        for object_id in found:
            del self._lagging[object_id]
        return found

    def forget(self, object_id: ObjectId) -> None:
        """The register is gone."""
        self.wrote(object_id, None)

    def check(self, objects: Container[ObjectId]) -> None:
        """Make sure that nothing is kept of other objects than these."""
        assert all(one in objects for one in (*self._kept, *self._lagging))
