"""What a peer tells of its groups, and what it costs to tell.

Source: schemas/protocol.md section 14 ("A row of `replication`").
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from activestore.core.peers import PeerState
from activestore.core.register import Register
from activestore.core.replication import Replication
from activestore.ids import ObjectId, PeerId
from activestore.peer.repairing import LOOKED_MAX, Repairing
from activestore.wire.replicas import Ballot, Config

ME, OTHER, THIRD = (PeerId(name * 6) for name in (b"a", b"b", b"c"))
EPOCH = Ballot(3, OTHER)
CONFIG = Config(4, (ME, OTHER, THIRD), wanted=3)
WITNESSED = Config(4, (OTHER, THIRD), witness=ME, wanted=2, wants_witness=True)


def object_id_of(number: int) -> ObjectId:
    return ObjectId(OTHER + b"\x00" + number.to_bytes(9, "big"))


class Neighbours:
    """What membership says of the others; counts how often it is asked."""

    def __init__(self) -> None:
        self.dead: set[PeerId] = set()
        self.asked_count = 0
        self.membership = SimpleNamespace(members={})

    def state_of(self, peer_id: PeerId) -> PeerState:
        """Return dead or alive."""
        self.asked_count += 1
        return PeerState.DEAD if peer_id in self.dead else PeerState.ALIVE

    def is_reachable(self, peer_id: PeerId) -> bool:
        """Return whether it is alive."""
        return self.state_of(peer_id) is PeerState.ALIVE

    def namesake_of(self, peer_id: PeerId) -> PeerId | None:
        """Return nobody: all have names of their own."""
        assert peer_id
        return None

    def name_of(self, peer_id: PeerId) -> str:
        """Return a name."""
        return peer_id.decode()


class Peer:
    """A peer with many registers that others lead, as far as this is about them."""

    def __init__(self, followed: int, witnessed: int = 0) -> None:
        self.core = Replication(ME, None, lambda: 0.5)
        self.neighbours = Neighbours()
        self.leaderless: set[ObjectId] = set()
        for number in range(followed + witnessed):
            config = CONFIG if number < followed else WITNESSED
            register = Register(EPOCH, EPOCH, 7, config)
            self.core.restore(object_id_of(number), register)
        loop: Any = SimpleNamespace(
            replicating=SimpleNamespace(
                core=self.core, copying=SimpleNamespace(remove_again=lambda: None),
                peer_seen=lambda *_args, **_named: None, refused=set(),
            ),
            relays=SimpleNamespace(
                routing=SimpleNamespace(is_leaderless=self.leaderless.__contains__)
            ),
            settings=SimpleNamespace(peer_id=ME, repair_after_s=1e12),
            cluster=self.neighbours, clock=lambda: 100.0,
        )  # fmt: skip
        self.repairing = Repairing(loop, lambda *_args: None)

    def lose(self, count: int) -> None:
        """Let the leader die; of so many objects that is known."""
        self.neighbours.dead.add(OTHER)
        self.leaderless.update(map(object_id_of, range(count)))

    def looks(self, count: int) -> None:
        """Let time pass."""
        for _ in range(count):
            self.repairing.look(100.0)


@pytest.mark.parametrize("registers_count", [2 * LOOKED_MAX, 20 * LOOKED_MAX])
def test_telling_of_many_groups_looks_at_few(registers_count: int) -> None:
    """`status` is asked every few seconds, on the thread that serves calls."""
    peer = Peer(registers_count)
    peer.lose(registers_count)
    peer.looks(2)  # The first one begins a round.
    peer.neighbours.asked_count = 0

    told, rows = peer.repairing.counts(), peer.repairing.rows()

    assert told["followed"] == registers_count
    assert told["under"] >= LOOKED_MAX
    assert len(rows) == 100
    assert peer.neighbours.asked_count <= 300


def test_looks_find_all_groups_that_lack_copies_and_those_that_have_them_again() -> (
    None
):
    peer = Peer(3 * LOOKED_MAX)
    peer.lose(2 * LOOKED_MAX)
    peer.looks(5)

    assert peer.repairing.counts()["under"] == 2 * LOOKED_MAX

    peer.leaderless.clear()
    assert not peer.repairing.rows(), "what was found is looked at again"
    peer.looks(5)

    assert peer.repairing.counts()["under"] == 0


def test_few_groups_are_told_of_as_they_are_now() -> None:
    peer = Peer(followed=5, witnessed=2)
    peer.lose(3)

    assert peer.repairing.counts() == {
        "led": 0, "followed": 5, "witnessed": 2, "under": 3, "quarantined": 0,
    }  # fmt: skip
    assert [row["problem"] for row in peer.repairing.rows()] == ["under"] * 3


def test_each_register_is_counted_as_one_kind() -> None:
    """Also the vote of a witness whose group was forced elsewhere."""
    peer = Peer(followed=2, witnessed=1)
    forced = Register(EPOCH, EPOCH, 7, WITNESSED, is_quarantined=True)
    peer.core.restore(object_id_of(3), forced)
    peer.core.begin(object_id_of(4), 1, 1.0)

    assert peer.core.counts() == (1, 2, 1, 1)

    peer.core.discard(object_id_of(3))

    assert peer.core.counts() == (1, 2, 1, 0)
    peer.core.check()
