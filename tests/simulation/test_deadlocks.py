"""Chains of calls that wait for each other over peers, and those that only seem to.

Beats go on in a ring of calls, so silence does not end it: without a deadline it would
last for ever. The time bounds here are of the simulated clock.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from activestore import remote
from activestore.core.deadlocks import RING_WAIT_S
from activestore.errors import ActiveStoreError
from activestore.ids import ObjectId
from activestore.testing import (
    ExecutorSpeed,
    Faults,
    Latency,
    PeerSettings,
    Simulation,
    seeds,
)
from tests.simulation.clusters import join
from tests.simulation.models import Knot

HISTORIES = int(os.environ.get("ACTIVESTORE_SEEDS", "5"))
pytestmark = pytest.mark.scaled

KNOT = "tests.simulation.models.Knot"
# A method computes so long before it calls the next one: all hold theirs by then.
HOLD_S = 1.0
# A call asks with the next beat, 2 s, once it has waited; twice round is quick.
TOLD_S_MAX = HOLD_S + RING_WAIT_S + 2.0 + 2.0
# Where its question had first to wake a younger one: one beat more for each.
WOKEN_S = 2.0


def settings(long_s: float = 30.0) -> PeerSettings:
    hold = Latency(HOLD_S, HOLD_S)
    runs = {"hold": hold, "take_long": Latency(long_s, long_s)}
    return PeerSettings(executors=2, executor=ExecutorSpeed(runs=runs))


def ring(sim: Simulation, size: int) -> list[ObjectId]:
    """Make objects, one after the other at each peer, each of which knows the next."""
    join(sim)
    peers = list(sim.peers)
    clients = [sim.client(name) for name in peers]
    makers = [clients[n % len(peers)] for n in range(size)]
    made = [maker.create(KNOT) for maker in makers]
    for number, knot in enumerate(made):
        knot.tie(made[(number + 1) % size], makers[number].create(KNOT))
    for client in clients:
        client.close()
    return [remote.id_of(knot) for knot in made]


class Calls:
    """What became of calls that clients made beside each other, by their names."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.values: dict[str, Any] = {}
        self.errors: dict[str, ActiveStoreError] = {}
        self.took_s: dict[str, float] = {}
        self.count = 0

    def begin(
        self, name: str, object_id: ObjectId, method: str, *args: Any,
        after_s: float = 0.0,
    ) -> None:  # fmt: skip
        """Have a client of its own call a method."""
        peer = list(self.sim.peers)[self.count % len(self.sim.peers)]
        self.count += 1

        def call() -> None:
            self.sim.sleep(after_s)
            client = self.sim.client(peer)
            bound = getattr(client.get(object_id), method)
            began_s = self.sim.now_s
            try:
                self.values[name] = bound(*args)
            except ActiveStoreError as error:
                self.errors[name] = error
            self.took_s[name] = self.sim.now_s - began_s

        self.sim.spawn(call)

    def all_within(self, limit_s: float) -> bool:
        """Let time pass until all have ended."""
        return self.sim.run_until(
            lambda: len(self.values) + len(self.errors) == self.count, timeout_s=limit_s
        )


@pytest.mark.parametrize("seed", seeds(HISTORIES))
@pytest.mark.parametrize("size", [2, 3, 5])
def test_youngest_of_a_ring_gives_way_and_the_others_go_on(
    size: int, seed: int
) -> None:
    with Simulation(
        seed, peers=min(size, 3), classes=[Knot], settings=settings()
    ) as sim:
        knots = ring(sim, size)
        calls = Calls(sim)
        order = sim.rng.sample(range(size), size)
        for place, number in enumerate(order):
            calls.begin(str(number), knots[number], "pull", after_s=0.02 * place)

        assert calls.all_within(TOLD_S_MAX + size * WOKEN_S), calls.values

        assert not calls.errors
        refused = [name for name, is_done in calls.values.items() if not is_done]
        assert refused == [str(order[-1])]


