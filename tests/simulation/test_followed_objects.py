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
from activestore.core import effects
from activestore.core.calls import Client
from activestore.core.location import Place
from activestore.errors import (
    ActiveStoreError,
    AliasExistsError,
    AliasNotFoundError,
    NoQuorumError,
    UnavailableError,
)
from activestore.ids import ObjectId, PeerId
from activestore.peer.keeping import claim_of
from activestore.storage.engine import Change
from activestore.testing import Simulation
from activestore.testing.peers import SimPeer
from activestore.wire.messages import Call, Reply
from activestore.wire.replicas import NOBODY
from tests.simulation.clusters import COUNTER, join, settle
from tests.simulation.models import Counter, Relay

LEADER, *MEMBERS = ("peer-1", "peer-2", "peer-3")
STRANGER = "peer-4"
# A take-over that a member decides on takes so long here.
TAKE_OVER_S = 0.4
# A silent peer is suspected within this: a probe each second, half a second to answer.
SUSPECT_S = 4.0


def drop_replies(peer: SimPeer) -> Callable[[], None]:
    """Have a peer answer nothing that it did; return what ends that."""
    loop, tell = peer.loop, peer.loop.tell

    def told(session: Any, message: Any) -> None:
        if type(message) is not Reply:
            tell(session, message)

    def end() -> None:
        loop.tell = tell  # type: ignore[method-assign]

    loop.tell = told  # type: ignore[method-assign]
    return end


class Group:
    """One counter at peer-1, copied to peer-2 and peer-3; who leads is said by hand."""

    def __init__(self, sim: Simulation, home: str = LEADER, alias: str = "") -> None:
        self.sim = sim
        self.touched: list[str] = []
        self.counter = 1
        client = sim.client(home)
        created = client.create(COUNTER, alias=alias)
        self.object_id: ObjectId = remote.id_of(created)
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
                self.object_id, head.version, state, epoch=head.epoch, is_copy=True,
                alias=head.alias, created_s=head.created_s,
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
                peer.loop.naming.held(self.object_id)
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

    def let_commit(self, count: int) -> None:
        """Let time pass until so many more changes are on the leader's disk."""
        engine = self.sim.peers[LEADER].engine

        def version() -> int:
            head = engine.head(self.object_id)
            assert head is not None
            return head.version

        wanted = version() + count
        assert self.sim.run_until(lambda: version() >= wanted, timeout_s=5.0)

    def adds_by(self, way: str) -> list[Any]:
        """Return two that add to the counter: of a client, a peer for it, or methods.

        All members know it already: of those that are new all requests are looked up.
        """
        client = self.sim.client(STRANGER)
        known = [
            remote.id_of(self.sim.client(name).create(COUNTER)) for name in MEMBERS
        ]
        adds = []
        for object_id in (*known, self.object_id, self.object_id):
            counter = client.get(object_id)
            if way == "nested":
                counter = client.create("tests.simulation.models.Relay", counter)
            adds.append(counter.add.options(direct=way == "followed"))
            for _ in range(3 if object_id in known else 0):
                adds[-1](1)
        return adds[-2:]

    def take_over(self, name: str) -> None:
        """Lead, unless another member does already."""
        if self.sim.peers[name].loop.relays.routing.is_leaderless(self.object_id):
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
        (leader,) = (
            group.id_of(name)
            for name in MEMBERS
            if sim.peers[name].loop.location.is_here(group.object_id)
        )
        sim.restart(LEADER)
        # Its register says that it is one of several, and nobody knows yet who leads.
        back = sim.peers[LEADER].loop
        back.location.follow(group.object_id, Place(NOBODY, 2, tuple(
            group.id_of(n) for n in MEMBERS), 1))  # fmt: skip
        assert not back.location.is_here(group.object_id)

        sim.run(10.0)

        assert back.location.leader_of(group.object_id) == leader
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


WAYS = pytest.mark.parametrize("way", ["followed", "forwarded", "nested"])


@WAYS
def test_calls_that_their_leader_committed_and_could_not_answer_count_once(
    way: str,
) -> None:
    """The next leader has the answers: the retries are asked as further attempts."""
    with cluster() as sim:
        join(sim)
        group = Group(sim)
        group.hook_all(group.take_over)
        adds = group.adds_by(way)
        assert adds[0](1) == 1
        drop_replies(sim.peers[LEADER])
        futures = [add.submit(1) for add in adds]

        group.let_commit(2)
        group.copy(LEADER, *MEMBERS)
        sim.crash(LEADER)

        assert sorted(future.result() for future in futures) == [2, 3]
        assert adds[1](1) == 4


