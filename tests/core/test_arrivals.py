"""What arrives at the invocation core: calls, persists, retries, cancels, credit."""

from __future__ import annotations

import pytest

from activestore.core import effects, events
from activestore.core.calls import Kind, MethodInfo, Nested
from activestore.core.invocation import InvocationConfig
from activestore.core.mailboxes import MailboxConfig
from tests.core.stage import (
    CLASS,
    METHODS,
    OBJECT,
    OTHER,
    Stage,
    answers,
    client,
    delta,
    named,
    only,
    state,
)
from tests.core.world import object_id_of, session_of

REPLY_KEEP_S = InvocationConfig().session_expiry_s


# -- calls that cannot be --------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "method"),
    [(Kind.CALL, "vanish"), (Kind.GET, "nothing"), (Kind.SET, "nothing")],
)
def test_no_such_method_or_field(stage: Stage, kind: Kind, method: str) -> None:
    stage.call(1, method, kind=kind)

    out = stage.load()

    (refusal,) = only(out, effects.Refuse)
    assert refusal.error is not None
    assert refusal.error.fields == {
        "class_name": CLASS,
        "method": method,
        "available": (*sorted(METHODS), "value"),
    }
    assert not stage.boxes, "nothing is kept for a call that cannot be"


def test_call_that_cannot_be_leaves_those_behind_it_alone(stage: Stage) -> None:
    first = stage.run(1)
    stage.call(2, "vanish")
    stage.call(3)

    out = stage.commit(stage.end(first, change=delta()))

    assert answers(out) == {client(1): ""}
    assert [d.call.origin for d in only(stage.core._out, effects.Dispatch)] == []
    assert stage.boxes[OBJECT].running


def test_class_that_was_never_published(stage: Stage) -> None:
    stage.call(1)

    out = stage.load(class_name="model.Unknown")

    (refusal,) = only(out, effects.Refuse)
    assert refusal.error is not None
    assert refusal.error.fields == {"class_name": "model.Unknown", "known": (CLASS,)}
    assert not stage.boxes


def test_object_that_does_not_exist(stage: Stage) -> None:
    stage.call(1)
    stage.call(2)

    out = stage.miss()

    assert answers(out) == {
        client(1): "object_not_found",
        client(2): "object_not_found",
    }
    assert not stage.boxes


def test_generator_that_was_not_asked_for_as_a_stream(stage: Stage) -> None:
    stage.call(1, "rows")

    assert answers(stage.load()) == {client(1): "invalid_request"}


def test_mailbox_that_is_full() -> None:
    stage = Stage(mailboxes=MailboxConfig(mailbox_max=2))
    stage.run(1)
    stage.call(2)
    stage.call(3)

    assert answers(stage.call(4)) == {client(4): "busy"}


# -- create and delete -----------------------------------------------------------------


def create(
    stage: Stage, sequence: int, class_name: str = CLASS
) -> list[effects.Effect]:
    """Have a Create arrive."""
    return stage.call(sequence, "__init__", kind=Kind.CREATE, class_name=class_name)


def test_created_object_takes_calls_without_being_loaded(stage: Stage) -> None:
    out = create(stage, 1)
    (activate,) = only(out, effects.Activate)
    (dispatch,) = only(out, effects.Dispatch)

    ended = stage.end(dispatch.call, state=state(), state_bytes=8)
    second = stage.call(2)

    assert activate.is_new
    assert only(ended, effects.Commit)[0].state == state()
    assert only(second, effects.Dispatch)
    assert not only(second, effects.LoadObject)
    assert answers(stage.commit(ended)) == {client(1): ""}


def test_create_of_a_class_that_was_never_published(stage: Stage) -> None:
    assert answers(create(stage, 1, "model.Unknown")) == {client(1): "class_not_found"}
    assert not stage.boxes


def test_call_before_its_create_fails_and_the_create_goes_on(stage: Stage) -> None:
    """The object was missing when it was looked for; the create behind makes it."""
    stage.call(1)
    create(stage, 2)

    out = stage.miss()

    assert answers(out) == {client(1): "object_not_found"}
    assert only(out, effects.Activate)[0].is_new


def test_delete_waits_for_what_runs_then_nothing_is_left(stage: Stage) -> None:
    call = stage.run(1)
    waiting = stage.call(2, "", kind=Kind.DELETE)
    ended = stage.end(call, change=delta())
    write, delete = only(ended, effects.Commit)
    stage.step(events.Committed(write.token))

    out = stage.step(events.Committed(delete.token))

    assert answers(waiting) == {}
    assert delete.is_delete
    assert only(ended, effects.DropCopy)
    assert answers(out) == {client(2): ""}
    assert not stage.boxes


