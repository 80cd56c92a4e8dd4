"""What peers keep of orders and requests while leaders change under them.

Source: design section 8; reliability.md 3.4 R4; decision 11.
"""

from __future__ import annotations

import pytest

from activestore.core.register import Register
from activestore.core.replication import Replication
from activestore.core.replication_effects import Followed, Unshared
from activestore.core.replication_events import MessageCame, Touched
from activestore.core.troubles import TroubleKind
from activestore.errors import CancelledError, NoQuorumError, StorageFullError
from activestore.ids import ObjectId, PeerId
from activestore.testing import DiskSpeed, Latency, PeerSettings, Simulation
from activestore.testing.peers import SimPeer
from activestore.wire.replicas import Accept, Ballot, Config, Point
from tests.simulation.clusters import COUNTER, join
from tests.simulation.models import Counter, Letterbox
from tests.simulation.replica_clusters import (
    check_nothing_left,
    check_whole,
    id_of,
    leaders,
    register_at,
)

SLOW = DiskSpeed(commit=Latency(12.0, 12.001))


def test_leader_that_was_deposed_while_its_disk_wrote_follows_afterwards() -> None:
    """The core is told of a write that it has begun, though nobody waits for it."""
    with Simulation(1, peers=3, classes=[Counter]) as sim:
        join(sim)
        counter = sim.client("peer-1").create(COUNTER, replicas=3)
        object_id = id_of(counter)
        counter.add()
        sim.peers["peer-1"].storage.speed = SLOW
        future = counter.add.submit()
        sim.run(8.0)  # No majority has it after 5 s, for it is on no disk.
        sim.peers["peer-1"].storage.speed = DiskSpeed()
        assert future.result() == 2
        assert sim.client("peer-3").get(object_id).add() == 3
        check_whole(sim, {object_id: 3})
        check_nothing_left(sim)


def test_write_that_a_leaders_disk_refused_is_forgotten() -> None:
    with Simulation(2, peers=3, classes=[Counter]) as sim:
        join(sim)
        counter = sim.client("peer-1").create(COUNTER, replicas=3)
        counter.add()
        sim.run(5.0)
        sim.refuse_commits("peer-1", 1)
        with pytest.raises(StorageFullError):
            counter.add()
        check_nothing_left(sim)
        assert counter.peek() == 1


def test_state_that_its_leader_has_no_room_for_is_refused_and_the_object_lives_on() -> (
    None
):
    settings = PeerSettings(disk_budget_bytes=1 << 20)
    with Simulation(3, peers=3, classes=[Letterbox], settings=settings) as sim:
        join(sim)
        client = sim.client("peer-1")
        box = client.create(f"{Letterbox.__module__}.Letterbox", replicas=3)
        box.put(b"1" + bytes(1000))
        for _ in range(3):
            with pytest.raises(StorageFullError):
                box.put(b"2" + bytes(2 << 20))
            assert box.numbers() == [ord("1")]
        box.put(b"3" + bytes(1000))
        assert box.numbers() == list(b"13")
        sim.run(15.0)
        check_whole(sim, {id_of(box): 3})
        check_nothing_left(sim)


def test_object_lives_on_where_a_delete_was_given_up_and_its_peer_leaves() -> None:
    with Simulation(1, peers=5, classes=[Counter]) as sim:
        join(sim)
        client = sim.client("peer-1")
        counter = client.create(COUNTER)
        client.replicate(counter, 3, peers=["peer-1", "peer-2", "peer-3"])
        counter.add()
        other = sim.client("peer-4")
        theirs = other.get(id_of(counter))
        sim.partition(
            ["peer-1", client.name], [name for name in sim.peers if name != "peer-1"]
        )
        with pytest.raises(NoQuorumError):
            client.delete(counter)
        sim.crash("peer-1")
        sim.restart("peer-1")
        sim.run(10.0)
        assert theirs.add() == 2
        sim.heal()
        sim.run(30.0)

        other.replicate(theirs, 2, leaving=["peer-1"])

        sim.run(30.0)
        found = [sim.client(name).get(id_of(counter)).peek() for name in sim.peers]
        assert found == [2] * 5


