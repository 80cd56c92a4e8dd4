"""What a disk forgot is brought back from the other members, and nothing acknowledged goes.

Source: reliability.md 4.2 (scrub, repair from peers), 3.7.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from activestore.core.register import unpack_register
from activestore.errors import CorruptRecordError, NoQuorumError, UnavailableError
from activestore.ids import ObjectId
from activestore.storage.engine import Damage
from activestore.testing import Simulation
from activestore.testing.peers import SimPeer
from tests.simulation.clusters import COUNTER, SETTLE_S, Player, join
from tests.simulation.models import Counter
from tests.simulation.test_replicas import id_of, leaders

ALL = ("peer-1", "peer-2", "peer-3")
# The deadline of a call that no majority can answer.
REFUSED_S = 30.0


def spoil(
    sim: Simulation, name: str, object_id: ObjectId, table: str = "heads"
) -> None:
    """Flip a bit of what a disk has of an object."""
    key = bytes(object_id) if table == "heads" else b"register\x00" + object_id
    spoil_row(sim, name, table, key)


def spoil_row(sim: Simulation, name: str, table: str, key: bytes) -> None:
    engine = sim.peers[name].engine
    rows = sim.peers[name].disk.tables[table]
    spoilt = bytearray(rows[key])
    spoilt[len(spoilt) // 2] ^= 1
    rows[key] = bytes(spoilt)
    engine._documents.clear()


def damages(sim: Simulation, name: str) -> list[Damage]:
    return [one for one in sim.peers[name].engine.verify() if isinstance(one, Damage)]


def scrubbed(sim: Simulation, name: str) -> dict[str, Any]:
    """Have a peer read everything, and give it time for what follows from it."""
    scrubbing = sim.peers[name].loop.scrubbing
    scrubbing.begin()
    sim.run_until(lambda: not scrubbing.status()["is_running"], timeout_s=30.0)
    sim.run(30.0)
    return scrubbing.status()


@pytest.fixture
def shared() -> Any:
    with Simulation(11, peers=3, classes=[Counter]) as sim:
        join(sim)
        counter = sim.client("peer-1").create(COUNTER, replicas=3)
        assert [counter.add() for _ in range(3)] == [1, 2, 3]
        sim.run(2.0)
        assert leaders(sim, id_of(counter)) == ["peer-1"]
        yield sim, id_of(counter)


def test_damaged_copy_of_a_follower_is_brought_back(shared: Any) -> None:
    sim, object_id = shared
    spoil(sim, "peer-2", object_id)
    assert damages(sim, "peer-2")

    told = scrubbed(sim, "peer-2")

    assert damages(sim, "peer-2") == []
    assert (told["damaged"], told["repaired_count"]) == ([], 1)
    assert leaders(sim, object_id) == ["peer-1"]
    value = sim.peers["peer-2"].engine.row("register", object_id)
    assert not unpack_register(value).is_lost


def test_damaged_copy_of_the_leader_is_led_by_another_and_brought_back(
    shared: Any,
) -> None:
    sim, object_id = shared
    spoil(sim, "peer-1", object_id)

    told = scrubbed(sim, "peer-1")

    assert leaders(sim, object_id) in (["peer-2"], ["peer-3"])
    assert damages(sim, "peer-1") == []
    assert (told["damaged"], told["repaired_count"]) == ([], 1)
    assert sim.client("peer-1").get(object_id).add() == 4


@pytest.mark.parametrize("name", ALL)
def test_damage_that_a_call_meets_costs_no_call(shared: Any, name: str) -> None:
    """The call goes on at the next leader, and is run once."""
    sim, object_id = shared
    player = Player(sim, ["peer-3"], [object_id])
    task = sim.spawn(player.play, 40, 0.25)

    sim.run(3.0)
    spoil(sim, name, object_id)

    sim.run_until(lambda: task.is_over, timeout_s=60.0)
    assert player.errors == []
    assert player.values[object_id] == list(range(4, 44))
    assert damages(sim, name) == []


def test_damaged_copy_does_not_bring_an_older_state_back(shared: Any) -> None:
    """The one that is damaged remembers what it accepted: the one that slept must not lead."""
    sim, object_id = shared
    sim.partition(["peer-3"], ["peer-1", "peer-2"])
    counter = sim.client("peer-1").get(object_id)
    assert counter.add() == 4
    sim.run(2.0)
    sim.partition(["peer-1"], ["peer-2"])
    spoil(sim, "peer-2", object_id)
    scrubbed(sim, "peer-2")
    sim.crash("peer-1")
    sim.heal()

    sim.run(SETTLE_S)

    peers = [sim.peers[name] for name in ("peer-2", "peer-3")]
    assert all(len(peer.loop.cluster.alive()) == 1 for peer in peers)
    with pytest.raises(NoQuorumError):
        sim.client("peer-3").get(object_id).add.options(timeout_s=REFUSED_S)()
    assert leaders(sim, object_id) == []
    # Its client has asked peer-2 too, which may have it run until its deadline comes.
    sim.run(REFUSED_S)
    sim.restart("peer-1")
    sim.run(SETTLE_S)
    assert sim.client("peer-3").get(object_id).add() == 5


def test_damaged_register_is_written_anew(shared: Any) -> None:
    sim, object_id = shared
    for name in ("peer-1", "peer-2"):
        spoil(sim, name, object_id, "facts")

        told = scrubbed(sim, name)

        assert damages(sim, name) == []
        assert told["repaired_count"] == 1
    assert leaders(sim, object_id) == ["peer-1"]


def test_copy_whose_register_is_damaged_at_a_start_is_not_taken_for_the_object(
    shared: Any,
) -> None:
    sim, object_id = shared
    spoil(sim, "peer-2", object_id, "facts")
    sim.restart("peer-2")
    client = sim.client("peer-2")
    sim.partition(["peer-2", client.name], ["peer-1", "peer-3"])

    with pytest.raises(UnavailableError):
        client.get(object_id).add()

    assert sim.client("peer-1").get(object_id).add() == 4


def test_leader_whose_register_is_damaged_at_its_start_lets_another_lead(
    shared: Any,
) -> None:
    sim, object_id = shared
    spoil(sim, "peer-1", object_id, "facts")
    sim.restart("peer-1")
    sim.run(5.0)

    began_s = sim.now_s
    assert sim.client("peer-2").get(object_id).add() == 4

    assert sim.now_s - began_s < 1.0
    assert leaders(sim, object_id) != ["peer-1"]


def test_damage_that_is_met_when_a_copy_is_made_is_brought_back() -> None:
    """Else no copy could be made before the next scrubbing, in a week perhaps."""
    with Simulation(15, peers=3, classes=[Counter]) as sim:
        join(sim)
        counter = sim.client("peer-1").create(COUNTER, replicas=2, witness=False)
        assert counter.add() == 1
        object_id = id_of(counter)
        (leader,) = leaders(sim, object_id)
        peer = sim.peers[leader]
        key = next(k for k in peer.disk.tables["replies"] if k.startswith(object_id))
        spoil_row(sim, leader, "replies", key)

        client = sim.client("peer-1")
        with contextlib.suppress(NoQuorumError):  # Another one leads meanwhile.
            client.replicate(object_id, 3)
        client.replicate(object_id, 3)
        sim.run(5.0)

        assert [damages(sim, name) for name in ALL] == [[], [], []]
        tables = [one.engine.replies_of(object_id) for one in sim.peers.values()]
        assert tables[0] == tables[1] == tables[2]


def test_copy_with_a_damaged_register_goes_when_it_is_to_go(shared: Any) -> None:
    sim, object_id = shared
    leaver = sim.peers["peer-2"]

    def spoil_late(peer: SimPeer) -> None:
        is_out = leaver.loop.replicating.core.register_of(object_id) is None
        if is_out and leaver.engine.head(object_id) is not None:
            spoil(sim, "peer-2", object_id, "facts")
            sim.checks.remove(spoil_late)

    sim.checks.append(spoil_late)
    sim.client("peer-1").replicate(object_id, 2, leaving=["peer-2"])
    sim.run(2.0)

    assert sim.checks == []
    assert damages(sim, "peer-2") == []
    assert leaver.engine.head(object_id) is None


def test_answer_of_a_delete_is_at_every_member(shared: Any) -> None:
    """Who asks again, of whoever leads then, is told the same."""
    sim, object_id = shared
    client = sim.client("peer-2")
    proxy = client.get(object_id)
    for peer in sim.peers.values():
        assert len(peer.engine.replies_of(object_id)) >= 1
    before = {n: p.engine.replies_of(object_id) for n, p in sim.peers.items()}

    client.delete(proxy)
    sim.run(10.0)

    for name in ALL:
        engine = sim.peers[name].engine
        assert engine.head(object_id) is None
        assert engine.row("register", object_id) is None
        assert len(engine.replies_of(object_id)) == len(before[name]) + 1


def test_leader_of_two_copies_is_brought_back_from_the_other() -> None:
    """There is no majority without its vote, which a head that is damaged must not cost."""
    with Simulation(12, peers=2, classes=[Counter]) as sim:
        join(sim)
        counter = sim.client("peer-1").create(COUNTER, replicas=2)
        assert counter.add() == 1
        spoil(sim, "peer-1", id_of(counter))

        scrubbed(sim, "peer-1")

        assert leaders(sim, id_of(counter)) == ["peer-2"]
        assert damages(sim, "peer-1") == []
        assert counter.add() == 2


def test_change_in_doubt_that_only_a_damaged_copy_had_is_given_up() -> None:
    """No majority had it, and nobody else ever will: what was acknowledged goes on."""
    with Simulation(14, peers=2, classes=[Counter]) as sim:
        join(sim)
        counter = sim.client("peer-1").create(COUNTER, replicas=2)
        assert counter.add() == 1
        sim.partition("peer-1", "peer-2")
        with pytest.raises(NoQuorumError):
            counter.add.options(timeout_s=2.0)()
        spoil(sim, "peer-1", id_of(counter))
        scrubbed(sim, "peer-1")

        sim.heal()
        sim.run(SETTLE_S)

        assert sim.client("peer-2").get(id_of(counter)).add() in {2, 3}
        assert damages(sim, "peer-1") == []


def test_peer_starts_though_a_copy_is_damaged(shared: Any) -> None:
    sim, object_id = shared
    sim.crash("peer-2")
    spoil(sim, "peer-2", object_id)

    sim.restart("peer-2")
    sim.run(5.0)
    scrubbed(sim, "peer-2")

    assert damages(sim, "peer-2") == []
    assert sim.client("peer-2").get(object_id).add() == 4


def test_peer_starts_though_an_object_that_moved_here_is_damaged() -> None:
    """It costs that object, and no other one."""
    with Simulation(13, peers=2, classes=[Counter]) as sim:
        join(sim)
        client = sim.client("peer-1")
        lost, kept = client.create(COUNTER), client.create(COUNTER)
        for counter in (lost, kept):
            client.move(counter, "peer-2")
        sim.crash("peer-2")
        spoil(sim, "peer-2", id_of(lost))

        sim.restart("peer-2")
        join(sim)

        assert kept.add() == 1
        with pytest.raises(CorruptRecordError):
            lost.add()
