"""How calls end in the invocation core: commits, answers, nesting, checkpoints, items."""

from __future__ import annotations

import pytest

from activestore.core import effects, events
from activestore.core.calls import Call, Kind, Nested
from activestore.core.invocation import InvocationConfig
from tests.core.stage import (
    OBJECT,
    OTHER,
    Stage,
    answers,
    client,
    delta,
    dispatched,
    named,
    only,
)
from tests.core.world import object_id_of, session_of

THIRD = object_id_of(3)


# -- replies and commits ---------------------------------------------------------------


def test_reply_waits_for_the_commit_of_what_it_saw(stage: Stage) -> None:
    first = stage.end(stage.run(1), change=delta())
    reader = dispatched(stage.call(2, "peek"))
    second = stage.end(reader)

    out = stage.commit(first)

    assert answers(first) == answers(second) == {}
    assert list(answers(out)) == [client(1), client(2)]


def test_refused_commit_fails_all_that_was_built_on_it(stage: Stage) -> None:
    first = stage.end(stage.run(1), change=delta(1))
    second = stage.end(dispatched(stage.call(2)), change=delta(2))

    refused = stage.refuse_commit(first)
    also = stage.refuse_commit(second)

    assert answers(refused) == {client(1): "storage_full", client(2): "storage_full"}
    assert only(refused, effects.DropCopy)
    assert answers(also) == {}
    assert not stage.boxes


def test_refused_commit_leaves_earlier_replies_alone(stage: Stage) -> None:
    first = stage.end(stage.run(1), change=delta(1))
    second = stage.end(dispatched(stage.call(2)), change=delta(2))

    refused = stage.refuse_commit(second)
    committed = stage.commit(first)

    assert answers(refused) == {client(2): "storage_full"}
    assert answers(committed) == {client(1): ""}


def test_call_on_a_change_that_was_not_committed_runs_again(stage: Stage) -> None:
    first = stage.end(stage.run(1), change=delta(1))
    second = dispatched(stage.call(2))
    stage.refuse_commit(first)

    out = stage.end(second, change=delta(2))

    assert answers(out) == {}
    assert only(out, effects.Commit) == []
    assert only(out, effects.LoadObject)
    assert dispatched(stage.load()).origin == client(2)


@pytest.mark.parametrize("method", ["add", "rows"])
def test_call_that_cannot_run_twice_fails_instead(stage: Stage, method: str) -> None:
    """What it called, or streamed, on the lost change has happened."""
    first = stage.end(stage.run(1), change=delta(1))
    second = dispatched(stage.call(2, method, credit=4))
    if method == "add":
        nested = dispatched([*stage.nest(second, 1), *stage.load(OTHER)])
        stage.end(nested)
    stage.refuse_commit(first)

    out = stage.end(second, change=delta(2))

    assert answers(out) == {client(2): "unavailable"}


def test_call_that_raised_tells_the_error_and_changes_nothing(stage: Stage) -> None:
    out = stage.end(stage.run(1), code="method", body=b"fields", is_dropped=True)

    (refusal,) = only(out, effects.Refuse)
    assert (refusal.code, refusal.body) == ("method", b"fields")
    assert only(out, effects.Commit) == []
    assert not stage.boxes


@pytest.mark.parametrize("code", ["", "method"])
def test_class_that_is_durable_later_answers_before_the_commit(code: str) -> None:
    stage = Stage()
    stage.publish(durability=1)

    out = stage.end(stage.run(1), change=delta(), code=code)

    assert answers(out) == {client(1): code}
    assert only(out, effects.Commit)[0].durability == 1
    assert answers(stage.commit(out)) == {}


def test_refused_commit_of_a_class_that_is_durable_later_is_undone(
    stage: Stage,
) -> None:
    stage.publish(durability=1)
    out = stage.end(stage.run(1), change=delta())

    refused = stage.refuse_commit(out)

    assert answers(refused) == {}, "its caller has its answer"
    assert only(refused, effects.DropCopy)


