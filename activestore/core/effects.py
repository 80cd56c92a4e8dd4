"""What the invocation core wants done: orders, immutable, carried out in their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from activestore.core.calls import Call, Client, Nested, Waiter
from activestore.errors import ActiveStoreError
from activestore.ids import ObjectId, SessionId
from activestore.wire.state import NamedState, ObjectState, StateDelta


class LoadObject(NamedTuple):
    """Read the object from storage; answer with ObjectLoaded or ObjectMissing.

    All commits ordered before this one must be visible to it.
    """

    object_id: ObjectId
    is_reader: bool


class LookUpReply(NamedTuple):
    """Look for the recorded answer of a request; answer with ReplyLookedUp."""

    call_id: int
    object_id: ObjectId
    session: SessionId
    sequence: int


class LookUpFences(NamedTuple):
    """Look which epochs of its callers an object has seen; answer with FencesLookedUp."""

    object_id: ObjectId
    token: int


class Activate(NamedTuple):
    """Send the loaded state to a slot, before any Dispatch that names the copy.

    `is_new`: there is no state; the Dispatch that follows creates the object.
    """

    executor: int
    slot: int
    copy_id: int
    object_id: ObjectId
    class_name: str
    revision: bytes
    is_reader: bool
    is_new: bool
    loaded: Any = None  # what ObjectLoaded brought; None where `is_new`


class ReleaseLoaded(NamedTuple):
    """Let go of a state that was read and is not wanted any more."""

    loaded: Any


class Dispatch(NamedTuple):
    """Send a call to a slot."""

    executor: int
    slot: int
    copy_id: int
    call: Call


class DropCopy(NamedTuple):
    """Tell an executor to forget a copy; nothing runs on it."""

    executor: int
    copy_id: int


class RecallCalls(NamedTuple):
    """Ask an executor for the calls of a slot that it has not begun."""

    executor: int
    slot: int


class SendAway(NamedTuple):
    """Send a nested call to the peer that holds its object; answer with AwayAnswered.

    `deadline_s`: seconds from now, 0 for none. `is_again`: it is on its way; only its
    chain is new. `began_ms`: when the outermost call of its chain began, by the wall
    clock there.
    """

    call: Call
    chain: Sequence[tuple[bytes, int]]
    depth: int
    deadline_s: float
    is_again: bool
    began_ms: int = 0


class AskOn(NamedTuple):
    """Ask the peer where a call is whom it waits for, on behalf of `waiter`."""

    call_id: int
    waiter: Waiter
    number: int
    hops: int


class StopAway(NamedTuple):
    """Cancel a call that is at another peer; its answer is not wanted any more."""

    call_id: int


class GrantAway(NamedTuple):
    """Let a stream at another peer send more items."""

    call_id: int
    items: int


class ObjectQuiet(NamedTuple):
    """Nothing of an object that is to leave runs or is to be written any more."""

    object_id: ObjectId


class SendOn(NamedTuple):
    """Send a client's request after its object, which has left or is led elsewhere.

    `may_have_run`: what it did, here or under another leader, may be kept there: it must
    be looked up before it runs. `is_unproven`: the copy here, led elsewhere, is none that
    may be read. `left_s`: until its deadline, 0 for none.
    """

    origin: Client
    payload: object
    may_have_run: bool = False
    is_unproven: bool = False
    left_s: float = 0.0


class PingExecutor(NamedTuple):
    """Ask an executor's control thread for a sign of life."""

    executor: int


class InterruptCall(NamedTuple):
    """Raise an exception in the thread that runs the call."""

    executor: int
    slot: int
    call_id: int
    reason: str


class GrantCredit(NamedTuple):
    """Let a generator produce more items."""

    executor: int
    slot: int
    call_id: int
    items: int


class SpawnExecutor(NamedTuple):
    """Start an executor process; answer with ExecutorStarted or ExecutorDied."""

    executor: int


class KillExecutor(NamedTuple):
    """End an executor process at once; answer with ExecutorDied."""

    executor: int
    why: str


class RetireExecutor(NamedTuple):
    """End an idle executor process kindly; answer with ExecutorDied."""

    executor: int


class Provisional(NamedTuple):
    """What a retry of a call is told should the peer end before the call does.

    A call that has changed something durably must not run again: this is written with
    the change, and replaced by the call's own answer.
    """

    object_id: ObjectId
    client: Client
    code: str
    body: bytes
    first_unacked: int = 0


class Commit(NamedTuple):
    """Write one step of one object; answer with Committed or CommitRefused.

    Commits are carried out in order. `first_unacked`, `still_open`: as the client's call
    told; they are kept with its answer. `fences`: where it is not empty they are kept as
    the answer to FENCES_SEQUENCE in the session of the object's own id.
    """

    token: int
    object_id: ObjectId
    version: int
    delta: StateDelta | None
    state: ObjectState | None
    created: Sequence[NamedState]
    alias: str
    is_delete: bool
    durability: int
    client: Client | None
    code: str
    body: bytes
    buffers: Sequence[object]
    acknowledged: Sequence[tuple[SessionId, int]]
    outermost: Provisional | None = None  # of the chain that a nested call is part of
    first_unacked: int = 0
    still_open: Sequence[int] = ()
    fences: bytes = b""


class CommitStates(NamedTuple):
    """Write the states of a Persist, all or none; answer as for Commit."""

    token: int
    states: Sequence[NamedState]
    client: Client | None
    outermost: Provisional | None = None
    first_unacked: int = 0


class HurryCommits(NamedTuple):
    """Write what waits for company now: something can go on only after it."""


class Saw(NamedTuple):
    """Which state an answer shows; version 0: not known, it is told a second time.

    `is_unasked`: nobody was asked whether it is the newest.
    """

    object_id: ObjectId
    version: int
    is_unasked: bool = False


class Answer(NamedTuple):
    """Send a result to a client or to the method that asked.

    `saw`: where the call wanted to know, or others have copies of the object.
    """

    origin: Client | Nested
    body: bytes
    buffers: Sequence[object]
    saw: Saw | None = None


class Refuse(NamedTuple):
    """Send an error to a client or to the method that asked.

    Either `error`, or `code` and `body` as an executor encoded them.
    """

    origin: Client | Nested
    error: ActiveStoreError | None
    code: str = ""
    body: bytes = b""


class SendItem(NamedTuple):
    """Send one item of a stream."""

    origin: Client | Nested
    number: int
    body: bytes
    buffers: Sequence[object]


class SendBeat(NamedTuple):
    """Tell a client which of its requests are queued or running.

    `is_unheard`: too few of those are heard of who must answer before they are; `unled`:
    the epoch under which this peer leads in vain.
    """

    session: SessionId
    sequences: Sequence[int]
    is_unheard: bool = False
    unled: int = 0


class Note(NamedTuple):
    """Tell the operator: an event phrase and key=value pairs; `level` as in logging."""

    level: str
    text: str


Effect: TypeAlias = (
    LoadObject
    | LookUpReply
    | LookUpFences
    | Activate
    | ReleaseLoaded
    | Dispatch
    | DropCopy
    | RecallCalls
    | SendAway
    | AskOn
    | StopAway
    | GrantAway
    | ObjectQuiet
    | SendOn
    | PingExecutor
    | InterruptCall
    | GrantCredit
    | SpawnExecutor
    | KillExecutor
    | RetireExecutor
    | Commit
    | CommitStates
    | HurryCommits
    | Answer
    | Refuse
    | SendItem
    | SendBeat
    | Note
)
