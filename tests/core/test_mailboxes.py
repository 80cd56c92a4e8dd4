"""Who runs next on an object: the corners that arrivals, endings and time leave out."""

from __future__ import annotations

import pytest

from activestore.core import effects, events
from activestore.core.calls import Kind, Nested
from activestore.core.mailboxes import READY_FAILURES_MAX, MailboxConfig
from activestore.core.supervision import PING_S, SILENT_S
from tests.core.stage import (
    CLASS,
    OBJECT,
    OTHER,
    Stage,
    answers,
    client,
    delta,
    dispatched,
    only,
    state,
)
from tests.core.world import object_id_of

READER_WAIT_S = MailboxConfig().reader_wait_s
LONG_RUN_S = 0.02


def test_fields_are_read_together_and_written_alone(stage: Stage) -> None:
    first = stage.run(1, "value", kind=Kind.GET)
    second = dispatched(stage.call(2, "value", kind=Kind.GET))
    write = stage.call(3, "value", kind=Kind.SET)

    assert (first.is_readonly, second.is_readonly) == (True, True)
    assert only(write, effects.Dispatch) == []
    stage.end(first)
    assert not dispatched(stage.end(second)).is_readonly


def test_reader_that_came_while_the_object_was_loaded_waits_no_longer(
    stage: Stage,
) -> None:
    """It stands behind a second writer, which is no reason to wait for the first."""
    stage.call(1)
    stage.call(2, session=2)
    stage.call(3, "vanish", session=3)
    stage.call(4, "peek", session=4)
    loaded = stage.load()

    waited = stage.wait(READER_WAIT_S)

    assert dispatched(loaded).origin == client(1)
    assert answers(loaded) == {client(3, 3): "no_such_method"}
    assert only(waited, effects.LoadObject) == [
        effects.LoadObject(OBJECT, is_reader=True)
    ]


def test_reader_copy_of_a_class_published_anew_waits_for_the_writer(
    stage: Stage,
) -> None:
    """The only executor runs the old revision: the new one cannot be there yet."""
    writer = stage.run(1)
    stage.call(2, "peek")
    stage.wait(READER_WAIT_S)
    stage.publish(b"2" * 16)

    loaded = stage.load(is_reader=True)
    stage.end(writer)
    out = stage.load()

    assert loaded == [effects.ReleaseLoaded("state")]
    assert dispatched(out).origin == client(2)


def test_copy_that_was_thrown_away_may_be_dropped_again(stage: Stage) -> None:
    """A refused commit and an error of the next call both end the same copy."""
    first = stage.end(stage.run(1), change=delta())
    second = dispatched(stage.call(2))
    stage.refuse_commit(first)

    out = stage.end(second, code="method", is_dropped=True)

    assert only(out, effects.LoadObject), "it ran on what was not committed: once more"
    assert stage.core.pool.executors[1].state_bytes == 0


def test_two_readers_that_wait_for_the_same_call_are_looked_at_once() -> None:
    stage = Stage(slots=4)
    readers = [stage.run(n, "peek") for n in (1, 2)]
    stage.run(3, object_id=OTHER)
    for reader in readers:
        stage.nest(reader, 1, "add", OTHER)
    chain = stage.run(4, object_id=object_id_of(4))

    out = stage.nest(chain, 1, "add", OBJECT)

    assert answers(out) == {}
    assert len(stage.boxes[OBJECT].waiting) == 1


@pytest.mark.parametrize("has_writer_first", [False, True])
def test_reader_that_may_share_waits_for_nobody(
    stage: Stage, *, has_writer_first: bool
) -> None:
    """Each chain reads what the other holds for reading; only a writer between locks."""
    first = stage.run(1, "peek")
    second = stage.run(2, "peek", OTHER)
    stage.call(3, object_id=OTHER)
    stage.nest(first, 1, "peek", OTHER)
    if has_writer_first:
        stage.call(4)

    out = stage.nest(second, 1, "peek", OBJECT)

    if has_writer_first:
        assert answers(out) == {Nested(second.call_id, 1): "busy"}
    else:
        assert answers(out) == {}
        assert dispatched([*out, *stage.wait(0.0)]).object_id == OBJECT


