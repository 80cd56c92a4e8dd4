"""Objects that are not led here any more, or by nobody: what becomes of their calls."""

from __future__ import annotations

import pytest

from activestore.core import effects, events
from activestore.core.calls import Call, Kind, Nested
from activestore.errors import NoQuorumError
from tests.core.stage import (
    OBJECT,
    OTHER,
    Group,
    Stage,
    answers,
    client,
    delta,
    dispatched,
    named,
    only,
    sent_on,
)

LED = events.ObjectLed(OBJECT)
DEPOSED = events.ObjectDeposed(OBJECT)
NO_QUORUM = NoQuorumError("object", "1 of 3 voters answer, 2 must")


def test_deposed_leader_sends_on_all_that_has_no_answer_in_their_order(
    led: Stage,
) -> None:
    group = Group(led)
    written = led.end(led.run(1), change=delta())
    led.end(led.run(2, "peek"))
    running = dispatched(led.call(3))
    led.call(4)
    led.call(5, "peek", attempt=1)

    out = led.step(DEPOSED)

    assert group.asked
    assert sent_on(out) == {
        client(1): True, client(2): True, client(3): True, client(4): True,
        client(5): True,
    }  # fmt: skip
    assert answers(out) == {}
    assert [one.call_id for one in only(out, effects.InterruptCall)] == [
        running.call_id
    ]
    assert len(only(out, effects.DropCopy)) == 1
    assert led.core.sessions == {}
    assert list(led.core.calls) == [running.call_id]
    assert led.end(running, change=delta()) == []
    assert led.commit(written) == []
    assert led.boxes == {}
    assert led.core.calls == {}


@pytest.mark.parametrize("is_refused", [False, True])
def test_end_of_a_commit_that_is_in_doubt_comes_too_late(
    led: Stage, is_refused: bool
) -> None:
    written = led.end(led.run(1), change=delta())
    led.step(DEPOSED)
    led.step(LED)
    call = led.run(1, attempt=0)

    late = led.refuse_commit(written) if is_refused else led.commit(written)

    assert late == []
    assert answers(led.commit(led.end(call, change=delta()))) == {client(1): ""}


def test_request_that_comes_back_to_the_leader_it_left_runs_once(led: Stage) -> None:
    """Deposed and led again at once: the first attempt runs still, and counts not."""
    first = led.run(1)
    assert sent_on(led.step(DEPOSED)) == {client(1): True}
    led.step(LED)
    (look_up,) = only(led.call(1, attempt=1), effects.LookUpReply)
    led.step(events.ReplyLookedUp(look_up.call_id, None))
    second = dispatched(led.load(version=4))

    thrown = led.end(first, change=delta())
    out = led.end(second, change=delta())

    assert second is not first
    assert answers(thrown) == {}
    assert only(thrown, effects.Commit) == []
    (commit,) = only(out, effects.Commit)
    assert commit.version == 5
    assert answers(led.commit(out)) == {client(1): ""}


def test_first_attempt_that_does_not_end_holds_nobody_up(led: Stage) -> None:
    first = led.run(1)
    led.step(DEPOSED)
    led.step(LED)

    out = led.call(2)

    assert only(out, effects.LoadObject)
    assert dispatched(led.load()) is not first


def test_state_that_was_being_read_when_it_was_deposed_is_not_used(led: Stage) -> None:
    led.call(1)
    led.step(DEPOSED)
    led.step(LED)
    led.call(1)

    old = led.load(version=3)
    new = led.load(version=6)

    assert [type(one) for one in old] == [effects.ReleaseLoaded]
    assert (
        only(led.end(dispatched(new), change=delta()), effects.Commit)[0].version == 7
    )


def test_missing_state_that_was_asked_for_by_a_deposed_leader_counts_not(
    led: Stage,
) -> None:
    led.call(1)
    led.step(DEPOSED)
    led.step(LED)
    led.call(1)

    assert led.miss() == []
    assert only(led.load(), effects.Dispatch)


