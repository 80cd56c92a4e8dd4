"""Objects led here that have copies elsewhere: what is answered when."""

from __future__ import annotations

import pytest

from activestore.core import effects, events
from activestore.core.calls import Kind, Nested
from activestore.core.mailboxes import MailboxConfig
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

READER_WAIT_S = MailboxConfig().reader_wait_s
LED = events.ObjectLed(OBJECT)
DEPOSED = events.ObjectDeposed(OBJECT)
ALONE = events.ObjectUnshared(OBJECT)


@pytest.mark.parametrize("order", ["confirmed first", "ended first"])
def test_read_is_answered_once_it_ran_and_its_round_is_confirmed(
    led: Stage, order: str
) -> None:
    group = Group(led)
    call = led.run(1, "peek")

    if order == "confirmed first":
        before = group.confirm(1)
        out = led.end(call)
    else:
        before = led.end(call)
        out = group.confirm(1)

    assert group.asked == [OBJECT], "asked while it runs, once"
    assert answers(before) == {}
    assert answers(out) == {client(1): ""}
    assert led.core.sessions == {}


def test_round_that_began_before_the_read_came_does_not_count(led: Stage) -> None:
    group = Group(led)
    first = led.run(1, "peek")
    second = led.run(2, "peek")
    led.end(first)
    led.end(second)

    out = group.confirm(1)

    assert answers(out) == {client(1): ""}
    assert answers(group.confirm(2)) == {client(2): ""}


def test_later_round_answers_for_those_before(led: Stage) -> None:
    group = Group(led)
    for sequence in (1, 2, 3):
        led.end(led.run(sequence, "peek"))

    out = group.confirm(3)

    assert list(answers(out)) == [client(1), client(2), client(3)]


def test_field_is_read_like_by_a_readonly_method(led: Stage) -> None:
    group = Group(led)
    call = led.run(1, "value", kind=Kind.GET)

    out = led.end(call)

    assert group.asked == [OBJECT]
    assert answers(out) == {}
    assert answers(group.confirm(1)) == {client(1): ""}


@pytest.mark.parametrize("code", ["", "method"])
def test_writer_that_changed_nothing_has_read(led: Stage, code: str) -> None:
    """Its result, or what it raised, shows the state; no commit of its own proves it."""
    group = Group(led)

    out = led.end(led.run(1), code=code)

    assert answers(out) == {}
    assert answers(group.confirm(1)) == {client(1): code}


def test_write_asks_nobody_for_its_commit_proves_it(led: Stage) -> None:
    group = Group(led)

    out = led.commit(led.end(led.run(1), change=delta()))

    assert answers(out) == {client(1): ""}
    assert group.asked == []


def test_read_of_an_object_without_copies_asks_nobody(stage: Stage) -> None:
    group = Group(stage)

    out = stage.end(stage.run(1, "peek"))

    assert answers(out) == {client(1): ""}
    assert group.asked == []


def test_read_where_nobody_else_votes_is_answered_at_once(led: Stage) -> None:
    led.core.begin_round = lambda _: None

    assert answers(led.end(led.run(1, "peek"))) == {client(1): ""}


def test_confirmed_read_waits_for_the_commit_of_what_it_saw(led: Stage) -> None:
    group = Group(led)
    written = led.end(led.run(1), change=delta())
    led.end(led.run(2, "peek"))

    confirmed = group.confirm(1)
    out = led.commit(written)

    assert answers(confirmed) == {}
    assert list(answers(out)) == [client(1), client(2)]


def test_reader_copy_that_is_newer_than_a_majority_has_is_not_shown() -> None:
    """The leader's disk has a write first; the copy read from it shows too much."""
    stage = Stage(executors=2)
    stage.step(LED)
    group = Group(stage)
    written = stage.end(stage.run(1), change=delta())
    writer = dispatched(stage.call(2))
    stage.call(3, "peek", session=2)
    (load,) = only(stage.wait(READER_WAIT_S), effects.LoadObject)
    reader = dispatched(stage.load(is_reader=True, version=2))

    ended = stage.end(reader)
    confirmed = group.confirm(1)
    out = stage.commit(written)

    assert load.is_reader
    assert writer.slot is not None
    assert answers([*ended, *confirmed]) == {}
    assert answers(out) == {client(1): "", client(3, 2): ""}