def test_thread_that_does_not_wait_for_its_call_gets_no_company(stage: Stage) -> None:
    """It is busy; the executor's other threads are not its to have."""
    for number in (1, 2):
        call = stage.run(number, object_id=object_id_of(number))
        stage.nest(call, 1, "add", object_id_of(10 + number), waits=False)

    assert only(stage.load(object_id_of(11)), effects.Dispatch) == []
    assert len(stage.core.pool.executors[1].slots) == 2


def test_state_over_the_whole_budget_is_kept_while_it_is_used() -> None:
    stage = Stage(activation_bytes_max=4)

    stage.call(1)
    out = stage.load(state_bytes=8)

    assert dispatched(out)
    assert only(out, effects.DropCopy) == []


def test_create_after_one_that_was_not_committed_is_the_first_version(
    stage: Stage,
) -> None:
    created = stage.call(1, "__init__", kind=Kind.CREATE, class_name=CLASS)
    first = stage.end(dispatched(created), state=state())
    again = stage.call(2, "__init__", kind=Kind.CREATE, class_name=CLASS)
    stage.refuse_commit(first)

    redone = dispatched(stage.end(dispatched(again), state=state()))
    out = stage.end(redone, state=state())

    assert [commit.version for commit in only(out, effects.Commit)] == [1]


def test_call_into_its_own_chain_that_nobody_waits_for_runs_afterwards(
    stage: Stage,
) -> None:
    """Nothing would run it, and commit it, inside a call that does not stand still."""
    outer = stage.run(1)
    assert stage.nest(outer, 1, "add", OBJECT, waits=False) == []

    inner = dispatched(stage.end(outer))
    out = stage.end(inner, change=delta())

    assert only(out, effects.Commit)
    assert not inner.is_reentrant


def test_call_that_is_waited_for_later_enters_its_own_chain_then(stage: Stage) -> None:
    outer = stage.run(1)
    assert stage.nest(outer, 1, "add", OBJECT, waits=False) == []

    inner = dispatched(stage.step(events.NestedWaits(outer.call_id, 1)))

    assert inner.is_reentrant
    assert answers(stage.end(inner)) == {Nested(outer.call_id, 1): ""}


def test_ring_that_is_closed_by_waiting_later_is_found(stage: Stage) -> None:
    first, second = stage.run(1), stage.run(2, object_id=OTHER)
    stage.nest(first, 1, "add", OTHER, waits=False)
    stage.nest(second, 1, "add", OBJECT, waits=False)
    assert answers(stage.step(events.NestedWaits(first.call_id, 1))) == {}

    out = stage.step(events.NestedWaits(second.call_id, 1))

    assert answers(out) == {Nested(second.call_id, 1): "busy"}


def test_calls_of_many_objects_wait_for_one_slot_in_order(stage: Stage) -> None:
    """Those that were tried in vain once fell behind all that came later."""
    blockers = [stage.run(n, object_id=object_id_of(100 + n)) for n in (1, 2)]
    count = READY_FAILURES_MAX + 3
    for number in range(count):
        stage.call(10 + number, object_id=object_id_of(number))
        assert only(stage.load(object_id_of(number)), effects.Dispatch) == []

    order = []
    running = blockers[0]
    for _ in range(count):
        running = dispatched(stage.end(running))
        order.append(running.origin.sequence)

    assert order == [10 + number for number in range(count)]


