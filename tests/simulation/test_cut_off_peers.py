"""A client whose peer is cut off from the others, or stands still, while it reaches them.

What is asked again by another peer is done once, and each answer goes back by the way by
which its request came.

Source: reliability.md sections 2.2 and 3.7.
"""

from __future__ import annotations

from typing import Any

import pytest

from activestore.client.links import REACH_S
from activestore.client.passing import PASS_S
from activestore.peer.links import LOOK_S
from activestore.peer.trips import UNHEARD_S
from activestore.testing import ExecutorSpeed, Latency, PeerSettings, Simulation
from tests.simulation.clusters import COUNTER, join
from tests.simulation.models import Counter
from tests.simulation.test_replicas import id_of

ALL = [f"peer-{number}" for number in range(1, 6)]
# A take-over, and one more peer that is asked.
SERVED_S_MAX = 2 * PASS_S + REACH_S


def replicated(sim: Simulation, leader: str = "peer-1") -> Any:
    """Return a counter with three copies, as a client of its leader sees it."""
    join(sim)
    counter = sim.client(leader).create(COUNTER, replicas=3)
    assert counter.add() == 1
    return counter


@pytest.mark.parametrize("reached", ["told", "learned"])
@pytest.mark.parametrize("connected", ["peer-2", "peer-5"])
def test_connected_peer_does_not_hear_the_leader(connected: str, reached: str) -> None:
    with Simulation(4, peers=5, classes=[Counter]) as sim:
        object_id = id_of(replicated(sim))
        known = [connected] if reached == "learned" else [connected, *ALL]
        counter = sim.client(*known, timeout_s=10.0).get(object_id)
        sim.partition(connected, [name for name in ALL if name != connected])
        began_s = sim.now_s

        assert counter.add.options(direct=False)() == 2
        assert sim.now_s - began_s < SERVED_S_MAX
        began_s = sim.now_s
        for total in range(3, 6):
            assert counter.add.options(direct=False)() == total

        assert sim.now_s - began_s < 1.0, "who answered is asked first from then on"


@pytest.mark.parametrize("after_s", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("connected", ["peer-2", "peer-5"])
def test_connected_peer_says_that_it_does_not_hear_the_leader(
    connected: str, after_s: float
) -> None:
    """The client does not wait until it is silent: it is not."""
    with Simulation(4, peers=5, classes=[Counter]) as sim:
        object_id = id_of(replicated(sim))
        counter = sim.client(connected).get(object_id)
        sim.partition(connected, [name for name in ALL if name != connected])
        sim.run(after_s)
        began_s = sim.now_s

        assert counter.add.options(direct=False)() == 2
        assert sim.now_s - began_s < UNHEARD_S + 2 * LOOK_S
        sim.heal()
        sim.run(30.0)
        assert counter.peek() == 2


@pytest.mark.parametrize("after_s", [0.0, 1.0, 10.0])
def test_connected_peer_leads_and_hears_no_majority(after_s: float) -> None:
    """It has the call on its disk, and says that others may lead by now."""
    for seed in (4, 5, 6):
        with Simulation(seed, peers=5, classes=[Counter]) as sim:
            counter = replicated(sim)
            sim.partition("peer-1", ALL[1:])
            sim.run(after_s)
            began_s = sim.now_s

            assert counter.add() == 2
            assert sim.now_s - began_s < PASS_S, "before what it has is in doubt"
            sim.heal()
            sim.run(30.0)
            assert counter.peek() == 2


@pytest.mark.parametrize("is_copied", [False, True])
def test_call_that_takes_long_is_asked_by_no_other_peer(is_copied: bool) -> None:
    """Nobody is cut off: who has it gives signs of life when it is asked for them."""
    runs = {"*": Latency(0.001, 0.001), "add_slowly": Latency(20.0, 20.0)}
    settings = PeerSettings(executor=ExecutorSpeed(runs=runs))
    with Simulation(4, peers=5, classes=[Counter], settings=settings) as sim:
        join(sim)
        made = sim.client("peer-1").create(COUNTER, replicas=3 if is_copied else 1)
        client = sim.client("peer-5")
        slow = client.get(id_of(made)).add_slowly

        assert slow.options(direct=False)() == 1
        assert slow() == 2

        endpoints = {one.endpoint for one in client.session.links.by_route.values()}
        assert endpoints <= {sim.peers[name].endpoint for name in ("peer-1", "peer-5")}
        assert client.session.endpoint == sim.peers["peer-5"].endpoint


@pytest.mark.parametrize("connected", ["peer-1", "peer-2"])
def test_connected_peer_has_no_majority(connected: str) -> None:
    """It says so; the next attempt goes by another peer, though that one stays up."""
    with Simulation(4, peers=5, classes=[Counter]) as sim:
        object_id = id_of(replicated(sim))
        counter = sim.client(connected, timeout_s=10.0).get(object_id)
        sim.partition(connected, [name for name in ALL if name != connected])
        sim.run(20.0)

        assert counter.add() == 2


def test_each_answer_goes_back_by_the_way_its_request_came() -> None:
    """The peer answered all by the way that it had heard last; others were lost."""
    with Simulation(4, peers=2, classes=[Counter]) as sim:
        join(sim)
        with sim.client("peer-2") as maker:
            object_id = id_of(maker.create(COUNTER))
        client = sim.client("peer-1", timeout_s=10.0)
        counter = client.get(object_id)
        assert counter.add() == 1
        began_s = sim.now_s

        futures = [
            counter.add.options(direct=number % 2 == 0).submit() for number in range(20)
        ]
        found = sorted(future.result() for future in futures)

        assert found == list(range(2, 22))
        assert sim.now_s - began_s < 1.0


def test_nothing_is_left_of_what_was_answered_by_another_peer() -> None:
    with Simulation(4, peers=5, classes=[Counter]) as sim:
        object_id = id_of(replicated(sim))
        counter = sim.client("peer-5", timeout_s=10.0).get(object_id)
        sim.partition("peer-5", ALL[:4])
        assert counter.add.options(direct=False)() == 2
        sim.heal()
        sim.run(30.0)

        assert [len(peer.loop.relays) for peer in sim.peers.values()] == [0] * 5
        assert counter.peek() == 2
