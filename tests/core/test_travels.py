"""Nested calls that go to objects at other peers, and chains that come back from there.

Source: design section 5, "Nested calls"; decision 8.
"""

from __future__ import annotations

import pytest

from activestore.core import effects, events
from activestore.core.calls import Call, Kind, Nested
from activestore.core.invocation import InvocationConfig
from activestore.wire.limits import EARLY_SHARE, NESTED_EARLY_S
from tests.core.stage import (
    FULL,
    OBJECT,
    OTHER,
    Payload,
    Stage,
    answers,
    client,
    dispatched,
    only,
)

MARK = b"our-mark"
ELSEWHERE = (b"theirs--", 7)


@pytest.fixture
def stage() -> Stage:
    return Stage(InvocationConfig(mark=MARK, depth_max=4))


def leave(
    stage: Stage, parent: Call, request: int = 1, *, waits: bool = True,
    may_change: bool = True, deadline_s: float = 0.0, credit: int = 0,
) -> list[effects.Effect]:  # fmt: skip
    """Have a running method call an object that is at another peer."""
    origin = Nested(parent.call_id, request, waits)
    return stage.step(
        events.NestedLeft(
            origin, OTHER, Kind.CALL, "add", Payload(), may_change, deadline_s, credit
        )
    )


def keep(stage: Stage, out: list[effects.Effect]) -> list[effects.Effect]:
    """Have what a retry is told become durable."""
    (kept,) = only(out, effects.CommitStates)
    return stage.step(events.Committed(kept.token))


def sent(out: list[effects.Effect]) -> effects.SendAway:
    (away,) = only(out, effects.SendAway)
    return away


def test_call_leaves_once_a_retry_of_the_outermost_would_be_told(stage):
    parent = stage.run(1)

    out = leave(stage, parent)

    assert not only(out, effects.SendAway)
    (kept,) = only(out, effects.CommitStates)
    assert kept.outermost is not None
    assert kept.outermost.client == client(1)
    assert sent(keep(stage, out)).call.object_id == OTHER


def test_read_of_a_field_leaves_at_once(stage):
    parent = stage.run(1)

    out = leave(stage, parent, may_change=False)

    assert sent(out).call.object_id == OTHER
    assert not only(out, effects.CommitStates)


def test_second_call_leaves_on_the_promise_of_the_first(stage):
    parent = stage.run(1)
    first = sent(keep(stage, leave(stage, parent)))
    stage.step(events.AwayAnswered(first.call.call_id, "", b"\x01"))

    assert sent(leave(stage, parent, 2)).call is not first.call


def test_call_fails_where_the_promise_cannot_be_kept(stage):
    parent = stage.run(1)
    (kept,) = only(leave(stage, parent), effects.CommitStates)

    out = stage.step(events.CommitRefused(kept.token, FULL))

    assert not only(out, effects.SendAway)
    assert answers(out) == {Nested(parent.call_id, 1): FULL.code}
    assert not parent.changed_others


def test_call_that_is_waited_for_before_it_left_leaves_once(stage):
    """Sent twice, under two numbers, it would run twice."""
    parent = stage.run(1)
    out = leave(stage, parent, waits=False)

    early = stage.step(events.NestedWaits(parent.call_id, 1))
    away = sent(keep(stage, out))

    assert not only(early, effects.SendAway)
    assert not away.is_again
    assert away.chain == [(MARK, away.call.call_id)]


def test_call_that_is_waited_for_after_it_left_is_told_on(stage):
    parent = stage.run(1)
    first = sent(keep(stage, leave(stage, parent, waits=False)))

    again = sent(stage.step(events.NestedWaits(parent.call_id, 1)))

    assert first.chain == []
    assert again.is_again
    assert again.chain == [(MARK, first.call.call_id)]


