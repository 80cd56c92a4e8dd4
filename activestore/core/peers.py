"""Who the peers are, and which of them stand in for which: pure functions of records.

Rendezvous hashing (highest random weight): every peer gives each key a score, and the
highest scores have it. Whoever knows the same peers gets the same answer, and a peer that
comes or goes moves only what is its own.

Source: reliability.md 2.2; Thaler and Ravishankar, "A name-based mapping scheme for
rendezvous", 1996.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable

from activestore.wire.gossip import PeerRecord, PeerState

__all__ = [
    "BUDDIES_COUNT",
    "PeerRecord",
    "PeerState",
    "buddies_of",
    "host_of",
    "is_stable",
    "rendezvous",
    "start_of",
]

# Who keeps the exceptions of a home beside the home itself: two, so that one of three
# is enough, and any two may be away.
BUDDIES_COUNT = 2


def rendezvous(key: bytes, peers: Iterable[bytes], count: int) -> list[bytes]:
    """Return the `count` peers with the highest scores for `key`, the highest first.

    Costs one hash a peer (about 1 us): keep the result while the peers are the same.
    """
    base = hashlib.blake2b(key, digest_size=8)
    return heapq.nlargest(count, peers, key=lambda peer: (_score(base, peer), peer))


def _score(base: hashlib.blake2b, peer: bytes) -> bytes:
    hasher = base.copy()
    hasher.update(peer)
    return hasher.digest()


def is_stable(record: PeerRecord) -> bool:
    """Whether the peer means to stay; boards on batteries say that they do not."""
    return record.meta.get("stable", True) is not False


def host_of(record: PeerRecord) -> object:
    """Return what names the machine of a peer; the peer itself where it does not say."""
    return record.meta.get("host") or record.peer_id


def start_of(record: PeerRecord) -> tuple[object, object]:
    """Return what tells one start of a peer from another."""
    return record.endpoints, record.meta.get("start")


def buddies_of(
    home: bytes, peers: Iterable[PeerRecord], of: PeerRecord | None = None
) -> list[bytes]:
    """Return the two peers that stand in for `home`, fewer where there are fewer.

    Not on its host, and not on one host, wherever others exist; stable ones before
    others; those of its zone before others; then by rendezvous.

    Args:
        home: Whose buddies; it may be unknown, or gone.
        peers: All that are live.
        of: The record of `home`, where it is known: its host and zone.
    """
    base = hashlib.blake2b(home, digest_size=8)
    others = [peer for peer in peers if peer.peer_id != home]
    hosts = set() if of is None else {host_of(of)}
    zone = None if of is None else of.zone
    found: list[bytes] = []
    for _ in range(min(BUDDIES_COUNT, len(others))):
        best = max(
            (peer for peer in others if peer.peer_id not in found),
            key=lambda peer: (
                host_of(peer) not in hosts, is_stable(peer), peer.zone == zone,
                _score(base, peer.peer_id), peer.peer_id,
            ),
        )  # fmt: skip
        found.append(best.peer_id)
        hosts.add(host_of(best))
    return found
