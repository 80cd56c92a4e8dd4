"""Power cuts of whole clusters: what was answered is there when all come back.

Source: reliability.md 3.8 (any power cut, all nodes at once), 9.
"""

from __future__ import annotations

import pytest

from activestore.testing import Simulation
from tests.simulation.clusters import COUNTER, SETTLE_S, Player, join
from tests.simulation.models import Counter
from tests.simulation.test_replicas import id_of, leaders

ALL = ("peer-1", "peer-2", "peer-3")


def is_led(sim: Simulation, object_ids: list[object]) -> bool:
    return all(len(leaders(sim, one)) == 1 for one in object_ids)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(6))
def test_cut_of_all_at_once_loses_nothing_acknowledged(seed: int) -> None:
    """Three replicas, or two; the cut falls into calls, commits and messages under way."""
    with Simulation(seed, peers=3, classes=[Counter]) as sim:
        join(sim)
        client = sim.client("peer-1")
        replicas = 3 if seed % 2 else 2
        object_ids = [
            id_of(client.create(COUNTER, replicas=replicas)) for _ in range(3)
        ]
        players = [Player(sim, list(ALL), object_ids) for _ in range(2)]
        tasks = [sim.spawn(player.play, 60, 0.05) for player in players]
        for _ in range(4):
            sim.run(sim.rng.uniform(0.3, 2.5))
            for name in ALL:
                sim.crash(name)
            sim.run(sim.rng.uniform(0.0, 0.5))
            for name in sim.rng.sample(ALL, 3):
                sim.restart(name)
                sim.run(sim.rng.uniform(0.0, 1.0))
        assert sim.run_until(
            lambda: all(task.is_over for task in tasks), timeout_s=300.0
        )
        sim.run(SETTLE_S)

        for object_id in object_ids:
            answered = sorted(n for p in players for n in p.values[object_id])
            unsure = sum(p.unsure[object_id] for p in players)
            value = sim.client("peer-2").get(object_id).peek()
            # Every answer once, none that is not in the value; each client's in order.
            assert len(set(answered)) == len(answered)
            assert len(answered) <= value <= len(answered) + unsure
            assert not answered or answered[-1] <= value
            for player in players:
                values = player.values[object_id]
                assert values == sorted(values)
        assert sum(len(p.values[o]) for p in players for o in object_ids) >= 40


@pytest.mark.parametrize("seed", range(3))
def test_replica_whose_disk_fails_votes_for_nothing_and_the_others_go_on(
    seed: int,
) -> None:
    """A peer whose disk fails ends; what it had not on disk it never promised."""
    with Simulation(40 + seed, peers=3, classes=[Counter]) as sim:
        join(sim)
        object_id = id_of(sim.client("peer-1").create(COUNTER, replicas=3))
        player = Player(sim, ["peer-3", "peer-2"], [object_id])
        task = sim.spawn(player.play, 60, 0.1)
        sim.run(1.5)
        victim = ("peer-1", "peer-2", "peer-1")[seed]
        sim.peers[victim].engine.is_broken = True

        assert sim.run_until(lambda: task.is_over, timeout_s=120.0)

        values = player.values[object_id]
        assert values == sorted(set(values))
        assert len(values) >= 55
        peek = sim.client("peer-3").get(object_id).peek()
        assert len(values) <= peek <= len(values) + player.unsure[object_id]
        assert victim not in leaders(sim, object_id)