def test_member_that_is_to_leave_lets_its_copy_go() -> None:
    with Simulation(4, peers=3, classes=[Counter]) as sim:
        join(sim)
        client = sim.client("peer-1")
        counter = client.create(COUNTER, replicas=3)
        client.replicate(counter, 2)
        sim.run(2.0)
        kept = [register_at(peer, id_of(counter)) for peer in sim.peers.values()]
        assert len([one for one in kept if one is not None]) == 2
        check_whole(sim, {id_of(counter): 2})


def test_witness_gets_the_state_and_a_member_is_witness_where_nobody_else_can() -> None:
    with Simulation(5, peers=3, classes=[Counter]) as sim:
        join(sim)
        client = sim.client("peer-1")
        counter = client.create(COUNTER, replicas=2, witness=True)
        client.replicate(counter, 3, witness=False)
        assert counter.add() == 1
        check_whole(sim, {id_of(counter): 3})
        client.replicate(counter, 2, witness=True)
        assert counter.add() == 2
        check_whole(sim, {id_of(counter): 2})


def test_object_that_is_moving_gets_no_copies_before_it_is_there() -> None:
    """Where it goes would hold it alone, while a group of it began here."""
    with Simulation(6, peers=3, classes=[Counter]) as sim:
        join(sim)
        client = sim.client("peer-1")
        counter = client.create(COUNTER)
        sim.pause("peer-3")  # The copy does not arrive yet.
        move = sim.spawn(sim.client("peer-1").move, counter, "peer-3")
        sim.run(0.1)
        with pytest.raises(NoQuorumError, match="it is moving"):
            client.replicate(counter, 2, peers=["peer-2"])
        sim.resume("peer-3")
        sim.run_until(lambda: move.is_over, timeout_s=60.0)
        assert [p.name for p in leaders(sim, id_of(counter))] == ["peer-3"]
        client.replicate(counter, 2)
        assert counter.add() == 1
        check_whole(sim, {id_of(counter): 2})


def test_copy_that_nobody_told_to_go_goes_after_a_while() -> None:
    """Who led when it left died before it was told, and was back before that was seen."""
    settings = PeerSettings(repair_after_s=10.0)
    with Simulation(7, peers=4, classes=[Counter], settings=settings) as sim:
        join(sim)
        client = sim.client("peer-1")
        counter = client.create(COUNTER, replicas=4)
        object_id = id_of(counter)
        sim.run(1.0)
        for name in ("peer-1", "peer-2", "peer-3"):
            sim.partition(name, "peer-4")
        client.replicate(counter, 3, leaving=["peer-4"])
        sim.crash("peer-1")
        sim.heal()
        sim.restart("peer-1")
        sim.run(30.0)
        assert register_at(sim.peers["peer-4"], object_id) is not None
        check_whole(sim, {object_id: 3})


@pytest.mark.parametrize("then", ["move", "grow", "delete"])
def test_register_that_a_full_disk_kept_leads_no_other_group(then: str) -> None:
    with Simulation(10, peers=3, classes=[Counter]) as sim:
        join(sim)
        client, peer = sim.client("peer-1"), sim.peers["peer-1"]
        counter = client.create(COUNTER, replicas=2)
        object_id = id_of(counter)
        assert counter.add() == 1
        carry_out = peer.loop.replicating._effects[Unshared]

        told: list[int] = []

        def refuse(effect: Unshared) -> None:
            told.append(effect.counter)
            sim.refuse_commits("peer-1", 1)
            carry_out(effect)

        peer.loop.replicating._effects[Unshared] = refuse
        client.replicate(counter, 1)
        sim.run(0.2)
        assert register_at(peer, object_id) is not None
        if then == "move":
            client.move(counter, "peer-3")
            assert client.locate(counter)["epoch"] > told[0]
        elif then == "grow":
            group = client.replicate(counter, 2)
            assert group.config_version > 4, "versions grow over all registers"
        else:
            client.delete(counter)
        sim.run(5.0)
        sim.crash("peer-1")
        sim.restart("peer-1")
        if then != "grow":
            assert sim.peers["peer-1"].engine.row("register", object_id) is None
        sim.run(15.0)

        if then != "delete":
            assert sim.client("peer-2").get(object_id).add() == 2
            assert len(leaders(sim, object_id)) == 1


