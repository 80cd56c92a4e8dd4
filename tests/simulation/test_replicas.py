"""Whole peers with replicated objects: what is answered is kept, whoever is lost.

Source: design section 8; reliability.md section 3.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

from activestore import ActiveObject, activemethod, remote
from activestore.client import requests
from activestore.errors import (
    NoQuorumError,
    ObjectNotFoundError,
)
from activestore.ids import ObjectId
from activestore.storage.memory_engine import MemoryDisk
from activestore.testing import Simulation
from activestore.testing.peers import PeerSettings
from tests.simulation.clusters import COUNTER, Player, join
from tests.simulation.models import Counter, Maker

ALL = ("peer-1", "peer-2", "peer-3")


class Press(ActiveObject):
    """Makes objects without a change of its own."""

    ink: int

    def __init__(self) -> None:
        self.ink = 1

    @activemethod(readonly=True)
    def print(self) -> Counter:
        return Counter(self.ink)


class Foreman(ActiveObject):
    """Has another object make something."""

    press: Press

    def __init__(self, press: Press) -> None:
        self.press = press

    @activemethod
    def have_printed(self) -> Counter:
        return self.press.print()


def id_of(proxy: Any) -> ObjectId:
    """Return the id of an object."""
    found = remote.id_of(proxy)
    assert found is not None
    return found


def leaders(sim: Simulation, object_id: ObjectId) -> list[str]:
    """Return the names of the peers that lead an object."""
    return [
        peer.name
        for peer in sim.peers.values()
        if peer.is_up and peer.loop.replicating.core.is_led(object_id)
    ]


def backed_up(sim: Simulation, name: str) -> MemoryDisk:
    """Return a copy of a peer's disk; the peer has started once more since."""
    sim.crash(name)
    backup = copy.deepcopy(sim.peers[name].disk)
    sim.restart(name)
    sim.run(10.0)
    return backup


def test_object_is_made_with_three_copies() -> None:
    with Simulation(1, peers=3, classes=[Counter]) as sim:
        join(sim)
        counter = sim.client("peer-1").create(COUNTER, replicas=3)
        object_id = id_of(counter)
        assert counter.add(5) == 5
        sim.run(1.0)
        for peer in sim.peers.values():
            head = peer.engine.head(object_id)
            assert head is not None
            assert head.version == 2
        assert leaders(sim, object_id) == ["peer-1"]
        assert sim.client("peer-3").get(object_id).peek() == 5


def test_another_member_goes_on_where_the_leader_is_lost() -> None:
    with Simulation(2, peers=3, classes=[Counter]) as sim:
        join(sim)
        object_id = id_of(sim.client("peer-1").create(COUNTER, replicas=3))
        client = sim.client("peer-2")
        counter = client.get(object_id)
        assert [counter.add() for _ in range(5)] == [1, 2, 3, 4, 5]
        sim.crash("peer-1", disk=False)
        assert counter.add() == 6
        assert counter.peek() == 6
        assert leaders(sim, object_id) in (["peer-2"], ["peer-3"])


def test_restarted_leader_loses_nothing_and_leads_again_or_follows() -> None:
    with Simulation(3, peers=3, classes=[Counter]) as sim:
        join(sim)
        object_id = id_of(sim.client("peer-1").create(COUNTER, replicas=3))
        player = Player(sim, ["peer-2", "peer-3"], [object_id])
        task = sim.spawn(player.play, 40, 0.2)
        sim.run(2.0)
        sim.crash("peer-1")
        sim.run(1.0)
        sim.restart("peer-1")
        sim.run_until(lambda: task.is_over, timeout_s=120.0)
        assert player.errors == []
        assert player.values[object_id] == list(range(1, 41))
        assert len(leaders(sim, object_id)) == 1


def test_minority_refuses_to_write_within_the_deadline() -> None:
    with Simulation(4, peers=3, classes=[Counter]) as sim:
        join(sim)
        object_id = id_of(sim.client("peer-1").create(COUNTER, replicas=3))
        counter = sim.client("peer-1").get(object_id)
        assert counter.add() == 1
        # Its client would ask the others.
        sim.partition(["peer-1", "client-1", "client-2"], ["peer-2", "peer-3"])
        sim.run(30.0)
        with pytest.raises(NoQuorumError):
            counter.add.options(timeout_s=8.0)()
        other = sim.client("peer-2").get(object_id)
        assert other.add() == 2
        sim.heal()
        sim.run(10.0)
        assert counter.add() == 3


