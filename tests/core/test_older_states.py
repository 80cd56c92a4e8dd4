"""Reading an older state where the object is not led."""

from __future__ import annotations

from typing import Any

import pytest

from activestore.core import effects, events
from activestore.core.calls import Kind, Nested
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
REPLACED = events.StateReplaced(OBJECT)


def test_older_state_is_read_where_the_object_is_not_led(stage: Stage) -> None:
    group = Group(stage)

    out = stage.end(stage.run(1, "peek", is_stale=True, wants_info=True))

    (answer,) = only(out, effects.Answer)
    assert answer.saw == effects.Saw(OBJECT, 1)
    assert group.asked == []
    assert only(out, effects.Commit) == []


@pytest.mark.parametrize("kind", [Kind.SET, Kind.CREATE, Kind.DELETE])
def test_change_of_an_older_state_is_refused_at_once(stage: Stage, kind: Kind) -> None:
    out = stage.call(1, "value", kind=kind, is_stale=True)

    assert answers(out) == {client(1): "invalid_request"}
    assert stage.core.sessions == {}


def test_method_that_may_change_is_not_run_on_an_older_state(stage: Stage) -> None:
    stage.call(1, "add", is_stale=True)

    out = stage.load()

    (refused,) = only(out, effects.Refuse)
    assert "staleness_s" in str(refused.error)
    assert only(out, effects.Dispatch) == []


def test_reader_of_an_older_state_can_change_nothing_else(stage: Stage) -> None:
    reader = stage.run(1, "peek", is_stale=True)
    origin = [Nested(reader.call_id, n) for n in range(5)]

    stage.nest(reader, 0)
    here = stage.load(OTHER)
    away = stage.step(events.NestedLeft(origin[1], OTHER, Kind.CALL, "add", None, True))
    kept = stage.step(events.PersistArrived(origin[2], [named(OTHER)]))
    made = (named(OTHER),)
    checkpoint = stage.step(
        events.CheckpointReached(reader.call_id, reader.attempt, 3, None, made)
    )
    ended = stage.end(reader, created=made)

    assert answers([*here, *away, *kept, *checkpoint, *ended]) == {
        **dict.fromkeys(origin[:4], "invalid_request"), client(1): "invalid_request",
    }  # fmt: skip


def test_reader_of_an_older_state_may_read_elsewhere(stage: Stage) -> None:
    reader = stage.run(1, "peek", is_stale=True)
    left = events.NestedLeft(
        Nested(reader.call_id, 1), OTHER, Kind.GET, "value", None, may_change=False
    )

    assert only(stage.step(left), effects.SendAway)


def test_crash_below_a_reader_of_an_older_state_keeps_nothing(stage: Stage) -> None:
    reader = stage.run(1, "peek", is_stale=True)
    stage.nest(reader, 1, "peek")
    assert reader.slot is not None

    out = stage.step(events.ExecutorDied(reader.slot.executor.executor_id, "killed"))

    assert answers(out)[client(1)] == "executor_crashed"
    assert only(out, effects.Commit) == []


def test_next_reader_sees_the_state_that_came(stage: Stage) -> None:
    stage.end(stage.run(1, "peek", is_stale=True))

    replaced = stage.step(REPLACED)
    call = stage.run(2, "peek", is_stale=True)

    assert only(replaced, effects.DropCopy)
    assert stage.core.boxes.boxes[OBJECT].main is call.copy


def test_running_reader_ends_on_the_state_it_has_beside_the_next(stage: Stage) -> None:
    first = stage.run(1, "scan", credit=8, is_stale=True, wants_info=True)

    replaced = stage.step(REPLACED)
    stage.call(2, "peek", is_stale=True, wants_info=True)
    second = dispatched(stage.load(version=2))
    is_beside = second.copy is not first.copy
    (new,) = only(stage.end(second), effects.Answer)
    ended = stage.end(first)

    assert is_beside
    assert only(replaced, effects.DropCopy) == []
    assert new.saw == effects.Saw(OBJECT, 2)
    assert [type(one) for one in ended] == [effects.DropCopy, effects.Answer]
    assert only(ended, effects.Answer)[0].saw == effects.Saw(OBJECT, 1)


def test_state_that_changes_faster_than_it_is_read_serves_who_waited(
    stage: Stage,
) -> None:
    stage.call(1, "peek", is_stale=True)
    stage.step(REPLACED)
    stage.call(2, "peek", is_stale=True)
    stage.step(REPLACED)

    first = stage.load(version=2)
    second = stage.load(version=4)

    assert dispatched(first).origin == client(1)
    assert only(first, effects.LoadObject), "the second came after the first was read"
    assert dispatched(second).origin == client(2)


