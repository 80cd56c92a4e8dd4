"""Calls that a leader makes of other objects after another leads in its place.

Source: reliability.md 3.4 R7; decision 11.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from activestore.errors import ExecutorCrashedError
from activestore.testing import ExecutorSpeed, Latency, PeerSettings, Simulation
from tests.simulation.clusters import join
from tests.simulation.models import Author, Journal
from tests.simulation.replica_clusters import check_nothing_left, id_of

AUTHOR, JOURNAL = (f"{one.__module__}.{one.__name__}" for one in (Author, Journal))
REST_S = 3.0
SLOW = PeerSettings(
    executor=ExecutorSpeed(
        runs={"rest": Latency(REST_S, REST_S + 0.001), "*": Latency(0.000_05, 0.000_1)}
    )
)
HOME = ["peer-1", "peer-2", "peer-3"]


ALL = [*HOME, "peer-4", "peer-5", "peer-6"]


def begin(sim: Simulation, journal_copies: int) -> tuple[Any, Any, Any]:
    """Have an author with three copies, led at peer-1, write a line and rest.

    Its journal is led at peer-4. Returns author, journal, and what was begun.
    """
    join(sim)
    maker = sim.client("peer-4", "peer-5")
    journal = maker.create(JOURNAL)
    if journal_copies > 1:
        maker.replicate(journal, journal_copies, peers=["peer-5", "peer-6"])
    client = sim.client("peer-1")
    author = client.create(AUTHOR, journal, client.create(JOURNAL))
    client.replicate(author, 3, peers=HOME[1:])
    begun = author.write.submit(1, 2)
    sim.run(1.0)
    assert journal.read() == [1]
    return author, journal, begun


def journal_goes_on(_sim: Simulation) -> None:
    """Leave the journal where it is."""


def journal_restarts(sim: Simulation) -> None:
    sim.crash("peer-4")
    sim.restart("peer-4")
    sim.run(5.0)


def journal_is_led_elsewhere(sim: Simulation) -> None:
    sim.crash("peer-4")
    sim.run(10.0)


@pytest.mark.parametrize("seed", [0, 2])
@pytest.mark.parametrize(
    ("copies", "meanwhile"),
    [
        (1, journal_goes_on), (1, journal_restarts),
        (3, journal_goes_on), (3, journal_is_led_elsewhere),
    ],
)  # fmt: skip
def test_call_of_a_leader_that_does_not_know_that_it_is_deposed_is_refused(
    copies: int, meanwhile: Callable[[Simulation], None], seed: int
) -> None:
    """What runs under two leads writes would be mixed in the journal else."""
    with Simulation(seed, peers=6, classes=[Author, Journal], settings=SLOW) as sim:
        author, journal, begun = begin(sim, copies)
        sim.partition("peer-1", ALL[1:])
        other = sim.client("peer-2").get(id_of(author))
        assert other.write.options(direct=False)(2, 1) == 1
        meanwhile(sim)

        # It reaches the journal, and not yet those who know better.
        sim.heal(["peer-1"], ALL[3:])
        sim.run(60.0)
        assert journal.read() == [1, 2]

        sim.heal()
        with pytest.raises(ExecutorCrashedError) as caught:
            begun.result()
        assert caught.value.is_partial
        assert other.write.options(direct=False)(3, 1) == 2
        assert journal.read() == [1, 2, 3]
        if not sim.peers["peer-4"].is_up:
            sim.restart("peer-4")
        check_nothing_left(sim)
