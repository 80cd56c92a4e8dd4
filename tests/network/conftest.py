"""Networks of hosts for tests; skipped with the reason where the machine forbids it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The harness is modules beside this file; no test folder is a package.
sys.path.insert(0, str(Path(__file__).parent))

import hosts

SEED = 20260


@pytest.fixture(scope="session")
def _able() -> None:
    why = hosts.unable()
    if why:
        pytest.skip(why)
    hosts.sweep()


@pytest.fixture
def network(
    _able: None, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[hosts.Network]:
    """Return a network without hosts; all that it gets is gone after the test."""
    made = hosts.Network(tmp_path, SEED)
    try:
        yield made
    finally:
        for host in made.hosts.values():
            for peer in host.peers:
                # Shown by pytest where the test fails.
                print(f"-- log of {peer.name}\n{peer.log()}")
        made.close()
