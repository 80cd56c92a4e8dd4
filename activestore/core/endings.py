"""How calls end: what they changed is committed, then they are answered.

Rules of this file: nothing is answered before what it saw is durable; a change that
comes too late, or from an attempt that was given up, is thrown away with the copy that
holds it.

Source: design section 5, "What a call does to state"; reliability.md 3.4 R5.
"""

from __future__ import annotations

from activestore.core import effects, events
from activestore.core.calls import Call, Client, Copy, Executor, Kind, Mailbox, Nested
from activestore.core.commits import Step
from activestore.core.desk import NIL, NOT_RUN, provisional
from activestore.core.travels import Travels
from activestore.errors import (
    ActiveStoreError,
    CancelledError,
    DeadlineExceededError,
    InvalidRequestError,
    UnavailableError,
)


class Endings(Travels):
    """Handlers of what executors and storage report about calls."""

    def _on_call_ended(self, event: events.CallEnded) -> None:
        call = self.calls.get(event.call_id)
        if call is None or call.slot is None or call.attempt != event.attempt:
            return  # An abandoned attempt: whatever it did, nobody will see.
        box = self.boxes.boxes[call.object_id]
        copy, executor = call.copy, call.slot.executor
        self._leave_slot(box, call)
        if event.code == NOT_RUN:
            self._not_run(box, call, copy, is_dropped=event.is_dropped)
            return
        if call.times is not None:
            bytes_in = len(getattr(call.payload, "body", b""))
            call.times.add(event.run_s, bytes_in, len(event.body))
        if not self._quarantine.is_empty:
            self._quarantine.forgive(self._key(call))
        is_stale = call.generation != box.generation
        is_late = bool(call.deadline_s and self._now_s >= call.deadline_s)
        if event.is_dropped and copy is not None:
            if not call.is_reentrant:  # Else its holder runs there still.
                self.pool.forget(copy)
        elif copy is not None and event.state_bytes:
            box.state_bytes = event.state_bytes
            self.pool.resize(copy, event.state_bytes)
        self._end_streams(call)
        if call.is_reentrant:
            self._answer(call, event)
        elif is_stale and not call.is_answered:
            self._again(box, call)
        else:
            self._conclude(box, call, event, copy, is_late=is_late)
        self._after_call(box, executor)

    def _not_run(
        self, box: Mailbox, call: Call, copy: Copy | None, *, is_dropped: bool
    ) -> None:
        """An executor gave a call back untouched: it stands where it stood."""
        if is_dropped and copy is not None and not call.is_reentrant:
            self.pool.forget(copy)
        if call.is_answered:
            if call.kind is Kind.CREATE and copy is not None:
                self.pool.passivate(copy)  # It has no state, and will not get one.
            self._close(call)
        elif call.is_reentrant and is_dropped:
            self._fail(call, UnavailableError(call.where(), "its copy was dropped"))
        else:
            # One that was to enter its own chain's object waits like others now.
            call.is_reentrant = False
            self._requeue(box, call)
        self._pump(box)
        self.boxes.pump_ready()  # Where it was ended meanwhile, its slot is free.
        self.boxes.tidy(box)

    def _again(self, box: Mailbox, call: Call) -> None:
        """Run a call once more whose copy was built on a change that was discarded."""
        if call.made_nested or call.is_stream:
            self._fail(
                call,
                UnavailableError(
                    call.where(), "an earlier change it saw was not committed"
                ),
            )
        else:
            self._requeue(box, call)

    def _conclude(
        self,
        box: Mailbox,
        call: Call,
        event: events.CallEnded,
        copy: Copy | None,
        *,
        is_late: bool,
    ) -> None:
        """Commit what a call changed and order its answer."""
        has_change = (
            event.delta is not None or event.state is not None or bool(event.created)
        )
        if call.is_answered or (is_late and not event.code):
            is_held = has_change and not event.is_dropped
            self._throw_away(box, call, is_held=is_held)
            return
        if has_change or call.changed_others:
            if call.is_stale:
                self._end_stale(call)
                return
            self._note_change(call)
        is_recorded = type(call.origin) is Client and self._has_left_traces(call)
        if not (has_change or is_recorded):
            self._release_seen(box, call, event, copy)
            return
        durability = 0
        # Names and new objects always last.
        if has_change and event.state is None and not event.created:
            info = self.boxes.classes.get(box.class_name)
            durability = info.durability if info is not None else 0
        version = self.ledger.order(
            box, call, Step(event.delta, event.state, event.created),
            durability=durability, code=event.code, body=event.body,
            buffers=event.buffers, outermost=self._outermost(call),
        )  # fmt: skip
        answer = _shown(box, call, event, version)
        if durability and not box.unreplied:
            if type(call.origin) is Client:
                self._unwritten[call.origin] = answer
            box.shown_version = version
            self._emit(answer)
            self._close(call)
            return
        self._release(box, version, call, answer)
        if durability:
            self._hurry_commits(box)

    def _throw_away(self, box: Mailbox, call: Call, *, is_held: bool) -> None:
        """End a call that may have no effect; `is_held`: its copy has its change."""
        if is_held and call.generation == box.generation:
            self._discard(box)
        if call.is_answered:
            self._close(call)
        else:
            is_unknown = self._has_left_traces(call)
            late = DeadlineExceededError(call.where(), call.timeout_s, is_unknown)
            self._fail(call, late)

    def _release_seen(
        self, box: Mailbox, call: Call, event: events.CallEnded, copy: Copy | None
    ) -> None:
        """Answer a call that leaves nothing to commit, once what it saw is committed."""
        version = call.version
        is_shared = box.is_shared
        if (is_shared or box.unreplied) and copy is not None and not copy.is_reader:
            version = box.executed_version  # It may have run behind a writer.
        answer = _shown(box, call, event, version)
        if is_shared:
            is_out = self._release_read(box, version, call, answer)
        else:
            is_out = self.ledger.release(box, version, answer)
        call.is_deferred = not is_out
        self._close(call)
        if not is_out:
            self._hurry_shown(box)

    def _hurry_shown(self, box: Mailbox) -> None:
        """Have what was answered before its commit be so: somebody waits for it."""
        if box.shown_version > box.committed_version:
            self._hurry_commits(box)

    def _end_stale(self, call: Call) -> None:
        """Refuse what a call made that was to read an older state only."""
        made = InvalidRequestError(
            "it made new objects; what may read an older state can only read: call it "
            "without staleness_s",
            call.where(),
        )
        self._fail(call, made)

    def _answer(self, call: Call, event: events.CallEnded) -> None:
        if not call.is_answered:
            self._emit(_answer_of(call, event))
        if call.changed_others:
            self._note_change(call)
        self._close(call)

    def _after_call(self, box: Mailbox, executor: Executor) -> None:
        """Serve what the end of a call made room for."""
        reader = box.reader
        is_unused = reader is not None and not reader.running
        if reader is not None and is_unused and not self.boxes.holds_readers_up(box):
            self.pool.passivate(reader)
        if box.waiting:
            self._pump(box)
        self.boxes.pump_ready()
        if executor.state_bytes > self.pool.config.activation_bytes_max:
            self.pool.make_room(executor)
        if not box.waiting and not box.running:
            self.boxes.tidy(box)

    def _on_committed(self, event: events.Committed) -> None:
        pending = self.ledger.take(event.token)
        if pending is None:
            if not self._promise_done(event.token, None):
                self._persist_done(event.token, None)
            return
        box = pending.mailbox
        box.pending_commits -= 1
        if pending.has_state:
            box.state_version = pending.version
        self.ledger.committed(box, pending.version)
        self._written(pending)
        if pending.checkpoint is not None and pending.call is not None:
            self._emit(
                effects.Answer(
                    Nested(pending.call.call_id, pending.checkpoint), NIL, ()
                )
            )
        if box.waiting:
            self._pump(box)
        elif not box.running:
            self.boxes.tidy(box)

    def _on_commit_refused(self, event: events.CommitRefused) -> None:
        pending = self.ledger.take(event.token)
        if pending is None:
            if not self._promise_done(event.token, event.error):
                self._persist_done(event.token, event.error)
            return
        box = pending.mailbox
        box.pending_commits -= 1
        self._written(pending)
        if pending.generation == box.generation:
            self._discard(box)
        asked_round = 0
        if box.is_shared and box.unreplied:
            asked_round = self.begin_round(box.object_id) or 0
        failed = self.ledger.refused(box, pending.version, event.error, asked_round)
        for call in list(box.running.values()):
            if call.origin in failed and call.slot is not None:
                self._interrupt(call, call.slot, "commit failed", event.error)
        if box.fences is not None:
            box.fences.was_refused()
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
            self._end_errand(persist.origin)
        if error is not None:
            self._emit(effects.Refuse(persist.origin, error))
        else:
            self._emit(effects.Answer(persist.origin, NIL, ()))

    def _on_checkpoint_reached(self, event: events.CheckpointReached) -> None:
        call = self.calls.get(event.call_id)
        origin = Nested(event.call_id, event.request)
        if call is None or call.attempt != event.attempt or call.is_answered:
            self._emit(effects.Refuse(origin, CancelledError("checkpoint")))
            return
        box = self.boxes.boxes[call.object_id]
        if call.generation != box.generation:
            self._emit(
                effects.Refuse(origin, UnavailableError(call.where(), "commit failed"))
            )
        elif event.delta is None and not event.created:
            self._emit(effects.Answer(origin, NIL, ()))
        elif call.is_stale:
            refused = InvalidRequestError("a stale read keeps nothing", call.where())
            self._emit(effects.Refuse(origin, refused))
        else:
            call.has_checkpointed = True
            lost = provisional(call)
            self.ledger.order(
                box, call, Step(event.delta, None, event.created), durability=0,
                code=lost.code if lost else "", body=lost.body if lost else b"",
                checkpoint=event.request, outermost=self._outermost(call),
            )  # fmt: skip
            self._note_change(call)

    def _on_item_produced(self, event: events.ItemProduced) -> None:
        call = self.calls.get(event.call_id)
        if call is None or call.attempt != event.attempt or call.is_answered:
            return
        box = self.boxes.boxes[call.object_id]
        item = effects.SendItem(call.origin, call.items_sent, event.body, event.buffers)
        call.items_sent += 1
        # An item shows the writer's own, uncommitted state; it is no acknowledgement.
        # What it must not do is overtake answers that wait for earlier commits.
        version = 0 if not call.is_readonly else call.version
        if box.is_shared:
            is_out = self._release_read(box, version, call, item)
        else:
            is_out = self.ledger.release(box, version, item)
        if not is_out:
            self._hurry_shown(box)


def _answer_of(call: Call, event: events.CallEnded) -> effects.Answer | effects.Refuse:
    if event.code:
        return effects.Refuse(call.origin, None, event.code, event.body)
    return effects.Answer(call.origin, event.body, event.buffers)


def _shown(
    box: Mailbox, call: Call, event: events.CallEnded, version: int
) -> effects.Answer | effects.Refuse:
    """Return an answer, which tells what it shows where that matters."""
    if event.code:
        return effects.Refuse(call.origin, None, event.code, event.body)
    saw = None
    if call.wants_info or box.is_shared or call.is_stale:
        saw = effects.Saw(box.object_id, version, call.is_stale and not call.round)
    return effects.Answer(call.origin, event.body, event.buffers, saw)