def test_chain_that_takes_long_is_no_deadlock() -> None:
    """The one behind it waits for as long as that takes."""
    with Simulation(1, peers=2, classes=[Knot], settings=settings(300.0)) as sim:
        first, second = ring(sim, 2)
        calls = Calls(sim)
        calls.begin("long", first, "pull_long")
        calls.begin("waits here", first, "pull", after_s=1.0)
        calls.begin("waits there", second, "touch", after_s=1.5)

        assert calls.all_within(400.0)

        assert calls.values["long"] is True
        assert calls.values["waits here"] is True
        assert calls.took_s["long"] > 300.0


def test_chain_that_comes_back_is_no_deadlock() -> None:
    with Simulation(1, peers=3, classes=[Knot], settings=settings()) as sim:
        knots = ring(sim, 3)
        calls = Calls(sim)
        calls.begin("round", knots[0], "pull_round", 20)
        calls.begin("waits", knots[1], "pull", after_s=1.0)

        assert calls.all_within(30.0)

        assert calls.values == {"round": 20, "waits": True}


def test_readers_wait_for_no_ring() -> None:
    """They are served from the last committed state while the others hold it."""
    with Simulation(1, peers=2, classes=[Knot], settings=settings()) as sim:
        first, second = ring(sim, 2)
        calls = Calls(sim)
        calls.begin("first", first, "pull_and_look")
        calls.begin("second", second, "pull_and_look")

        assert calls.all_within(TOLD_S_MAX)

        assert calls.values == {"first": True, "second": True}
        assert max(calls.took_s.values()) < RING_WAIT_S


def test_writers_behind_readers_of_a_ring_are_told() -> None:
    """Each reads its own object while it waits for the other, which is read as well."""
    with Simulation(1, peers=2, classes=[Knot], settings=settings()) as sim:
        first, second = ring(sim, 2)
        calls = Calls(sim)
        calls.begin("first", first, "look_and_pull")
        calls.begin("second", second, "look_and_pull", after_s=0.05)

        assert calls.all_within(TOLD_S_MAX + WOKEN_S)

        assert calls.values == {"first": True, "second": False}


def test_ring_that_closes_late_is_told_of_soon() -> None:
    """The one that waited all the while asks seldom by then; it is woken."""
    with Simulation(1, peers=2, classes=[Knot], settings=settings(60.0)) as sim:
        first, second = ring(sim, 2)
        calls = Calls(sim)
        calls.begin("late", second, "take_long_and_pull")
        calls.begin("early", first, "pull", after_s=1.0)

        assert calls.all_within(61.0 + TOLD_S_MAX + WOKEN_S)

        assert sorted(calls.values.values()) == [False, True]


def test_peer_that_dies_with_a_ring_lets_the_others_go() -> None:
    with Simulation(1, peers=3, classes=[Knot], settings=settings()) as sim:
        knots = ring(sim, 3)
        calls = Calls(sim)
        for number, knot in enumerate(knots):
            calls.begin(str(number), knot, "pull", after_s=0.02 * number)
        sim.run(RING_WAIT_S + 1.9)
        sim.crash("peer-2")
        sim.run(1.0)
        sim.restart("peer-2")

        assert calls.all_within(60.0), (calls.values, calls.errors)


@pytest.mark.parametrize("seed", seeds(HISTORIES))
def test_rings_in_any_order_end_and_no_call_is_lost(seed: int) -> None:
    """Also while connections break and peers stand still."""
    faults = Faults(breaks_per_s=0.3, pauses_per_s=0.1, pause_s=1.0)
    with Simulation(seed, peers=3, classes=[Knot], settings=settings()) as sim:
        knots = ring(sim, 4)
        calls = Calls(sim)
        for number in range(12):
            calls.begin(
                str(number), sim.rng.choice(knots),
                sim.rng.choice(["pull", "pull_two", "pull_and_look"]),
                after_s=sim.rng.uniform(0.0, 3.0),
            )  # fmt: skip
        sim.inject(faults, for_s=10.0)

        assert calls.all_within(240.0), (calls.values, calls.errors)
