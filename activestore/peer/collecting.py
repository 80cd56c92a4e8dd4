"""Letting go of what is kept for homes whose keeper this peer is no more.

When peers come and go, so do the buddies of a home, and whoever was one keeps rows that
nobody asks it for. Such a row goes once every present keeper has said that it keeps the
place on its disk, under this epoch or a later one; or once the home has said that the
object is gone. What was on the disk when this peer started is asked of the home also
where this peer is a keeper still: the object may have been deleted meanwhile. Where one
of them cannot be asked, or does not know it yet, the row stays: who holds the object
tells its keepers, again until they have it.

    keeps    peer to peer: is this place, or a newer one, on your disk; is the object gone

Rules of this file: some rows at a time; nothing is told here, for what is kept here may be
of an object that was deleted since. Rows of this keeper go, and nothing of an object that
is here: no group has to agree.

Source: design section 7 ("Location"); reliability.md 2.2.
"""

from __future__ import annotations

from typing import Any

from activestore.core.location import Place
from activestore.errors import ActiveStoreError, CorruptRecordError
from activestore.ids import ObjectId, PeerId, home_of
from activestore.peer.cluster import Cluster
from activestore.peer.places import packed_place, unpacked_place
from activestore.peer.relays import Relays
from activestore.peer.table import Table
from activestore.storage.engine import ZERO_ID, Change, Engine, Row
from activestore.wire import packing

# Rows that are looked at in one look, in about 1 ms, and those that are asked for.
LOOKED_MAX = 256
ASKED_MAX = 16
# All rows are looked at again so much later, while some are kept for others.
AGAIN_S = 60.0


class Collecting:
    """The walks of one peer over the places that it keeps."""

    def __init__(self, table: Table, cluster: Cluster, relays: Relays) -> None:
        self._table = table
        self._cluster = cluster
        self._relays = relays
        self._walk: list[ObjectId] = []
        self._version = -1
        self._has_left = False
        self._again_s = 0.0
        self._open: set[ObjectId] = set()
        # Of an earlier start, and not asked for yet.
        self._unsure: set[ObjectId] | None = None

    def look(self) -> None:
        """Look at some rows; at all of them anew after peers came or went."""
        if self._unsure is None:
            self._unsure = set(self._cluster.location.places)
        now_s, version = self._table.clock(), self._cluster.membership.version
        is_again = self._has_left and now_s >= self._again_s
        if not self._walk and (version != self._version or is_again):
            self._version, self._has_left = version, False
            self._again_s = now_s + AGAIN_S
            self._walk = list(self._cluster.location.places)
        for _ in range(min(LOOKED_MAX, len(self._walk))):
            if len(self._open) >= ASKED_MAX:
                return
            object_id = self._walk.pop()
            place = self._cluster.location.places.get(object_id)
            if place is not None and object_id not in self._open:
                self._look_at(object_id, place)

    def _look_at(self, object_id: ObjectId, place: Place) -> None:
        me, home = self._table.settings.peer_id, home_of(object_id)
        keepers = self._cluster.keepers(home)
        if me in keepers:
            if home == me or object_id not in (self._unsure or ()):
                return
            keepers = [home]  # Only whether it is gone.
        self._has_left = True
        # The home's word is needed, and that of as many as keep a place at all.
        if all(self._cluster.is_reachable(one) for one in keepers):
            self._ask(object_id, place, keepers)

    def _ask(self, object_id: ObjectId, place: Place, keepers: list[PeerId]) -> None:
        self._open.add(object_id)
        left = set(keepers)
        known: set[PeerId] = set()
        home, is_gone = home_of(object_id), False

        def answered(
            keeper: PeerId, answer: Any, error: ActiveStoreError | None
        ) -> None:
            nonlocal is_gone
            left.discard(keeper)
            if error is None and type(answer) is dict:
                if keeper == home and self._unsure:
                    self._unsure.discard(object_id)
                if answer.get("is_known") is True:
                    known.add(keeper)
                is_gone |= keeper == home and answer.get("is_gone") is True
            if not left:
                self._open.discard(object_id)
                # As they are now: this peer may have become one again.
                now = self._cluster.keepers(home)
                is_former = self._table.settings.peer_id not in now
                if is_gone or (is_former and known.issuperset(now)):
                    self._drop(object_id, place, is_gone=is_gone)

        parameters = {"object_id": object_id, "epoch": place.epoch}
        for keeper in keepers:
            self._relays.ask(
                keeper, "keeps", parameters,
                lambda told, error, keeper=keeper: answered(keeper, told, error),  # type: ignore[misc]
            )  # fmt: skip

    def _drop(self, object_id: ObjectId, place: Place, *, is_gone: bool) -> None:
        change = Change(ZERO_ID, rows=[Row("place", object_id, None)])

        def drop(engine: Engine) -> bool:
            value = engine.row("place", object_id)
            if value != packed_place(place):
                return False
            (refused,) = engine.commit([change])
            return refused is None

        def dropped(is_dropped: Any, error: BaseException | None) -> None:
            if error is None and is_dropped:
                location = self._cluster.location
                if location.forget_place(object_id, place.epoch) and not is_gone:
                    location.hear(object_id, place)  # A hint is bounded.

        self._table.storage.write(drop, dropped)


def is_kept(engine: Engine, object_id: ObjectId, epoch: int) -> tuple[bool, bool]:
    """Return whether a disk has this place or a newer one; and whether it has nothing.

    The object itself, in this epoch or a later one, is as good as its place.
    """
    value = engine.row("place", object_id)
    try:
        if value is not None and unpacked_place(value).epoch >= epoch:
            return True, False
        head = engine.head(object_id)
    except (CorruptRecordError, *packing.UNPACK_ERRORS):
        return False, False
    is_staged = engine.row("staged", object_id) is not None
    is_here = head is not None and not is_staged and head.epoch >= epoch
    return is_here, head is None and value is None and not is_staged
