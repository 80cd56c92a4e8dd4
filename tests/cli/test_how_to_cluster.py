"""The commands of docs/how-to/cluster.md and replicate.md run as they stand there."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "how-to"
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.M | re.S)


def free_ports(count: int) -> int:
    """Return the first of some ports in a row that are free."""
    for base in range(17_411, 60_000, 97):
        held = [socket.socket() for _ in range(count)]
        try:
            for number, one in enumerate(held):
                one.bind(("127.0.0.1", base + number))
        except OSError:
            continue
        finally:
            for one in held:
                one.close()
        return base
    raise AssertionError("no free ports")


@pytest.fixture
def shell(
    tmp_path: Path, environment: Callable[..., dict[str, str]], command: list[str]
) -> Any:
    """Return what runs lines in a shell where `activestore-node` is ours."""
    program = tmp_path / "bin" / "activestore-node"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {" ".join(command)} "$@"\n')
    program.chmod(0o755)
    variables = environment(
        XDG_DATA_HOME=str(tmp_path / "home"),
        PATH=f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), *sys.path[:1]])),
    )

    def run(lines: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-exc", lines],
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )

    yield run
    run("activestore-node down")


def lines_of(page: str, first_port: int) -> str:
    """Return the commands of a page, its three ports replaced by free ones."""
    lines = "".join(BLOCK.findall((PAGES / page).read_text()))
    base = free_ports(3)
    for number in range(3):
        lines = lines.replace(str(first_port + number), str(base + number))
    return lines


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.timeout(120)
def test_commands_of_the_page_on_clusters_run(shell: Any) -> None:
    done = shell(lines_of("cluster.md", 7411))

    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows if row[0] in {"6", "7", "8"}] == ["6", "7", "8"]
    # `show` after the move.
    assert ["peer", "edge-2"] in [row[:2] for row in rows]
    # `down` stops all three: the drained one was brought back.
    assert {row[0] for row in rows if row[-1] == "stopped"} == {
        "edge-1",
        "edge-2",
        "cloud",
    }


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.timeout(120)
def test_commands_of_the_page_on_replicas_run(shell: Any) -> None:
    done = shell(lines_of("replicate.md", 7431))

    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows if row[0] in {"6", "7"}] == ["6", "7"]
    # `show` before and after the primary died.
    copies = [row[1] for row in rows if row[0] == "copies"]
    assert copies == ["3 of 3", "2 of 3, NOT WHOLE"]
    roles = [row[1].partition(",")[0] for row in rows if row[0] == "at edge-1"]
    assert roles == ["primary", "replica"]
    # `doctor` says so, and `replicate` leaves two.
    assert ["!!", "object safe"] in [row[:2] for row in rows]
    members = [row[2] for row in rows if len(row) == 6 and row[3] == "alive"]
    assert sorted(members) == ["primary", "replica"]
