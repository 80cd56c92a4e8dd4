"""Calls that a leader makes of other objects after another leads in its place.

Source: reliability.md 3.4 R7; decision 11.
"""

from __future__ import annotations

import pytest

from tests.simulation.mutants import PAGE, Mutant
from tests.simulation.replica_authors import MEANWHILE, play_deposed
from tests.simulation.shell_mutants import MUTANTS, killed, recorded, row_of

# The first seed of each is played with the other histories of replicas.
SEED = 2


@pytest.mark.parametrize("case", list(MEANWHILE))
def test_call_of_a_leader_that_does_not_know_that_it_is_deposed_is_refused(
    case: str,
) -> None:
    play_deposed(case, SEED)


@pytest.mark.parametrize(
    "mutant", [one for one in MUTANTS if one.rule == "fences"], ids=lambda one: one.name
)
def test_fence_that_is_left_out_is_noticed(mutant: Mutant) -> None:
    """R7 is broken on purpose; the page says by which history that is seen."""
    kill = recorded(mutant)

    assert killed(mutant, kill.kind, kill.case, kill.seed) == kill.by
    assert row_of(mutant, kill) in PAGE.read_text(encoding="utf-8")
