"""Many peers that start together: who is suspected, what it costs, what is remembered.

They are whole peers, each with its loop and all its cores.
"""

from __future__ import annotations

import pytest

from activestore.core import membership as membership_module
from activestore.peer.cluster import KNOWN_MAX, REMEMBER_INTERVAL_S, REMEMBER_SOON_S
from activestore.storage.memory_engine import MemoryEngine
from activestore.testing import Simulation
from activestore.testing.peers import SimPeer
from activestore.wire import packing
from tests.simulation.clusters import join

LARGE = 40


def remembered(peer: SimPeer) -> list[str]:
    """Return the addresses that a peer's disk holds."""
    engine = MemoryEngine(peer.disk, disk_budget_bytes=1 << 30, wall_clock=lambda: 0.0)
    row = engine.row("cluster", b"peers")
    return [] if row is None else list(packing.unpack(row))


def test_first_probe_over_a_new_link_is_answered() -> None:
    """It shares a frame with the Hello that makes the link; it was once refused."""
    with Simulation(seed=3, peers=LARGE) as sim:
        join(sim)
        sim.run(5.0)

        notes = [text for peer in sim.peers.values() for _, text in peer.notes]
        assert not [text for text in notes if "suspect" in text]
        assert {p.loop.cluster.membership.health for p in sim.peers.values()} == {0}


def test_one_that_is_found_compares_everything_with_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each comparison costs a row for each member: with each that comes, N times N."""
    compared: list[bytes] = []
    whole = membership_module.Membership._sync_with

    def counted(self, target, endpoints=None) -> None:
        compared.append(self.me.peer_id)
        whole(self, target, endpoints)

    monkeypatch.setattr(membership_module.Membership, "_sync_with", counted)
    with Simulation(seed=4, peers=LARGE) as sim:
        join(sim)
        duration_s = sim.now_s

    # With three seeds at the start, then by push-pull, each after at least half a second.
    assert max(map(compared.count, set(compared))) <= 3 + 1 + 2 * duration_s


def test_addresses_are_written_soon_and_not_for_every_peer_that_comes() -> None:
    with Simulation(seed=5, peers=LARGE) as sim:
        written: dict[str, list[list[str]]] = {name: [] for name in sim.peers}

        def look(peer: SimPeer) -> None:
            known = remembered(peer)
            if known and (not written[peer.name] or written[peer.name][-1] != known):
                written[peer.name].append(known)

        sim.checks.append(look)
        join(sim)
        sim.run(REMEMBER_SOON_S + REMEMBER_INTERVAL_S + 1.0)

        for peer in sim.peers.values():
            assert 1 <= len(written[peer.name]) <= 2 + sim.now_s / REMEMBER_INTERVAL_S
            assert len(remembered(peer)) == KNOWN_MAX


def test_peer_that_stops_at_once_has_written_whom_it_met() -> None:
    with Simulation(seed=6, peers=3) as sim:
        met = sim.run_until(
            lambda: bool(sim.peers["peer-1"].loop.cluster.endpoints()), timeout_s=5.0
        )
        assert met
        assert remembered(sim.peers["peer-1"]) == []
        sim.stop("peer-1")
        sim.run(1.0)

        assert remembered(sim.peers["peer-1"])
