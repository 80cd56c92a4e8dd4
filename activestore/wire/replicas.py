"""What the peers of a replica group say to each other about one object.

One CASPaxos register per object: *prepare* asks for the right to write under a new
epoch, *accept* has a state kept, *confirm* asks whether an epoch still holds. States
travel as a *change*: what follows on the state before (a delta), or the whole.

    Prepare -> Promise | Nack      Accept -> Accepted | Nack     Confirm -> Confirmed | Nack
    Fetch -> State | Nack          Drop, Forget -> Told           until then they are said again
    Committed: not answered
    Ask -> Told                    who leads, and who is in the group

Rules of this file: data only, nothing is decided here. Fields are only ever appended.

Source: reliability.md 3.2, 3.3; schemas/protocol.md section 14.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from activestore.errors import RemoteProtocolError
from activestore.ids import OBJECT_ID_BYTES, PEER_ID_BYTES, ObjectId, PeerId
from activestore.wire import packing
from activestore.wire.messages import Buffer, PartedBuffer

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
    STRANGER = 4  # the sender is not of the group; `config` tells who is
    UNKNOWN = 5  # nothing of this object is here
    REQUIREMENT = 6  # what its class needs is missing here
    LOST = 7  # the state that was accepted is damaged on this disk: send the whole


class Prepare(NamedTuple):
    """May I lead the object under this epoch? `config`: who is in the group, as I know."""

    object_id: ObjectId
    epoch: Ballot
    config: Config


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
    """This number is committed: for reads of followers; may be lost.

    `is_handed`: the receiver has everything, and shall lead now in the sender's place.
    `age_ms`: how long ago this was the newest for sure, when the message was made.
    """

    object_id: ObjectId
    epoch: Ballot
    number: int
    is_handed: bool = False
    age_ms: int = 0


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
    """All have accepted that the object is deleted: nothing of it needs to be kept.

    `epoch`, `number`: under which all have it; older states of this lineage are history.
    """

    object_id: ObjectId
    epoch: Ballot
    number: int
    lineage: int = 0


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


class Shipment(NamedTuple):
    """A change in transit: what `peer.shipping` packs, and the blocks beside it."""

    body: Buffer
    buffers: Sequence[Buffer | PartedBuffer] = ()


# -- as bytes --------------------------------------------------------------------------

# What one Replicate carries at most, so that one object's large state delays few others.
ENTRIES_MAX = 256
ENTRIES_BYTES_MAX = 1024 * 1024
# Members and witness of a group, and those before.
VOTERS_MAX = 16
_U64_MAX = 2**64 - 1
# Of epochs: one more is one that any peer can keep, and no take-over ever counts so far.
COUNTER_MAX = 2**62


def encode_entries(
    messages: Sequence[ReplicaMessage],
) -> tuple[bytes, list[Buffer | PartedBuffer]]:
    """Return the body and the buffers of a Replicate."""
    rows: list[Any] = []
    buffers: list[Buffer | PartedBuffer] = []
    for message in messages:
        kind = _NUMBERS[type(message)]
        change = getattr(message, "change", None)
        if change is None:
            rows.append((kind, *message))
            continue
        rows.append((kind, *message[:-1], (change.body, len(change.buffers))))
        buffers.extend(change.buffers)
    return bytes(packing.pack(rows)), buffers


def decode_entries(
    body: Buffer, buffers: Sequence[Buffer | PartedBuffer]
) -> list[ReplicaMessage]:
    """Return what a Replicate carries; changes as Shipments.

    Raises:
        RemoteProtocolError: whatever is wrong with the bytes.
    """
    try:
        rows = packing.unpack(body, use_list=False)
        if type(rows) is not tuple or len(rows) > ENTRIES_MAX:
            raise ValueError(f"a list of at most {ENTRIES_MAX} entries expected")
        found: list[ReplicaMessage] = []
        used = 0
        for row in rows:
            cls, readers = _KINDS[row[0]]
            values = [read(v) for read, v in zip(readers, row[1:], strict=False)]
            if len(values) < len(readers) - _LATER.get(cls, 0):
                raise ValueError(f"{cls.__name__} has {len(values)} fields")
            if cls in _WITH_CHANGE and values[-1] is not None:
                content, count = values[-1]
                if count > len(buffers) - used:
                    raise ValueError("a change lacks buffers")
                values[-1] = Shipment(content, buffers[used : used + count])
                used += count
            found.append(cls(*values))
    except (ValueError, TypeError, KeyError, IndexError) as error:
        reason = f"{type(error).__name__}: {str(error)[:80]}"
        raise RemoteProtocolError(
            f"entries are malformed: {reason}", "Replicate"
        ) from None
    except packing.UNPACK_ERRORS as error:
        raise RemoteProtocolError(
            f"entries are no msgpack: {type(error).__name__}", "Replicate"
        ) from None
    return found


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _U64_MAX:
        raise ValueError(f"{str(value)[:20]!r} is no number from 0 to {_U64_MAX}")
    return value


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{str(value)[:20]!r} is no bool")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("a text expected")
    return value


def _object_id(value: Any) -> ObjectId:
    if type(value) is not bytes or len(value) != OBJECT_ID_BYTES:
        raise ValueError(f"an object id has {OBJECT_ID_BYTES} bytes")
    return ObjectId(value)


def _peer_id(value: Any) -> PeerId:
    if type(value) is not bytes or len(value) not in (0, PEER_ID_BYTES):
        raise ValueError(f"a peer id has {PEER_ID_BYTES} bytes")
    return PeerId(value)


def _peer_ids(value: Any) -> tuple[PeerId, ...]:
    if type(value) is not tuple or len(value) > VOTERS_MAX:
        raise ValueError(f"a list of at most {VOTERS_MAX} peers expected")
    return tuple(map(_peer_id, value))


def _ballot(value: Any) -> Ballot:
    counter, leader = value[:2]
    if _number(counter) > COUNTER_MAX:
        raise ValueError(f"an epoch of {counter}, over {COUNTER_MAX}")
    return Ballot(counter, _peer_id(leader))


def _point(value: Any) -> Point:
    counter, number = value[:2]
    return Point(_number(counter), _number(number))


def _no_or(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


def config_of(value: Any) -> Config:
    """Return the config of a decoded row.

    Raises:
        ValueError, TypeError: it is malformed.
    """
    version, members, witness, before, wanted, wants_witness, lineage = value[:7]
    config = Config(
        _number(version), _peer_ids(members), _peer_id(witness), _peer_ids(before),
        _number(wanted), _flag(wants_witness), _number(lineage),
    )  # fmt: skip
    for voters in (config.voters, config.before):
        if NOBODY in voters or not len(set(voters)) == len(voters) <= VOTERS_MAX:
            raise ValueError(f"voters are at most {VOTERS_MAX} different peers")
    if not config.members:
        raise ValueError("a group has a member at least")
    return config


def _reason(value: Any) -> Reason:
    return Reason(_number(value))


def _change(value: Any) -> Any:
    if value is None:
        return None
    content, count = value[:2]
    if type(content) is not bytes:
        raise ValueError("a change is bytes")
    return content, _number(count)


_OC = (_object_id, _ballot)
# By kind: the class, and what reads each of its fields. Numbers are never reused.
_KINDS: dict[int, tuple[Any, tuple[Callable[[Any], Any], ...]]] = {
    1: (Prepare, (*_OC, config_of)),
    2: (Promise, (*_OC, _point, config_of, _flag, _flag)),
    3: (
        Accept,
        (*_OC, _number, _no_or(_point), config_of, _flag, _number, _flag, _change),
    ),
    4: (Accepted, (*_OC, _number)),
    5: (Nack, (*_OC, _number, _reason, _ballot, _no_or(config_of), _text)),
    6: (Confirm, (*_OC, _number, _number)),
    7: (Confirmed, (*_OC, _number)),
    8: (Committed, (*_OC, _number, _flag, _number)),
    9: (Fetch, (*_OC, _point)),
    10: (State, (*_OC, _point, config_of, _flag, _change)),
    11: (Drop, (*_OC, config_of)),
    12: (Forget, (*_OC, _number, _number)),
    13: (Ask, (_object_id,)),
    14: (Told, (*_OC, _point, _no_or(config_of), _flag)),
}
_NUMBERS: dict[type, int] = {cls: kind for kind, (cls, _) in _KINDS.items()}
# How many of the last fields may be missing, for there were none at first.
_LATER: dict[type, int] = {Committed: 1}
_WITH_CHANGE = frozenset({Accept, State})
