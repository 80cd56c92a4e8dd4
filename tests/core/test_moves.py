"""An object that leaves: what runs ends, what waits goes after it, nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest

from activestore.core import effects, events
from activestore.core.calls import Nested
from activestore.core.mailboxes import MailboxConfig
from tests.core.stage import (
    OBJECT,
    OTHER,
    Stage,
    answers,
    client,
    delta,
    only,
)

READER_WAIT_S = MailboxConfig().reader_wait_s
ORDERED = events.MoveOrdered(OBJECT)
GONE = events.MoveEnded(OBJECT, is_gone=True)
STAYS = events.MoveEnded(OBJECT, is_gone=False)
QUIET = [effects.ObjectQuiet(OBJECT)]


def sent_on(out: list[Any]) -> list[Any]:
    return [effect.origin for effect in only(out, effects.SendOn)]


def test_object_on_which_nothing_runs_can_leave_at_once(stage: Stage) -> None:
    out = stage.step(ORDERED)

    assert only(out, effects.ObjectQuiet) == QUIET
    assert only(stage.step(GONE), effects.SendOn) == []
    assert stage.boxes == {}


def test_call_in_flight_ends_and_is_committed_before_its_object_leaves(
    stage: Stage,
) -> None:
    call = stage.run(1)
    ordered = stage.step(ORDERED)
    ended = stage.end(call, change=delta())
    committed = stage.commit(ended)

    assert only(ordered, effects.ObjectQuiet) == []
    assert only(ended, effects.ObjectQuiet) == []
    assert only(committed, effects.ObjectQuiet) == QUIET
    assert answers(committed) == {client(1): ""}
    assert only(committed, effects.DropCopy), "the copy goes with the object"


def test_calls_that_come_meanwhile_follow_in_their_order(stage: Stage) -> None:
    stage.step(ORDERED)
    waiting = [stage.call(n) for n in (1, 2, 3)]

    out = stage.step(GONE)

    assert all(only(one, effects.LoadObject) == [] for one in waiting)
    assert sent_on(out) == [client(1), client(2), client(3)]
    assert answers(out) == {}
    assert stage.boxes == {}
    assert stage.core.calls == {}
    assert stage.core.sessions == {}


def test_retry_whose_answer_is_being_looked_up_follows_too(stage: Stage) -> None:
    stage.step(ORDERED)
    (look_up,) = only(stage.call(1, attempt=1), effects.LookUpReply)

    out = stage.step(GONE)
    late = stage.step(events.ReplyLookedUp(look_up.call_id, None))

    assert sent_on(out) == [client(1)]
    assert late == []


def test_calls_go_on_where_the_move_was_given_up(stage: Stage) -> None:
    stage.step(ORDERED)
    stage.call(1)

    out = stage.step(STAYS)

    assert only(out, effects.LoadObject)
    assert only(stage.load(), effects.Dispatch)


def test_reader_beside_a_long_writer_is_served_until_the_writer_ends() -> None:
    stage = Stage(executors=2)
    stage.run(1)
    stage.step(ORDERED)
    stage.call(2, "peek")
    out = stage.wait(READER_WAIT_S)
    (load,) = only(out, effects.LoadObject)

    served = stage.load(is_reader=True)

    assert load.is_reader
    assert only(served, effects.Dispatch)


@pytest.mark.parametrize("durability", [1, 2])
def test_commit_that_may_wait_is_hurried(durability: int) -> None:
    stage = Stage()
    stage.publish(durability=durability)
    ended = stage.end(stage.run(1), change=delta())

    out = stage.step(ORDERED)

    assert only(out, effects.HurryCommits)
    assert only(out, effects.ObjectQuiet) == []
    assert only(stage.commit(ended), effects.ObjectQuiet) == QUIET


def test_nested_call_that_waits_goes_away_after_its_object(stage: Stage) -> None:
    parent = stage.run(1, object_id=OTHER)
    stage.step(ORDERED)
    stage.nest(parent, 1, object_id=OBJECT)

    out = stage.step(GONE)
    (kept,) = only(out, effects.CommitStates)
    left = stage.step(events.Committed(kept.token))

    (away,) = only(left, effects.SendAway)
    assert away.call.object_id == OBJECT
    told = stage.step(events.AwayAnswered(away.call.call_id, "", b"\x05"))
    assert answers(told) == {Nested(parent.call_id, 1): ""}
