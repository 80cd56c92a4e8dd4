"""How soon, how fast and with how much kept the core of replication does its work.

Source: reliability.md R12; `ReplicationConfig`.
"""

from __future__ import annotations

from typing import Any

import pytest

from activestore.core.register import Register
from activestore.core.replication import Replication
from activestore.core.replication_desk import ReplicationConfig
from activestore.core.replication_effects import SendWhole
from activestore.core.replication_events import (
    MessageCame,
    PeerSeen,
    TimerFired,
    Touched,
    WriteStored,
)
from activestore.ids import ObjectId, PeerId
from activestore.wire.replicas import (
    Accept,
    Accepted,
    Ask,
    Ballot,
    Point,
    Prepare,
    Told,
)
from tests.core.test_replication import (
    OBJECT,
    THREE,
    A,
    B,
    C,
    leader,
    of,
    pass_time,
    sent,
)

CONFIG = ReplicationConfig()
KIB, MIB = 1 << 10, 1 << 20


# -- who takes over, and when ----------------------------------------------------------


def prepared_s(me: PeerId, object_id: ObjectId, chance: float) -> float:
    """Return when a survivor asks for promises, of what the lost peer led."""
    lost = ({A, B, C} - {A, me}).pop() if me != A else C
    core = Replication(me, None, lambda: chance)
    core.restore(object_id, Register(Ballot(3, lost), Ballot(3, lost), 7, THREE))
    core.take_effects()
    core.step(PeerSeen(lost, False), 0.0)
    core.step(Touched(object_id), 0.0)
    while (at_s := core.deadline_s()) is not None:
        if sent(core.step(TimerFired(), at_s), Prepare):
            return at_s
    raise AssertionError("it never asks")


@pytest.mark.parametrize("number", range(20))
def test_second_in_line_lets_the_first_one_go_ahead(number: int) -> None:
    """Whatever their chances are: two that begin at once would refuse each other."""
    object_id = ObjectId(number.to_bytes(16, "big"))
    at_worst = [prepared_s(A, object_id, 1.0), prepared_s(B, object_id, 1.0)]
    at_best = [prepared_s(A, object_id, 0.0), prepared_s(B, object_id, 0.0)]
    first, second = sorted((0, 1), key=at_best.__getitem__)

    head_start_s = at_best[second] - at_worst[first]

    assert head_start_s >= CONFIG.rank_step_s - CONFIG.rank_jitter_s - 1e-9
    assert at_best[second] <= at_best[first] + CONFIG.rank_step_s + 1e-9


def looked_for(until_s: float, *, is_answered: bool) -> set[ObjectId]:
    """Return which of 5,000 objects of a lost peer were asked about by then."""
    core = Replication(A, None, lambda: 0.5)
    for number in range(5_000):
        object_id = ObjectId(number.to_bytes(16, "big"))
        core.restore(object_id, Register(Ballot(3, B), Ballot(3, B), 7, THREE))
    core.take_effects()
    core.step(PeerSeen(B, False), 0.0)
    found = set()
    while (at_s := core.deadline_s()) is not None and at_s <= until_s:
        for peer_id, ask in sent(core.step(TimerFired(), at_s), Ask):
            found.add(ask.object_id)
            if is_answered:
                told = Told(ask.object_id, Ballot(4, C), Point(4, 7), THREE, True)
                core.step(MessageCame(peer_id, told), at_s)
    return found


def test_what_nobody_asks_for_is_taken_over_at_a_pace() -> None:
    at_most = CONFIG.background_per_s + CONFIG.background_max

    assert at_most / 2 < len(looked_for(1.0, is_answered=True)) <= at_most


def test_so_many_that_nobody_asks_for_are_under_way_at_most() -> None:
    found = looked_for(CONFIG.ask_s, is_answered=False)

    assert len(found) == CONFIG.background_max


# -- what is kept for a member that does not answer ------------------------------------


def lead_with_one(
    core: Replication, epoch: Ballot, count: int, size: int, *, is_there: bool = True
) -> list[Any]:
    """Have B take that many changes, and C none; return what was ordered."""
    ordered = core.step(PeerSeen(C, is_there), 1.0)
    for _ in range(count):
        number = core.begin_write(OBJECT, "delta", size=size).number
        ordered += core.step(WriteStored(OBJECT, number), 1.0)
        ordered += core.step(MessageCame(B, Accepted(OBJECT, epoch, number)), 1.0)
    ordered += core.step(PeerSeen(C, True), 1.0)
    core.check()
    return ordered + pass_time(core, 1.0 + CONFIG.resend_s_max)


@pytest.mark.parametrize(
    ("count", "size"),
    [(CONFIG.entries_max + 1, 1), (5, CONFIG.entries_bytes_max // 4)],
    ids=["in number", "in bytes"],
)
def test_member_that_is_too_far_behind_gets_the_whole(count: int, size: int) -> None:
    core, epoch = leader()

    ordered = lead_with_one(core, epoch, count, size)

    assert {one.peer_id for one in of(ordered, SendWhole)} == {C}


@pytest.mark.parametrize(
    ("count", "size"),
    [(CONFIG.entries_max - 1, 1), (3, CONFIG.entries_bytes_max // 4)],
    ids=["in number", "in bytes"],
)
def test_member_that_is_a_little_behind_gets_what_it_misses(
    count: int, size: int
) -> None:
    core, epoch = leader()

    ordered = lead_with_one(core, epoch, count, size)

    assert of(ordered, SendWhole) == []
    numbers = [one.number for peer, one in sent(ordered, Accept) if peer == C]
    assert numbers.count(8) > 1, "it is sent again from the first on that it misses"


@pytest.mark.parametrize("is_there", [True, False], ids=["reached", "out of reach"])
def test_where_much_is_kept_in_all_nothing_is_for_who_is_out_of_reach(
    is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, epoch = leader()
    config = CONFIG.__class__(kept_bytes_max=MIB)
    monkeypatch.setattr(core._desk, "config", config)

    ordered = lead_with_one(core, epoch, 5, 250 * KIB, is_there=is_there)

    is_whole = {one.peer_id for one in of(ordered, SendWhole)} == {C}
    assert is_whole is not is_there
    assert core._desk.kept_bytes <= config.kept_bytes_max or is_there
