"""Executors that start, die, fall silent or swell, and what happens by time alone."""

from __future__ import annotations

import pytest

from activestore.core import effects, events
from activestore.core.calls import ExecutorState, Nested
from activestore.core.executors import (
    EXTRA_IDLE_S,
    MOVABLE_BYTES_MAX,
    RESPAWN_S,
    SLOTS_MAX,
)
from activestore.core.invocation import InvocationConfig
from activestore.core.mailboxes import MailboxConfig
from activestore.core.quarantine import ENTRIES_MAX, RUNS_TRUSTED, Quarantine
from activestore.core.supervision import PING_S, SILENT_S, TIDY_S, YOUNG_S
from tests.core.stage import (
    OBJECT,
    OTHER,
    Stage,
    answers,
    client,
    delta,
    dispatched,
    only,
)
from tests.core.world import object_id_of, session_of

THIRD = object_id_of(3)
LONG_RUN_S = 0.02
GRACE_S = InvocationConfig().grace_s
READER_WAIT_S = MailboxConfig().reader_wait_s


def die(stage: Stage, executor: int = 1, how: str = "signal 9") -> list[effects.Effect]:
    """Have an executor's process end."""
    return stage.step(events.ExecutorDied(executor, how))


# -- executors that start and die ------------------------------------------------------


def test_calls_wait_until_the_first_executor_runs() -> None:
    stage = Stage(is_started=False)
    stage.call(1)
    assert only(stage.load(), effects.Dispatch) == []

    out = stage.step(events.ExecutorStarted(1))

    assert dispatched(out).origin == client(1)


def test_executor_that_nobody_ordered_is_ignored(stage: Stage) -> None:
    for event in (
        events.ExecutorStarted(9),
        events.ExecutorDied(9, "signal 9"),
        events.ExecutorMeasured(9, 1),
        events.ExecutorAnswered(9),
    ):
        assert stage.step(event) == []


def test_death_fails_what_runs_and_another_executor_is_started(stage: Stage) -> None:
    stage.run(1)

    out = die(stage)

    (refusal,) = only(out, effects.Refuse)
    assert refusal.error is not None
    assert (refusal.error.code, refusal.error.quarantined_s) == ("executor_crashed", 0)
    assert not stage.boxes
    assert only(stage.wait(2 * RESPAWN_S), effects.SpawnExecutor) == [
        effects.SpawnExecutor(2)
    ]


def test_calls_behind_the_one_that_died_are_sent_elsewhere(stage: Stage) -> None:
    stage.make_short()
    stage.run(1)
    behind = dispatched(stage.call(2))
    waiting = stage.call(3, deadline_s=0.0)

    out = die(stage)

    assert answers(out) == {client(1): "executor_crashed"}
    assert [behind.attempt, len(only(waiting, effects.Dispatch))] == [1, 1]
    assert [call.origin for call in stage.boxes[OBJECT].waiting] == [
        client(2),
        client(3),
    ]


def test_cancelled_calls_of_a_dead_executor_are_forgotten(stage: Stage) -> None:
    stage.make_short()
    stage.run(1)
    stage.call(2)
    for sequence in (1, 2):
        stage.step(events.CancelArrived(session_of(1), sequence))

    out = die(stage)

    assert answers(out) == {}
    assert not stage.core.calls


def test_death_takes_the_whole_chain_on_its_slot(stage: Stage) -> None:
    outer = stage.run(1)
    dispatched(stage.nest(outer, 1, "add", OBJECT))

    out = die(stage)

    assert answers(out) == {
        Nested(outer.call_id, 1): "executor_crashed",
        client(1): "executor_crashed",
    }


def test_executors_that_die_young_are_started_ever_later(stage: Stage) -> None:
    delays_s = []
    for executor in (1, 2, 3, 4):
        die(stage, executor)
        delays_s.append(stage.core.pool.respawn_delay_s())
        early = stage.wait(0.9 * delays_s[-1])
        spawned = stage.wait(0.2 * delays_s[-1])
        assert only(early, effects.SpawnExecutor) == []
        assert only(spawned, effects.SpawnExecutor)
        stage.step(events.ExecutorStarted(executor + 1))

    stage.now_s += YOUNG_S
    die(stage, 5)

    assert delays_s == [2 * RESPAWN_S, 4 * RESPAWN_S, 8 * RESPAWN_S, 16 * RESPAWN_S]
    assert only(stage.wait(0.0), effects.SpawnExecutor), "it had lived long"


