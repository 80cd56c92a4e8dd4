"""Objects with copies at other peers: what is led here is proven, what was led is let go.

    ObjectLed -> (answers wait for majorities) -> ObjectDeposed | ObjectUnshared

    led        a change is answered once `Committed` says that a majority has it; whatever
               else shows the state (a read, an error, an item, a recorded answer) once a
               round that began after the call came says that it is led here still
    deposed    what has no answer yet is thrown away here, and sent on under its own
               request id, to be looked up where the object is led
    followed   led elsewhere: who may read an older state reads the copy on this disk,
               where that is known committed; else (CopyUnproven) the leader is asked

Answers of relaxed durability are given before their commit, by the choice of the class:
such a change may be lost with the leader, as it may be with a power cut.

Rules of this file: a request is answered or sent on, never both; what a deposed object
still runs is interrupted, and nobody sees what it does.

Source: design section 8; reliability.md 3.4 R3, R4, R6.
"""

from __future__ import annotations

from typing import TypeAlias

from activestore.core import effects, events
from activestore.core.calls import (
    NO_ROUND,
    Call,
    Client,
    Mailbox,
    MailboxState,
    Nested,
)
from activestore.core.commits import Pending, Withheld
from activestore.core.moves import Moves
from activestore.errors import CancelledError, NoQuorumError, UnavailableError
from activestore.ids import ObjectId, SessionId

# Whom a call is for that was sent on while it ran.
NOBODY = Client(SessionId(b""), 0)

# What is said of calls that were open when a lead ended, by why it did.
Doubt: TypeAlias = "type[UnavailableError]"


