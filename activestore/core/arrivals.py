"""What comes from clients, nested callers and storage: admission, names, cancels.

Rules of this file: a request id is admitted once; a nested call is tied to its parent.

Source: design section 5; reliability.md 3.7.
"""

from __future__ import annotations

from collections.abc import Mapping

from activestore.core import effects, events
from activestore.core.calls import (
    Call,
    ClassInfo,
    Client,
    Kind,
    MailboxState,
    Nested,
)
from activestore.core.timers import Timer
from activestore.core.travels import Travels, stale_nests
from activestore.errors import (
    ActiveStoreError,
    CancelledError,
    InvalidRequestError,
    SessionExpiredError,
    UnavailableError,
)

_NONE: Mapping[int, Call] = {}


class Arrivals(Travels):
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
        call.still_open = event.still_open
        call.chain = event.chain
        call.depth = event.depth
        call.began_ms = event.began_ms
        call.wants_info = event.wants_info
        call.fence = event.fence
        if type(origin) is Client:
            if event.is_stale and not self._admit_stale(origin, call, event):
                return
            if not self._admit_client(origin, call, event):
                return
        elif not self._admit_nested(origin, call):
            return
        self.calls[call.call_id] = call
        if event.deadline_s:
            call.timeout_s = event.deadline_s
            call.deadline_s = self._now_s + event.deadline_s
            self.timers.add(call.deadline_s, Timer.DEADLINE, call.call_id)
        if event.attempt and type(origin) is Client and not call.is_stale:
            self.lookups.begin(call)
            self._emit(
                effects.LookUpReply(
                    call.call_id, call.object_id, origin.session, origin.sequence
                )
            )
        elif self.replicated and type(origin) is Nested and self._wants_promise(call):
            self._promise(call)
        elif not self.lookups.lines or not self.lookups.follow(call):
            self._enqueue(call)

    def _admit_stale(
        self, origin: Client, call: Call, event: events.CallArrived
    ) -> bool:
        """Note that a call may read an older state, and only read; False where it cannot.

        Of an object that is led here, or has no other copies, it sees the newest state.
        """
        if call.kind is not Kind.CALL and call.kind is not Kind.GET:
            error = InvalidRequestError(
                "it changes the object: call it without staleness_s", call.where()
            )
            self._emit(effects.Refuse(origin, error))
            return False
        call.is_stale = True
        if event.is_young:
            call.round = 0
        if call.object_id not in self.replicated and not event.is_here:
            box = self.boxes.box_of(call.object_id)
            box.is_followed = True
            self.pool.left.append(box)  # Should the call not be admitted.
        return True

    def _admit_client(
        self, origin: Client, call: Call, event: events.CallArrived
    ) -> bool:
        """Register a client's call; False where it is known already or refused."""
        known = self.sessions.get(origin.session, _NONE).get(origin.sequence)
        if known is not None:
            if known.refusal is not None:  # It is being ended; this was its answer.
                self._emit(effects.Refuse(origin, known.refusal))
            elif len(event.chain) > len(known.chain):
                known.chain = event.chain  # Its caller, or that one's, waits now.
                self._settle_below(known)
            return False  # A retry of what is in progress: its answer will come.
        if self._unwritten and origin in self._unwritten:
            self._emit(self._unwritten[origin])
            return False
        error = self._why_too_late(origin, event.attempt, event.age_s)
        if error is None:
            self.sessions.setdefault(origin.session, {})[origin.sequence] = call
            return True
        self._emit(effects.Refuse(origin, error))
        return False

    def _why_too_late(
        self, origin: Client, attempt: int, age_s: float
    ) -> ActiveStoreError | None:
        """Return why a client's request is not begun any more, None where it is."""
        if attempt and age_s > self.config.session_expiry_s:
            return SessionExpiredError(
                origin.sequence, age_s, self.config.session_expiry_s
            )
        if self.is_draining:
            return UnavailableError("peer", "it is stopping")
        return None

    def _on_away_returned(self, event: events.AwayReturned) -> None:
        call = self.calls.get(event.call_id)
        if call is not None and call.is_away:
            call.is_away = False
            self._enqueue(call)

    def _on_nested_waits(self, event: events.NestedWaits) -> None:
        """A method begins to wait for a nested call that it had only submitted."""
        parent = self.calls.get(event.parent)
        for child_id in list((parent.children if parent is not None else None) or ()):
            child = self.calls.get(child_id)
            if child is None or parent is None or not child.is_request(event.request):
                continue
            if not child.is_waited_for:
                child.origin = Nested(event.parent, event.request)
                parent.waits_nested += 1
                self._settle_below(child)

    def _on_nested_abandoned(self, event: events.NestedAbandoned) -> None:
        parent = self.calls.get(event.parent)
        for child_id in list((parent.children if parent is not None else None) or ()):
            child = self.calls.get(child_id)
            if child is not None and child.is_request(event.request):
                self._stop(child, CancelledError(child.where()), "cancelled")

    def _on_persist_arrived(self, event: events.PersistArrived) -> None:
        origin = event.origin
        client = origin if type(origin) is Client else None
        if client is not None:
            if client.sequence in self.errands.get(client.session, ()):
                return
            error = self._why_too_late(client, event.attempt, event.age_s)
            if error is not None:
                self._emit(effects.Refuse(client, error))
                return
            self.errands.setdefault(client.session, set()).add(client.sequence)
        parent = self._parent_of_origin(origin)
        if parent is not None:
            if parent.is_answered or parent.is_stale:
                refused = stale_nests("persist") if parent.is_stale else _ended(parent)
                self._emit(effects.Refuse(origin, refused))
                return
            top = self._top_of(parent)
            if top is not None and top.object_id in self.replicated:
                parent.changed_others = True
                self._keep_promise(top, event)
                return
        self._order_states(event)

    def _on_errand_began(self, event: events.ErrandBegan) -> None:
        origin = event.origin
        self.errands.setdefault(origin.session, set()).add(origin.sequence)

    def _on_errand_ended(self, event: events.ErrandEnded) -> None:
        self._end_errand(event.origin)

    def _on_reply_looked_up(self, event: events.ReplyLookedUp) -> None:
        call = self.calls.get(event.call_id)
        if call is None:
            return
        if event.code is None:
            self.lookups.end(call)  # It goes on by `_go_on_looked_up`.
            return
        answer: effects.Answer | effects.Refuse
        if event.code:
            answer = effects.Refuse(call.origin, None, event.code, event.body)
        else:
            saw = effects.Saw(call.object_id, 0) if call.wants_info else None
            answer = effects.Answer(call.origin, event.body, event.buffers, saw)
        if call.object_id in self.replicated:
            # What was found on this disk may not be committed yet, or never be: then the
            # answer that it is of waits here, and this one behind it.
            box = self.boxes.box_of(call.object_id)
            call.is_deferred = not self._release_read(box, 0, call, answer)
            self.pool.left.append(box)
        else:
            self._emit(answer)
        self._close(call)

    def _go_on_looked_up(self) -> None:
        """Let the calls go on for which, and before which, nothing is looked up now."""
        ready = self.lookups.ready
        while ready:
            call = ready.popleft()
            if call.call_id in self.calls:
                self._enqueue(call)

    def _on_object_loaded(self, event: events.ObjectLoaded) -> None:
        box = self.boxes.boxes.get(event.object_id)
        is_old = self.boxes.is_old_load(event.object_id, is_reader=event.is_reader)
        if box is None or is_old:
            self._emit(effects.ReleaseLoaded(event.loaded))
            return
        if event.is_reader:
            box.class_name = event.class_name
            self.boxes.reader_loaded(box, event.version, event.loaded)
            self.boxes.tidy(box)  # It may have lost its other copy in the meantime.
            return
        if box.state is not MailboxState.LOADING:
            self._emit(effects.ReleaseLoaded(event.loaded))
            return
        box.class_name = event.class_name
        self.boxes.put_loaded(box, event.loaded, event.state_bytes)
        box.executed_version = box.committed_version = event.version
        box.state_version = event.version
        self.boxes.check_waiting(box)
        self._pump(box)
        self.boxes.tidy(box)

    def _on_object_missing(self, event: events.ObjectMissing) -> None:
        box = self.boxes.boxes.get(event.object_id)
        is_old = self.boxes.is_old_load(event.object_id, is_reader=event.is_reader)
        if box is None or is_old:
            return
        if event.is_reader:
            box.reader_loading = False
            self.boxes.tidy(box)
            return
        self.boxes.cool(box)
        for call in list(box.waiting):
            if call.kind is not Kind.CREATE and call.kind is not Kind.DELETE:
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
            if child is not None and child.is_request(event.request):
                self._grant(child, event.items)

    def _grant(self, call: Call, items: int) -> None:
        if call.is_away:
            self._emit(effects.GrantAway(call.call_id, items))
            return
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


def _ended(parent: Call) -> CancelledError:
    """Return what a method is told that goes on after it was ended."""
    return CancelledError(parent.where())
