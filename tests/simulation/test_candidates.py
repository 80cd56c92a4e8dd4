"""Who is asked to take a copy: peers that can have one, as far as their records say.

Source: issue 4, "placement on distinct hosts and zones first, then capability and free
space"; schemas/protocol.md sections 8 and 14.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from activestore import ActiveObject, activemethod
from activestore.errors import NoQuorumError, RemoteProtocolError
from activestore.ids import ObjectId, PeerId
from activestore.testing import Simulation
from activestore.wire.limits import PROTOCOL_VERSION, REPLICAS_SINCE
from activestore.wire.replicas import Ask
from tests.simulation.clusters import COUNTER, join
from tests.simulation.models import Counter
from tests.simulation.test_replicas import id_of

MIB = 1 << 20


class Large(ActiveObject):
    """Needs much memory."""

    resources = {"memory_mb": 2000}  # noqa: RUF012 - as users write it
    body: bytes

    def __init__(self, size: int = 0) -> None:
        self.body = bytes(size)

    @activemethod
    def grow(self, size: int) -> None:
        """Have so many bytes."""
        self.body = bytes(size)


LARGE = "tests.simulation.test_candidates.Large"


def say(
    sim: Simulation, name: str, protocol: int = PROTOCOL_VERSION, zone: str = "",
    **meta: Any,
) -> None:  # fmt: skip
    """Have all know another record of a peer."""
    peer_id = sim.peers[name].peer_id
    for peer in sim.peers.values():
        table = peer.loop.cluster.membership._table
        member = table.members[peer_id]
        told = {**member.record.meta, **meta}
        record = member.record._replace(protocol=protocol, zone=zone, meta=told)
        table.set_record(member, record)


def members(sim: Simulation, object_id: ObjectId) -> set[str]:
    """Return the names of the peers that have a copy."""
    return {
        name
        for name, peer in sim.peers.items()
        if peer.engine.head(object_id) is not None
    }


@pytest.fixture
def sim() -> Iterator[Simulation]:
    """Four peers that know each other."""
    with Simulation(51, peers=4, classes=[Counter, Large]) as simulation:
        join(simulation)
        simulation.run(60.0)  # All have the records of all, not only their addresses.
        yield simulation


def test_peer_of_an_earlier_version_is_no_candidate(sim: Simulation) -> None:
    say(sim, "peer-2", REPLICAS_SINCE - 1)

    began_s = sim.now_s
    made = [sim.client("peer-1").create(COUNTER, replicas=3) for _ in range(5)]

    found = {frozenset(members(sim, id_of(one))) for one in made}
    assert found == {frozenset({"peer-1", "peer-3", "peer-4"})}
    assert sim.now_s - began_s < 1.0, "nobody waited for an answer of it"


def test_copies_are_refused_where_too_few_speak_the_version(sim: Simulation) -> None:
    for name in ("peer-2", "peer-3"):
        say(sim, name, REPLICAS_SINCE - 1)
    counter = sim.client("peer-1").create(COUNTER)

    with pytest.raises(NoQuorumError, match="peer-2: a copy needs version 3"):
        sim.client("peer-1").replicate(counter, 2, peers=["peer-2"])
    with pytest.raises(NoQuorumError):
        sim.client("peer-1").replicate(counter, 3)

    assert counter.add() == 1


def test_object_is_not_made_where_too_few_speak_the_version(sim: Simulation) -> None:
    """It would be made, and its maker be told that it has fewer copies."""
    for name in ("peer-2", "peer-3"):
        say(sim, name, REPLICAS_SINCE - 1)
    client = sim.client("peer-1")

    with pytest.raises(NoQuorumError, match="2 can be reached that speak version 3"):
        client.create(COUNTER, replicas=3)

    assert not list(client.objects())
    assert client.group(client.create(COUNTER, replicas=2)).copies == 2


def test_object_with_copies_is_not_made_at_a_peer_of_an_earlier_version(
    sim: Simulation,
) -> None:
    """It would make one copy and say that all is well."""
    say(sim, "peer-2", REPLICAS_SINCE - 1)
    client = sim.client("peer-1")
    there = sim.peers["peer-2"].peer_id
    client._home = lambda: there  # type: ignore[method-assign]

    with pytest.raises(RemoteProtocolError, match="peer peer-2 speaks version 2"):
        client.create(COUNTER, replicas=3)

    assert client.create(COUNTER).add() == 1


def test_nothing_about_copies_is_sent_to_a_peer_of_an_earlier_version(
    sim: Simulation,
) -> None:
    loop, other = sim.peers["peer-1"].loop, sim.peers["peer-2"]
    heard: list[PeerId] = []
    take = other.loop.replicating.take
    other.loop.replicating.take = (  # type: ignore[method-assign]
        lambda link, message: (heard.append(link.peer_id), take(link, message))
    )
    ask = Ask(ObjectId(bytes(16)))

    def send() -> int:
        loop.replicating._outbox.add(PeerId(other.peer_id), ask)
        sim.run(2.0)
        return len(heard)

    assert send() == 1
    say(sim, "peer-2", REPLICAS_SINCE - 1)
    assert send() == 1


def test_peer_that_lacks_what_the_class_needs_is_no_candidate(sim: Simulation) -> None:
    say(sim, "peer-3", memory_mb=512)

    made = [sim.client("peer-1").create(LARGE, replicas=3) for _ in range(5)]

    found = {frozenset(members(sim, id_of(one))) for one in made}
    assert found == {frozenset({"peer-1", "peer-2", "peer-4"})}


def test_peer_that_lacks_what_the_class_needs_may_be_the_witness(
    sim: Simulation,
) -> None:
    for name in ("peer-2", "peer-3"):
        say(sim, name, memory_mb=512)

    large = sim.client("peer-1").create(LARGE, replicas=2, witness=True)

    assert members(sim, id_of(large)) == {"peer-1", "peer-4"}
    register = sim.peers["peer-1"].loop.replicating.core.register_of(id_of(large))
    assert register is not None
    witnesses = {PeerId(sim.peers[name].peer_id) for name in ("peer-2", "peer-3")}
    assert register.config.witness in witnesses


def test_peer_without_room_for_the_state_is_no_candidate(sim: Simulation) -> None:
    say(sim, "peer-4", load=[0, 0, 0, 3])
    client = sim.client("peer-1")
    large = client.create(LARGE)
    large.grow(4 * MIB)

    client.replicate(large, 3)

    assert members(sim, id_of(large)) == {"peer-1", "peer-2", "peer-3"}


def stand(sim: Simulation, zones: str) -> None:
    """Have all know in which zone each peer is, a letter each."""
    for name, zone in zip(sim.peers, zones, strict=True):
        if zone != sim.peers[name].settings.zone:
            say(sim, name, zone=zone)
            sim.peers[name].settings = sim.peers[name].settings._replace(zone=zone)


def test_further_copy_goes_to_a_zone_without_one(sim: Simulation) -> None:
    stand(sim, "aaab")
    client = sim.client("peer-1")
    made = [client.create(COUNTER) for _ in range(6)]

    for one in made:
        client.replicate(one, 2)

    found = {frozenset(members(sim, id_of(one))) for one in made}
    assert found == {frozenset({"peer-1", "peer-4"})}


def test_copy_that_leaves_is_replaced_in_its_zone(sim: Simulation) -> None:
    """That one is there still does not count: it goes."""
    stand(sim, "abab")
    client = sim.client("peer-1")
    made = [client.create(COUNTER) for _ in range(6)]
    for one in made:
        client.replicate(one, 2, peers=["peer-2"])

    for one in made:
        client.replicate(one, 2, leaving=["peer-2"])

    found = {frozenset(members(sim, id_of(one))) for one in made}
    assert found == {frozenset({"peer-1", "peer-4"})}


def test_copies_of_equal_objects_go_to_different_peers(sim: Simulation) -> None:
    made = [sim.client("peer-1").create(COUNTER, replicas=2) for _ in range(24)]

    others = [name for one in made for name in members(sim, id_of(one)) - {"peer-1"}]

    assert {others.count(f"peer-{n}") > 2 for n in (2, 3, 4)} == {True}