class Leads(Moves):
    """Handlers of what replication says of objects."""

    def _on_object_led(self, event: events.ObjectLed) -> None:
        object_id = event.object_id
        if event.epoch:
            self._epochs[object_id] = (event.lineage, event.epoch)
        if object_id in self.replicated:
            return
        self.replicated.add(object_id)
        box = self.boxes.boxes.get(object_id)
        if box is None:
            return
        box.is_shared = True
        for call in self.calls_by_object.of(object_id):
            call.round = NO_ROUND  # Under an earlier lead they were counted anew.
        if box.is_followed:
            box.is_followed = False
            self.boxes.set_aside(box)  # What is on the disk now counts.
            self._pump(box)
            self.boxes.tidy(box)

    def _on_object_unshared(self, event: events.ObjectUnshared) -> None:
        self.replicated.discard(event.object_id)
        self._epochs.pop(event.object_id, None)
        box = self.boxes.boxes.get(event.object_id)
        if box is None:
            return
        box.is_shared = False
        rounds = [one[2] for one in box.unreplied]
        self.ledger.confirmed(box, max(rounds, default=0))  # There is nobody to ask.
        unreplied = [(version, effect, 0) for version, effect, _ in box.unreplied]
        box.unreplied.clear()
        box.unreplied.extend(unreplied)
        box.confirmed_round = 0
        self.boxes.tidy(box)

    def _on_lead_confirmed(self, event: events.LeadConfirmed) -> None:
        box = self.boxes.boxes.get(event.object_id)
        if box is not None:
            self.ledger.confirmed(box, event.round)
            self.boxes.tidy(box)

    def _on_state_replaced(self, event: events.StateReplaced) -> None:
        box = self.boxes.boxes.get(event.object_id)
        if box is None or event.object_id in self.replicated:
            return  # Of what is led here, commits alone change the state.
        if event.is_gone:
            box.is_followed = False  # Should it come back, others do not lead it.
        if box.main is None and box.state is not MailboxState.COLD:
            # What is being read serves those who wait already: where the object changes
            # faster than it is read, they would wait for ever.
            box.fresh_from = box.fresh_from or self._next_call
            return
        self.boxes.set_aside(box)
        self._pump(box)
        self.boxes.tidy(box)

    def _on_copy_unproven(self, event: events.CopyUnproven) -> None:
        """Have whoever leads the object answer those that would have read its copy here."""
        box = self.boxes.boxes.get(event.object_id)
        is_old = self.boxes.is_old_load(event.object_id, is_reader=event.is_reader)
        if box is None or is_old:
            return
        if event.is_reader:
            box.reader_loading = False
        elif box.state is MailboxState.LOADING:
            self.boxes.cool(box)
            box.fresh_from = 0
            for call in list(box.waiting):
                self.boxes.take(box, call)
                origin = call.origin
                if type(origin) is Client:
                    self._close(call)
                    sent_on = effects.SendOn(
                        origin,
                        call.payload,
                        is_unproven=True,
                        left_s=self._left_s(call),
                    )
                    self._emit(sent_on)
                else:
                    self._send_on(call)
        self.boxes.tidy(box)

    # -- not led any more --------------------------------------------------------------

    def _on_object_deposed(self, event: events.ObjectDeposed) -> None:
        object_id = event.object_id
        doubt = NoQuorumError if event.is_unanswered else UnavailableError
        self.replicated.discard(object_id)
        self._epochs.pop(object_id, None)
        self._fence_lookups.pop(object_id, None)
        box = self.boxes.boxes.get(object_id)
        if box is not None:
            # In order of arrival: what has ended, what runs, what waits.
            self._send_on_ended(box, doubt)
            self._refuse_checkpoints(self.ledger.withdraw(box), doubt)
            self._end_running(box, doubt)
        self._drop_promises(object_id, doubt)
        for call in self._unbegun(object_id):
            if box is not None and call in box.waiting:
                self.boxes.take(box, call)
            # Its client may have sent it to another leader too, which has run it.
            self._send_on(call, may_have_run=True)
        if box is not None:
            self._begin_anew(box)
            self.boxes.tidy(box)

    def _send_on_ended(self, box: Mailbox, doubt: Doubt) -> None:
        """Send on what waits for its commit or its round; it may be committed."""
        for version, effect, _ in box.unreplied:
            origin = effect.origin
            if type(effect) is effects.SendItem:
                continue  # Its stream runs still, or its end is here too.
            if type(origin) is Nested:
                self._owe_no_more(origin)
                if type(effect) is not Withheld:
                    is_write = version > box.committed_version
                    error = _in_doubt(doubt, box.object_id, is_write=is_write)
                    self._emit(effects.Refuse(origin, error))
                continue
            call = self.sessions[origin.session][origin.sequence]
            self._forget(origin)
            if type(effect) is Withheld:
                continue  # It was refused already.
            self._emit(self._sent_on(origin, call))
        box.unreplied.clear()

    def _sent_on(self, origin: Client, call: Call) -> effects.Refuse | effects.SendOn:
        """Return what becomes of a client's call that has run; it may be kept."""
        if call.is_stream:
            return effects.Refuse(origin, _broken(call))
        return effects.SendOn(
            origin, call.payload, may_have_run=True, left_s=self._left_s(call)
        )

    def _refuse_checkpoints(self, withdrawn: list[Pending], doubt: Doubt) -> None:
        for pending in withdrawn:
            self._written(pending)
            if pending.checkpoint is not None and pending.call is not None:
                origin = Nested(pending.call.call_id, pending.checkpoint)
                error = _in_doubt(doubt, pending.mailbox.object_id, is_write=True)
                self._emit(effects.Refuse(origin, error))

    def _end_running(self, box: Mailbox, doubt: Doubt) -> None:
        """Send on what runs, and throw away what it does."""
        for call in self.calls_by_object.of(box.object_id):
            if call.slot is not None:
                self._let_run_out(call, doubt)
        copies = (box.main, box.reader)
        self.boxes.set_aside(box)
        for copy in copies:
            if copy is not None:
                self.pool.drop_aside(copy)

    def _let_run_out(self, call: Call, doubt: Doubt) -> None:
        """Interrupt a running call whose answer nobody waits for here."""
        for child_id in list(call.children or ()):
            child = self.calls.get(child_id)
            if child is not None:
                self._stop(child, CancelledError(child.where()), "deposed")
        slot, origin = call.slot, call.origin
        if call.is_answered or slot is None:
            return
        is_write = self._has_left_traces(call)
        error = _in_doubt(doubt, call.object_id, is_write=is_write)
        if type(origin) is Nested:
            self._emit(effects.Refuse(origin, error))
        else:
            self._forget(origin)
            call.origin = NOBODY
            self._emit(self._sent_on(origin, call))
        self._interrupt(call, slot, "deposed", error)

    def _drop_promises(self, object_id: ObjectId, doubt: Doubt) -> None:
        """Forget what was to be kept for calls of an object, and refuse what waits for it.

        Who made them was sent on; they have not begun.
        """
        departures = self._departures
        tokens = [t for t, one in departures.items() if one.object_id == object_id]
        for token in tokens:
            self._promise_done(token, _in_doubt(doubt, object_id, is_write=False))

    @staticmethod
    def _begin_anew(box: Mailbox) -> None:
        """Forget what was known of an object's state: others decide on it now."""
        box.generation += 1
        box.is_shared = False
        box.confirmed_round = 0
        box.executed_version = box.committed_version = 0
        box.shown_version = box.state_version = box.hurried_version = 0
        box.known_replies.clear()
        box.fences = None

    # -- not answered, or led, by anybody ----------------------------------------------

    def _on_object_unanswered(self, event: events.ObjectUnanswered) -> None:
        """Tell clients: they may reach who leads by now where this peer is cut off."""
        box = self.boxes.boxes.get(event.object_id)
        waiting: dict[SessionId, list[int]] = {}
        for _, effect, _ in box.unreplied if box is not None else ():
            origin = effect.origin
            if type(origin) is Client and type(effect) is not Withheld:
                waiting.setdefault(origin.session, []).append(origin.sequence)
        for session, sequences in waiting.items():
            self._emit(effects.SendBeat(session, sequences, True, event.epoch))

    def _on_object_unavailable(self, event: events.ObjectUnavailable) -> None:
        box = self.boxes.boxes.get(event.object_id)
        for call in self._unbegun(event.object_id):
            if box is not None and call in box.waiting:
                self.boxes.take(box, call)
            self._fail(call, event.error)
        if box is None:
            return
        mine = self.calls_by_object.of(event.object_id)
        running = {call.origin for call in mine if call.slot is not None}
        unreplied = list(box.unreplied)
        box.unreplied.clear()
        for version, effect, asked_round in unreplied:
            origin = effect.origin
            if type(effect) is effects.SendItem:
                if origin in running:
                    box.unreplied.append((version, effect, asked_round))
                continue
            if type(effect) is not Withheld:
                self._emit(effects.Refuse(origin, event.error))
            if type(origin) is Nested:
                self._owe_no_more(origin)
            else:
                # Until it is decided a retry is told the same, and does not run.
                call = self.sessions[origin.session][origin.sequence]
                call.refusal = event.error
                box.unreplied.append((version, Withheld(origin), asked_round))
        self.boxes.tidy(box)


def _in_doubt(doubt: Doubt, object_id: ObjectId, *, is_write: bool) -> UnavailableError:
    """Return what a caller is told whose call ended as its object was led no more."""
    kept = "nothing changed"
    if is_write:
        kept = "what the call changed may be kept, or not"
    why = "another peer leads it now, or will, and the call was not answered"
    if doubt is NoQuorumError:
        why = "a majority of its copies did not answer"
    return doubt(f"object {object_id.hex()}", f"{why}: {kept}")


def _broken(call: Call) -> UnavailableError:
    return UnavailableError(
        call.where(), "another peer leads its object now; a stream is not resumed"
    )
