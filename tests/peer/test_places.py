"""Who is told where objects are, as peers come and go, and what it costs to see to it.

Source: design section 7 ("Location").
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from activestore.core.location import Location, Place
from activestore.ids import ObjectId, PeerId, home_of
from activestore.peer.places import TOLD_MAX, Places

ME, HOME, B, C, D = (PeerId(name * 6) for name in (b"a", b"h", b"b", b"c", b"d"))
GROUP = Place(ME, 2, (B, C), 1)


def object_id_of(number: int) -> ObjectId:
    return ObjectId(HOME + b"\x00" + number.to_bytes(9, "big"))


class Cluster:
    """Four others; counts how often it is asked who keeps what is at a home."""

    def __init__(self) -> None:
        self.location = Location(ME)
        self.membership = SimpleNamespace(version=1)
        self.buddies = [B, C]
        self.asked_count = 0

    def keepers(self, home: PeerId) -> list[PeerId]:
        """Return a home and its buddies."""
        self.asked_count += 1
        return [home, *self.buddies]

    def state_of(self, _peer_id: PeerId) -> str:
        """Return that a peer is known."""
        return "alive"

    def is_reachable(self, _peer_id: PeerId) -> bool:
        """Return that it answers."""
        return True

    def tell(self, _object_id: ObjectId, _place: Place) -> None:
        """Gossip nothing."""


class Relays:
    """Who is asked answers at once that it keeps a place."""

    def __init__(self) -> None:
        self.told: dict[ObjectId, list[PeerId]] = {}

    def ask(self, keeper: PeerId, _name: str, about: Any, then: Any) -> None:
        """Note who was told."""
        self.told.setdefault(about["object_id"], []).append(keeper)
        then(None, None)

    def heard(self, _object_id: ObjectId) -> None:
        """Have nothing go on."""


class Peer:
    """A peer that leads many objects of another home."""

    def __init__(self, objects_count: int) -> None:
        self.cluster, self.relays = Cluster(), Relays()
        table: Any = SimpleNamespace(
            settings=SimpleNamespace(peer_id=ME),
            doubt_sessions=lambda: None,
            wall_clock=lambda: 100.0,
        )
        cluster: Any = self.cluster
        relays: Any = self.relays
        self.places = Places(table, cluster, relays)
        for number in range(objects_count):
            self.places.came(object_id_of(number), GROUP)
        self.looks(objects_count // TOLD_MAX + 2)
        self.relays.told.clear()
        self.cluster.asked_count = 0

    def looks(self, count: int) -> None:
        """Let time pass."""
        for _ in range(count):
            self.places.look()


@pytest.mark.parametrize("objects_count", [100, 10_000])
def test_news_of_peers_that_keep_nothing_looks_at_no_object(objects_count: int) -> None:
    """A peer is suspected every minute somewhere; all objects were looked at each time."""
    peer = Peer(objects_count)

    for _ in range(5):
        peer.cluster.membership.version += 1
        peer.looks(1)

    assert peer.cluster.asked_count <= 10
    assert not peer.relays.told


def test_new_keeper_is_told_of_all_objects_some_in_each_look() -> None:
    peer = Peer(3 * TOLD_MAX)
    peer.cluster.buddies = [B, D]
    peer.cluster.membership.version += 1

    peer.looks(1)
    assert 0 < len(peer.relays.told) <= TOLD_MAX
    assert peer.cluster.asked_count <= 2 * TOLD_MAX + 10
    peer.looks(4)

    assert len(peer.relays.told) == 3 * TOLD_MAX
    assert {tuple(keepers) for keepers in peer.relays.told.values()} == {(D,)}


def test_keepers_that_changed_for_a_moment_are_told_of_what_came_in_it() -> None:
    peer = Peer(1)
    peer.cluster.buddies = [B, D]
    peer.cluster.membership.version += 1
    peer.places.came(object_id_of(7), GROUP)
    peer.cluster.buddies = [B, C]
    peer.cluster.membership.version += 1

    peer.looks(2)

    assert peer.relays.told[object_id_of(7)] == [HOME, B, D, C]


def test_object_that_left_meanwhile_is_told_of_by_others() -> None:
    peer = Peer(2)
    peer.cluster.buddies = [B, D]
    peer.cluster.membership.version += 1
    peer.places.left(object_id_of(0))

    peer.looks(2)

    assert list(peer.relays.told) == [object_id_of(1)]
    assert home_of(object_id_of(1)) == HOME
