"""Chains of nested calls: who may enter its own chain's object, and who waits for itself.

A method waits for a nested call, or submits it and goes on. Where every call between it
and the holder of an object waits, the holder's thread is free to run what the chain
sends back to that object: the call *enters* it again. Where waiting would close a ring,
the call is refused.

Rules of this file: a ring is looked for whenever a nested call begins to wait: when it
arrives, when a slot gives it back, when its caller begins to wait for it.

Source: design section 5, "Nested calls".
"""

from __future__ import annotations

from activestore.core.calls import Call, Kind, Mailbox, Nested
from activestore.core.desk import Desk
from activestore.errors import (
    BusyError,
    CancelledError,
    InvalidRequestError,
    UnavailableError,
)


class Chains(Desk):
    """What is decided for nested calls."""

    def _is_settled_in_chain(self, box: Mailbox, call: Call) -> bool:
        """Send a nested call into its own chain's object, or refuse a deadlock.

        Returns False where it is to wait like any other.
        """
        if not box.running and not box.reader_running:
            return False
        holder = self._holder_in_chain(call)
        if holder is not None:
            self._enter(box, call, holder)
            return True
        if self._would_deadlock(call, box):
            self._fail(
                call,
                BusyError(
                    call.where(), "two chains of calls wait for each other (deadlock)"
                ),
            )
            return True
        return False

    def _end_streams(self, call: Call) -> None:
        """End the streams that a method had begun to read: nobody grants credit now."""
        for child_id in list(call.children or ()):
            child = self.calls.get(child_id)
            if child is not None and child.is_stream:
                self._stop(child, CancelledError(child.where()), "cancelled")

    def _requeue(self, box: Mailbox, call: Call) -> None:
        """Let a call that a slot gave back wait again; it may close a ring now."""
        if type(call.origin) is Nested and self._is_settled_in_chain(box, call):
            return
        self.boxes.requeue(box, call)

    def _settle_below(self, call: Call) -> None:
        """Look again at what waits below a call that is now waited for."""
        box = self.boxes.boxes.get(call.object_id)
        if call.slot is None and box is not None and call in box.waiting:
            self.boxes.take(box, call)
            if not self._is_settled_in_chain(box, call):
                self.boxes.requeue(box, call)
            self._pump(box)
        for child_id in list(call.children or ()):
            child = self.calls.get(child_id)
            if child is not None and child.is_waited_for:
                self._settle_below(child)

    def _holder_in_chain(self, call: Call) -> Call | None:
        """Return the nearest call of this chain that runs on the same object and waits."""
        link = call
        while type(link.origin) is Nested and link.origin.waits:
            parent = self.calls.get(link.origin.parent)
            if parent is None:
                return None
            if parent.object_id == call.object_id and parent.slot is not None:
                return None if parent.is_answered else parent
            link = parent
        return None

    def _enter(self, box: Mailbox, call: Call, holder: Call) -> None:
        """Run a call on the copy that its chain holds, on the thread that waits."""
        copy, slot = holder.copy, holder.slot
        if copy is None or slot is None:
            self._fail(call, UnavailableError(call.where(), "its caller is gone"))
            return
        is_lost = copy.copy_id not in copy.executor.copies
        if is_lost or holder.generation != box.generation:
            error = UnavailableError(
                call.where(), "an earlier change that its caller saw was not committed"
            )
            self._fail(call, error)
            return
        refused = (
            InvalidRequestError(
                "an object cannot be deleted by a call it runs", call.where()
            )
            if call.kind is Kind.DELETE
            else self.boxes.why_not(box, call)
        )
        if refused is None and holder.is_readonly and not call.is_readonly:
            refused = InvalidRequestError(
                f"a readonly call of the same chain ({holder.method}) holds the object",
                call.where(),
            )
        if refused is not None:
            self._fail(call, refused)
            return
        call.is_checked = True
        call.is_reentrant = True
        self.boxes.send(call, slot, copy, is_stacked=True)

    def _would_deadlock(self, call: Call, box: Mailbox) -> bool:
        """Whether waiting for this object means waiting for one's own chain."""
        mine = set()
        link: Call | None = call
        while link is not None and link.is_waited_for:
            link = self._parent_of(link)
            if link is not None:
                mine.add(link.call_id)
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
                if child is None or not child.is_waited_for:
                    continue  # Submitted, and not waited for.
                if child.slot is not None:
                    frontier.append(child)
                else:
                    other = self.boxes.boxes.get(child.object_id)
                    frontier.extend(other.running.values() if other else ())
        return False
