"""Imports point down only, as the contracts in pyproject.toml say; and these bite."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def run_linter(directory: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts on the package in `directory`."""
    code = (
        "import sys; from importlinter.cli import lint_imports; "
        "sys.exit(lint_imports(config_filename='pyproject.toml', no_cache=True))"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(directory)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_imports_point_down_only() -> None:
    result = run_linter(ROOT)

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("package", "line", "contract"),
    [
        ("core", "import time", "Protocol cores are pure"),
        ("core", "import logging", "Protocol cores are pure"),
        ("core", "from activestore.storage import intruder", "Layers point down only"),
        ("wire", "import cloudpickle", "Protocol cores are pure"),
        ("storage", "from activestore.objects import intruder", "Layers point down"),
        ("objects", "import zmq", "zmq lives in"),
        ("peer", "from activestore.client import intruder", "Layers point down only"),
        ("peer", "import lmdb", "lmdb lives in"),
        ("storage", "import msgpack", "msgpack lives in"),
        ("peer", "import zeroconf", "zeroconf lives in peer.discovery"),
        ("peer", "import click", "click and rich live in cli"),
        ("client", "import pickle", "The thin client needs"),
        ("client", "from activestore.core import intruder", "The thin client needs"),
    ],
)
def test_forbidden_import_breaks_its_contract(
    tmp_path: Path, package: str, line: str, contract: str
) -> None:
    """A contract that nothing can break guards nothing."""
    shutil.copytree(ROOT / "activestore", tmp_path / "activestore")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in ("client", "core", "objects", "peer", "storage", "wire"):
        (tmp_path / "activestore" / folder / "intruder.py").write_text("")
    (tmp_path / "activestore" / package / "intruder.py").write_text(line + "\n")

    result = run_linter(tmp_path)

    assert result.returncode == 1, result.stdout + result.stderr
    broken = [text for text in result.stdout.splitlines() if "BROKEN" in text]
    assert any(text.startswith(contract) for text in broken), result.stdout


@pytest.mark.parametrize(
    "module", ["peer/loop", "peer/ports", "peer/transport", "client/session"]
)
def test_module_that_a_contract_names_by_pattern_exists(module: str) -> None:
    """A pattern that matches nothing is no error to the linter."""
    assert (ROOT / "activestore" / f"{module}.py").is_file()


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "activestore").rglob("*.py")),
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_no_module_imports_the_facade(path: Path) -> None:
    """The facade imports them: the other way round is a circle."""
    modules = {"activestore"}
    for other in (ROOT / "activestore").iterdir():
        modules.add(f"activestore.{other.stem}")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert "activestore" not in [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            if node.module == "activestore":
                for alias in node.names:
                    assert f"activestore.{alias.name}" in modules, alias.name