def test_object_that_comes_to_be_led_begins_from_the_disk(stage: Stage) -> None:
    group = Group(stage)
    old = stage.run(1, "scan", credit=8, is_stale=True)

    stage.step(LED)
    stage.call(2)
    writer = dispatched(stage.load(version=5))
    ended = stage.end(old)

    assert answers(ended) == {}
    assert answers(group.confirm(1)) == {client(1): ""}
    assert only(stage.end(writer, change=delta()), effects.Commit)[0].version == 6


def test_object_that_gets_copies_goes_on_where_its_only_state_may_be_read_late(
    stage: Stage,
) -> None:
    """It was here alone: what runs on it, and what was changed, counts."""
    Group(stage)
    stage.end(stage.run(1, "peek", is_stale=True, is_here=True))
    writer = dispatched(stage.call(2))

    stage.step(LED)
    stage.call(3)
    out = stage.end(writer, change=delta())

    assert only(out, effects.Commit)[0].version == 2
    assert dispatched(out).origin == client(3)
    assert only(out, effects.LoadObject) == []


def test_reader_of_an_older_state_where_it_is_led_is_one_like_others(
    led: Stage,
) -> None:
    group = Group(led)

    out = led.end(led.run(1, "peek", is_stale=True))

    assert answers(out) == {}
    assert answers(group.confirm(1)) == {client(1): ""}


def test_replaced_state_of_an_object_that_nobody_reads_is_no_news(
    stage: Stage,
) -> None:
    assert stage.step(REPLACED) == []
    assert stage.boxes == {}


@pytest.mark.parametrize(("change", "version"), [(delta(), 2), (None, 1)])
def test_answer_tells_the_version_where_that_is_asked_for(
    stage: Stage, change: Any, version: int
) -> None:
    out = stage.end(stage.run(1, wants_info=True), change=change)
    if change is not None:
        out = stage.commit(out)

    assert [one.saw for one in only(out, effects.Answer)] == [
        effects.Saw(OBJECT, version)
    ]


def test_answer_of_an_object_with_copies_tells_its_version_unasked(led: Stage) -> None:
    """So that its client never reads an older state after what it wrote."""
    out = led.commit(led.end(led.run(1), change=delta()))

    assert [one.saw for one in only(out, effects.Answer)] == [effects.Saw(OBJECT, 2)]


def test_answer_of_an_object_without_copies_tells_nothing_unasked(stage: Stage) -> None:
    out = stage.end(stage.run(1, "peek"))

    assert [one.saw for one in only(out, effects.Answer)] == [None]


def test_writer_that_says_it_reads_is_refused_where_it_could_run_too(
    led: Stage,
) -> None:
    led.call(1, is_stale=True)

    assert answers(led.load()) == {client(1): "invalid_request"}


def test_recorded_answer_does_not_know_its_version(stage: Stage) -> None:
    (look_up,) = only(stage.call(7, attempt=1, wants_info=True), effects.LookUpReply)

    out = stage.step(events.ReplyLookedUp(look_up.call_id, "", b"\x05"))

    assert [one.saw for one in only(out, effects.Answer)] == [effects.Saw(OBJECT, 0)]


def test_unproven_copy_has_its_readers_sent_to_the_leader(stage: Stage) -> None:
    for sequence in (1, 2):
        stage.call(sequence, "peek", is_stale=True)

    out = stage.step(events.CopyUnproven(OBJECT, is_reader=False))

    assert sent_on(out) == {client(1): False, client(2): False}
    assert all(one.is_unproven for one in only(out, effects.SendOn))
    assert only(out, effects.Dispatch) == []
    assert stage.boxes == {}


def test_reader_that_comes_after_an_unproven_copy_has_it_read_anew(
    stage: Stage,
) -> None:
    stage.call(1, "peek", is_stale=True)
    stage.step(REPLACED)
    stage.step(events.CopyUnproven(OBJECT, is_reader=False))

    out = stage.call(2, "peek", is_stale=True)

    assert len(only(out, effects.LoadObject)) == 1
    assert answers(stage.end(dispatched(stage.load(version=2)))) == {client(2): ""}


def test_unproven_copy_of_what_is_led_here_by_now_is_read_anew(stage: Stage) -> None:
    stage.call(1, "peek", is_stale=True)
    Group(stage)
    led = stage.step(LED)

    out = stage.step(events.CopyUnproven(OBJECT, is_reader=False))

    assert len(only(led, effects.LoadObject)) == 1
    assert sent_on(out) == {}
    assert dispatched(stage.load())
