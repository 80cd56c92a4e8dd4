"""What can happen to the core of replication: facts, in the past tense, immutable."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from activestore.ids import ObjectId, PeerId
from activestore.wire.replicas import ReplicaMessage, Told


class MessageCame(NamedTuple):
    """A peer said this. `sender`: who the link says it is."""

    sender: PeerId
    message: ReplicaMessage


class Stored(NamedTuple):
    """What effect `Store` ordered is on disk, or why not; see `StoreProblem`."""

    token: int
    problem: str = ""  # "": done; "base", "space", "requirement"
    text: str = ""


class WriteStored(NamedTuple):
    """A write that `begin_write` numbered is on this disk, or was refused there."""

    object_id: ObjectId
    number: int
    is_refused: bool = False


class PeerSeen(NamedTuple):
    """Membership's word on a peer changed. `is_reachable`: alive, not even suspect."""

    peer_id: PeerId
    is_reachable: bool


class LinkReady(NamedTuple):
    """A link to a peer is there again; what was sent before may be lost."""

    peer_id: PeerId


class Touched(NamedTuple):
    """Somebody wants the object now, and it is not led here."""

    object_id: ObjectId


# A group of which only members change.
AS_BEFORE = 0
# The same, and nobody comes for those that leave: the group lacks copies afterwards.
FEWER = -1


class GroupWanted(NamedTuple):
    """The group of an object that is led here shall be this.

    `request`: told back by `GroupDone`. `wanted`: copies of the state; `candidates`: peers
    that may take one, the best first; members that are not to stay are in `leaving`.
    Where `wanted` is AS_BEFORE that, and the witness, is what its config says when its
    turn comes: what an operator asked for meanwhile stays wanted. So too for FEWER.
    """

    request: int
    object_id: ObjectId
    wanted: int
    wants_witness: bool
    candidates: tuple[PeerId, ...]
    leaving: tuple[PeerId, ...] = ()


class ForceOrdered(NamedTuple):
    """An operator's order: this copy is the object from now on, in a new lineage."""

    request: int
    object_id: ObjectId


class LeadHandedOver(NamedTuple):
    """Another member shall lead; `request` as for GroupWanted."""

    request: int
    object_id: ObjectId
    target: PeerId


class GroupFound(NamedTuple):
    """Who leads an object was looked for by its place, was asked, and answered this.

    Its answer is believed, though the group that is known here may not have it: whoever
    was away while its whole group was replaced hears of the newer one only so.
    """

    leader: PeerId
    told: Told


class DeletedFound(NamedTuple):
    """Those who keep where an object is know that it was deleted, in this lineage."""

    object_id: ObjectId
    lineage: int


class StateLost(NamedTuple):
    """The state of the copy here is damaged on disk; its register is not.

    It is `Register.is_lost` from now on: it votes as a witness does, answers a delta with
    Nack BASE, and is whole again after an Accept without a base. A leader hands the lead
    over first: its state in memory, if any, is committed, but no longer on this disk.
    """

    object_id: ObjectId


class TimerFired(NamedTuple):
    """The time that `deadline_s` named has come."""


# What comes seldom, and by the object or peer that it is about.
RareEvent: TypeAlias = (
    PeerSeen
    | LinkReady
    | Touched
    | GroupWanted
    | ForceOrdered
    | LeadHandedOver
    | GroupFound
    | DeletedFound
    | StateLost
)
ReplicationEvent: TypeAlias = (
    MessageCame | Stored | WriteStored | RareEvent | TimerFired
)
