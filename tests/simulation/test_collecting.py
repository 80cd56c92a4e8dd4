"""Places that former keepers keep are let go of, and never the last one.

Source: design section 7; reliability.md 2.2.
"""

from __future__ import annotations

import random

import pytest

from activestore import remote
from activestore.ids import ObjectId, home_of
from activestore.testing import Simulation
from tests.simulation.models import Counter

COUNTER = "tests.simulation.models.Counter"


def rows_of(sim: Simulation, object_id: ObjectId) -> set[str]:
    """Return the peers whose disk keeps where the object is."""
    return {
        name
        for name, peer in sim.peers.items()
        if peer.is_up and peer.storage.engine.row("place", object_id) is not None
    }


def keepers_of(
    sim: Simulation, object_id: ObjectId, seen_by: str = "peer-1"
) -> set[str]:
    cluster = sim.peers[seen_by].loop.cluster
    return {cluster.name_of(one) for one in cluster.keepers(home_of(object_id))}


def away(sim: Simulation) -> tuple[object, ObjectId]:
    """Return an object of peer-1 that lives at peer-2."""
    made = sim.create(COUNTER)
    object_id = remote.id_of(made)
    assert object_id is not None
    sim.move(made, "peer-2")
    sim.run(5.0)
    return made, object_id


def test_former_keepers_let_go_once_the_present_ones_have_it() -> None:
    with Simulation(4, peers=6, classes=[Counter]) as sim:
        made, object_id = away(sim)
        first = keepers_of(sim, object_id)
        gone = sorted(first - {"peer-1", "peer-2"})
        for name in gone:
            sim.crash(name)
        sim.run(60.0)
        assert rows_of(sim, object_id) >= keepers_of(sim, object_id) - {"peer-2"}
        for name in gone:
            sim.restart(name)

        is_settled = sim.run_until(
            lambda: rows_of(sim, object_id) == keepers_of(sim, object_id) - {"peer-2"},
            timeout_s=200.0,
        )

        assert is_settled, (rows_of(sim, object_id), keepers_of(sim, object_id))
        assert made.add() == 1  # type: ignore[attr-defined]


def test_row_of_a_deleted_object_goes_with_the_homes_word() -> None:
    with Simulation(4, peers=6, classes=[Counter]) as sim:
        made, object_id = away(sim)
        kept_by = sorted(rows_of(sim, object_id) - {"peer-1", "peer-2"})[0]
        sim.crash(kept_by)
        sim.run(60.0)
        sim.client("peer-1").delete(made)
        sim.run(5.0)
        sim.restart(kept_by)

        assert sim.run_until(lambda: not rows_of(sim, object_id), timeout_s=200.0)


def test_row_stays_while_a_present_keeper_cannot_be_asked() -> None:
    with Simulation(4, peers=6, classes=[Counter]) as sim:
        _, object_id = away(sim)
        (former,) = [
            n for n in sim.peers if n not in keepers_of(sim, object_id) | {"peer-2"}
        ][:1]
        loop, place = sim.peers[former].loop, None
        place = sim.peers["peer-1"].loop.location.places[object_id]
        sim.crash("peer-1")
        loop.places.learn(object_id, place, lambda error: None)
        sim.run(2.0)

        sim.run(200.0)
        assert former in rows_of(sim, object_id), "its home has not said that it has it"
        sim.restart("peer-1")

        assert sim.run_until(
            lambda: former not in rows_of(sim, object_id), timeout_s=200.0
        )
        assert "peer-1" in rows_of(sim, object_id)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_objects_are_found_after_keepers_came_and_went(seed: int) -> None:
    rng = random.Random(seed)
    with Simulation(seed, peers=6, classes=[Counter]) as sim:
        made = [sim.create(COUNTER) for _ in range(8)]
        for one in made:
            sim.move(one, "peer-2")
        for _ in range(6):
            name = rng.choice(["peer-3", "peer-4", "peer-5", "peer-6"])
            sim.crash(name)
            sim.run(rng.uniform(1.0, 40.0))
            sim.restart(name)
            sim.run(rng.uniform(1.0, 40.0))
            for one in made:
                object_id = remote.id_of(one)
                assert object_id is not None
                assert "peer-1" in rows_of(sim, object_id)
                assert len(rows_of(sim, object_id)) >= 2
        sim.run(200.0)

        for one in made:
            object_id = remote.id_of(one)
            assert object_id is not None
            expected = keepers_of(sim, object_id) - {"peer-2"}
            assert rows_of(sim, object_id) == expected
        assert [one.add() for one in made] == [1] * len(made)
