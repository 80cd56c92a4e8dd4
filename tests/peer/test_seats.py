"""Who leaves a group so that peers which are named can be of it."""

from __future__ import annotations

import pytest

from activestore.errors import InvalidRequestError
from activestore.ids import PeerId
from activestore.peer.seats import freed
from activestore.wire.replicas import Config

A, B, C, D, E = (PeerId(name * 6) for name in (b"a", b"b", b"c", b"d", b"e"))
THREE = Config(4, (A, B, C), wanted=3)
WITNESSED = Config(4, (A, B), witness=C, wanted=2, wants_witness=True)


def of(
    goal: Config, *named: PeerId, leaving: tuple[PeerId, ...] = (), leader: PeerId = A
) -> list[PeerId]:
    """Return who leaves a group that A leads."""
    return freed(goal, leader, named, leaving, lambda one: one[:1].decode())


@pytest.mark.parametrize(
    ("goal", "named", "leaving"),
    [
        (Config(0, (A,), wanted=3), [D], []),
        (Config(0, (A,), wanted=2), [A, D], []),
        (THREE, [B], []),
        (THREE, [D], [C]),
        (THREE, [D, C], [B]),
        (THREE, [D, C, B], [A]),
        (THREE, [D, E, A], [C, B]),
        (THREE._replace(wanted=4), [D], []),
        (THREE._replace(wanted=2), [C], [B]),
        (THREE._replace(wanted=1), [C], [B, A]),
        (WITNESSED, [D], [B]),
        (WITNESSED._replace(wanted=3, wants_witness=False), [C], []),
        (Config(4, (A, B), wanted=2, wants_witness=True), [D], []),
    ],
)
def test_as_many_leave_as_come_too_many_and_the_leader_last(
    goal: Config, named: list[PeerId], leaving: list[PeerId]
) -> None:
    assert of(goal, *named) == leaving


def test_who_leaves_anyway_makes_the_room() -> None:
    assert of(THREE, D, leaving=(B,)) == []
    assert of(WITNESSED, D, leaving=(C,)) == [], "it may be the next witness"


@pytest.mark.parametrize(
    ("goal", "named", "told"),
    [
        (THREE._replace(wanted=1), [B, C], "2 peers are named for 1 copies"),
        (WITNESSED, [C], "c is the witness of its group, and holds no copy"),
        (Config(0, (A,), wanted=1), [D], "one copy is wanted, and a has it"),
    ],
)
def test_peers_that_cannot_all_be_of_it_are_told_so(
    goal: Config, named: list[PeerId], told: str
) -> None:
    with pytest.raises(InvalidRequestError, match=told):
        of(goal, *named)
