"""What makes objects: Create and Persist, of clients and of running methods.

Before an object is made, its code is fetched where it is not here, its alias is claimed,
and it is seen whether it can have the copies that are asked for.

Rules of this file: what cannot be made is refused before anything of it is.

Source: schemas/protocol.md section 4; design sections 4 and 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from activestore.core import effects, events
from activestore.core.calls import Client, Kind, Nested
from activestore.errors import (
    ActiveStoreError,
    InvalidRequestError,
    RemoteProtocolError,
    TooLargeError,
    UnavailableError,
)
from activestore.ids import ObjectId, PeerId, check_alias, home_of
from activestore.peer import extras, sharing
from activestore.peer.cluster import Cluster
from activestore.peer.fetching import Fetching
from activestore.peer.links import Links
from activestore.peer.naming import Naming
from activestore.peer.table import Growing, Table
from activestore.wire.copies import wanted_of
from activestore.wire.limits import REPLICAS_SINCE
from activestore.wire.messages import Create, Persist
from activestore.wire.state import NamedState, buffer_bytes_count, decode_states


class Making(Table):
    """Handlers of requests that make objects."""

    links: Links
    cluster: Cluster
    fetching: Fetching
    naming: Naming

    def _refuse(self, origin: Client | Nested, error: ActiveStoreError) -> None:
        self.carry_out([effects.Refuse(origin, error)])

    def _is_too_large(self, origin: Client | Nested, message: Any) -> bool:
        size = len(message.body) + sum(map(buffer_bytes_count, message.buffers))
        limit = self.settings.message_bytes_max
        if size <= limit:
            return False
        self._refuse(origin, TooLargeError("message", size, limit, "message_bytes_max"))
        return True

    def _create(self, origin: Client | Nested, message: Create) -> None:
        if self._is_too_large(origin, message):
            return
        refused = _why_no_alias(message.alias) or self._why_nothing_new()
        if refused is not None:
            self._refuse(origin, refused)
            return
        if not self.fetching.has(message.class_name):
            self._fetch(
                origin, message, message.class_name, b"",
                lambda: self._create(origin, message),
            )  # fmt: skip
            return
        lacking = self.classes.missing_for(message.class_name)
        if lacking is not None:
            self._refuse(origin, lacking)
            return
        age_s = extras.number(message.extra, "age_ms") / 1000 if message.extra else 0.0
        arrived = events.CallArrived(
            origin, ObjectId(message.object_id), Kind.CREATE, "__init__", message,
            message.attempt, message.first_unacked, message.deadline_ms / 1000, age_s,
            0, message.class_name, message.alias, (), *extras.callers(message.extra),
        )  # fmt: skip
        if not self._shares(origin, message, [arrived.object_id]):
            return
        wants = {message.alias: arrived.object_id} if message.alias else {}
        self.naming.claim(origin, wants, lambda: self.step(arrived))

    def _states_of(
        self, origin: Client | Nested, message: Persist
    ) -> list[NamedState] | None:
        """Return the states of a Persist; None where it is refused."""
        if self._is_too_large(origin, message):
            return None
        try:
            states = decode_states(message.body, message.buffers)
            if not states:
                raise RemoteProtocolError("a Persist without states", "Persist")
        except RemoteProtocolError as error:
            self._refuse(origin, error)
            return None
        homes = {home_of(ObjectId(named.object_id)) for named in states}
        if len(homes) > 1:
            mixed = InvalidRequestError(
                f"one Persist has objects of {len(homes)} peers, expected of one",
                "Persist",
            )
            self._refuse(origin, mixed)
            return None
        return states

    def _persist(
        self, origin: Client | Nested, message: Persist, states: list[NamedState]
    ) -> None:
        for named in states:
            state = named.state
            if not self.fetching.has(state.class_name, state.revision):
                self._fetch(
                    origin, message, state.class_name, state.revision,
                    lambda: self._persist(origin, message, states),
                )  # fmt: skip
                return
        refused = self._why_not_persisted(states)
        if refused is not None:
            self._refuse(origin, refused)
            return
        age_s = extras.number(message.extra, "age_ms") / 1000 if message.extra else 0.0
        arrived = events.PersistArrived(
            origin, states, message.attempt, message.first_unacked, age_s
        )
        if not self._shares(origin, message, [ObjectId(s.object_id) for s in states]):
            return
        wants = {one.alias: ObjectId(one.object_id) for one in states if one.alias}
        self.naming.claim(origin, wants, lambda: self.step(arrived))

    def _shares(
        self,
        origin: Client | Nested,
        message: Create | Persist,
        object_ids: Sequence[ObjectId],
    ) -> bool:
        """See to the copies that a request asks for; False where it is refused."""
        settings = self.settings
        try:
            wanted, witness = wanted_of(
                message.extra, settings.replicas, settings.witness, "replicas"
            )
        except InvalidRequestError as error:
            self._refuse(origin, error)
            return False
        if wanted == 1:
            return True
        me, others = settings.peer_id, self.cluster.membership.live()
        spoken = [one.protocol for one in others if one.peer_id != me]
        refused = sharing.why_too_few(wanted, witness, [REPLICAS_SINCE, *spoken])
        if refused is not None:
            self._refuse(origin, refused)
            return False
        self.growing[origin] = Growing(object_ids, wanted, witness)
        return True

    def _is_too_old(
        self, origin: Client | Nested, message: Create | Persist, object_id: ObjectId
    ) -> bool:
        """Refuse to have copies made by a peer that makes one and says that all is well."""
        extra = message.extra or {}
        record = self.cluster.membership.record_of(home_of(object_id))
        is_new = record is None or record.protocol >= REPLICAS_SINCE
        if is_new or (extra.get("replicas") in (None, 1) and not extra.get("witness")):
            return False
        assert record is not None
        self._refuse(
            origin,
            RemoteProtocolError(
                f"replicas= needs version {REPLICAS_SINCE} of the protocol: peer "
                f"{record.name} speaks version {record.protocol}; install a newer "
                "activestore there",
                "replicas",
            ),
        )
        return True

    def _why_nothing_new(self) -> ActiveStoreError | None:
        if self.is_emptying:
            return UnavailableError("peer", "it is being drained; create it elsewhere")
        return None

    def _why_not_persisted(self, states: list[NamedState]) -> ActiveStoreError | None:
        for named in states:
            refused = _why_no_alias(named.alias) or self._why_nothing_new()
            if refused is not None:
                return refused
            lacking = self.classes.missing_for(named.state.class_name)
            if lacking is not None:
                return lacking
        return None

    def _fetch(
        self,
        origin: Client | Nested,
        message: Create | Persist,
        class_name: str,
        revision: bytes,
        go_on: Callable[[], None],
    ) -> None:
        """Fetch a class that a request needs, then go on with it, or refuse it."""
        first = []
        hint = message.extra.get("code_at") if message.extra else None
        if type(hint) is bytes:
            first.append(PeerId(hint))
        client = origin if type(origin) is Client else None
        session = self.sessions.get(client.session) if client is not None else None
        link = self.links.by_route.get(session.route) if session is not None else None
        if link is not None:
            first.append(link.peer_id)
        if client is not None:
            self.step(events.ErrandBegan(client))

        def then(error: ActiveStoreError | None) -> None:
            if client is not None:
                self.step(events.ErrandEnded(client))
            if error is not None:
                self._refuse(origin, error)
            else:
                go_on()

        self.fetching.bring(class_name, revision, first, then)


def _why_no_alias(alias: str) -> ActiveStoreError | None:
    """Return why an alias cannot be one, None where it can or there is none."""
    try:
        if alias:
            check_alias(alias)
    except ActiveStoreError as error:
        return error
    return None
