"""What the peers of a replica group say to each other about one object.

One CASPaxos register per object: *prepare* asks for the right to write under a new
epoch, *accept* has a state kept, *confirm* asks whether an epoch still holds. States
travel as a *change*: what follows on the state before (a delta), or the whole.

    Prepare -> Promise | Nack      Accept -> Accepted | Nack     Confirm -> Confirmed | Nack
    Fetch -> State | Nack          Committed, Drop, Forget: not answered
    Ask -> Told                    who leads, and who is in the group

Rules of this file: data only, nothing is decided here. Fields are only ever appended.

Source: reliability.md 3.2, 3.3; schemas/protocol.md section 14.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple, TypeAlias

from activestore.ids import ObjectId, PeerId

# Where a peer id stands for nobody.
NOBODY = PeerId(b"")


class Ballot(NamedTuple):
    """An epoch: the right of one peer to write. Ordered by `counter` alone.

    A counter is promised to one leader only, so no two peers lead under the same one.
    """

    counter: int = 0
    leader: PeerId = NOBODY


class Point(NamedTuple):
    """Which state: the counter under which it was accepted, and its number.

    The number grows by one with every change and never goes back; a new leader accepts
    the newest state again, unchanged, under its own counter and the same number.
    """

    counter: int = 0
    number: int = 0


class Config(NamedTuple):
    """Who is in the group of an object.

    `version`: grows by one with every change of the group. `members`: hold the state,
    each has a vote. `witness`: has a vote and no state, NOBODY for none. `before`: the
    voters of the config before, while it is not known that this one is committed; both
    majorities are then needed. `wanted`: copies asked for; `wants_witness`: and a
    witness. `lineage`: changed by an operator's `force`; groups of two lineages never
    hear each other.
    """

    version: int
    members: tuple[PeerId, ...]
    witness: PeerId = NOBODY
    before: tuple[PeerId, ...] = ()
    wanted: int = 1
    wants_witness: bool = False
    lineage: int = 0

    @property
    def voters(self) -> tuple[PeerId, ...]:
        """All who have a vote."""
        return (*self.members, self.witness) if self.witness else self.members


class Reason(enum.IntEnum):
    """Why something was not taken."""

    PROMISED = 0  # a newer epoch was promised; `promised` tells it
    BASE = 1  # the state before is not here: send the whole
    SPACE = 2  # no room on the disk, or it failed
    LINEAGE = 3  # the group was forced: `config` tells the lineage here
    STRANGER = 4  # the sender is no member any more; `config` tells who is
    UNKNOWN = 5  # nothing of this object is here
    REQUIREMENT = 6  # what its class needs is missing here


class Prepare(NamedTuple):
    """May I lead the object under this epoch?"""

    object_id: ObjectId
    epoch: Ballot
    config_version: int
    lineage: int


class Promise(NamedTuple):
    """You may; what I have accepted so far. `has_state`: not so at a witness."""

    object_id: ObjectId
    epoch: Ballot
    accepted: Point
    config: Config
    is_deleted: bool
    has_state: bool


class Accept(NamedTuple):
    """Keep this state. `base`: what it follows on, None where the change is the whole.

    `change`: None where the state is that of `base`, and only epoch, number or config are
    new, or for a witness. `committed`: up to which number the leader knows it committed.
    `is_learner`: the receiver is to become a member and has no vote yet.
    """

    object_id: ObjectId
    epoch: Ballot
    number: int
    base: Point | None
    config: Config
    is_deleted: bool
    committed: int
    is_learner: bool = False
    change: Any = None


class Accepted(NamedTuple):
    """It is on disk here."""

    object_id: ObjectId
    epoch: Ballot
    number: int


class Nack(NamedTuple):
    """It was not taken. `epoch`, `number`: of what was refused; number 0: not an Accept."""

    object_id: ObjectId
    epoch: Ballot
    number: int
    reason: Reason
    promised: Ballot
    config: Config | None = None
    text: str = ""


class Confirm(NamedTuple):
    """Does this epoch still hold? `round`: of the leader's questions."""

    object_id: ObjectId
    epoch: Ballot
    round: int
    committed: int


class Confirmed(NamedTuple):
    """No newer epoch was promised here."""

    object_id: ObjectId
    epoch: Ballot
    round: int


class Committed(NamedTuple):
    """This number is committed: for reads of followers; may be lost."""

    object_id: ObjectId
    epoch: Ballot
    number: int


class Fetch(NamedTuple):
    """Send me the state that you promised it from; `at`: where it stood then."""

    object_id: ObjectId
    epoch: Ballot
    at: Point


class State(NamedTuple):
    """The whole state, as it was accepted."""

    object_id: ObjectId
    epoch: Ballot
    at: Point
    config: Config
    is_deleted: bool
    change: Any = None


class Drop(NamedTuple):
    """You are no member any more, by this config, which is committed."""

    object_id: ObjectId
    epoch: Ballot
    config: Config


class Forget(NamedTuple):
    """All have accepted that the object is deleted: nothing of it needs to be kept."""

    object_id: ObjectId
    epoch: Ballot
    number: int


class Ask(NamedTuple):
    """Who leads the object, and who is in its group?"""

    object_id: ObjectId


class Told(NamedTuple):
    """What I know of it; `config` None: nothing. `is_led`: by me, now."""

    object_id: ObjectId
    promised: Ballot
    accepted: Point
    config: Config | None
    is_led: bool


ReplicaMessage: TypeAlias = (
    Prepare
    | Promise
    | Accept
    | Accepted
    | Nack
    | Confirm
    | Confirmed
    | Committed
    | Fetch
    | State
    | Drop
    | Forget
    | Ask
    | Told
)