def test_items_and_end_of_a_stream_wait_for_its_round(led: Stage) -> None:
    group = Group(led)
    call = led.run(1, "scan", credit=8)
    item = led.step(events.ItemProduced(call.call_id, call.attempt, b"\x01", ()))
    ended = led.end(call)

    out = group.confirm(1)

    assert group.asked == [OBJECT], "one round for all of it"
    assert [*item, *ended] == []
    assert [type(one) for one in out] == [effects.SendItem, effects.Answer]


def test_recorded_answer_is_given_once_it_is_sure_to_be_committed(led: Stage) -> None:
    group = Group(led)
    written = led.end(led.run(1), change=delta())
    (look_up,) = only(led.call(7, attempt=1), effects.LookUpReply)

    found = led.step(events.ReplyLookedUp(look_up.call_id, "", b"\x05"))
    confirmed = group.confirm(1)
    out = led.commit(written)

    assert answers([*found, *confirmed]) == {}
    assert answers(out) == {client(1): "", client(7): ""}


def test_recorded_answer_on_a_quiet_object_leaves_nothing_behind(led: Stage) -> None:
    group = Group(led)
    (look_up,) = only(led.call(7, attempt=1), effects.LookUpReply)
    led.step(events.ReplyLookedUp(look_up.call_id, "", b"\x05"))

    assert answers(group.confirm(1)) == {client(7): ""}
    assert led.boxes == {}
    assert led.core.sessions == {}


def test_object_that_begins_to_be_shared_has_its_running_read_confirmed(
    stage: Stage,
) -> None:
    group = Group(stage)
    call = stage.run(1, "peek")
    stage.step(LED)

    ended = stage.end(call)

    assert answers(ended) == {}
    assert answers(group.confirm(1)) == {client(1): ""}


def test_object_that_is_alone_again_answers_what_waited_for_others(led: Stage) -> None:
    group = Group(led)
    led.end(led.run(1, "peek"))

    out = led.step(ALONE)

    assert answers(out) == {client(1): ""}
    assert answers(led.end(led.run(2, "peek"))) == {client(2): ""}
    assert len(group.asked) == 1


def test_rounds_of_an_earlier_lead_count_for_nothing(led: Stage) -> None:
    """Their numbers begin anew; a read that runs over the change is asked for again."""
    group = Group(led)
    led.end(led.run(1, "peek"))
    group.confirm(1)
    over = led.run(2, "peek")
    led.step(ALONE)
    led.step(LED)
    group.asked.clear()

    ended = led.end(over)

    assert group.asked == [OBJECT]
    assert answers(ended) == {}
    assert answers(group.confirm(1)) == {client(2): ""}


def test_commit_under_way_when_it_is_alone_again_is_waited_for(led: Stage) -> None:
    group = Group(led)
    written = led.end(led.run(1), change=delta())
    led.end(led.run(2, "peek"))

    alone = led.step(ALONE)
    out = led.commit(written)

    assert group.asked == [OBJECT]
    assert answers(alone) == {}
    assert answers(out) == {client(1): "", client(2): ""}


def test_delete_is_answered_once_a_majority_has_it(led: Stage) -> None:
    group = Group(led)

    ordered = led.call(1, "delete", kind=Kind.DELETE)

    assert answers(ordered) == {}
    assert answers(led.commit(ordered)) == {client(1): ""}
    assert group.asked == []


def test_refused_commit_is_told_once_it_is_sure_that_nobody_else_leads(
    led: Stage,
) -> None:
    """The same request may have been run by another leader meanwhile."""
    group = Group(led)
    written = led.end(led.run(1), change=delta())

    refused = led.refuse_commit(written)
    out = group.confirm(1)

    assert answers(refused) == {}
    assert answers(out) == {client(1): "storage_full"}
    assert led.core.sessions == {}


def test_refused_commit_of_a_deposed_leader_is_sent_on(led: Stage) -> None:
    Group(led)
    led.refuse_commit(led.end(led.run(1), change=delta()))

    out = led.step(events.ObjectDeposed(OBJECT))

    assert answers(out) == {}
    assert sent_on(out) == {client(1): True}


def test_read_behind_a_writer_fails_with_its_commit(stage: Stage) -> None:
    """They share a slot: the reader was sent before the writer had its version."""
    stage.make_short()
    stage.make_short("peek")
    writer = dispatched(stage.call(1))
    reader = dispatched(stage.call(2, "peek"))
    written = stage.end(writer, change=delta(), run_s=0.00001)
    stage.end(reader, run_s=0.00001)

    out = stage.refuse_commit(written)

    assert answers(out) == {client(1): "storage_full", client(2): "storage_full"}


