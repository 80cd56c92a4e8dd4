"""Whom a request for an object that is not here is sent to next, and what is said of it.

    believed leader, other members, home, buddies: each once, as far as they can be asked
    a member that may be gone is *passed by*: the others are asked instead of it

Rules of this file: it looks and tells; what becomes of a trip is decided by `relays`.

Source: design sections 7 and 8; reliability.md 2.2 and 3.4 R12.
"""

from __future__ import annotations

from activestore.core.location import Place
from activestore.core.peers import PeerState
from activestore.errors import (
    ActiveStoreError,
    MovedError,
    NoQuorumError,
    ObjectNotFoundError,
    UnavailableError,
)
from activestore.ids import ObjectId, PeerId, home_of
from activestore.peer.cluster import Cluster
from activestore.peer.extras import NOT_SAID, Unled
from activestore.peer.links import Link
from activestore.peer.trips import Trip, Wait
from activestore.wire.replicas import NOBODY

# Objects of which somebody said that it leads them in vain; the oldest is forgotten.
UNLED_MAX = 1024


class Routing:
    """What one peer knows of the way to objects elsewhere."""

    def __init__(self, cluster: Cluster, me: PeerId) -> None:
        self._cluster = cluster
        self._location = cluster.location
        self._me = me
        self._unled: dict[ObjectId, Unled] = {}

    def next_for(self, trip: Trip) -> tuple[PeerId, Link] | None:
        """Return whom to send a trip to next, and note it; None where nobody is left."""
        place = self._location.place_of(trip.object_id)
        for peer_id in self._cluster.route(trip.object_id):
            epoch = place.epoch if place is not None and place.peer_id == peer_id else 0
            if trip.asked.get(peer_id, -1) >= epoch:
                continue
            if self._is_unled(trip.object_id, peer_id, epoch):
                continue
            if peer_id in trip.passed and not self._is_back(peer_id):
                continue
            link = self._cluster.reach(peer_id)
            if link is None:
                continue
            trip.asked[peer_id] = epoch
            return peer_id, link
        return None

    def _is_back(self, peer_id: PeerId) -> bool:
        """Whether a peer that was passed by is there: asking it would not be waiting."""
        link = self._cluster.reach(peer_id)
        is_alive = self._cluster.state_of(peer_id) is PeerState.ALIVE
        return is_alive and link is not None and link.is_up

    def has_others(self, object_id: ObjectId) -> bool:
        """Whether more than one peer is known to hold an object."""
        if object_id in self._location.followed:
            return True
        place = self._location.place_of(object_id)
        return place is not None and bool(place.others)

    def are_all_gone(self, object_id: ObjectId) -> bool:
        """Whether no peer that is known to hold an object may answer."""
        place = self._location.place_of(object_id)
        members = () if place is None else place.members
        reachable = map(self._cluster.is_reachable, members)
        return bool(members) and not any(reachable)

    def is_leaderless(self, object_id: ObjectId) -> bool:
        """Whether a copy is here of an object that nobody who answers leads.

        Its leader is asked no more once it is suspect, or is said to lead in vain:
        whoever is touched takes over. A witness cannot, and names the others.
        """
        location = self._location
        if object_id not in location.followed or object_id in location.witnessed:
            return False
        leader = self._location.leader_of(object_id)
        if leader in {NOBODY, self._me}:
            return True
        if self._cluster.state_of(leader) is not PeerState.ALIVE:
            return True
        place = location.place_of(object_id)
        unled = self._unled.get(object_id, NOT_SAID)
        return place is not None and place.epoch <= unled.epoch

    def note_unled(self, object_id: ObjectId, unled: Unled) -> None:
        """Take that a member leads in vain: others are asked, as long as one answers."""
        if unled.epoch:
            self._unled.pop(object_id, None)
            self._unled[object_id] = unled
        if len(self._unled) > UNLED_MAX:
            del self._unled[next(iter(self._unled))]

    def forget_unled(self, object_id: ObjectId) -> None:
        """Ask everybody again: who was said to lead in vain was asked, or nobody leads."""
        self._unled.pop(object_id, None)

    def _is_unled(self, object_id: ObjectId, peer_id: PeerId, epoch: int) -> bool:
        """Whether a peer said that it leads an object in vain, up to an epoch or a later."""
        unled = self._unled.get(object_id, NOT_SAID)
        return peer_id == unled.peer_id and epoch <= unled.epoch

    def unled_at(self, object_id: ObjectId) -> int:
        """Return the epoch up to which nobody leads an object, as a member of it; else 0."""
        followed = self._location.followed.get(object_id)
        if followed is None or self._location.leader_of(object_id) != NOBODY:
            return 0
        return followed.epoch

    # -- what is said ------------------------------------------------------------------

    def first_place(self, object_id: ObjectId) -> Place | None:
        """Return whom a client is to ask, None where nobody can be."""
        for peer_id in self._cluster.route(object_id):
            place = self._location.place_of(object_id)
            if place is None or place.peer_id != peer_id:
                place = Place(peer_id, 0)
            if not self._is_unled(object_id, peer_id, place.epoch):
                return place
        return None

    def moved(
        self,
        object_id: ObjectId,
        place: Place | None = None,
        *,
        is_doubtful: bool = False,
    ) -> MovedError:
        """Return the answer to a request that came to the wrong peer.

        Where nothing is known it names the home: whoever asked there already knows that
        we do not know either.
        """
        if place is None:
            place = self._location.place_of(object_id) or Place(home_of(object_id), 0)
        endpoint = self._cluster.endpoint_of(place.peer_id)
        return MovedError(
            object_id, place.peer_id, endpoint, place.epoch, list(place.others),
            place.group_version, is_doubtful,
        )  # fmt: skip

    def why_lost(self, trip: Trip) -> ActiveStoreError:
        """Return what ends a trip for which nobody is left to ask."""
        if self._cluster.is_alone:
            # Nobody else was ever heard of, so nobody else can have it.
            return ObjectNotFoundError(trip.object_id, (self._me,))
        place = self._location.place_of(trip.object_id)
        holder = place.peer_id if place is not None else home_of(trip.object_id)
        name = self._cluster.name_of(holder)
        where = f"object {trip.object_id.hex()}"
        if place is not None and place.others:
            names = ", ".join(map(self._cluster.name_of, place.others))
            return UnavailableError(
                where,
                f"peer {name}, which leads it, does not answer, and of its other peers "
                f"none has taken over: {names}; see `activestore-node peers`",
            )
        if holder in trip.asked:
            return UnavailableError(
                where,
                f"peer {name} does not hold it, and nobody else that can be reached",
            )
        role = "holds it" if place is not None else "is its home"
        return UnavailableError(
            where, f"peer {name}, which {role}, cannot be reached; start it, or wait"
        )

    def unreachable(self, trip: Trip, peer_id: PeerId) -> UnavailableError:
        """Return what ends a trip to a peer that does not answer."""
        return UnavailableError(
            trip.message.operation if trip.then else f"object {trip.object_id.hex()}",
            f"peer {self._cluster.name_of(peer_id)} cannot be reached",
        )


def why_leaderless(one: Trip | Wait, why_each: str) -> NoQuorumError:
    """Return what ends a request at its deadline for which nobody is found to lead.

    `why_each`: which voters do not take part, as far as it is known here.
    """
    return NoQuorumError(
        f"object {one.object_id.hex()}",
        f"nobody who leads it answered within {one.until_s - one.began_s:g} s, the "
        "deadline; what the call changed, unless it is readonly, may be found kept"
        f"{why_each}",
    )
