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
from activestore.core.calls import Call, Nested
from activestore.core.chains import Chains
from activestore.core.desk import provisional
from activestore.core.timers import Timer
from activestore.errors import ActiveStoreError, CancelledError, InvalidRequestError

# `Call.promise`: what a retry of this call is told is on disk.
PROMISED = -1


class Travels(Chains):
    """Handlers of nested calls that leave, and of what comes back of them."""

    def _on_nested_left(self, event: events.NestedLeft) -> None:
        origin = event.origin
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

    def _promise(self, call: Call) -> None:
        """Have kept what a retry of the outermost call is told, then let the call go."""
        top = call
        while type(top.origin) is Nested:
            parent = self.calls.get(top.origin.parent)
            if parent is None:
                break
            top = parent
        outermost = provisional(top)
        if outermost is None or top.promise == PROMISED:
            self._depart(call)
            return
        if not top.promise:
            top.promise = self.ledger.next_token()
            self._departures[top.promise] = (top.call_id, [])
            self._emit(effects.CommitStates(top.promise, (), None, outermost))
        self._departures[top.promise][1].append(call.call_id)

    def _promise_done(self, token: int, error: ActiveStoreError | None) -> bool:
        """Let go, or fail, what waited for a commit; False where it was no promise."""
        found = self._departures.pop(token, None)
        if found is None:
            return False
        top = self.calls.get(found[0])
        if top is not None:
            top.promise = 0 if error is not None else PROMISED
        for call_id in found[1]:
            call = self.calls.get(call_id)
            if call is None:
                continue
            if error is None:
                self._depart(call)
            else:
                call.changed_others = False
                self._fail(call, error)
        return True

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
