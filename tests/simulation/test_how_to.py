"""The examples of docs/how-to/simulate.md run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "how-to" / "simulate.md"
BLOCK = re.compile(r"^```python\n# (?P<name>\w+\.py)\n(?P<code>.*?)^```", re.M | re.S)


@pytest.mark.slow
def test_examples_of_the_page_pass(tmp_path: Path) -> None:
    files = {found["name"]: found["code"] for found in BLOCK.finditer(PAGE.read_text())}
    assert set(files) == {"bank.py", "test_bank.py", "test_histories.py"}
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
    assert "23 passed" in done.stdout