def test_deleted_object_is_gone_at_every_member() -> None:
    with Simulation(5, peers=3, classes=[Counter]) as sim:
        join(sim)
        client = sim.client("peer-2")
        counter = sim.client("peer-1").create(COUNTER, replicas=3)
        object_id = id_of(counter)
        client.delete(client.get(object_id))
        sim.run(10.0)
        for peer in sim.peers.values():
            assert peer.engine.head(object_id) is None
            assert peer.engine.row("register", object_id) is None
        with pytest.raises(ObjectNotFoundError):
            client.get(object_id).peek()


def test_group_is_whole_again_after_a_member_was_gone_for_long() -> None:
    settings = PeerSettings(repair_after_s=30.0)
    with Simulation(6, peers=4, classes=[Counter], settings=settings) as sim:
        join(sim)
        counter = sim.client("peer-1").create(COUNTER, replicas=3)
        object_id = id_of(counter)
        counter.add(4)
        core = sim.peers["peer-1"].loop.replicating.core
        register = core.register_of(object_id)
        assert register is not None
        names = {peer.peer_id: name for name, peer in sim.peers.items()}
        lost = next(names[m] for m in register.config.members if m != core._me)
        sim.crash(lost, disk=False)
        sim.run(120.0)
        register = core.register_of(object_id)
        assert register is not None
        members = {names[one] for one in register.config.members}
        assert len(members) == 3
        assert lost not in members
        for name in members:
            head = sim.peers[name].engine.head(object_id)
            assert head is not None
            assert head.version == 2
        assert counter.peek() == 4


def test_peer_whose_disk_was_restored_has_no_vote_and_says_so() -> None:
    with Simulation(7, peers=3, classes=[Counter]) as sim:
        join(sim)
        object_id = id_of(sim.client("peer-1").create(COUNTER, replicas=3))
        counter = sim.client("peer-2").get(object_id)
        assert counter.add() == 1
        peer, backup = sim.peers["peer-1"], backed_up(sim, "peer-1")
        assert [counter.add() for _ in range(3)] == [2, 3, 4]
        sim.crash("peer-1")
        peer.disk = backup  # What was promised and accepted since is forgotten.
        sim.restart("peer-1")
        sim.run(20.0)
        assert not peer.loop.replicating.core.is_led(object_id)
        reasons = [row["kind"] for row in peer.loop.cluster.troubles()]
        assert "disk" in reasons
        assert counter.add() == 5
        # Of the other two one is lost: what is left is no majority.
        other = leaders(sim, object_id)[0]
        survivor = next(n for n in ALL if n not in {other, "peer-1"})
        sim.crash(other)
        sim.run(10.0)
        with pytest.raises(NoQuorumError):
            sim.client(survivor).get(object_id).add.options(timeout_s=10.0)()
        sim.restart(other)
        sim.run(10.0)
        assert sim.client(survivor).get(object_id).peek() in {
            5,
            6,
        }  # What was refused may have been kept.


def test_third_copy_takes_the_place_of_a_witness() -> None:
    with Simulation(6, peers=4, classes=[Counter]) as sim:
        join(sim)
        client = sim.client("peer-1")
        object_id = id_of(client.create(COUNTER, replicas=2, witness=True))

        group = client.replicate(object_id, 3)

        assert (group.copies, group.wanted, group.wants_witness) == (3, 3, False)
        assert {one.role for one in group.members} == {"primary", "replica"}


def test_profile_of_a_peer_says_how_many_copies_are_made() -> None:
    settings = PeerSettings(replicas=2, witness=True)
    with Simulation(7, peers=3, classes=[Counter], settings=settings) as sim:
        join(sim)
        client = sim.client("peer-1")

        groups = [
            client.group(client.create(COUNTER, **asked))
            for asked in ({}, {"replicas": 3}, {"replicas": 1})
        ]

        assert [one.copies for one in groups] == [2, 3, 1]
        assert [one.wants_witness for one in groups] == [True, False, False]


