"""Objects that were deleted while one of their group was away: nothing is kept for ever.

Source: reliability.md 3.4 R8, R10; issue 4, "tombstones"; decision 11.
"""

from __future__ import annotations

import pytest

from activestore.ids import ObjectId
from activestore.testing import PeerSettings, SimClient, Simulation
from tests.simulation.clusters import COUNTER, join
from tests.simulation.models import Counter
from tests.simulation.replica_clusters import id_of, register_at

AWAY = "peer-3"
# Who is away is replaced by repair after this, or not while a test lasts.
SOON, LATE = PeerSettings(repair_after_s=5.0), PeerSettings(repair_after_s=3600.0)
# Until then, and until all groups have been looked at and changed.
LET_GO_S = 60.0


def delete_while_away(sim: Simulation, count: int = 4) -> list[ObjectId]:
    """Make objects at three peers, and delete them while one of these is away."""
    join(sim)
    client = sim.client("peer-1")
    made = [client.create(COUNTER) for _ in range(count)]
    for one in made:
        client.replicate(one, 3, peers=["peer-2", AWAY])
    sim.run(1.0)
    sim.crash(AWAY)
    for one in made:
        client.delete(one)
    return [id_of(one) for one in made]


def left_at(sim: Simulation, ids: list[ObjectId]) -> dict[str, int]:
    """Return how many registers of these are on disk, by peer, where any are."""
    found = {
        name: sum(register_at(peer, one) is not None for one in ids)
        for name, peer in sim.peers.items()
    }
    return {name: count for name, count in found.items() if count}


def test_tombstones_go_without_a_voter_that_never_comes_back() -> None:
    with Simulation(1, peers=4, classes=[Counter], settings=SOON) as sim:
        ids = delete_while_away(sim)
        sim.run(1.0)
        assert left_at(sim, ids) == {"peer-1": 4, "peer-2": 4, AWAY: 4}

        sim.run(LET_GO_S)

        assert left_at(sim, ids) == {AWAY: 4}, "the others wait for it no more"
        assert sim.peers["peer-1"].loop.repairing.repaired_count == 0


def test_voter_that_comes_back_late_lets_its_copies_go_too() -> None:
    """Nobody of its groups knows of them; the keepers of their places do."""
    with Simulation(2, peers=4, classes=[Counter], settings=SOON) as sim:
        ids = delete_while_away(sim)
        sim.run(LET_GO_S)
        assert left_at(sim, ids) == {AWAY: 4}

        sim.restart(AWAY)
        sim.run(2 * LET_GO_S)

        assert left_at(sim, ids) == {}


def test_tombstones_are_counted_as_nothing_that_is_led_or_followed() -> None:
    with Simulation(3, peers=4, classes=[Counter], settings=LATE) as sim:
        ids = delete_while_away(sim)
        kept: SimClient = sim.client("peer-1")
        kept.replicate(kept.create(COUNTER), 2, peers=["peer-2"])
        sim.run(1.0)
        assert left_at(sim, ids) == {"peer-1": 4, "peer-2": 4, AWAY: 4}

        told = [
            sim.client(name).request("replication") for name in ("peer-1", "peer-2")
        ]

        assert [(one["led"], one["followed"], one["under"]) for one in told] == [
            (1, 0, 0),
            (0, 1, 0),
        ]


@pytest.mark.parametrize("drained", ["peer-1", "peer-2"])
def test_peer_with_tombstones_is_drained(drained: str) -> None:
    """Who leads them, or follows: what is deleted is nothing that must be moved."""
    with Simulation(4, peers=4, classes=[Counter], settings=LATE) as sim:
        ids = delete_while_away(sim)
        sim.run(20.0)
        assert left_at(sim, ids) == {"peer-1": 4, "peer-2": 4, AWAY: 4}

        moved = sim.client(drained).request("drain")

        assert moved == 0
        sim.run(LET_GO_S)
        assert not sim.peers[drained].is_up
        assert left_at(sim, ids) == {AWAY: 4}, "none waits for two that are gone"
