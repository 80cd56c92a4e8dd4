"""Asking all peers for an object that nobody who should know of can name.

Whoever has it answers where it is, whoever has heard of it what it heard; one word is
enough. What several requests look for at once is looked for once.

Rules of this file: nobody's silence is an answer. That an object does not exist is
never concluded here.

Source: design section 7 ("Location"); reliability.md 2.2; `core.searches` for the bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from activestore.core.location import Place
from activestore.core.searches import Searches
from activestore.errors import ActiveStoreError, MovedError
from activestore.ids import PEER_ID_BYTES, ObjectId, PeerId, home_of
from activestore.peer.cluster import Cluster
from activestore.peer.relays import Relays
from activestore.peer.table import Table

# How long the answers are waited for: a peer that is slower may be asked next time.
WAIT_S = 2.0

Then = Callable[[], None]


class Searching:
    """The searches of one peer that are under way."""

    def __init__(
        self, table: Table, cluster: Cluster, relays: Relays, searches: Searches
    ) -> None:
        self._table = table
        self._cluster = cluster
        self._relays = relays
        self._searches = searches
        self._waiting: dict[ObjectId, list[Then]] = {}

    def begin(self, object_id: ObjectId, then: Then) -> bool:
        """Look for an object; `then()` is called once something, or nothing, was found.

        Returns:
            False where it may not be looked for now; `then` is not called.
        """
        waiting = self._waiting.get(object_id)
        if waiting is not None:
            waiting.append(then)
            return True
        asked = self._searches.begin(
            object_id, self._others(object_id), self._table.clock()
        )
        if not asked:
            return False
        self._waiting[object_id] = [then]
        open_ones = set(asked)

        def answered(
            peer_id: PeerId, answer: Any, error: ActiveStoreError | None
        ) -> None:
            open_ones.discard(peer_id)
            place = _place_in(answer, error)
            is_news = place is not None and self._is_news(object_id, place)
            if is_news or not open_ones:
                self._end(object_id)

        parameters = {"object_id": object_id}
        for peer_id in asked:
            self._relays.ask(
                peer_id, "locate", parameters,
                lambda answer, error, peer_id=peer_id: answered(peer_id, answer, error),  # type: ignore[misc]
                wait_s=WAIT_S,
            )  # fmt: skip
        return True

    def _others(self, object_id: ObjectId) -> list[PeerId]:
        """Return who may have the object or have heard of it: its home's zone first."""
        membership = self._cluster.membership
        record = membership.record_of(home_of(object_id))
        zone = None if record is None else record.zone
        me = self._table.settings.peer_id
        others = [one for one in membership.live() if one.peer_id != me]
        others.sort(key=lambda one: (one.zone != zone, one.peer_id))
        return [PeerId(one.peer_id) for one in others]

    def _is_news(self, object_id: ObjectId, place: Place) -> bool:
        """Take what somebody said of the object; False where it leads nowhere new."""
        if not self._cluster.is_reachable(place.peer_id):
            return False
        return self._cluster.location.hear(object_id, place)

    def _end(self, object_id: ObjectId) -> None:
        for then in self._waiting.pop(object_id, ()):
            then()


def _place_in(answer: Any, error: ActiveStoreError | None) -> Place | None:
    """Return where an answer says that the object is, None where it says nothing."""
    if isinstance(error, MovedError):
        found: Any = (error.peer_id, error.epoch)
    elif error is None and type(answer) is dict:
        found = (answer.get("peer_id"), answer.get("epoch"))
    else:
        return None
    peer_id, epoch = found
    is_place = type(peer_id) is bytes and type(epoch) is int and epoch >= 0
    if not is_place or len(peer_id) != PEER_ID_BYTES:
        return None
    return Place(PeerId(peer_id), epoch)