def test_stream_of_a_deposed_leader_breaks(led: Stage) -> None:
    Group(led)
    ended, running = (
        led.run(1, "scan", credit=8),
        dispatched(led.call(2, "scan", credit=8)),
    )
    led.step(events.ItemProduced(ended.call_id, ended.attempt, b"\x01", ()))
    led.end(ended)

    out = led.step(DEPOSED)

    assert answers(out) == {client(1): "unavailable", client(2): "unavailable"}
    assert sent_on(out) == {}
    assert answers(led.end(running)) == {}


def test_stream_that_has_not_begun_is_sent_on(led: Stage) -> None:
    led.call(1, "scan", credit=8)

    assert sent_on(led.step(DEPOSED)) == {client(1): True}


def test_nested_call_that_has_not_begun_goes_after_its_object(led: Stage) -> None:
    parent = led.run(1, object_id=OTHER)
    led.nest(parent, 1, object_id=OBJECT)

    out = led.step(DEPOSED)
    (kept,) = only(out, effects.CommitStates)
    (away,) = only(led.step(events.Committed(kept.token)), effects.SendAway)

    assert away.call.object_id == OBJECT
    told = led.step(events.AwayAnswered(away.call.call_id, "", b"\x05"))
    assert answers(told) == {Nested(parent.call_id, 1): ""}


def test_caller_of_a_nested_call_in_doubt_is_told_so(led: Stage) -> None:
    parent = led.run(1, object_id=OTHER)
    led.nest(parent, 1, object_id=OBJECT)
    inner = dispatched(led.load())
    led.end(inner, change=delta())

    out = led.step(DEPOSED)

    (refused,) = only(out, effects.Refuse)
    assert refused.origin == Nested(parent.call_id, 1)
    assert refused.error is not None
    assert "may be kept, or not" in str(refused.error)
    # A retry of the outer call must not run the inner one again.
    ended = led.end(parent, code="unavailable")
    (recorded,) = only(ended, effects.Commit)
    assert recorded.client == client(1)


def test_caller_of_a_nested_call_that_runs_is_told_that_nothing_changed(
    led: Stage,
) -> None:
    parent = led.run(1, object_id=OTHER)
    led.nest(parent, 1, object_id=OBJECT)
    inner = dispatched(led.load())

    out = led.step(DEPOSED)

    (refused,) = only(out, effects.Refuse)
    assert refused.origin == Nested(parent.call_id, 1)
    assert "nothing changed" in str(refused.error)
    assert answers(led.end(inner, change=delta())) == {}


def test_checkpoint_in_doubt_is_refused_and_its_call_sent_on(led: Stage) -> None:
    call = led.run(1)
    kept = led.step(events.CheckpointReached(call.call_id, call.attempt, 5, delta()))

    out = led.step(DEPOSED)

    assert answers(out) == {Nested(call.call_id, 5): "unavailable"}
    assert sent_on(out) == {client(1): True}
    assert led.commit(kept) == []
    again = led.step(events.CheckpointReached(call.call_id, call.attempt, 6, delta()))
    assert answers(again) == {Nested(call.call_id, 6): "cancelled"}


def test_early_answer_of_relaxed_durability_is_not_given_again(stage: Stage) -> None:
    """It may be lost with the leader, by the choice of the class."""
    stage.publish(durability=1)
    stage.step(LED)
    told = stage.end(stage.run(1), change=delta())

    out = stage.step(DEPOSED)
    again = stage.call(1, attempt=1)

    assert answers(told) == {client(1): ""}
    assert sent_on(out) == {}
    assert only(again, effects.LookUpReply)


def test_what_a_sent_on_method_made_goes_with_it(led: Stage) -> None:
    """What it calls is ended; and it can call, keep and make nothing more."""
    outer = led.run(1)
    (kept,) = only(led.nest(outer, 2, waits=False), effects.CommitStates)
    led.step(events.Committed(kept.token))
    inner = dispatched(led.load(OTHER))

    out = led.step(DEPOSED)
    late = [
        *led.nest(outer, 3, "peek"),
        *led.step(events.PersistArrived(Nested(outer.call_id, 4), [named(OTHER)])),
    ]

    assert answers(out) == {Nested(outer.call_id, 2, waits=False): "cancelled"}
    interrupted = {one.call_id for one in only(out, effects.InterruptCall)}
    assert interrupted == {outer.call_id, inner.call_id}
    assert answers(late) == {
        Nested(outer.call_id, 3): "cancelled", Nested(outer.call_id, 4): "cancelled",
    }  # fmt: skip


