"""Membership in a seeded network: who finds whom, who misses whom, and how soon.

`ACTIVESTORE_SEEDS` scales the histories, as for the other cores.
"""

from __future__ import annotations

import os
import statistics

import pytest

from activestore.core.cluster_effects import SeedWanted
from activestore.core.cluster_events import (
    Joined,
    MessageArrived,
)
from activestore.core.peers import PeerState
from activestore.core.troubles import TroubleKind
from activestore.wire.gossip import (
    PeerRecord,
    Update,
    encode_records,
)
from activestore.wire.messages import Ack, Probe, Sync, Synced
from tests.core.alone import Alone, notes, sent
from tests.core.cluster_world import ClusterWorld, Node, peer_id_of, record_of

SEEDS = int(os.environ.get("ACTIVESTORE_SEEDS", "1"))
ME, A, B, C = (peer_id_of(n) for n in range(4))


# -- join, heal, leave --------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 5, 20, 50])
def test_peers_that_start_together_find_each_other(count: int) -> None:
    world = ClusterWorld(count, does_check=count <= 20)
    world.grow(count)

    world.run_until(world.is_converged, within_s=5)


@pytest.mark.slow
def test_two_hundred_peers_find_each_other() -> None:
    world = ClusterWorld(200, does_check=False)
    world.grow(200, start_s=2.0)

    world.run_until(world.is_converged, within_s=15)


