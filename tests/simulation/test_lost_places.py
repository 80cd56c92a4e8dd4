"""An object that has moved, and nobody left who was to know where: hints and searches.

Source: design section 7 ("Location"); reliability.md 2.2.
"""

from __future__ import annotations

from typing import Any

import pytest

from activestore import remote
from activestore.errors import UnavailableError
from activestore.ids import ObjectId, home_of
from activestore.testing import PeerSettings, Simulation
from activestore.testing.peers import SimPeer
from tests.simulation.clusters import COUNTER, join, settle
from tests.simulation.models import Counter

PEERS = 8
HOME = "peer-1"
# A dead peer is known to be one, and what it kept is with others, within this.
DEAD_S = 60.0


def cluster(seed: int, searches_per_s: float) -> Simulation:
    settings = PeerSettings(searches_per_s=searches_per_s)
    return Simulation(seed, peers=PEERS, classes=[Counter], settings=settings)


def names_of(sim: Simulation, peer_ids: list[Any]) -> list[str]:
    by_id = {peer.disk.peer_id: name for name, peer in sim.peers.items()}
    return [by_id[one] for one in peer_ids]


def moved_away(sim: Simulation) -> tuple[ObjectId, str, str]:
    """Have a counter leave a home that dies with both buddies: it, its peer, another."""
    join(sim)
    client = sim.client(HOME)
    counter = client.create(COUNTER)
    object_id = remote.id_of(counter)
    assert object_id is not None
    assert counter.add(1) == 1
    buddies = names_of(sim, sim.peers[HOME].loop.cluster.buddies(home_of(object_id)))
    holder, asker = [name for name in sim.peers if name not in {HOME, *buddies}][:2]
    client.move(object_id, holder)
    settle(sim)
    sim.run(5.0)  # The hint goes around.
    for name in (HOME, *buddies):
        sim.crash(name)
    return object_id, holder, asker


def forget(peer: SimPeer, object_id: ObjectId) -> None:
    """Have a peer know nothing of where an object is; its tables were too small."""
    location = peer.loop.location
    place = location.place_of(object_id)
    while place is not None:
        location.doubt(object_id, place)
        location.forget_place(object_id, place.epoch)
        place = location.place_of(object_id)


def forget_everywhere(sim: Simulation, object_id: ObjectId) -> None:
    for peer in sim.peers.values():
        if peer.is_up and not peer.loop.location.is_here(object_id):
            forget(peer, object_id)


def searches_of(sim: Simulation, name: str) -> list[ObjectId]:
    """Return a list that grows by what a peer asks others to locate."""
    relays = sim.peers[name].loop.relays
    ask, found = relays.ask, []

    def asking(
        peer_id: Any, operation: str, parameters: Any, *args: Any, **kw: Any
    ) -> None:
        if operation == "locate":
            found.append(parameters["object_id"])
        ask(peer_id, operation, parameters, *args, **kw)

    relays.ask = asking  # type: ignore[method-assign]
    return found


@pytest.mark.parametrize("seed", range(3))
def test_moved_object_whose_keepers_are_dead_is_found_by_gossiped_hints(seed):
    with cluster(seed, searches_per_s=0.0) as sim:
        object_id, _, asker = moved_away(sim)

        # At once: nobody is known to be dead, so nobody else was told.
        counter = sim.client(asker).get(object_id)

        assert counter.add.options(direct=False)(1) == 2


@pytest.mark.parametrize("seed", range(3))
def test_moved_object_of_which_nobody_has_heard_is_found_by_asking_all(seed):
    with cluster(seed, searches_per_s=20.0) as sim:
        object_id, holder, asker = moved_away(sim)
        sim.run(DEAD_S)
        forget_everywhere(sim, object_id)
        asked = searches_of(sim, asker)

        counter = sim.client(asker).get(object_id)

        assert counter.add.options(direct=False)(1) == 2
        assert counter.add(1) == 3
        assert set(asked) == {object_id}
        place = sim.peers[asker].loop.location.place_of(object_id)
        assert place is not None
        assert names_of(sim, [place.peer_id]) == [holder]


def test_without_searches_it_is_said_who_cannot_be_reached():
    with cluster(1, searches_per_s=0.0) as sim:
        object_id, _, asker = moved_away(sim)
        sim.run(DEAD_S)
        forget_everywhere(sim, object_id)
        asked = searches_of(sim, asker)
        client = sim.client(asker)
        sim.partition(client.name, [name for name in sim.peers if name != asker])

        with pytest.raises(UnavailableError, match="its home, cannot be reached"):
            client.get(object_id).add(1)

        assert asked == []


def test_objects_of_a_dead_home_are_not_looked_for_without_end():
    """They are where nobody can ask: most of what is called for after a death."""
    with cluster(2, searches_per_s=20.0) as sim:
        join(sim)
        client = sim.client(HOME)
        object_ids = [remote.id_of(client.create(COUNTER)) for _ in range(60)]
        sim.crash(HOME)
        sim.run(DEAD_S)
        asker = "peer-2"
        asked = searches_of(sim, asker)
        other = sim.client(asker)
        began_s = sim.now_s

        for _ in range(3):
            for object_id in object_ids:
                with pytest.raises(UnavailableError):
                    other.get(object_id).peek()

        took_s = sim.now_s - began_s
        searches = len(asked) / (PEERS - 2)
        assert 0 < searches <= 20 * (1 + took_s)
        assert searches <= len(object_ids) * (1 + took_s // 10)


def test_request_that_is_cancelled_while_its_object_is_looked_for_ends():
    with cluster(3, searches_per_s=20.0) as sim:
        object_id, _, asker = moved_away(sim)
        add = sim.client(asker).get(object_id).add
        sim.run(DEAD_S)
        forget_everywhere(sim, object_id)
        peer = sim.peers[asker]
        keepers = names_of(sim, peer.loop.cluster.buddies(home_of(object_id)))
        for name in sim.peers:
            if name not in {asker, *keepers} and sim.peers[name].is_up:
                sim.pause(name)
        future = add.options(direct=False).submit(1)
        sim.run(0.5)
        assert any(trip.then is None for trip in peer.loop.relays)

        future.cancel()
        sim.run(0.2)

        # What is left are our own questions to those who stand still.
        assert all(trip.then is not None for trip in peer.loop.relays)
