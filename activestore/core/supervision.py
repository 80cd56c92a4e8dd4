"""Executors that start, die, fall silent or swell, and everything that happens by time.

Rules of this file: a call that began in a process that died fails, one that had not
begun is sent elsewhere; a call is charged with a crash, and refused after two.

Source: design section 5; reliability.md section 7.
"""

from __future__ import annotations

from collections.abc import Callable

from activestore.core import effects, events
from activestore.core.calls import (
    SLOTS_MAX,
    Call,
    Client,
    Executor,
    ExecutorState,
    Mailbox,
    Nested,
)
from activestore.core.commits import Step
from activestore.core.deadlocks import Deadlocks
from activestore.core.desk import Departure
from activestore.core.mailboxes import RECALL_S
from activestore.core.quarantine import RUNS_TRUSTED
from activestore.core.timers import Timer
from activestore.errors import (
    DeadlineExceededError,
    ExecutorCrashedError,
    NoQuorumError,
)
from activestore.ids import ObjectId
from activestore.wire.values import encode_error

# Ping an executor whose call runs long; no answer for this time means that it is
# silent: its interpreter is held by a call that never lets go.
PING_S = 0.1
SILENT_S = 0.2
# How often idle extra executors are looked for.
TIDY_S = 5.0
# An executor that lived shorter than this died young.
YOUNG_S = 10.0