def test_delete_of_a_cold_object_does_not_read_it(stage: Stage) -> None:
    """What is deleted may be damaged; storage says whether it exists."""
    out = stage.call(1, "", kind=Kind.DELETE)

    assert not only(out, effects.LoadObject)
    assert only(out, effects.Commit)[0].is_delete
    assert answers(stage.commit(out)) == {client(1): ""}


def test_call_behind_a_delete_finds_nothing(stage: Stage) -> None:
    out = stage.call(1, "", kind=Kind.DELETE)
    stage.call(2)

    reload = stage.commit(out)

    assert only(reload, effects.LoadObject), "storage is asked after the delete"
    assert answers(stage.miss()) == {client(2): "object_not_found"}


def test_delete_behind_a_call_that_came_too_late_is_not_forgotten(stage: Stage) -> None:
    """The deadline is noticed when a slot is free, before its timer has fired."""
    blockers = [stage.run(n, object_id=object_id_of(10 + n)) for n in (1, 2)]
    stage.call(3, deadline_s=1.0)
    stage.load()
    stage.call(4, "", kind=Kind.DELETE)

    out = stage.end(blockers[0], after_s=1.0)

    assert answers(out) == {client(1): "", client(3): "deadline_exceeded"}
    assert only(out, effects.Commit)[0].is_delete


# -- admission -------------------------------------------------------------------------


def test_retry_of_what_is_in_progress_changes_nothing(stage: Stage) -> None:
    stage.run(1)

    assert stage.call(1, attempt=1) == []


@pytest.mark.parametrize(
    ("code", "answer"),
    [("", ""), ("method", "method"), ("storage_full", "storage_full")],
)
def test_retry_of_what_was_answered_gets_the_same_answer(
    stage: Stage, code: str, answer: str
) -> None:
    (looked_up,) = only(stage.call(1, attempt=1), effects.LookUpReply)

    out = stage.step(events.ReplyLookedUp(looked_up.call_id, code, b"body"))

    assert answers(out) == {client(1): answer}
    assert out[0].body == b"body"
    assert not stage.core.calls
    assert not stage.core.sessions


def test_retry_that_has_no_record_runs(stage: Stage) -> None:
    (looked_up,) = only(stage.call(1, attempt=1), effects.LookUpReply)

    out = stage.step(events.ReplyLookedUp(looked_up.call_id, None))

    assert only(out, effects.LoadObject)


def test_retry_that_was_cancelled_while_it_was_looked_up(stage: Stage) -> None:
    (looked_up,) = only(stage.call(1, attempt=1), effects.LookUpReply)

    cancelled = stage.step(events.CancelArrived(session_of(1), 1))
    late = stage.step(events.ReplyLookedUp(looked_up.call_id, None))

    assert answers(cancelled) == {client(1): "cancelled"}
    assert late == []


def test_calls_behind_one_that_is_looked_up_do_not_overtake_it(stage: Stage) -> None:
    stage.run(9, session=2)
    (first,) = only(stage.call(1, attempt=1), effects.LookUpReply)
    (third,) = only(stage.call(3, attempt=1), effects.LookUpReply)

    behind = stage.call(2) + stage.call(4)
    elsewhere = stage.call(5, object_id=OTHER) + stage.call(1, session=3)
    too_early = stage.step(events.ReplyLookedUp(third.call_id, None))
    waiting = [call.origin for call in stage.boxes[OBJECT].waiting]
    stage.step(events.ReplyLookedUp(first.call_id, None))

    assert behind == too_early == []
    assert [load.object_id for load in only(elsewhere, effects.LoadObject)] == [OTHER]
    assert waiting == [client(1, session=3)]
    assert [call.origin for call in stage.boxes[OBJECT].waiting] == [
        client(1, session=3), client(1), client(3), client(2), client(4),
    ]  # fmt: skip
    assert not stage.core.lookups.lines


@pytest.mark.parametrize("way", ["answered", "cancelled"])
def test_calls_behind_one_that_is_answered_from_its_record_go_on(
    stage: Stage, way: str
) -> None:
    stage.run(9, session=2)
    (first,) = only(stage.call(1, attempt=1), effects.LookUpReply)
    stage.call(2)

    if way == "answered":
        stage.step(events.ReplyLookedUp(first.call_id, "", b"body"))
    else:
        stage.step(events.CancelArrived(session_of(1), 1))

    assert [call.origin for call in stage.boxes[OBJECT].waiting] == [client(2)]


def test_session_that_ends_while_a_reply_is_looked_up(stage: Stage) -> None:
    stage.run(9, session=2)
    stage.call(1, attempt=1)
    stage.call(2)

    out = stage.step(events.SessionEnded(session_of(1)))

    assert answers(out) == {client(1): "cancelled", client(2): "cancelled"}
    assert not stage.boxes[OBJECT].waiting


