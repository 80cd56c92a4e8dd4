"""Who waits for whom over several peers: questions by hand, and who is told.

Two cores, or three, whose calls to each other are carried by hand; whatever one asks of
another arrives at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from activestore.core import effects, events
from activestore.core.calls import Call, Client, Kind, Nested, Waiter
from activestore.core.deadlocks import (
    AGAIN_S_MAX,
    ASKING_MAX,
    HOPS_MAX,
    QUESTIONS_MAX,
    RING_WAIT_S,
)
from activestore.core.invocation import InvocationConfig
from activestore.ids import ObjectId
from tests.core.stage import Payload, Stage, answers, only
from tests.core.world import object_id_of, session_of

# A call asks with a beat, 2 s, once it has waited.
ASKED_S = RING_WAIT_S + 2.1


class Cluster:
    """Stages that hold one object each, and what is on its way between them."""

    def __init__(self, count: int) -> None:
        self.stages = [
            Stage(InvocationConfig(mark=b"mark-%d" % n), slots=3) for n in range(count)
        ]
        self.objects = [object_id_of(n + 1) for n in range(count)]
        self.questions: list[tuple[int, effects.AskOn]] = []
        self.away: dict[tuple[int, int], tuple[int, Client]] = {}
        self.told: dict[Client | Nested, str] = {}
        self.asked_count = 0

    def hold(self, at: int, method: str = "add") -> Call:
        """Have a client of its own call the object of a stage."""
        return self.stages[at].run(1, method, self.objects[at], session=50 + at)

    def call(
        self, at: int, caller: Call, to: int, method: str = "add", *, waits: bool = True
    ) -> Client:
        """Have a running method call the object of another stage."""
        stage = self.stages[at]
        left = events.NestedLeft(
            Nested(caller.call_id, len(self.away) + 1, waits), self.objects[to], Kind.CALL,
            method, Payload(), False,
        )  # fmt: skip
        (sent,) = only(stage.step(left), effects.SendAway)
        origin = Client(session_of(90 + at), len(self.away) + 1)
        self.away[at, sent.call.call_id] = (to, origin)
        arrived = events.CallArrived(
            origin, self.objects[to], Kind.CALL, method, Payload(), chain=sent.chain,
            depth=sent.depth, began_ms=sent.began_ms,
        )  # fmt: skip
        self.take(to, self.stages[to].step(arrived))
        return origin

    def take(self, at: int, out: Sequence[effects.Effect]) -> None:
        self.told.update(answers(out))
        self.questions += [(at, one) for one in only(out, effects.AskOn)]

    def carry(self) -> None:
        """Carry questions until none is left."""
        while self.questions:
            at, asked = self.questions.pop(0)
            self.asked_count += 1
            assert self.asked_count < 1000, "questions without an end"
            to, origin = self.away[at, asked.call_id]
            arrived = events.RingAsked(origin, asked.waiter, asked.number, asked.hops)
            self.take(to, self.stages[to].step(arrived))

    def wait(self, after_s: float, *, carried: bool = True) -> None:
        """Let time pass everywhere, a beat at a time."""
        for _ in range(max(1, round(after_s / 2.0))):
            for at, stage in enumerate(self.stages):
                self.take(at, stage.wait(min(after_s, 2.0)))
            if carried:
                self.carry()

    def ring(self) -> list[Client]:
        """Have a chain at each stage hold its object and want the next one's."""
        holders = []
        for at, _ in enumerate(self.stages):
            for stage in self.stages:
                stage.now_s += 0.01
            holders.append(self.hold(at))
        count = len(holders)
        return [self.call(n, one, (n + 1) % count) for n, one in enumerate(holders)]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_youngest_of_a_ring_is_told_and_nobody_else(count):
    cluster = Cluster(count)
    wanted = cluster.ring()

    cluster.wait(ASKED_S + 2.0 * count)

    assert cluster.told == {wanted[-1]: "busy"}


def test_ring_is_not_told_before_it_lasts():
    cluster = Cluster(2)
    cluster.ring()

    cluster.wait(RING_WAIT_S - 0.2)

    assert cluster.told == {}
    assert cluster.asked_count == 0


def test_call_that_waits_for_one_that_computes_is_not_told():
    cluster = Cluster(2)
    first = cluster.hold(0)
    cluster.hold(1)
    cluster.call(0, first, 1)

    cluster.wait(600.0)

    assert cluster.told == {}