def test_cold_object_is_not_loaded_before_its_last_commit(stage: Stage) -> None:
    ended = stage.end(stage.run(1), change=delta(), is_dropped=True)

    waiting = stage.call(2)
    out = stage.commit(ended)

    assert only(waiting, effects.HurryCommits)
    assert only(waiting, effects.LoadObject) == []
    assert only(out, effects.LoadObject)


def test_answers_of_attempts_that_were_given_up_are_ignored(stage: Stage) -> None:
    call = stage.run(1)

    assert stage.end(call, attempt=call.attempt - 1, change=delta()) == []
    stage.end(call)
    assert stage.end(call, change=delta()) == []


def test_larger_state_after_a_call_is_counted(stage: Stage) -> None:
    stage.end(stage.run(1), change=delta(), state_bytes=1000)

    assert stage.core.pool.executors[1].state_bytes == 1000


def test_replies_that_the_client_has_go_with_the_next_commit(stage: Stage) -> None:
    stage.commit(stage.end(stage.run(1), change=delta()))
    stage.commit(stage.end(dispatched(stage.call(2)), change=delta()))

    third = stage.end(dispatched(stage.call(3, first_unacked=3)), change=delta())

    (commit,) = only(third, effects.Commit)
    assert commit.acknowledged == [client(1), client(2)]


def test_replies_of_others_stay_until_their_own_client_has_them(stage: Stage) -> None:
    for session in range(1, 1500):
        call = (
            stage.run(1, session=session)
            if session == 1
            else dispatched(stage.call(1, session=session))
        )
        out = stage.end(call, change=delta())
        (commit,) = only(out, effects.Commit)
        assert not commit.acknowledged
        stage.commit(out)


# -- calls that a slot gave back -------------------------------------------------------


def test_call_given_back_untouched_stands_where_it_stood(stage: Stage) -> None:
    first = stage.run(1)
    stage.call(2)
    stage.call(3)

    stage.end(first, code="not_run", is_dropped=True)
    out = stage.load()

    assert dispatched(out).origin == client(1)
    assert [call.origin for call in stage.boxes[OBJECT].waiting] == [
        client(2),
        client(3),
    ]


def test_cancelled_call_that_is_given_back_is_gone(stage: Stage) -> None:
    call = stage.run(1)
    stage.step(events.CancelArrived(session_of(1), 1))

    out = stage.end(call, code="not_run")

    assert answers(out) == {}
    assert not stage.core.calls


def test_slot_of_an_ended_call_that_comes_back_untouched_goes_to_who_waits() -> None:
    stage = Stage(slots=1)
    call = stage.run(1)
    stage.step(events.CancelArrived(session_of(1), 1))
    stage.call(2, object_id=OTHER)
    waits = stage.load(OTHER)

    out = stage.end(call, code="not_run", is_dropped=True)

    assert only(waits, effects.Dispatch) == []
    assert dispatched(out).origin == client(2)


def test_reentrant_call_that_is_given_back_fails(stage: Stage) -> None:
    outer = stage.run(1)
    inner = dispatched(stage.nest(outer, 1, "add", OBJECT))

    out = stage.end(inner, code="not_run", is_dropped=True)

    assert answers(out) == {Nested(outer.call_id, 1): "unavailable"}


def test_call_into_its_own_chain_whose_holder_has_ended_waits_like_others(
    stage: Stage,
) -> None:
    outer = stage.run(1)
    inner = dispatched(stage.nest(outer, 1, "add", OBJECT))
    stage.end(outer, code="cancelled")

    out = stage.end(inner, code="not_run")

    again = dispatched(out)
    assert again is inner
    assert not inner.is_reentrant
    assert only(stage.end(inner, change=delta()), effects.Commit), "it commits itself"


# -- late and cancelled ----------------------------------------------------------------


def test_call_past_its_deadline_is_told_so_and_interrupted(stage: Stage) -> None:
    call = stage.run(1, deadline_s=1.0)

    out = stage.wait(1.0)

    assert answers(out) == {client(1): "deadline_exceeded"}
    (interrupt,) = only(out, effects.InterruptCall)
    assert (interrupt.call_id, interrupt.reason) == (call.call_id, "deadline")


def test_deadline_of_a_call_that_has_ended_is_nothing(stage: Stage) -> None:
    stage.end(stage.run(1, deadline_s=1.0))

    assert answers(stage.wait(1.0)) == {}


