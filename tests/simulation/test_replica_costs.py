"""What copies cost a call, in round trips and syncs, where nothing else takes time.

Source: issue 4, "It must hold": one round trip and one sync more than without copies.
"""

from __future__ import annotations

from typing import Any

from activestore.testing import Simulation
from activestore.testing.network import Latency, LinkQuality
from activestore.testing.peers import PeerSettings
from activestore.testing.storage import DiskSpeed
from tests.simulation.clusters import COUNTER, join
from tests.simulation.models import Counter

ONE_WAY_S = 0.010
SYNC_S = 0.020
ROUND_TRIP_S = 2 * ONE_WAY_S
# What threads and executors take together: a tenth of a message's way.
REST_S = ONE_WAY_S / 10


def exactly(seconds: float) -> Latency:
    """Return what always takes as long."""
    return Latency(min_s=seconds, mean_s=seconds)


def took_s(sim: Simulation, call: Any) -> float:
    """Return how long a call takes that was made before."""
    call()
    sim.run(1.0)
    begun_s = sim.now_s
    call()
    return sim.now_s - begun_s


def make_simulation() -> Simulation:
    """Return peers whose lines and disks take a known time, and nothing else does."""
    disk = DiskSpeed(exactly(SYNC_S), exactly(0.0), exactly(0.0))
    return Simulation(
        1, peers=3, classes=[Counter], settings=PeerSettings(disk=disk),
        link=LinkQuality(exactly(ONE_WAY_S)),
    )  # fmt: skip


def test_durable_call_costs_one_round_trip_and_one_sync_more() -> None:
    with make_simulation() as sim:
        join(sim)
        client = sim.client("peer-1")
        plain, shared = client.create(COUNTER), client.create(COUNTER, replicas=3)
        sim.run(1.0)
        alone_s = took_s(sim, plain.add)
        shared_s = took_s(sim, shared.add)
        assert alone_s >= ROUND_TRIP_S + SYNC_S
        more_s = shared_s - alone_s
        assert ROUND_TRIP_S + SYNC_S <= more_s <= ROUND_TRIP_S + SYNC_S + REST_S


def test_read_of_the_newest_costs_one_round_trip_more_and_no_sync() -> None:
    with make_simulation() as sim:
        join(sim)
        client = sim.client("peer-1")
        plain, shared = client.create(COUNTER), client.create(COUNTER, replicas=3)
        sim.run(1.0)
        more_s = took_s(sim, shared.peek) - took_s(sim, plain.peek)
        assert more_s <= ROUND_TRIP_S + REST_S


def test_older_state_is_read_at_a_follower_without_asking_anybody() -> None:
    with make_simulation() as sim:
        join(sim)
        shared = sim.client("peer-1").create(COUNTER, replicas=3)
        shared.add(3)
        sim.run(0.2)
        near = sim.client("peer-2").get(shared)
        peek = near.peek.options(staleness_s=5.0)
        took = took_s(sim, peek)
        assert peek() == 3
        assert took <= ROUND_TRIP_S + REST_S
