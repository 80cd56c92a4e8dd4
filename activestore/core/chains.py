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

from collections.abc import Iterator

from activestore.core import effects
from activestore.core.calls import Call, Client, Kind, Mailbox, Nested
from activestore.core.desk import Desk
from activestore.errors import (
    BusyError,
    CancelledError,
    InvalidRequestError,
    UnavailableError,
)
from activestore.wire.limits import NESTED_EARLY_S, early_s


def deadlock(call: Call) -> BusyError:
    """Return what a call is told that would wait for ever."""
    return BusyError(call.where(), "two chains of calls wait for each other (deadlock)")


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
            self._fail(call, deadlock(call))
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
        is_nested = type(call.origin) is Nested or bool(call.chain)
        if is_nested and self._is_settled_in_chain(box, call):
            return
        self.boxes.requeue(box, call)

    def _settle_below(self, call: Call) -> None:
        """Look again at what waits below a call that is now waited for."""
        if call.is_away:
            # One that has not left yet will say who waits for it when it does.
            if not self._is_held_back(call):
                self._depart(call, is_again=True)
            return
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

    def _is_held_back(self, call: Call) -> bool:
        """Whether a call leaves only once what a retry is told is on disk."""
        return any(
            any(one is call for one in departure.waiting)
            for departure in self._departures.values()
        )

    def _depart(self, call: Call, *, is_again: bool = False) -> None:
        until_s = self._until_s(call)
        left_s = max(until_s - self._now_s, 0.001) if until_s else 0.0
        left_s -= early_s(left_s, NESTED_EARLY_S)
        chain = self._chain_of(call)
        began_ms = self._began_ms(call) if chain else 0
        self._emit(
            effects.SendAway(call, chain, call.depth, left_s, is_again, began_ms)
        )

    def _chain_of(self, call: Call) -> list[tuple[bytes, int]]:
        """Return the marks by which its callers know themselves again; the nearest first."""
        if not call.is_waited_for:
            return []
        chain = [(self.config.mark, call.call_id)]
        link: Call | None = call
        while link is not None and link.is_waited_for:
            link = self._parent_of(link)
        if link is not None and type(link.origin) is Client:
            chain.extend(link.chain)
        return chain

    def _began_ms(self, call: Call) -> int:
        """Return when the outermost call of a chain began, by the wall clock there."""
        link = call
        while link.is_waited_for:
            parent = self._parent_of(link)
            if parent is None:
                break
            link = parent
        if link.began_ms:
            return link.began_ms
        return int((link.arrived_s + self.config.wall_offset_s) * 1000)

    def _holder_in_chain(self, call: Call) -> Call | None:
        """Return the nearest call of this chain that runs on the same object and waits."""
        for parent in self._waiting_callers(call):
            if parent.object_id == call.object_id and parent.slot is not None:
                return None if parent.is_answered else parent
        return None

    def _waiting_callers(self, call: Call) -> Iterator[Call]:
        """Yield the calls here that stand still until this one ends, the nearest first.

        A chain that was at other peers in between goes on where it left.
        """
        link: Call | None = call
        while link is not None:
            while link is not None and link.is_waited_for:
                link = self._parent_of(link)
                if link is not None:
                    yield link
            link = self._left_here(link) if link is not None else None

    def _left_here(self, call: Call) -> Call | None:
        """Return the call here, away since, that a call from another peer comes from."""
        for mark, call_id in call.chain:
            if mark == self.config.mark:
                away = self.calls.get(call_id)
                return away if away is not None and away.is_away else None
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
        mine = {caller.call_id for caller in self._waiting_callers(call)}
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
