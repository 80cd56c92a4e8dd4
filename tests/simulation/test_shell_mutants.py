"""Histories or tests notice what the shell does wrong on purpose, and the page says so.

Only the recorded histories are played, and some after them where needed; see
`tests.simulation.shell_mutants`.
"""

from __future__ import annotations

import re

import pytest

from tests.simulation.mutants import PAGE, Mutant
from tests.simulation.replica_histories import HISTORIES
from tests.simulation.shell_mutants import (
    HEADER,
    MUTANTS,
    TEST,
    is_failing,
    killed,
    recorded,
    row_of,
)

pytestmark = pytest.mark.slow
# A time that is changed anywhere changes every history a little: then one of those that
# follow on the recorded one must notice.
SEEDS_MAX = 20
WRITE_ANEW = (
    "no history near the recorded one notices it any more: find and write others with "
    "PYTHONPATH=. python -m tests.simulation.shell_mutants NAME"
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_what_the_shell_does_wrong_is_noticed(mutant: Mutant) -> None:
    kill = recorded(mutant)

    seeds = range(kill.seed, kill.seed + (1 if kill.kind == TEST else SEEDS_MAX))
    killers = (one for one in seeds if killed(mutant, kill.kind, kill.case, one))
    seed = next(killers, None)

    assert seed is not None, WRITE_ANEW
    # What is right is no finding.
    if kill.kind == TEST:
        assert not is_failing(kill.case, "")
    else:
        HISTORIES[kill.kind].play(kill.case, seed)


def test_the_page_tells_of_every_mutant_of_the_shell() -> None:
    text = PAGE.read_text(encoding="utf-8").partition(HEADER)[2]
    told = re.findall(r"^\| [a-z]+ \| `(\w+)`", text, re.MULTILINE)

    assert told == [mutant.name for mutant in MUTANTS]
    for mutant in MUTANTS:
        assert row_of(mutant, recorded(mutant)) in text