def test_what_a_call_tells_of_answers_goes_with_its_own(stage: Stage) -> None:
    out = stage.end(stage.run(7, first_unacked=3, still_open=[3, 5]), change=delta())

    (commit,) = only(out, effects.Commit)
    assert (commit.first_unacked, list(commit.still_open)) == (3, [3, 5])


def test_what_a_persist_tells_of_answers_goes_with_its_own(stage: Stage) -> None:
    arrived = events.PersistArrived(client(4), [named(OTHER)], first_unacked=3)

    (commit,) = only(stage.step(arrived), effects.CommitStates)

    assert commit.first_unacked == 3


def test_retry_older_than_the_records_is_refused(stage: Stage) -> None:
    out = stage.call(1, attempt=1, age_s=REPLY_KEEP_S + 1)

    assert answers(out) == {client(1): "session_expired"}
    assert not stage.core.sessions, "a refused call leaves no session behind"


def test_peer_that_drains_takes_no_calls_of_clients_but_ends_what_runs(
    stage: Stage,
) -> None:
    call = stage.run(1)
    stage.step(events.DrainStarted())

    refused = stage.call(2, session=2)
    nested = stage.nest(call, 1)
    persist = stage.step(events.PersistArrived(client(3), [named(OTHER)]))

    assert answers(refused) == {client(2, 2): "unavailable"}
    assert only(nested, effects.LoadObject)
    assert answers(persist) == {client(3): "unavailable"}
    assert session_of(2) not in stage.core.sessions


def test_peer_owes_nothing_once_all_is_answered(stage: Stage) -> None:
    before = stage.core.owes_nothing
    call = stage.run(1)
    while_it_runs = stage.core.owes_nothing
    ended = stage.end(call, change=delta())
    while_it_commits = stage.core.owes_nothing
    stage.commit(ended)

    assert (before, while_it_runs, while_it_commits) == (True, False, False)
    assert stage.core.owes_nothing


# -- persist ---------------------------------------------------------------------------


def test_persist_is_answered_once_it_is_durable(stage: Stage) -> None:
    states = [named(OBJECT), named(OTHER)]
    (ordered,) = stage.step(events.PersistArrived(client(1), states))
    assert ordered == effects.CommitStates(ordered.token, states, client(1))
    assert not stage.core.owes_nothing

    out = stage.step(events.Committed(ordered.token))

    assert answers(out) == {client(1): ""}
    assert stage.core.owes_nothing


def test_persist_that_storage_refuses(stage: Stage) -> None:
    (ordered,) = stage.step(events.PersistArrived(client(1), [named(OBJECT)]))

    refused = stage.refuse_states(ordered.token)
    again = stage.step(events.PersistArrived(client(1), [named(OBJECT)], attempt=1))

    assert answers(refused) == {client(1): "storage_full"}
    assert only(again, effects.CommitStates), "it may be tried again"


def test_retry_of_a_persist_in_progress_is_no_second_commit(stage: Stage) -> None:
    arrived = events.PersistArrived(client(1), [named(OBJECT)])
    stage.step(arrived)

    assert stage.step(arrived._replace(attempt=1)) == []


def test_retry_of_a_persist_older_than_the_records(stage: Stage) -> None:
    arrived = events.PersistArrived(client(1), [named(OBJECT)])

    out = stage.step(arrived._replace(attempt=1, age_s=REPLY_KEEP_S + 1))

    assert answers(out) == {client(1): "session_expired"}


def test_running_method_persists_even_while_the_peer_drains(stage: Stage) -> None:
    call = stage.run(1)
    stage.step(events.DrainStarted())
    origin = Nested(call.call_id, 1)

    (ordered,) = stage.step(events.PersistArrived(origin, [named(OTHER)]))
    out = stage.step(events.Committed(ordered.token))

    assert ordered.client is None
    assert answers(out) == {origin: ""}


def test_commit_that_nobody_waits_for_is_no_event(stage: Stage) -> None:
    assert stage.step(events.Committed(99)) == []
    assert stage.refuse_states(99) == []


# -- cancel ----------------------------------------------------------------------------


def test_cancel_of_a_call_that_waits(stage: Stage) -> None:
    stage.run(1)
    stage.call(2)
    stage.call(3)

    out = stage.step(events.CancelArrived(session_of(1), 2))

    assert answers(out) == {client(2): "cancelled"}
    assert [call.origin for call in stage.boxes[OBJECT].waiting] == [client(3)]


def test_cancel_of_a_call_whose_object_is_being_loaded(stage: Stage) -> None:
    stage.call(1)

    out = stage.step(events.CancelArrived(session_of(1), 1))

    assert answers(out) == {client(1): "cancelled"}
    assert stage.load() == [effects.ReleaseLoaded("state")]
    assert not stage.boxes


