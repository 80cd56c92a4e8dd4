"""Streams that another peer passes on, and whose way breaks: the object is free again.

A stream that nobody takes items from waits for credit, and holds its object meanwhile.

Source: design section 5; schemas/protocol.md section 10, "What was lost".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from activestore import remote
from activestore.errors import ActiveStoreError
from activestore.peer.relays import UNNAMED_S
from activestore.testing import (
    ExecutorSpeed,
    Latency,
    PeerSettings,
    SimClient,
    Simulation,
)
from tests.simulation.clusters import COUNTER, join
from tests.simulation.models import Counter, Puller

PULLER = "tests.simulation.models.Puller"
# Its credit comes after each eight: too rarely for items to be signs of life.
ITEMS = 60
PAUSE_S = 1.0
# Each peer has been told by then what is under way.
BEATEN_S = 5.0
# A peer that was away is dialled again after up to 30 s, and named in a beat each 2 s.
FREE_S = 40.0


class Reader:
    """A client of peer-1 that reads a stream of an object of peer-2 slowly."""

    def __init__(self, sim: Simulation, counter: Any, *, direct: bool = False) -> None:
        self.sim = sim
        self.client: SimClient = sim.client("peer-1", timeout_s=60.0)
        target = self.client.get(counter)
        self.items = target.numbers.options(direct=direct).stream(ITEMS)
        self.errors: list[ActiveStoreError] = []
        assert next(self.items) == 0

    def play(self) -> None:
        try:
            for _ in self.items:
                self.sim.sleep(PAUSE_S)
        except ActiveStoreError as error:
            self.errors.append(error)


def lose_beats(sim: Simulation, _reader: Reader) -> None:
    """Peer-2 never names the stream, as where what it sent was lost with a connection."""
    sim.peers["peer-2"].loop.beat = lambda *_, **__: None  # type: ignore[method-assign]
    sim.run(UNNAMED_S + 2.0)


def break_between(sim: Simulation, _reader: Reader) -> None:
    assert sim.break_connections("peer-1", "peer-2")


def kill_client(_sim: Simulation, reader: Reader) -> None:
    reader.client.crash()


def kill_client_and_its_peer(sim: Simulation, reader: Reader) -> None:
    reader.client.crash()
    sim.crash("peer-1")


def kill_client_and_restart_its_peer(sim: Simulation, reader: Reader) -> None:
    reader.client.crash()
    sim.restart("peer-1")


def cut_off_for_a_while(sim: Simulation, _reader: Reader) -> None:
    sim.partition("peer-1", "peer-2")
    sim.run(30.0)
    sim.heal()


def check_free(sim: Simulation, counter: Any) -> None:
    """Assert that an object is soon free, and that the stream counted for nothing."""
    added = sim.client("peer-2").get(counter).add.submit()
    assert sim.run_until(added.done, timeout_s=FREE_S)
    assert added.result() == 1


FAULTS = (
    lose_beats, break_between, kill_client, kill_client_and_its_peer,
    kill_client_and_restart_its_peer, cut_off_for_a_while,
)  # fmt: skip


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_stream_whose_way_broke_frees_its_object(
    fault: Callable[[Simulation, Reader], None], replicas: int
) -> None:
    with Simulation(1, peers=3, classes=[Counter]) as sim:
        join(sim)
        with sim.client("peer-2") as maker:
            counter: Any = remote.id_of(maker.create(COUNTER, replicas=replicas))
        reader = Reader(sim, counter)
        task = sim.spawn(reader.play)
        sim.run(1.0)

        fault(sim, reader)

        assert sim.run_until(lambda: task.is_over, timeout_s=ITEMS * PAUSE_S)
        assert reader.errors
        check_free(sim, counter)


def test_own_connection_of_a_killed_client_ends_its_stream() -> None:
    """Though it was heard last from behind another peer."""
    with Simulation(1, peers=2, classes=[Counter]) as sim:
        join(sim)
        with sim.client("peer-2") as maker:
            counter, other = (remote.id_of(maker.create(COUNTER)) for _ in "12")
        reader = Reader(sim, counter, direct=True)
        assert reader.client.get(other).add.options(direct=False)() == 1

        reader.client.crash()

        sim.run(1.0)
        check_free(sim, counter)


def test_stream_of_a_method_ends_with_the_peer_of_its_reader() -> None:
    """That peer does not come back, and its client asks nobody else."""
    slow = ExecutorSpeed(runs={"add_slowly": Latency(600.0, 600.0)})
    settings = PeerSettings(executor=slow)
    with Simulation(1, peers=3, classes=[Counter, Puller], settings=settings) as sim:
        join(sim)
        with sim.client("peer-2") as maker:
            counter = remote.id_of(maker.create(COUNTER))
        client = sim.client("peer-1")
        puller = client.create(PULLER, client.get(counter), client.create(COUNTER))
        puller.pull.submit(ITEMS)
        sim.run(BEATEN_S)

        client.crash()
        sim.crash("peer-1")

        check_free(sim, counter)
