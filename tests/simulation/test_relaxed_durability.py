"""What waits for a change that was answered before its commit does not wait for company.

Source: design section 6 (durability); reliability.md 3.4 R8.
"""

from __future__ import annotations

import pytest

from activestore.testing import Simulation
from tests.simulation.clusters import join
from tests.simulation.models import LazyCounter
from tests.simulation.replica_clusters import id_of

LAZY = "tests.simulation.models.LazyCounter"
SOON_S = 0.5


@pytest.mark.parametrize("replicas", [1, 3])
def test_newest_read_hurries_a_change_that_is_not_committed_yet(replicas: int) -> None:
    with Simulation(1, peers=3, classes=[LazyCounter]) as sim:
        join(sim)
        counter = sim.client("peer-1").create(LAZY, replicas=replicas)
        sim.run(70.0)
        begin_s = sim.now_s

        for number in range(1, 4):
            assert counter.add() == number
            assert counter.peek() == number

        assert sim.now_s - begin_s < SOON_S


def test_change_behind_a_read_that_waits_is_not_left_waiting() -> None:
    """Its answer waits behind that of the read, and so for its own commit."""
    with Simulation(1, peers=1, classes=[LazyCounter]) as sim:
        counter = sim.client("peer-1").create(LAZY)
        sim.run(70.0)
        begin_s = sim.now_s
        asked = [counter.add.submit(), counter.peek.submit(), counter.add.submit()]

        assert [one.result() for one in asked] in ([1, 1, 2], [1, 2, 2])

        assert sim.now_s - begin_s < SOON_S


def test_lead_is_handed_over_while_changes_are_not_committed_yet() -> None:
    with Simulation(1, peers=3, classes=[LazyCounter]) as sim:
        join(sim)
        client = sim.client("peer-1")
        counter = client.create(LAZY, replicas=3)
        sim.run(5.0)
        others = [one.peer for one in client.group(id_of(counter)).members[1:]]
        for number, name in enumerate(others, 1):
            assert counter.add() == number
            begin_s = sim.now_s

            client.move(id_of(counter), name)

            assert sim.now_s - begin_s < SOON_S
        assert counter.peek() == len(others)
