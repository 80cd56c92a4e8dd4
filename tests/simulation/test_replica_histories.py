"""Random histories of whole clusters whose objects have replicas.

What was acknowledged is there once, at every member, whoever died, stood still, was cut
off, lost its disk or a part of it meanwhile. A failing seed replays by the command that
it prints; `ACTIVESTORE_SEEDS` sets how many histories there are of each kind.

Source: design section 8; reliability.md 3.5; issue 4, "It must hold".
"""

from __future__ import annotations

import os

import pytest

from activestore.testing import seeds
from tests.simulation.replica_histories import HISTORIES

SEEDS = os.environ.get("ACTIVESTORE_SEEDS", "")
# Of each kind and case; of those that are costly, or vary less, fewer.
COUNTS = {
    "decay": 1, "set_back": 3, "large": 1, "streams": 1, "forced": 1, "deposed": 1,
    "authors": 1,
}  # fmt: skip
pytestmark = [pytest.mark.scaled, pytest.mark.slow]


def _all() -> list[object]:
    return [
        pytest.param(kind, case, seed, id=f"{kind}-{case}-{seed}")
        for kind, played in HISTORIES.items()
        for case in played.cases
        for seed in seeds(int(SEEDS or COUNTS.get(kind, 3)))
    ]


@pytest.mark.parametrize(("kind", "case", "seed"), _all())
def test_what_was_acknowledged_is_there_once_at_every_member(
    kind: str, case: str, seed: int
) -> None:
    HISTORIES[kind].play(case, seed)
