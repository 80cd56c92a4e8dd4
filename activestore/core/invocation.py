"""How a call lives: arrival, dispatch, commit, answer; the core that joins the others.

    CallArrived -> (LookUpReply) -> mailbox -> Dispatch -> CallEnded -> (Commit) -> Answer

Promises kept here: a request id runs at most once at a time and its recorded answer is
given again; nothing is answered before what it saw is durable; a call that is cancelled,
too late, or whose executor dies leaves no trace; a chain of calls that comes back to an
object it holds runs on the copy it holds; two chains that would wait for each other for
ever are told so.

Rules of this file: pure; every effect is emitted in the order in which it must be done.

Source: design section 5; reliability.md 3.7 and 7.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from activestore.core import effects, events
from activestore.core.calls import (
    Call,
    ClassInfo,
    Client,
    Copy,
    Executor,
    ExecutorState,
    Kind,
    Mailbox,
    MailboxState,
    Nested,
)
from activestore.core.commits import Ledger, Step
from activestore.core.executors import SLOTS_MAX, Pool, PoolConfig
from activestore.core.mailboxes import MailboxConfig, Mailboxes
from activestore.core.quarantine import RUNS_TRUSTED, Quarantine
from activestore.core.timers import Timer, Timers
from activestore.errors import (
    ActiveStoreError,
    BusyError,
    CancelledError,
    DeadlineExceededError,
    ExecutorCrashedError,
    InvalidRequestError,
    ObjectNotFoundError,
    SessionExpiredError,
    UnavailableError,
)
from activestore.ids import ObjectId, SessionId

# Ping an executor whose call runs long; no answer for this time means it is silent: its
# interpreter is held by a call that never lets go.
PING_S = 0.1
SILENT_S = 0.2
TIDY_S = 5.0
NOT_RUN = "not_run"


class InvocationConfig(NamedTuple):
    """Times and bounds of invocation; see PeerConfig for what each is for."""

    grace_s: float = 2.0
    beat_s: float = 2.0
    quarantine_s: float = 600.0
    reply_keep_s: float = 3600.0
    depth_max: int = 32


class InvocationCore:
    """Decides for all calls of one peer."""

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
        self.ledger = Ledger(self._emit)
        self.boxes = Mailboxes(
            mailboxes or MailboxConfig(), self.pool, self.timers, self._emit, self._fail
        )
        self._quarantine = Quarantine(self.config.quarantine_s)
        self.calls: dict[int, Call] = {}
        self.sessions: dict[SessionId, dict[int, Call]] = {}
        self._persists: dict[int, events.PersistArrived] = {}
        self._persisting: set[Client] = set()
        self._next_call = 1
        self.is_draining = False
        self._handlers: dict[type, Callable[..., None]] = {
            events.CallArrived: self._on_call_arrived,
            events.PersistArrived: self._on_persist_arrived,
            events.ReplyLookedUp: self._on_reply_looked_up,
            events.CancelArrived: self._on_cancel_arrived,
            events.CreditArrived: self._on_credit_arrived,
            events.SessionEnded: self._on_session_ended,
            events.ObjectLoaded: self._on_object_loaded,
            events.ObjectMissing: self._on_object_missing,
            events.ClassPublished: self._on_class_published,
            events.ExecutorStarted: self._on_executor_started,
            events.ExecutorDied: self._on_executor_died,
            events.ExecutorMeasured: self._on_executor_measured,
            events.ExecutorAnswered: self._on_executor_answered,
            events.CallEnded: self._on_call_ended,
            events.ItemProduced: self._on_item_produced,
            events.CheckpointReached: self._on_checkpoint_reached,
            events.Committed: self._on_committed,
            events.CommitRefused: self._on_commit_refused,
            events.DrainStarted: self._on_drain_started,
            events.TimerFired: self._on_timer_fired,
        }
        self._timer_handlers: dict[Timer, Callable[[int], None]] = {
            Timer.DEADLINE: self._on_deadline,
            Timer.GRACE: self._on_grace,
            Timer.READER: self._on_reader_due,
            Timer.LONG_RUN: self._on_long_run,
            Timer.RECALL: self._on_recall_due,
            Timer.BEAT: self._on_beat,
            Timer.PING: self._on_ping_due,
            Timer.RESPAWN: self._on_respawn,
            Timer.TIDY: self._on_tidy,
        }

    def step(self, event: events.Event, now_s: float) -> list[effects.Effect]:
        """Take one event and return what is to be done, in order."""
        self._now_s = self.boxes.now_s = now_s
        out: list[effects.Effect] = []
        self._out = out
        self._handlers[type(event)](event)
        return out

    def deadline_s(self) -> float | None:
        """Return when it next wants a TimerFired, None for never."""
        return self.timers.next_s()

    def start(self, now_s: float) -> list[effects.Effect]:
        """Order the first executors and begin the regular timers."""
        self._now_s = self.boxes.now_s = now_s
        out: list[effects.Effect] = []
        self._out = out
        for _ in range(self.pool.config.executors):
            self.pool.spawn(now_s)
        self.timers.add(now_s + self.config.beat_s, Timer.BEAT)
        self.timers.add(now_s + TIDY_S, Timer.TIDY)
        return out

    def check(self) -> None:
        """Assert every invariant; for tests."""
        for box in self.boxes.boxes.values():
            writers = sum(1 for call in box.running.values() if not call.is_readonly)
            assert box.writers == writers, (box.object_id, box.writers, writers)
            assert box.writers == 0 or box.pipe is not None or len(box.running) == 1
            assert box.committed_version <= box.executed_version
            assert box.main is None or box.state is MailboxState.READY
            assert len(box.waiting) <= self.boxes.config.mailbox_max + len(self.calls)
            readers = sum(1 for c in box.waiting if c.is_checked and c.is_readonly)
            assert box.readers_waiting == readers
        for executor in self.pool.executors.values():
            total = sum(copy.state_bytes for copy in executor.copies.values())
            assert executor.state_bytes == total
            for slot in executor.slots:
                assert all(call.slot is slot for call in slot.queue)
        for session in self.sessions.values():
            assert all(call.call_id in self.calls for call in session.values())

    def _emit(self, effect: effects.Effect) -> None:
        self._out.append(effect)

    # -- arrival ----------------------------------------------------------------------

    def _on_call_arrived(self, event: events.CallArrived) -> None:
        origin = event.origin
        call = Call(
            self._next_call, origin, event.object_id, event.kind, event.method, event.payload
        )
        self._next_call += 1
        call.arrived_s = self._now_s
        call.class_name = event.class_name
        call.alias = event.alias
        call.credit = event.credit
        call.first_unacked = event.first_unacked
        if type(origin) is Client:
            if not self._admit_client(origin, call, event):
                return
        elif not self._admit_nested(origin, call):
            return
        self.calls[call.call_id] = call
        if event.deadline_s:
            call.timeout_s = event.deadline_s
            call.deadline_s = self._now_s + event.deadline_s
            self.timers.add(call.deadline_s, Timer.DEADLINE, call.call_id)
        if event.attempt and type(origin) is Client:
            self._emit(
                effects.LookUpReply(
                    call.call_id, call.object_id, origin.session, origin.sequence
                )
            )
        else:
            self._enqueue(call)

    def _admit_client(
        self, origin: Client, call: Call, event: events.CallArrived
    ) -> bool:
        """Register a client's call; False where it is known already or refused."""
        session = self.sessions.get(origin.session)
        if session is None:
            session = self.sessions[origin.session] = {}
        elif origin.sequence in session:
            return False  # A retry of what is still in progress: its answer will come.
        if event.attempt and event.age_s > self.config.reply_keep_s:
            error: ActiveStoreError = SessionExpiredError(
                origin.sequence, event.age_s, self.config.reply_keep_s
            )
        elif self.is_draining:
            error = UnavailableError("peer", "it is stopping")
        else:
            session[origin.sequence] = call
            return True
        self._emit(effects.Refuse(origin, error))
        return False

    def _admit_nested(self, origin: Nested, call: Call) -> bool:
        """Tie a nested call to the call that made it; False where it is refused."""
        parent = self.calls.get(origin.parent)
        if parent is None or parent.slot is None or parent.is_answered:
            self._emit(effects.Refuse(origin, CancelledError(call.where())))
            return False
        call.depth = parent.depth + 1
        if call.depth > self.config.depth_max:
            self._emit(
                effects.Refuse(
                    origin,
                    InvalidRequestError(
                        f"a chain of {call.depth} nested calls, over {self.config.depth_max}",
                        call.where(),
                    ),
                )
            )
            return False
        parent.made_nested = True
        parent.waits_nested += origin.waits
        if parent.children is None:
            parent.children = set()
        parent.children.add(call.call_id)
        return True

    def _enqueue(self, call: Call) -> None:
        box = self.boxes.box_of(call.object_id)
        if type(call.origin) is Nested and (box.running or box.reader_running):
            holder = self._holder_in_chain(call)
            if holder is not None:
                self._reenter(box, call, holder)
                return
            if self._would_deadlock(call, box):
                self._fail(
                    call,
                    BusyError(
                        call.where(), "two chains of calls wait for each other (deadlock)"
                    ),
                )
                return
        if len(box.waiting) >= self.boxes.config.mailbox_max:
            self._fail(
                call,
                BusyError(
                    f"object {call.object_id.hex()}",
                    f"{len(box.waiting)} calls wait already",
                ),
            )
            return
        self.boxes.enqueue(box, call)
        if call.kind is Kind.DELETE:
            self._try_delete(box)

    def _parent_of(self, call: Call) -> Call | None:
        origin = call.origin
        return self.calls.get(origin.parent) if type(origin) is Nested else None

    def _holder_in_chain(self, call: Call) -> Call | None:
        """Return the nearest call of this chain that runs on the same object."""
        parent = self._parent_of(call)
        while parent is not None:
            if parent.object_id == call.object_id and parent.slot is not None:
                return parent
            parent = self._parent_of(parent)
        return None

    def _reenter(self, box: Mailbox, call: Call, holder: Call) -> None:
        """Run a call on the copy that its chain holds, on the thread that waits."""
        copy, slot = holder.copy, holder.slot
        if copy is None or slot is None:
            self._fail(call, UnavailableError(call.where(), "its caller is gone"))
            return
        error = (
            InvalidRequestError("an object cannot be deleted by a call it runs", call.where())
            if call.kind is Kind.DELETE
            else self.boxes.why_not(box, call)
        )
        if error is None and holder.is_readonly and not call.is_readonly:
            error = InvalidRequestError(
                f"a readonly call of the same chain ({holder.method}) holds the object",
                call.where(),
            )
        if error is not None:
            self._fail(call, error)
            return
        call.is_checked = True
        call.is_reentrant = True
        self.boxes.send(call, slot, copy, is_stacked=True)

    def _would_deadlock(self, call: Call, box: Mailbox) -> bool:
        """Whether waiting for this object means waiting for one's own chain."""
        mine = set()
        parent = self._parent_of(call)
        while parent is not None:
            mine.add(parent.call_id)
            parent = self._parent_of(parent)
        seen: set[int] = set()
        frontier = [c for c in box.running.values() if not (c.is_readonly and call.is_readonly)]
        while frontier:
            holder = frontier.pop()
            if holder.call_id in mine:
                return True
            if holder.call_id in seen:
                continue
            seen.add(holder.call_id)
            for child_id in holder.children or ():
                child = self.calls.get(child_id)
                if child is None:
                    continue
                if child.slot is not None:
                    frontier.append(child)
                else:
                    other = self.boxes.boxes.get(child.object_id)
                    frontier.extend(other.running.values() if other else ())
        return False

    def _on_persist_arrived(self, event: events.PersistArrived) -> None:
        origin = event.origin
        client = origin if type(origin) is Client else None
        if client is not None:
            if client in self._persisting:
                return
            if event.attempt and event.age_s > self.config.reply_keep_s:
                self._emit(
                    effects.Refuse(
                        client,
                        SessionExpiredError(
                            client.sequence, event.age_s, self.config.reply_keep_s
                        ),
                    )
                )
                return
            if self.is_draining:
                self._emit(effects.Refuse(client, UnavailableError("peer", "it is stopping")))
                return
            self._persisting.add(client)
        token = self.ledger.next_token()
        self._persists[token] = event
        self._emit(effects.CommitStates(token, event.states, client))

    def _on_reply_looked_up(self, event: events.ReplyLookedUp) -> None:
        call = self.calls.get(event.call_id)
        if call is None:
            return
        if event.code is None:
            self._enqueue(call)
            return
        if event.code:
            self._emit(effects.Refuse(call.origin, None, event.code, event.body))
        else:
            self._emit(effects.Answer(call.origin, event.body, ()))
        self._close(call)

    # -- objects and classes ------------------------------------------------------------

    def _on_object_loaded(self, event: events.ObjectLoaded) -> None:
        box = self.boxes.boxes.get(event.object_id)
        if box is None:
            return
        box.class_name = event.class_name
        if event.is_reader:
            self.boxes.reader_loaded(box, event.version)
            return
        box.state = MailboxState.READY
        box.state_bytes = event.state_bytes
        box.executed_version = box.committed_version = event.version
        self._pump(box)

    def _on_object_missing(self, event: events.ObjectMissing) -> None:
        box = self.boxes.boxes.get(event.object_id)
        if box is None:
            return
        if event.is_reader:
            box.reader_loading = False
            return
        box.state = MailboxState.COLD
        for call in list(box.waiting):
            if call.kind is not Kind.CREATE:
                self.boxes.take(box, call)
                self._fail(call, event.error)
        self._pump(box)
        self.boxes.tidy(box)

    def _on_class_published(self, event: events.ClassPublished) -> None:
        known = self.boxes.classes.get(event.class_name)
        info = ClassInfo(
            event.class_name, event.revision, event.package, event.durability,
            event.fields, event.methods,
        )  # fmt: skip
        if known is not None:
            info.times = known.times
        self.boxes.classes[event.class_name] = info
        # Other revisions of the same package leave at their next rest, so that the new
        # one can be loaded where they were.
        for executor in self.pool.executors.values():
            for copy in self.pool.idle_copies(executor):
                if copy.package == event.package and copy.revision != event.revision:
                    self.pool.passivate(copy)
        for box in list(self.boxes.boxes.values()):
            if box.waiting:
                self.boxes.pump(box)
        self.boxes.pump_ready()

    def _pump(self, box: Mailbox) -> None:
        self.boxes.pump(box)
        if box.waiting and box.waiting[0].kind is Kind.DELETE:
            self._try_delete(box)

    def _try_delete(self, box: Mailbox) -> None:
        """Delete the object if a delete is first in line and nothing runs."""
        if not box.waiting or box.waiting[0].kind is not Kind.DELETE:
            return
        if box.running or box.reader_running or box.state is not MailboxState.READY:
            return
        call = box.waiting[0]
        self.boxes.take(box, call)
        for copy in (box.main, box.reader):
            if copy is not None:
                self.pool.passivate(copy)
        box.state = MailboxState.COLD
        version = self.ledger.order(box, call, Step(is_delete=True), durability=0)
        self.ledger.release(box, version, effects.Answer(call.origin, _NIL, ()))
        self._close(call)

    # -- the end of a call --------------------------------------------------------------

    def _on_call_ended(self, event: events.CallEnded) -> None:
        call = self.calls.get(event.call_id)
        if call is None or call.slot is None or call.attempt != event.attempt:
            return  # An abandoned attempt: whatever it did, nobody will see.
        box = self.boxes.boxes[call.object_id]
        copy, executor = call.copy, call.slot.executor
        self._leave_slot(box, call)
        if event.code == NOT_RUN:
            self._not_run(box, call, event)
            return
        if call.times is not None:
            call.times.add(event.run_s)
        is_stale = call.generation != box.generation
        is_late = bool(call.deadline_s and self._now_s >= call.deadline_s)
        if event.is_dropped and copy is not None:
            self.pool.forget(copy)
        elif copy is not None and event.state_bytes:
            box.state_bytes = event.state_bytes
            self.pool.resize(copy, event.state_bytes)
        if call.is_reentrant:
            self._answer(call, event)
        elif is_stale and not call.is_answered:
            self._again(box, call)
        else:
            self._conclude(box, call, event, is_late=is_late)
        self._after_call(box, executor)

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
        if box.running.pop(call.call_id, None) is not None and not call.is_readonly:
            box.writers -= 1
        call.slot = None
        call.copy = None

    def _not_run(self, box: Mailbox, call: Call, event: events.CallEnded) -> None:
        """An executor gave a call back untouched: it stands where it stood."""
        if event.is_dropped and box.main is not None and not box.main.running:
            self.pool.forget(box.main)
        if call.is_answered:
            self._close(call)
        elif call.is_reentrant:
            self._fail(call, UnavailableError(call.where(), "its copy was dropped"))
        else:
            self.boxes.requeue(box, call)
        self._pump(box)

    def _again(self, box: Mailbox, call: Call) -> None:
        """Run a call once more whose copy was built on a change that was discarded."""
        if call.made_nested or call.is_stream:
            self._fail(
                call,
                UnavailableError(call.where(), "an earlier change it saw was not committed"),
            )
        else:
            self.boxes.requeue(box, call)

    def _conclude(
        self, box: Mailbox, call: Call, event: events.CallEnded, *, is_late: bool
    ) -> None:
        """Commit what a call changed and order its answer."""
        has_change = (
            event.delta is not None or event.state is not None or bool(event.created)
        )
        is_discarded = call.is_answered or (is_late and not event.code)
        if is_discarded:
            if has_change and not event.is_dropped:
                self._discard(box)
            if not call.is_answered:
                self._fail(call, DeadlineExceededError(call.where(), call.timeout_s))
            else:
                self._close(call)
            return
        version = call.version
        durability = 0
        if has_change:
            info = self.boxes.classes.get(box.class_name)
            durability = info.durability if info is not None else 0
            version = self.ledger.order(
                box, call, Step(event.delta, event.state, event.created),
                durability=durability, code=event.code, body=event.body,
                buffers=event.buffers,
            )  # fmt: skip
        if durability and not box.unreplied:
            self._answer(call, event)
            return
        effect: effects.Answer | effects.Refuse
        if event.code:
            effect = effects.Refuse(call.origin, None, event.code, event.body)
        else:
            effect = effects.Answer(call.origin, event.body, event.buffers)
        self.ledger.release(box, version, effect)
        self._close(call)

    def _answer(self, call: Call, event: events.CallEnded) -> None:
        if call.is_answered:
            pass
        elif event.code:
            self._emit(effects.Refuse(call.origin, None, event.code, event.body))
        else:
            self._emit(effects.Answer(call.origin, event.body, event.buffers))
        self._close(call)

    def _discard(self, box: Mailbox) -> None:
        """Throw away the main copy: it holds a change that must not be committed."""
        box.generation += 1
        if box.main is not None:
            copy = box.main
            copy.executor.state_bytes -= copy.state_bytes
            copy.executor.copies.pop(copy.copy_id, None)
            box.main = None
            self._emit(effects.DropCopy(copy.executor.executor_id, copy.copy_id))
        box.state = MailboxState.COLD

    def _after_call(self, box: Mailbox, executor: Executor) -> None:
        """Serve what the end of a call made room for."""
        reader = box.reader
        if reader is not None and not reader.running and not box.writers:
            self.pool.passivate(reader)
        if box.waiting:
            self._pump(box)
        self.boxes.pump_ready()
        if executor.state_bytes > self.pool.config.activation_bytes_max:
            self.pool.make_room(executor)
        if not box.waiting and not box.running:
            self.boxes.tidy(box)

    def _fail(self, call: Call, error: ActiveStoreError) -> None:
        """Refuse a call that has left its mailbox and its slot."""
        if not call.is_answered:
            self._emit(effects.Refuse(call.origin, error))
        self._close(call)

    def _close(self, call: Call) -> None:
        """Forget a call; its answer is out or ordered."""
        if self.calls.pop(call.call_id, None) is None:
            return
        origin = call.origin
        if type(origin) is Client:
            session = self.sessions.get(origin.session)
            if session is not None and session.get(origin.sequence) is call:
                del session[origin.sequence]
                if not session:
                    del self.sessions[origin.session]
        else:
            parent = self._parent_of(call)
            if parent is not None and parent.children is not None:
                parent.children.discard(call.call_id)
                parent.waits_nested -= origin.waits

    # -- commits --------------------------------------------------------------------------

    def _on_committed(self, event: events.Committed) -> None:
        pending = self.ledger.take(event.token)
        if pending is None:
            self._persist_done(event.token, None)
            return
        box = pending.mailbox
        box.pending_commits -= 1
        self.ledger.committed(box, pending.version)
        if pending.checkpoint is not None and pending.call is not None:
            self._emit(
                effects.Answer(Nested(pending.call.call_id, pending.checkpoint), _NIL, ())
            )
        if box.waiting:
            self._pump(box)
        elif not box.running:
            self.boxes.tidy(box)

    def _on_commit_refused(self, event: events.CommitRefused) -> None:
        pending = self.ledger.take(event.token)
        if pending is None:
            self._persist_done(event.token, event.error)
            return
        box = pending.mailbox
        box.pending_commits -= 1
        if pending.generation == box.generation:
            self._discard(box)
        self.ledger.refused(box, pending.version, event.error)
        if not box.pending_commits:
            box.executed_version = box.committed_version
        if pending.checkpoint is not None and pending.call is not None:
            self._emit(
                effects.Refuse(
                    Nested(pending.call.call_id, pending.checkpoint), event.error
                )
            )
        self._pump(box)
        self.boxes.tidy(box)

    def _persist_done(self, token: int, error: ActiveStoreError | None) -> None:
        persist = self._persists.pop(token, None)
        if persist is None:
            return
        if type(persist.origin) is Client:
            self._persisting.discard(persist.origin)
        if error is not None:
            self._emit(effects.Refuse(persist.origin, error))
        else:
            self._emit(effects.Answer(persist.origin, _NIL, ()))

    def _on_checkpoint_reached(self, event: events.CheckpointReached) -> None:
        call = self.calls.get(event.call_id)
        origin = Nested(event.call_id, event.request)
        if call is None or call.attempt != event.attempt or call.is_answered:
            self._emit(effects.Refuse(origin, CancelledError("checkpoint")))
            return
        box = self.boxes.boxes[call.object_id]
        if call.generation != box.generation:
            self._emit(effects.Refuse(origin, UnavailableError(call.where(), "commit failed")))
        elif event.delta is None and not event.created:
            self._emit(effects.Answer(origin, _NIL, ()))
        else:
            self.ledger.order(
                box, call, Step(event.delta, None, event.created),
                durability=0, checkpoint=event.request,
            )  # fmt: skip

    # -- streams, cancels, sessions ----------------------------------------------------

    def _on_item_produced(self, event: events.ItemProduced) -> None:
        call = self.calls.get(event.call_id)
        if call is None or call.attempt != event.attempt or call.is_answered:
            return
        box = self.boxes.boxes[call.object_id]
        item = effects.SendItem(call.origin, call.items_sent, event.body, event.buffers)
        call.items_sent += 1
        # An item shows the writer's own, uncommitted state; it is no acknowledgement. What
        # it must not do is overtake answers that wait for earlier commits.
        self.ledger.release(box, 0 if not call.is_readonly else call.version, item)

    def _on_credit_arrived(self, event: events.CreditArrived) -> None:
        call = self.sessions.get(event.session, {}).get(event.sequence)
        if call is None:
            return
        if call.slot is None:
            call.credit += event.items
        else:
            self._emit(
                effects.GrantCredit(
                    call.slot.executor.executor_id, call.slot.index, call.call_id, event.items
                )
            )

    def _on_cancel_arrived(self, event: events.CancelArrived) -> None:
        call = self.sessions.get(event.session, {}).get(event.sequence)
        if call is not None:
            self._stop(call, CancelledError(call.where()), "cancelled")

    def _on_session_ended(self, event: events.SessionEnded) -> None:
        for call in list(self.sessions.get(event.session, {}).values()):
            self._stop(call, CancelledError(call.where()), "cancelled")

    def _stop(self, call: Call, error: ActiveStoreError, reason: str) -> None:
        """Answer a call with an error now and end it where it is."""
        if call.is_answered:
            return
        for child_id in list(call.children or ()):
            child = self.calls.get(child_id)
            if child is not None:
                self._stop(child, CancelledError(child.where()), reason)
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
        call.is_answered = True
        call.interrupt = reason
        slot = call.slot
        self._emit(
            effects.InterruptCall(
                slot.executor.executor_id, slot.index, call.call_id, reason
            )
        )
        self.timers.add(self._now_s + self.config.grace_s, Timer.GRACE, call.call_id)

    def _on_drain_started(self, _event: events.DrainStarted) -> None:
        self.is_draining = True

    # -- executors ------------------------------------------------------------------------

    def _on_executor_started(self, event: events.ExecutorStarted) -> None:
        executor = self.pool.executors.get(event.executor)
        if executor is None:
            return
        executor.state = ExecutorState.READY
        executor.idle_since_s = self._now_s
        self.boxes.pump_ready()
        # A new, free executor also helps those who share theirs with a long call.
        for box in list(self.boxes.boxes.values()):
            if box.waiting and not box.running:
                self._pump(box)

    def _on_executor_died(self, event: events.ExecutorDied) -> None:
        executor = self.pool.executors.pop(event.executor, None)
        if executor is None:
            return
        began = [slot.queue[0] for slot in executor.slots if slot.queue]
        waiting = [c for slot in executor.slots for c in list(slot.queue)[1:]]
        touched: dict[ObjectId, Mailbox] = {}
        for call in self._stacked_on(executor):
            touched[call.object_id] = self._lose(call, event.how, did_begin=True)
        for call in began:
            touched[call.object_id] = self._lose(call, event.how, did_begin=True)
        for call in waiting:
            touched[call.object_id] = self._lose(call, event.how, did_begin=False)
        for copy in list(executor.copies.values()):
            touched[copy.mailbox.object_id] = copy.mailbox
            self.pool.forget(copy)
        if executor.state is not ExecutorState.RETIRING:
            self._replace(executor, event.how)
        for box in touched.values():
            self._pump(box)
            self.boxes.tidy(box)

    def _stacked_on(self, executor: Executor) -> list[Call]:
        return [
            call
            for call in self.calls.values()
            if call.is_reentrant and call.slot is not None and call.slot.executor is executor
        ]

    def _lose(self, call: Call, how: str, *, did_begin: bool) -> Mailbox:
        """End or requeue a call whose executor is gone."""
        box = self.boxes.boxes[call.object_id]
        times = call.times
        self._leave_slot(box, call)
        if call.is_answered:
            self._close(call)
        elif not did_begin:
            self.boxes.requeue(box, call)
        else:
            refused_s = 0.0
            if times is None or times.runs_count < RUNS_TRUSTED:
                key = self._key(box, call)
                refused_s = self._quarantine.blame(key, self._now_s)
            self._fail(call, ExecutorCrashedError(call.where(), how, refused_s))
        return box

    @staticmethod
    def _key(box: Mailbox, call: Call) -> object:
        body = getattr(call.payload, "body", b"")
        return (box.class_name or call.class_name, call.kind, call.method, bytes(body[:4096]))

    def _replace(self, executor: Executor, how: str) -> None:
        """Start another executor for one that died, later if it died young."""
        lived_s = self._now_s - executor.born_s
        self.pool.deaths_in_a_row = self.pool.deaths_in_a_row + 1 if lived_s < 10 else 0
        self._emit(
            effects.Note(
                "warning",
                f"executor died executor={executor.executor_id} how={how!r} "
                f"lived_s={lived_s:.1f}",
            )
        )
        if len(self.pool.executors) < self.pool.config.executors:
            delay_s = self.pool.respawn_delay_s()
            self.timers.add(self._now_s + delay_s, Timer.RESPAWN)

    def _on_executor_measured(self, event: events.ExecutorMeasured) -> None:
        executor = self.pool.executors.get(event.executor)
        if executor is not None:
            self.pool.shrink(executor, event.memory_bytes)

    def _on_executor_answered(self, event: events.ExecutorAnswered) -> None:
        executor = self.pool.executors.get(event.executor)
        if executor is not None:
            executor.ping_sent_s = 0.0
            if executor.is_silent:
                executor.is_silent = False
                self.boxes.pump_ready()

    # -- timers -------------------------------------------------------------------------------

    def _on_timer_fired(self, _event: events.TimerFired) -> None:
        for timer, key in self.timers.due(self._now_s):
            self._timer_handlers[timer](key)

    def _on_deadline(self, call_id: int) -> None:
        call = self.calls.get(call_id)
        if call is not None and self._now_s >= call.deadline_s:
            error = DeadlineExceededError(call.where(), call.timeout_s)
            self._stop(call, error, "deadline")

    def _on_grace(self, call_id: int) -> None:
        call = self.calls.get(call_id)
        if call is not None and call.slot is not None and call.is_answered:
            self._emit(
                effects.KillExecutor(
                    call.slot.executor.executor_id,
                    f"{call.where()} did not end {self.config.grace_s:g} s after it was "
                    f"interrupted ({call.interrupt})",
                )
            )

    def _on_reader_due(self, call_id: int) -> None:
        call = self.calls.get(call_id)
        if call is not None and call.slot is None:
            box = self.boxes.boxes.get(call.object_id)
            if box is not None:
                self._pump(box)

    def _on_long_run(self, call_id: int) -> None:
        call = self.calls.get(call_id)
        if call is None or call.slot is None:
            return
        self.pool.ensure_free(self._now_s)
        executor = call.slot.executor
        if not executor.ping_sent_s:
            executor.ping_sent_s = self._now_s
            self._emit(effects.PingExecutor(executor.executor_id))
            self.timers.add(self._now_s + SILENT_S, Timer.PING, executor.executor_id)

    def _on_ping_due(self, executor_id: int) -> None:
        executor = self.pool.executors.get(executor_id)
        if executor is None:
            return
        if executor.ping_sent_s and self._now_s - executor.ping_sent_s >= SILENT_S:
            executor.is_silent = True
            self.pool.ensure_free(self._now_s)
            self._abandon_bystanders(executor)
        elif not executor.ping_sent_s and executor.is_occupied(
            self._now_s, self.pool.config.long_run_s
        ):
            executor.ping_sent_s = self._now_s
            self._emit(effects.PingExecutor(executor_id))
        if executor.busy_slots:
            self.timers.add(self._now_s + PING_S, Timer.PING, executor_id)

    def _abandon_bystanders(self, executor: Executor) -> None:
        """Take short calls away from an executor whose interpreter is held by another.

        Their attempts are fenced: should the executor come back, their answers and their
        copies' changes count for nothing. A call that made nested calls stays, for those
        may have happened.
        """
        for slot in executor.slots:
            for call in list(slot.queue):
                times = call.times
                if times is None or not times.is_short or call.made_nested:
                    continue
                if call.is_abandoned or call.is_answered or call.is_stream:
                    continue
                box = self.boxes.boxes[call.object_id]
                copy = call.copy
                self._leave_slot(box, call)
                call.is_abandoned = True
                if copy is not None and not copy.is_reader and box.main is copy:
                    self._discard(box)
                self.boxes.requeue(box, call)
                self._pump(box)

    def _on_recall_due(self, call_id: int) -> None:
        call = self.calls.get(call_id)
        if call is None or call.slot is None or len(call.slot.queue) < 2:
            return
        slot = call.slot
        if self._now_s - slot.head_since_s < 0.005:
            self.timers.add(slot.head_since_s + 0.005, Timer.RECALL, slot.queue[-1].call_id)
        elif not slot.is_recalling:
            slot.is_recalling = True
            self._emit(effects.RecallCalls(slot.executor.executor_id, slot.index))

    def _on_beat(self, _key: int) -> None:
        for session, calls in self.sessions.items():
            if calls:
                self._emit(effects.SendBeat(session, tuple(calls)))
        self.timers.add(self._now_s + self.config.beat_s, Timer.BEAT)

    def _on_respawn(self, _key: int) -> None:
        if len(self.pool.executors) < self.pool.config.executors:
            self.pool.spawn(self._now_s)

    def _on_tidy(self, _key: int) -> None:
        self.pool.retire_idle(self._now_s)
        self.timers.add(self._now_s + TIDY_S, Timer.TIDY)


_NIL = b"\xc0"  # msgpack nil: the result of what has none

__all__ = ["NOT_RUN", "SLOTS_MAX", "Copy", "InvocationConfig", "InvocationCore"]
