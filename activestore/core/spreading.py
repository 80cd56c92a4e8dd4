"""Which peers shall take copies of an object: far from each other, and fit for it.

One copy after the other goes to the best peer that is left, by, in this order: a host
that has none yet; a zone that has none; it is known to have what the class needs; it
means to stay; free space of its disk, in powers of two; free cores, in whole ones; and
at last rendezvous, so that the objects of one peer go to many.

Rules of this file: pure; whoever knows the same records gets the same answer; nothing is
promised, as what a record says may be a minute old: who is chosen may still refuse.

Source: issue 4, "placement on distinct hosts and zones first, then capability and free
space"; design section 8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from activestore.core.peers import (
    PeerRecord,
    host_of,
    is_stable,
    load_of,
    rendezvous,
)
from activestore.ids import PeerId


def _meets_all(record: PeerRecord) -> bool | None:
    del record
    return True


def spread(
    records: Sequence[PeerRecord],
    members: Sequence[PeerRecord],
    count: int,
    *,
    key: bytes = b"",
    meets: Callable[[PeerRecord], bool | None] = _meets_all,
    room_mb: int = 0,
) -> tuple[PeerId, ...]:
    """Return up to `count` peers for further copies, the best first.

    Fewer where fewer can take one; a longer count is a list to fall back on, as the
    first ones do not depend on it.

    Args:
        records: Of all peers that live and may be chosen; members among them are not.
        members: Of those that stay in the group, a witness too.
        count: How many.
        key: Of the object, its id: of two equal peers one object takes this, another
            that.
        meets: Whether a peer has what the class needs; None for not known. Those that
            lack it are left out.
        room_mb: How much space a copy needs, in MiB; those that say that they have less
            are left out.
    """
    taken = {record.peer_id for record in members}
    hosts = {host_of(record) for record in members}
    zones = {record.zone for record in members}
    fit: dict[bytes, tuple[PeerRecord, bool]] = {}
    for record in records:
        is_met = meets(record)
        if record.peer_id in taken or is_met is False or _is_full(record, room_mb):
            continue
        fit[record.peer_id] = record, is_met is True
    # The first of these is the last resort: it decides where nothing else does.
    order = rendezvous(key, fit, len(fit))
    chances = {peer_id: -place for place, peer_id in enumerate(order)}
    found: list[PeerId] = []
    while fit and len(found) < count:
        best, _ = max(
            fit.values(),
            key=lambda one: (
                host_of(one[0]) not in hosts, one[0].zone not in zones, one[1],
                is_stable(one[0]), _space(one[0]), _free_cores(one[0]),
                chances[one[0].peer_id],
            ),
        )  # fmt: skip
        del fit[best.peer_id]
        found.append(PeerId(best.peer_id))
        hosts.add(host_of(best))
        zones.add(best.zone)
    return tuple(found)


def _is_full(record: PeerRecord, room_mb: int) -> bool:
    load = load_of(record)
    return load is not None and load.disk_free_mb < room_mb


def _space(record: PeerRecord) -> int:
    """Return the power of two of the free MiB of a peer's disk; 0 for not told.

    So a disk that is half as empty counts for less, and one that is a tenth emptier than
    all the others does not get everything.
    """
    load = load_of(record)
    return 0 if load is None else load.disk_free_mb.bit_length()


def _free_cores(record: PeerRecord) -> int:
    """Return how many cores have nothing to do, as far as a record says."""
    told = record.meta.get("cores")
    cores = told if type(told) is int else 0
    load = load_of(record)
    if load is None:
        return cores
    return cores - max(load.busy_slots, cores * load.per_core // 100)
