"""What `make soak` runs is what it says: it once selected a single test."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = (
    "tests/wire/test_fuzz.py::test_random_frames",
    "tests/integration/test_kills.py::test_every_acknowledged_change_survives",
    "tests/integration/test_many_peers.py::test_three_of_many_are_killed_and_calls_else",
    "tests/integration/test_move_kills.py::test_counters_stay_exact_while_they_move",
    "tests/integration/test_time.py::test_method_of_ninety_seconds",
    "tests/integration/test_trouble.py::test_calls_over_a_link_that_breaks",
    "tests/core/test_histories.py::test_retries_at_any_moment_run_once",
    "tests/simulation/test_cluster_histories.py::test_every_acknowledged_add_counts_once",
    "tests/simulation/test_cluster_histories.py::test_thousand_peers",
    "tests/simulation/test_deadlocks.py::test_rings_in_any_order_end",
    "tests/simulation/test_moves_cut_short.py::test_object_has_one_owner_after_a_death",
    "tests/simulation/test_registers.py::test_nothing_acknowledged_is_lost_or_doubled",
)


def test_soak_selects_the_tests_that_it_scales() -> None:
    recipe = (ROOT / "Makefile").read_text().split("\nsoak:")[1].split("\n\n")[0]
    marks = re.search(r"-m '([^']+)'", recipe)
    assert marks is not None
    files = sorted({name.split("::")[0] for name in EXPECTED})

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", marks[1], *files],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip

    for name in EXPECTED:
        assert name in done.stdout, done.stdout[-2000:]


def test_every_variable_of_soak_is_read_by_a_test() -> None:
    recipe = (ROOT / "Makefile").read_text().split("\nsoak:")[1].split("\n\n")[0]
    names = set(re.findall(r"ACTIVESTORE_\w+", recipe))
    read = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r'environ\.get\("(ACTIVESTORE_\w+)"', path.read_text())
    }
    assert names <= read