# -- led by nobody --------------------------------------------------------------------


def test_what_waits_for_an_object_that_nobody_can_lead_is_refused(led: Stage) -> None:
    Group(led)
    written = led.end(led.run(1), change=delta())
    led.end(led.run(2, "peek"))
    running = dispatched(led.call(3))
    led.call(4)

    out = led.step(events.ObjectUnavailable(OBJECT, NO_QUORUM))

    assert answers(out) == {client(n): "no_quorum" for n in (1, 2, 4)}
    assert running.slot is not None
    again = led.call(1, attempt=1)
    assert answers(again) == {client(1): "no_quorum"}, "in doubt still"
    assert answers(led.commit(written)) == {}
    assert only(led.call(1, attempt=2), effects.LookUpReply), "decided: look it up"


def test_clients_hear_that_no_majority_answers_what_has_ended(led: Stage) -> None:
    """What has not ended is for nobody else to answer; a method has no other way."""
    Group(led)
    led.end(led.run(1), change=delta())
    led.end(led.run(2, "peek", session=2))
    led.call(3)

    out = led.step(events.ObjectUnanswered(OBJECT, 7))

    assert only(out, effects.SendBeat) == [
        effects.SendBeat(client(1).session, [1], True, 7),
        effects.SendBeat(client(2, 2).session, [2], True, 7),
    ]
    led.step(events.ObjectUnavailable(OBJECT, NO_QUORUM))
    assert only(led.step(events.ObjectUnanswered(OBJECT, 7)), effects.SendBeat) == []
    assert led.step(events.ObjectUnanswered(OTHER, 7)) == []


def test_refused_for_good_after_no_quorum_is_told_once(led: Stage) -> None:
    written = led.end(led.run(1), change=delta())
    led.step(events.ObjectUnavailable(OBJECT, NO_QUORUM))

    assert answers(led.refuse_commit(written)) == {}
    assert led.core.sessions == {}


def test_deposed_after_no_quorum_sends_nothing_on_that_was_refused(led: Stage) -> None:
    led.end(led.run(1), change=delta())
    led.step(events.ObjectUnavailable(OBJECT, NO_QUORUM))

    assert sent_on(led.step(DEPOSED)) == {}
    assert led.core.sessions == {}
    assert led.boxes == {}


def test_deadline_of_what_waits_for_its_majority_is_in_doubt_not_undone(
    led: Stage,
) -> None:
    """It is told once; a retry is told the same, then what was recorded."""
    written = led.end(led.run(1, deadline_s=2.0), change=delta())

    out = led.wait(2.1)

    assert answers(out) == {client(1): "no_quorum"}
    assert answers(led.call(1, attempt=1)) == {client(1): "no_quorum"}, "in doubt still"
    assert answers(led.commit(written)) == {}
    assert led.core.sessions == {}
    assert only(led.call(1, attempt=2), effects.LookUpReply), "decided: look it up"


def test_deadline_after_the_majority_answered_is_heard_of_by_nobody(led: Stage) -> None:
    led.commit(led.end(led.run(1, deadline_s=2.0), change=delta()))

    assert answers(led.wait(2.1)) == {}


def test_deadline_of_what_was_refused_already_is_told_once(led: Stage) -> None:
    written = led.end(led.run(1, deadline_s=2.0), change=delta())
    led.step(events.ObjectUnavailable(OBJECT, NO_QUORUM))

    assert answers(led.wait(2.1)) == {}
    assert answers(led.commit(written)) == {}


def test_deadline_of_what_was_sent_on_is_the_other_leaders(led: Stage) -> None:
    led.end(led.run(1, deadline_s=2.0), change=delta())
    assert sent_on(led.step(DEPOSED)) == {client(1): True}

    assert answers(led.wait(2.1)) == {}


