"""How a call lives: arrival, dispatch, commit, answer; the core that joins its parts.

    CallArrived -> (LookUpReply) -> mailbox -> Dispatch -> CallEnded -> (Commit) ->
    Answer

    arrivals     admission, nesting, cancels          endings      commits and answers
    mailboxes    who runs next on an object           executors    where it runs
    supervision  deaths, silence, timers              commits      replies after commits
    chains       re-entry and deadlock                travels      calls to other peers
    moves        objects that leave             lookups        what may have been answered
    deadlocks    chains that wait for each other over several peers
    leads        objects with copies at other peers

Promises kept here: a request id runs at most once at a time and its recorded answer is
given again; nothing is answered before what it saw is durable; a call that is
cancelled, too late, or whose executor dies leaves no trace; a chain of calls that comes
back to an object it holds runs on the copy it holds; two chains that would wait for
each other for ever are told so.

Rules of this file: pure; every effect is emitted in the order in which it must be done.

Source: design section 5; reliability.md 3.7 and 7.
"""

from __future__ import annotations

from collections.abc import Callable

from activestore.core import effects, events
from activestore.core.arrivals import Arrivals
from activestore.core.calls import Client, ExecutorState, MailboxState
from activestore.core.desk import InvocationConfig
from activestore.core.endings import Endings
from activestore.core.executors import PoolConfig
from activestore.core.leads import Leads
from activestore.core.mailboxes import MailboxConfig
from activestore.core.supervision import TIDY_S, Supervision
from activestore.core.timers import TIMERS_OF_CALLS, Timer


class InvocationCore(Arrivals, Endings, Leads, Supervision):
    """Decides for all calls of one peer."""

    def __init__(
        self,
        config: InvocationConfig | None = None,
        mailboxes: MailboxConfig | None = None,
        pool: PoolConfig | None = None,
    ) -> None:
        super().__init__(config, mailboxes, pool)
        self._handlers: dict[type, Callable[..., None]] = {
            events.CallArrived: self._on_call_arrived,
            events.NestedLeft: self._on_nested_left,
            events.AwayAnswered: self._on_away_answered,
            events.AwayItem: self._on_away_item,
            events.AwayReturned: self._on_away_returned,
            events.RingAsked: self._on_ring_asked,
            events.MoveOrdered: self._on_move_ordered,
            events.MoveEnded: self._on_move_ended,
            events.PersistArrived: self._on_persist_arrived,
            events.ReplyLookedUp: self._on_reply_looked_up,
            events.FencesLookedUp: self._on_fences_looked_up,
            events.CancelArrived: self._on_cancel_arrived,
            events.CreditArrived: self._on_credit_arrived,
            events.NestedCreditArrived: self._on_nested_credit_arrived,
            events.SessionEnded: self._on_session_ended,
            events.ObjectLoaded: self._on_object_loaded,
            events.ObjectMissing: self._on_object_missing,
            events.CopyUnproven: self._on_copy_unproven,
            events.ClassPublished: self._on_class_published,
            events.ExecutorStarted: self._on_executor_started,
            events.ExecutorDied: self._on_executor_died,
            events.ExecutorMeasured: self._on_executor_measured,
            events.ExecutorAnswered: self._on_executor_answered,
            events.CallEnded: self._on_call_ended,
            events.ItemProduced: self._on_item_produced,
            events.CheckpointReached: self._on_checkpoint_reached,
            events.NestedWaits: self._on_nested_waits,
            events.NestedAbandoned: self._on_nested_abandoned,
            events.ErrandBegan: self._on_errand_began,
            events.ErrandEnded: self._on_errand_ended,
            events.Committed: self._on_committed,
            events.CommitRefused: self._on_commit_refused,
            events.ObjectLed: self._on_object_led,
            events.ObjectUnshared: self._on_object_unshared,
            events.ObjectDeposed: self._on_object_deposed,
            events.ObjectUnanswered: self._on_object_unanswered,
            events.ObjectUnavailable: self._on_object_unavailable,
            events.LeadConfirmed: self._on_lead_confirmed,
            events.StateReplaced: self._on_state_replaced,
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
        if self.lookups.ready:
            self._go_on_looked_up()
        if self._held:
            self._look_at_held()
        if self.pool.left:
            self.boxes.tidy_left()
        if self.boxes.wants_loads:
            self.boxes.load_more()
        if self.timers.is_crowded:
            self.timers.sweep(self._is_timer_live)
        return out

    def _is_timer_live(self, timer: Timer, key: int) -> bool:
        is_of_call = timer in TIMERS_OF_CALLS
        return not is_of_call or key in self.calls or key in self._owed

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

    @property
    def owes_nothing(self) -> bool:
        """Whether every call and persist that was taken is answered, commits included."""
        return (
            not self.calls
            and not self._persists
            and not any(box.unreplied for box in self.boxes.boxes.values())
        )

    def check(self) -> None:
        """Assert every invariant; for tests."""
        for box in self.boxes.boxes.values():
            writers = sum(1 for call in box.running.values() if not call.is_readonly)
            assert box.writers == writers, (box.object_id, box.writers, writers)
            assert box.writers == 0 or box.pipe is not None or len(box.running) == 1
            assert box.committed_version <= box.executed_version
            assert box.main is None or box.state is MailboxState.READY
            assert len(box.waiting) <= self.boxes.config.mailbox_max + len(self.calls)
            assert box.main or box.reader or not box.is_idle, "an empty mailbox is kept"
            readers = sum(1 for c in box.waiting if c.is_checked and c.is_readonly)
            assert box.readers_waiting == readers
            assert box.is_shared == (box.object_id in self.replicated)
            assert not (box.is_shared and box.is_followed)
        executors = self.pool.executors.values()
        kept = sum(e.state is not ExecutorState.RETIRING for e in executors)
        is_started = self.timers.has(Timer.TIDY)
        assert kept or not is_started or self.timers.has(Timer.RESPAWN), (
            "no executor runs, and none will start"
        )
        for executor in self.pool.executors.values():
            total = sum(copy.state_bytes for copy in executor.copies.values())
            assert executor.state_bytes == total
            for slot in executor.slots:
                assert all(call.slot is slot for call in slot.queue)
        for session in self.sessions.values():
            assert session, "an empty session is kept"
            assert all(
                call.is_deferred or call.call_id in self.calls
                for call in session.values()
            )
        for call_id, call in self._owed.items():
            origin = call.origin
            if type(origin) is Client:
                assert self.sessions[origin.session][origin.sequence] is call
            else:
                assert self._owed_nested[origin] == call_id
        assert set(self._owed_nested.values()) <= self._owed.keys()
        self.lookups.check(self.calls)
        boxes = self.boxes.boxes.values()
        loads = sum(box.state is MailboxState.LOADING for box in boxes)
        assert self.boxes.loads_count == loads, (self.boxes.loads_count, loads)
        loaded = sum(box.loaded_bytes for box in boxes if box.loaded is not None)
        assert self.boxes.loaded_bytes == loaded, (self.boxes.loaded_bytes, loaded)


__all__ = ["InvocationConfig", "InvocationCore"]
