"""What can happen to the cluster's cores: facts, in the past tense, immutable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from activestore.wire.gossip import PeerRecord
from activestore.wire.messages import Ack, Gossip, Nack, Probe, ProbeFor, Sync, Synced

# What membership is told of.
PeerMessage: TypeAlias = Probe | ProbeFor | Ack | Nack | Gossip | Sync | Synced


class MessageArrived(NamedTuple):
    """A peer sent this. `sender`: who the link says it is, not what the message says."""

    sender: bytes
    message: PeerMessage


class Joined(NamedTuple):
    """These peers were found: a seed said Welcome, or a peer said Hello.

    Their records may be made of an address and have incarnation 0.
    """

    records: Sequence[PeerRecord]


class TimerFired(NamedTuple):
    """The time that `deadline_s` named has come; also the first event of all."""


class Lagged(NamedTuple):
    """The loop was late by so many seconds: others' silence may be its own deafness."""

    lag_s: float


class LinkLost(NamedTuple):
    """The link to a peer broke; it may be dead, or have restarted."""

    peer_id: bytes


class LeaveOrdered(NamedTuple):
    """This peer stops, on purpose."""


class RecordChanged(NamedTuple):
    """What this peer says of itself is now this; its incarnation is not looked at."""

    record: PeerRecord


MembershipEvent: TypeAlias = (
    MessageArrived
    | Joined
    | TimerFired
    | Lagged
    | LinkLost
    | LeaveOrdered
    | RecordChanged
)
