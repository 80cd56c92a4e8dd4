"""Rings of calls that wait for each other over several peers, and who of them gives way.

What one peer sees by itself is refused at once, see chains. For the rest, a call of a
chain that waits for long asks along what it waits for: those that run on its object;
where these wait, for what; at another peer the question goes on there. What comes back
to the call that asked has gone round a ring.

    waits --RING_WAIT_S--> asks --(came round)--> asks again --(came round)--> BusyError

Of a ring the youngest chain gives way: a question goes no further where it meets a call
of a younger one, which is told to ask by itself. So one call gives way, whoever asks
first, and the peers agree without a word. Twice, because what the question passed may
have been cancelled behind it; what still is a ring then was one all the time.

Rules of this file: a question may be lost, the call asks again; a call that computes
ends a question, however long it takes; nobody follows the same call twice for one
question, and what is asked in a turn is bounded.

Source: Chandy, Misra and Haas, "Distributed deadlock detection", TOCS 1983 (the AND
model); Mitchell and Merritt, PODC 1984 (one victim); design section 5.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile

from activestore.core import effects, events
from activestore.core.calls import Call, Client, Kind, Mailbox, Waiter
from activestore.core.chains import Chains, deadlock
from activestore.core.desk import InvocationConfig
from activestore.core.executors import PoolConfig
from activestore.core.mailboxes import MailboxConfig

# A call that waits longer asks. Most waits end sooner, and each question costs messages.
RING_WAIT_S = 2.0
# It asks again after twice the time, up to this: a chain may take hours.
AGAIN_S_MAX = 16.0
# Calls that ask in one turn; the others do in the next.
ASKING_MAX = 64
# Calls that are followed for one question at one peer: 1 ms of work.
FOLLOWED_MAX = 1024
# Questions whose followed calls are remembered.
QUESTIONS_MAX = 256
# A question goes to another peer at most so often: more than chains can be deep.
HOPS_MAX = 64


class Search:
    """What became of a waiting call's questions."""

    __slots__ = ("attempt", "due_s", "is_sure", "number", "wait_s")

    def __init__(self, attempt: int, due_s: float) -> None:
        self.attempt = attempt  # of the call: it may have run, and wait anew
        self.number = 0
        self.is_sure = False  # the question before this one came round
        self.due_s = due_s
        self.wait_s = 2 * RING_WAIT_S


