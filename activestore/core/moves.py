"""An object that leaves: calls stop at a line, and go on where it went.

    MoveOrdered -> (what runs ends, commits end) -> ObjectQuiet
    MoveEnded(is_gone=False): calls go on here      MoveEnded(is_gone=True): SendOn

From the order on no call begins that changes the object; readers beside a long writer
are served until it ends. What waits when the object has gone is sent after it, in order.

Rules of this file: it knows that an object leaves, not where to; nothing is answered
with an error because of a move.

Source: design section 7, "A single copy is a register"; reliability.md 3.4 R8.
"""

from __future__ import annotations

from activestore.core import effects, events
from activestore.core.calls import Call, Client, Mailbox, MailboxState
from activestore.core.travels import Travels
from activestore.errors import UnavailableError
from activestore.ids import ObjectId


class Moves(Travels):
    """Handlers of moves."""

    def _on_move_ordered(self, event: events.MoveOrdered) -> None:
        box = self.boxes.box_of(event.object_id)
        box.is_held = True
        self._held[event.object_id] = box

    def _look_at_held(self) -> None:
        """Tell of held objects on which nothing is left to end."""
        for object_id, box in list(self._held.items()):
            if box.pending_commits:
                self._hurry_commits(box)
            if box.is_quiet_told or not _is_quiet(box):
                continue
            for copy in (box.main, box.reader):
                if copy is not None:
                    self.pool.passivate(copy)
            self.boxes.cool(box)
            box.is_quiet_told = True
            self._emit(effects.ObjectQuiet(object_id))

    def _on_move_ended(self, event: events.MoveEnded) -> None:
        box = self._held.pop(event.object_id, None)
        if box is None:
            return
        box.is_held = box.is_quiet_told = False
        if not event.is_gone:
            self._pump(box)
            self.boxes.tidy(box)
            return
        self._fence_lookups.pop(event.object_id, None)
        box.fences = None
        for call in self._unbegun(event.object_id):
            if call in box.waiting:
                self.boxes.take(box, call)
            self._send_on(call)
        self.boxes.tidy(box)

    def _unbegun(self, object_id: ObjectId) -> list[Call]:
        """Return the calls of an object that have not begun, in order of arrival."""
        return [
            call
            for call in self.calls_by_object.of(object_id)
            if call.slot is None
            and not (call.is_away or call.is_answered or call.is_deferred)
        ]

    def _send_on(self, call: Call, *, may_have_run: bool = False) -> None:
        origin = call.origin
        if type(origin) is Client:
            self._close(call)
            sent_on = effects.SendOn(
                origin, call.payload, may_have_run, left_s=self._left_s(call)
            )
            self._emit(sent_on)
            return
        if call.is_stale:
            self._fail(call, UnavailableError(call.where(), "its object has left"))
            return
        call.is_away = True
        call.changed_others = True
        if not self._is_held_back(call):
            self._promise(call)


def _is_quiet(box: Mailbox) -> bool:
    """Whether nothing of an object runs, is read, or is still to be written or told."""
    return not (
        box.running or box.reader_running or box.entered or box.pending_commits
        or box.unreplied or box.state is MailboxState.LOADING or box.reader_loading
    )  # fmt: skip
