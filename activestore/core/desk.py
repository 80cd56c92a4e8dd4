"""What all parts of the invocation core share: its tables, and how a call leaves them.

Rules of this file: helpers that more than one part needs; no event is handled here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from activestore.core import effects, events
from activestore.core.calls import NO_ROUND, Call, Client, Mailbox, Nested, Slot
from activestore.core.calls_by_object import CallsByObject
from activestore.core.commits import Ledger, Pending, Step
from activestore.core.executors import Pool, PoolConfig
from activestore.core.lookups import Lookups
from activestore.core.mailboxes import MailboxConfig, Mailboxes
from activestore.core.quarantine import Quarantine
from activestore.core.timers import Timer, Timers
from activestore.errors import (
    ActiveStoreError,
    CancelledError,
    ExecutorCrashedError,
)
from activestore.ids import ObjectId, SessionId
from activestore.wire.limits import EARLY_S, NESTED_EARLY_S, early_s
from activestore.wire.values import encode_error

# The code of a call that a slot gave back untouched.
NOT_RUN = "not_run"
# Bytes of the arguments that tell one call from another in quarantine.
KEY_BODY_BYTES = 4096
# The encoded nil: the result of what has none.
NIL = b"\xc0"
# `Call.promise`: what a retry of this call is told is on disk.
PROMISED = -1


class InvocationConfig(NamedTuple):
    """Times and bounds of invocation; see PeerConfig for what each is for."""

    grace_s: float = 2.0
    beat_s: float = 2.0
    quarantine_s: float = 600.0
    session_expiry_s: float = 3600.0
    depth_max: int = 32
    mark: bytes = b""  # of this start of this peer, in the chains of calls
    wall_offset_s: float = 0.0  # from the core's clock to the wall's


class Departure(NamedTuple):
    """What waits until a retry of an outermost call would be told of it."""

    top_id: int
    object_id: ObjectId
    waiting: list[Call | events.PersistArrived]


class FenceLookup(NamedTuple):
    """What waits until the fences of an object are known; `calls`: by their numbers."""

    token: int
    calls: dict[int, Call]


class Desk:
    """The tables of calls, sessions, mailboxes, executors and commits."""

    def __init__(
        self,
        config: InvocationConfig | None = None,
        mailboxes: MailboxConfig | None = None,
        pool: PoolConfig | None = None,
    ) -> None:
        self.config = config or InvocationConfig()
        self._out: list[effects.Effect] = []
        self._now_s = 0.0
        self.timers = Timers()
        self.pool = Pool(pool or PoolConfig(), self._emit)
        self.ledger = Ledger(self._emit, self._told)
        self.boxes = Mailboxes(
            mailboxes or MailboxConfig(), self.pool, self.timers, self._emit,
            self._fail, self._try_delete,
        )  # fmt: skip
        self.boxes.ask_round = self._ask_round
        # Objects led here of which others have copies; see leads.
        self.replicated = self.boxes.shared
        # The lineage and epoch of each.
        self._epochs: dict[ObjectId, tuple[int, int]] = {}
        # Begins to find out whether an object is led here still; the number of the round
        # that LeadConfirmed will tell, None where nobody else could lead it. Whoever sets
        # it sees to it that it does not step this core.
        self.begin_round: Callable[[ObjectId], int | None] = lambda _object_id: None
        # Which voters do not take part and why, as texts of a missing majority end.
        self.why_each: Callable[[ObjectId], str] = lambda _object_id: ""
        self._quarantine = Quarantine(self.config.quarantine_s)
        self.lookups = Lookups()
        self.calls: dict[int, Call] = {}
        self.calls_by_object = CallsByObject(self.calls)
        self.sessions: dict[SessionId, dict[int, Call]] = {}
        # Answers that are out before what they tell is on disk (relaxed durability).
        self._unwritten: dict[Client, effects.Answer | effects.Refuse] = {}
        # By its number: calls with a deadline, of shared objects, whose answers wait; and
        # the numbers of those that methods made.
        self._owed: dict[int, Call] = {}
        self._owed_nested: dict[Nested, int] = {}
        self._persists: dict[int, events.PersistArrived] = {}
        # By the token of the commit that they wait for.
        self._departures: dict[int, Departure] = {}
        # Nested calls of objects whose fences are looked up, and by which question.
        self._fence_lookups: dict[ObjectId, FenceLookup] = {}
        # What clients wait for that is no call: persists, requests. By session.
        self.errands: dict[SessionId, set[int]] = {}
        # Objects that are to leave.
        self._held: dict[ObjectId, Mailbox] = {}
        self._next_call = 1
        self.is_draining = False

    def _emit(self, effect: effects.Effect) -> None:
        self._out.append(effect)

    def _parent_of(self, call: Call) -> Call | None:
        return self._parent_of_origin(call.origin)

    def _parent_of_origin(self, origin: Client | Nested) -> Call | None:
        return self.calls.get(origin.parent) if type(origin) is Nested else None

    def _pump(self, box: Mailbox) -> None:
        self.boxes.pump(box)

    def _ask_round(self, call: Call) -> None:
        """Have it made sure that an object is led here still, for one that reads it."""
        if call.round == NO_ROUND:
            call.round = self.begin_round(call.object_id) or 0

    def _release_read(
        self,
        box: Mailbox,
        version: int,
        call: Call,
        effect: effects.Answer | effects.Refuse | effects.SendItem,
    ) -> bool:
        """Let out what a call saw of a shared object, once it is sure to be the newest."""
        self._ask_round(call)
        return self.ledger.release_confirmed(box, version, effect, call.round)

    def _try_delete(self, box: Mailbox) -> None:
        """Delete the object, as is first in line, if nothing runs on it."""
        if box.running or box.reader_running:
            self._end_streams_of(box)
            return
        call = box.waiting[0]
        self.boxes.take(box, call)
        for copy in (box.main, box.reader):
            if copy is not None:
                self.pool.passivate(copy)
        self.boxes.cool(box)
        version = self.ledger.order(
            box, call, Step(is_delete=True), durability=0, body=NIL,
            outermost=self._outermost(call),
        )  # fmt: skip
        self._note_change(call)
        self._release(box, version, call, effects.Answer(call.origin, NIL, ()))

    def _end_streams_of(self, box: Mailbox) -> None:
        """End the streams of an object that is to be deleted: they may have no end."""
        for call in self.calls_by_object.of(box.object_id):
            if call.is_stream and call.slot:
                self._stop(call, CancelledError(call.where()), "deleted")

    def _release(
        self,
        box: Mailbox,
        version: int,
        call: Call,
        answer: effects.Answer | effects.Refuse,
    ) -> None:
        """Answer a call that has ended, now or when what it saw is committed."""
        call.is_deferred = not self.ledger.release(box, version, answer)
        self._close(call)

    def _hurry_commits(self, box: Mailbox) -> None:
        """Have the commits of an object wait for no company: somebody waits for them."""
        if box.hurried_version != box.executed_version:
            box.hurried_version = box.executed_version
            self._emit(effects.HurryCommits())

    def _written(self, pending: Pending) -> None:
        """What was answered before its commit is on disk now, or lost."""
        if self._unwritten and pending.checkpoint is None and pending.call is not None:
            origin = pending.call.origin
            if type(origin) is Client:
                self._unwritten.pop(origin, None)

    def _told(self, origin: Client | Nested) -> None:
        """A deferred answer is out: the request may be forgotten."""
        if type(origin) is Client:
            call = self.sessions.get(origin.session, {}).get(origin.sequence)
            if call is not None and call.is_deferred:
                self._forget(origin)
        elif self._owed_nested:
            self._owe_no_more(origin)

    def _owe(self, call: Call) -> None:
        """Note that an answer waits for a majority, and be woken before its deadline."""
        until_s = self._until_s(call)
        if not until_s:
            return
        early_s_max = EARLY_S
        if type(call.origin) is Nested:
            early_s_max = NESTED_EARLY_S
            self._owed_nested[call.origin] = call.call_id
        self._owed[call.call_id] = call
        at_s = until_s - early_s(until_s - self._now_s, early_s_max)
        self.timers.add(at_s, Timer.DEADLINE, call.call_id)

    def _owe_no_more(self, origin: Nested) -> None:
        """A method has the answer that waited for a majority."""
        call_id = self._owed_nested.pop(origin, None)
        if call_id is not None:
            del self._owed[call_id]

    def _until_s(self, call: Call) -> float:
        """Return the earliest deadline of a call and those that it is nested in; 0: none."""
        until_s = 0.0
        link: Call | None = call
        while link is not None:
            if link.deadline_s and not 0.0 < until_s < link.deadline_s:
                until_s = link.deadline_s
            link = self._parent_of(link)
        return until_s

    def _left_s(self, call: Call) -> float:
        """Return how long there is until the deadline of a call; 0 for none."""
        return max(call.deadline_s - self._now_s, 0.001) if call.deadline_s else 0.0

    def _forget(self, origin: Client) -> None:
        session = self.sessions.get(origin.session)
        if session is not None:
            call = session.pop(origin.sequence, None)
            if self._owed and call is not None:
                self._owed.pop(call.call_id, None)
            if not session:
                del self.sessions[origin.session]

    def _end_errand(self, origin: Client) -> None:
        open_ones = self.errands.get(origin.session)
        if open_ones is not None:
            open_ones.discard(origin.sequence)
            if not open_ones:
                del self.errands[origin.session]

    @staticmethod
    def _has_left_traces(call: Call) -> bool:
        """Whether running a call again could do something twice that was committed."""
        return (
            call.changed_others or call.has_checkpointed or bool(call.children)
        ) and not call.is_stale  # It can have changed nothing.

    def _outermost(self, call: Call) -> effects.Provisional | None:
        """Return what is kept for the outermost call of a nested one that changes state."""
        if type(call.origin) is Client:
            return None
        top = self._top_of(call)
        if top is None or (
            top.promise == PROMISED and top.object_id in self.replicated
        ):
            return None  # It is kept already, by a majority too.
        return provisional(top)

    def _top_of(self, call: Call) -> Call | None:
        """Return the outermost call here of a chain; None where it is gone."""
        top: Call | None = call
        while top is not None and type(top.origin) is Nested:
            top = self.calls.get(top.origin.parent)
        return top

    def _note_change(self, call: Call) -> None:
        """Tell the caller's call that a nested call of it has changed something."""
        parent = self._parent_of(call)
        if parent is not None:
            parent.changed_others = True

    def _leave_slot(self, box: Mailbox, call: Call) -> None:
        """Take a call out of its slot and its copy's count."""
        slot, copy = call.slot, call.copy
        if slot is not None and slot.queue:
            if slot.queue[0] is call:
                slot.queue.popleft()
                slot.head_since_s = self._now_s
                slot.is_recalling = False
            elif not call.is_reentrant and call in slot.queue:
                slot.queue.remove(call)
            slot.executor.idle_since_s = self._now_s
        if copy is not None:
            copy.running -= 1
            if copy.is_reader and not call.is_reentrant:
                box.reader_running -= 1
                if not copy.running and copy is not box.reader:
                    self.pool.drop_aside(copy)
        box.entered -= call.is_reentrant
        if box.running.pop(call.call_id, None) is not None and not call.is_readonly:
            box.writers -= 1
        call.slot = None
        call.copy = None

    def _discard(self, box: Mailbox) -> None:
        """Throw away the main copy: it holds a change that must not be committed."""
        box.generation += 1
        if box.main is not None:
            copy = box.main
            copy.executor.state_bytes -= copy.state_bytes
            copy.executor.copies.pop(copy.copy_id, None)
            box.main = None
            self._emit(effects.DropCopy(copy.executor.executor_id, copy.copy_id))
        self.boxes.cool(box)

    def _fail(self, call: Call, error: ActiveStoreError) -> None:
        """Refuse a call that has left its mailbox and its slot."""
        if not call.is_answered:
            self._emit(effects.Refuse(call.origin, error))
        self._close(call)
        box = self.boxes.boxes.get(call.object_id)
        if box is not None:
            self.pool.left.append(box)

    def _close(self, call: Call) -> None:
        """Forget a call; its answer is out or ordered."""
        if self.calls.pop(call.call_id, None) is None:
            return
        origin = call.origin
        if type(origin) is Client:
            if self.lookups.lines:
                self.lookups.leave(call)
            # Until its answer is out, a retry must find the request here.
            if not call.is_deferred:
                self._forget(origin)
            elif call.deadline_s and call.object_id in self.replicated:
                self._owe(call)
        else:
            if call.is_deferred and call.object_id in self.replicated:
                self._owe(call)
            parent = self._parent_of(call)
            if parent is not None and parent.children is not None:
                parent.changed_others |= self._has_left_traces(call)
                parent.children.discard(call.call_id)
                parent.waits_nested -= origin.waits

    def _stop(self, call: Call, error: ActiveStoreError, reason: str) -> None:
        """Answer a call with an error now and end it where it is."""
        if call.is_answered or call.is_deferred:
            return
        for child_id in list(call.children or ()):
            child = self.calls.get(child_id)
            if child is not None:
                self._stop(child, CancelledError(child.where()), reason)
        if call.is_away:
            self._emit(effects.StopAway(call.call_id))
        box = self.boxes.boxes.get(call.object_id)
        if call.slot is None:
            if box is not None and call in box.waiting:
                self.boxes.take(box, call)
            self._fail(call, error)
            if box is not None:
                self._pump(box)
                self.boxes.tidy(box)
            return
        self._emit(effects.Refuse(call.origin, error))
        self._interrupt(call, call.slot, reason, error)

    def _interrupt(
        self, call: Call, slot: Slot, reason: str, error: ActiveStoreError
    ) -> None:
        """End a running call that has its answer."""
        call.is_answered = True
        call.refusal = error
        call.interrupt = reason
        self._emit(
            effects.InterruptCall(
                slot.executor.executor_id, slot.index, call.call_id, reason
            )
        )
        self.timers.add(self._now_s + self.config.grace_s, Timer.GRACE, call.call_id)

    @staticmethod
    def _key(call: Call) -> object:
        """Return what the quarantine knows a call by: object, method and arguments.

        The object is part of it: the same method may be harmless on another state.
        """
        body = bytes(getattr(call.payload, "body", b""))[:KEY_BODY_BYTES]
        return (call.object_id, call.class_name, call.kind, call.method, body)


def provisional(call: Call) -> effects.Provisional | None:
    """Return what a retry of a client's running call is told once the peer was lost."""
    if type(call.origin) is not Client:
        return None
    lost = ExecutorCrashedError(
        call.where(), "the peer ended while it ran", is_partial=True
    )
    return effects.Provisional(
        call.object_id, call.origin, lost.code, encode_error(lost), call.first_unacked
    )
