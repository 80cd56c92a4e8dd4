"""Seeds of tests, and the command that plays one of them again.

Rules of this file: it reads two environment variables and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

SEED_VARIABLE = "ACTIVESTORE_SEED"


def seeds(count: int, *, first: int = 0) -> Sequence[int]:
    """Return the seeds to run a test with, for `pytest.mark.parametrize`.

    Args:
        count: How many, at least 1.
        first: The lowest; another one gives other histories.

    With `$ACTIVESTORE_SEED` set, that seed alone.
    """
    chosen = os.environ.get(SEED_VARIABLE, "")
    if chosen:
        return [int(chosen)]
    return range(first, first + count)


def replay_command(seed: int) -> str:
    """Return the command that plays a simulation of the running test again."""
    node = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0]
    if not node:
        return f"Simulation(seed={seed})"
    return f"{SEED_VARIABLE}={seed} python -m pytest '{node}'"