def test_deadline_of_the_method_holds_where_the_caller_has_none(stage: Stage) -> None:
    stage.run(1, "bounded")
    stage.run(2, "bounded", OTHER, deadline_s=9.0)

    assert answers(stage.wait(5.0)) == {client(1): "deadline_exceeded"}


def test_call_that_waits_past_its_deadline_never_runs(stage: Stage) -> None:
    stage.run(1)
    stage.call(2, deadline_s=1.0)

    out = stage.wait(1.0)

    assert answers(out) == {client(2): "deadline_exceeded"}
    assert only(out, effects.InterruptCall) == []


@pytest.mark.parametrize("is_dropped", [False, True])
def test_change_that_comes_too_late_is_thrown_away(
    stage: Stage, *, is_dropped: bool
) -> None:
    call = stage.run(1, deadline_s=1.0)

    out = stage.end(call, change=delta(), after_s=1.5, is_dropped=is_dropped)

    assert answers(out) == {client(1): "deadline_exceeded"}
    assert only(out, effects.Commit) == []
    assert len(only(out, effects.DropCopy)) == (not is_dropped)
    assert not stage.boxes


def test_error_that_comes_too_late_is_still_the_methods_error(stage: Stage) -> None:
    call = stage.run(1, deadline_s=1.0)

    out = stage.end(call, code="method", after_s=1.5, is_dropped=True)

    assert answers(out) == {client(1): "method"}


def test_change_of_a_cancelled_call_is_thrown_away(stage: Stage) -> None:
    call = stage.run(1)
    stage.step(events.CancelArrived(session_of(1), 1))

    out = stage.end(call, change=delta())

    assert only(out, effects.Commit) == []
    assert only(out, effects.DropCopy)
    assert answers(out) == {}


def test_cancelled_call_that_changed_nothing_leaves_its_copy(stage: Stage) -> None:
    call = stage.run(1)
    stage.step(events.CancelArrived(session_of(1), 1))

    assert stage.end(call) == []
    assert stage.boxes[OBJECT].main is not None


# -- calls of calls --------------------------------------------------------------------


def test_nested_call_runs_on_its_own_object_and_is_answered_to_the_method(
    stage: Stage,
) -> None:
    outer = stage.run(1)

    inner = dispatched([*stage.nest(outer, 7), *stage.load(OTHER)])
    ended = stage.end(inner, change=delta())
    out = stage.commit(ended)

    assert (inner.depth, outer.waits_nested, outer.made_nested) == (1, 0, True)
    assert only(ended, effects.Commit)[0].client is None, "no record: nobody retries it"
    assert answers(out) == {Nested(outer.call_id, 7): ""}


def test_call_that_comes_back_to_its_object_runs_on_the_copy_that_is_held(
    stage: Stage,
) -> None:
    outer = stage.run(1)
    middle = dispatched([*stage.nest(outer, 1), *stage.load(OTHER)])

    inner = dispatched(stage.nest(middle, 1, "add", OBJECT))
    out = stage.end(inner, change=delta(), body=b"inner")

    assert (inner.copy, inner.is_reentrant) == (None, True)
    assert answers(out) == {Nested(middle.call_id, 1): ""}
    assert only(out, effects.Commit) == [], "it commits with the outer call"


def test_reentrant_call_that_raised_tells_its_caller(stage: Stage) -> None:
    outer = stage.run(1)
    inner = dispatched(stage.nest(outer, 1, "add", OBJECT))

    assert answers(stage.end(inner, code="method")) == {
        Nested(outer.call_id, 1): "method"
    }


@pytest.mark.parametrize(
    ("outer_method", "method", "kind"),
    [
        ("peek", "add", Kind.CALL),
        ("add", "vanish", Kind.CALL),
        ("add", "", Kind.DELETE),
    ],
)
def test_call_that_cannot_come_back_to_its_object(
    stage: Stage, outer_method: str, method: str, kind: Kind
) -> None:
    outer = stage.run(1, outer_method)

    out = stage.nest(outer, 1, method, OBJECT, kind=kind)

    assert answers(out) in (
        {Nested(outer.call_id, 1): "invalid_request"},
        {Nested(outer.call_id, 1): "no_such_method"},
    )


