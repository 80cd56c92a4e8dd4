"""Objects whose methods change others several times, and what must hold of those.

The runs of one object come one after the other, whoever leads it; so what one run writes
elsewhere is never found on both sides of what a later one wrote.

Rules of this file: what lies in the journals is the only truth.

Source: reliability.md 3.4 R7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest

from activestore.errors import ActiveStoreError, ExecutorCrashedError
from activestore.ids import ObjectId
from activestore.testing import ExecutorSpeed, Latency, PeerSettings, Simulation
from tests.simulation.clusters import join
from tests.simulation.models import Author, Journal
from tests.simulation.replica_clusters import check_nothing_left, id_of

AUTHOR, JOURNAL = (f"{one.__module__}.{one.__name__}" for one in (Author, Journal))
# Lines of one request.
LINES = 3


class Editor:
    """A client's program that has authors write; each request has a number of its own."""

    def __init__(
        self, sim: Simulation, peers: Sequence[str], authors: Sequence[ObjectId],
        numbers: Iterator[int],
    ) -> None:  # fmt: skip
        self.sim = sim
        self._numbers = numbers
        self._client = sim.client(*peers)
        self._authors = [self._client.get(one) for one in authors]
        self.errors: list[ActiveStoreError] = []

    def play(self, calls: int, pause_s: float) -> None:
        """Have something written now and then."""
        rng = self.sim.rng
        for _ in range(calls):
            self.sim.sleep(rng.expovariate(1.0 / pause_s))
            at = rng.randrange(len(self._authors))
            line = next(self._numbers) * len(self._authors) + at
            try:
                self._authors[at].write.options(direct=False)(line, LINES)
            except ActiveStoreError as error:
                self.errors.append(error)


def check_unmixed(lines: Sequence[int], authors_count: int) -> None:
    """Assert that what runs of one author wrote is not mixed in a journal."""
    for author in range(authors_count):
        seen: list[int] = []
        for line in (one for one in lines if one % authors_count == author):
            assert line not in seen[:-1], (
                f"run {line} of author {author} is mixed with a later one in {lines}"
            )
            if not seen or line != seen[-1]:
                seen.append(line)


# -- a leader that does not know that it is deposed ------------------------------------

REST_S = 3.0
SLOW = PeerSettings(
    executor=ExecutorSpeed(
        runs={"rest": Latency(REST_S, REST_S + 0.001), "*": Latency(0.000_05, 0.000_1)}
    )
)
HOME, ELSEWHERE = ("peer-2", "peer-3"), ("peer-4", "peer-5", "peer-6")


def _restart(sim: Simulation) -> None:
    sim.crash("peer-4")
    sim.restart("peer-4")
    sim.run(5.0)


def _take_over(sim: Simulation) -> None:
    sim.crash("peer-4")
    sim.run(10.0)


class Meanwhile(NamedTuple):
    """What becomes of the journal at peer-4 until the deposed leader is heard again."""

    copies: int
    happens: Callable[[Simulation], None] = lambda sim: None


MEANWHILE = {
    "plain": Meanwhile(1),
    "plain_restarted": Meanwhile(1, _restart),
    "shared": Meanwhile(3),
    "shared_taken_over": Meanwhile(3, _take_over),
}


def begin(sim: Simulation, journal_copies: int) -> tuple[Any, Any, Any]:
    """Have an author with three copies, led at peer-1, write a line and rest.

    Its journal is led at peer-4. Returns author, journal, and what was begun.
    """
    join(sim)
    maker = sim.client("peer-4", "peer-5")
    journal = maker.create(JOURNAL)
    if journal_copies > 1:
        maker.replicate(journal, journal_copies, peers=list(ELSEWHERE[1:]))
    client = sim.client("peer-1")
    author = client.create(AUTHOR, journal, client.create(JOURNAL))
    client.replicate(author, 3, peers=list(HOME))
    begun = author.write.submit(1, 2)
    sim.run(1.0)
    assert journal.read() == [1]
    return author, journal, begun


def play_deposed(case: str, seed: int) -> None:
    """A run that goes on after its leader was deposed writes nothing more elsewhere."""
    copies, happens = MEANWHILE[case]
    with Simulation(seed, peers=6, classes=[Author, Journal], settings=SLOW) as sim:
        author, journal, begun = begin(sim, copies)
        sim.partition("peer-1", [*HOME, *ELSEWHERE])
        other = sim.client("peer-2").get(id_of(author))
        assert other.write.options(direct=False)(2, 1) == 1
        happens(sim)

        # It reaches the journal, and not yet those who know better.
        sim.heal(["peer-1"], ELSEWHERE)
        sim.run(60.0)
        check_unmixed(journal.read(), 1)
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