@pytest.mark.parametrize("count", [2, 3, 10, 30])
def test_halves_of_a_partition_find_each_other_again(count: int) -> None:
    world = ClusterWorld(count + 100, does_check=count <= 10)
    nodes = world.grow(count)
    world.run(15)
    world.split(nodes[: count // 2], nodes[count // 2 :])
    world.run(120)
    assert not any(nodes[-1].peer_id in node.live for node in nodes[: count // 2])

    world.heal()
    world.run_until(world.is_converged, within_s=60)
    deaths = len(world.deaths)
    world.run(120)

    assert len(world.deaths) == deaths
    assert world.is_converged()


def test_partition_longer_than_the_tombstones_heals() -> None:
    world = ClusterWorld(12, does_check=False)
    nodes = world.grow(8)
    world.run(15)
    world.split(nodes[:4], nodes[4:])
    world.run(1000)
    assert all(len(node.core.members) == 4 for node in nodes)

    world.heal()

    world.run_until(world.is_converged, within_s=60)


def test_one_that_leaves_is_gone_at_once_and_not_dead() -> None:
    world = ClusterWorld(13)
    nodes = world.grow(10)
    world.run(15)

    world.leave(nodes[3])
    world.run(0.5)

    others = [node for node in nodes if node is not nodes[3]]
    assert {node.sees(nodes[3].peer_id) for node in others} == {PeerState.LEFT}
    assert nodes[3].core.has_told_leave
    world.run(60)
    assert world.deaths == []


def test_two_zones_are_one_cluster_and_keep_their_rhythms() -> None:
    world = ClusterWorld(14)
    nodes = [world.add(record_of(0))]
    for number in range(1, 12):
        zone = ("home", "cloud")[number % 2]
        nodes.append(world.add(record_of(number, zone=zone), join=nodes[0]))
    world.run_until(world.is_converged, within_s=15)

    world.kill(nodes[5])
    world.run(60)

    assert world.is_converged()
    seen = {node.peer_id for node in nodes} - {nodes[5].peer_id}
    assert {by for _, _, by in world.deaths} == seen


def test_lonely_peer_asks_for_its_seeds_less_and_less_often() -> None:
    alone = Alone()

    wanted = [e for e in alone.fire_until(300.0) if isinstance(e, SeedWanted)]

    assert all(effect.is_alone for effect in wanted)
    assert 8 <= len(wanted) <= 25


def test_peer_that_has_our_id_is_told_of_and_not_believed() -> None:
    alone = Alone()

    effects = alone.step(Joined([record_of(0)]))
    assert effects == []
    effects = alone.step(MessageArrived(ME, Sync(ME)))

    (trouble,) = effects
    assert (trouble.kind, trouble.about) == (TroubleKind.IDENTITY, ME)
    assert "copied" in trouble.reason
    assert [record.peer_id for record in alone.core.live()] == [ME]


def test_two_peers_of_one_name_are_said_once() -> None:
    alone = Alone(1)

    twin = record_of(2)._replace(name="peer-1")
    effects = alone.hear(Update(B, 1, PeerState.ALIVE, twin))
    assert "one name" in notes(effects)[0]
    again = alone.hear(Update(B, 2, PeerState.ALIVE, twin))

    assert notes(again) == []


def test_stranger_that_probes_is_asked_who_it_is() -> None:
    """It was forgotten here, and still believes in this peer."""
    alone = Alone(1)

    effects = alone.step(MessageArrived(C, Probe(9, ME, C)))

    assert [s.message.token for s in sent(effects, Ack)] == [9]
    (question,) = sent(effects, Sync)
    assert question.message.extra == {"from": C, "to": C}


# -- figures ------------------------------------------------------------------------------


def detections_s(count: int, seed: int, kills: int) -> list[float]:
    """Return how long it takes each time until all know that one of them is dead."""
    world = ClusterWorld(seed, does_check=False)
    nodes = settled(world, count)
    times = []
    for _ in range(kills):
        victim = nodes.pop(world.rng.randrange(len(nodes)))
        world.run(world.rng.random())
        world.kill(victim)
        world.deaths.clear()
        start_s = world.now_s
        world.run_until(lambda: len(world.deaths) == len(nodes), within_s=60)
        times.append(max(at_s for at_s, _, _ in world.deaths) - start_s)
        assert {dead for _, dead, _ in world.deaths} == {victim.peer_id}
    return times


def settled(world: ClusterWorld, count: int) -> list[Node]:
    """Return peers that know each other from the start."""
    records = [record_of(n) for n in range(count)]
    updates = [Update(r.peer_id, 1, PeerState.ALIVE, r) for r in records]
    nodes = [world.add(record) for record in records]
    for start in range(0, count, 100):
        body = encode_records(updates[start : start + 100])
        for node in nodes:
            message = Synced(node.peer_id, None, body)
            world.step(node, MessageArrived(updates[0].peer_id if node is not nodes[0]
                                            else updates[1].peer_id, message))  # fmt: skip
    for node in nodes:
        for lane in node.core._table.lanes:
            lane.updates.clear()
    world.run(3.0)
    return nodes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "worlds", "kills", "typical_s"), [(10, 100, 1, 6.6), (100, 2, 15, 10.6)]
)
def test_death_is_known_to_all_within_twice_the_typical_time(
    count: int, worlds: int, kills: int, typical_s: float
) -> None:
    """Source: reliability.md 1.2, the table: 1.58 + 1 + the shortest suspicion."""
    times = [t for seed in range(worlds) for t in detections_s(count, seed, kills)]

    assert max(times) <= 2 * typical_s
    assert statistics.median(times) <= 1.3 * typical_s


@pytest.mark.slow
def test_nobody_is_buried_alive_in_an_hour_of_one_percent_loss() -> None:
    world = ClusterWorld(17, loss=0.01, does_check=False)
    settled(world, 50)

    world.run(3600)

    assert world.deaths == []
    assert world.is_converged()


@pytest.mark.soak
def test_nobody_is_buried_alive_in_a_day_of_one_percent_loss() -> None:
    """Source: reliability.md 1.2, our own target."""
    world = ClusterWorld(18, loss=0.01, does_check=False)
    settled(world, 100)

    for _ in range(24):
        world.run(3600)
        assert world.deaths == []
    assert world.is_converged()


@pytest.mark.scaled
@pytest.mark.parametrize("seed", range(4 * SEEDS))
def test_history_of_churn_loss_pauses_and_partitions_ends_in_one_cluster(
    seed: int,
) -> None:
    """Invariants are checked after every step."""
    world = ClusterWorld(seed, loss=0.02, does_seed=True)
    nodes = world.grow(6)
    number = 100
    for _ in range(25):
        world.run(world.rng.uniform(0, 8))
        what = world.rng.randrange(6)
        up = [node for node in world.nodes.values() if node.is_up]
        one = world.rng.choice(up)
        if what == 0 and len(up) > 3:
            world.kill(one)
        elif what == 1:
            number += 1
            nodes.append(world.add(record_of(number), join=one))
        elif what == 2:
            world.pause(one, world.rng.uniform(0, 12))
        elif what == 3:
            world.split(up[::2], up[1::2])
        elif what == 4 and len(up) > 3:
            world.leave(one)
        else:
            world.heal()
    world.heal()
    world.loss = 0.0

    world.run(15)
    # Two parts that never heard of each other meet where both ask for their seeds.
    world.run_until(world.is_converged, within_s=600)
    assert isinstance(nodes[0].core.me, PeerRecord)