class Supervision(Deadlocks):
    """Handlers of executors and timers."""

    _timer_handlers: dict[Timer, Callable[[int], None]]

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
        running = [*self._stacked_on(executor), *began]
        for call in running:
            touched[call.object_id] = self._lose(
                call,
                event.how,
                is_alone=len(running) == 1,
                is_bystander=executor.is_condemned,
            )
        for call in waiting:
            touched[call.object_id] = self._lose_waiting(call)
        for copy in list(executor.copies.values()):
            touched[copy.mailbox.object_id] = copy.mailbox
            self.pool.forget(copy)
        if executor.state is not ExecutorState.RETIRING:
            self._note_death(executor, event.how)
        self._replace()
        for box in touched.values():
            self._pump(box)
            self.boxes.tidy(box)

    def _stacked_on(self, executor: Executor) -> list[Call]:
        return [
            call
            for call in self.calls.values()
            if call.is_reentrant
            and call.slot is not None
            and call.slot.executor is executor
        ]

    def _lose(
        self, call: Call, how: str, *, is_alone: bool, is_bystander: bool
    ) -> Mailbox:
        """End a call that ran in an executor that is gone."""
        box = self.boxes.boxes[call.object_id]
        times = call.times
        self._leave_slot(box, call)
        self._end_streams(call)
        if call.is_answered:
            self._close(call)
            return box
        refused_s = 0.0
        is_trusted = times is not None and times.runs_count >= RUNS_TRUSTED
        if not is_bystander and (is_alone or not is_trusted):
            refused_s = self._quarantine.blame(self._key(call), self._now_s)
        is_partial = self._has_left_traces(call)
        error = ExecutorCrashedError(call.where(), how, refused_s, is_partial)
        if is_partial and type(call.origin) is Client:
            self._record_loss(box, call, error)
        else:
            self._fail(call, error)
        return box

    def _record_loss(
        self, box: Mailbox, call: Call, error: ExecutorCrashedError
    ) -> None:
        """Keep how a call ended that must not run again, then say so."""
        version = self.ledger.order(
            box, call, Step(), durability=0, code=error.code, body=encode_error(error)
        )
        answer = effects.Refuse(call.origin, None, error.code, encode_error(error))
        self._release(box, version, call, answer)

    def _lose_waiting(self, call: Call) -> Mailbox:
        """Requeue a call that had not begun in an executor that is gone."""
        box = self.boxes.boxes[call.object_id]
        self._leave_slot(box, call)
        if call.is_answered:
            self._close(call)
        else:
            self._requeue(box, call)
        return box

    def _note_death(self, executor: Executor, how: str) -> None:
        lived_s = self._now_s - executor.born_s
        self.pool.deaths_in_a_row = (
            self.pool.deaths_in_a_row + 1 if lived_s < YOUNG_S else 0
        )
        self._emit(
            effects.Note(
                "warning",
                f"executor died executor={executor.executor_id} how={how!r} "
                f"lived_s={lived_s:.1f}",
            )
        )

    def _replace(self) -> None:
        """Start another executor where there are too few, later if they die young."""
        if self.pool.is_short:
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

    def _on_timer_fired(self, _event: events.TimerFired) -> None:
        for timer, key in self.timers.due(self._now_s):
            self._timer_handlers[timer](key)

    def _on_deadline(self, call_id: int) -> None:
        call = self.calls.get(call_id)
        if call is None:
            if call_id in self._owed:
                self._refuse_owed(self._owed[call_id])
        elif departure := self._departure_of(call):
            error = self._unanswered(call, departure.object_id)
            self._stop(call, error, "deadline")
        elif self._now_s >= call.deadline_s:
            is_unknown = self._has_left_traces(call)
            late = DeadlineExceededError(call.where(), call.timeout_s, is_unknown)
            self._stop(call, late, "deadline")

    def _departure_of(self, call: Call) -> Departure | None:
        """Return what a call, or one nested in it, waits for others to be told of."""
        for one in self._departures.values():
            if one.object_id in self.replicated and (
                one.top_id == call.call_id or any(call is w for w in one.waiting)
            ):
                return one
        return None

    def _refuse_owed(self, call: Call) -> None:
        """Tell that the majority did not answer in time; what has ended goes on to it.

        Until that is decided a retry is told the same; then it gets what is recorded.
        """
        if call.refusal is not None:
            return  # That there is no majority.
        box, origin = self.boxes.boxes[call.object_id], call.origin
        call.refusal = self._unanswered(call, call.object_id)
        self._emit(effects.Refuse(origin, call.refusal))
        self.ledger.withhold(box, origin)
        if type(origin) is Nested:
            self._owe_no_more(origin)

    def _unanswered(self, call: Call, object_id: ObjectId) -> NoQuorumError:
        """Return what a call is told that waits for a majority when its deadline comes."""
        timeout = f" of {call.timeout_s:g} s" if call.timeout_s else ""
        whose, kept = "its copies", "what the call changed may be found kept"
        if object_id != call.object_id:
            # It has not begun: others were not told yet of the call that makes it.
            whose = f"the copies of object {object_id.hex()}, from which it was called,"
            kept = "it has not begun, and changed nothing"
        elif call.is_readonly and not self._has_left_traces(call):
            kept = "it is readonly and changed nothing"
        return NoQuorumError(
            call.where(),
            f"a majority of {whose} did not answer within the deadline{timeout}; {kept}"
            + self.why_each(object_id),
        )

    def _on_grace(self, call_id: int) -> None:
        call = self.calls.get(call_id)
        if call is not None and call.slot is not None and call.is_answered:
            call.slot.executor.is_condemned = True
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
        self.boxes.pump_ready()  # What waits for this executor may move to a free one.
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

        Their attempts are fenced: should the executor come back, their answers and
        their copies' changes count for nothing. A call that made nested calls stays,
        for those may have happened.
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
                elif copy is not None and copy is box.reader and not copy.running:
                    self.pool.passivate(copy)  # Else it would run here again.
                self._requeue(box, call)
                self._pump(box)

    def _on_recall_due(self, slot_key: int) -> None:
        executor_id, index = divmod(slot_key, SLOTS_MAX)
        executor = self.pool.executors.get(executor_id)
        if executor is None:
            return
        slot = executor.slots[index]
        slot.has_recall_timer = False
        if len(slot.queue) < 2 or slot.is_recalling:
            return
        due_s = slot.head_since_s + RECALL_S
        if self._now_s < due_s:
            slot.has_recall_timer = True
            self.timers.add(due_s, Timer.RECALL, slot_key)
        else:
            slot.is_recalling = True
            self._emit(effects.RecallCalls(executor_id, index))

    def _on_beat(self, _key: int) -> None:
        for session in {**self.sessions, **self.errands}:
            open_ones = (
                *self.sessions.get(session, ()),
                *self.errands.get(session, ()),
            )
            self._emit(effects.SendBeat(session, open_ones))
        self._look_for_rings()
        self.timers.add(self._now_s + self.config.beat_s, Timer.BEAT)

    def _on_respawn(self, _key: int) -> None:
        if self.pool.is_short:
            self.pool.spawn(self._now_s)

    def _on_tidy(self, _key: int) -> None:
        self.pool.retire_idle(self._now_s)
        self.timers.add(self._now_s + TIDY_S, Timer.TIDY)
