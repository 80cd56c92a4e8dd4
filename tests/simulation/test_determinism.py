"""One seed is one history: in this process, in another, whatever the hash seed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from activestore.errors import ActiveStoreError
from activestore.testing import Faults, Simulation
from tests.simulation.models import Counter, Relay

FAULTS = Faults(
    crashes_per_s=0.4, pauses_per_s=0.2, breaks_per_s=1.0, partitions_per_s=0.2,
    executor_crashes_per_s=0.4, refused_commits_per_s=0.2,
)  # fmt: skip


def history_of(seed: int) -> str:
    """Play a history with all kinds of faults and calls; return its fingerprint."""
    with Simulation(seed, peers=3, classes=[Counter, Relay]) as sim:

        def play(peer: str) -> None:
            client = sim.client(peer, timeout_s=5.0)
            for number in range(10):
                sim.sleep(sim.rng.uniform(0.0, 0.4))
                try:
                    counter = client.create(f"{Counter.__module__}.Counter", number)
                    relay = client.create(f"{Relay.__module__}.Relay", counter)
                    relay.add(2)
                    relay.make().add(1)
                    list(counter.numbers.stream(20))
                    counter.in_two_steps()
                except ActiveStoreError:
                    continue

        for peer in sim.peers:
            sim.spawn(play, peer)
            sim.spawn(play, peer)
        sim.inject(FAULTS, 6.0)
        sim.run(30.0)
        return sim.fingerprint


def history_of_copies(seed: int) -> str:
    """Play a history of objects with copies, whose groups change; as `history_of`."""
    with Simulation(seed, peers=4, classes=[Counter]) as sim:

        def play(peer: str) -> None:
            client = sim.client(peer, timeout_s=5.0)
            for number in range(4):
                sim.sleep(sim.rng.uniform(0.0, 0.4))
                try:
                    counter = client.create(
                        f"{Counter.__module__}.Counter", replicas=1 + number % 3
                    )
                    counter.add(1)
                    client.replicate(counter, 1 + (number + 1) % 4)
                    counter.add(1)
                    client.delete(counter)
                except ActiveStoreError:
                    continue

        for peer in sim.peers:
            sim.spawn(play, peer)
        sim.inject(FAULTS, 4.0)
        sim.run(30.0)
        return sim.fingerprint


@pytest.mark.parametrize("seed", range(3))
def test_same_seed_is_the_same_history(seed: int) -> None:
    first = history_of(seed)

    assert history_of(seed) == first


def test_other_seed_is_another_history() -> None:
    assert history_of(1) != history_of(2)


@pytest.mark.slow
def test_history_does_not_depend_on_the_process() -> None:
    """A failing seed of another machine must replay here."""
    code = (
        "from tests.simulation.test_determinism import *; "
        "print(history_of(5), history_of_copies(5))"
    )
    found = set()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={
                **os.environ,
                "PYTHONHASHSEED": hash_seed,
                "PYTHONPATH": os.pathsep.join(
                    path for path in (os.getcwd(), *sys.path) if path
                ),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout.strip())

    assert found == {f"{history_of(5)} {history_of_copies(5)}"}