def test_copy_that_a_full_disk_kept_goes_when_there_is_room() -> None:
    with Simulation(9, peers=3, classes=[Counter]) as sim:
        join(sim)
        client = sim.client("peer-1")
        counter = client.create(COUNTER, replicas=3)
        object_id = id_of(counter)
        full: list[str] = []

        def fill(peer: SimPeer) -> None:
            is_out = peer.loop.replicating.core.register_of(object_id) is None
            if is_out and not full:
                full.append(peer.name)
                sim.refuse_commits(peer.name, 3)

        sim.checks.append(fill)
        client.replicate(counter, 2)
        sim.run(0.3)
        assert register_at(sim.peers[full[0]], object_id) is not None
        check_whole(sim, {object_id: 2})
        check_nothing_left(sim)


def test_group_gets_as_small_as_it_was_wanted_though_its_leader_died() -> None:
    settings = PeerSettings(repair_after_s=10.0)
    with Simulation(10, peers=3, classes=[Counter], settings=settings) as sim:
        join(sim)
        client = sim.client("peer-1")
        counter = client.create(COUNTER, replicas=3)
        object_id = id_of(counter)
        ended: list[str] = []

        def end(peer: SimPeer) -> None:
            register = peer.loop.replicating.core.register_of(object_id)
            if register is None or ended or peer.name == "peer-1":
                return
            config = register.config
            if config.wanted != 1 or config.before:
                return  # Its first step is not done.
            ended.append("peer-1")
            sim.agenda.later(0.0, lambda: sim.crash("peer-1"))

        sim.checks.append(end)
        operator = sim.client("peer-1")

        def shrink() -> None:
            with pytest.raises(CancelledError):
                operator.replicate(counter, 1)

        task = sim.spawn(shrink)
        sim.run(1.0)
        operator.close()  # Nobody asks again.
        sim.restart("peer-1")
        check_whole(sim, {object_id: 1})
        assert task.is_over


def test_peer_with_a_new_disk_at_an_old_address_may_vote() -> None:
    """What others remember is of the peer that was there before."""
    with Simulation(8, peers=3, classes=[Counter]) as sim:
        join(sim)
        sim.run(5.0)
        sim.crash("peer-3", disk=False)
        sim.run(1.0)
        sim.restart("peer-3")
        sim.run(30.0)
        troubles = sim.peers["peer-3"].loop.troubles
        assert not troubles.reasons(TroubleKind.DISK)
        counter = sim.client("peer-1").create(COUNTER, replicas=3)
        assert counter.add() == 1
        check_whole(sim, {id_of(counter): 3})


def test_client_at_a_witness_learns_what_an_object_can_do() -> None:
    with Simulation(3, peers=3, classes=[Counter]) as sim:
        join(sim)
        counter = sim.client("peer-1").create(COUNTER, replicas=2, witness=True)
        sim.run(1.0)
        for name in sim.peers:
            assert sim.client(name).get(id_of(counter)).add() > 0


ME, LEADER, OTHER = (PeerId(name * 6) for name in (b"a", b"b", b"c"))
OBJECT = ObjectId(b"o" * 16)


def test_whoever_waits_for_a_leader_is_told_when_the_known_one_is_heard() -> None:
    """It was asked whether it leads still; a write of it comes before the answer."""
    epoch = Ballot(3, LEADER)
    config = Config(4, (ME, LEADER, OTHER))
    core = Replication(ME, None, lambda: 0.5)
    core.restore(OBJECT, Register(epoch, epoch, 7, config))
    again = Accept(OBJECT, epoch, 7, Point(3, 6), config, False, 7, False, None)
    core.step(MessageCame(LEADER, again), 1.0)
    assert core.leader_of(OBJECT) == epoch

    core.step(Touched(OBJECT), 2.0)
    found = core.step(MessageCame(LEADER, again), 2.1)

    told = [one.leader for one in found if type(one) is Followed]
    assert told == [LEADER]