def test_chain_that_comes_back_enters_the_object_that_waits(stage):
    parent = stage.run(1)
    away = sent(keep(stage, leave(stage, parent)))

    out = stage.call(
        1, object_id=OBJECT, session=2, chain=[ELSEWHERE, (MARK, away.call.call_id)]
    )

    entered = dispatched(out)
    assert entered.is_reentrant
    assert entered.copy is parent.copy


def test_call_that_comes_back_enters_once_its_chain_waits(stage):
    """A submits, B calls back, and only then A waits: the chain grows on its way."""
    parent = stage.run(1)
    away = sent(keep(stage, leave(stage, parent, waits=False)))
    early = stage.call(1, session=2, chain=[ELSEWHERE])
    assert not only(early, effects.Dispatch)
    assert sent(stage.step(events.NestedWaits(parent.call_id, 1))).is_again

    out = stage.call(
        1, session=2, attempt=1, chain=[ELSEWHERE, (MARK, away.call.call_id)]
    )

    assert dispatched(out).is_reentrant


def test_chain_of_another_start_does_not_enter(stage):
    parent = stage.run(1)
    away = sent(keep(stage, leave(stage, parent)))

    out = stage.call(1, session=2, chain=[(b"earlier-", away.call.call_id)])

    assert not only(out, effects.Dispatch)


def test_marks_of_a_chain_go_on_behind_our_own(stage):
    parent = stage.run(1, chain=[ELSEWHERE], depth=1)

    away = sent(keep(stage, leave(stage, parent)))

    assert away.chain == [(MARK, away.call.call_id), ELSEWHERE]
    assert away.depth == 2


def test_depth_counts_what_was_at_other_peers(stage):
    parent = stage.run(1, chain=[ELSEWHERE], depth=4)

    out = leave(stage, parent)

    assert answers(out) == {Nested(parent.call_id, 1): "invalid_request"}
    assert not only(out, effects.SendAway)


@pytest.mark.parametrize(("own_s", "left_s"), [(0.0, 3.0), (1.0, 1.0), (9.0, 3.0)])
def test_nearest_deadline_travels_as_what_is_left(stage, own_s, left_s):
    """Less what its caller needs to hear of its end in time."""
    parent = stage.run(1, deadline_s=5.0)
    stage.wait(2.0)

    away = sent(keep(stage, leave(stage, parent, deadline_s=own_s)))

    expected_s = left_s - min(NESTED_EARLY_S, left_s * EARLY_SHARE)
    assert away.deadline_s == pytest.approx(expected_s, abs=0.01)


def test_deadline_of_the_outer_call_stops_the_inner_one(stage):
    parent = stage.run(1, deadline_s=5.0)
    away = sent(keep(stage, leave(stage, parent)))

    out = stage.wait(5.1)

    (stop,) = only(out, effects.StopAway)
    assert stop.call_id == away.call.call_id
    assert answers(out)[client(1)] == "deadline_exceeded"


def test_cancel_of_the_outer_call_stops_the_inner_one(stage):
    parent = stage.run(1)
    away = sent(keep(stage, leave(stage, parent)))

    out = stage.step(events.CancelArrived(client(1).session, 1))

    (stop,) = only(out, effects.StopAway)
    assert stop.call_id == away.call.call_id


def test_answer_that_comes_after_the_end_is_nobodys(stage):
    parent = stage.run(1)
    away = sent(keep(stage, leave(stage, parent)))
    stage.step(events.CancelArrived(client(1).session, 1))

    assert stage.step(events.AwayAnswered(away.call.call_id, "", b"\x01")) == []


def test_outer_call_that_changed_others_elsewhere_is_recorded(stage):
    """It changed nothing here, but to run it again would do the inner one twice."""
    parent = stage.run(1)
    away = sent(keep(stage, leave(stage, parent)))
    stage.step(events.AwayAnswered(away.call.call_id, "", b"\x01"))

    out = stage.end(parent)

    (commit,) = only(out, effects.Commit)
    assert commit.client == client(1)
