"""Emptying a peer: every object moves to another one, then the peer stops.

    begin -> pass: each object that is here moves, each copy of a group leaves it
                                                  -> ... -> a pass finds none -> the end
                 ^-- what was made meanwhile, or is halfway, is waited for --'

Rules of this file: nothing is lost to be quick: while one object cannot be moved the
peer stays and says so; calls are served until their object has gone. Meanwhile nothing
comes here: two peers that are emptied at once would give each other what they have.

Source: design section 7; issue of moves: "drain moves everything off a peer".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from activestore.errors import (
    ActiveStoreError,
    ObjectNotFoundError,
    RequirementError,
    UnavailableError,
)
from activestore.ids import ObjectId, PeerId
from activestore.peer.loop import PeerLoop
from activestore.peer.moving import Moving, Shared
from activestore.storage.engine import Engine

# Moves at once: enough to keep a slow line and a slow disk busy together.
AT_ONCE = 8
PAGE_ROWS = 256
# Reasons that are told; the log has all.
TOLD_MAX = 3
# So long those that got objects may take to confirm it, and copies that came before to be
# decided: as long as a peer that restarts. In seconds.
SETTLE_S = 30.0

Then = Callable[[ActiveStoreError | None], None]


class Draining:
    """One peer's way out."""

    def __init__(self, loop: PeerLoop, moving: Moving) -> None:
        self._loop = loop
        self._moving = moving
        self._then: list[Then] = []
        self._queue: list[ObjectId] = []
        self._after: ObjectId | None = None
        self._open = 0
        self._is_read = False
        self._found_count = 0  # in this pass
        self._settle_due_s = float("inf")  # the pass is over; what is halfway is not
        self._failures: dict[ObjectId, ActiveStoreError] = {}
        # Copies whose groups go on without this peer; they go from the disk when told.
        self._left: set[ObjectId] = set()
        self.moved_count = 0
        moving.on_look = self._look

    def begin(self, then: Then) -> None:
        """Move every object to other peers; `then(error)` once none is left here."""
        if self._then:
            self._then.append(then)
            return
        self._then = [then]
        self._failures = {}
        self._left = set()
        self.moved_count = 0
        if self._moving.shared is not None:
            self._moving.shared.fewer.clear()
        self._loop.is_emptying = True
        self._begin_pass()

    @property
    def fewer_count(self) -> int:
        """How many groups have a copy fewer than is wanted of them, as nobody took it."""
        return 0 if self._moving.shared is None else len(self._moving.shared.fewer)

    def _begin_pass(self) -> None:
        self._queue, self._after, self._is_read = [], None, False
        self._queue = [one for one in self._copies() if one not in self._left]
        self._found_count = len(self._queue)
        self._read()

    def _copies(self) -> list[ObjectId]:
        shared = self._moving.shared
        return [] if shared is None else shared.copies()

    def _read(self) -> None:
        after = self._after

        def read(engine: Engine) -> list[ObjectId]:
            return [
                head.object_id for head in engine.heads(after=after, limit=PAGE_ROWS)
            ]

        def found(ids: Any, error: BaseException | None) -> None:
            if error is not None:
                self._end(UnavailableError("drain", str(error)))
                return
            self._is_read = len(ids) < PAGE_ROWS
            if ids:
                self._after = ids[-1]
            here = [one for one in ids if self._is_to_move(one)]
            self._found_count += len(here)
            self._queue.extend(here)
            self._go_on()

        # Behind what is being written: an object that is just made is found.
        self._loop.storage.write(read, found)

    def _is_to_move(self, object_id: ObjectId) -> bool:
        shared = self._moving.shared
        is_shared = shared is not None and shared.is_shared(object_id)
        return not is_shared and self._loop.location.is_here(object_id)

    def _go_on(self) -> None:
        while self._queue and self._open < AT_ONCE:
            self._open += 1
            object_id = self._queue.pop()
            shared = self._moving.shared
            if shared is not None and shared.is_shared(object_id):
                self._leave(object_id, shared)
            else:
                self._move(object_id, self._targets())
        if self._open or self._queue:
            return
        if not self._is_read:
            self._read()
            return
        copies = set(self._copies()) - self._left
        self._failures = {
            o: e
            for o, e in self._failures.items()
            if o in copies or self._loop.location.is_here(o)
        }
        if self._failures:
            self._end(self._why_not())
        elif self._is_halfway:
            self._settle_due_s = self._loop.clock() + SETTLE_S
        elif self._found_count:
            self._begin_pass()
        else:
            self._end(None)

    @property
    def _is_halfway(self) -> bool:
        """Whether objects may yet come of what runs, or of moves that are not decided."""
        return bool(self._loop.core.calls) or not self._moving.is_idle

    def _look(self, now_s: float) -> None:
        """Look once more for objects when nothing is halfway any more."""
        if self._settle_due_s == float("inf"):
            return
        if not self._is_halfway:
            self._settle_due_s = float("inf")
            self._begin_pass()
        elif now_s >= self._settle_due_s and not self._moving.is_idle:
            self._end(
                UnavailableError(
                    "drain",
                    f"{self.moved_count} objects were moved, but moves are not confirmed "
                    f"after {SETTLE_S:g} s; the peer stays: start the peers that got or "
                    "sent objects, or drain again when they are reached"
                    f"{self._what_is_left()}",
                )
            )

    def _targets(self) -> list[PeerId]:
        """Return the other peers, those with the most memory for their load first."""
        cluster, me = self._loop.cluster, self._loop.settings.peer_id
        records = [r for r in cluster.membership.live() if r.peer_id != me]
        count = self.moved_count + self._open
        records.sort(key=lambda r: (r.meta.get("stable", True) is False, r.peer_id))
        # In turn, so that no one peer gets everything.
        shift = count % len(records) if records else 0
        return [PeerId(r.peer_id) for r in (*records[shift:], *records[:shift])]

    def _move(self, object_id: ObjectId, targets: list[PeerId]) -> None:
        if not targets:
            self._failures.setdefault(
                object_id, UnavailableError("drain", "no other peer can be reached")
            )
            self._open -= 1
            return

        def then(error: ActiveStoreError | None) -> None:
            if isinstance(error, (RequirementError, UnavailableError)) and targets[1:]:
                self._failures[object_id] = error
                self._move(object_id, targets[1:])
                return
            self._open -= 1
            if error is None:
                self.moved_count += 1
            if error is None or isinstance(error, ObjectNotFoundError):
                self._failures.pop(object_id, None)  # There, or deleted meanwhile.
            else:
                self._failures[object_id] = error
            self._go_on()

        target = self._moving.target_of(object_id) or targets[0]
        self._moving.order(object_id, target, then)

    def _leave(self, object_id: ObjectId, shared: Shared) -> None:
        def then(error: ActiveStoreError | None) -> None:
            self._open -= 1
            if error is None:
                self.moved_count += 1
            if error is None or isinstance(error, ObjectNotFoundError):
                self._left.add(object_id)
                self._failures.pop(object_id, None)
            else:
                self._failures[object_id] = error
            self._go_on()

        shared.leave(object_id, then)

    def _why_not(self) -> UnavailableError:
        for object_id, error in self._failures.items():
            self._loop.note("warning", f"not drained object={object_id.hex()} {error}")
        told = [f"{o.hex()}: {e}" for o, e in list(self._failures.items())[:TOLD_MAX]]
        return UnavailableError(
            "drain",
            f"{len(self._failures)} objects could not be moved, {self.moved_count} were; "
            f"the peer stays: {'; '.join(told)}{self._what_is_left()}",
        )

    def _what_is_left(self) -> str:
        """Return what a drain that is given up leaves behind it, to be put at the end."""
        if not self.moved_count:
            return ""
        text = "; what was moved stays where it is now"
        if self.fewer_count:
            text += (
                f"; of that {self.fewer_count} have a copy fewer, which is made again "
                "within minutes, here too"
            )
        return text

    def _end(self, error: ActiveStoreError | None) -> None:
        self._loop.is_emptying = False
        self._settle_due_s = float("inf")
        waiting, self._then = self._then, []
        for then in waiting:
            then(error)
