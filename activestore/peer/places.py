"""Telling where objects are that left home, and keeping what others tell.

Whoever holds such an object tells its home and the home's two buddies, again until
all of them have it on disk, and gossips a hint to everybody.

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
        # What is here, and who was told so.
        self._held: dict[ObjectId, Place] = {}
        self._told: dict[ObjectId, set[PeerId]] = {}
        self._asked: set[ObjectId] = set()
        self._version = -1

    def restore(self, engine: Engine) -> None:
        """Read from disk what was kept for others."""
        for key, value in engine.rows("place"):
            self._location.learn_place(ObjectId(key), unpacked_place(value))

    def came(self, object_id: ObjectId, place: Place, *, is_new: bool = True) -> None:
        """An object is here now; `is_new` False: it was so when this peer ended."""
        self._untold[object_id] = self._held[object_id] = place
        self._told.pop(object_id, None)
        if is_new:
            self._tell(object_id)

    def left(self, object_id: ObjectId) -> None:
        """An object is not here any more: whoever has it tells of it."""
        for table in (self._untold, self._held, self._told):
            table.pop(object_id, None)

    def look(self) -> None:
        """Tell again what was not heard."""
        self._look_at_members()
        for object_id in list(self._untold)[:TOLD_MAX]:
            self._untold[object_id] = self._untold.pop(object_id)  # Others' turn next.
            self._tell(object_id)

    def _tell(self, object_id: ObjectId) -> None:
        """Tell home and buddies where an object is that is here, and gossip it."""
        place = self._untold.get(object_id)
        if place is None or object_id in self._asked:
            return
        if place.peer_id != NOWHERE:
            self._cluster.tell(object_id, place)
        told = self._told.setdefault(object_id, set())
        left = [one for one in self._keepers(object_id) if one not in told]
        asked = [one for one in left if self._cluster.is_reachable(one)]
        if not left:
            del self._untold[object_id]
        if not asked:
            return
        self._asked.add(object_id)
        open_ones = set(asked)

        def answered(keeper: PeerId, error: ActiveStoreError | None) -> None:
            open_ones.discard(keeper)
            if error is None and self._untold.get(object_id) == place:
                told.add(keeper)
            if not open_ones:
                self._asked.discard(object_id)

        parameters = {
            "object_id": object_id, "peer_id": place.peer_id, "epoch": place.epoch,
        }  # fmt: skip
        for keeper in asked:
            self._relays.ask(
                keeper, "place", parameters,
                lambda _, error, keeper=keeper: answered(keeper, error),  # type: ignore[misc]
            )  # fmt: skip

    def _keepers(self, object_id: ObjectId) -> list[PeerId]:
        """Return who is to know where an object is: all that may come back, but us."""
        me = self._table.settings.peer_id
        keepers = self._cluster.keepers(home_of(object_id))
        return [
            one
            for one in keepers
            if one != me and self._cluster.state_of(one) is not None
        ]

    def _look_at_members(self) -> None:
        """Where others are keepers now, they have not been told."""
        version = self._cluster.membership.version
        if version == self._version:
            return
        self._version = version
        for object_id, place in self._held.items():
            keepers = self._keepers(object_id)
            told = self._told.get(object_id, set())
            # Who is a keeper no more lets go of it; see `collecting`.
            told.intersection_update(keepers)
            if not told.issuperset(keepers):
                self._untold[object_id] = place

    def note_delete(self, object_id: ObjectId) -> None:
        """An object that came from elsewhere is being deleted: tell its keepers."""

        def then(head: Head | None, error: BaseException | None) -> None:
            if head is None and error is None:
                self.left(object_id)
                self._untold[object_id] = Place(NOWHERE, EPOCH_MAX)
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
