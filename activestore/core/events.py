"""What can happen to the invocation core: facts, in the past tense, immutable.

NamedTuple, not dataclass: a call passes through four of these, and a tuple costs a
third.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from activestore.core.calls import Client, Kind, MethodInfo, Nested, Waiter
from activestore.core.fences import Fence
from activestore.errors import ActiveStoreError
from activestore.ids import ObjectId, SessionId
from activestore.wire.state import NamedState, ObjectState, StateDelta


class CallArrived(NamedTuple):
    """A client or a running method wants something of an object.

    `payload` is handed back untouched in Dispatch. `deadline_s`: seconds from now, 0
    for none. `age_s`: time since the first attempt, by the client's clock. `credit`:
    items the caller can take at once; 0 where it did not ask for a stream.
    `still_open`: where one of the client's requests stays open for long, all that are:
    the answers of others before this one have arrived. `chain`, `depth`, `began_ms`: of
    a nested call from another peer, see travels. `is_stale`: it may read
    an older state, and nothing but read; the object may be led elsewhere, unless it
    `is_here`; `is_young`: what is committed here is new enough for it, and nobody need be
    asked. `wants_info`: its Answer is to tell the version that it saw.
    `fence`: of a nested call of an object with a register at another peer.
    """

    origin: Client | Nested
    object_id: ObjectId
    kind: Kind
    method: str
    payload: object
    attempt: int = 0
    first_unacked: int = 0
    deadline_s: float = 0.0
    age_s: float = 0.0
    credit: int = 0
    class_name: str = ""
    alias: str = ""
    still_open: Sequence[int] = ()
    chain: Sequence[tuple[bytes, int]] = ()
    depth: int = 0
    began_ms: int = 0
    is_stale: bool = False
    wants_info: bool = False
    is_here: bool = False
    fence: Fence | None = None
    is_young: bool = False


class NestedLeft(NamedTuple):
    """A running method calls an object that another peer holds."""

    origin: Nested
    object_id: ObjectId
    kind: Kind
    method: str
    payload: object
    may_change: bool
    deadline_s: float = 0.0
    credit: int = 0


class AwayAnswered(NamedTuple):
    """A call at another peer has ended; `code`: "" for a result."""

    call_id: int
    code: str
    body: bytes = b""
    buffers: Sequence[object] = ()


class MoveOrdered(NamedTuple):
    """An object is to leave this peer; answer with ObjectQuiet."""

    object_id: ObjectId


class MoveEnded(NamedTuple):
    """An object has left (`is_gone`), or stays after all."""

    object_id: ObjectId
    is_gone: bool


class AwayReturned(NamedTuple):
    """The object of a call that was away is here now: it is a call like others."""

    call_id: int


class RingAsked(NamedTuple):
    """Another peer follows who waits for whom, and comes to a call that it sent here.

    `waiter`: on whose behalf; `number`: of that one's questions; `hops`: how often it
    went to another peer.
    """

    origin: Client
    waiter: Waiter
    number: int
    hops: int


class AwayItem(NamedTuple):
    """A stream at another peer has produced an item."""

    call_id: int
    number: int
    body: bytes
    buffers: Sequence[object] = ()


class PersistArrived(NamedTuple):
    """A client wants these states kept, all or none."""

    origin: Client | Nested
    states: Sequence[NamedState]
    attempt: int = 0
    first_unacked: int = 0
    age_s: float = 0.0


class ReplyLookedUp(NamedTuple):
    """Storage was asked whether a retried request has an answer."""

    call_id: int
    code: str | None  # None: no record
    body: bytes = b""
    buffers: Sequence[object] = ()


class FencesLookedUp(NamedTuple):
    """Storage was asked which epochs of its callers an object has seen; b"": of none.

    `error`: why that is not known.
    """

    object_id: ObjectId
    token: int
    kept: bytes = b""
    error: ActiveStoreError | None = None


class CancelArrived(NamedTuple):
    """The caller wants a call stopped."""

    session: SessionId
    sequence: int


class CreditArrived(NamedTuple):
    """The caller can take more items."""

    session: SessionId
    sequence: int
    items: int


class NestedCreditArrived(NamedTuple):
    """A running method can take more items of a stream that it started."""

    parent: int
    request: int
    items: int


class SessionEnded(NamedTuple):
    """The client said goodbye, or cannot be reached: nobody waits for its calls."""

    session: SessionId


class ObjectLoaded(NamedTuple):
    """Storage read the object. `loaded` comes back in Activate, or in ReleaseLoaded."""

    object_id: ObjectId
    is_reader: bool
    class_name: str
    version: int
    state_bytes: int
    loaded: Any


class ObjectMissing(NamedTuple):
    """The object does not exist, or cannot be read."""

    object_id: ObjectId
    is_reader: bool
    error: ActiveStoreError


class CopyUnproven(NamedTuple):
    """The copy of an object led elsewhere cannot be read, or is not known committed."""

    object_id: ObjectId
    is_reader: bool


class ClassPublished(NamedTuple):
    """A class has a new latest revision; `package` names the code it lives in."""

    class_name: str
    revision: bytes
    package: str
    durability: int
    fields: frozenset[str]
    methods: Mapping[str, MethodInfo]


class ExecutorStarted(NamedTuple):
    """The process runs and takes calls."""

    executor: int


class ExecutorDied(NamedTuple):
    """The process is gone; `how` says by what, for people."""

    executor: int
    how: str


class ExecutorMeasured(NamedTuple):
    """The resident memory of an executor process in bytes."""

    executor: int
    memory_bytes: int


class ExecutorAnswered(NamedTuple):
    """The control thread of an executor answered a ping."""

    executor: int


class CallEnded(NamedTuple):
    """A slot finished a call.

    `code`: "" for a result; an error's code; "not_run" where the slot gave the call
    back untouched. `body` and `buffers`: the result, or the encoded fields of the
    error. `delta` or `state`: what changed; `state` only for CREATE. `is_dropped`: the
    executor threw its copy away.
    """

    call_id: int
    attempt: int
    code: str
    body: bytes
    buffers: Sequence[object]
    run_s: float
    delta: StateDelta | None = None
    state: ObjectState | None = None
    created: Sequence[NamedState] = ()
    is_dropped: bool = False
    state_bytes: int = 0


class ItemProduced(NamedTuple):
    """A generator method yielded."""

    call_id: int
    attempt: int
    body: bytes
    buffers: Sequence[object]


class NestedWaits(NamedTuple):
    """A running method begins to wait for a nested call that it had only submitted."""

    parent: int
    request: int


class NestedAbandoned(NamedTuple):
    """A running method does not read on in a stream that it had begun."""

    parent: int
    request: int


class ErrandBegan(NamedTuple):
    """A client waits for something that is no call, and is to be told that it goes on."""

    origin: Client


class ErrandEnded(NamedTuple):
    """It has its answer."""

    origin: Client


class CheckpointReached(NamedTuple):
    """A running method wants what it has so far committed; it waits for the answer."""

    call_id: int
    attempt: int
    request: int
    delta: StateDelta | None
    created: Sequence[NamedState] = ()


class Committed(NamedTuple):
    """A Commit is durable."""

    token: int


class CommitRefused(NamedTuple):
    """A Commit did not happen."""

    token: int
    error: ActiveStoreError


class ObjectLed(NamedTuple):
    """This peer leads an object that others have copies of; see leads.

    `lineage`, `epoch`: under which, 0 where that is not told; what its runs call is
    fenced by them.
    """

    object_id: ObjectId
    lineage: int = 0
    epoch: int = 0


class ObjectUnshared(NamedTuple):
    """Nobody else has a copy of the object any more: it is like any other here."""

    object_id: ObjectId


class ObjectDeposed(NamedTuple):
    """Another peer leads the object now, or may; what is not committed is in doubt.

    `is_unanswered`: because no majority answered this one.
    """

    object_id: ObjectId
    is_unanswered: bool = False


class ObjectUnanswered(NamedTuple):
    """No majority has answered for long what is asked of the object, or is in reach."""

    object_id: ObjectId
    epoch: int


class ObjectUnavailable(NamedTuple):
    """The object cannot be led now, by anybody: what waits for it is refused."""

    object_id: ObjectId
    error: ActiveStoreError


class LeadConfirmed(NamedTuple):
    """The object was led here still when this round began; those before it too."""

    object_id: ObjectId
    round: int


class StateReplaced(NamedTuple):
    """The state on this disk of an object that is led elsewhere is another one.

    `is_gone`: no copy is here any more.
    """

    object_id: ObjectId
    is_gone: bool = False


class DrainStarted(NamedTuple):
    """No new calls from clients; what runs may end."""


class TimerFired(NamedTuple):
    """The time that `deadline_s` named has come."""


Event: TypeAlias = (
    CallArrived
    | NestedLeft
    | AwayAnswered
    | RingAsked
    | AwayItem
    | AwayReturned
    | MoveOrdered
    | MoveEnded
    | PersistArrived
    | ReplyLookedUp
    | FencesLookedUp
    | CancelArrived
    | CreditArrived
    | NestedCreditArrived
    | SessionEnded
    | ObjectLoaded
    | ObjectMissing
    | CopyUnproven
    | ClassPublished
    | ExecutorStarted
    | ExecutorDied
    | ExecutorMeasured
    | ExecutorAnswered
    | CallEnded
    | ItemProduced
    | CheckpointReached
    | NestedWaits
    | NestedAbandoned
    | ErrandBegan
    | ErrandEnded
    | Committed
    | CommitRefused
    | ObjectLed
    | ObjectUnshared
    | ObjectDeposed
    | ObjectUnanswered
    | ObjectUnavailable
    | LeadConfirmed
    | StateReplaced
    | DrainStarted
    | TimerFired
)
