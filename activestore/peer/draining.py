"""Emptying a peer: every object moves to another one, then the peer stops.

Rules of this file: nothing is lost to be quick: while one object cannot be moved the
peer stays and says so; calls are served until their object has gone.

Source: design section 7; issue of moves: "drain moves everything off a peer".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from activestore.errors import ActiveStoreError, RequirementError, UnavailableError
from activestore.ids import ObjectId, PeerId
from activestore.peer.loop import PeerLoop
from activestore.peer.moving import Moving
from activestore.storage.engine import Engine

# Moves at once: enough to keep a slow line and a slow disk busy together.
AT_ONCE = 8
PAGE_ROWS = 256
# Reasons that are told; the log has all.
TOLD_MAX = 3

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
        self._failures: dict[ObjectId, ActiveStoreError] = {}
        self.moved_count = 0

    @property
    def is_under_way(self) -> bool:
        """Whether objects are being moved off."""
        return bool(self._then)

    def begin(self, then: Then) -> None:
        """Move every object to other peers; `then(error)` once none is left here."""
        if self._then:
            self._then.append(then)
            return
        self._then = [then]
        self._queue, self._after, self._is_read = [], None, False
        self._failures = {}
        self.moved_count = 0
        self._loop.is_emptying = True
        self._read()

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
            location = self._loop.location
            self._queue.extend(one for one in ids if location.is_here(one))
            self._go_on()

        self._loop.storage.read(read, found)

    def _go_on(self) -> None:
        while self._queue and self._open < AT_ONCE:
            self._open += 1
            self._move(self._queue.pop(), self._targets())
        if self._open or self._queue:
            return
        if not self._is_read:
            self._read()
        elif self._failures:
            self._end(self._why_not())
        else:
            self._end(None)

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
            if error is not None:
                self._failures[object_id] = error
            else:
                self._failures.pop(object_id, None)
                self.moved_count += 1
            self._go_on()

        self._moving.order(object_id, targets[0], then)

    def _why_not(self) -> UnavailableError:
        for object_id, error in self._failures.items():
            self._loop.note("warning", f"not drained object={object_id.hex()} {error}")
        told = [f"{o.hex()}: {e}" for o, e in list(self._failures.items())[:TOLD_MAX]]
        return UnavailableError(
            "drain",
            f"{len(self._failures)} objects could not be moved, {self.moved_count} were; "
            f"the peer stays: {'; '.join(told)}",
        )

    def _end(self, error: ActiveStoreError | None) -> None:
        self._loop.is_emptying = False
        waiting, self._then = self._then, []
        for then in waiting:
            then(error)
