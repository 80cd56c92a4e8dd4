"""Who stands in for whom: the same answer everywhere, and little moves when peers do."""

from __future__ import annotations

from collections import Counter

import pytest

from activestore.core.peers import buddies_of, rendezvous
from activestore.wire.gossip import PeerRecord
from tests.core.cluster_world import peer_id_of, record_of

PEERS = [peer_id_of(n) for n in range(20)]


def peer(number: int, **meta: object) -> PeerRecord:
    zone = str(meta.pop("zone", "home"))
    return record_of(number, zone=zone, meta={"host": f"host-{number}", **meta})


def test_rendezvous_is_the_same_everywhere() -> None:
    """Another version that chose other peers would look for objects elsewhere."""
    found = rendezvous(b"alias", PEERS, 3)

    assert found == rendezvous(b"alias", list(reversed(PEERS)), 3)
    assert [one.hex() for one in found] == EXPECTED


EXPECTED = ["700000000003", "70000000000e", "700000000009"]


def test_keys_are_spread_evenly() -> None:
    counts = Counter(
        rendezvous(n.to_bytes(4, "big"), PEERS, 1)[0] for n in range(10_000)
    )

    assert len(counts) == 20
    assert min(counts.values()) > 400
    assert max(counts.values()) < 600


def test_peer_that_goes_moves_only_its_own_keys() -> None:
    keys = [n.to_bytes(4, "big") for n in range(500)]
    before = {key: rendezvous(key, PEERS, 1) for key in keys}

    after = {key: rendezvous(key, PEERS[1:], 1) for key in keys}

    moved = [key for key in keys if before[key] != after[key]]
    assert moved
    assert all(before[key] == [PEERS[0]] for key in moved)


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 1), (5, 5), (30, 20)])
def test_rendezvous_gives_as_many_as_there_are(count: int, expected: int) -> None:
    assert len(set(rendezvous(b"key", PEERS, count))) == expected


def test_buddies_are_on_other_hosts_stable_and_near() -> None:
    home = peer(0)
    peers = [
        home, peer(1, host="host-0"), peer(2, stable=False), peer(3, zone="cloud"),
        peer(4), peer(5),
    ]  # fmt: skip

    found = buddies_of(home.peer_id, peers, home)

    assert set(found) == {peer_id_of(4), peer_id_of(5)}


def test_two_buddies_are_on_two_hosts() -> None:
    home = peer(0)
    peers = [home, peer(1, host="one"), peer(2, host="one"), peer(3, zone="cloud")]

    found = buddies_of(home.peer_id, peers, home)

    assert peer_id_of(3) in found
    assert len(found) == 2


def test_one_machine_with_three_peers_has_buddies_all_the_same() -> None:
    peers = [peer(n, host="only") for n in range(3)]

    assert set(buddies_of(peers[0].peer_id, peers, peers[0])) == {
        peer_id_of(1), peer_id_of(2),
    }  # fmt: skip


def test_buddies_of_a_home_that_nobody_knows() -> None:
    peers = [peer(n) for n in range(1, 6)]

    found = buddies_of(peer_id_of(0), peers)

    assert len(found) == 2
    assert found == buddies_of(peer_id_of(0), list(reversed(peers)))
    assert buddies_of(peer_id_of(0), []) == []


def test_buddies_stay_when_another_peer_comes_or_goes() -> None:
    peers = [peer(n) for n in range(12)]
    found = buddies_of(peers[0].peer_id, peers, peers[0])

    for gone in peers[1:]:
        if gone.peer_id not in found:
            rest = [one for one in peers if one is not gone]
            assert buddies_of(peers[0].peer_id, rest, peers[0]) == found