def test_call_that_waits_asks_seldom_in_the_end():
    cluster = Cluster(3)
    first, second = cluster.hold(0), cluster.hold(1)
    cluster.hold(2)
    cluster.call(0, first, 1)
    cluster.call(1, second, 2)

    cluster.wait(600.0)

    assert cluster.told == {}
    # Both of them ask, and each question goes to one other peer at most.
    assert cluster.asked_count <= 2 * (600.0 / AGAIN_S_MAX + 5)


def test_submitted_call_is_waited_for_by_nobody():
    cluster = Cluster(2)
    first, second = cluster.hold(0), cluster.hold(1)
    cluster.call(0, first, 1)
    cluster.call(1, second, 0, waits=False)

    cluster.wait(60.0)

    assert cluster.told == {}


def test_reader_of_a_committed_state_is_in_no_ring():
    cluster = Cluster(2)
    first, second = cluster.hold(0), cluster.hold(1)
    cluster.call(0, first, 1)
    cluster.call(1, second, 0, "peek")

    cluster.wait(60.0)

    assert cluster.told == {}


def test_reader_behind_its_own_clients_write_is_in_a_ring():
    cluster = Cluster(2)
    first = cluster.hold(0)
    second = cluster.hold(1, "peek")
    third = cluster.stages[1].run(2, "add", object_id_of(8), session=60)
    behind = cluster.call(1, third, 0)
    reader = cluster.call(1, second, 0, "peek")
    cluster.call(0, first, 1)

    cluster.wait(ASKED_S + 8.0)

    assert set(cluster.told.values()) == {"busy"}
    assert behind not in cluster.told
    assert len(cluster.told) == 1
    assert reader.session == behind.session


def test_writer_waits_for_all_readers():
    cluster = Cluster(2)
    first, second = cluster.hold(0, "peek"), cluster.hold(1, "peek")
    wanted = [cluster.call(0, first, 1), cluster.call(1, second, 0)]

    cluster.wait(ASKED_S + 4.0)

    assert len(cluster.told) == 1
    assert set(cluster.told) <= set(wanted)


def test_question_that_came_round_once_is_not_enough():
    """What it passed may have been cancelled behind it."""
    cluster = Cluster(2)
    cluster.ring()
    for at, stage in enumerate(cluster.stages):
        cluster.take(at, stage.wait(ASKED_S))
    asked = [one for _, one in cluster.questions]

    while cluster.questions and not cluster.told:
        at, one = cluster.questions.pop(0)
        if one.number > 1:
            break  # Lost; and the chain it passed has ended.
        to, origin = cluster.away[at, one.call_id]
        arrived = events.RingAsked(origin, one.waiter, one.number, one.hops)
        cluster.take(to, cluster.stages[to].step(arrived))

    assert asked
    assert cluster.told == {}


def test_question_that_is_lost_is_asked_again():
    cluster = Cluster(2)
    wanted = cluster.ring()
    cluster.wait(ASKED_S, carried=False)
    cluster.questions.clear()

    cluster.wait(8.0)

    assert cluster.told == {wanted[-1]: "busy"}


@pytest.fixture
def waiting() -> tuple[Stage, Call, Client, ObjectId]:
    """Return a stage where a chain from elsewhere waits for a call that is away."""
    cluster = Cluster(2)
    first, second = cluster.hold(0), cluster.hold(1)
    cluster.call(0, first, 1)
    origin = cluster.call(1, second, 0)
    return cluster.stages[0], first, origin, cluster.objects[0]


OLDEST = Waiter(1, b"theirs", 7)
YOUNGEST = Waiter(1 << 60, b"theirs", 7)


@pytest.mark.parametrize(
    ("waiter", "hops", "goes_on"),
    [(YOUNGEST, 1, True), (YOUNGEST, HOPS_MAX, True), (YOUNGEST, HOPS_MAX + 1, False),
     (OLDEST, 1, False)],
)  # fmt: skip
def test_question_goes_on_unless_it_meets_a_younger_one(waiting, waiter, hops, goes_on):
    stage, _, origin, _ = waiting

    out = stage.step(events.RingAsked(origin, waiter, 1, hops))

    assert [one.hops for one in only(out, effects.AskOn)] == [hops + 1] * goes_on


def test_younger_one_that_is_met_asks_soon(waiting):
    stage, _, origin, _ = waiting
    stage.wait(20.0)
    (search,) = stage.core._searches.values()
    assert search.due_s > stage.now_s

    stage.step(events.RingAsked(origin, OLDEST, 1, 1))

    assert only(stage.wait(2.1), effects.AskOn)


