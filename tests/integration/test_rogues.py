"""Methods that misbehave: the caller hears in time, and everybody else is served.

Rules of this file: times are compared within one test on one machine.

Source: design section 3 ("Executors are processes"), section 5.
"""

from __future__ import annotations

import concurrent.futures
import statistics
import time

import pytest

from activestore.errors import (
    DeadlineExceededError,
    ExecutorCrashedError,
    MethodError,
)

pytestmark = [
    pytest.mark.net,
    pytest.mark.slow,
    pytest.mark.serial,
    pytest.mark.timeout(60),
]

# Some 4,000 calls: of 500, a percentile is five calls, which two ticks of the scheduler
# that happen to fall together can be.
WINDOW_S = 0.8
P99_RATIO_MAX = 5.0


@pytest.fixture
def peer(make_peer):
    """Return a peer that does not wait long for what does not end."""
    return make_peer(cancel_grace_s=0.5)


def p99_s(call) -> float:
    """Return the 99th percentile of what calls take in `WINDOW_S`, in seconds."""
    times_s = []
    end_s = time.perf_counter() + WINDOW_S
    while (started_s := time.perf_counter()) < end_s:
        call()
        times_s.append(time.perf_counter() - started_s)
    return statistics.quantiles(times_s, n=100)[-1]


def usual_p99_s(call) -> float:
    """Return the p99 of an undisturbed peer, after a warm-up."""
    p99_s(call)
    return p99_s(call)


def assert_others_are_served(call, usual_s: float) -> None:
    """Check that a disturbed peer serves the null call about as usual."""
    seen_s = p99_s(call)
    assert seen_s < P99_RATIO_MAX * usual_s, f"{seen_s:.6f} s, usual {usual_s:.6f} s"


@pytest.mark.parametrize("method", ["segfault", "exit_hard"])
def test_crash_of_a_method_costs_its_call_only(store, method):
    rogue = store.create("models.Rogue")
    counter = store.create("models.Counter", 1)
    usual_s = usual_p99_s(counter.nothing)

    future = getattr(rogue, method).submit()
    assert_others_are_served(counter.nothing, usual_s)
    with pytest.raises(ExecutorCrashedError):
        future.result(timeout=20)

    assert counter.add(1) == 2
    assert rogue.peek() == 0


def test_call_that_kills_two_executors_is_quarantined_and_says_so(peer, store):
    rogue = store.create("models.Rogue")

    # The client asks again by itself, for nothing was committed: that is two.
    with pytest.raises(ExecutorCrashedError) as first:
        rogue.exit_hard()
    executors = {child.pid for child in peer.executors()}
    with pytest.raises(ExecutorCrashedError) as second:
        rogue.exit_hard()

    for caught in (first, second):
        assert caught.value.quarantined_s > 0
        assert "quarantined" in str(caught.value)
    assert executors <= {child.pid for child in peer.executors()}, "it ran a third time"
    assert rogue.peek() == 0
    assert rogue.work(0.01) >= 1, "only that call is quarantined, not its object"


def test_sys_exit_in_a_method_is_its_own_error(store):
    rogue = store.create("models.Rogue")

    with pytest.raises(MethodError) as caught:
        rogue.exit_soft()

    assert caught.value.type_name.endswith("SystemExit")
    assert rogue.peek() == 0


def test_method_that_eats_memory_does_not_take_the_peer_with_it(make_peer, models_file):
    store = make_peer(executor_memory_mb=400).connect()
    store.publish(models_file)
    rogue = store.create("models.Rogue")
    counter = store.create("models.Counter", 1)
    usual_s = usual_p99_s(counter.nothing)

    future = rogue.eat_memory.submit()
    assert_others_are_served(counter.nothing, usual_s)
    with pytest.raises((MethodError, ExecutorCrashedError)) as caught:
        future.result(timeout=20)

    if isinstance(caught.value, MethodError):
        assert isinstance(caught.value, MemoryError)
    assert rogue.peek() == 0
    assert counter.add(1) == 2