def test_deadline_of_a_read_says_that_nothing_was_changed(led: Stage) -> None:
    Group(led)
    led.end(led.run(1, "peek", deadline_s=2.0))

    (refused,) = only(led.wait(2.1), effects.Refuse)

    assert type(refused.error) is NoQuorumError
    assert "it is readonly and changed nothing" in str(refused.error)
    assert "kept" not in str(refused.error)


# -- deadlines of nested calls ---------------------------------------------------------


def nested_in_doubt(
    led: Stage, outer_s: float = 0.0, own_s: float = 0.0
) -> tuple[Call, list[effects.Effect]]:
    """Have a plain object's method change OBJECT; return it, and what is to be committed."""
    parent = led.run(1, object_id=OTHER, deadline_s=outer_s)
    led.nest(parent, 1, object_id=OBJECT, deadline_s=own_s)
    return parent, led.end(dispatched(led.load()), change=delta())


@pytest.mark.parametrize("whose", ["outer_s", "own_s"])
def test_method_hears_of_a_missing_majority_before_the_deadline(
    led: Stage, whose: str
) -> None:
    """In time to say so: where its own deadline comes first, it is told of that only."""
    parent, written = nested_in_doubt(led, **{whose: 2.0})

    early = led.wait(1.7)
    out = led.wait(0.2)

    assert answers(early) == {}
    assert answers(out) == {Nested(parent.call_id, 1): "no_quorum"}
    assert "may be found kept" in str(only(out, effects.Refuse)[0].error)
    assert answers(led.commit(written)) == {}, "it was told already"
    assert led.core._owed == led.core._owed_nested == {}


def test_method_whose_nested_call_was_committed_is_owed_nothing(led: Stage) -> None:
    parent, written = nested_in_doubt(led, outer_s=2.0)

    assert answers(led.commit(written)) == {Nested(parent.call_id, 1): ""}
    assert led.core._owed == led.core._owed_nested == {}
    assert answers(led.wait(1.95)) == {}


@pytest.mark.parametrize(
    "ended", [DEPOSED, events.ObjectUnavailable(OBJECT, NO_QUORUM)]
)
@pytest.mark.parametrize("is_refused", [False, True])
def test_method_is_told_once_of_a_nested_call_in_doubt(
    led: Stage, ended: events.Event, is_refused: bool
) -> None:
    parent, _ = nested_in_doubt(led, outer_s=2.0)
    told = answers(led.wait(1.9)) if is_refused else {}

    told |= answers(led.step(ended))

    assert list(told) == [Nested(parent.call_id, 1)]
    assert led.core._owed == led.core._owed_nested == {}


def test_method_that_no_majority_answered_is_told_that(led: Stage) -> None:
    parent, _ = nested_in_doubt(led, outer_s=60.0)

    out = led.step(events.ObjectDeposed(OBJECT, is_unanswered=True))

    assert answers(out) == {Nested(parent.call_id, 1): "no_quorum"}
    assert "may be kept, or not" in str(only(out, effects.Refuse)[0].error)


def test_deadline_of_what_others_are_to_know_of_is_a_missing_majority(
    led: Stage,
) -> None:
    """Its nested change has not begun: the group was to be told before."""
    outer = led.run(1, deadline_s=2.0)
    led.nest(outer, 1)

    out = led.wait(1.96)

    assert answers(out) == {
        Nested(outer.call_id, 1): "cancelled", client(1): "no_quorum",
    }  # fmt: skip


def test_nested_call_that_leaves_ends_before_its_caller(led: Stage) -> None:
    outer = led.run(1, "peek", object_id=OTHER, deadline_s=2.0)
    away = events.NestedLeft(
        Nested(outer.call_id, 1), OBJECT, Kind.CALL, "peek", None, may_change=False
    )

    (sent,) = only(led.step(away, after_s=0.5), effects.SendAway)

    assert sent.deadline_s == pytest.approx(1.5 - 0.15)


def test_request_that_is_sent_on_takes_what_is_left_of_its_deadline(led: Stage) -> None:
    led.run(1, deadline_s=2.0)
    led.call(2)
    led.wait(1.5)

    left_s = {one.origin: one.left_s for one in only(led.step(DEPOSED), effects.SendOn)}

    assert left_s == {client(1): pytest.approx(0.5, abs=1e-3), client(2): 0.0}