def test_objects_that_cannot_use_a_free_slot_do_not_stand_in_the_way() -> None:
    """Their executor is full; another one has room."""
    stage = Stage(executors=2, slots=1)
    stuck = [object_id_of(number) for number in range(2 * READY_FAILURES_MAX)]
    for number, object_id in enumerate(stuck):
        stage.end(stage.run(number, "peek", object_id))
    hog = stage.run(100, object_id=object_id_of(300))
    other = stage.run(101, object_id=object_id_of(400))
    home = hog.slot.executor
    on_home = [o for o in stuck if stage.boxes[o].main.executor is home]
    for sequence, object_id in enumerate(on_home):
        stage.call(200 + sequence, "peek", object_id)
    stage.call(300, object_id=object_id_of(500))
    stage.load(object_id_of(500))

    first = stage.end(other)
    second = stage.end(stage.run(102, object_id=object_id_of(400)))

    assert len(on_home) >= READY_FAILURES_MAX
    dispatches = only([*first, *second], effects.Dispatch)
    assert [dispatch.call.origin for dispatch in dispatches] == [client(300)]


def test_calls_that_must_not_run_twice_stay_with_a_silent_executor() -> None:
    stage = Stage(executors_max=2)
    stage.make_short()
    call = stage.run(1)
    stage.nest(call, 1, "add", OTHER)
    stage.run(2, "peek", object_id_of(3))

    out = stage.wait(2 * LONG_RUN_S + SILENT_S + PING_S)

    assert stage.core.pool.executors[1].is_silent
    assert [load.object_id for load in only(out, effects.LoadObject)] == []
    assert answers(out) == {}


def test_cancelled_short_call_is_not_moved_from_a_silent_executor() -> None:
    stage = Stage(executors_max=2)
    stage.make_short()
    stage.run(1)
    stage.run(2, "peek", object_id_of(3))
    stage.step(events.CancelArrived(client(1).session, 1))

    out = stage.wait(2 * LONG_RUN_S + SILENT_S + PING_S)

    assert stage.core.pool.executors[1].is_silent
    assert only(out, effects.LoadObject) == []


def test_short_reader_beside_a_writer_leaves_a_silent_executor() -> None:
    """Its copy is a reader's: the writer's change is not thrown away for it."""
    stage = Stage(executors_max=2, slots=3)
    stage.make_short("peek")
    writer = stage.run(1)
    stage.call(2, "peek")
    stage.wait(READER_WAIT_S)
    reader = dispatched(stage.load(is_reader=True))
    shares = reader.slot.executor is writer.slot.executor
    stage.step(events.ExecutorStarted(2))

    out = stage.wait(SILENT_S + 2 * PING_S)
    moved = dispatched(stage.load(is_reader=True))

    assert shares
    assert stage.boxes[OBJECT].main is writer.copy
    assert only(out, effects.LoadObject) == [effects.LoadObject(OBJECT, is_reader=True)]
    assert (moved.origin, moved.slot.executor.executor_id) == (client(2), 2)


def test_object_whose_executor_turns_out_busy_moves_to_a_free_one() -> None:
    """It was activated there and waits; nothing ends that would have it looked at."""
    stage = Stage(executors=2, executors_max=2, slots=1)
    second = stage.run(1, object_id=OTHER)
    stage.end(second)
    where = stage.boxes[OTHER].main.executor
    blockers = [stage.run(2), stage.run(3, object_id=object_id_of(3))]
    (busy,) = [b for b in blockers if b.slot.executor is where]
    (free,) = [b for b in blockers if b is not busy]
    stage.end(free)
    stage.call(4, object_id=OTHER)

    stage.wait(0.05)
    out = stage.load(OTHER)

    assert dispatched(out).slot.executor is not where


def test_object_whose_reader_is_read_for_nobody_is_forgotten(stage: Stage) -> None:
    """The reader gave up and the writer's executor died while the state was read."""
    stage.run(1)
    stage.call(2, "peek")
    assert only(stage.wait(READER_WAIT_S), effects.LoadObject)
    stage.step(events.CancelArrived(client(2).session, client(2).sequence))
    stage.step(events.ExecutorDied(1, "signal 9"))

    stage.load(is_reader=True)

    assert stage.boxes == {}
