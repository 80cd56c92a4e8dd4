"""Random histories of whole clusters whose objects move while they are called.

What was acknowledged is there once, at one peer, and every peer finds it, whatever died,
stood still or was cut off meanwhile. A failing seed replays by the command that it
prints; `ACTIVESTORE_SEEDS` sets how many histories there are of each kind.

Source: design section 7; issue 3, "It must hold".
"""

from __future__ import annotations

import os

import pytest

from activestore.testing import (
    ExecutorSpeed,
    Latency,
    LinkQuality,
    PeerSettings,
    Simulation,
    seeds,
)
from tests.simulation.clusters import (
    CASES,
    Mover,
    Owners,
    Player,
    check_counts,
    join,
    make_counters,
)
from tests.simulation.models import Counter

HISTORIES = int(os.environ.get("ACTIVESTORE_SEEDS", "40"))
pytestmark = [pytest.mark.scaled, pytest.mark.slow]

FAULTY_S = 8.0
PLAYERS, MOVERS, COUNTERS = 3, 2, 3
CALLS, MOVES = 20, 10
CALL_PAUSE_S, MOVE_PAUSE_S = 0.3, 0.6
# A peer that holds nothing loses its disk so often.
LOSSES, LOSS_PAUSE_S = 2, 3.0
READERS_MAX = 12
# A hint is everywhere, and a dead peer is known to be one, within this.
GOSSIP_S, DEAD_S = 10.0, 60.0


def peers_of(seed: int) -> int:
    """Return how many peers a history has: few in most, 50 in one of forty."""
    if seed % 40 == 39:
        return 50
    return 20 if seed % 10 == 9 else 5 + seed % 6


def settings_of(seed: int) -> PeerSettings:
    """Return peers that differ from seed to seed: more executors, slower methods."""
    runs = [Latency(0.000_02, 0.000_1), Latency(0.001, 0.01), Latency(0.01, 0.2)]
    return PeerSettings(
        executors=1 + seed % 2, executor=ExecutorSpeed(runs={"*": runs[seed % 3]})
    )


@pytest.mark.parametrize("seed", seeds(HISTORIES))
@pytest.mark.parametrize("case", list(CASES))
def test_every_acknowledged_add_counts_once_wherever_its_object_goes(
    case: str, seed: int
) -> None:
    link = LinkQuality(loss=0.02 if seed % 4 == 3 else 0.0)
    with Simulation(
        seed,
        peers=peers_of(seed),
        classes=[Counter],
        settings=settings_of(seed),
        link=link,
    ) as sim:
        join(sim)
        names = list(sim.peers)
        # The last one holds nothing ever: it may lose its disk, and be another then.
        holders, empty = names[:-1], names[-1]
        counters = make_counters(sim, sim.rng.choices(holders, k=COUNTERS))
        Owners(sim, counters)
        players = [
            Player(sim, sim.rng.sample(names, 2), counters, is_direct=number % 2 == 0)
            for number in range(PLAYERS)
        ]
        movers = [
            Mover(sim, sim.rng.sample(names, 2), counters, holders)
            for _ in range(MOVERS)
        ]

        def lose_disks() -> None:
            for _ in range(LOSSES):
                sim.sleep(sim.rng.expovariate(1.0 / LOSS_PAUSE_S))
                sim.crash(empty, disk=False)
                sim.sleep(sim.rng.uniform(0.0, 1.0))
                sim.restart(empty)

        tasks = [sim.spawn(player.play, CALLS, CALL_PAUSE_S) for player in players]
        tasks += [sim.spawn(mover.play, MOVES, MOVE_PAUSE_S) for mover in movers]
        if case in {"crashing", "everything"}:
            tasks.append(sim.spawn(lose_disks))
        sim.inject(CASES[case], FAULTY_S)
        sim.run(FAULTY_S)
        assert sim.run_until(lambda: all(t.is_over for t in tasks), timeout_s=600.0)

        check_counts(sim, players, counters, names[:READERS_MAX])
        if case == "calm":
            assert not [error for player in players for error in player.errors]
            refusals = [error for mover in movers for error in mover.errors]
            # Two programs may move the same object at once.
            assert all("it is moving to" in str(error) for error in refusals)


def test_moved_object_is_found_by_gossip_when_its_keepers_are_dead() -> None:
    with Simulation(5, peers=8, classes=[Counter]) as sim:
        join(sim)
        home, target, asked = "peer-1", "peer-2", "peer-3"
        (object_id,) = make_counters(sim, [home])
        cluster = sim.peers[home].loop.cluster
        buddies = [
            cluster.name_of(one) for one in cluster.buddies(sim.peers[home].peer_id)
        ]
        target, asked = [n for n in sim.peers if n not in (home, *buddies)][:2]
        sim.client(home).move(object_id, target)
        sim.run(GOSSIP_S)
        for name in (home, *buddies):
            sim.crash(name)

        counter = sim.client(asked).get(object_id)
        assert counter.add(1) == 1
        sim.run(DEAD_S)
        assert counter.add.options(direct=False)(1) == 2


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_thousand_peers_find_each_other_and_an_object_that_moves() -> None:
    with Simulation(7, peers=1000, classes=[Counter]) as sim:
        join(sim)
        (object_id,) = make_counters(sim, ["peer-1"])
        sim.client("peer-500").move(object_id, "peer-1000")
        sim.crash("peer-1")

        for count, name in enumerate(("peer-2", "peer-250", "peer-999"), 1):
            assert sim.client(name).get(object_id).add(1) == count
