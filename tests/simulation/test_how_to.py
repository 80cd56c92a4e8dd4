"""The examples of docs/how-to/simulate.md and check-histories.md run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "how-to"
BLOCK = re.compile(r"^```python\n# (?P<name>\w+\.py)\n(?P<code>.*?)^```", re.M | re.S)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "names", "passed"),
    [
        ("simulate.md", {"bank.py", "test_bank.py", "test_histories.py"}, 23),
        ("check-histories.md", {"test_account.py"}, 20),
    ],
)
def test_examples_of_the_page_pass(
    tmp_path: Path, page: str, names: set[str], passed: int
) -> None:
    text = (PAGES / page).read_text()
    files = {found["name"]: found["code"] for found in BLOCK.finditer(text)}
    assert set(files) == names
    for name, code in files.items():
        (tmp_path / name).write_text(code)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{passed} passed" in done.stdout