def test_what_a_method_makes_has_as_many_copies_as_its_object() -> None:
    with Simulation(8, peers=3, classes=[Counter, Maker]) as sim:
        join(sim)
        maker = sim.client("peer-1").create(f"{Maker.__module__}.Maker", replicas=3)
        maker.make(7)
        sim.crash("peer-1", disk=False)
        assert sim.client("peer-2").get(id_of(maker)).last_peek() == 7


def test_what_a_nested_call_makes_has_as_many_copies_as_its_own_object() -> None:
    """Not as the object whose method called: both are written in the one commit."""
    with Simulation(8, peers=3, classes=[Counter, Press, Foreman]) as sim:
        join(sim)
        client = sim.client("peer-1")
        press = client.create(f"{__name__}.Press", replicas=3)
        id_of(press.print())  # Its class is known from then on: nothing is promised.
        foreman = client.create(f"{__name__}.Foreman", press, replicas=2)

        printed = foreman.have_printed()

        register = sim.peers["peer-1"].loop.replicating.core.register_of(id_of(printed))
        assert register is not None
        assert register.config.wanted == 3


def test_what_a_method_of_a_plain_object_makes_has_the_copies_of_the_settings() -> None:
    settings = PeerSettings(replicas=3)
    with Simulation(9, peers=3, classes=[Counter, Maker], settings=settings) as sim:
        join(sim)
        client = sim.client("peer-1")
        maker = client.create(f"{Maker.__module__}.Maker", replicas=1)
        object_id = id_of(maker.make(7))
        core = sim.peers["peer-1"].loop.replicating.core
        assert core.register_of(id_of(maker)) is None
        register = core.register_of(object_id)
        assert register is not None
        assert len(register.config.members) == 3


def test_restored_disk_is_known_though_the_others_have_restarted_too() -> None:
    with Simulation(10, peers=3, classes=[Counter]) as sim:
        join(sim)
        object_id = id_of(sim.client("peer-2").create(COUNTER, replicas=3))
        counter = sim.client("peer-2").get(object_id)
        assert counter.add() == 1
        peer, backup = sim.peers["peer-1"], backed_up(sim, "peer-1")
        assert counter.add() == 2
        for name in sim.peers:
            sim.crash(name)
        peer.disk = backup
        sim.restart("peer-1")
        sim.restart("peer-3")
        sim.run(30.0)
        assert "disk" in [row["kind"] for row in peer.loop.cluster.troubles()]
        sim.crash("peer-1")
        sim.restart("peer-1")  # Its next start is a later one than any that is known.
        sim.run(10.0)
        assert "disk" in [row["kind"] for row in peer.loop.cluster.troubles()]
        sim.restart("peer-2")
        sim.run(10.0)
        assert sim.client("peer-2").get(object_id).peek() == 2


@pytest.mark.parametrize("seed", [1, 2])
def test_no_call_of_an_object_that_moves_on_and_on_is_refused(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two copies: who led it knows of nobody for a moment. No client asks twice here."""
    monkeypatch.setattr(requests, "ATTEMPTS_MAX", 1)
    with Simulation(seed, peers=5, classes=[Counter]) as sim:
        join(sim)
        names = list(sim.peers)
        object_id = id_of(sim.client("peer-1").create(COUNTER, replicas=2))
        mover = sim.client(names[seed % 5])
        values: list[int] = []

        def call(peer: str) -> None:
            counter = sim.client(peer).get(object_id)
            while sim.now_s < 6.0:
                sim.sleep(sim.rng.expovariate(50.0))
                values.append(counter.add())

        tasks = [sim.spawn(call, peer) for peer in names[:3]]
        while sim.now_s < 6.0:
            sim.run(0.15)
            mover.move(mover.get(object_id), sim.rng.choice(names))

        assert sim.run_until(
            lambda: all(task.is_over for task in tasks), timeout_s=60.0
        )
        assert sorted(values) == list(range(1, len(values) + 1))
