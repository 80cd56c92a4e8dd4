"""The histories notice every rule that is broken on purpose, and the page says so.

Only the recorded histories are played; see `tests.simulation.mutants`.
"""

from __future__ import annotations

import re

import pytest

from tests.simulation.mutants import MUTANTS, PAGE, Mutant, reason_of, recorded, row_of
from tests.simulation.register_histories import CASES, history_of, run

# R7 is the invocation core's, R11 (leases) is not built, R12 is about speed.
WRITE_ANEW = (
    "histories or core have changed, so other seeds notice it: find and write them anew "
    "with PYTHONPATH=. python -m tests.simulation.mutants"
)
RULES = {"R1", "R2", "R3", "R4", "R5", "R6", "R8", "R9", "R10"}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_rule_is_noticed(
    mutant: Mutant, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill = recorded(mutant)
    assert history_of(kill.number - 1) == (kill.case, kill.seed)
    run(kill.seed, CASES[kill.case])
    mutant.apply(monkeypatch)

    by = "nothing"
    try:
        run(kill.seed, CASES[kill.case])
    except AssertionError as error:
        by = reason_of(error)

    assert by == kill.by, WRITE_ANEW


def test_every_rule_has_a_mutant_and_the_page_tells_of_all() -> None:
    text = PAGE.read_text(encoding="utf-8")
    told = re.findall(r"^\| R\d+ \| `(\w+)`", text, re.MULTILINE)

    assert {mutant.rule for mutant in MUTANTS} == RULES
    assert told == [mutant.name for mutant in MUTANTS]
    for mutant in MUTANTS:
        assert row_of(mutant, recorded(mutant)) in text
