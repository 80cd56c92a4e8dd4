"""Telling new keepers of names: after peers came or went, name by name, not all at once.

When the live peers change, so do the keepers of some names. Every peer walks the aliases
of its own objects, and the claims that it keeps for others, and tells those that are
keepers now and were not when it walked before.

Rules of this file: one page at a time, read in the thread for long reads; a page takes at
most about a fifth of a core, however many peers there are.

Source: design section 7; reliability.md 2.4.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from activestore.core.keepers import Keepers
from activestore.core.names import Claim
from activestore.ids import ObjectId, PeerId
from activestore.peer import keeping
from activestore.storage.engine import Engine

if TYPE_CHECKING:  # They make each other.
    from activestore.peer.naming import Naming
    from activestore.peer.table import Table

# Peers come and go together, at the start of a cluster and at a heal.
SETTLE_S = 0.5
# Between two pages, in seconds.
PAGE_S = 0.1
# A page costs so many hashes of about 1 us, one a peer and name.
HASHES_PER_PAGE = 20_000
NAMES_PER_PAGE_MAX = 1000
NAMES_PER_PAGE_MIN = 16

_NEVER = float("inf")


class Announcing:
    """The walks of one peer over its names."""

    def __init__(self, table: Table, naming: Naming) -> None:
        self._table = table
        self._naming = naming
        self.due_s = _NEVER
        # The keepers when all names had been told; none: nobody was ever told.
        self._before: Keepers | None = None
        self._now: Keepers | None = None
        self._walk: Iterator[tuple[str, Claim]] | None = None
        self._is_reading = False

    def peers_changed(self, now_s: float) -> None:
        """Have all names looked at again, soon."""
        if self._walk is None and not self._is_reading:
            self.due_s = now_s + SETTLE_S

    def turn(self, now_s: float) -> None:
        """Read the next page, or begin anew."""
        if self._is_reading:
            self.due_s = _NEVER
            return
        if not self._naming.has_room:
            self.due_s = now_s + PAGE_S
            return
        if self._walk is None:
            self._now = self._naming.keepers()
            if self._before is not None and self._before.live == self._now.live:
                self.due_s = _NEVER
                return
            engine = self._table.storage.engine
            self._walk = _names(engine, self._naming.me, self._naming.followed)
        self.due_s = _NEVER
        self._is_reading = True
        walk, before, now = self._walk, self._before, self._now
        me = self._naming.me
        assert now is not None
        count = HASHES_PER_PAGE // max(1, len(now.live))
        count = min(max(count, NAMES_PER_PAGE_MIN), NAMES_PER_PAGE_MAX)

        def read(_engine: Engine) -> tuple[int, list[tuple[PeerId, str, Claim]]]:
            page = list(islice(walk, count))
            return len(page), _to_tell(page, me, before, now)

        self._table.storage.maintain(
            read, lambda found, error: self._on_page(found, error, count)
        )

    def _on_page(self, found: Any, error: BaseException | None, count: int) -> None:
        self._is_reading = False
        now_s = self._table.clock()
        if error is not None:
            self._table.note("warning", f"names were not told error={error}")
            self._walk = None
            self.due_s = now_s + SETTLE_S
            return
        read_count, rows = found
        if rows:
            self._naming.tell(rows)
        self.due_s = now_s + PAGE_S
        if read_count < count:
            self._walk = None
            self._before = self._now  # The next turn sees whether others live by now.


def _names(
    engine: Engine, me: PeerId, followed: Container[ObjectId]
) -> Iterator[tuple[str, Claim]]:
    """Yield the names of objects that are here, then those kept for other peers."""
    after = ""
    while True:
        page = engine.names(after)
        for alias, object_id, created_s in page:
            if keeping.is_held(engine, object_id, followed):
                yield alias, Claim(object_id, me, created_s, True)
        if not page:
            break
        after = page[-1][0]
    for alias, claim in keeping.claims_of(engine):
        if claim.is_confirmed and claim.holder != me:
            yield alias, claim


def _to_tell(
    page: list[tuple[str, Claim]], me: PeerId, before: Keepers | None, now: Keepers
) -> list[tuple[PeerId, str, Claim]]:
    found = []
    for alias, claim in page:
        known = before.of(alias) if before is not None else ()
        found += [
            (peer_id, alias, claim)
            for peer_id in now.of(alias)
            if peer_id != me and peer_id not in known
        ]
    return found
