"""Random histories of registers: nothing acknowledged is lost, doubled, or seen late.

A failing seed is printed with its case; `run(seed, CASES[name])` plays it again.
`ACTIVESTORE_REGISTER_HISTORIES` sets how many there are.

Source: reliability.md 3.4 to 3.6; issue 4, "It must hold".
"""

from __future__ import annotations

import os

import pytest

from tests.simulation.register_histories import CASES, history_of, run

HISTORIES = int(os.environ.get("ACTIVESTORE_REGISTER_HISTORIES", "1000"))
# So many tests share them, so that they spread over all processes.
CHUNKS = 20
pytestmark = [pytest.mark.scaled, pytest.mark.slow]


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_nothing_acknowledged_is_lost_or_doubled(chunk: int) -> None:
    for number in range(chunk, HISTORIES, CHUNKS):
        name, seed = history_of(number)
        try:
            run(seed, CASES[name])
        except AssertionError as error:
            command = f"run({seed}, CASES[{name!r}])"
            raise AssertionError(f"replay by {command}: {error}") from error


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        # A witness was sent a state older than what was committed, with the group since.
        ("many_groups", 800307),
        # A candidate whose state was found damaged while it was promised led without one.
        ("damages", 20980),
        # A learner refused after the delete of its object.
        ("everything", 21417),
        # A member that was replaced while away kept its copy of what was deleted since.
        ("everything", 200604),
        # A leader left its group, and its word to its successor was lost.
        ("many_groups", 403),
    ],
)
def test_history_that_found_something_once_finds_nothing(name: str, seed: int) -> None:
    run(seed, CASES[name])
