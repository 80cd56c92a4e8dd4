"""Groups that lack a member get another one: by themselves, or at once when asked.

Source: issue 4, "Repair"; design section 8.
"""

from __future__ import annotations

import pytest

from activestore.errors import NoQuorumError
from activestore.testing import PeerSettings, Simulation
from tests.simulation.clusters import COUNTER, join
from tests.simulation.models import Counter
from tests.simulation.replica_clusters import id_of

# Longer than `repair_after_s`.
LONG_S = 700.0
# So many commits are refused that a disk is full for all of the test.
FOR_LONG = 10_000


def test_dead_member_is_replaced_though_all_others_restarted_at_once() -> None:
    """Nobody remembers it then: its group does."""
    with Simulation(1, peers=4, classes=[Counter]) as sim:
        join(sim)
        sim.run(3.0)
        client = sim.client("peer-1")
        counter = client.create(COUNTER, alias="x", replicas=3)
        assert counter.add() == 1
        dead = [one.peer for one in client.group(counter).members][1]
        for name in list(sim.peers):
            sim.crash(name)
        for name in sim.peers:
            if name != dead:
                sim.restart(name)

        sim.run(LONG_S)

        assert sim.client("peer-1").group(id_of(counter)).is_whole


def test_dead_member_is_waited_for_until_its_time_is_over() -> None:
    """A board that restarts would get all its copies anew."""
    settings = PeerSettings(repair_after_s=60.0)
    with Simulation(9, peers=4, classes=[Counter], settings=settings) as sim:
        join(sim)
        client = sim.client("peer-1")
        counter = client.create(COUNTER, replicas=3)
        members = {one.peer for one in client.group(counter).members}
        dead = max(members - {"peer-1"})
        sim.crash(dead)

        sim.run(55.0)
        assert {one.peer for one in client.group(counter).members} == members
        sim.run(30.0)
        assert dead not in {one.peer for one in client.group(counter).members}
        assert client.group(counter).is_whole


def test_same_number_again_replaces_the_dead_one_at_once() -> None:
    with Simulation(2, peers=4, classes=[Counter]) as sim:
        join(sim)
        client = sim.client("peer-1")
        counter = client.create(COUNTER, replicas=3)
        assert counter.add() == 1
        members = {one.peer for one in client.group(counter).members}
        dead = next(iter(sorted(members - {"peer-1"})))
        sim.crash(dead, disk=False)
        sim.run(30.0)

        group = client.replicate(counter, 3)

        assert group.is_whole
        assert dead not in {one.peer for one in group.members}
        assert counter.add() == 2


def test_copy_whose_disk_is_full_is_told_of_until_it_keeps_up_again() -> None:
    """Its peer answers, so nobody replaces it."""
    with Simulation(3, peers=3, classes=[Counter]) as sim:
        join(sim)
        client = sim.client("peer-1")
        counter = client.create(COUNTER, replicas=3)
        assert client.request("replication")["under"] == 0
        sim.refuse_commits("peer-2", FOR_LONG)
        assert counter.add() == 1
        sim.run(5.0)

        told = client.request("replication")
        group = client.group(counter)
        sim.refuse_commits("peer-2", 0)
        sim.run(60.0)

        (row,) = told["objects"]
        assert (told["under"], row["problem"], row["missing"]) == (1, "under", [])
        assert (row["copies"], row["wanted"], row["is_refused"]) == (2, 3, True)
        assert row["class_name"] == COUNTER
        assert row["reason"].startswith("peer-2: its disk is full")
        reasons = {one.peer: one.reason for one in group.members if one.reason}
        assert list(reasons) == ["peer-2"]
        assert not group.is_whole
        assert client.request("replication")["under"] == 0
        assert client.group(counter).is_whole


def test_copies_that_no_peer_takes_are_told_with_why() -> None:
    """What was asked for stays wanted, and asking again would be refused again."""
    with Simulation(4, peers=3, classes=[Counter]) as sim:
        join(sim)
        client = sim.client("peer-1")
        counter = client.create(COUNTER, replicas=2)
        (other,) = {one.peer for one in client.group(counter).members} - {"peer-1"}
        (full,) = {"peer-2", "peer-3"} - {other}
        sim.refuse_commits(full, FOR_LONG)

        with pytest.raises(NoQuorumError, match=f"{full}: its disk is full"):
            client.replicate(counter, 3)
        sim.run(10.0)
        (row,) = client.request("replication")["objects"]

        assert (row["copies"], row["wanted"], row["is_refused"]) == (2, 3, True)
        assert f"{full}: its disk is full" in row["reason"]
        client.replicate(counter, 2)
        assert client.request("replication")["under"] == 0


def test_copy_whose_disk_is_full_is_replaced_where_it_is_told_to_leave() -> None:
    with Simulation(5, peers=4, classes=[Counter]) as sim:
        join(sim)
        client = sim.client("peer-1")
        counter = client.create(COUNTER, replicas=3)
        full = sorted({one.peer for one in client.group(counter).members})[-1]
        sim.refuse_commits(full, FOR_LONG)
        assert counter.add() == 1
        sim.run(5.0)

        group = client.replicate(counter, 3, leaving=[full])

        assert (group.is_whole, group.copies) == (True, 3)
        assert full not in {one.peer for one in group.members}
        assert client.request("replication")["under"] == 0


def test_repair_that_waited_does_not_undo_what_an_operator_asked_for() -> None:
    """It is ordered while three are noted as wanted, and has its turn with four there."""
    settings = PeerSettings(repair_after_s=5.0)
    with Simulation(6, peers=5, classes=[Counter], settings=settings) as sim:
        join(sim)
        client = sim.client("peer-1")
        counter = client.create(COUNTER)
        client.replicate(counter, 3, peers=["peer-2", "peer-3"])
        for name in ("peer-3", "peer-4", "peer-5"):
            sim.crash(name)
        sim.run(60.0)
        loop = sim.peers["peer-1"].loop
        for name in ("peer-4", "peer-5"):
            sim.set_link("peer-1", name, min_s=0.3, mean_s=0.3)
            sim.restart(name)
        assert sim.run_until(lambda: len(loop.cluster.alive()) == 3, timeout_s=60.0)
        plans, repairing = loop.replicating.core._leaders._plans, loop.repairing

        def wanted() -> list[int]:
            return [plan.wanted for plan in plans.get(id_of(counter), ())]

        asked = sim.spawn(client.replicate, counter, 4)
        assert sim.run_until(lambda: 4 in wanted()[:1], timeout_s=30.0)
        assert client.group(counter).wanted == 3
        repairing._failed_s.clear()
        repairing.look(sim.now_s)
        assert sim.run_until(lambda: len(wanted()) == 2, timeout_s=0.1)
        assert sim.run_until(lambda: asked.is_over and not plans, timeout_s=60.0)

        group = client.group(counter)
        assert (group.copies, group.wanted) == (4, 4)
        assert "peer-3" not in {one.peer for one in group.members}