def test_question_is_followed_once(waiting):
    stage, _, origin, _ = waiting
    asked = events.RingAsked(origin, YOUNGEST, 1, 1)
    assert only(stage.step(asked), effects.AskOn)

    assert stage.step(asked) == []
    assert only(stage.step(asked._replace(number=2)), effects.AskOn)


def test_questions_that_are_remembered_are_bounded(waiting):
    stage, _, origin, _ = waiting

    for number in range(2 * QUESTIONS_MAX):
        stage.step(events.RingAsked(origin, YOUNGEST, number, 1))

    assert len(stage.core._followed) == QUESTIONS_MAX


def test_questions_that_are_asked_in_a_turn_are_bounded():
    cluster = Cluster(2)
    first = cluster.hold(0)
    cluster.hold(1)
    cluster.call(0, first, 1)
    stage, object_id = cluster.stages[0], cluster.objects[0]
    for number in range(2 * ASKING_MAX - 10):
        stage.call(number, "add", object_id, session=70, chain=[(b"theirs", number)])

    counts = [len(only(stage.wait(2.0), effects.AskOn)) for _ in range(3)]

    assert counts == [ASKING_MAX, ASKING_MAX - 10, ASKING_MAX]


def test_question_for_a_call_that_is_unknown_ends(waiting):
    stage, _, origin, _ = waiting

    out = stage.step(events.RingAsked(origin._replace(sequence=99), YOUNGEST, 1, 1))

    assert out == []


def test_question_for_a_call_that_is_looked_up_ends(waiting):
    stage, _, _, object_id = waiting
    stage.call(7, "add", object_id, session=70, attempt=1, chain=[(b"theirs", 7)])

    out = stage.step(events.RingAsked(Client(session_of(70), 7), YOUNGEST, 1, 1))

    assert out == []


def test_old_question_that_comes_round_is_nothing(waiting):
    stage, _, origin, _ = waiting
    stage.wait(ASKED_S)
    (call_id,) = stage.core._searches
    waiter = stage.core._waiter_of(stage.core.calls[call_id])

    out = stage.step(events.RingAsked(origin, waiter, 99, 1))

    assert out == []


def test_search_ends_with_its_call(waiting):
    stage, first, _, object_id = waiting
    stage.wait(ASKED_S)
    assert stage.core._searches

    stage.step(events.CancelArrived(first.origin.session, first.origin.sequence))
    stage.end(first, code="cancelled", is_dropped=True)
    stage.load(object_id)
    stage.wait(4.0)

    assert not stage.core._searches, "it runs now"


def delete(cluster: Cluster, at: int, caller: Call, to: int) -> Client:
    """Have a running method delete the object of another stage."""
    left = events.NestedLeft(
        Nested(caller.call_id, 77), cluster.objects[to], Kind.DELETE, "delete",
        Payload(), False,
    )  # fmt: skip
    (sent,) = only(cluster.stages[at].step(left), effects.SendAway)
    origin = Client(session_of(90 + at), 77)
    cluster.away[at, sent.call.call_id] = (to, origin)
    arrived = events.CallArrived(
        origin, cluster.objects[to], Kind.DELETE, "delete", Payload(),
        chain=sent.chain, began_ms=sent.began_ms,
    )  # fmt: skip
    cluster.take(to, cluster.stages[to].step(arrived))
    return origin


def test_delete_waits_for_readers():
    cluster = Cluster(2)
    first, second = cluster.hold(0, "peek"), cluster.hold(1)
    cluster.call(0, first, 1)
    delete(cluster, 1, second, 0)

    cluster.wait(ASKED_S + 4.0)

    assert set(cluster.told.values()) == {"busy"}
    assert len(cluster.told) == 1


def test_delete_waits_for_readers_of_the_committed_state():
    """They are no holders for others: a writer runs beside them."""
    cluster = Cluster(2)
    cluster.hold(0)
    stage, second = cluster.stages[0], cluster.hold(1)
    stage.call(2, "peek", cluster.objects[0], session=60)
    (load,) = only(stage.wait(0.1), effects.LoadObject)
    (reads,) = only(stage.load(load.object_id, is_reader=True), effects.Dispatch)
    cluster.call(0, reads.call, 1)
    delete(cluster, 1, second, 0)

    cluster.wait(ASKED_S + 4.0)

    assert set(cluster.told.values()) == {"busy"}
    assert len(cluster.told) == 1
