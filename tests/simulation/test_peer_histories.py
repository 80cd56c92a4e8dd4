"""Random histories of whole peers: every acknowledged add counts once.

A failing seed replays by the command that it prints. `ACTIVESTORE_SEEDS` sets how many
histories there are of each kind.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from activestore.errors import ActiveStoreError
from activestore.testing import (
    ExecutorSpeed,
    Latency,
    LinkQuality,
    PeerSettings,
    Simulation,
    seeds,
)
from tests.simulation.clusters import CASES
from tests.simulation.models import Counter, Relay

HISTORIES = int(os.environ.get("ACTIVESTORE_SEEDS", "40"))
pytestmark = pytest.mark.scaled

COUNTER = "tests.simulation.models.Counter"
RELAY = "tests.simulation.models.Relay"
FAULTY_S = 8.0
PAUSE_S = 0.4


def settings_of(seed: int) -> PeerSettings:
    """Return peers that differ from seed to seed: more executors, slower methods."""
    runs = [Latency(0.000_02, 0.000_1), Latency(0.001, 0.01), Latency(0.01, 0.2)]
    return PeerSettings(
        executors=1 + seed % 2, executor=ExecutorSpeed(runs={"*": runs[seed % 3]})
    )


class Player:
    """One client's program: adds to the counters of one peer, and what became of it."""

    def __init__(self, sim: Simulation, peer: str, aliases: Sequence[str]) -> None:
        self.sim = sim
        self.client = sim.client(peer)
        self.aliases = aliases
        self.values: dict[str, list[int]] = {alias: [] for alias in aliases}
        self.unsure: dict[str, int] = dict.fromkeys(aliases, 0)

    def play(self, calls: int) -> None:
        """Add now and then; what raised may have counted, or not."""
        rng = self.sim.rng
        counters = {alias: self.client.get(alias) for alias in self.aliases}
        for _ in range(calls):
            self.sim.sleep(rng.expovariate(1.0 / PAUSE_S))
            alias = rng.choice(self.aliases)
            try:
                self.values[alias].append(counters[alias].add(1))
            except ActiveStoreError:
                self.unsure[alias] += 1


@pytest.mark.parametrize("seed", seeds(HISTORIES))
@pytest.mark.parametrize("case", list(CASES))
def test_every_acknowledged_add_counts_once(case: str, seed: int) -> None:
    """What was acknowledged is there once, what failed is there once or not at all."""
    link = LinkQuality(loss=0.02 if seed % 4 == 3 else 0.0)
    with Simulation(
        seed,
        joined=True,
        peers=1 + seed % 5,
        classes=[Counter],
        settings=settings_of(seed),
        link=link,
    ) as sim:
        players: list[Player] = []
        for name in sim.peers:
            aliases = [f"{name}-a", f"{name}-b"]
            with sim.client(name) as maker:
                for alias in aliases:
                    maker.create(COUNTER, alias=alias)
            players += [Player(sim, name, aliases) for _ in range(2)]
        tasks = [sim.spawn(player.play, 12) for player in players]
        sim.inject(CASES[case], FAULTY_S)
        sim.run(FAULTY_S)
        assert sim.run_until(lambda: all(t.is_over for t in tasks), timeout_s=300.0)

        for name in sim.peers:
            reader = sim.client(name)
            for alias in (f"{name}-a", f"{name}-b"):
                mine = [player for player in players if alias in player.aliases]
                values = [value for player in mine for value in player.values[alias]]
                unsure = sum(player.unsure[alias] for player in mine)
                count = reader.get(alias).peek()
                assert len(set(values)) == len(values), "two adds returned the same"
                assert len(values) <= count <= len(values) + unsure
                if case == "calm":
                    assert unsure == 0


@pytest.mark.parametrize("seed", seeds(HISTORIES // 4))
@pytest.mark.parametrize("case", ["crashing", "everything"])
def test_call_that_calls_another_object_counts_once_there_too(
    case: str, seed: int
) -> None:
    """A retry finds what the first attempt did to other objects, or is not made."""
    with Simulation(
        seed, peers=1, classes=[Counter, Relay], settings=settings_of(seed)
    ) as sim:
        counter = sim.create(COUNTER, alias="counter")
        aliases = ["relay-1", "relay-2"]
        for alias in aliases:
            sim.create(RELAY, counter, alias=alias)
        players = [Player(sim, "peer-1", aliases) for _ in range(4)]
        tasks = [sim.spawn(player.play, 12) for player in players]
        sim.inject(CASES[case], FAULTY_S)
        sim.run(FAULTY_S)
        assert sim.run_until(lambda: all(t.is_over for t in tasks), timeout_s=600.0)

        values = [v for p in players for kept in p.values.values() for v in kept]
        unsure = sum(sum(player.unsure.values()) for player in players)
        count = sim.client().get("counter").peek()
        assert len(set(values)) == len(values), "two adds returned the same"
        assert len(values) <= count <= len(values) + unsure
