"""Two objects with one name and copies of both: every copy gets the new name.

Source: design section 7; reliability.md 2.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from activestore.core.names import Claim
from activestore.errors import UnavailableError
from activestore.ids import ObjectId
from activestore.storage.engine import Change
from activestore.testing import Simulation
from tests.simulation.clusters import COUNTER, join
from tests.simulation.models import Counter
from tests.simulation.test_replicas import id_of, leaders

ONE_SIDE = ["peer-1", "peer-2", "peer-3"]
OTHER_SIDE = ["peer-4", "peer-5", "peer-6"]
# Until the other side is taken for dead, and may not be asked for copies.
DEAD_S = 60.0
# Until all is told again after a partition, and one of the two renamed.
HEALED_S = 60.0


def make(sim: Simulation, at: str) -> Any:
    """Make a counter with three copies that is called hits."""
    return sim.client(at).create(COUNTER, alias="hits", replicas=3)


def names_of(sim: Simulation, object_id: ObjectId) -> dict[str, str]:
    """Return what each copy of an object is called on its disk."""
    heads = {name: peer.engine.head(object_id) for name, peer in sim.peers.items()}
    return {name: head.alias for name, head in heads.items() if head is not None}


@pytest.fixture
def sim() -> Iterator[Simulation]:
    """Six peers, of which three and three do not reach each other any more."""
    with Simulation(41, peers=6, classes=[Counter]) as simulation:
        join(simulation)
        simulation.partition(ONE_SIDE, OTHER_SIDE)
        simulation.run(DEAD_S)
        yield simulation


def test_all_copies_of_the_younger_object_are_renamed(sim: Simulation) -> None:
    older = make(sim, "peer-1")
    sim.run(5.0)
    younger = make(sim, "peer-4")
    younger.add(7)
    sim.heal()
    sim.run(HEALED_S)

    renamed = {"hits~peer-4"}
    found = names_of(sim, id_of(younger))
    assert set(found) == set(OTHER_SIDE)
    assert set(found.values()) == renamed
    assert set(names_of(sim, id_of(older)).values()) == {"hits"}
    registers = [
        sim.peers[name].loop.replicating.core.register_of(id_of(younger))
        for name in OTHER_SIDE
    ]
    points = {one.point for one in registers if one is not None}
    assert len(points) == 1, "the new name is a write of the group, and numbered"
    (row,) = sim.peers["peer-4"].loop.naming.disputes.rows()
    assert row["renamed"] == "hits~peer-4"


def test_new_name_outlives_whoever_gave_it(sim: Simulation) -> None:
    older = make(sim, "peer-1")
    sim.run(5.0)
    younger = make(sim, "peer-4")
    younger.add(7)
    sim.heal()
    sim.run(HEALED_S)
    sim.crash("peer-4")
    sim.run(30.0)

    client = sim.client("peer-5")
    assert id_of(client.get("hits~peer-4")) == id_of(younger)
    assert client.get("hits~peer-4").add() == 8
    assert id_of(client.get("hits")) == id_of(older)


def test_follower_has_the_leader_give_the_name_up(sim: Simulation) -> None:
    """It may be told of the dispute: its claim is from before another led."""
    older = make(sim, "peer-1")
    sim.run(5.0)
    younger = make(sim, "peer-4")
    sim.run(2.0)
    one, other = (
        Claim(id_of(made), sim.peers[at].peer_id, made_s, True)
        for made, at, made_s in ((younger, "peer-4", 2.0), (older, "peer-1", 1.0))
    )
    follower = sim.peers["peer-5"].loop
    ended: list[Any] = []

    follower.naming.disputes.begin("hits", one, other)
    follower.replicating.write(
        Change(id_of(younger), alias="mine", is_rename=True), ended.append
    )
    sim.run(1.0)

    assert follower.naming.disputes._open == {}
    assert list(sim.peers["peer-4"].loop.naming.disputes._open) == ["hits"]
    assert [type(one) for one in ended] == [UnavailableError]
    assert set(names_of(sim, id_of(younger)).values()) == {"hits"}


def test_one_peer_that_leads_both_by_then_renames_the_younger(sim: Simulation) -> None:
    """The index of its disk has the name for one of them only."""
    older = make(sim, "peer-1")
    sim.run(5.0)
    younger = make(sim, "peer-4")
    younger.add(7)
    disputes = [peer.loop.naming.disputes for peer in sim.peers.values()]
    busy = [one._rename for one in disputes]
    for one in disputes:
        one._rename = lambda alias, *_, at=one: at._close(alias)  # type: ignore[method-assign]
    sim.heal()
    sim.run(HEALED_S)
    client = sim.client("peer-4")
    client.replicate(older, 3, peers=["peer-4"], leaving=["peer-3"])
    client.move(older, "peer-4")
    sim.run(5.0)
    assert leaders(sim, id_of(older)) == leaders(sim, id_of(younger)) == ["peer-4"]
    for one, rename in zip(disputes, busy, strict=True):
        one._rename = rename  # type: ignore[method-assign]

    sim.peers["peer-4"].loop.naming.held(id_of(younger))
    sim.peers["peer-4"].loop.naming.held(id_of(older))
    sim.run(HEALED_S)

    assert set(names_of(sim, id_of(older)).values()) == {"hits"}
    assert set(names_of(sim, id_of(younger)).values()) == {"hits~peer-4"}
    assert sim.peers["peer-4"].engine.resolve("hits") == id_of(older)