def test_extra_executor_that_dies_is_not_replaced() -> None:
    stage = Stage(executors_max=2)
    stage.run(1)
    (spawn,) = only(stage.wait(2 * LONG_RUN_S), effects.SpawnExecutor)
    stage.step(events.ExecutorStarted(spawn.executor))

    die(stage, spawn.executor)

    assert only(stage.wait(1.0), effects.SpawnExecutor) != []
    assert len(stage.core.pool.executors) == 2, "it was needed again, not replaced"


def test_executor_that_outlived_the_one_it_was_started_beside_stays() -> None:
    stage = Stage(executors_max=2)
    stage.run(1)
    (spawn,) = only(stage.wait(2 * LONG_RUN_S), effects.SpawnExecutor)
    stage.step(events.ExecutorStarted(spawn.executor))
    die(stage, 1, "it did not end")

    out = stage.wait(EXTRA_IDLE_S + 2 * TIDY_S)

    assert only(out, effects.RetireExecutor) == []
    assert [e.state for e in stage.core.pool.ready()] == [ExecutorState.READY]
    assert stage.run(2, object_id=OTHER).slot is not None


def test_executor_that_retires_while_the_other_dies_is_replaced() -> None:
    stage = Stage(executors_max=2)
    long = stage.run(1)
    (spawn,) = only(stage.wait(2 * LONG_RUN_S), effects.SpawnExecutor)
    stage.step(events.ExecutorStarted(spawn.executor))
    stage.end(long)
    out = stage.wait(EXTRA_IDLE_S + 2 * TIDY_S)
    (retired,) = only(out, effects.RetireExecutor)
    (left,) = [e.executor_id for e in stage.core.pool.ready()]

    die(stage, left)
    died = die(stage, retired.executor, "retired")

    assert only([*died, *stage.wait(1.0)], effects.SpawnExecutor)


def test_extra_executor_retires_after_a_while_without_calls() -> None:
    stage = Stage(executors_max=2)
    long = stage.run(1)
    (spawn,) = only(stage.wait(2 * LONG_RUN_S), effects.SpawnExecutor)
    stage.step(events.ExecutorStarted(spawn.executor))
    other = stage.run(2, object_id=OTHER)
    busy = stage.wait(EXTRA_IDLE_S + 2 * TIDY_S)
    stage.end(other)
    stage.end(long)

    soon = stage.wait(TIDY_S + 0.1)
    out = stage.wait(EXTRA_IDLE_S)
    died = die(stage, spawn.executor, "retired")

    assert other.slot is None
    assert (
        only(busy, effects.RetireExecutor) == only(soon, effects.RetireExecutor) == []
    )
    assert only(out, effects.RetireExecutor) == [effects.RetireExecutor(spawn.executor)]
    assert only(out, effects.DropCopy), "its copies go first"
    assert only(died, effects.Note) == [], "nothing to report"
    assert only(stage.wait(1.0), effects.SpawnExecutor) == []


# -- poison calls ----------------------------------------------------------------------


def crash(stage: Stage, sequence: int, executor: int, **fields: object) -> str:
    """Have a call kill its executor; start the next one; return the answer."""
    out = stage.call(sequence, **fields)  # type: ignore[arg-type]
    if only(out, effects.LoadObject):
        out = stage.load()
    if only(out, effects.Dispatch):
        out = die(stage, executor)
        spawned = only(stage.wait(20.0), effects.SpawnExecutor)
        stage.step(events.ExecutorStarted(spawned[-1].executor))
    return answers(out)[client(sequence)]


def test_call_that_killed_two_executors_is_refused_until_the_quarantine_ends() -> None:
    stage = Stage()
    first, second = crash(stage, 1, 1), crash(stage, 2, 2)
    refused = stage.call(3)
    other_arguments = stage.call(4, body=b"others")
    stage.now_s += InvocationConfig().quarantine_s
    later = stage.call(5)

    (refusal,) = only(refused, effects.Refuse)
    assert first == second == refusal.error.code == "executor_crashed"
    assert refusal.error.quarantined_s > 0
    assert only(other_arguments, effects.LoadObject)
    assert answers(later) == {}


def test_call_that_ends_well_after_a_crash_is_forgiven() -> None:
    stage = Stage()
    crash(stage, 1, 1)
    stage.end(stage.run(2))

    assert crash(stage, 3, 2) == "executor_crashed"
    assert answers(stage.call(4)) == {}, "one crash since it was forgiven"


