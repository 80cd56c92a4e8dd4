"""Copies at peers that an operator names, and what is told where there can be none.

Source: issue 4; docs/how-to/replicate.md, "Choose the peers".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from activestore.client.groups import Group
from activestore.errors import InvalidRequestError, NoQuorumError
from activestore.remote import id_of
from activestore.testing import Simulation
from tests.simulation.clusters import COUNTER, join
from tests.simulation.models import Counter
from tests.simulation.test_candidates import LARGE, MIB, Large, say

FOR_LONG = 10_000


@pytest.fixture
def sim() -> Iterator[Simulation]:
    """Five peers that know each other."""
    with Simulation(71, peers=5, classes=[Counter, Large]) as simulation:
        join(simulation)
        simulation.run(60.0)
        yield simulation


def keepers(group: Group) -> set[str]:
    """Return the names of the peers that have the state."""
    return {one.peer for one in group.members if one.role in ("primary", "replica")}


def made(sim: Simulation, **copies: Any) -> tuple[Any, Any, set[str]]:
    """Make a counter at peer-1; return its client, it, and who has it."""
    client = sim.client("peer-1")
    counter = client.create(COUNTER, **copies)
    assert counter.add() == 1
    return client, counter, keepers(client.group(counter))


@pytest.mark.parametrize("named", ["peer-2", "peer-3", "peer-4", "peer-5"])
def test_one_of_the_copies_is_at_the_named_peer(sim: Simulation, named: str) -> None:
    """The others are where it is best."""
    client, counter, _ = made(sim)

    group = client.replicate(counter, 3, peers=[named])

    assert {"peer-1", named} < keepers(group)
    assert group.copies == 3


def test_named_peer_takes_the_place_of_one_where_there_are_enough(
    sim: Simulation,
) -> None:
    client, counter, before = made(sim, replicas=3)
    named = sorted(set(sim.peers) - before)[0]

    group = client.replicate(counter, 3, peers=[named])
    again = client.replicate(counter, 3, peers=[named])

    assert keepers(group) == keepers(again)
    assert (named in keepers(group), group.copies, group.primary) == (True, 3, "peer-1")
    assert counter.add() == 2


def test_named_peer_keeps_its_copy_where_others_are_given_up(sim: Simulation) -> None:
    client, counter, before = made(sim, replicas=3)
    named = sorted(before - {"peer-1"})

    groups = [client.replicate(counter, 2, peers=[one]) for one in named]

    assert [keepers(one) for one in groups] == [{"peer-1", one} for one in named]


def test_named_peer_that_cannot_take_a_copy_is_told_and_nobody_goes_for_it(
    sim: Simulation,
) -> None:
    client, counter, before = made(sim, replicas=3)
    named = sorted(set(sim.peers) - before)[0]
    sim.refuse_commits(named, FOR_LONG)

    with pytest.raises(NoQuorumError) as refused:
        client.replicate(counter, 3, peers=[named])

    assert f"no copy can be made at {named}: " in str(refused.value)
    assert f"{named}: its disk is full" in str(refused.value)
    assert keepers(client.group(counter)) == before
    assert counter.add() == 2


def test_former_witness_gets_a_copy(sim: Simulation) -> None:
    """The way back, as the how-to has it."""
    client, counter, before = made(sim, replicas=2, witness=True)
    members = client.group(counter).members
    (witness,) = [one.peer for one in members if one.role == "witness"]

    with pytest.raises(InvalidRequestError, match=f"{witness} is the witness"):
        client.replicate(counter, peers=[witness])
    group = client.replicate(counter, 3, peers=[witness])

    assert keepers(group) == {*before, witness}
    assert not group.wants_witness
    assert counter.add() == 2


def test_witness_is_replaced_and_given_up(sim: Simulation) -> None:
    client, counter, before = made(sim, replicas=2, witness=True)
    members = client.group(counter).members
    (witness,) = [one.peer for one in members if one.role == "witness"]
    named = sorted(set(sim.peers) - before - {witness})[0]

    replaced = client.replicate(
        counter, 2, witness=True, peers=[named], leaving=[witness]
    )
    given_up = client.replicate(counter, 2, witness=False)

    roles = {one.peer: one.role for one in replaced.members}
    assert (roles.pop(named), set(roles)) == ("witness", before)
    assert {one.peer for one in given_up.members} == before
    assert counter.add() == 2


def test_peers_without_room_are_named_where_no_copy_can_be_made(
    sim: Simulation,
) -> None:
    for name in ("peer-2", "peer-3", "peer-4", "peer-5"):
        say(sim, name, load=[0, 0, 0, 3])
    client = sim.client("peer-1")
    large = client.create(LARGE)
    large.grow(4 * MIB)

    with pytest.raises(NoQuorumError) as refused:
        client.replicate(large, 2)

    assert "too little room for 5 MB at peer-" in str(refused.value)
    assert "(3 MB free)" in str(refused.value)
    assert "and 1 more" in str(refused.value)


def test_name_means_the_member_whose_disk_was_lost(sim: Simulation) -> None:
    """Another peer of that name runs by then, and has no vote."""
    client, counter, before = made(sim, replicas=3)
    lost = sorted(before - {"peer-1"})[0]
    old_id = sim.peers[lost].disk.peer_id
    sim.crash(lost, disk=False)
    sim.restart(lost)
    sim.run(30.0)
    (row,) = client.request("replication")["objects"]

    group = client.replicate(counter, 3, leaving=[lost])

    new_id = sim.peers[lost].disk.peer_id
    assert old_id.hex() in row["reason"]
    assert new_id.hex() in row["reason"]
    assert len(row["lost"]) == 1
    assert old_id not in {one.peer_id for one in group.members}
    assert (group.is_whole, group.copies, counter.add()) == (True, 3, 2)


def test_leader_that_is_to_leave_leaves(sim: Simulation) -> None:
    client, counter, _ = made(sim, replicas=3)

    leader_left = client.replicate(counter, 3, leaving=["peer-1"])

    assert "peer-1" not in keepers(leader_left)


def test_two_copies_without_a_majority_are_not_said_to_be_replaced(
    sim: Simulation,
) -> None:
    client, _, before = made(sim, replicas=2, witness=False)
    (other,) = before - {"peer-1"}
    sim.crash(other)
    sim.run(30.0)

    (row,) = client.request("replication")["objects"]

    assert row["reason"].startswith(f"{other} does not answer; there is no majority")


def test_why_a_repair_failed_is_forgotten_when_an_operator_has_mended_it() -> None:
    """`doctor` advised to make room for a copy that only a dead peer had lost."""
    with Simulation(72, peers=2, classes=[Counter]) as sim:
        join(sim)
        client, counter, _ = made(sim, replicas=2, witness=False)
        shared: Any = sim.peers["peer-1"].loop.moving.shared
        repairing = shared._grouping.repairing
        object_id = id_of(counter)
        repairing._failed_s[object_id] = 0.0
        repairing._why[object_id] = "there is no other peer that may take one"

        sim.run(10.0)
        sim.crash("peer-2")
        sim.run(30.0)

        (row,) = client.request("replication")["objects"]
        assert not row["is_refused"]
        assert "no other peer" not in row["reason"]
