"""What makes an object with copies is asked again while it gets them, or got too few.

The object is there then, and has a register: making it again is no write of its group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from activestore.core import effects
from activestore.core.calls import Client
from activestore.errors import ActiveStoreError
from activestore.ids import ObjectId, SessionId
from activestore.testing import DiskSpeed, Latency, Simulation
from activestore.wire.state import NamedState
from tests.simulation.clusters import COUNTER, join
from tests.simulation.models import Counter
from tests.simulation.replica_clusters import check_cores, check_nothing_left, id_of

SLOW = DiskSpeed(commit=Latency(2.0, 2.001))

Maker = Callable[[Any], Any]


def persist(client: Any) -> Any:
    return client.persist(Counter(), alias="x", replicas=3)


def create(client: Any) -> Any:
    return client.create(COUNTER, alias="x", replicas=3)


@pytest.mark.parametrize("make", [persist, create])
def test_its_connection_is_lost_while_copies_are_made(make: Maker) -> None:
    with Simulation(1, peers=3, classes=[Counter]) as sim:
        sim.checks.append(check_cores)
        join(sim)
        sim.run(3.0)
        for name in ("peer-2", "peer-3"):
            sim.peers[name].storage.speed = SLOW
        maker = sim.client("peer-1")

        def play() -> None:
            make(maker)

        task = sim.spawn(play)
        for _ in range(4):
            sim.run(1.0)
            sim.break_connections(maker.name, "peer-1")
        sim.run(30.0)
        for name in ("peer-2", "peer-3"):
            sim.peers[name].storage.speed = DiskSpeed()
        sim.run(30.0)
        assert task.is_over
        x = sim.client("peer-1").get("x")
        assert [x.add(), x.add()] == [1, 2]
        check_nothing_left(sim)


@pytest.mark.parametrize("make", [persist, create])
def test_a_member_has_no_room_and_the_client_asks_again(make: Maker) -> None:
    with Simulation(1, peers=3, classes=[Counter]) as sim:
        sim.checks.append(check_cores)
        join(sim)
        sim.run(3.0)
        sim.refuse_commits("peer-3", 40)
        with pytest.raises(ActiveStoreError):
            make(sim.client("peer-1"))
        sim.run(20.0)
        x = sim.client("peer-1").get("x")
        assert x.add() == 1
        check_nothing_left(sim)


def test_a_persist_under_another_number_is_refused_and_the_object_lives() -> None:
    """What the disk refuses is no write of the group either, and nothing is sent."""
    with Simulation(1, peers=3, classes=[Counter]) as sim:
        sim.checks.append(check_cores)
        join(sim)
        sim.run(3.0)
        x = sim.client("peer-1").create(COUNTER, replicas=3)
        sim.run(3.0)
        peer = sim.peers["peer-1"]
        core = peer.loop.replicating.core
        before = core.register_of(id_of(x))
        found = peer.engine.load(id_of(x))
        assert found is not None
        named = NamedState(id_of(x), "", found[1])
        token = peer.core.ledger.next_token()
        client = Client(SessionId(b"s" * 16), 7)
        peer.loop.carry_out([effects.CommitStates(token, [named], client, None, 0)])
        sim.run(3.0)
        assert core.register_of(id_of(x)) == before
        assert x.add() == 1
        check_nothing_left(sim)


def test_a_request_that_gives_a_name_is_asked_again_as_it_ends() -> None:
    """While it is read what became of the first time the name is neither free nor held."""
    with Simulation(3, peers=3, classes=[Counter]) as sim:
        join(sim)
        naming = sim.peers["peer-1"].loop.naming
        origin = Client(SessionId(bytes(16)), 1)
        wants = {"hits": ObjectId(bytes(16))}
        begun: list[str] = []
        naming.claim(origin, wants, lambda: begun.append("first"))
        sim.run(1.0)

        naming.ended(origin, is_done=False)
        naming.claim(origin, wants, lambda: begun.append("again"))
        sim.run(1.0)

        assert begun == ["first", "again"]
