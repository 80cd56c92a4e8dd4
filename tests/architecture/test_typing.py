"""What a user's type checker sees of an active object."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import activestore

ROOT = Path(__file__).resolve().parents[2]

SNIPPET = '''\
"""A user's program."""

from collections.abc import Iterator

from activestore import ActiveObject, activemethod


class Counter(ActiveObject):
    value: int

    def __init__(self, value: int = 0) -> None:
        self.value = value

    @activemethod
    def add(self, n: int) -> int:
        self.value += n
        return self.value

    @activemethod(readonly=True)
    def peek(self) -> str:
        return str(self.value)

    @activemethod
    def count(self, upto: int) -> Iterator[int]:
        yield from range(upto)


c = Counter(5)
c.add(1)
c.add("x")  # wrong: argument
c.add.submit("x")  # wrong: argument
c.add(1, 2)  # wrong: too many
c.peek().upper()
c.nothing()  # wrong: no such method
reveal_type(c.add(1))  # shows: int
reveal_type(c.add.submit(1).result())  # shows: int
reveal_type(c.peek())  # shows: str
reveal_type(c.add.options(timeout_s=5.0)(1))  # shows: int
reveal_type(c.peek.options(staleness_s=5)())  # shows: str
reveal_type(c.peek.with_info()[0])  # shows: str
c.add.with_info("x")  # wrong: argument
reveal_type(c.count.stream(3))  # shows: Iterator[int]
reveal_type(c.make_persistent(alias="hits"))  # shows: Counter
reveal_type(Counter.get_by_alias("hits"))  # shows: Counter
'''


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """What mypy says of each line of the snippet."""
    folder = tmp_path_factory.mktemp("typing")
    program = folder / "program.py"
    program.write_text(SNIPPET)
    # Without a configuration file: a user's own settings, here the strict ones.
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent"]
    command += ["--config-file=", f"--cache-dir={folder / 'cache'}", program.name]
    result = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    found: dict[int, str] = {}
    for line in result.stdout.splitlines():
        match = re.match(r"program\.py:(\d+): (?:error|note): (.*)", line)
        if match:
            number = int(match[1])
            found[number] = f"{found.get(number, '')}{match[2]}\n"
    assert found, result.stdout + result.stderr
    return found


def marked(mark: str) -> list[int]:
    """Return the numbers of the snippet's lines that carry `mark`."""
    lines = SNIPPET.splitlines()
    return [number for number, line in enumerate(lines, 1) if f"# {mark}: " in line]


@pytest.mark.slow
def test_only_wrong_calls_are_errors(findings: dict[int, str]) -> None:
    errors = {n for n, text in findings.items() if "Revealed type" not in text}

    assert errors == set(marked("wrong")), findings


@pytest.mark.slow
def test_results_have_the_type_of_the_method(findings: dict[int, str]) -> None:
    lines = SNIPPET.splitlines()
    for number in marked("shows"):
        expected = lines[number - 1].partition("# shows: ")[2]
        revealed = findings[number]
        # mypy qualifies names, and its versions differ in how: builtins.int, int.
        plain = re.sub(r"\b(?:\w+\.)+(?=\w)", "", revealed)
        assert f'"{expected}"' in plain.replace("int*", "int"), (number, revealed)


def test_marker_for_type_checkers_is_shipped() -> None:
    package = Path(activestore.__file__).parent
    configuration = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    assert (package / "py.typed").is_file()
    assert 'activestore = ["py.typed"]' in configuration
