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
from typing import Any, NamedTuple

from activestore.errors import TooLargeError
from activestore.wire.gossip import (
    INCARNATION_MAX,
    PeerRecord,
    PeerState,
    Update,
    encode_update,
)

__all__ = [
    "BUDDIES_COUNT",
    "Load",
    "PeerRecord",
    "PeerState",
    "buddies_of",
    "fitted",
    "host_of",
    "installed_of",
    "is_material",
    "is_stable",
    "load_of",
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


# What is worth telling: a quarter of the slots, half a core each, an eighth of the disk.
BUSY_SHARE_MIN = 0.25
PER_CORE_MIN = 50
DISK_SHARE_MIN = 1 / 8


class Load(NamedTuple):
    """How much a peer has to do: `meta["load"]` of its record.

    `per_core`: processes that wait for a core, of all the machine's, in hundredths.
    """

    busy_slots: int
    slots: int
    per_core: int
    disk_free_mb: int


# The largest load that is told, so that a record fits whatever its peer has to do.
_LOAD_MAX = Load(*[2**32 - 1] * 4)


def load_of(record: PeerRecord) -> Load | None:
    """Return what a peer said of its load, None where it said nothing that is one."""
    told: Any = record.meta.get("load")
    if type(told) is not list and type(told) is not tuple:
        return None
    if len(told) < 4 or any(type(one) is not int or one < 0 for one in told[:4]):
        return None
    return Load(*told[:4])


def is_material(old: Load | None, new: Load) -> bool:
    """Whether a load differs so much from what was told that others should know."""
    if old is None:
        return True
    busy = abs(old.busy_slots * new.slots - new.busy_slots * old.slots)
    return (
        busy >= BUSY_SHARE_MIN * max(1, old.slots * new.slots)
        or abs(old.per_core - new.per_core) >= PER_CORE_MIN
        or abs(old.disk_free_mb - new.disk_free_mb)
        > DISK_SHARE_MIN * max(1, old.disk_free_mb)
    )


def installed_of(record: PeerRecord) -> dict[str, str]:
    """Return what a peer said is installed there: names to versions, "" for "not here"."""
    told: Any = record.meta.get("installed")
    if type(told) is not dict:
        return {}
    return {k: v for k, v in told.items() if type(k) is str and type(v) is str}


def fitted(record: PeerRecord) -> PeerRecord:
    """Return a record with as much of its optional part as may be told.

    What goes first is what can be asked for: of what is installed the last, then of the
    accelerators; then the power source.
    """
    meta: dict[str, Any] = dict(record.meta)
    installed: dict[str, str] = dict(meta.get("installed") or {})
    accelerators = list(meta.get("accelerators") or ())
    while not _fits(record._replace(meta=meta)):
        if installed:
            installed.popitem()
            meta["installed"] = installed
        elif meta.pop("installed", None) is not None:
            continue
        elif accelerators:
            accelerators.pop()
            meta["accelerators"] = accelerators
        elif meta.pop("accelerators", None) is not None:
            continue
        elif "power_source" in meta:
            del meta["power_source"]
        else:
            break  # It is as small as it gets; whoever tells it is told so.
    return record._replace(meta=meta)


def _fits(record: PeerRecord) -> bool:
    if "load" in record.meta:
        record = record._replace(meta={**record.meta, "load": list(_LOAD_MAX)})
    update = Update(
        record.peer_id, INCARNATION_MAX, PeerState.ALIVE, record, record.peer_id
    )
    try:
        encode_update(update)
    except TooLargeError:
        return False
    return True


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
