"""Calls that use up short deadlines while their peer is well, slow to answer, or far.

Who gives no sign of life for half of a deadline is passed by. Who was not asked for one,
or had no time to give it, is waited for.

Source: reliability.md sections 2.2 and 3.8; docs/explanation/consistency.md.
"""

from __future__ import annotations

from typing import Any

import pytest

from activestore.errors import (
    DeadlineExceededError,
    NoQuorumError,
    UnavailableError,
)
from activestore.testing import ExecutorSpeed, Latency, PeerSettings, Simulation
from tests.simulation.models import Counter
from tests.simulation.test_guarantees import at, holders
from tests.simulation.test_no_quorum import CALM_S, LEADER, counter_led_by

# Links are silent for longer than any deadline here in between.
IDLE_S = 6.0


def slow_counter(sim: Simulation) -> Any:
    """Return a counter of three copies, which stands at 3, for a client beside another."""
    object_id = counter_led_by(sim, LEADER)
    peer = next(name for name in holders(sim, object_id) if name != LEADER)
    counter = at(sim, peer, object_id)
    assert [counter.add(), counter.add()] == [2, 3], "the second goes directly"
    return counter


def simulation(run_s: float, seed: int = 36) -> Simulation:
    speed = ExecutorSpeed(runs={"add_slowly": Latency(run_s, run_s)})
    settings = PeerSettings(executor=speed)
    return Simulation(seed, peers=4, classes=[Counter], settings=settings)


@pytest.mark.parametrize("is_direct", [True, False])
@pytest.mark.parametrize(("run_s", "timeout_s"), [(0.28, 0.3), (0.46, 0.5), (0.9, 1.0)])
def test_method_that_takes_nearly_its_deadline_is_answered(
    run_s: float, timeout_s: float, is_direct: bool
) -> None:
    with simulation(run_s) as sim:
        counter = slow_counter(sim)
        method = counter.add_slowly.options(timeout_s=timeout_s, direct=is_direct)

        for number in range(4, 10):
            sim.run(IDLE_S)
            assert method() == number


@pytest.mark.parametrize("delay_s", [0.0, 0.025])
@pytest.mark.parametrize("is_direct", [True, False])
@pytest.mark.parametrize("timeout_s", [0.3, 1.0])
def test_method_that_takes_longer_is_told_its_deadline(
    timeout_s: float, is_direct: bool, delay_s: float
) -> None:
    """And not that nobody leads its object: the leader answers when asked."""
    with simulation(5.0) as sim:
        counter = slow_counter(sim)
        if delay_s:
            for one in sim.peers:
                for other in sim.peers:
                    if one != other:
                        sim.set_link(one, other, min_s=delay_s, mean_s=delay_s)
        method = counter.add_slowly.options(timeout_s=timeout_s, direct=is_direct)

        for _ in range(6):
            sim.run(IDLE_S)
            with pytest.raises(DeadlineExceededError, match="nothing was committed"):
                method()
        assert counter.peek() == 3


@pytest.mark.parametrize("pause_s", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("timeout_s", [0.5, 1.0])
def test_leader_that_stands_still_for_a_moment_counts_once(
    timeout_s: float, pause_s: float
) -> None:
    """Whatever its calls are told: each is done once, or not at all."""
    doubtful = (DeadlineExceededError, NoQuorumError, UnavailableError)
    calls_count = 24
    with simulation(0.05, seed=41) as sim:
        counter = slow_counter(sim)
        before = first = counter.peek()
        answered = 0
        for number in range(calls_count):
            future = counter.add_slowly.options(timeout_s=timeout_s).submit()
            sim.run(0.01 + 0.005 * number)
            sim.pause(LEADER)
            sim.run(pause_s)
            sim.resume(LEADER)
            try:
                assert future.result() == before + 1
            except doubtful:
                sim.run(CALM_S)
                assert counter.peek() - before in (0, 1)
            else:
                answered += 1
                sim.run(CALM_S)
                assert counter.peek() == before + 1
            before = counter.peek()

        assert before > first
        assert answered > calls_count / 2 or pause_s > timeout_s / 2
