"""Bytes that a peer sends in a second when nothing happens, by the number of peers.

The pure core of membership runs on the network of tests/core/cluster_world.py; messages
are encoded, and FRAME_BYTES added for what ZeroMQ puts around each. TCP's own are not in
it. The peers know each other from the start; what is measured begins after WARM_UP_S,
when the frequent comparisons of a start are over.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from activestore.core.cluster_events import MessageArrived
from activestore.core.peers import PeerState
from activestore.wire.gossip import Update, encode_records
from activestore.wire.messages import Synced
from tests.core.cluster_world import ClusterWorld, record_of

COUNTS = (2, 10, 30, 100, 300, 1000)
PROFILES = ("lan", "edge")
# The first comparisons come after 1, 2, 4 ... s; those of 1,000 peers of the edge profile
# are 360 s apart at last. That 1,000 peers are there is news for 600 s, where each tells
# two others 1,400 bytes a second.
WARM_UP_S = 1000.0
# Two such comparisons of each peer.
MEASURED_S = 720.0
# Records that a Synced may hold.
RECORDS_PER_BODY = 100


class Idle(NamedTuple):
    """What one size of cluster sends."""

    profile: str
    peers_count: int
    bytes_per_s: float  # of one peer
    messages_per_s: float


def known(world: ClusterWorld, count: int, profile: str) -> None:
    """Start peers that know each other, and have nothing to tell."""
    records = [record_of(number, profile=profile) for number in range(count)]
    updates = [Update(r.peer_id, 1, PeerState.ALIVE, r) for r in records]
    nodes = [world.add(record) for record in records]
    for start in range(0, count, RECORDS_PER_BODY):
        body = encode_records(updates[start : start + RECORDS_PER_BODY])
        for node in nodes:
            teller = records[node is nodes[0]].peer_id
            world.step(node, MessageArrived(teller, Synced(node.peer_id, None, body)))


def measure(
    profile: str,
    count: int,
    *,
    warm_up_s: float = WARM_UP_S,
    measured_s: float = MEASURED_S,
) -> Idle:
    """Return what peers of one profile send in a cluster of `count`, 2 or more."""
    world = ClusterWorld(count, does_check=False, does_measure=True)
    known(world, count, profile)
    world.run(warm_up_s)
    for node in world.nodes.values():
        node.sent_bytes = node.sent_count = 0
    world.run(measured_s)
    share = count * measured_s
    nodes = world.nodes.values()
    return Idle(
        profile,
        count,
        sum(node.sent_bytes for node in nodes) / share,
        sum(node.sent_count for node in nodes) / share,
    )


def markdown(rows: Sequence[Idle]) -> str:
    """Return the table."""
    lines = [
        "| profile | peers | B/s a peer | messages/s a peer |",
        "|---|---|---|---|",
        *(
            f"| {r.profile} | {r.peers_count:,} | {r.bytes_per_s:.1f} "
            f"| {r.messages_per_s:.2f} |"
            for r in rows
        ),
    ]
    return "\n".join(lines) + "\n"
