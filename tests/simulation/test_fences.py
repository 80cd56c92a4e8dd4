"""Calls that a leader makes of other objects after another leads in its place.

Source: reliability.md 3.4 R7; decision 11.
"""

from __future__ import annotations

import pytest

from tests.simulation.replica_authors import MEANWHILE, play_deposed

# The first seed of each is played with the other histories of replicas.
SEED = 2


@pytest.mark.parametrize("case", list(MEANWHILE))
def test_call_of_a_leader_that_does_not_know_that_it_is_deposed_is_refused(
    case: str,
) -> None:
    play_deposed(case, SEED)
