"""Groups that lack a member get another one: by themselves, or at once when asked.

Source: issue 4, "Repair"; design section 8.
"""

from __future__ import annotations

from activestore.testing import Simulation
from tests.simulation.clusters import COUNTER, join
from tests.simulation.models import Counter
from tests.simulation.replica_clusters import id_of

# Longer than `repair_after_s`.
LONG_S = 700.0


def test_dead_member_is_replaced_though_all_others_restarted_at_once() -> None:
    """Nobody remembers it then: its group does."""
    with Simulation(1, peers=4, classes=[Counter]) as sim:
        join(sim)
        sim.run(3.0)
        client = sim.client("peer-1")
        counter = client.create(COUNTER, alias="x", replicas=3)
        assert counter.add() == 1
        dead = [one.peer for one in client.group(counter).members][1]
        for name in list(sim.peers):
            sim.crash(name)
        for name in sim.peers:
            if name != dead:
                sim.restart(name)

        sim.run(LONG_S)

        assert sim.client("peer-1").group(id_of(counter)).is_whole


def test_same_number_again_replaces_the_dead_one_at_once() -> None:
    with Simulation(2, peers=4, classes=[Counter]) as sim:
        join(sim)
        client = sim.client("peer-1")
        counter = client.create(COUNTER, replicas=3)
        assert counter.add() == 1
        members = {one.peer for one in client.group(counter).members}
        dead = next(iter(sorted(members - {"peer-1"})))
        sim.crash(dead, disk=False)
        sim.run(30.0)

        group = client.replicate(counter, 3)

        assert group.is_whole
        assert dead not in {one.peer for one in group.members}
        assert counter.add() == 2
