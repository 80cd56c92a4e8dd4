"""Who leads each object, as far as this peer knows; and searches for a leader.

Rules of this file: it decides nothing; see `takeover`.

Source: decision 11.
"""

from __future__ import annotations

import enum

from activestore.core.acceptor import Acceptor
from activestore.core.replication_desk import Desk
from activestore.core.replication_effects import Followed
from activestore.ids import ObjectId, PeerId
from activestore.wire.replicas import NOBODY, Ask, Ballot, Point, Promise


class Phase(enum.Enum):
    """What a search waits for."""

    ASKING = 0
    WAITING = 1  # for its turn
    PREPARING = 2
    FETCHING = 3
    ACCEPTING = 4  # the disk here, then leaders
    STUCK = 5  # for a voter to come back
    LOOKING = 6  # for another, who was promised an epoch


class Search:
    """An object of which this peer knows no leader that answers."""

    __slots__ = (
        "asked",
        "attempt",
        "ballot",
        "base",
        "best",
        "due_s",
        "is_background",
        "phase",
        "promises",
        "refusals",
        "seen",
        "wanted_until_s",
    )

    def __init__(self, *, is_background: bool) -> None:
        self.phase = Phase.WAITING
        self.is_background = is_background
        self.ballot = Ballot()
        self.seen = 0  # the highest counter that refused one of this peer
        self.attempt = 0
        self.due_s = 0.0
        self.wanted_until_s: float | None = None
        self.asked: set[PeerId] = set()
        self.promises: dict[PeerId, Promise] = {}
        self.refusals: set[PeerId] = set()
        self.best: Promise | None = None
        self.base = Point()


class Followings:
    """The known leaders; found by object, and by who leads."""

    def __init__(self, desk: Desk, acceptor: Acceptor) -> None:
        self._desk = desk
        self._acceptor = acceptor
        self.leaders: dict[ObjectId, Ballot] = {}
        self._led_by: dict[PeerId, dict[ObjectId, None]] = {}
        # The newest state of an object, by number, that no copy which answers has.
        self.missing: dict[ObjectId, int] = {}
        # Copies whose registers could not be read when this peer started.
        self._unreadable: dict[ObjectId, None] = {}

    def note_unreadable(self, object_id: ObjectId) -> None:
        """Take that a copy has no register that could be read: it has no vote."""
        self._unreadable[object_id] = None

    def ask_about_unreadable(self, peer_id: PeerId) -> None:
        """Ask who leads what this peer cannot: it may be taken for the leader itself."""
        for object_id in list(self._unreadable):
            if self._acceptor.latest(object_id) is None:
                self._desk.send(peer_id, Ask(object_id))
            else:
                del self._unreadable[object_id]  # It has got a new one.

    def _lead(self, object_id: ObjectId, leader: Ballot) -> None:
        self._unlead(object_id)
        self.leaders[object_id] = leader
        self._led_by.setdefault(leader.leader, {})[object_id] = None
        if leader.leader != self._desk.me:
            self._desk.refusals.forget(object_id)
            self._tell_followed(object_id, leader)

    def _unlead(self, object_id: ObjectId) -> Ballot | None:
        self.missing.pop(object_id, None)
        known = self.leaders.pop(object_id, None)
        if known is not None:
            objects = self._led_by.get(known.leader, {})
            objects.pop(object_id, None)
            if not objects:
                self._led_by.pop(known.leader, None)
        return known

    def _shown_missing(self, object_id: ObjectId) -> str:
        number = self.missing.get(object_id)
        if number is None:
            return ""
        return (
            f"the newest state, number {number}, is known here to the witness or a damaged "
            "copy only: a member that has it must come back, or else `force` a copy, "
            "which gives that state up"
        )

    def _tell_followed(self, object_id: ObjectId, leader: Ballot) -> None:
        register = self._acceptor.latest(object_id)
        if register is not None:
            effect = Followed(object_id, leader.leader, leader.counter, register.config)
            self._desk.emit(effect)

    def lose_leader(self, object_id: ObjectId) -> None:
        """Note that nobody is known to lead."""
        known = self._unlead(object_id)
        if known is not None:
            self._tell_followed(object_id, Ballot(known.counter, NOBODY))
