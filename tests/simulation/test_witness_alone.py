"""The newest state is lost, and only the witness knows that there was one.

A majority answers then, and nobody can lead: what people are told must say so.

Source: decision 11 ("A witness has the register and no state"); issue 4, "force".
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from activestore.errors import InvalidRequestError, NoQuorumError
from activestore.ids import ObjectId
from activestore.testing import PeerSettings, Simulation
from tests.simulation.clusters import COUNTER, join
from tests.simulation.models import Counter
from tests.simulation.replica_clusters import id_of

SETTINGS = PeerSettings(repair_after_s=5.0)


def lose_newest(sim: Simulation, *, disk: bool) -> tuple[ObjectId, dict[str, str]]:
    """Take away who has an object's newest state; return the object, and who was what.

    The other copy is back and a change behind, and the witness knows. `disk`: it may return.
    """
    join(sim)
    client = sim.client("peer-1")
    counter = client.create(COUNTER, replicas=2, witness=True)
    by = {one.role: one.peer for one in client.group(counter).members}
    counter.add()
    sim.crash(by["replica"])
    sim.client(by["primary"], by["witness"]).get(id_of(counter)).add()
    sim.crash(by["primary"], disk=disk)
    sim.restart(by["replica"])
    sim.run(20.0)
    return id_of(counter), by


@pytest.fixture
def lost() -> Iterator[tuple[Simulation, ObjectId, dict[str, str]]]:
    """Yield an object whose newest state is lost for good, and who was what."""
    with Simulation(1, peers=3, classes=[Counter], settings=SETTINGS) as sim:
        yield sim, *lose_newest(sim, disk=False)


def test_newest_state_that_is_lost_is_told_by_all_who_are_asked(
    lost: tuple[Simulation, ObjectId, dict[str, str]],
) -> None:
    sim, object_id, by = lost
    client = sim.client(by["replica"])

    with pytest.raises(NoQuorumError, match=r"newest state.*`force` a copy"):
        client.replicate(object_id, 2)
    (row,) = client.request("replication")["objects"]
    forced = client.force(object_id)

    assert f"lost or away with {by['primary']}" in row["reason"]
    assert "`force` this copy" in row["reason"]
    assert [one.peer for one in forced.members] == [by["replica"]]
    assert client.get(object_id).add() == 2, "one of two is given up"


def test_witness_of_the_group_before_is_of_the_new_one(
    lost: tuple[Simulation, ObjectId, dict[str, str]],
) -> None:
    """It kept a row without a state that nobody could export, and refused."""
    sim, object_id, by = lost
    client = sim.client(by["replica"])
    client.force(object_id)
    sim.restart(by["primary"])
    sim.run(120.0)

    group = client.group(object_id)

    assert {one.peer: one.role for one in group.members}[by["witness"]] == "witness"
    assert group.is_whole
    assert sim.client(by["witness"]).request("replication")["objects"] == []


def test_force_is_refused_once_who_has_the_newest_state_is_back() -> None:
    with Simulation(2, peers=3, classes=[Counter]) as sim:
        object_id, by = lose_newest(sim, disk=True)
        sim.restart(by["primary"])
        sim.run(30.0)
        client = sim.client(by["replica"])

        with pytest.raises(InvalidRequestError, match="a majority of its group"):
            client.force(object_id)

        assert client.get(object_id).add() == 3
