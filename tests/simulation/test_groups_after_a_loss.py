"""Groups that are changed while a member is dead: they stay served, the dead one goes.

Source: reliability.md R8.
"""

from __future__ import annotations

from typing import Any

import pytest

from activestore.errors import ActiveStoreError
from activestore.testing import Simulation
from tests.simulation.clusters import COUNTER, join
from tests.simulation.models import Counter
from tests.simulation.replica_clusters import id_of


def group_with_a_dead_member(sim: Simulation, dead_at: int = 1) -> tuple[Any, Any, str]:
    """Return a client, an object of three, and which member is dead, not the leader."""
    join(sim)
    sim.run(3.0)
    client = sim.client("peer-1")
    x: Any = client.create(COUNTER, alias="x", replicas=3)
    assert x.add() == 1
    members = [member.peer for member in client.group(x).members]
    assert members[0] == "peer-1"
    sim.crash(members[dead_at])
    sim.run(20.0)
    assert x.add() == 2
    return client, x, members[dead_at]


@pytest.mark.parametrize("dead_at", [1, 2])
def test_shrinking_takes_the_dead_one_out(dead_at: int) -> None:
    with Simulation(1, peers=3, classes=[Counter]) as sim:
        client, x, dead = group_with_a_dead_member(sim, dead_at)
        group = client.replicate(x, 2)
        assert dead not in [member.peer for member in group.members]
        assert x.add() == 3


def test_member_that_a_new_leader_has_never_heard_of_is_told_as_unknown() -> None:
    """Neither at number 0 nor all of them behind: nobody knows."""
    with Simulation(2, peers=5, classes=[Counter]) as sim:
        join(sim)
        client = sim.client("peer-1")
        x: Any = client.create(COUNTER, replicas=5)
        x.add()
        first, second, *_ = [member.peer for member in client.group(x).members]
        sim.crash(second)
        sim.crash(first)
        asked = next(name for name in sim.peers if name not in (first, second))
        client = sim.client(asked)
        assert client.get(id_of(x)).add() == 2

        members = {one.peer: one for one in client.group(id_of(x)).members}

        known = {name: (one.number, one.lag) for name, one in members.items()}
        assert known[first] == known[second] == (None, None)
        rest = [pair for name, pair in known.items() if name not in (first, second)]
        assert None not in {number for pair in rest for number in pair}


def test_draining_one_while_another_is_dead_leaves_the_object_served() -> None:
    with Simulation(1, peers=3, classes=[Counter]) as sim:
        _client, x, dead = group_with_a_dead_member(sim)
        other = next(name for name in ("peer-2", "peer-3") if name != dead)
        with pytest.raises(ActiveStoreError, match="1 voters answer, 2 must"):
            sim.client(other).request("drain")
        sim.run(10.0)
        assert x.add() == 3


def test_another_learner_is_taught_as_soon_as_the_first_is_suspect() -> None:
    """Whoever makes objects just after a peer died waits for the suspicion, not for 5 s."""
    with Simulation(0, peers=5, classes=[Counter]) as sim:
        join(sim)
        sim.run(20.0)
        client = sim.client("peer-1")
        client.create(COUNTER)
        sim.crash("peer-3")
        began_s = sim.now_s

        made = [client.create(COUNTER, replicas=3) for _ in range(8)]

        assert sim.now_s - began_s < 3.0
        assert [client.group(one).copies for one in made] == [3] * 8


def test_last_learner_that_is_suspect_may_come_back() -> None:
    """Without another one to teach, nothing is gained by giving it up."""
    with Simulation(0, peers=3, classes=[Counter]) as sim:
        join(sim)
        sim.run(20.0)
        client = sim.client("peer-1")
        client.create(COUNTER)
        sim.crash("peer-3")
        made: list[Any] = []
        task = sim.spawn(lambda: made.append(client.create(COUNTER, replicas=3)))
        sim.run(2.5)
        sim.restart("peer-3")
        sim.run_until(lambda: task.is_over, timeout_s=10.0)

        assert client.group(made[0]).copies == 3


def test_learner_that_refuses_after_the_delete_harms_nobody() -> None:
    with Simulation(1, peers=2, classes=[Counter]) as sim:
        join(sim)
        client = sim.client("peer-1")
        counter: Any = client.create(COUNTER)
        object_id = id_of(counter)
        counter.add()
        sim.run(1.0)
        sim.set_link("peer-1", "peer-2", min_s=0.2, mean_s=0.2001)
        sim.refuse_commits("peer-2", 3)
        problems = []

        def grow() -> None:
            try:
                client.replicate(object_id, 2)
            except ActiveStoreError as error:
                problems.append(str(error))

        sim.spawn(grow)
        sim.run(0.3)
        sim.client("peer-1").delete(object_id)
        sim.run(20.0)
        assert len(problems) == 1
        assert sim.client("peer-1").create(COUNTER).add() == 1
