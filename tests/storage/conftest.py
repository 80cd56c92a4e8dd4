"""What the storage tests share: an engine in a fresh directory, states, changes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from activestore.ids import PeerId
from activestore.storage.engine import Damage, Engine
from activestore.storage.lmdb_engine import LmdbEngine
from activestore.storage.memory_engine import MemoryDisk, MemoryEngine

GIB = 1 << 30

Open = Callable[..., LmdbEngine]


@pytest.fixture
def open_engine(tmp_path: Path) -> Iterator[Open]:
    """Return a function that opens an engine and closes the one before."""
    opened: list[LmdbEngine] = []

    def open_one(path: Path = tmp_path / "data", *, budget: int = GIB) -> LmdbEngine:
        while opened:
            opened.pop().close()
        opened.append(
            LmdbEngine.open(path, disk_budget_bytes=budget, wall_clock=lambda: 1000.0)
        )
        return opened[0]

    yield open_one
    for engine in opened:
        engine.close()


@pytest.fixture(params=["lmdb", "memory"])
def reopen(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[..., Engine]]:
    """Return a function that opens the store of the test, again if need be."""
    yield from _reopening(request.param, tmp_path / "data", PeerId(b"peer66"))


@pytest.fixture
def reopen_other(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[..., Engine]]:
    """Return the same for a second store, of another peer and the same kind."""
    kind = request.node.callspec.params["reopen"]
    yield from _reopening(kind, tmp_path / "other", PeerId(b"other6"))


def _reopening(
    kind: str, path: Path, peer_id: PeerId
) -> Iterator[Callable[..., Engine]]:
    opened: list[Engine] = []
    disk = MemoryDisk(peer_id)

    def open_one(*, budget: int = 1 << 30) -> Engine:
        while opened:
            opened.pop().close()
        options: Any = {"disk_budget_bytes": budget, "wall_clock": lambda: 1000.0}
        opened.append(
            MemoryEngine(disk, **options)
            if kind == "memory"
            else LmdbEngine.open(path, **options)
        )
        return opened[0]

    yield open_one
    for engine in opened:
        assert not [found for found in engine.verify() if isinstance(found, Damage)]
        engine.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a directory on a disk of 24 MiB; only root can make one."""
    if os.geteuid() != 0:
        pytest.skip("a small disk can be mounted by root only")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def engine(reopen: Callable[..., Engine]) -> Engine:
    """Return an empty store, on disk and in memory in turn."""
    return reopen()