def test_cancel_of_a_call_that_runs_interrupts_it_once(stage: Stage) -> None:
    call = stage.run(1)

    out = stage.step(events.CancelArrived(session_of(1), 1))
    again = stage.step(events.CancelArrived(session_of(1), 1))

    assert answers(out) == {client(1): "cancelled"}
    assert only(out, effects.InterruptCall) == [
        effects.InterruptCall(1, call.slot.index, call.call_id, "cancelled")
    ]
    assert again == []


def test_cancel_of_what_nobody_knows(stage: Stage) -> None:
    assert stage.step(events.CancelArrived(session_of(1), 1)) == []
    stage.run(1)
    assert stage.step(events.CancelArrived(session_of(1), 2)) == []


def test_end_of_a_session_cancels_its_calls_and_no_others(stage: Stage) -> None:
    stage.run(1, session=1)
    stage.call(2, session=1)
    stage.call(1, session=2)

    out = stage.step(events.SessionEnded(session_of(1)))

    assert answers(out) == {client(1): "cancelled", client(2): "cancelled"}
    assert [call.origin for call in stage.boxes[OBJECT].waiting] == [client(1, 2)]
    assert stage.step(events.SessionEnded(session_of(7))) == []


# -- streams ---------------------------------------------------------------------------


def test_credit_goes_to_the_slot_that_runs_the_stream(stage: Stage) -> None:
    call = stage.run(1, "rows", credit=4)

    out = stage.step(events.CreditArrived(session_of(1), 1, 8))

    assert out == [effects.GrantCredit(1, call.slot.index, call.call_id, 8)]


def test_credit_for_a_stream_that_waits_is_added_to_what_it_has(stage: Stage) -> None:
    stage.run(1)
    stage.call(2, "rows", credit=4)

    out = stage.step(events.CreditArrived(session_of(1), 2, 8))

    assert out == []
    assert stage.boxes[OBJECT].waiting[0].credit == 12


def test_credit_for_nothing_is_ignored(stage: Stage) -> None:
    assert stage.step(events.CreditArrived(session_of(1), 1, 8)) == []
    assert stage.step(events.NestedCreditArrived(99, 1, 8)) == []


def test_credit_of_a_method_goes_to_the_stream_that_it_means(stage: Stage) -> None:
    parent = stage.run(1)
    assert stage.step(events.NestedCreditArrived(parent.call_id, 1, 8)) == []
    for request, number in ((1, 5), (2, 6)):
        stage.nest(parent, request, "rows", object_id_of(number), waits=False, credit=1)
    first = stage.load(object_id_of(5))
    (dispatch,) = only(first, effects.Dispatch)

    out = stage.step(events.NestedCreditArrived(parent.call_id, 1, 8))

    assert [grant.call_id for grant in out] == [dispatch.call.call_id]


# -- classes ---------------------------------------------------------------------------


def test_new_revision_drops_idle_copies_of_the_package_and_keeps_its_times(
    stage: Stage,
) -> None:
    stage.make_short()
    times = stage.core.boxes.classes[CLASS].times

    out = stage.publish(b"2" * 16)

    assert [drop.executor for drop in only(out, effects.DropCopy)] == [1]
    assert stage.core.boxes.classes[CLASS].times is times
    assert not stage.boxes


def test_same_revision_again_drops_nothing(stage: Stage) -> None:
    stage.end(stage.run(1))

    assert stage.publish() == []


def test_copy_that_was_busy_is_dropped_when_it_rests(stage: Stage) -> None:
    call = stage.run(1)
    published = stage.publish(b"2" * 16)
    stage.end(call)

    moved = stage.call(2)
    out = stage.load()

    assert only(published, effects.DropCopy) == []
    assert only(moved, effects.DropCopy)
    assert only(out, effects.Activate)[0].revision == b"2" * 16


def test_call_that_waits_runs_on_a_revision_published_meanwhile(stage: Stage) -> None:
    """Two revisions of one package are never in one executor at once."""
    busy = stage.run(1, object_id=OTHER)
    stage.publish(b"2" * 16)
    stage.call(2)
    waiting = stage.load()

    out = stage.end(busy)

    assert only(waiting, effects.Dispatch) == []
    assert [d.call.origin for d in only(out, effects.Dispatch)] == [client(2)]


def test_waiting_calls_are_tried_when_their_class_changes(stage: Stage) -> None:
    stage.run(1)
    stage.call(2, "add")
    methods = {**METHODS, "add": MethodInfo(False, False, 1.0)}

    assert stage.publish(b"2" * 16, methods=methods) == []
    assert len(stage.boxes[OBJECT].waiting) == 1