@pytest.mark.parametrize(
    "method", ["loop", "block", "hold_in_c", "sum_in_c", "swallow"]
)
def test_method_that_does_not_end_meets_its_deadline(store, method):
    """The caller hears when the deadline passes; others are served all the while."""
    rogue = store.create("models.Rogue")
    counter = store.create("models.Counter", 1)
    usual_s = usual_p99_s(counter.nothing)

    started_s = time.monotonic()
    future = getattr(rogue, method).options(timeout_s=1).submit()
    assert_others_are_served(counter.nothing, usual_s)
    with pytest.raises(DeadlineExceededError):
        future.result(timeout=20)
    waited_s = time.monotonic() - started_s

    assert 0.9 <= waited_s < 3.0, "the deadline is 1 s, the grace 0.5 s"
    assert rogue.peek() == 0
    assert rogue.work(0.01) >= 1, "the object is free again"
    assert counter.add(1) == 2


@pytest.mark.parametrize("method", ["loop", "block", "hold_in_c"])
def test_method_that_does_not_end_can_be_cancelled(store, method):
    rogue = store.create("models.Rogue")
    counter = store.create("models.Counter", 1)

    future = getattr(rogue, method).submit()
    time.sleep(0.3)
    assert future.cancel()

    # What the standard library's futures raise once they are cancelled.
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(timeout=5)
    assert rogue.work.options(timeout_s=10)(0.01) >= 1, "the object is free again"
    assert counter.add(1) == 2


def test_crash_during_calls_of_others_in_the_same_executor(make_peer, models_file):
    """With one executor, a crash meets calls that did nothing wrong: they run again."""
    store = make_peer(executors=1, executors_max=2).connect()
    store.publish(models_file)
    rogue = store.create("models.Rogue")
    innocents = [store.create("models.Rogue") for _ in range(2)]

    futures = [innocent.work.submit(0.4) for innocent in innocents]
    time.sleep(0.1)
    with pytest.raises(ExecutorCrashedError):
        rogue.exit_hard()

    outcomes = [future.exception(timeout=20) for future in futures]
    assert all(
        outcome is None or isinstance(outcome, ExecutorCrashedError)
        for outcome in outcomes
    ), outcomes
    assert [innocent.work(0.01) >= 1 for innocent in innocents] == [True, True]


def test_method_that_ran_well_often_is_quarantined_for_its_poison_only(store):
    rogue = store.create("models.Rogue")
    assert [rogue.exit_if(False) for _ in range(30)] == [1] * 30

    with pytest.raises(ExecutorCrashedError) as caught:
        rogue.exit_if(True)

    assert caught.value.quarantined_s > 0
    assert rogue.exit_if(False) == 1


def test_kills_from_outside_do_not_quarantine_what_runs_well(peer, store, eventually):
    """An out-of-memory killer that hits executors again and again."""
    counter = store.create("models.Counter")
    assert counter.add(1) == 1

    for _ in range(4):
        for child in peer.executors():
            child.kill()
        try:
            counter.add(1)
        except ExecutorCrashedError:
            pass
        eventually(lambda: counter.peek() > 0)
        counter.add(1)

    eventually(lambda: len(peer.executors()) >= 2, timeout_s=30.0)
    value = counter.peek()
    assert counter.add(1) == value + 1


def test_neighbours_of_a_method_that_must_be_killed_are_not_quarantined(
    make_peer, models_file
):
    """One executor: what runs beside a runaway is lost with it, twice, and not blamed."""
    peer = make_peer(executors=1, executors_max=1, cancel_grace_s=0.2)
    store = peer.connect()
    store.publish(models_file)
    rogue, neighbour = (store.create("models.Rogue") for _ in "ab")

    neighbouring = neighbour.block.submit(1.5)
    for _ in range(2):
        with pytest.raises(DeadlineExceededError):
            rogue.swallow.options(timeout_s=0.3)()

    outcome = neighbouring.exception(timeout=20)
    assert outcome is None or (
        isinstance(outcome, ExecutorCrashedError) and not outcome.quarantined_s
    )
    assert neighbour.block(0.1) == "slept"