@WAYS
def test_calls_in_doubt_at_a_deposed_leader_are_sent_on_as_further_attempts(
    way: str,
) -> None:
    with cluster() as sim:
        join(sim)
        group = Group(sim)
        adds = group.adds_by(way)
        assert adds[0](1) == 1
        sim.run(1.0)
        leader = sim.peers[LEADER].loop
        calls: list[tuple[Any, Any]] = []
        on_call = leader._messages[Call]

        def keeping(session: Any, message: Any) -> None:
            calls.append((session, message))
            on_call(session, message)

        # It commits, and is deposed before it hears that a majority has it.
        leader._messages[Call] = keeping
        answer_again = drop_replies(sim.peers[LEADER])
        futures = [add.submit(1) for add in adds]
        group.let_commit(2)
        sim.run(0.1)
        group.copy(LEADER, *MEMBERS)
        group.lead("peer-3")

        for session, message in calls[:]:  # They come here again.
            origin = Client(session.session_id, message.sequence)
            leader.moving.send_on(effects.SendOn(origin, message, may_have_run=True))

        assert sorted(future.result() for future in futures) == [2, 3]
        answer_again()
        assert adds[1](1) == 4


def test_a_copy_whose_name_is_old_does_not_say_that_it_has_it() -> None:
    with cluster() as sim:
        join(sim)
        group = Group(sim, alias="old")
        leader = sim.peers[LEADER]
        rename = Change(group.object_id, alias="new", is_rename=True)
        assert leader.engine.commit([rename]) == [None]
        leader.loop.naming.free("old", group.object_id)
        leader.loop.naming.held(group.object_id)
        sim.run(5.0)

        for name in sim.peers:
            assert remote.id_of(sim.client(name).get("new")) == group.object_id
            with pytest.raises(AliasNotFoundError):
                sim.client(name).get("old")


def test_an_object_is_listed_and_counted_where_it_is_led() -> None:
    with cluster() as sim:
        join(sim)
        group = Group(sim, alias="hits")
        for name in sim.peers:
            (row,) = sim.client(name).objects()
            assert (row["peer"], row["alias"]) == (LEADER, "hits")
            about = sim.client(name).request("status")
            assert about["storage"]["objects"] == int(name == LEADER)

        group.lead("peer-3")

        (row,) = sim.client(STRANGER).objects()
        assert row["peer"] == "peer-3"
        about = sim.client(LEADER).request("status")
        assert about["storage"]["objects"] == 0


def test_a_name_is_found_at_every_peer_and_after_the_death_of_its_holder() -> None:
    with cluster() as sim:
        join(sim)
        group = Group(sim, alias="hits")
        for name in sim.peers:
            assert remote.id_of(sim.client(name).get("hits")) == group.object_id
        group.copy(LEADER, *MEMBERS)
        group.hook_all(group.take_over)
        sim.crash(LEADER)

        asker = sim.client(STRANGER)
        assert asker.get("hits").add.options(direct=False)(1) == 1
        sim.run(60.0)  # The dead leader is known to be.

        place = sim.peers[STRANGER].loop.location.place_of(group.object_id)
        assert place is not None
        for name in (*MEMBERS, STRANGER, "peer-5"):
            assert remote.id_of(sim.client(name).get("hits")) == group.object_id
            claim = claim_of(sim.peers[name].engine, "hits")
            assert claim is None or claim.holder == place.peer_id, name
        with pytest.raises(AliasExistsError):
            asker.create(COUNTER, alias="hits")


def test_a_follower_tells_nobody_that_it_has_the_name_of_its_copy() -> None:
    """Else two holders of one name would dispute it after every change of peers."""
    with cluster() as sim:
        join(sim)
        group = Group(sim, alias="hits")
        sim.crash("peer-5")
        sim.run(60.0)  # Others keep the name now: they were told anew.
        sim.restart("peer-5")
        sim.run(30.0)

        leader = group.id_of(LEADER)
        claims = [claim_of(peer.engine, "hits") for peer in sim.peers.values()]
        assert {claim.holder for claim in claims if claim is not None} == {leader}
        assert remote.id_of(sim.client("peer-5").get("hits")) == group.object_id


def test_a_witness_names_who_leads_and_is_not_asked_to() -> None:
    with cluster() as sim:
        join(sim)
        group = Group(sim, "peer-5")
        witness = sim.peers["peer-5"].loop
        witness.places.followed(group.object_id, group.place(LEADER), is_witness=True)
        counter = sim.client("peer-5").get(group.object_id)
        assert counter.add.options(direct=False)(1) == 1
        group.copy(LEADER, *MEMBERS)
        group.hook_all(group.take_over)
        group.hook("peer-5", lambda: pytest.fail("a witness cannot lead"))
        sim.crash(LEADER)

        assert counter.add.options(direct=False)(1) == 2
