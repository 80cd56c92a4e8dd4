"""A copy of which nobody knows any more: it goes once it is certain that it may, not before.

Its peer was away while its group replaced it, and all who could have told it to let go
have restarted since.

Source: reliability.md 3.4 R8, R10; issue 4, "tombstones".
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from activestore.ids import ObjectId
from activestore.testing import PeerSettings, Simulation
from tests.simulation.clusters import COUNTER, join
from tests.simulation.models import Counter
from tests.simulation.replica_clusters import check_whole, id_of, register_at

AWAY = "peer-3"
FIRST = ("peer-1", "peer-2", AWAY)
# Each copy is asked after once in six times this.
SETTINGS = PeerSettings(repair_after_s=5.0)
ASKED_S = 80.0


def make(sim: Simulation, home: str) -> ObjectId:
    """Make an object at peer-1, 2 and 3, whose home is one of them; 3 goes away."""
    join(sim)
    client = sim.client(home)
    counter = client.create(COUNTER)
    leaving = [home] if home not in FIRST else []
    client.replicate(counter, 3, peers=[*FIRST], leaving=leaving)
    assert counter.add() == 1
    sim.run(1.0)
    assert register_at(sim.peers[AWAY], id_of(counter)) is not None
    sim.crash(AWAY)
    sim.run(3.0)
    return id_of(counter)


def restart_others(sim: Simulation) -> None:
    """Restart all but who is away at once, and let it come back."""
    sim.run(3.0)
    for name in sim.peers:
        if name != AWAY:
            sim.crash(name)
    for name in sim.peers:
        sim.restart(name)


def has_copy(sim: Simulation, object_id: ObjectId) -> bool:
    """Return whether anything of the object is on the disk of who was away."""
    peer = sim.peers[AWAY]
    is_row = register_at(peer, object_id) is not None
    return is_row or peer.engine.head(object_id) is not None


@pytest.mark.parametrize("home", ["peer-1", AWAY, "peer-5"])
@pytest.mark.parametrize("then", ["alive", "deleted"])
@pytest.mark.parametrize(
    ("wanted", "members"),
    [(3, ("peer-1", "peer-2", "peer-4")), (3, ("peer-4", "peer-5", "peer-6")), (1, ())],
    ids=["replaced", "all replaced", "alone"],
)
def test_left_over_copy_goes_though_all_others_have_restarted(
    home: str, then: str, wanted: int, members: Sequence[str]
) -> None:
    with Simulation(1, peers=6, classes=[Counter], settings=SETTINGS) as sim:
        object_id = make(sim, home)
        client = sim.client("peer-2")
        leaving = [one for one in sim.peers if members and one not in members]
        if members:
            client.replicate(object_id, wanted, peers=members, leaving=leaving)
        else:
            client.replicate(object_id, 1, leaving=[AWAY])
        if then == "deleted":
            client.delete(client.get(object_id))
        restart_others(sim)
        sim.run(ASKED_S)

        assert not has_copy(sim, object_id)
        if then == "alive":
            check_whole(sim, {object_id: wanted})
            assert sim.client("peer-2").get(object_id).add() == 2


def test_copy_stays_where_nobody_knows_what_became_of_its_object() -> None:
    """All others lost their disks: it may be the last copy that there is."""
    with Simulation(2, peers=5, classes=[Counter], settings=SETTINGS) as sim:
        object_id = make(sim, "peer-1")
        for name in sim.peers:
            if name != AWAY:
                sim.crash(name, disk=False)
        for name in sim.peers:
            sim.restart(name)
        sim.run(3 * ASKED_S)

        assert has_copy(sim, object_id)


def test_copy_stays_that_was_forced_before_the_others_deleted_the_object() -> None:
    with Simulation(3, peers=5, classes=[Counter], settings=SETTINGS) as sim:
        object_id = make(sim, "peer-1")
        for name in ("peer-1", "peer-2"):
            sim.crash(name)
        sim.restart(AWAY)
        sim.run(3.0)
        sim.client(AWAY).force(object_id)
        sim.crash(AWAY)
        for name in ("peer-1", "peer-2"):
            sim.restart(name)
        sim.run(3.0)
        client = sim.client("peer-2")
        client.delete(client.get(object_id))
        restart_others(sim)
        sim.run(ASKED_S)

        assert has_copy(sim, object_id)
        assert sim.client(AWAY).get(object_id).peek() == 1


def test_keepers_are_told_of_a_delete_by_who_leads_after_it() -> None:
    """Who led when it was deleted died before all its voters, and its keepers, knew."""
    with Simulation(1, peers=5, classes=[Counter]) as sim:
        object_id = make(sim, "peer-5")
        for name in ("peer-4", "peer-5"):
            sim.crash(name)
        client = sim.client("peer-2")
        client.delete(client.get(object_id))
        for name in ("peer-1", "peer-2"):
            sim.crash(name)
        for name in sim.peers:
            if name != AWAY:
                sim.restart(name)
        sim.run(20.0)
        sim.restart(AWAY)
        sim.run(60.0)

        for peer in sim.peers.values():
            assert register_at(peer, object_id) is None
            assert peer.engine.row("place", object_id) is None, peer.name
            assert not peer.loop.places.tells_of(object_id)
        assert sim.peers["peer-5"].loop.places.graves.lineage_of(object_id) == 0
