"""What the core of replication wants done, in order; carried out by `peer.replicating`."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from activestore.core.effects import Note
from activestore.core.register import Heard, Register
from activestore.ids import ObjectId, PeerId
from activestore.wire.replicas import Accept, Config, Point, ReplicaMessage, State


class Send(NamedTuple):
    """Send this to a peer; it may be lost."""

    peer_id: PeerId
    message: ReplicaMessage


class SendWhole(NamedTuple):
    """Read the state that is on this disk and send it whole.

    `message`: an Accept (base None) or a State; number, point, `config` and `is_deleted`
    are set to what was read, in one transaction with the state, which may be newer by
    then. An Accept is not sent if the epoch on the disk is another one than its own, nor
    anything if the state went: the peer leads no more, and who waits asks again.
    """

    peer_id: PeerId
    message: Accept | State


class Store(NamedTuple):
    """Write a register, with the change that came with it; told by `Stored`.

    `base`: the state that the change follows on; it must be the one on disk. None with a
    change: it is the whole. `change` None: the state stays (a promise; a new epoch or
    config for the same state; a witness). `is_delete`: the state goes, the register stays.
    `heard`: written beside the register, for `Replication.restore`.
    """

    token: int
    object_id: ObjectId
    register: Register
    base: Point | None = None
    change: Any = None
    is_delete: bool = False
    heard: Heard | None = None


class Remove(NamedTuple):
    """Remove register and state: the object is not here any more, nor to be kept.

    `is_deleted`: nowhere else either.
    """

    object_id: ObjectId
    is_deleted: bool = False


class Led(NamedTuple):
    """This peer leads the object from now on: its calls may run here."""

    object_id: ObjectId
    counter: int
    config: Config


class Deposed(NamedTuple):
    """This peer does not lead the object any more; writes that are open are in doubt.

    `is_unanswered`: because no majority answered.
    """

    object_id: ObjectId
    is_unanswered: bool = False


class Followed(NamedTuple):
    """Who leads now, as far as this peer knows; `leader` NOBODY: nobody answers."""

    object_id: ObjectId
    leader: PeerId
    counter: int
    config: Config


class StateReplaced(NamedTuple):
    """The state of a copy here is another one now: what was loaded of it is old."""

    object_id: ObjectId


class WriteDone(NamedTuple):
    """All writes of the object up to this number are committed."""

    object_id: ObjectId
    number: int


class ReadDone(NamedTuple):
    """Reads of the object that began before this round may be answered."""

    object_id: ObjectId
    round: int


class Unanswered(NamedTuple):
    """No majority has answered for long what the leader here asks, or is in reach."""

    object_id: ObjectId
    epoch: int


class NoQuorum(NamedTuple):
    """The object can not be led here now: what waits for it is refused.

    `reachable`: voters that answer, `needed`: how many must.
    """

    object_id: ObjectId
    reachable: int
    needed: int
    text: str


class GroupDone(NamedTuple):
    """A wanted group, a forced lineage, or a new leader is there; or why not."""

    request: int
    object_id: ObjectId
    error: str = ""


class GroupChanged(NamedTuple):
    """The committed config of an object led here is another one."""

    object_id: ObjectId
    config: Config


class Refused(NamedTuple):
    """A peer that is not of an object's group spoke as if it were; `why`: what was expected.

    `kind`: of its message. Nothing came of it.
    """

    sender: PeerId
    object_id: ObjectId
    kind: str
    why: str


class Unshared(NamedTuple):
    """The group is this peer alone: its register is gone, it is a plain object again."""

    object_id: ObjectId
    counter: int


ReplicationEffect: TypeAlias = (
    Send
    | SendWhole
    | Store
    | Remove
    | Led
    | Deposed
    | Followed
    | StateReplaced
    | WriteDone
    | ReadDone
    | NoQuorum
    | Unanswered
    | GroupDone
    | GroupChanged
    | Refused
    | Unshared
    | Note
)
