"""Daemons that find each other by mDNS, and what `status` says of it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.serial]

# Probing takes zeroconf a second; a loaded machine more.
FOUND_S_MAX = 30.0


def seen_by(peer: Any) -> set[str]:
    """Return the names of the peers that one sees alive."""
    return {
        row["peer"]
        for row in peer.run("peers", "--json").json
        if row["state"] == "alive"
    }


def wait_until_seen(peer: Any, names: set[str]) -> None:
    until_s = time.monotonic() + FOUND_S_MAX
    while (seen := seen_by(peer)) != names:
        assert time.monotonic() < until_s, f"sees {seen}: {peer.log()}"
        time.sleep(0.1)


@pytest.mark.usefixtures("multicasts")
def test_daemons_of_one_cluster_find_each_other_and_nobody_else(
    make_peer: Callable[..., Any], gadgets: str
) -> None:
    cluster = f"found-{secrets.token_hex(4)}"
    flags = ["--discover", "--log-level", "info"]
    one = make_peer(*flags, "--cluster", cluster, "--name", "one")
    two = make_peer(*flags, "--cluster", cluster, "--name", "two")
    stranger = make_peer(*flags, "--cluster", f"{cluster}-other", "--name", "three")

    for peer in (one, two):
        wait_until_seen(peer, {"one", "two"})

    assert seen_by(stranger) == {"three"}
    about = one.run("status", "--json").json
    assert about["discovery"] == {"is_on": True, "trouble": ""}
    assert "discovery\tworks" in one.run("status").out
    # They are a cluster as any: what one holds is called at the other.
    assert one.run("publish", gadgets).code == 0
    made = one.run("create", "gadgets.Gauge", "5", "five", "--json").json
    shown = two.run("show", made["object_id"], "--json")
    assert shown.code == 0, shown
    assert shown.json["peer"] == "one"


def test_peer_that_discovers_can_start_where_there_is_nobody(
    make_peer: Callable[..., Any],
) -> None:
    """And it ends at once: a goodbye to the network is no reason to wait."""
    peer = make_peer("--discover", "--cluster", f"alone-{secrets.token_hex(4)}")
    start_s = time.monotonic()

    assert peer.stop() == 0

    assert time.monotonic() - start_s < 10.0


def test_status_says_whom_a_peer_cannot_join_and_why(
    make_peer: Callable[..., Any],
) -> None:
    other = make_peer("--cluster", "theirs")
    peer = make_peer("--cluster", "ours", "--join", other.endpoint)

    until_s = time.monotonic() + FOUND_S_MAX
    while not (about := peer.run("status", "--json").json)["cannot_join"]:
        assert time.monotonic() < until_s, peer.log()
        time.sleep(0.1)

    assert "theirs" in about["cannot_join"][other.endpoint]
    assert f"cannot join\t{other.endpoint}" in peer.run("status").out
    (trouble,) = about["troubles"]
    assert (trouble["kind"], trouble["about"]) == ("join", other.endpoint)
    assert "turned away\tpeer " in other.run("status").out
    assert about["discovery"] == {"is_on": False, "trouble": ""}
