"""Reads that may see an older state, at peers that only follow an object.

Source: reliability.md 3.8 (bounded staleness, monotonic per client); schemas/protocol.md
section 4.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from activestore.core.effects import Saw
from activestore.errors import ActiveStoreError, InvalidRequestError, NoQuorumError
from activestore.ids import ObjectId
from activestore.testing import Simulation
from tests.simulation.clusters import COUNTER, join
from tests.simulation.models import Counter
from tests.simulation.test_replicas import id_of


@pytest.fixture
def sim() -> Iterator[Simulation]:
    """Three peers that know each other."""
    with Simulation(11, peers=3, classes=[Counter]) as simulation:
        join(simulation)
        yield simulation


@pytest.fixture
def object_id(sim: Simulation) -> ObjectId:
    """A counter at 5 that peer-1 leads and the others follow."""
    counter = sim.client("peer-1").create(COUNTER, replicas=3)
    assert counter.add(5) == 5
    sim.run(1.0)
    return id_of(counter)


def test_follower_answers_from_its_copy_and_says_so(
    sim: Simulation, object_id: ObjectId
) -> None:
    peek = sim.client("peer-2").get(object_id).peek

    value, info = peek.options(staleness_s=60).with_info()
    newest, of_leader = peek.with_info()

    assert (value, info.peer) == (5, "peer-2")
    assert 0.0 <= info.age_s <= 60.0
    assert (newest, of_leader.peer, of_leader.age_s) == (5, "peer-1", 0.0)
    assert info[:3] == of_leader[:3], "version, epoch and number are of one state"


def test_copy_that_was_vouched_for_too_long_ago_is_not_read(
    sim: Simulation, object_id: ObjectId
) -> None:
    sim.run(30.0)

    _, info = (
        sim.client("peer-2").get(object_id).peek.options(staleness_s=0.5).with_info()
    )

    assert info.peer == "peer-1"


def test_client_reads_what_it_has_written_whatever_it_allows(
    sim: Simulation, object_id: ObjectId
) -> None:
    counter = sim.client("peer-2").get(object_id)

    for expected in range(6, 26):
        assert counter.add() == expected
        assert counter.peek.options(staleness_s=60)() == expected


def test_writing_method_does_not_run_on_an_older_state(
    sim: Simulation, object_id: ObjectId
) -> None:
    for peer in ("peer-1", "peer-2"):
        counter = sim.client(peer).get(object_id)
        with pytest.raises(InvalidRequestError, match="staleness_s"):
            counter.add.options(staleness_s=60)(1)

    assert sim.client("peer-3").get(object_id).peek() == 5


def test_copy_that_is_cut_off_is_read_while_it_may_be_as_old(
    sim: Simulation, object_id: ObjectId
) -> None:
    client = sim.client("peer-2")
    counter = client.get(object_id)
    sim.partition(["peer-2", client.name], ["peer-1", "peer-3"])
    sim.run(10.0)

    value, info = counter.peek.options(staleness_s=60).with_info()

    assert (value, info.peer) == (5, "peer-2")
    assert info.age_s >= 9.0
    with pytest.raises(NoQuorumError):
        counter.peek.options(timeout_s=8.0)()


def test_next_read_sees_what_came_since(sim: Simulation, object_id: ObjectId) -> None:
    reader = sim.client("peer-2").get(object_id).peek.options(staleness_s=60)
    assert reader() == 5
    assert sim.client("peer-1").get(object_id).add(2) == 7
    sim.run(5.0)

    value, info = reader.with_info()

    assert (value, info.peer) == (7, "peer-2")


def test_leader_tells_what_is_committed_and_not_what_is_under_way(
    sim: Simulation, object_id: ObjectId
) -> None:
    """Who has seen a number that is taken back would find every copy too old."""
    loop = sim.peers["peer-1"].loop
    before = loop.reading.told(Saw(object_id, 2))
    sim.partition(["peer-1"], ["peer-2", "peer-3"])
    adder = sim.client("peer-1").get(object_id)

    def add() -> None:
        with pytest.raises(ActiveStoreError):
            adder.add()

    sim.spawn(add)
    sim.run(0.5)
    register = loop.replicating.core.register_of(object_id)
    assert register is not None
    assert register.number == before["number"] + 1, "it is on the leader's disk"
    assert loop.replicating.core.is_led(object_id)

    told = loop.reading.told(Saw(object_id, 2))

    assert told == before
    assert told["epoch"] == register.epoch.counter
    assert told["age_ms"] == 0


def test_object_without_copies_tells_of_itself_too(sim: Simulation) -> None:
    counter = sim.client("peer-1").create(COUNTER)
    counter.add(3)

    value, info = counter.peek.options(staleness_s=60).with_info()

    assert (value, info.peer, info.version, info.epoch) == (3, "peer-1", 2, 0)


def test_leader_that_was_just_cut_off_reads_stale_at_once() -> None:
    with Simulation(6, peers=3, classes=[Counter]) as sim:
        join(sim)
        client = sim.client("peer-1")
        counter = client.create(COUNTER, replicas=3)
        assert counter.add(3) == 3
        counter.peek()
        sim.partition(["peer-1", client.name], ["peer-2", "peer-3"])
        sim.run(1.0)
        begin_s = sim.now_s

        value, info = counter.peek.options(staleness_s=5.0).with_info()

        assert (value, info.peer) == (3, "peer-1")
        assert 1.0 <= info.age_s <= 1.1, "as long ago as it was sure of it"
        assert sim.now_s - begin_s < 0.1
        with pytest.raises(NoQuorumError):
            counter.peek.options(staleness_s=0.5, timeout_s=2.0)()
