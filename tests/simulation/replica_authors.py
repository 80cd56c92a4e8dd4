"""Objects whose methods change others several times, and what must hold of those.

The runs of one object come one after the other, whoever leads it; so what one run writes
elsewhere is never found on both sides of what a later one wrote.

Rules of this file: what lies in the journals is the only truth.

Source: reliability.md 3.4 R7.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from activestore.errors import ActiveStoreError
from activestore.ids import ObjectId
from activestore.testing import Simulation
from tests.simulation.models import Author, Journal

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
