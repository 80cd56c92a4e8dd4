"""How long a suspect has: longer where one accuses it, shorter where many do."""

from __future__ import annotations

import pytest

from activestore.core.profiles import (
    EDGE,
    LAN,
    WAN,
    MembershipConfig,
    profile_between,
    push_pull_interval_s,
    retransmits,
    suspicion_bounds,
)
from activestore.core.suspicion import Suspicion, suspicion_timeout_s
from tests.core.cluster_world import record_of

A, B, C, D = (bytes([n]) * 6 for n in range(4))


@pytest.mark.parametrize(
    ("peers", "shortest_s", "longest_s"),
    [(10, 4.0, 24.0), (100, 8.0, 48.0), (1000, 12.0, 72.0), (10_000, 16.0, 96.0)],
)
def test_bounds_are_those_of_memberlist(
    peers: int, shortest_s: float, longest_s: float
) -> None:
    """Source: reliability.md 1.2, the table."""
    wanted, low_s, high_s = suspicion_bounds(LAN, peers)

    assert wanted == 2
    assert (low_s, high_s) == pytest.approx((shortest_s, longest_s))


@pytest.mark.parametrize("peers", [2, 3])
def test_two_or_three_peers_wait_longer_than_the_minimum(peers: int) -> None:
    """Nobody could confirm, so memberlist would give them no grace at all."""
    assert suspicion_bounds(LAN, peers) == (0, 8.0, 8.0)
    assert suspicion_bounds(LAN, 4) == (2, 4.0, 24.0)


@pytest.mark.parametrize(
    ("peers", "sends", "interval_s"),
    [
        (10, 8, 30.0),
        (32, 8, 30.0),
        (100, 12, 90.0),
        (1000, 16, 180.0),
        (10_000, 20, 300),
    ],
)
def test_news_and_push_pulls_scale_as_in_the_table(
    peers: int, sends: int, interval_s: float
) -> None:
    """Source: reliability.md 1.2, the table."""
    assert retransmits(peers) == sends
    assert push_pull_interval_s(LAN, peers) == interval_s


def test_timeout_falls_with_the_logarithm_of_confirmations() -> None:
    """Source: hashicorp/memberlist suspicion_test.go, TestSuspicion_remainingSuspicionTime."""
    times = [
        suspicion_timeout_s(n, 3, timeout_s_min=2.0, timeout_s_max=30.0)
        for n in range(5)
    ]

    assert times[:4] == pytest.approx([30.0, 16.0, 7.81, 2.0], abs=0.01)
    assert times[4] == 2.0


def test_each_accuser_counts_once() -> None:
    suspicion = Suspicion(A, 100.0, (2, 4.0, 24.0))

    assert suspicion.deadline_s == 124.0
    assert not suspicion.confirm(A)
    assert suspicion.confirm(B)
    assert not suspicion.confirm(B)
    assert 104.0 < suspicion.deadline_s < 124.0
    assert suspicion.confirm(C)
    assert suspicion.deadline_s == pytest.approx(104.0)


def test_confirmations_beyond_those_wanted_are_no_news() -> None:
    suspicion = Suspicion(A, 0.0, (2, 4.0, 24.0))
    suspicion.confirm(B)
    suspicion.confirm(C)

    assert not suspicion.confirm(D)
    assert len(suspicion.accusers) == 3


def test_postponed_suspicion_keeps_its_extra_time_when_confirmed() -> None:
    suspicion = Suspicion(A, 0.0, (2, 4.0, 24.0))

    suspicion.postpone(10.0)
    suspicion.confirm(B)
    suspicion.confirm(C)

    assert suspicion.deadline_s == pytest.approx(14.0)


@pytest.mark.parametrize(
    ("mine", "other", "expected"),
    [
        (("home", "lan"), ("home", "lan"), LAN),
        (("home", "lan"), ("home", "edge"), EDGE),
        (("home", "edge"), ("home", "lan"), EDGE),
        (("home", "lan"), ("away", "lan"), WAN),
        (("home", "edge"), ("away", "edge"), WAN),
        (("home", "lan"), ("home", "wan"), WAN),
        (("home", "lan"), ("home", "of a newer version"), WAN),
    ],
)
def test_pair_keeps_the_rhythm_of_its_network(
    mine: tuple[str, str], other: tuple[str, str], expected: object
) -> None:
    me = record_of(1, zone=mine[0], profile=mine[1])
    peer = record_of(2, zone=other[0], profile=other[1])

    assert profile_between(me, peer, MembershipConfig()) is expected
