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
from activestore.errors import ActiveStoreError, CorruptRecordError
from activestore.ids import PEER_ID_BYTES, ObjectId, PeerId, home_of
from activestore.peer.cluster import Cluster
from activestore.peer.graves import Graves
from activestore.peer.publishing import as_error
from activestore.peer.relays import Relays
from activestore.peer.table import Table
from activestore.storage.engine import ZERO_ID, Change, Engine, Head, Row
from activestore.wire import packing
from activestore.wire.gossip import OTHERS_MAX

# Where an object is that was deleted; its id is never used again. The version of the
# group of such a place is the lineage in which it was deleted.
NOWHERE = PeerId(bytes(PEER_ID_BYTES))
EPOCH_MAX = 2**62
# Objects that are told of in one look.
TOLD_MAX = 1024

Then = Callable[[ActiveStoreError | None], None]


class Places:
    """What one peer tells and keeps of where objects are.

    An object that is led here and has replicas is told of like one that is not at home:
    its home and the home's buddies are to know all that have it.
    """

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
        self.graves = Graves(table.wall_clock)
        # Who keeps what is at home there, of all that is here; and what is to be looked
        # at as that has changed.
        self._homes: dict[PeerId, list[PeerId]] = {}
        self._walk: dict[ObjectId, None] = {}

    def restore(self, engine: Engine) -> None:
        """Read from disk what was kept for others."""
        self.graves.restore(engine)
        for key, value in engine.rows("place"):
            object_id, place = ObjectId(key), unpacked_place(value)
            if not self._is_older(engine, object_id, place):
                self._location.learn_place(object_id, place)

    def _is_older(self, engine: Engine, object_id: ObjectId, place: Place) -> bool:
        """Whether the object is at home here, in an epoch after that of its place."""
        if home_of(object_id) != self._table.settings.peer_id:
            return False
        if engine.row("staged", object_id) is not None:
            return False
        try:
            head = engine.head(object_id)
        except (CorruptRecordError, *packing.UNPACK_ERRORS):
            return False
        return head is not None and head.epoch > place.epoch

    def came(self, object_id: ObjectId, place: Place, *, is_new: bool = True) -> None:
        """An object is here now, or has other members than it had.

        Args:
            object_id: It is led here.
            place: This peer, and who else has it.
            is_new: False: it was so when this peer ended.
        """
        known = self._held.get(object_id)
        if known is not None and place.epoch == known.epoch and place != known:
            # Whatever is said last of an epoch is the newest.
            version = max(place.group_version, known.group_version + 1)
            place = place._replace(group_version=version)
        self._untold[object_id] = self._held[object_id] = place
        self._told.pop(object_id, None)
        if known is None or known.epoch < place.epoch:
            self._table.doubt_sessions()
        if is_new:
            self._tell(object_id)
            self._relays.heard(object_id)

    def epoch_alone(self, object_id: ObjectId) -> int | None:
        """Return the epoch of an object that only this peer has, as others were told."""
        place = self._held.get(object_id)
        is_alone = place is not None and not place.others
        return place.epoch if is_alone and place is not None else None

    def left(self, object_id: ObjectId) -> None:
        """An object is not here any more: whoever has it tells of it."""
        for table in (self._untold, self._held, self._told):
            table.pop(object_id, None)

    def followed(
        self, object_id: ObjectId, place: Place, *, is_witness: bool = False
    ) -> None:
        """An object of whose group we are is led by another peer, or by nobody."""
        self.left(object_id)
        self._location.follow(object_id, place, is_witness=is_witness)
        self._relays.heard(object_id)

    def tells_of(self, object_id: ObjectId) -> bool:
        """Whether others are told that the object is here."""
        return object_id in self._held

    def rows_after(self, object_id: ObjectId, *, is_gone: bool) -> list[Row]:
        """Return what is to be written where a copy goes from its home.

        Where its object goes on, this home would else say after a restart that there is
        none; where it is deleted, that it is elsewhere.
        """
        if home_of(object_id) != self._table.settings.peer_id:
            return []
        if is_gone:
            self._location.forget_place(object_id, EPOCH_MAX)
            return [Row("place", object_id, None)]
        place = self._location.place_of(object_id)
        return [] if place is None else [Row("place", object_id, packed_place(place))]

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
        left = [one for one in self._to_tell(home_of(object_id)) if one not in told]
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
                if self._untold.get(object_id, place) != place:
                    self._tell(object_id)  # It has other members meanwhile.

        parameters = _parameters(object_id, place)
        for keeper in asked:
            self._relays.ask(
                keeper, "place", parameters,
                lambda _, error, keeper=keeper: answered(keeper, error),  # type: ignore[misc]
            )  # fmt: skip

    def _to_tell(self, home: PeerId) -> list[PeerId]:
        """Return who is to know where objects are now, and look at them if that changes."""
        keepers = self._keepers(home)
        if keepers != self._homes.get(home):
            self._homes[home] = []  # It may be others again by the next look.
        return keepers

    def _keepers(self, home: PeerId) -> list[PeerId]:
        """Return who is to know where objects are: all that may come back, but us."""
        me = self._table.settings.peer_id
        return [
            one
            for one in self._cluster.keepers(home)
            if one != me and self._cluster.state_of(one) is not None
        ]

    def _look_at_members(self) -> None:
        """Where others are keepers now, they have not been told: a few in one look."""
        version = self._cluster.membership.version
        if version != self._version:
            self._version = version
            self._look_at_homes()
        for _ in range(min(TOLD_MAX, len(self._walk))):
            object_id, _ = self._walk.popitem()
            place = self._held.get(object_id)
            if place is None:
                continue
            keepers = self._keepers(home_of(object_id))
            told = self._told.get(object_id, set())
            # Who is a keeper no more lets go of it; see `collecting`.
            told.intersection_update(keepers)
            if not told.issuperset(keepers):
                self._untold[object_id] = place

    def _look_at_homes(self) -> None:
        """Have looked at what is at home where other peers are the keepers now."""
        changed = set()
        for home, before in self._homes.items():
            keepers = self._keepers(home)
            if keepers != before:
                self._homes[home] = keepers
                changed.add(home)
        if changed:
            found = (one for one in self._held if home_of(one) in changed)
            self._walk.update(dict.fromkeys(found))

    def note_delete(self, object_id: ObjectId, lineage: int = 0) -> None:
        """An object that others were told of is being deleted: tell its keepers."""
        me = self._table.settings.peer_id

        def then(head: Head | None, error: BaseException | None) -> None:
            if head is None and error is None:
                self.left(object_id)
                self._untold[object_id] = Place(NOWHERE, EPOCH_MAX, (), lineage)
                self._tell(object_id)
                if me in self._cluster.keepers(home_of(object_id)):
                    self._forget(object_id, lineage, lambda _: None)

        # After the delete, which was ordered before.
        self._table.storage.write(lambda engine: engine.head(object_id), then)

    def _forget(self, object_id: ObjectId, lineage: int, then: Then) -> None:
        """Forget, as home or buddy, where an object was, and remember that it is gone."""
        rows = [Row("place", object_id, None), *self.graves.bury(object_id, lineage)]
        change = Change(ZERO_ID, rows=rows)

        def done(results: Any, error: BaseException | None) -> None:
            refused = error if error is not None else results[0]
            self._location.forget_place(object_id, EPOCH_MAX)
            then(None if refused is None else as_error(refused))

        self._table.storage.write(lambda engine: engine.commit([change]), done)

    def learn(self, object_id: ObjectId, place: Place, then: Then) -> None:
        """Keep, as home or buddy, where an object is.

        An old word may come late, after the object itself: what is here is newer.
        """
        if place.peer_id == NOWHERE:
            self._forget(object_id, place.group_version, then)
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
                self._relays.heard(object_id)
            then(None if refused is None else as_error(refused))

        if not place.is_newer(self._location.places.get(object_id)):
            then(None)
        else:
            self._table.storage.write(keep, kept)

    def _is_held(self, object_id: ObjectId) -> bool:
        """Whether a switch made it an object of ours, whose word is on its way."""
        return object_id in self._untold


def _parameters(object_id: ObjectId, place: Place) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "object_id": object_id, "peer_id": place.peer_id, "epoch": place.epoch,
    }  # fmt: skip
    if place.others or place.group_version:
        parameters["others"] = list(place.others[:OTHERS_MAX])
        parameters["group_version"] = place.group_version
    return parameters


def packed_place(place: Place) -> bytes:
    """Return a place as it is kept in a row."""
    fields: list[Any] = [place.peer_id, place.epoch]
    if place.others or place.group_version:
        fields += [list(place.others), place.group_version]
    return bytes(packing.pack(fields))


def unpacked_place(value: bytes) -> Place:
    """Return the place that a row keeps; one of an earlier version names one peer."""
    fields = packing.unpack(value)
    others = tuple(PeerId(bytes(one)) for one in fields[2]) if len(fields) > 2 else ()
    return Place(
        PeerId(bytes(fields[0])), int(fields[1]), others,
        int(fields[3]) if len(fields) > 3 else 0,
    )  # fmt: skip