class Deadlocks(Chains):
    """Handlers of questions who waits for whom."""

    def __init__(
        self,
        config: InvocationConfig | None = None,
        mailboxes: MailboxConfig | None = None,
        pool: PoolConfig | None = None,
    ) -> None:
        super().__init__(config, mailboxes, pool)
        self._searches: dict[int, Search] = {}
        self._followed: dict[tuple[Waiter, int], set[int]] = {}

    def _look_for_rings(self) -> None:
        """Have the calls ask that have waited for long."""
        for call_id in list(self._searches):
            call = self.calls.get(call_id)
            if call is None or call.slot is not None:
                del self._searches[call_id]
        asking = 0
        for call in list(self.calls.values()):
            if call.call_id in self.calls and self._is_due(call):
                self._ask(call, self._searches[call.call_id])
                asking += 1
                if asking == ASKING_MAX:
                    return

    def _is_due(self, call: Call) -> bool:
        """Whether a call has to ask now; its search is begun where it may have to."""
        if self._now_s - call.arrived_s < RING_WAIT_S or not self._waits(call):
            return False
        search = self._searches.get(call.call_id)
        if search is None or search.attempt != call.attempt:
            search = Search(call.attempt, self._now_s)
            self._searches[call.call_id] = search
        return search.due_s <= self._now_s

    def _waits(self, call: Call) -> bool:
        """Whether a call of a chain stands in the mailbox of its object."""
        if call.slot is not None or call.is_away:
            return False
        if not (call.is_waited_for or call.chain):
            return False
        box = self.boxes.boxes.get(call.object_id)
        return box is not None and call in box.waiting

    def _ask(self, call: Call, search: Search) -> None:
        search.is_sure = False
        search.due_s = self._now_s + search.wait_s
        search.wait_s = min(2 * search.wait_s, AGAIN_S_MAX)
        self._ask_once(call, search)

    def _ask_once(self, call: Call, search: Search) -> None:
        search.number += 1
        waiter = self._waiter_of(call)
        box = self.boxes.boxes[call.object_id]
        self._follow(waiter, search.number, 0, self._holders(box, call))

    def _waiter_of(self, call: Call) -> Waiter:
        return Waiter(self._began_ms(call), self.config.mark, call.call_id)

    def _on_ring_asked(self, event: events.RingAsked) -> None:
        call = self.sessions.get(event.origin.session, {}).get(event.origin.sequence)
        if call is not None and event.hops <= HOPS_MAX:
            self._follow(event.waiter, event.number, event.hops, (call,))

    def _follow(
        self, waiter: Waiter, number: int, hops: int, begin: Iterable[Call]
    ) -> None:
        """Follow who waits for whom, as far as it is known here."""
        followed = self._followed_for(waiter, number)
        frontier = list(begin)
        while frontier and len(followed) < FOLLOWED_MAX:
            call = frontier.pop()
            if call.call_id in followed:
                continue
            followed.add(call.call_id)
            if call.is_away:
                self._emit(effects.AskOn(call.call_id, waiter, number, hops + 1))
            elif call.slot is not None:
                frontier += self._awaited_by(call)
            elif self._waits(call):
                met = self._waiter_of(call)
                if met == waiter:
                    self._came_round(call, number)
                    return
                if met > waiter:
                    self._hurry(call)
                else:
                    box = self.boxes.boxes[call.object_id]
                    frontier += self._holders(box, call)

    def _followed_for(self, waiter: Waiter, number: int) -> set[int]:
        """Return which calls were followed for a question already."""
        key = (waiter, number)
        found = self._followed.get(key)
        if found is None:
            if len(self._followed) >= QUESTIONS_MAX:
                del self._followed[next(iter(self._followed))]
            found = self._followed[key] = set()
        return found

    def _awaited_by(self, call: Call) -> list[Call]:
        children = map(self.calls.get, call.children or ())
        return [one for one in children if one is not None and one.is_waited_for]

    def _holders(self, box: Mailbox, call: Call) -> list[Call]:
        """Return the calls that must end before a waiting one can run.

        A reader is served from the last committed state soon, unless there is none yet
        or its own client's earlier write goes first.
        """
        if call.is_readonly and box.committed_version and not _follows_own(box, call):
            return []
        holders = list(box.running.values())
        if call.kind is Kind.DELETE and box.reader is not None:
            copy = box.reader
            holders += [one for one in self.calls.values() if one.copy is copy]
        return holders

    def _hurry(self, call: Call) -> None:
        """Have a call ask in the next turn: an older one waits, perhaps, for it."""
        search = self._searches.get(call.call_id)
        if search is not None:
            search.due_s = min(search.due_s, self._now_s)

    def _came_round(self, call: Call, number: int) -> None:
        """A call waits for itself; refuse it once that is sure."""
        search = self._searches.get(call.call_id)
        if search is None or search.number != number or search.attempt != call.attempt:
            return
        if not search.is_sure:
            search.is_sure = True
            self._ask_once(call, search)
            return
        error = deadlock(call)
        self._emit(effects.Note("warning", f"calls waited for each other {error}"))
        self._stop(call, error, "deadlock")


def _follows_own(box: Mailbox, call: Call) -> bool:
    """Whether a write of the same session stands before a call."""
    before = takewhile(lambda one: one is not call, box.waiting)
    session = _session_of(call)
    return any(not one.is_readonly and _session_of(one) == session for one in before)


def _session_of(call: Call) -> object:
    origin = call.origin
    return origin.session if type(origin) is Client else None
