"""Which voters do not take part in what becomes of an object, as people are told.

Source: schemas/protocol.md section 14, the reasons of a Nack.
"""

from __future__ import annotations

from typing import Any

import pytest

from activestore.core.register import Register
from activestore.core.replication import Replication
from activestore.core.replication_effects import Store
from activestore.core.replication_events import (
    MessageCame,
    PeerSeen,
    Stored,
    TimerFired,
    Touched,
)
from activestore.ids import ObjectId, PeerId
from activestore.wire.replicas import (
    NOBODY,
    Accepted,
    Ballot,
    Config,
    Nack,
    Point,
    Promise,
    Reason,
    Told,
)

A, B, C, D = (PeerId(letter * 6) for letter in (b"a", b"b", b"c", b"d"))
OBJECT = ObjectId(b"o" * 16)
THREE = Config(1, (A, B, C), wanted=3)
OLD = Ballot(3, NOBODY)


class Candidate:
    """Peer A, which has asked B and C for their promise of an epoch."""

    def __init__(self, config: Config = THREE) -> None:
        self.core = Replication(A, None, lambda: 0.5)
        self.config = config
        self.core.restore(OBJECT, Register(OLD, OLD, 7, config))
        self.core.take_effects()
        self.core.step(Touched(OBJECT), 0.0)
        self.ballot = Ballot(4, A)
        for peer_id in (B, C):
            told = Told(OBJECT, OLD, Point(3, 7), config, False)
            self.core.step(MessageCame(peer_id, told), 0.0)
        self.core.step(TimerFired(), 0.9)

    def hear(self, sender: PeerId, message: Any) -> list[Any]:
        """Take a message."""
        found = self.core.step(MessageCame(sender, message), 1.0)
        self.core.check()
        return found

    def refuse(self, sender: PeerId, reason: Reason, text: str = "") -> None:
        """Have a voter refuse."""
        self.hear(sender, Nack(OBJECT, self.ballot, 0, reason, OLD, None, text))

    def promise(self, sender: PeerId, *, has_state: bool = True) -> list[Any]:
        """Have a voter promise."""
        point = Point(3, 7)
        return self.hear(
            sender, Promise(OBJECT, self.ballot, point, self.config, False, has_state)
        )

    @property
    def why(self) -> dict[PeerId, str]:
        """What is told of each."""
        return dict(self.core.why_each(OBJECT))


@pytest.fixture
def candidate() -> Candidate:
    """Return one that has heard of nobody."""
    return Candidate()


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (Reason.SPACE, "its disk is full"),
        (Reason.LINEAGE, "another lineage"),
        (Reason.STRANGER, "a group in which this peer is not"),
        (Reason.UNKNOWN, "nothing of the object is there"),
        (Reason.REQUIREMENT, "lacks what the class needs"),
        (Reason.LOST, "damaged"),
    ],
)
def test_refusal_is_told_in_words(
    candidate: Candidate, reason: Reason, said: str
) -> None:
    candidate.refuse(B, reason, "because")

    assert list(candidate.why) == [B]
    assert said in candidate.why[B]
    assert candidate.why[B].endswith(": because")


def test_missing_base_newer_epoch_and_who_has_no_vote_refuse_nothing(
    candidate: Candidate,
) -> None:
    """A copy that had promised another was shown as not whole until the next change."""
    candidate.refuse(B, Reason.BASE)
    candidate.refuse(C, Reason.PROMISED)
    candidate.refuse(D, Reason.SPACE)

    assert candidate.why == {}


def test_promise_ends_a_refusal_but_not_that_the_disk_is_full(
    candidate: Candidate,
) -> None:
    """Who is full promises, in a few bytes, and refuses the state again."""
    candidate.refuse(B, Reason.UNKNOWN)
    candidate.refuse(C, Reason.SPACE)

    candidate.promise(B)
    candidate.promise(C)

    assert list(candidate.why) == [C]


def test_state_that_is_kept_ends_it(candidate: Candidate) -> None:
    candidate.refuse(B, Reason.SPACE)
    candidate.hear(B, Accepted(OBJECT, candidate.ballot, 7))

    assert candidate.why == {}


def test_promise_without_a_state_tells_of_damage_but_not_of_a_witness() -> None:
    candidate = Candidate(Config(1, (A, B), witness=C, wanted=2, wants_witness=True))

    candidate.promise(C, has_state=False)
    candidate.promise(B, has_state=False)

    assert list(candidate.why) == [B]
    assert "damaged" in candidate.why[B]


def test_who_is_out_of_reach_is_told_so_whatever_it_said_before(
    candidate: Candidate,
) -> None:
    candidate.refuse(B, Reason.SPACE)
    candidate.core.step(PeerSeen(B, False), 1.0)

    assert candidate.why == {B: "it cannot be reached"}


def test_own_disk_that_refuses_is_told_until_it_keeps(candidate: Candidate) -> None:
    (store,) = [one for one in candidate.promise(B) if type(one) is Store]
    candidate.core.step(Stored(store.token, "space", "no room"), 1.0)
    assert candidate.why == {A: "its disk is full, or failed: no room"}

    candidate.ballot = Ballot(5, A)
    candidate.core.step(TimerFired(), 2.0)
    (store,) = [one for one in candidate.promise(B) if type(one) is Store]
    candidate.core.step(Stored(store.token), 2.0)

    assert candidate.why == {}


def test_own_damage_is_told() -> None:
    candidate = Candidate()
    core = Replication(A, None, lambda: 0.5)
    core.restore(OBJECT, Register(OLD, OLD, 7, THREE, is_lost=True))

    assert "damaged" in dict(core.why_each(OBJECT))[A]
    assert not candidate.core.why_each(ObjectId(bytes(16)))


def test_nothing_is_kept_of_what_another_leads(candidate: Candidate) -> None:
    candidate.refuse(B, Reason.UNKNOWN)

    led = Ballot(9, C)
    candidate.hear(C, Told(OBJECT, led, Point(9, 7), THREE, True))

    assert candidate.why == {}
