"""What docs/explanation/consistency.md promises of objects with copies, line by line.

Each test is one situation of the table in reliability.md 3.8: so many copies, so many
away, and what then works, what is refused, and what is kept.

Rules of this file: whole peers under virtual time; a promise is tested by what clients
see. Tests are named after the line of the page that they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from activestore import remote
from activestore.errors import ActiveStoreError, NoQuorumError
from activestore.ids import ObjectId
from activestore.testing import (
    Counter as CounterModel,
)
from activestore.testing import (
    Faults,
    History,
    Simulation,
    check_linearizable,
    seeds,
)
from tests.simulation.clusters import COUNTER, join
from tests.simulation.models import Counter

# Who cannot get through is told within this, whatever became of its peers.
TOLD_S_MAX = 30.0
# A peer that is lost is suspected, and another goes on: design section 8.
TAKEOVER_S_MAX = 8.0
# What a copy may be behind in a calm cluster.
CALM_S = 2.0


def peers_of(count: int) -> list[str]:
    """Return the names of so many peers."""
    return [f"peer-{n}" for n in range(1, count + 1)]


def make(sim: Simulation, replicas: int, *, witness: bool = False) -> ObjectId:
    """Make a counter led by peer-1, with copies at the next ones."""
    join(sim)
    counter = sim.client("peer-1").create(COUNTER, replicas=replicas, witness=witness)
    object_id = remote.id_of(counter)
    assert object_id is not None
    return object_id


def at(sim: Simulation, peer: str, object_id: ObjectId) -> Any:
    """Return the object as a client of one peer sees it."""
    return sim.client(peer).get(object_id)


def holders(sim: Simulation, object_id: ObjectId) -> list[str]:
    """Return the names of the peers that have the state on disk."""
    return [
        peer.name
        for peer in sim.peers.values()
        if peer.is_up and peer.engine.head(object_id) is not None
    ]


def refused_within_s(sim: Simulation, do: Callable[[], object]) -> float:
    """Return how long it took until a call was refused for want of a majority."""
    begin_s = sim.now_s
    with pytest.raises(NoQuorumError):
        do()
    return sim.now_s - begin_s


def cut_off(sim: Simulation, side: Iterable[str]) -> None:
    """Let nothing get between these, with the clients that there are, and other peers.

    A client that reached other peers would go on with them.
    """
    inside = list(side)
    outside = [name for name in sim.peers if name not in inside]
    sim.partition([*inside, *(client.name for client in sim.clients)], outside)


# -- three copies ----------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["peer-1", "peer-2"], ids=["leader", "follower"])
def test_three_copies_with_one_down_are_written_and_read(lost: str) -> None:
    with Simulation(1, peers=3, classes=[Counter]) as sim:
        object_id = make(sim, 3)
        at(sim, "peer-1", object_id).add()
        sim.crash(lost)
        other = at(sim, "peer-3", object_id)
        begin_s = sim.now_s

        assert other.add() == 2
        assert other.peek() == 2
        assert sim.now_s - begin_s < TAKEOVER_S_MAX


def test_three_copies_are_read_stale_at_any_replica_with_version_and_age() -> None:
    with Simulation(2, peers=3, classes=[Counter]) as sim:
        object_id = make(sim, 3)
        at(sim, "peer-1", object_id).add(7)
        sim.run(CALM_S)
        for name in peers_of(3):
            read = at(sim, name, object_id).peek.options(staleness_s=60.0)
            value, info = read.with_info()

            assert (value, info.peer) == (7, name)
            assert info.version == 2
            assert 0.0 <= info.age_s <= 60.0


def test_three_copies_survive_the_loss_of_any_one_disk() -> None:
    for lost in peers_of(3):
        with Simulation(3, peers=3, classes=[Counter]) as sim:
            object_id = make(sim, 3)
            assert at(sim, "peer-1", object_id).add(5) == 5
            sim.crash(lost, disk=False)
            left = next(name for name in peers_of(3) if name != lost)

            assert at(sim, left, object_id).peek() == 5


def test_three_copies_survive_a_power_cut_of_all_at_once() -> None:
    with Simulation(4, peers=3, classes=[Counter]) as sim:
        object_id = make(sim, 3)
        assert [at(sim, "peer-1", object_id).add() for _ in range(4)] == [1, 2, 3, 4]
        for name in peers_of(3):
            sim.crash(name)
        sim.run(1.0)
        for name in peers_of(3):
            sim.restart(name)

        assert at(sim, "peer-2", object_id).add() == 5


@pytest.mark.parametrize("how", ["two down", "cut off"])
def test_minority_of_three_is_refused_within_the_deadline(how: str) -> None:
    with Simulation(5, peers=3, classes=[Counter]) as sim:
        object_id = make(sim, 3)
        counter = at(sim, "peer-1", object_id)
        assert counter.add() == 1
        if how == "two down":
            sim.crash("peer-2")
            sim.crash("peer-3")
        else:
            cut_off(sim, ["peer-1"])

        for timeout_s in (3.0, 20.0, 3.0):
            deadline = counter.add.options(timeout_s=timeout_s)
            assert refused_within_s(sim, deadline) <= timeout_s
        assert refused_within_s(sim, counter.add) <= TOLD_S_MAX
        assert refused_within_s(sim, counter.peek) <= TOLD_S_MAX


def test_deadline_that_passes_while_a_majority_is_waited_for_is_no_proof() -> None:
    with Simulation(1, peers=3, classes=[Counter]) as sim:
        counter = at(sim, "peer-1", make(sim, 3))
        assert counter.add() == 1
        for name in ("peer-2", "peer-3"):
            sim.pause(name)

        with pytest.raises(NoQuorumError, match="may be found kept"):
            counter.add.options(timeout_s=2.0)(10)
        for name in ("peer-2", "peer-3"):
            sim.resume(name)
        sim.run(CALM_S)

        assert counter.peek() == 11


def test_minority_of_three_reads_stale_and_the_age_grows() -> None:
    with Simulation(6, peers=3, classes=[Counter]) as sim:
        object_id = make(sim, 3)
        at(sim, "peer-1", object_id).add(3)
        sim.run(CALM_S)
        cut_off(sim, ["peer-3"])
        at(sim, "peer-1", object_id).add(1)
        read = at(sim, "peer-3", object_id).peek.options(staleness_s=600.0)
        sim.run(20.0)
        value, info = read.with_info()
        sim.run(20.0)
        again, later = read.with_info()

        assert (value, again) == (3, 3)
        assert info.age_s >= 15.0
        assert 15.0 <= later.age_s - info.age_s <= 25.0


@pytest.mark.parametrize("how", ["two down", "cut off"])
def test_minority_that_restarts_reads_stale_and_counts_the_time_away(how: str) -> None:
    with Simulation(26, peers=3, classes=[Counter]) as sim:
        object_id = make(sim, 3)
        assert at(sim, "peer-1", object_id).add(3) == 3
        begin_s = sim.now_s
        counter = at(sim, "peer-3", object_id)
        if how == "two down":
            sim.crash("peer-1")
            sim.crash("peer-2")
        else:
            cut_off(sim, ["peer-3"])
        sim.run(5.0)
        sim.crash("peer-3")
        sim.run(30.0)
        sim.restart("peer-3")

        value, info = counter.peek.options(staleness_s=600.0).with_info()

        assert (value, info.version, info.peer) == (3, 2, "peer-3")
        assert info.age_s >= 35.0
        assert info.age_s <= sim.now_s - begin_s + 1.0
        refused_within_s(sim, counter.peek.options(staleness_s=30.0))
        refused_within_s(sim, counter.peek)


def test_minority_that_restarts_with_a_clock_that_went_back_answers_no_old_read() -> (
    None
):
    with Simulation(26, peers=3, classes=[Counter]) as sim:
        object_id = make(sim, 3)
        assert at(sim, "peer-1", object_id).add(3) == 3
        counter = at(sim, "peer-3", object_id)
        for name in peers_of(3):
            sim.crash(name)
        sim.run(30.0)
        sim.set_clock("peer-3", skew_s=-3600.0)
        sim.restart("peer-3")

        refused_within_s(sim, counter.peek.options(staleness_s=1e6))


def test_clock_that_is_set_back_while_a_copy_runs_does_not_make_it_younger() -> None:
    with Simulation(26, peers=3, classes=[Counter]) as sim:
        sim.set_clock("peer-3", skew_s=180.0)
        object_id = make(sim, 3)
        assert at(sim, "peer-1", object_id).add(3) == 3
        sim.run(5.0)
        sim.set_clock("peer-3", skew_s=0.0)
        sim.run(5.0)
        counter = at(sim, "peer-3", object_id)
        cut_off(sim, ["peer-3"])
        begin_s = sim.now_s
        sim.run(200.0)
        sim.crash("peer-3")
        sim.restart("peer-3")

        _, info = counter.peek.options(staleness_s=1e6).with_info()

        assert info.age_s >= sim.now_s - begin_s - 1.0
        refused_within_s(sim, counter.peek.options(staleness_s=100.0))


def test_minority_that_comes_back_has_lost_nothing_and_added_nothing() -> None:
    with Simulation(7, peers=3, classes=[Counter]) as sim:
        object_id = make(sim, 3)
        counter = at(sim, "peer-1", object_id)
        assert counter.add() == 1
        cut_off(sim, ["peer-1"])
        refused_within_s(sim, counter.add)
        assert at(sim, "peer-2", object_id).add() == 2
        sim.heal()
        sim.run(20.0)

        # What was refused may count or not, and counts for all alike.
        seen = {at(sim, name, object_id).peek() for name in peers_of(3)}
        assert len(seen) == 1
        assert seen <= {2, 3}


# -- five copies -----------------------------------------------------------------------


def test_five_copies_with_two_down_are_written_and_read() -> None:
    with Simulation(8, peers=5, classes=[Counter]) as sim:
        object_id = make(sim, 5)
        at(sim, "peer-1", object_id).add()
        sim.crash("peer-1")
        sim.crash("peer-2")
        other = at(sim, "peer-5", object_id)

        assert other.add() == 2
        assert other.peek() == 2


def test_five_copies_survive_the_loss_of_two_disks() -> None:
    with Simulation(9, peers=5, classes=[Counter]) as sim:
        object_id = make(sim, 5)
        assert at(sim, "peer-1", object_id).add(5) == 5
        sim.crash("peer-1", disk=False)
        sim.crash("peer-3", disk=False)

        assert at(sim, "peer-4", object_id).peek() == 5


def test_five_copies_with_three_down_refuse() -> None:
    with Simulation(10, peers=5, classes=[Counter]) as sim:
        object_id = make(sim, 5)
        at(sim, "peer-1", object_id).add()
        for name in ("peer-1", "peer-2", "peer-3"):
            sim.crash(name)
        other = at(sim, "peer-5", object_id)

        assert refused_within_s(sim, other.add) <= TOLD_S_MAX


@pytest.mark.parametrize("left", ["peer-1", "peer-5"], ids=["leader", "follower"])
@pytest.mark.parametrize("is_busy", [True, False], ids=["busy", "idle"])
def test_five_copies_keep_what_is_heard_later_with_the_next_write(
    left: str, is_busy: bool
) -> None:
    with Simulation(27, peers=5, classes=[Counter]) as sim:
        object_id = make(sim, 5)
        other = sim.client("peer-2").create(COUNTER, replicas=5)
        sim.run(CALM_S)
        assert at(sim, "peer-1", object_id).add(3) == 3
        sim.run(CALM_S)
        if is_busy:
            other.add()
            sim.run(CALM_S)
        counter = at(sim, left, object_id)
        for name in peers_of(5):
            sim.crash(name)
        sim.run(30.0)
        sim.restart(left)
        read = counter.peek.options(staleness_s=600.0)

        if not is_busy:
            refused_within_s(sim, read)
            return
        value, info = read.with_info()
        assert (value, info.version, info.peer) == (3, 2, left)
        assert info.age_s >= 30.0


def test_five_copies_tell_the_age_of_what_a_leader_knew_that_is_cut_off() -> None:
    """It teaches a copy that comes back to it; the others have gone on."""
    with Simulation(28, peers=5, classes=[Counter]) as sim:
        object_id = make(sim, 5)
        sim.run(CALM_S)
        sim.crash("peer-5")
        assert at(sim, "peer-1", object_id).add(3) == 3
        sim.run(CALM_S)
        client = sim.client("peer-2")
        others = ["peer-2", "peer-3", "peer-4", client.name]
        sim.partition(["peer-1", "peer-5"], others)
        assert client.get(object_id).add(1) == 4
        sim.run(30.0)
        sim.restart("peer-5")
        sim.run(CALM_S)

        counter = sim.client("peer-5").get(object_id)
        value, info = counter.peek.options(staleness_s=600.0).with_info()

        assert (value, info.peer) == (3, "peer-5")
        assert info.age_s >= 30.0


# -- two copies ------------------------------------------------------------------------


def test_two_copies_are_both_written_before_the_answer() -> None:
    with Simulation(11, peers=2, classes=[Counter]) as sim:
        object_id = make(sim, 2)
        assert at(sim, "peer-2", object_id).add(5) == 5
        versions = [peer.engine.head(object_id) for peer in sim.peers.values()]

        assert [head.version for head in versions if head] == [2, 2]
        assert at(sim, "peer-2", object_id).peek() == 5


@pytest.mark.parametrize("lost", ["peer-1", "peer-2"])
def test_two_copies_with_one_down_refuse_and_are_read_stale(lost: str) -> None:
    with Simulation(12, peers=2, classes=[Counter]) as sim:
        object_id = make(sim, 2)
        at(sim, "peer-1", object_id).add(5)
        sim.run(CALM_S)
        sim.crash(lost)
        (left,) = (name for name in peers_of(2) if name != lost)
        counter = at(sim, left, object_id)

        assert refused_within_s(sim, counter.peek) <= TOLD_S_MAX
        assert counter.peek.options(staleness_s=600.0)() == 5
        assert refused_within_s(sim, counter.add) <= TOLD_S_MAX


def test_copy_with_a_change_in_doubt_answers_no_old_read() -> None:
    """What it has on disk may never be committed; what was before it is not there."""
    with Simulation(12, peers=2, classes=[Counter]) as sim:
        object_id = make(sim, 2)
        at(sim, "peer-1", object_id).add(5)
        sim.run(CALM_S)
        sim.crash("peer-2")
        counter = at(sim, "peer-1", object_id)
        refused_within_s(sim, counter.add)

        refused_within_s(sim, counter.peek.options(staleness_s=600.0))
        sim.restart("peer-2")
        sim.run(30.0)
        assert counter.peek() in {5, 6}


def test_forced_copy_goes_on_and_the_old_one_is_quarantined() -> None:
    with Simulation(13, peers=2, classes=[Counter]) as sim:
        object_id = make(sim, 2)
        at(sim, "peer-1", object_id).add(5)
        sim.crash("peer-1")
        client = sim.client("peer-2")
        counter = client.get(object_id)
        refused_within_s(sim, counter.add)

        client.request("force", object_id=object_id)
        assert counter.add() == 6
        sim.restart("peer-1")
        sim.run(60.0)

        # The other side is not called, and not dropped.
        assert at(sim, "peer-1", object_id).add() == 7
        old = sim.peers["peer-1"].engine
        assert old.head(object_id) is not None
        here = sim.client("peer-1").request("group", object_id=object_id)
        assert here["is_quarantined"]
        assert (
            sim.client("peer-2").request("group", object_id=object_id)["lineage"] != 0
        )


# -- two copies and a witness ----------------------------------------------------------


def make_witnessed(sim: Simulation) -> tuple[ObjectId, str, str]:
    """Return an object that peer-1 leads, who has its other copy, and its witness."""
    object_id = make(sim, 2, witness=True)
    at(sim, "peer-1", object_id).add()
    second = next(name for name in holders(sim, object_id) if name != "peer-1")
    (witness,) = set(peers_of(3)) - set(holders(sim, object_id))
    return object_id, second, witness


def test_witness_has_no_state() -> None:
    with Simulation(14, peers=3, classes=[Counter]) as sim:
        object_id = make(sim, 2, witness=True)
        at(sim, "peer-1", object_id).add()

        assert len(holders(sim, object_id)) == 2


@pytest.mark.parametrize("lost", peers_of(3))
def test_two_copies_and_a_witness_with_one_down_are_written_and_read(lost: str) -> None:
    with Simulation(15, peers=3, classes=[Counter]) as sim:
        object_id = make(sim, 2, witness=True)
        at(sim, "peer-1", object_id).add()
        sim.crash(lost)
        left = next(name for name in reversed(peers_of(3)) if name != lost)
        counter = at(sim, left, object_id)

        assert counter.add() == 2
        assert counter.peek() == 2


def test_stale_copy_and_a_witness_refuse_rather_than_go_back() -> None:
    """The witness knows that there is something newer than what is left."""
    with Simulation(16, peers=3, classes=[Counter]) as sim:
        object_id, second, witness = make_witnessed(sim)
        sim.crash(second)
        assert at(sim, witness, object_id).add() == 2
        sim.crash("peer-1", disk=False)
        sim.restart(second)
        sim.run(15.0)
        counter = at(sim, second, object_id)

        assert refused_within_s(sim, counter.add) <= TOLD_S_MAX
        assert refused_within_s(sim, counter.peek) <= TOLD_S_MAX


def test_leader_lost_in_a_change_leaves_a_copy_that_leads() -> None:
    """What the copy has not got yet is not acknowledged, and no witness knows of it."""
    with Simulation(18, peers=3, classes=[Counter]) as sim:
        object_id, second, witness = make_witnessed(sim)
        sim.run(2.0)
        sim.partition("peer-1", second)
        answer = at(sim, "peer-1", object_id).add.submit()
        sim.run(0.5)
        assert not answer.done()
        sim.crash("peer-1", disk=False)

        assert at(sim, witness, object_id).add() in (2, 3)
        assert answer.result() in (2, 3), "it is asked again by another peer"


# -- one copy --------------------------------------------------------------------------


def test_one_copy_waits_for_nobody_else() -> None:
    with Simulation(17, peers=3, classes=[Counter]) as sim:
        object_id = make(sim, 1)
        counter = at(sim, "peer-1", object_id)
        cut_off(sim, ["peer-1"])
        sim.run(20.0)

        assert counter.add() == 1
        assert counter.peek() == 1
        sim.crash("peer-1")
        sim.restart("peer-1")
        assert at(sim, "peer-1", object_id).peek() == 1


# -- a site that is cut off ------------------------------------------------------------


def test_site_with_the_majority_serves_while_it_is_cut_off() -> None:
    with Simulation(18, peers=3, classes=[Counter]) as sim:
        object_id = make(sim, 3)
        edge, cloud = ("peer-1", "peer-2"), "peer-3"
        at(sim, cloud, object_id).add()
        sim.run(CALM_S)
        cut_off(sim, edge)
        sim.run(20.0)

        assert at(sim, "peer-2", object_id).add() == 2
        assert refused_within_s(sim, at(sim, cloud, object_id).add) <= TOLD_S_MAX
        assert at(sim, cloud, object_id).peek.options(staleness_s=600.0)() == 1


# -- reads that may be old -------------------------------------------------------------


def test_read_with_a_bound_is_sent_on_where_the_copy_is_older() -> None:
    with Simulation(19, peers=3, classes=[Counter]) as sim:
        object_id = make(sim, 3)
        sim.run(30.0)  # Nobody has said anything about it for so long.
        at(sim, "peer-1", object_id).add(9)
        value, info = (
            at(sim, "peer-3", object_id).peek.options(staleness_s=0.001).with_info()
        )

        assert value == 9
        assert info.age_s <= 0.001


def test_client_never_sees_less_than_it_saw() -> None:
    """One copy is behind; a client that has seen more asks it and is not answered so."""
    with Simulation(20, peers=3, classes=[Counter]) as sim:
        object_id = make(sim, 3)
        sim.run(CALM_S)
        client = sim.client("peer-3")
        counter = client.get(object_id)
        sim.partition("peer-3", "peer-1")
        sim.partition("peer-3", "peer-2")
        behind = counter.peek.options(staleness_s=600.0)
        assert behind() == 0
        sim.heal()
        sim.run(5.0)
        assert counter.add(4) == 4
        sim.partition("peer-3", "peer-1", one_way=True)

        assert behind() == 4


# -- exactly once, and one order for all -----------------------------------------------


@pytest.mark.parametrize("seed", seeds(15))
def test_history_over_take_overs_is_linearizable_and_nothing_is_lost(seed: int) -> None:
    with Simulation(seed, peers=3, classes=[Counter]) as sim:
        object_id = make(sim, 3)
        history = History(lambda: sim.now_s)
        name = object_id.hex()

        def use(peer: str) -> None:
            client = sim.client(peer, *peers_of(3))
            counter = client.get(object_id)
            for _ in range(12):
                sim.sleep(sim.rng.uniform(0.0, 1.5))
                try:
                    if sim.rng.random() < 0.6:
                        history.call(client.name, name, "add", 1, counter.add)
                    else:
                        history.call(client.name, name, "read", None, counter.peek)
                except ActiveStoreError:
                    continue

        tasks = [sim.spawn(use, peer) for peer in peers_of(3)]
        sim.inject(
            Faults(crashes_per_s=0.15, breaks_per_s=0.3, pauses_per_s=0.1,
                   pause_s=3.0, partitions_per_s=0.15, partition_s=4.0),
            15.0,
        )  # fmt: skip
        assert sim.run_until(lambda: all(t.is_over for t in tasks), timeout_s=900.0)
        sim.run(60.0)
        history.call("last", name, "read", None, at(sim, "peer-2", object_id).peek)

        answer = check_linearizable(history.operations, CounterModel())
        assert answer.is_linearizable, str(answer)
        assert any(o.call == "add" and o.result for o in history.operations)
