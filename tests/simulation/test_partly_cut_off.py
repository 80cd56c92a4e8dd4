"""A leader that does not hear its own group, while other peers hear both.

Membership takes everybody for alive then: others probe on behalf of who hears nothing.
That the leader has no majority it says itself.

Source: reliability.md 3.4 R12; schemas/protocol.md section 2; decision 11.
"""

from __future__ import annotations

from typing import Any

import pytest

from activestore.ids import ObjectId
from activestore.peer.links import LOOK_S
from activestore.peer.trips import UNHEARD_S
from activestore.testing import Simulation
from tests.simulation.clusters import COUNTER, join
from tests.simulation.models import Counter, Relay
from tests.simulation.test_guarantees import holders
from tests.simulation.test_replicas import id_of

LEADER = "peer-1"
# It is said after a second, asked for by a look, and then the leader is asked (0.3 s),
# the turn is waited for (0.35 s) and two messages go each way.
SERVED_S_MAX = UNHEARD_S + LOOK_S + 0.9
# A hint has come to all by then.
TOLD_S = 5.0


def led(sim: Simulation, replicas: int = 3) -> tuple[ObjectId, list[str], list[str]]:
    """Make a counter; return its id, who follows its leader, and who has no copy."""
    join(sim)
    counter = sim.client(LEADER).create(COUNTER, replicas=replicas)
    assert counter.add() == 1
    sim.run(2.0)
    held = holders(sim, id_of(counter))
    others = [name for name in sim.peers if name not in held]
    return id_of(counter), [name for name in held if name != LEADER], others


def epoch_of(sim: Simulation, object_id: ObjectId, peer: str) -> int:
    """Return under which epoch an object is led, as a peer knows it."""
    register = sim.peers[peer].loop.replicating.core.register_of(object_id)
    assert register is not None
    return int(register.epoch.counter)


@pytest.mark.parametrize("replicas", [3, 5])
@pytest.mark.parametrize("asked", ["leader", "follower", "stranger"])
def test_leader_that_its_group_does_not_hear_is_followed_by_one_that_it_hears(
    asked: str, replicas: int
) -> None:
    for seed in (1, 2, 3):
        with Simulation(seed, peers=replicas + 2, classes=[Counter]) as sim:
            object_id, followers, strangers = led(sim, replicas)
            places = {
                "leader": LEADER,
                "follower": followers[0],
                "stranger": strangers[0],
            }
            client = sim.client(places[asked])
            counter = client.get(object_id)
            sim.partition(LEADER, followers)
            began_s = sim.now_s

            assert counter.add() == 2
            assert sim.now_s - began_s <= SERVED_S_MAX
            sim.run(TOLD_S)
            began_s = sim.now_s
            for total in range(3, 8):
                assert counter.add() == total

            assert sim.now_s - began_s < 1.0, "who leads now is asked first"
            sim.heal()
            sim.run(30.0)
            assert counter.peek() == 7


def test_peer_of_a_client_asks_others_than_a_leader_without_a_majority() -> None:
    """The client reaches one peer alone, which carries its requests."""
    with Simulation(4, peers=5, classes=[Counter]) as sim:
        object_id, followers, strangers = led(sim)
        counter = sim.client(strangers[0]).get(object_id)
        sim.partition("client-2", [name for name in sim.peers if name != strangers[0]])
        sim.partition(LEADER, followers)
        began_s = sim.now_s

        assert counter.add.options(direct=False)() == 2
        assert sim.now_s - began_s <= SERVED_S_MAX


def test_method_calls_an_object_whose_leader_its_group_does_not_hear() -> None:
    with Simulation(5, peers=5, classes=[Counter, Relay]) as sim:
        object_id, followers, strangers = led(sim)
        client = sim.client(strangers[0])
        relay = client.create(
            "tests.simulation.models.Relay", client.get(object_id), replicas=1
        )
        assert relay.add() == 2
        sim.partition(LEADER, followers)

        assert relay.add.options(timeout_s=10.0)() == 3
        sim.heal()
        sim.run(30.0)
        assert client.get(object_id).peek() == 3


@pytest.mark.parametrize("asked", ["leader", "follower", "stranger"])
def test_leader_that_one_of_its_group_does_not_hear_leads_on(asked: str) -> None:
    """It has a majority with the other; nobody takes the lead from it."""
    for seed in (1, 2, 3):
        with Simulation(seed, peers=5, classes=[Counter]) as sim:
            object_id, followers, strangers = led(sim)
            places: dict[str, Any] = {
                "leader": LEADER,
                "follower": followers[0],
                "stranger": strangers[0],
            }
            epoch = epoch_of(sim, object_id, LEADER)
            sim.partition(LEADER, followers[0])
            counter = sim.client(places[asked]).get(object_id)

            for total in range(2, 12):
                assert counter.add.options(direct=False)() == total
                sim.run(1.0)

            assert epoch_of(sim, object_id, LEADER) == epoch
