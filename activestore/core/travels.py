"""Nested calls to objects at other peers, and the chains that come back from there.

    NestedLeft -> (what a retry of the outermost call is told is kept) -> SendAway
    -> AwayItem ... -> AwayAnswered

A call that is away has no slot and no mailbox here; it is in the table of calls, with
its deadline, as a child of the call that made it. Its *chain* travels with it: a mark
of this start of this peer and the call's number, then those of its callers elsewhere.
By it a peer knows its own waiting calls in what comes back.

Rules of this file: what may change something elsewhere leaves only once a retry of the
outermost call would be told so; nobody is told twice.

Source: design section 5, "Nested calls"; decision 8.
"""

from __future__ import annotations

from activestore.core import effects, events
from activestore.core.calls import Call, Client, Kind, Nested
from activestore.core.chains import Chains
from activestore.core.desk import PROMISED, Departure, FenceLookup, provisional
from activestore.core.fences import Fence, Fences
from activestore.core.timers import Timer
from activestore.errors import (
    ActiveStoreError,
    BusyError,
    CancelledError,
    ExecutorCrashedError,
    InvalidRequestError,
    RemoteProtocolError,
    UnavailableError,
)
from activestore.wire.limits import early_s


class Travels(Chains):
    """Handlers of nested calls that leave, and of what comes back of them."""

    def _on_nested_left(self, event: events.NestedLeft) -> None:
        origin = event.origin
        if event.may_change and self._is_of_stale(origin):
            self._emit(effects.Refuse(origin, stale_nests(event.method)))
            return
        call = Call(
            self._next_call, origin, event.object_id, event.kind, event.method,
            event.payload,
        )  # fmt: skip
        self._next_call += 1
        call.is_away = True
        call.is_stream = bool(event.credit)
        call.credit = event.credit
        call.arrived_s = self._now_s
        if not self._admit_nested(origin, call):
            return
        self.calls[call.call_id] = call
        call.changed_others = event.may_change
        if event.deadline_s:
            call.timeout_s = event.deadline_s
            call.deadline_s = self._now_s + event.deadline_s
            self.timers.add(call.deadline_s, Timer.DEADLINE, call.call_id)
        if event.may_change:
            self._promise(call)
        else:
            self._depart(call)

    def _admit_nested(self, origin: Nested, call: Call) -> bool:
        """Tie a nested call to the call that made it; False where it is refused."""
        parent = self.calls.get(origin.parent)
        if parent is None or parent.slot is None or parent.is_answered:
            self._emit(effects.Refuse(origin, CancelledError(call.where())))
            return False
        call.depth = parent.depth + 1
        call.is_stale = parent.is_stale  # What it calls may only read, too.
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
        call.fence = self._fence_of(parent, call)
        parent.made_nested = True
        parent.waits_nested += origin.waits
        if parent.children is None:
            parent.children = set()
        parent.children.add(call.call_id)
        return True

    def _is_of_stale(self, origin: Nested) -> bool:
        """Whether a method asks that may read an older state, and so may only read."""
        parent = self.calls.get(origin.parent)
        return parent is not None and parent.is_stale

    def _wants_promise(self, call: Call) -> bool:
        """Whether a nested call to an object here waits for a promise, as others do.

        What it changes is on this disk. The call that made it may be run again at another
        peer, which must know of it before.
        """
        top = self._top_of(call)
        if top is None or top.object_id not in self.replicated:
            return False
        if top.object_id == call.object_id or call.kind is Kind.GET or call.is_stale:
            return False
        box = self.boxes.boxes.get(call.object_id)
        info = self.boxes.classes.get(box.class_name) if box is not None else None
        method = info.methods.get(call.method) if info is not None else None
        return call.kind is not Kind.CALL or method is None or not method.is_readonly

    def _promise(self, call: Call) -> None:
        """Have kept what a retry of the outermost call is told, then let the call go."""
        self._keep_promise(self._top_of(call), call)

    def _keep_promise(
        self, top: Call | None, waits: Call | events.PersistArrived
    ) -> None:
        outermost = provisional(top) if top is not None else None
        if top is None or outermost is None or top.promise == PROMISED:
            self._set_off(waits)
            return
        if not top.promise:
            top.promise = self.ledger.next_token()
            departure = Departure(top.call_id, top.object_id, [])
            self._departures[top.promise] = departure
            if top.deadline_s and top.object_id in self.replicated:
                at_s = top.deadline_s - early_s(top.timeout_s)
                self.timers.add(at_s, Timer.DEADLINE, top.call_id)
            self._emit(effects.CommitStates(top.promise, (), None, outermost))
        self._departures[top.promise].waiting.append(waits)

    def _set_off(self, waited: Call | events.PersistArrived) -> None:
        """Begin what waited for a promise."""
        if type(waited) is events.PersistArrived:
            self._order_states(waited)
        elif type(waited) is Call:
            if waited.is_away:
                self._depart(waited)
            else:
                self._enqueue(waited)

    def _promise_done(self, token: int, error: ActiveStoreError | None) -> bool:
        """Let go, or fail, what waited for a commit; False where it was no promise."""
        found = self._departures.pop(token, None)
        if found is None:
            return False
        top = self.calls.get(found.top_id)
        if top is not None:
            top.promise = 0 if error is not None else PROMISED
            top.changed_others |= error is None  # Its own answer must take its place.
        for waited in found.waiting:
            if error is None:
                if self._is_wanted(waited):
                    self._set_off(waited)
            elif type(waited) is Call:
                waited.changed_others = False
                if self._is_wanted(waited):
                    self._fail(waited, error)
            elif self._is_wanted(waited):
                self._emit(effects.Refuse(waited.origin, error))
        return True

    def _is_wanted(self, waited: Call | events.PersistArrived) -> bool:
        """Whether somebody still waits for what waited for a promise."""
        if type(waited) is Call:
            return waited.call_id in self.calls
        parent = self._parent_of_origin(waited.origin)
        return parent is not None and not parent.is_answered

    def _order_states(self, event: events.PersistArrived) -> None:
        """Order the commit of the states of a Persist."""
        origin = event.origin
        client = origin if type(origin) is Client else None
        outermost = None
        parent = self._parent_of_origin(origin)
        if parent is not None:
            parent.changed_others = True
            outermost = provisional(parent) or self._outermost(parent)
            if parent.promise == PROMISED and parent.object_id in self.replicated:
                outermost = None  # It is kept already, by a majority too.
        token = self.ledger.next_token()
        self._persists[token] = event
        self._emit(
            effects.CommitStates(
                token, event.states, client, outermost, event.first_unacked
            )
        )

    # -- fences ------------------------------------------------------------------------

    def _fence_of(self, parent: Call, call: Call) -> Fence | None:
        """Return what says under which epoch a run is led that calls another object.

        None where its object has no register, or is called itself; and for what it makes,
        which nobody else knows yet.
        """
        led = self._epochs.get(parent.object_id)
        if (
            led is None
            or call.kind is Kind.CREATE
            or parent.object_id == call.object_id
        ):
            return None
        return Fence(parent.object_id, *led)

    def _is_past_fence(self, call: Call, fence: Fence) -> bool:
        """Whether a nested call may run; else it waits until that is known, or is refused.

        What only reads is held to it too: so the calls of one run stay in their order.
        """
        object_id = call.object_id
        box = self.boxes.boxes.get(object_id)
        if box is None or box.fences is None:
            lookup = self._fence_lookups.get(object_id)
            if lookup is None:
                lookup = FenceLookup(self.ledger.next_token(), {})
                self._fence_lookups[object_id] = lookup
                self._emit(effects.LookUpFences(object_id, lookup.token))
            lookup.calls[call.call_id] = call
            return False
        if box.fences.admits(fence):
            return True
        newest = box.fences.epoch_of(fence.caller)
        self._fail(call, _came_late(call, fence, newest))
        return False

    def _on_fences_looked_up(self, event: events.FencesLookedUp) -> None:
        lookup = self._fence_lookups.get(event.object_id)
        if lookup is None or lookup.token != event.token:
            return  # The object was led elsewhere in between, or is.
        del self._fence_lookups[event.object_id]
        calls = [
            one for one in lookup.calls.values()
            if one.call_id in self.calls and not one.is_away
        ]  # fmt: skip
        error = event.error
        if calls and error is None:
            try:
                self.boxes.box_of(event.object_id).fences = Fences(event.kept)
            except RemoteProtocolError as malformed:
                error = malformed
        for call in calls:
            if error is None:
                self._enqueue(call)
            else:
                unknown = (
                    f"which epochs of its callers it has seen is not known: {error}"
                )
                self._fail(call, UnavailableError(call.where(), unknown))

    def _enqueue(self, call: Call) -> None:
        if call.fence is not None and not self._is_past_fence(call, call.fence):
            return
        box = self.boxes.box_of(call.object_id)
        is_nested = type(call.origin) is Nested or bool(call.chain)
        if is_nested and self._is_settled_in_chain(box, call):
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

    def _on_away_answered(self, event: events.AwayAnswered) -> None:
        call = self.calls.get(event.call_id)
        if call is None:
            return
        if event.code:
            self._emit(effects.Refuse(call.origin, None, event.code, event.body))
        else:
            self._emit(effects.Answer(call.origin, event.body, event.buffers))
        self._close(call)

    def _on_away_item(self, event: events.AwayItem) -> None:
        call = self.calls.get(event.call_id)
        if call is not None:
            self._emit(
                effects.SendItem(call.origin, event.number, event.body, event.buffers)
            )


def _came_late(call: Call, fence: Fence, newest: int) -> UnavailableError:
    """Return what a run is told whose object is led elsewhere by now."""
    return UnavailableError(
        call.where(),
        f"object {fence.caller.hex()} is led elsewhere: it calls under epoch "
        f"{fence.epoch}, and has called under {newest}; nothing changed",
    )


def stale_nests(method: str) -> InvalidRequestError:
    """Return what a method is told that may read an older state only."""
    return InvalidRequestError(
        "a method that may read an older state calls what may change something: call it "
        "without staleness_s",
        method,
    )
