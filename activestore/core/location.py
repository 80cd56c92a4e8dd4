"""Where an object is: here, at home, or where it was heard to have gone.

The object itself is the authority: whoever holds it knows, and whoever does not can only
guess. Its home, named in its id, and the home's two buddies keep where it went if it
left (*places*); everybody else remembers what it was told (*hints*, bounded). A wrong
guess costs a redirect and never an answer: only the home, or the holder, says that an
object does not exist.

An object with replicas is led by one peer; the others *follow*: they have a copy on
disk, say at once who leads, and lead themselves when that one is gone. Wherever it is
spoken of, the other members are named with its leader.

Rules of this file: pure; facts and lookups only. What is written to disk, asked and sent
is its caller's affair. A newer epoch always wins over an older one, and of one epoch the
newer group.

Source: design sections 7 and 8; reliability.md 2.2.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterable
from typing import NamedTuple

from activestore.ids import ObjectId, PeerId, home_of
from activestore.wire.gossip import OTHERS_MAX
from activestore.wire.replicas import NOBODY

# What was heard of objects elsewhere: 100 bytes of Python each, and 40 for each replica.
HINTS_MAX = 65_536


class Place(NamedTuple):
    """The peer that holds an object, under the epoch in which it began to.

    `others`: peers that hold a copy too, and may lead when that one is gone; of a larger
    group the first ones. `group_version`: of the group that names them; it grows when
    members change while the same peer goes on leading.
    """

    peer_id: PeerId
    epoch: int
    others: tuple[PeerId, ...] = ()
    group_version: int = 0

    def is_newer(self, than: Place | None) -> bool:
        """Whether this was said later than what is known."""
        if than is None:
            return True
        return (self.epoch, self.group_version) > (than.epoch, than.group_version)

    @property
    def members(self) -> tuple[PeerId, ...]:
        """All that hold the object, the leader first."""
        return (self.peer_id, *self.others)


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
        # Copies on disk of objects that another member of their group leads, or nobody
        # does; `peer_id` is NOBODY where no other is known to.
        self.followed: dict[ObjectId, Place] = {}
        # Those of them of which no state is here, only a vote: never led here.
        self.witnessed: set[ObjectId] = set()
        self._hints: OrderedDict[ObjectId, Place] = OrderedDict()
        self._hints_max = hints_max

    def is_here(self, object_id: ObjectId) -> bool:
        """Whether a call of the object is to be answered here, be it that it is missing."""
        if home_of(object_id) == self.me:
            if object_id in self.followed:
                return False
            return object_id not in self.places or object_id in self.guests
        return object_id in self.guests

    def place_of(self, object_id: ObjectId) -> Place | None:
        """Return where the object was last known to be, None where nothing was heard.

        Its home is not an answer: whoever has heard nothing asks there. What a keeper
        was told may be older than what it heard later: buddies change. Where nobody is
        known to lead an object with replicas, another member is named.
        """
        place, hint = self.places.get(object_id), self._hints.get(object_id)
        if hint is not None and hint.is_newer(place):
            self._hints.move_to_end(object_id)
            place = hint
        followed = self.followed.get(object_id)
        if followed is None or (place is not None and place.is_newer(followed)):
            return place
        return self._elsewhere(followed)

    def _elsewhere(self, place: Place) -> Place | None:
        """Return a place that names somebody; where that is a guess, of an older epoch."""
        if place.peer_id != NOBODY:
            return place
        if not place.others:
            return None
        return Place(place.others[0], max(place.epoch - 1, 0), place.others[1:])

    def hold(self, object_id: ObjectId) -> None:
        """Note that the object is here now: it came, or is led here from now on."""
        self.staged.pop(object_id, None)
        self.followed.pop(object_id, None)
        self.witnessed.discard(object_id)
        self.places.pop(object_id, None)
        self._hints.pop(object_id, None)
        if home_of(object_id) != self.me:
            self.guests.add(object_id)

    def let_go(self, object_id: ObjectId) -> None:
        """Note that the object is not here any more: it was deleted, or has moved."""
        self.guests.discard(object_id)
        self.staged.pop(object_id, None)

    def follow(
        self, object_id: ObjectId, place: Place, *, is_witness: bool = False
    ) -> bool:
        """Note that a copy is here of an object that this peer does not lead.

        Args:
            object_id: A member of its group we are.
            place: Who leads it, NOBODY or we ourselves where nobody is known to, and the
                other members, of which we may be one.
            is_witness: No copy is here, only a vote.

        Returns:
            False where something newer is known of it.
        """
        self.let_go(object_id)
        if is_witness:
            self.witnessed.add(object_id)
        else:
            self.witnessed.discard(object_id)
        known = self.followed.get(object_id)
        if known is not None and known.is_newer(place):
            return False
        leader = NOBODY if place.peer_id == self.me else place.peer_id
        others = [one for one in place.others if one not in {self.me, leader}]
        self.followed[object_id] = place._replace(
            peer_id=leader, others=tuple(others[:OTHERS_MAX])
        )
        return True

    def unfollow(self, object_id: ObjectId, *, is_gone: bool = False) -> None:
        """Note that no copy is here any more; `is_gone`: for the object was deleted.

        Else others have it: what was known of them is kept, so that the home does not
        say that it does not exist.
        """
        place = self.place_of(object_id)
        self.witnessed.discard(object_id)
        if is_gone:
            self.guests.discard(object_id)  # It may have been led here at last.
        if self.followed.pop(object_id, None) is None or is_gone or place is None:
            return
        if home_of(object_id) == self.me:
            self.learn_place(object_id, place)
        else:
            self.hear(object_id, place)

    @property
    def copies_count(self) -> int:
        """How many copies are here of objects that others lead."""
        return len(self.followed) - len(self.witnessed)

    def leader_of(self, object_id: ObjectId) -> PeerId:
        """Return who is believed to lead an object that is followed; NOBODY for nobody."""
        followed = self.followed.get(object_id)
        if followed is None:
            return NOBODY
        for place in (self.places.get(object_id), self._hints.get(object_id)):
            if place is not None and place.is_newer(followed):
                followed = place
        return followed.peer_id

    def learn_place(self, object_id: ObjectId, place: Place) -> bool:
        """Keep, as home or buddy, where an object went; False where newer is known."""
        if not place.is_newer(self.places.get(object_id)):
            return False
        hint = self._hints.get(object_id)
        if hint is not None and not hint.is_newer(place):
            del self._hints[object_id]
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
        tables = (self.places, self._hints, self.followed)
        if not all(place.is_newer(known.get(object_id)) for known in tables):
            return False
        if place.peer_id == self.me or self.is_here(object_id):
            return False
        if place[:2] == (home_of(object_id), 0):
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
        """Drop the hints that lead to nobody but a peer that is gone."""
        for object_id, place in list(self._hints.items()):
            if place.members == (peer_id,):
                del self._hints[object_id]

    def route(
        self,
        object_id: ObjectId,
        alive: Iterable[PeerId],
        buddies: Iterable[PeerId],
        doubted: Container[PeerId] = (),
    ) -> list[PeerId]:
        """Return whom to ask for the object, in order; empty where nobody can know.

        Args:
            object_id: An object that is not here.
            alive: The peers that can be reached.
            buddies: The buddies of its home.
            doubted: Of those the suspects: members of a group are asked after its others.
        """
        reachable = frozenset(alive)
        found: list[PeerId] = []
        place = self.place_of(object_id)
        members = () if place is None else place.members
        if len(members) > 1:
            members = tuple(sorted(members, key=lambda one: one in doubted))
        for peer_id in (*members, home_of(object_id), *buddies):
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
        for object_id, place in self.followed.items():
            assert not self.is_here(object_id), (object_id, "it is followed")
            assert object_id not in self.staged, (
                object_id,
                "it is followed and staged",
            )
            assert self.me not in place.members, (object_id, "it names this peer")
            assert len(place.others) <= OTHERS_MAX
        assert self.witnessed <= self.followed.keys()
