"""Where an object is: here, at home, or where it was heard to have gone.

The object itself is the authority: whoever holds it knows, and whoever does not can only
guess. Its home, named in its id, and the home's two buddies keep where it went if it
left (*places*); everybody else remembers what it was told (*hints*, bounded). A wrong
guess costs a redirect and never an answer: only the home, or the holder, says that an
object does not exist.

Rules of this file: pure; facts and lookups only. What is written to disk, asked and sent
is its caller's affair. A newer epoch always wins over an older one.

Source: design section 7; reliability.md 2.2.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from activestore.ids import ObjectId, PeerId, home_of

# What was heard of objects elsewhere: 100 bytes of Python each.
HINTS_MAX = 65_536


class Place(NamedTuple):
    """The peer that holds an object, under the epoch in which it began to."""

    peer_id: PeerId
    epoch: int


class Location:
    """What one peer knows of where objects are."""

    def __init__(self, me: PeerId, *, hints_max: int = HINTS_MAX) -> None:
        self.me = me
        # Objects held here whose home is another peer.
        self.guests: set[ObjectId] = set()
        # Objects that left: those whose home this is, or whose home we are a buddy of.
        self.places: dict[ObjectId, Place] = {}
        # Copies on disk that are not the object, or not yet.
        self.staged: dict[ObjectId, Place] = {}
        self._hints: OrderedDict[ObjectId, Place] = OrderedDict()
        self._hints_max = hints_max

    def is_here(self, object_id: ObjectId) -> bool:
        """Whether a call of the object is to be answered here, be it that it is missing."""
        if home_of(object_id) == self.me:
            return object_id not in self.places or object_id in self.guests
        return object_id in self.guests

    def place_of(self, object_id: ObjectId) -> Place | None:
        """Return where the object was last known to be, None where nothing was heard.

        Its home is not an answer: whoever has heard nothing asks there. What a keeper
        was told may be older than what it heard later: buddies change.
        """
        place, hint = self.places.get(object_id), self._hints.get(object_id)
        if hint is None or (place is not None and place.epoch >= hint.epoch):
            return place
        self._hints.move_to_end(object_id)
        return hint

    def hold(self, object_id: ObjectId) -> None:
        """Note that the object is here now."""
        self.staged.pop(object_id, None)
        self.places.pop(object_id, None)
        self._hints.pop(object_id, None)
        if home_of(object_id) != self.me:
            self.guests.add(object_id)

    def let_go(self, object_id: ObjectId) -> None:
        """Note that the object is not here any more: it was deleted, or has moved."""
        self.guests.discard(object_id)
        self.staged.pop(object_id, None)

    def learn_place(self, object_id: ObjectId, place: Place) -> bool:
        """Keep, as home or buddy, where an object went; False where newer is known."""
        known = self.places.get(object_id)
        if known is not None and known.epoch >= place.epoch:
            return False
        self._hints.pop(object_id, None)
        if place.peer_id == self.me:
            self.places.pop(object_id, None)
        else:
            self.places[object_id] = place
        return True

    def forget_place(self, object_id: ObjectId, epoch: int) -> bool:
        """Drop what is known up to `epoch`: the object is back, or was deleted."""
        known = self.places.get(object_id)
        if known is None or known.epoch > epoch:
            return False
        del self.places[object_id]
        return True

    def hear(self, object_id: ObjectId, place: Place) -> bool:
        """Remember a hint; False where something as new is known."""
        for known in (self.places.get(object_id), self._hints.get(object_id)):
            if known is not None and known.epoch >= place.epoch:
                return False
        if place.peer_id == self.me or self.is_here(object_id):
            return False
        if place == (home_of(object_id), 0):
            return False  # So says who has heard nothing.
        if object_id in self.places:
            self.places[object_id] = place  # What was kept for others is outdated.
            return True
        self._hints[object_id] = place
        self._hints.move_to_end(object_id)
        if len(self._hints) > self._hints_max:
            self._hints.popitem(last=False)
        return True

    def doubt(self, object_id: ObjectId, place: Place) -> None:
        """Drop a hint that led nowhere, unless a newer one came since."""
        if self._hints.get(object_id) == place:
            del self._hints[object_id]

    def doubt_peer(self, peer_id: PeerId) -> None:
        """Drop the hints that lead to a peer that is gone."""
        for object_id in [o for o, p in self._hints.items() if p.peer_id == peer_id]:
            del self._hints[object_id]

    def route(
        self, object_id: ObjectId, alive: Iterable[PeerId], buddies: Iterable[PeerId]
    ) -> list[PeerId]:
        """Return whom to ask for the object, in order; empty where nobody can know.

        Args:
            object_id: An object that is not here.
            alive: The peers that can be reached.
            buddies: The buddies of its home.
        """
        reachable = frozenset(alive)
        found: list[PeerId] = []
        place = self.place_of(object_id)
        candidates = [] if place is None else [place.peer_id]
        candidates += [home_of(object_id), *buddies]
        for peer_id in candidates:
            if peer_id != self.me and peer_id in reachable and peer_id not in found:
                found.append(peer_id)
        return found

    def check(self) -> None:
        """Assert every invariant; for tests."""
        assert len(self._hints) <= self._hints_max
        for object_id in self.guests:
            assert home_of(object_id) != self.me, "an object at home is no guest"
        for object_id, place in self.places.items():
            assert place.peer_id != self.me, (object_id, "it is said to be elsewhere")