def test_reader_may_come_back_to_its_object(stage: Stage) -> None:
    outer = stage.run(1, "peek")

    assert dispatched(stage.nest(outer, 1, "peek", OBJECT)).is_reentrant


def test_two_chains_that_wait_for_each_other_are_told_so(stage: Stage) -> None:
    first = stage.run(1, object_id=OBJECT)
    second = stage.run(2, object_id=OTHER)
    waits = stage.nest(first, 1, "add", OTHER)

    out = stage.nest(second, 1, "add", OBJECT)

    assert answers(waits) == {}
    (refusal,) = only(out, effects.Refuse)
    assert "deadlock" in str(refusal.error)


def test_three_chains_in_a_ring_are_told_so() -> None:
    stage = Stage(slots=3)
    calls = [stage.run(n, object_id=object_id_of(n)) for n in (1, 2, 3)]
    stage.nest(calls[0], 1, "add", object_id_of(2))
    stage.nest(calls[1], 1, "add", object_id_of(3))

    out = stage.nest(calls[2], 1, "add", object_id_of(1))

    assert answers(out) == {Nested(calls[2].call_id, 1): "busy"}


def test_chain_that_only_waits_for_a_long_call_is_no_deadlock(stage: Stage) -> None:
    """The holder's nested call runs elsewhere; nothing waits for the first chain."""
    long = stage.run(1, object_id=OTHER)
    dispatched([*stage.nest(long, 1, "add", THIRD), *stage.load(THIRD)])
    other = stage.run(2)

    out = stage.nest(other, 1, "add", OTHER)

    assert answers(out) == {}
    assert len(stage.boxes[OTHER].waiting) == 1


def test_readers_of_two_chains_share_and_are_no_deadlock(stage: Stage) -> None:
    first = stage.run(1, "peek")
    second = stage.run(2, "peek", OTHER)
    stage.nest(first, 1, "peek", OTHER)

    assert dispatched(stage.nest(second, 1, "peek", OBJECT))


def test_chain_that_is_too_deep() -> None:
    stage = Stage(InvocationConfig(depth_max=2))
    call = stage.run(1)
    for _ in range(2):
        call = dispatched(stage.nest(call, 1, "add", OBJECT))

    (refusal,) = only(stage.nest(call, 1, "add", OBJECT), effects.Refuse)

    assert "3 nested calls, over 2" in str(refusal.error)


def test_nested_call_of_a_call_that_has_ended_or_was_cancelled(stage: Stage) -> None:
    cancelled, ended = stage.run(1), stage.run(2, object_id=OTHER)
    stage.end(ended)
    stage.step(events.CancelArrived(session_of(1), 1))

    for parent in (cancelled, ended):
        out = stage.nest(parent, 1, "add", THIRD)
        assert answers(out) == {Nested(parent.call_id, 1): "cancelled"}


def test_cancel_of_a_chain_goes_from_the_inside_out(stage: Stage) -> None:
    outer = stage.run(1)
    inner = dispatched([*stage.nest(outer, 1), *stage.load(OTHER)])

    out = stage.step(events.CancelArrived(session_of(1), 1))

    assert answers(out) == {
        Nested(outer.call_id, 1): "cancelled",
        client(1): "cancelled",
    }
    assert [i.call_id for i in only(out, effects.InterruptCall)] == [
        inner.call_id,
        outer.call_id,
    ]


def test_nested_call_outlives_the_call_that_did_not_wait_for_it(stage: Stage) -> None:
    outer = stage.run(1)
    inner = dispatched([*stage.nest(outer, 1, waits=False), *stage.load(OTHER)])
    stage.end(outer)

    out = stage.commit(stage.end(inner, change=delta()))

    assert answers(out) == {Nested(outer.call_id, 1, waits=False): ""}


# -- checkpoints -----------------------------------------------------------------------


def checkpoint(
    stage: Stage, call: Call, *, changes: bool = True, attempt: int | None = None
) -> list[effects.Effect]:
    """Have a running method ask for a checkpoint, as its request 5."""
    return stage.step(
        events.CheckpointReached(
            call.call_id, call.attempt if attempt is None else attempt, 5,
            delta() if changes else None,
        )
    )  # fmt: skip