def test_bystander_with_many_good_runs_is_not_charged(stage: Stage) -> None:
    for sequence in range(RUNS_TRUSTED):
        stage.end(stage.run(100 + sequence, "peek", OTHER))
    for sequence in (1, 2):
        stage.run(10 * sequence, "peek", OTHER)
        stage.run(sequence)
        died = die(stage, sequence)
        stage.wait(1.0)
        stage.step(events.ExecutorStarted(sequence + 1))
        assert len(answers(died)) == 2

    assert answers(stage.call(50, "peek", OTHER)) == {}
    assert answers(stage.call(51)) == {client(51): "executor_crashed"}


def test_executor_killed_for_one_call_charges_no_other(stage: Stage) -> None:
    for executor in (1, 2):
        stage.run(executor)
        stage.run(10 + executor, object_id=OTHER)
        stage.step(events.CancelArrived(session_of(1), executor))
        killed = stage.wait(GRACE_S)
        died = die(stage, executor)
        stage.wait(1.0)
        stage.step(events.ExecutorStarted(executor + 1))
        assert only(killed, effects.KillExecutor)[0].executor == executor
        assert answers(died) == {client(10 + executor): "executor_crashed"}

    assert answers(stage.call(50, object_id=OTHER)) == {}


def test_quarantine_remembers_a_bounded_number_of_calls() -> None:
    quarantine = Quarantine(600.0)
    quarantine.blame("oldest", 0.0)
    for number in range(ENTRIES_MAX):
        quarantine.blame(number, 0.0)

    assert quarantine.blame("oldest", 0.0) == 0.0, "forgotten: it must crash anew"
    assert quarantine.blame(ENTRIES_MAX - 1, 0.0) == 600.0


def test_quarantine_that_is_over_is_forgotten() -> None:
    quarantine = Quarantine(600.0)
    quarantine.blame("call", 0.0)
    quarantine.blame("call", 0.0)

    assert quarantine.refused_for_s("call", 599.0) == 1.0
    assert quarantine.refused_for_s("call", 600.0) == 0.0
    assert quarantine.is_empty
    assert quarantine.refused_for_s("another", 0.0) == 0.0


# -- calls that do not end -------------------------------------------------------------


def test_interrupted_call_that_ends_in_time_costs_no_executor(stage: Stage) -> None:
    call = stage.run(1, deadline_s=1.0)
    stage.wait(1.0)
    stage.end(call, code="cancelled", is_dropped=True)

    assert only(stage.wait(2 * GRACE_S), effects.KillExecutor) == []


def test_interrupted_call_that_goes_on_costs_its_executor(stage: Stage) -> None:
    stage.run(1, deadline_s=1.0)
    stage.wait(1.0)

    (kill,) = only(stage.wait(GRACE_S), effects.KillExecutor)

    assert kill.executor == 1
    assert "did not end 2 s after it was interrupted (deadline)" in kill.why


def test_short_calls_leave_an_executor_that_does_not_answer() -> None:
    stage = Stage(executors=2, slots=2)
    stage.make_short()
    stage.make_short(object_id=OTHER)
    hog = stage.run(1, "peek", THIRD)
    executor = hog.slot.executor.executor_id
    short = stage.run(2, object_id=OBJECT)
    if short.slot.executor is not hog.slot.executor:
        pytest.fail("the short call must share the executor; see `place`")
    asked = stage.wait(2 * LONG_RUN_S)

    out = stage.wait(SILENT_S + PING_S)
    late = stage.end(short, change=delta(), attempt=1)

    assert effects.PingExecutor(executor) in asked
    assert answers(out) == {}
    assert only(out, effects.LoadObject), "its copy may be half changed"
    assert late == []
    moved = dispatched(stage.load())
    assert moved.origin == client(2)
    assert moved.slot.executor.executor_id != executor


def test_executor_that_answers_again_takes_calls_again(stage: Stage) -> None:
    stage.run(1)
    stage.wait(2 * LONG_RUN_S + SILENT_S)
    executor = stage.core.pool.executors[1]
    was_silent = executor.is_silent

    stage.step(events.ExecutorAnswered(1))

    assert was_silent
    assert not executor.is_silent


def test_executor_that_answers_in_time_is_asked_again_and_again(stage: Stage) -> None:
    stage.run(1)
    pings = 0
    for _ in range(10):
        out = stage.wait(PING_S)
        pings += len(only(out, effects.PingExecutor))
        stage.step(events.ExecutorAnswered(1))

    assert pings >= 3
    assert not stage.core.pool.executors[1].is_silent


