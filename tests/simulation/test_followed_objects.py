"""Requests find a member of a group that leads, whoever dies; the registers are left out.

The copies are made by hand and a hook says who leads: what is looked at here is the way
to the leader. What makes one is `peer.replicating`.

Source: design section 8; reliability.md 3.4 R12.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from activestore import remote
from activestore.core.location import Place
from activestore.errors import ActiveStoreError, NoQuorumError, UnavailableError
from activestore.ids import ObjectId, PeerId
from activestore.storage.engine import Change
from activestore.testing import Simulation
from activestore.wire.replicas import NOBODY
from tests.simulation.clusters import COUNTER, join, settle
from tests.simulation.models import Counter, Relay

LEADER, *MEMBERS = ("peer-1", "peer-2", "peer-3")
STRANGER = "peer-4"
# A take-over that a member decides on takes so long here.
TAKE_OVER_S = 0.4
# A silent peer is suspected within this: a probe each second, half a second to answer.
SUSPECT_S = 4.0


class Group:
    """One counter at peer-1, copied to peer-2 and peer-3; who leads is said by hand."""

    def __init__(self, sim: Simulation, home: str = LEADER) -> None:
        self.sim = sim
        self.touched: list[str] = []
        self.counter = 1
        client = sim.client(home)
        self.object_id: ObjectId = remote.id_of(client.create(COUNTER))
        if home != LEADER:
            client.move(self.object_id, LEADER)
        settle(sim)
        self.copy(LEADER, *MEMBERS)
        self.lead(LEADER)
        sim.run(3.0)  # The keepers are told.

    def copy(self, source: str, *targets: str) -> None:
        """Write the state of one disk to others."""
        engine = self.sim.peers[source].engine
        found = engine.load(self.object_id)
        assert found is not None
        head, state = found
        for name in targets:
            change = Change(
                self.object_id, head.version, state, epoch=head.epoch,
                replies=tuple(engine.replies_of(self.object_id)),
            )  # fmt: skip
            assert self.sim.peers[name].engine.commit([change]) == [None]

    def id_of(self, name: str) -> PeerId:
        return PeerId(self.sim.peers[name].disk.peer_id)

    def place(self, leader: str) -> Place:
        everybody = map(self.id_of, (LEADER, *MEMBERS))
        me = self.id_of(leader) if leader else NOBODY
        others = tuple(one for one in everybody if one != me)
        return Place(me, self.counter, others, 1)

    def lead(self, name: str) -> None:
        """Have a member lead, and the others know it."""
        self.counter += 1
        place = self.place(name)
        for one in (LEADER, *MEMBERS):
            peer = self.sim.peers[one]
            if not peer.is_up:
                continue
            if one == name:
                peer.loop.location.hold(self.object_id)
                peer.loop.places.came(self.object_id, place)
            else:
                peer.loop.places.followed(self.object_id, place)
            peer.loop.location.check()

    def depose(self, name: str) -> None:
        """Have a member not lead any more, and nobody instead."""
        loop = self.sim.peers[name].loop
        loop.places.followed(self.object_id, self.place(""))

    def hook(self, name: str, then: Callable[[], ActiveStoreError | None]) -> None:
        """Have a touched member decide after a while what `then` says."""
        peer = self.sim.peers[name]

        def wanted(object_id: ObjectId, decided: Any) -> bool:
            assert object_id == self.object_id
            self.touched.append(name)
            peer.later(TAKE_OVER_S, lambda: decided(then()))
            return True

        peer.loop.relays.replicas_wanted = wanted

    def hook_all(self, then: Callable[[str], ActiveStoreError | None]) -> None:
        for name in MEMBERS:
            self.hook(name, lambda name=name: then(name))  # type: ignore[misc]

    def take_over(self, name: str) -> None:
        """Lead, unless another member does already."""
        if self.sim.peers[name].loop.relays._routing.is_leaderless(self.object_id):
            self.lead(name)


def cluster(seed: int = 1) -> Simulation:
    return Simulation(seed, peers=5, classes=[Counter, Relay])


@pytest.mark.parametrize("home", [LEADER, "peer-5"], ids=["home leads", "guest"])
@pytest.mark.parametrize("asker", [LEADER, *MEMBERS, STRANGER])
def test_every_peer_finds_who_leads(asker: str, home: str) -> None:
    with cluster() as sim:
        join(sim)
        group = Group(sim, home)
        forwarded = sim.client(asker).get(group.object_id).add.options(direct=False)
        followed = sim.client(asker).get(group.object_id)

        assert [forwarded(1), followed.add(1)] == [1, 2]

        group.copy(LEADER, "peer-3")
        group.lead("peer-3")
        assert [forwarded(1), followed.add(1)] == [3, 4]
        assert group.touched == []


@pytest.mark.parametrize("is_direct", [True, False], ids=["follows", "forwarded"])
@pytest.mark.parametrize("asker", ["peer-2", STRANGER])
def test_a_call_after_the_death_of_the_leader_is_taken_over_before_it_is_known_dead(
    asker: str, *, is_direct: bool
) -> None:
    with cluster() as sim:
        join(sim)
        group = Group(sim)
        client = sim.client(asker)
        add = client.get(group.object_id).add.options(direct=is_direct)
        assert add(1) == 1
        group.copy(LEADER, *MEMBERS)
        group.hook_all(group.take_over)
        sim.crash(LEADER)
        began_s = sim.now_s

        assert add(1) == 2

        assert sim.now_s - began_s < SUSPECT_S + TAKE_OVER_S
        assert group.touched
        assert add(1) == 3


def test_a_call_that_waits_for_a_leader_that_is_cut_off_goes_to_another_member() -> (
    None
):
    """Its link does not break, and nobody says that the leader is dead."""
    with cluster() as sim:
        join(sim)
        group = Group(sim)
        add = sim.client(STRANGER).get(group.object_id).add.options(direct=False)
        assert add(1) == 1
        group.copy(LEADER, *MEMBERS)
        group.hook_all(group.take_over)
        sim.partition([LEADER])
        began_s = sim.now_s

        assert add(1) == 2
        assert sim.now_s - began_s < SUSPECT_S + TAKE_OVER_S


def test_home_that_comes_back_does_not_say_that_it_has_the_object() -> None:
    with cluster() as sim:
        join(sim)
        group = Group(sim)
        add = sim.client(STRANGER).get(group.object_id).add.options(direct=False)
        assert add(1) == 1
        group.copy(LEADER, *MEMBERS)
        group.hook_all(group.take_over)
        sim.crash(LEADER)
        assert add(1) == 2
        place = sim.peers[STRANGER].loop.location.place_of(group.object_id)
        assert place is not None
        sim.restart(LEADER)
        # Its register says that it is one of several, and nobody knows yet who leads.
        back = sim.peers[LEADER].loop
        back.location.follow(group.object_id, Place(NOBODY, 2, tuple(
            group.id_of(n) for n in MEMBERS), 1))  # fmt: skip
        assert not back.location.is_here(group.object_id)

        sim.run(10.0)

        assert back.location.leader_of(group.object_id) == place.peer_id
        at_home = sim.client(LEADER).get(group.object_id)
        assert at_home.add.options(direct=False)(1) == 3
        assert at_home.add(1) == 4


def test_members_that_name_each_other_are_asked_until_one_leads() -> None:
    """A take-over is under way: more redirects than a request of a plain object bears."""
    with cluster() as sim:
        join(sim)
        group = Group(sim)
        call = sim.client(STRANGER).get(group.object_id).add.options(direct=False)
        sim.peers[LEADER].loop.places.followed(group.object_id, Place(
            group.id_of("peer-2"), group.counter + 1,
            (group.id_of(LEADER), group.id_of("peer-3")), 1))  # fmt: skip
        future = call.submit(1)
        sim.run(8.0)
        assert not future.done()

        group.counter += 1
        group.lead("peer-3")

        assert future.result() == 1


def test_nobody_who_leads_ends_a_call_with_what_was_decided() -> None:
    with cluster() as sim:
        join(sim)
        group = Group(sim)
        counters = [sim.client(one).get(group.object_id) for one in (LEADER, STRANGER)]
        group.depose(LEADER)
        refusal = NoQuorumError("object", "1 of 3 voters answers, 2 must")
        group.hook(LEADER, lambda: refusal)
        for counter in counters:
            add = counter.add.options(direct=False)

            with pytest.raises(NoQuorumError, match="1 of 3 voters answers"):
                add(1)


def test_members_of_which_none_leads_are_asked_for_a_bounded_time() -> None:
    with cluster() as sim:
        join(sim)
        group = Group(sim)
        add = sim.client(STRANGER, timeout_s=90.0).get(group.object_id).add
        sim.peers[LEADER].loop.places.followed(group.object_id, Place(
            group.id_of("peer-2"), group.counter + 1,
            (group.id_of(LEADER), group.id_of("peer-3")), 1))  # fmt: skip
        began_s = sim.now_s

        with pytest.raises(UnavailableError, match="none has taken over"):
            add.options(direct=False)(1)

        assert 30.0 <= sim.now_s - began_s < 110.0


def test_a_question_about_an_object_that_nobody_leads_waits_for_who_will() -> None:
    with cluster() as sim:
        join(sim)
        group = Group(sim)
        group.depose(LEADER)
        group.hook(LEADER, lambda: group.take_over(LEADER))

        for asker in (LEADER, STRANGER):
            group.depose(LEADER)
            found = sim.client(asker).locate(group.object_id)
            assert found["peer_id"] == group.id_of(LEADER)

        assert group.touched == [LEADER] * 2


def test_a_method_calls_an_object_whose_leader_has_died() -> None:
    with cluster() as sim:
        join(sim)
        group = Group(sim)
        client = sim.client("peer-2")
        relay = client.create(
            "tests.simulation.models.Relay", client.get(group.object_id)
        )
        assert relay.add(1) == 1
        group.copy(LEADER, *MEMBERS)
        group.hook_all(group.take_over)
        sim.crash(LEADER)

        assert relay.add(1) == 2
        assert group.touched


def test_keepers_are_told_of_a_group_that_has_changed() -> None:
    with cluster() as sim:
        join(sim)
        group = Group(sim)
        leader = sim.peers[LEADER]
        smaller = Place(group.id_of(LEADER), group.counter, (group.id_of("peer-2"),), 2)

        leader.loop.places.came(group.object_id, smaller)
        sim.run(5.0)

        for peer in sim.peers.values():
            if peer is not leader and peer.name not in MEMBERS:
                place = peer.loop.location.place_of(group.object_id)
                assert place == smaller, peer.name


@pytest.mark.parametrize("seed", range(12))
def test_whoever_dies_calls_are_answered_once(seed: int) -> None:
    """The copies are equal at every death: so each add counts once, or is in doubt."""
    with cluster(seed) as sim:
        join(sim)
        group = Group(sim)
        group.hook_all(group.take_over)
        add = sim.client(STRANGER).get(group.object_id).add
        values = [add(1)]
        led = LEADER
        group.copy(led, *(one for one in (LEADER, *MEMBERS) if one != led))
        future = add.submit(1)
        sim.run(sim.rng.random() * 0.002)
        # What the dead leader has committed, its group has.
        group.copy(led, *MEMBERS)
        sim.crash(led)

        values.append(future.result())
        values.append(add(1))

        assert values == [1, 2, 3]
