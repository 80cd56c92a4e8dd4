"""What is told of a write that no majority keeps names each voter that does not, and why.

Source: issue 4; reliability.md 3.8, "RF=2, both up" and "RF=3, 2 down".
"""

from __future__ import annotations

from typing import Any

import pytest

from activestore.errors import NoQuorumError
from activestore.testing import Simulation
from tests.simulation.clusters import COUNTER, join
from tests.simulation.models import Counter

# So many commits are refused that the disk is full for all of the test.
FOR_LONG = 10_000


def counter_of(sim: Simulation, replicas: int) -> tuple[Any, str, list[str]]:
    """Return an object, who leads it, and its other members."""
    join(sim)
    client = sim.client("peer-1")
    counter = client.create(COUNTER, replicas=replicas)
    assert counter.add() == 1
    leader, *others = [member.peer for member in client.group(counter).members]
    return counter, leader, others


def test_full_disk_of_the_other_one_of_two_is_named() -> None:
    with Simulation(1, peers=2, classes=[Counter]) as sim:
        counter, leader, (other,) = counter_of(sim, replicas=2)
        sim.refuse_commits(other, FOR_LONG)

        with pytest.raises(NoQuorumError) as refused:
            counter.add()

        text = str(refused.value)
        assert f"{other}: its disk is full, or failed: storage is full" in text
        assert "of 1,073,741,824 bytes used" in text
        assert "delete other objects there, or raise its disk_budget_mb" in text
        assert "reads and deletes still work" not in text, "this object has neither"
        assert f"{leader}: " not in text
        assert "start the others" not in text
        assert refused.value.needed == 2

        sim.refuse_commits(other, 0)
        sim.run(10.0)
        assert counter.add() >= 2


def test_each_of_several_is_named_with_its_own_reason() -> None:
    with Simulation(2, peers=3, classes=[Counter]) as sim:
        counter, _, (first, second) = counter_of(sim, replicas=3)
        sim.refuse_commits(first, FOR_LONG)
        sim.crash(second)
        sim.run(10.0)

        with pytest.raises(NoQuorumError) as refused:
            counter.add()

        text = str(refused.value)
        assert f"{first}: its disk is full" in text
        assert f"{second}: it cannot be reached" in text


def test_deadline_that_passes_before_tells_the_same() -> None:
    with Simulation(3, peers=2, classes=[Counter]) as sim:
        counter, _, (other,) = counter_of(sim, replicas=2)
        sim.refuse_commits(other, FOR_LONG)

        with pytest.raises(NoQuorumError, match=f"{other}: its disk is full"):
            counter.add.options(timeout_s=2.0)()


def test_voter_that_keeps_again_is_named_no_more() -> None:
    with Simulation(4, peers=3, classes=[Counter]) as sim:
        counter, _, (first, second) = counter_of(sim, replicas=3)
        sim.refuse_commits(first, 3)
        assert counter.add() == 2  # The other one has room.
        sim.run(30.0)
        assert counter.add() == 3
        sim.crash(second)
        sim.crash(first)
        sim.run(10.0)

        with pytest.raises(NoQuorumError) as refused:
            counter.add()

        assert "disk is full" not in str(refused.value)
        assert str(refused.value).count("it cannot be reached") == 2
