"""Telling where objects are that left home, and keeping what others tell.

Whoever holds such an object tells its home and the home's two buddies, again until
enough of them have it on disk, and gossips a hint to everybody.

Rules of this file: an old word may come late; what is held here is newer than any.

Source: design section 7 ("Location"); reliability.md 2.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from activestore.core.location import Place
from activestore.errors import ActiveStoreError
from activestore.ids import PEER_ID_BYTES, ObjectId, PeerId, home_of
from activestore.peer.cluster import Cluster
from activestore.peer.publishing import as_error
from activestore.peer.relays import Relays
from activestore.peer.table import Table
from activestore.storage.engine import ZERO_ID, Change, Engine, Head, Row
from activestore.wire import packing

# Where an object is that was deleted; its id is never used again.
NOWHERE = PeerId(bytes(PEER_ID_BYTES))
EPOCH_MAX = 2**62
# Objects that are told of in one look.
TOLD_MAX = 1024

Then = Callable[[ActiveStoreError | None], None]


class Places:
    """What one peer tells and keeps of where objects are."""

    def __init__(self, table: Table, cluster: Cluster, relays: Relays) -> None:
        self._table = table
        self._cluster = cluster
        self._relays = relays
        self._location = cluster.location
        # Objects whose keepers are not told yet.
        self._untold: dict[ObjectId, Place] = {}
        self._asked: set[ObjectId] = set()

    def restore(self, engine: Engine) -> None:
        """Read from disk what was kept for others."""
        for key, value in engine.rows("place"):
            self._location.learn_place(ObjectId(key), unpacked_place(value))

    def came(self, object_id: ObjectId, place: Place, *, is_new: bool = True) -> None:
        """An object is here now; `is_new` False: it was so when this peer ended."""
        self._untold[object_id] = place
        if is_new:
            self._tell(object_id)

    def left(self, object_id: ObjectId) -> None:
        """An object is not here any more: whoever has it tells of it."""
        self._untold.pop(object_id, None)

    def look(self) -> None:
        """Tell again what was not heard."""
        for object_id in list(self._untold)[:TOLD_MAX]:
            self._tell(object_id)

    def _tell(self, object_id: ObjectId) -> None:
        """Tell home and buddies where an object is that is here, and gossip it."""
        place = self._untold.get(object_id)
        if place is None or object_id in self._asked:
            return
        me = self._table.settings.peer_id
        home = home_of(object_id)
        if place.peer_id != NOWHERE:
            self._cluster.tell(object_id, place)
        keepers = [
            one
            for one in self._cluster.keepers(home)
            if one != me and self._cluster.is_reachable(one)
        ]
        if not keepers:
            return
        self._asked.add(object_id)
        left = {"open": len(keepers), "told": set()}

        def answered(keeper: PeerId, error: ActiveStoreError | None) -> None:
            left["open"] -= 1  # type: ignore[operator]
            if error is None:
                left["told"].add(keeper)  # type: ignore[attr-defined]
            if left["open"]:
                return
            self._asked.discard(object_id)
            told: set[PeerId] = left["told"]  # type: ignore[assignment]
            is_enough = home in told or len(told) >= 2
            if is_enough and self._untold.get(object_id) == place:
                del self._untold[object_id]

        for keeper in keepers:
            self._relays.ask(
                keeper, "place",
                {"object_id": object_id, "peer_id": place.peer_id, "epoch": place.epoch},
                lambda _, error, keeper=keeper: answered(keeper, error),  # type: ignore[misc]
            )  # fmt: skip

    def note_delete(self, object_id: ObjectId) -> None:
        """An object that came from elsewhere is being deleted: tell its keepers."""

        def then(head: Head | None, error: BaseException | None) -> None:
            if head is None and error is None:
                place = Place(NOWHERE, EPOCH_MAX)
                self._untold[object_id] = place
                self._tell(object_id)

        # After the delete, which was ordered before.
        self._table.storage.write(lambda engine: engine.head(object_id), then)

    def _forget(self, object_id: ObjectId, then: Then) -> None:
        """Forget, as home or buddy, where an object was that is deleted."""
        change = Change(ZERO_ID, rows=[Row("place", object_id, None)])

        def done(_results: Any, error: BaseException | None) -> None:
            self._location.forget_place(object_id, EPOCH_MAX)
            then(None if error is None else as_error(error))

        self._table.storage.write(lambda engine: engine.commit([change]), done)

    def learn(self, object_id: ObjectId, place: Place, then: Then) -> None:
        """Keep, as home or buddy, where an object is.

        An old word may come late, after the object itself: what is here is newer.
        """
        if place.peer_id == NOWHERE:
            self._forget(object_id, then)
            return
        row = Row("place", object_id, packed_place(place))
        change = Change(ZERO_ID, rows=[row])

        def keep(engine: Engine) -> Any:
            head = engine.head(object_id)
            is_staged = engine.row("staged", object_id) is not None
            if head is not None and not is_staged and head.epoch >= place.epoch:
                return None
            return engine.commit([change])

        def kept(results: Any, error: BaseException | None) -> None:
            refused = error if error is not None else results and results[0]
            if refused is None and results is not None and not self._is_held(object_id):
                self._location.learn_place(object_id, place)
            then(None if refused is None else as_error(refused))

        known = self._location.places.get(object_id)
        if known is not None and known.epoch >= place.epoch:
            then(None)
        else:
            self._table.storage.write(keep, kept)

    def _is_held(self, object_id: ObjectId) -> bool:
        """Whether a switch made it an object of ours, whose word is on its way."""
        return object_id in self._untold


def packed_place(place: Place) -> bytes:
    """Return a place as it is kept in a row."""
    return bytes(packing.pack([place.peer_id, place.epoch]))


def unpacked_place(value: bytes) -> Place:
    """Return the place that a row keeps."""
    peer_id, epoch = packing.unpack(value)[:2]
    return Place(PeerId(bytes(peer_id)), int(epoch))