def test_ping_of_an_executor_that_is_gone_is_forgotten(stage: Stage) -> None:
    stage.run(1)
    stage.wait(2 * LONG_RUN_S)
    die(stage)

    assert only(stage.wait(1.0), effects.PingExecutor) == []


def test_calls_behind_a_slow_one_are_recalled(stage: Stage) -> None:
    stage.make_short()
    first = stage.run(1)
    second = dispatched(stage.call(2))
    assert second.slot is first.slot

    out = stage.wait(0.01)
    again = stage.wait(0.01)

    assert only(out, effects.RecallCalls) == [effects.RecallCalls(1, first.slot.index)]
    assert only(again, effects.RecallCalls) == []


# -- readers beside a long writer ------------------------------------------------------


def test_reader_runs_on_the_committed_state_beside_a_long_writer(stage: Stage) -> None:
    stage.run(1)
    stage.call(2, "peek")

    waited = stage.wait(READER_WAIT_S)
    out = stage.load(is_reader=True)

    assert only(waited, effects.LoadObject) == [
        effects.LoadObject(OBJECT, is_reader=True)
    ]
    assert only(out, effects.Activate)[0].is_reader
    assert dispatched(out).origin == client(2)


def test_reader_copy_that_nobody_needs_any_more_is_not_made(stage: Stage) -> None:
    writer = stage.run(1)
    stage.call(2, "peek")
    stage.wait(READER_WAIT_S)
    stage.end(writer)

    assert only(stage.load(is_reader=True), effects.Activate) == []


def test_reader_of_an_object_that_is_gone_meanwhile_waits_for_the_writer(
    stage: Stage,
) -> None:
    writer = stage.run(1)
    stage.call(2, "peek")
    stage.wait(READER_WAIT_S)

    missing = stage.miss(is_reader=True)
    out = stage.end(writer)

    assert missing == []
    assert dispatched(out).origin == client(2)


def test_reader_does_not_overtake_the_write_of_its_own_client(stage: Stage) -> None:
    stage.run(1, session=1)
    stage.call(1, "add", session=2)
    stage.call(2, "peek", session=2)
    stage.call(1, "peek", session=3)

    stage.wait(READER_WAIT_S)
    out = stage.load(is_reader=True)

    assert [d.call.origin for d in only(out, effects.Dispatch)] == [client(1, 3)]


def test_reader_copy_is_dropped_once_the_writer_has_ended(stage: Stage) -> None:
    writer = stage.run(1)
    stage.call(2, "peek")
    stage.wait(READER_WAIT_S)
    reader = dispatched(stage.load(is_reader=True))
    stage.end(reader)

    out = stage.end(writer)

    assert only(out, effects.DropCopy)
    assert stage.boxes[OBJECT].reader is None


def test_reader_after_a_checkpoint_sees_the_checkpoint(stage: Stage) -> None:
    writer = stage.run(1)
    stage.call(2, "peek")
    stage.wait(READER_WAIT_S)
    first = dispatched(stage.load(is_reader=True))
    stage.end(first)
    reached = events.CheckpointReached(writer.call_id, writer.attempt, 1, delta())
    stage.commit(stage.step(reached))

    out = [*stage.call(3, "peek"), *stage.wait(READER_WAIT_S)]

    assert only(out, effects.DropCopy), "the older copy goes"
    assert only(out, effects.LoadObject)
    second = dispatched(stage.load(is_reader=True, version=2))
    assert (second.origin, second.version) == (client(3), 2)


def test_reader_that_runs_keeps_the_older_copy_until_it_ends(stage: Stage) -> None:
    writer = stage.run(1)
    stage.call(2, "peek")
    stage.wait(READER_WAIT_S)
    first = dispatched(stage.load(is_reader=True))
    reached = events.CheckpointReached(writer.call_id, writer.attempt, 1, delta())
    stage.commit(stage.step(reached))

    out = [*stage.call(3, "peek"), *stage.wait(READER_WAIT_S)]

    assert only(out, effects.DropCopy) == []
    assert only(out, effects.LoadObject)
    assert answers(stage.end(first)) == {client(2): ""}


# -- memory and slots ------------------------------------------------------------------


