"""Reads of copies while leaders are cut off, crash and come back.

Source: reliability.md 3.8; design section 8.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from activestore.errors import ActiveStoreError, NoQuorumError
from activestore.testing import Simulation, seeds
from activestore.wire.messages import Call
from tests.simulation.clusters import COUNTER, Player, join
from tests.simulation.models import Counter
from tests.simulation.test_replicas import id_of, leaders

HISTORIES = int(os.environ.get("ACTIVESTORE_SEEDS", "4"))
pytestmark = pytest.mark.scaled


def replicated(sim: Simulation) -> tuple[Any, Any]:
    """Return an object with three copies, led by peer-1: its id, and a proxy there."""
    join(sim)
    counter = sim.client("peer-1").create(COUNTER, replicas=3)
    assert counter.add() == 1
    sim.run(1.0)
    return id_of(counter), counter


def test_other_copy_is_behind_what_the_client_has_seen() -> None:
    """Connected with another peer by now, it waits or goes on to the leader."""
    with Simulation(6, peers=3, classes=[Counter]) as sim:
        object_id, counter = replicated(sim)
        near = sim.client("peer-2")
        sim.partition(["peer-3"], ["peer-1", "peer-2"])
        for _ in range(5):
            counter.add()
        sim.run(2.0)
        assert near.get(object_id).peek.options(staleness_s=60)() == 6
        seen = near.session.sightings.of(object_id)

        behind = sim.client("peer-3")
        assert behind.get(object_id).peek.options(staleness_s=600)() == 1
        behind.session.sightings.note(
            Call(1, object_id, "peek", 0, 0, 1, 0),
            {"epoch": seen[0], "number": seen[1]},
        )

        sim.heal()  # Until then it could only refuse, or send to who may be gone.
        assert behind.get(object_id).peek.options(staleness_s=600)() == 6


def test_cut_off_copy_is_found_by_its_id_too() -> None:
    """What class it is of is no question for a leader who cannot be asked."""
    with Simulation(4, peers=3, classes=[Counter]) as sim:
        object_id, counter = replicated(sim)
        sim.partition(["peer-3"], ["peer-1", "peer-2"])
        assert counter.add() == 2
        sim.run(20.0)

        alone = sim.client("peer-3").get(object_id)
        value, info = alone.peek.options(staleness_s=3600).with_info()

        assert value == 1
        assert 20.0 <= info.age_s < 30.0
        with pytest.raises(NoQuorumError):
            alone.peek.options(timeout_s=20.0)()


@pytest.mark.parametrize("waited_s", [0.0, 20.0], ids=["at once", "later"])
def test_cut_off_copy_is_found_by_its_name_too(waited_s: float) -> None:
    """Who forces a copy, or reads an older state, knows the object by its name."""
    with Simulation(4, peers=3, classes=[Counter]) as sim:
        join(sim)
        client = sim.client("peer-1")
        object_id = id_of(client.create(COUNTER, replicas=3, alias="hits"))
        sim.run(1.0)
        sim.partition(["peer-3"], ["peer-1", "peer-2"])
        sim.run(waited_s)

        assert sim.client("peer-3").identify("hits")[0] == object_id


class Reader:
    """A client that reads any copy, one after the other, and notes what it saw."""

    def __init__(self, sim: Simulation, names: list[str], object_id: Any) -> None:
        self._sim = sim
        peek = sim.client(*names).get(object_id).peek
        self._peek = peek.options(staleness_s=3600, timeout_s=3.0)
        self.seen: list[int] = []

    def read(self, seconds: float) -> None:
        until_s = self._sim.now_s + seconds
        while self._sim.now_s < until_s:
            self._sim.sleep(self._sim.rng.expovariate(10.0))
            try:
                self.seen.append(self._peek())
            except ActiveStoreError:
                continue


@pytest.mark.parametrize("seed", seeds(HISTORIES))
def test_no_reader_goes_back_and_none_sees_what_is_lost(seed: int) -> None:
    """Copies may be read while their leader is cut off, crashes and comes back."""
    with Simulation(seed, peers=5, classes=[Counter]) as sim:
        join(sim)
        names = [f"peer-{n}" for n in range(1, 6)]
        counter = sim.client("peer-1").create(COUNTER, replicas=3)
        object_id = id_of(counter)
        readers = [Reader(sim, sim.rng.sample(names, 2), object_id) for _ in range(3)]
        writer = Player(sim, names[3:], [object_id])
        tasks = [sim.spawn(reader.read, 20.0) for reader in readers]
        tasks.append(sim.spawn(writer.play, 60, 0.3))
        for _ in range(4):
            sim.run(sim.rng.uniform(1.0, 3.0))
            (led,) = leaders(sim, object_id)[:1] or names[:1]
            if sim.rng.random() < 0.5:
                sim.partition([led], [one for one in names if one != led])
                sim.run(sim.rng.uniform(1.0, 8.0))
                sim.heal()
            else:
                sim.crash(led)
                sim.run(sim.rng.uniform(0.5, 8.0))
                sim.restart(led)
        sim.run_until(lambda: all(task.is_over for task in tasks), timeout_s=300.0)

        sim.run(15.0)
        final = sim.client("peer-4").get(object_id).peek()

        for reader in readers:
            assert reader.seen == sorted(reader.seen)
            assert all(value <= final for value in reader.seen[-1:])
        assert sum(len(reader.seen) for reader in readers) > 100
