"""The histories notice every rule that is broken on purpose, and the page says so.

Only the recorded histories are played, and some after them where needed; see
`tests.simulation.mutants`.
"""

from __future__ import annotations

import re

import pytest

from tests.simulation.mutants import MUTANTS, PAGE, Mutant, reason_of, recorded, row_of
from tests.simulation.register_histories import CASES, history_of, run

# R7 is broken in shell_mutants, R11 (leases) is not built, R12 is about speed.
WRITE_ANEW = (
    "no history near the recorded one notices it any more: find and write others "
    "with PYTHONPATH=. python -m tests.simulation.mutants"
)
# A time that is changed anywhere in the core changes every history a little: then one
# of those that follow on the recorded one must notice.
SEEDS_MAX = 40
RULES = {"R1", "R2", "R3", "R4", "R5", "R6", "R8", "R9", "R10"}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_rule_is_noticed(
    mutant: Mutant, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill = recorded(mutant)
    assert history_of(kill.number - 1) == (kill.case, kill.seed)
    run(kill.seed, CASES[kill.case])
    mutant.apply(monkeypatch)

    by = ""
    for seed in range(kill.seed, kill.seed + SEEDS_MAX):
        try:
            run(seed, CASES[kill.case])
        except AssertionError as error:
            by = reason_of(error)
            break

    assert by, WRITE_ANEW


def test_every_rule_has_a_mutant_and_the_page_tells_of_all() -> None:
    text = PAGE.read_text(encoding="utf-8")
    told = re.findall(r"^\| R\d+ \| `(\w+)`", text, re.MULTILINE)

    assert {mutant.rule for mutant in MUTANTS} == RULES
    assert told == [mutant.name for mutant in MUTANTS]
    for mutant in MUTANTS:
        assert row_of(mutant, recorded(mutant)) in text