def test_checkpoint_is_answered_once_it_is_durable(stage: Stage) -> None:
    call = stage.run(1)
    out = checkpoint(stage, call)
    (ordered,) = only(out, effects.Commit)

    assert (ordered.client, ordered.version) == (client(1), 2)
    assert ordered.code == "executor_crashed", "what a retry is told once all is lost"
    assert answers(stage.commit(out)) == {Nested(call.call_id, 5): ""}


def test_checkpoint_that_storage_refuses_is_the_methods_error(stage: Stage) -> None:
    call = stage.run(1)
    out = checkpoint(stage, call)

    refused = stage.refuse_commit(out)

    assert answers(refused) == {Nested(call.call_id, 5): "storage_full"}
    later = checkpoint(stage, call)
    assert answers(later) == {Nested(call.call_id, 5): "unavailable"}


def test_checkpoint_without_a_change_is_answered_at_once(stage: Stage) -> None:
    call = stage.run(1)

    out = checkpoint(stage, call, changes=False)

    assert answers(out) == {Nested(call.call_id, 5): ""}


def test_checkpoint_that_only_made_objects_is_committed(stage: Stage) -> None:
    call = stage.run(1)
    out = stage.step(
        events.CheckpointReached(call.call_id, call.attempt, 5, None, [named(OTHER)])
    )

    assert only(out, effects.Commit)[0].created == [named(OTHER)]


def test_checkpoint_of_a_call_that_is_over(stage: Stage) -> None:
    cancelled, ended = stage.run(1), stage.run(2, object_id=OTHER)
    stage.end(ended)
    stage.step(events.CancelArrived(session_of(1), 1))
    stale = stage.run(3, object_id=THIRD)

    for call, attempt in ((cancelled, 1), (ended, 1), (stale, 0)):
        out = checkpoint(stage, call, attempt=attempt)
        assert answers(out) == {Nested(call.call_id, 5): "cancelled"}


# -- items -----------------------------------------------------------------------------


def item(stage: Stage, call: Call, attempt: int | None = None) -> list[effects.Effect]:
    """Have a generator yield."""
    return stage.step(
        events.ItemProduced(
            call.call_id, call.attempt if attempt is None else attempt, b"item", ()
        )
    )


def test_items_are_numbered_and_sent_as_they_come(stage: Stage) -> None:
    call = stage.run(1, "rows", credit=4)

    sent = [*item(stage, call), *item(stage, call)]

    assert sent == [
        effects.SendItem(client(1), number, b"item", ()) for number in (0, 1)
    ]


def test_items_of_a_reader_wait_for_the_commit_of_what_they_show(stage: Stage) -> None:
    ended = stage.end(stage.run(1), change=delta())
    call = dispatched(stage.call(2, "scan", credit=4))

    before = item(stage, call)
    out = stage.commit(ended)

    assert before == []
    assert [type(effect) for effect in out] == [effects.Answer, effects.SendItem]


def test_items_after_the_end_are_dropped(stage: Stage) -> None:
    cancelled = stage.run(1, "rows", credit=4)
    stage.step(events.CancelArrived(session_of(1), 1))
    other = stage.run(2, "rows", OTHER, credit=4)

    assert item(stage, cancelled) == []
    assert item(stage, other, attempt=0) == []
    stage.end(other)
    assert item(stage, other) == []


def test_items_held_back_fail_with_the_commit_that_they_show(stage: Stage) -> None:
    """The stream is told once, however many items it had, and ends where it runs."""
    ended = stage.end(stage.run(1), change=delta())
    call = dispatched(stage.call(2, "scan", credit=4))
    item(stage, call)
    item(stage, call)

    out = stage.refuse_commit(ended)
    late = [*item(stage, call), *stage.end(call)]

    assert answers(out) == {client(1): "storage_full", client(2): "storage_full"}
    assert [i.call_id for i in only(out, effects.InterruptCall)] == [call.call_id]
    assert answers(late) == {}
    assert only(late, effects.SendItem) == []