# -- what a retry elsewhere must know -------------------------------------------------


def test_nested_change_here_waits_until_others_would_know_of_it(led: Stage) -> None:
    """The outer call may be run again by another leader: it must hear of this one."""
    outer = led.run(1)

    nested = led.nest(outer, 1)
    (kept,) = only(nested, effects.CommitStates)
    begun = led.step(events.Committed(kept.token))
    ended = led.end(dispatched(led.load(OTHER)), change=delta())

    assert only(nested, effects.LoadObject) == []
    assert kept.outermost is not None
    assert (kept.outermost.object_id, kept.outermost.client) == (OBJECT, client(1))
    assert only(begun, effects.LoadObject)
    (commit,) = only(ended, effects.Commit)
    assert commit.outermost is None, "it is kept already"
    led.commit(ended)
    (own,) = only(led.end(outer), effects.Commit)
    assert own.client == client(1), "its answer takes the place of what was kept"


def test_answer_takes_the_place_of_what_was_kept_though_nothing_changed(
    led: Stage,
) -> None:
    """Else a retry would be told that the executor died."""
    outer = led.run(1)
    (kept,) = only(led.nest(outer, 1), effects.CommitStates)
    led.step(events.Committed(kept.token))
    led.end(dispatched(led.load(OTHER)))

    (own,) = only(led.end(outer), effects.Commit)

    assert (own.client, own.code) == (client(1), "")


def test_second_nested_change_waits_for_nothing(led: Stage) -> None:
    outer = led.run(1)
    (kept,) = only(led.nest(outer, 1), effects.CommitStates)
    led.step(events.Committed(kept.token))

    out = led.nest(outer, 2, object_id=OTHER)

    assert only(out, effects.CommitStates) == []


def test_nested_read_waits_for_nothing(led: Stage) -> None:
    outer = led.run(1)
    led.run(2, object_id=OTHER)

    out = led.nest(outer, 1, "peek")

    assert only(out, effects.CommitStates) == []


def test_objects_that_a_method_keeps_wait_too(led: Stage) -> None:
    outer = led.run(1)

    asked = led.step(events.PersistArrived(Nested(outer.call_id, 1), [named(OTHER)]))
    (kept,) = only(asked, effects.CommitStates)
    (states,) = only(led.step(events.Committed(kept.token)), effects.CommitStates)

    assert kept.states == ()
    assert states.states == [named(OTHER)]
    assert states.outermost is None
    told = led.step(events.Committed(states.token))
    assert answers(told) == {Nested(outer.call_id, 1): ""}


def test_nested_call_fails_where_others_cannot_be_told(led: Stage) -> None:
    outer = led.run(1)
    asked = [
        *led.nest(outer, 1),
        *led.step(events.PersistArrived(Nested(outer.call_id, 2), [named(OTHER)])),
    ]
    (kept,) = only(asked, effects.CommitStates)

    out = led.refuse_states(kept.token)

    assert answers(out) == {
        Nested(outer.call_id, 1): "storage_full", Nested(outer.call_id, 2): "storage_full",
    }  # fmt: skip


def test_promise_of_a_deposed_leader_leaves_nothing_behind(led: Stage) -> None:
    outer = led.run(1)
    (kept,) = only(led.nest(outer, 1), effects.CommitStates)

    out = led.step(DEPOSED)
    left = dict(led.core._departures)
    led.end(outer)

    assert sent_on(out) == {client(1): True}
    assert led.step(events.Committed(kept.token)) == []
    assert led.core.calls == {}
    assert left == {}, "it may never be told how that commit ends"


def test_nested_call_that_never_left_says_so_and_names_the_group_it_waited_for(
    led: Stage,
) -> None:
    led.core.why_each = lambda object_id: f"; voters of {object_id.hex()}"
    outer = led.run(1)
    origin = Nested(outer.call_id, 1)
    led.step(
        events.NestedLeft(
            origin, OTHER, Kind.CALL, "add", None, may_change=True, deadline_s=2.0
        )
    )
    led.now_s += 2.01

    (refused,) = only(led.step(events.TimerFired()), effects.Refuse)

    text = str(refused.error)
    assert refused.origin == origin
    assert f"a majority of the copies of object {OBJECT.hex()}, from which" in text
    assert "it has not begun, and changed nothing" in text
    assert text.endswith(f"; voters of {OBJECT.hex()}")
    assert text.startswith(f"{OTHER.hex()}.add: ")
