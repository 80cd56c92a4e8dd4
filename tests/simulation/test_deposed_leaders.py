"""Calls that come when a leader is deposed and its calls do not know it yet.

Source: reliability.md 3.4 R4 and R6.
"""

from __future__ import annotations

import pytest

from activestore.testing import Simulation
from tests.simulation.clusters import COUNTER, join
from tests.simulation.models import Counter
from tests.simulation.test_replicas import id_of, leaders


@pytest.mark.parametrize("what", ["peek", "add", "delete"])
def test_call_of_a_leader_that_was_just_deposed_is_answered_by_the_next(
    what: str,
) -> None:
    """Its commit is not written here, and what it read is not shown."""
    with Simulation(12, peers=3, classes=[Counter]) as sim:
        join(sim)
        client = sim.client("peer-1")
        counter = client.create(COUNTER, replicas=3)
        assert counter.add(5) == 5
        sim.run(1.0)
        loop = sim.peers["peer-1"].loop

        # It is deposed, and what follows from that is not carried out yet.
        loop.replicating.core._leaders.depose(id_of(counter))
        assert id_of(counter) in loop.core.replicated
        if what == "delete":
            client.delete(counter)
        else:
            assert getattr(counter, what)() == (5 if what == "peek" else 6)

        assert len(leaders(sim, id_of(counter))) == 1
        assert sim.peers["peer-1"].is_up