def test_states_over_the_budget_go_the_oldest_first() -> None:
    stage = Stage(activation_bytes_max=20)
    for number in (1, 2):
        stage.end(stage.run(number, object_id=object_id_of(number)))
    stage.end(stage.run(3, object_id=object_id_of(1)))

    out = [*stage.call(4, object_id=THIRD), *stage.load(THIRD)]

    assert len(only(out, effects.DropCopy)) == 1
    assert set(stage.boxes) == {object_id_of(1), THIRD}


def test_state_that_grows_over_the_budget_makes_the_others_go() -> None:
    stage = Stage(activation_bytes_max=20)
    stage.end(stage.run(1))
    other = stage.run(2, object_id=OTHER)

    out = stage.end(other, change=delta(), state_bytes=19)

    assert len(only(out, effects.DropCopy)) == 1
    assert set(stage.boxes) == {OTHER}


def test_swollen_executor_drops_the_older_half_of_its_copies() -> None:
    stage = Stage(memory_bytes_max=1000)
    for number in range(1, 6):
        stage.end(stage.run(number, object_id=object_id_of(number)))

    fits = stage.step(events.ExecutorMeasured(1, 1000))
    out = stage.step(events.ExecutorMeasured(1, 1001))

    assert fits == []
    assert len(only(out, effects.DropCopy)) == 2
    assert set(stage.boxes) == {object_id_of(n) for n in (3, 4, 5)}


def test_threads_that_wait_for_nested_calls_get_company(stage: Stage) -> None:
    """Without one more slot, chains that fill all slots would wait for ever."""
    stage.nest(stage.run(1), 1, "add", object_id_of(11))
    stage.nest(stage.run(2, object_id=OTHER), 1, "add", object_id_of(12))

    out = stage.load(object_id_of(11))

    assert dispatched(out).slot.index == 2
    assert len(stage.core.pool.executors[1].slots) == 3 < SLOTS_MAX


def occupied() -> Stage:
    """Return a stage whose first executor holds OBJECT and runs a long call."""
    stage = Stage(executors_max=2)
    stage.end(stage.run(1))
    stage.run(2, object_id=OTHER)
    (spawn,) = only(stage.wait(2 * LONG_RUN_S), effects.SpawnExecutor)
    stage.step(events.ExecutorStarted(spawn.executor))
    return stage


def test_small_object_moves_away_from_an_occupied_executor() -> None:
    stage = occupied()

    dropped = stage.call(3)
    moved = dispatched(stage.load())

    assert only(dropped, effects.DropCopy)
    assert moved.slot.executor.executor_id == 2


def test_large_object_stays_with_an_occupied_executor() -> None:
    """Loading it anew costs more than sharing an interpreter."""
    stage = occupied()
    copy = stage.boxes[OBJECT].main
    stage.core.pool.resize(copy, MOVABLE_BYTES_MAX + 1)

    assert dispatched(stage.call(3)).slot.executor.executor_id == 1


def test_object_with_nowhere_better_to_go_stays() -> None:
    stage = occupied()
    stage.run(3, object_id=THIRD)
    stage.wait(2 * LONG_RUN_S)

    assert dispatched(stage.call(4)).slot.executor.executor_id == 1


def test_object_whose_commit_is_under_way_stays() -> None:
    stage = Stage(executors_max=2)
    stage.run(2, object_id=OTHER)
    changed = stage.run(1)
    stage.wait(2 * LONG_RUN_S)
    stage.step(events.ExecutorStarted(2))
    stage.end(changed, change=delta())

    assert dispatched(stage.call(3)).slot.executor.executor_id == 1


def test_beat_names_what_clients_wait_for(stage: Stage) -> None:
    stage.run(1, session=1)
    stage.call(5, session=1)
    stage.call(7, session=2)

    (first, second) = only(stage.wait(2.0), effects.SendBeat)

    assert first == effects.SendBeat(session_of(1), (1, 5))
    assert second == effects.SendBeat(session_of(2), (7,))


def test_executor_that_retires_takes_no_calls() -> None:
    stage = Stage(executors_max=2)
    long = stage.run(1)
    (spawn,) = only(stage.wait(2 * LONG_RUN_S), effects.SpawnExecutor)
    stage.step(events.ExecutorStarted(spawn.executor))
    stage.end(long)
    (retired,) = only(stage.wait(EXTRA_IDLE_S + 2 * TIDY_S), effects.RetireExecutor)

    call = stage.run(2, object_id=OTHER)

    assert call.slot is not None
    assert call.slot.executor.executor_id != retired.executor
