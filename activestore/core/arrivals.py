"""What comes from clients, nested callers and storage: admission, names, cancels.

Rules of this file: a request id is admitted once; a nested call is tied to its parent.

Source: design section 5; reliability.md 3.7.
"""

from __future__ import annotations

from activestore.core import effects, events
from activestore.core.calls import (
    Call,
    ClassInfo,
    Client,
    Kind,
    Mailbox,
    MailboxState,
    Nested,
)
from activestore.core.desk import Desk
from activestore.core.timers import Timer
from activestore.errors import (
    ActiveStoreError,
    BusyError,
    CancelledError,
    ExecutorCrashedError,
    InvalidRequestError,
    SessionExpiredError,
    UnavailableError,
)


class Arrivals(Desk):
    """Handlers of what arrives."""

    def _on_call_arrived(self, event: events.CallArrived) -> None:
        origin = event.origin
        call = Call(
            self._next_call,
            origin,
            event.object_id,
            event.kind,
            event.method,
            event.payload,
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
        if origin.sequence in self.sessions.get(origin.session, ()):
            return False  # A retry of what is still in progress: its answer will come.
        if event.attempt and event.age_s > self.config.reply_keep_s:
            error: ActiveStoreError = SessionExpiredError(
                origin.sequence, event.age_s, self.config.reply_keep_s
            )
        elif self.is_draining:
            error = UnavailableError("peer", "it is stopping")
        else:
            self.sessions.setdefault(origin.session, {})[origin.sequence] = call
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
                        call.where(),
                        "two chains of calls wait for each other (deadlock)",
                    ),
                )
                return
        refused_s = self._quarantined_for_s(call)
        if refused_s:
            self._fail(
                call,
                ExecutorCrashedError(
                    call.where(), "the same call has killed two executors", refused_s
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

    def _quarantined_for_s(self, call: Call) -> float:
        if self._quarantine.is_empty:
            return 0.0
        return self._quarantine.refused_for_s(self._key(call), self._now_s)

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
            InvalidRequestError(
                "an object cannot be deleted by a call it runs", call.where()
            )
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
        self.boxes.why_not(box, call)  # Notes whether it reads only.
        shares = call.is_readonly and not box.waiting
        frontier = [c for c in box.running.values() if not (shares and c.is_readonly)]
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
                self._emit(
                    effects.Refuse(client, UnavailableError("peer", "it is stopping"))
                )
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
            self._emit(effects.Answer(call.origin, event.body, event.buffers))
        self._close(call)

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
        self.boxes.check_waiting(box)
        self._pump(box)
        self.boxes.tidy(box)

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

    def _on_credit_arrived(self, event: events.CreditArrived) -> None:
        call = self.sessions.get(event.session, {}).get(event.sequence)
        if call is not None:
            self._grant(call, event.items)

    def _on_nested_credit_arrived(self, event: events.NestedCreditArrived) -> None:
        parent = self.calls.get(event.parent)
        for child_id in (parent.children if parent is not None else None) or ():
            child = self.calls.get(child_id)
            if child is not None and child.origin[1] == event.request:
                self._grant(child, event.items)

    def _grant(self, call: Call, items: int) -> None:
        if call.slot is None:
            call.credit += items
            return
        slot = call.slot
        self._emit(
            effects.GrantCredit(
                slot.executor.executor_id, slot.index, call.call_id, items
            )
        )

    def _on_cancel_arrived(self, event: events.CancelArrived) -> None:
        call = self.sessions.get(event.session, {}).get(event.sequence)
        if call is not None:
            self._stop(call, CancelledError(call.where()), "cancelled")

    def _on_session_ended(self, event: events.SessionEnded) -> None:
        for call in list(self.sessions.get(event.session, {}).values()):
            self._stop(call, CancelledError(call.where()), "cancelled")

    def _on_drain_started(self, _event: events.DrainStarted) -> None:
        self.is_draining = True
