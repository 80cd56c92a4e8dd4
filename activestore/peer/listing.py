"""Names and listings of the whole cluster, for clients; and what peers answer for them.

    resolve   own index, then the keepers of the alias, then others, a bounded number;
              what a client asks for next may come with the answer
    objects   the living peers one after another, in the order of their ids, by pages
    claim, names, rename     peer to peer; see `naming` and `disputes`

Rules of this file: "no object has this alias" is said only where most keepers of the
alias said so; who could not be asked is named.

Source: design section 7; schemas/protocol.md section 6.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

from activestore.core.calls import Client
from activestore.core.names import Claim, majority
from activestore.core.peers import PeerState
from activestore.core.searches import Allowance
from activestore.errors import (
    ActiveStoreError,
    AliasNotFoundError,
    CorruptRecordError,
    NoQuorumError,
    ObjectNotFoundError,
    PermissionDeniedError,
    RemoteProtocolError,
    UnavailableError,
)
from activestore.ids import OBJECT_ID_BYTES, PEER_ID_BYTES, ObjectId, PeerId
from activestore.peer import keeping, publishing
from activestore.peer.loop import PeerLoop
from activestore.peer.naming import ASK_S, Naming
from activestore.peer.requests import (
    ROWS_MAX,
    Origin,
    Requests,
    object_id_of,
    row_of,
    text_of,
)
from activestore.storage.engine import Engine, Head

# Peers asked for an alias that its keepers do not know, at once and in a second.
SCATTER_MAX = 32
SCATTERS_PER_S = 20.0
# How long one page of another peer's objects may take, in seconds.
PAGE_S = 5.0

Then = Callable[[Any, ActiveStoreError | None], None]


class Listing:
    """Operations on names and lists of objects."""

    def __init__(self, loop: PeerLoop, requests: Requests) -> None:
        self._loop = loop
        self._requests = requests
        self._naming: Naming = loop.naming
        self._allowance = Allowance(SCATTERS_PER_S, loop.clock())
        for name in ("resolve", "objects", "claim", "names", "rename"):
            requests.add(name, getattr(self, f"_do_{name}"))

    def _then(self, origin: Origin) -> Then:
        def then(answer: Any, error: ActiveStoreError | None) -> None:
            if error is not None:
                self._requests.refuse(origin, error)
            else:
                self._requests.answer(origin, answer)

        return then

    def _check_peer(self, origin: Origin, operation: str) -> None:
        """Make sure that a peer asks, in the session of its own.

        Raises:
            PermissionDeniedError: it is no peer.
        """
        loop = self._loop
        session = loop.sessions.get(origin.session) if type(origin) is Client else None
        link = None if session is None else loop.links.by_route.get(session.route)
        if session is None or link is None or link.incarnation != session.session_id:
            raise PermissionDeniedError(operation, "client", "peer")

    # -- peer to peer ------------------------------------------------------------------

    def _do_claim(self, origin: Origin, parameters: dict[str, Any]) -> None:
        self._check_peer(origin, "claim")
        items = keeping.heard(parameters.get("claims"))

        def kept(found: keeping.Kept | None, error: BaseException | None) -> None:
            if found is None:
                self._requests.refuse(origin, publishing.as_error(error or OSError()))
                return
            votes = keeping.told(list(found.votes.items()))
            self._requests.answer(origin, {"votes": votes})

        self._naming.keep(items, kept)

    def _do_names(self, origin: Origin, parameters: dict[str, Any]) -> None:
        self._check_peer(origin, "names")
        alias = text_of(parameters, "alias")

        def answer(found: tuple[Any, Claim | None]) -> object:
            held, claim = found
            return {
                "held": list(held) if held is not None else None,
                "claims": keeping.told([(alias, claim)] if claim is not None else []),
            }

        followed = self._loop.location.followed
        self._requests.read(
            origin, lambda engine: _look_up(engine, alias, followed), answer
        )

    def _do_rename(self, origin: Origin, parameters: dict[str, Any]) -> None:
        self._check_peer(origin, "rename")
        object_id = object_id_of(parameters)
        if self._requests.is_elsewhere(origin, "rename", object_id, parameters):
            return
        alias = text_of(parameters, "alias")
        (_, claim), (_, winner) = keeping.heard([
            [alias, object_id, self._naming.me, parameters.get("claimed_s"), True],
            [
                alias, parameters.get("winner"), parameters.get("winner_peer"),
                parameters.get("winner_claimed_s"), True,
            ],
        ])  # fmt: skip
        if type(claim) is not Claim or type(winner) is not Claim:
            raise RemoteProtocolError("winner_peer must be 6 bytes", "rename")
        self._naming.disputes.begin(alias, claim, winner)
        self._requests.answer(origin, None)

    # -- resolve -----------------------------------------------------------------------

    def _do_resolve(self, origin: Origin, parameters: dict[str, Any]) -> None:
        alias = text_of(parameters, "alias")
        then = self._with_interface(self._then(origin), parameters)

        def found(looked: Any, error: BaseException | None) -> None:
            if error is not None:
                then(None, publishing.as_error(error))
                return
            (held, claim), copied = looked
            if held is None and copied is not None and self._is_all_there_is(copied[0]):
                held = copied
            if held is not None:
                then(_found(held), None)
            elif self._naming.is_alone:
                then(None, AliasNotFoundError(alias))
            else:
                or_copy = _else_copy(then, copied)
                _Search(self._loop, alias, claim, self._may_scatter, or_copy).begin()

        followed = self._loop.location.followed
        self._loop.storage.read(
            lambda engine: (
                _look_up(engine, alias, followed), _copied(engine, alias, followed)
            ),
            found,
        )  # fmt: skip

    def _is_all_there_is(self, object_id: ObjectId) -> bool:
        """Whether nobody who answers leads an object of which a copy is here."""
        routing = self._loop.relays.routing
        return self._naming.is_alone or routing.is_leaderless(object_id)

    def _with_interface(self, then: Then, parameters: dict[str, Any]) -> Then:
        """Have the interface of the object's class in the answer, where it was asked for.

        A class that is not at this peer is left out: it is asked for by itself.
        """
        unless = parameters.get("interface_unless")
        if unless is None:
            return then
        if type(unless) is not list or any(type(name) is not str for name in unless):
            raise RemoteProtocolError(
                "interface_unless must be a list of texts", "resolve"
            )

        def more(answer: Any, error: ActiveStoreError | None) -> None:
            if error is None:
                class_name = answer["class_name"]
                if class_name not in unless and self._loop.fetching.has(class_name):
                    answer = {**answer, **self._requests.interface(class_name)}
            then(answer, error)

        return more

    def _may_scatter(self) -> bool:
        """Take one of the searches among all peers that are allowed in a second."""
        return self._allowance.take(self._loop.clock())

    # -- objects -----------------------------------------------------------------------

    def _do_objects(self, origin: Origin, parameters: dict[str, Any]) -> None:
        prefix = text_of(parameters, "alias_prefix", "")
        limit = parameters.get("limit", ROWS_MAX)
        if type(limit) is not int or not 0 < limit <= ROWS_MAX:
            raise RemoteProtocolError(f"limit must be 1 to {ROWS_MAX}", "objects")
        after = parameters.get("after")
        if after is not None and type(after) is not bytes:
            raise RemoteProtocolError("after must be bytes or nil", "objects")
        if parameters.get("here"):
            self._here(after, prefix, limit, self._then(origin))
            return
        peer_id, place = _cursor_of(after)
        _Walk(self, self._loop, prefix, limit, self._then(origin)).go(peer_id, place)

    def _here(self, after: bytes | None, prefix: str, limit: int, then: Then) -> None:
        """Answer with a page of what is stored at this peer; `next` is an object id."""
        if after is not None and len(after) != OBJECT_ID_BYTES:
            raise RemoteProtocolError(
                "after must be what `next` was, or nil", "objects"
            )
        settings, location = self._loop.settings, self._loop.location
        start = None if after is None else ObjectId(after)

        def found(heads: Any, error: BaseException | None) -> None:
            if error is not None:
                then(None, publishing.as_error(error))
                return
            page: list[Head] = heads
            rows = [
                {**row_of(head), "peer": settings.peer_name}
                for head in page
                if head.object_id not in location.staged
                and head.object_id not in location.followed
            ]
            is_last = len(page) < limit
            following = None if is_last else page[-1].object_id
            then({"rows": rows, "next": following, "unreachable": []}, None)

        self._loop.storage.read(
            lambda engine: engine.heads(after=start, alias_prefix=prefix, limit=limit),
            found,
        )

    def page_of(
        self, peer_id: PeerId, after: bytes | None, prefix: str, limit: int, then: Then
    ) -> None:
        """Get a page of the objects at one peer."""
        if peer_id == self._naming.me:
            self._here(after, prefix, limit, then)
            return
        parameters = {
            "alias_prefix": prefix, "after": after, "limit": limit, "here": True,
        }  # fmt: skip
        self._loop.relays.ask(peer_id, "objects", parameters, then, wait_s=PAGE_S)


class _Walk:
    """One page of objects, from the first peer that has any."""

    def __init__(
        self, listing: Listing, loop: PeerLoop, prefix: str, limit: int, then: Then
    ) -> None:
        self._listing = listing
        self._loop = loop
        self._prefix = prefix
        self._limit = limit
        self._then = then
        self._unreachable: list[str] = []

    def go(self, peer_id: PeerId, after: bytes | None) -> None:
        """Ask a peer, or the next one that lives; without a place, from its beginning."""
        cluster = self._loop.cluster
        if peer_id != self._loop.settings.peer_id and not cluster.is_reachable(peer_id):
            if after is not None:
                self._unreachable.append(cluster.name_of(peer_id))
            self._go_behind(peer_id)
            return

        def then(answer: Any, error: ActiveStoreError | None) -> None:
            if error is not None or type(answer) is not dict:
                self._unreachable.append(cluster.name_of(peer_id))
                self._go_behind(peer_id)
                return
            rows, following = answer.get("rows", []), answer.get("next")
            if following is not None:
                self._end(rows, peer_id + bytes(following))
            elif rows:
                following_peer = self._behind(peer_id)
                self._end(rows, following_peer)
            else:
                self._go_behind(peer_id)

        self._listing.page_of(peer_id, after, self._prefix, self._limit, then)

    def _behind(self, peer_id: PeerId) -> PeerId | None:
        members = self._loop.cluster.membership.live()
        others = (one.peer_id for one in members if one.peer_id > peer_id)
        found = min(others, default=None)
        return None if found is None else PeerId(found)

    def _go_behind(self, peer_id: PeerId) -> None:
        following = self._behind(peer_id)
        if following is None:
            self._end([], None)
        else:
            self.go(following, None)

    def _end(self, rows: Sequence[Any], following: bytes | None) -> None:
        if following is None:
            members = self._loop.cluster.membership.members.values()
            self._unreachable += sorted(
                member.record.name or member.record.peer_id.hex()
                for member in members
                if member.state is PeerState.DEAD
            )
        answer = {"rows": rows, "next": following, "unreachable": self._unreachable}
        self._then(answer, None)


def _cursor_of(after: bytes | None) -> tuple[PeerId, bytes | None]:
    """Return peer and place of a cursor: a peer's id, and perhaps an object's behind it.

    Raises:
        RemoteProtocolError: it is no cursor.
    """
    if after is None:
        return PeerId(b""), None
    if len(after) == PEER_ID_BYTES:
        return PeerId(after), None
    if len(after) == PEER_ID_BYTES + OBJECT_ID_BYTES:
        return PeerId(after[:PEER_ID_BYTES]), after[PEER_ID_BYTES:]
    raise RemoteProtocolError("after must be what `next` was, or nil", "objects")


def _look_up(
    engine: Engine, alias: str, followed: Container[ObjectId]
) -> tuple[tuple[ObjectId, str] | None, Claim | None]:
    """Return the object of an alias that is here, and the claim that is kept here."""
    claim = keeping.claim_of(engine, alias)
    object_id = engine.resolve(alias)
    if object_id is None or not keeping.is_held(engine, object_id, followed):
        return None, claim
    try:
        head = engine.head(object_id)
    except CorruptRecordError:
        return (object_id, ""), claim  # It can be deleted by its name all the same.
    return (None if head is None else (object_id, head.class_name)), claim


def _copied(
    engine: Engine, alias: str, followed: Container[ObjectId]
) -> tuple[ObjectId, str] | None:
    """Return the object of an alias of which a copy is here that others lead."""
    object_id = engine.resolve(alias)
    if object_id is None or object_id not in followed:
        return None
    try:
        head = engine.head(object_id)
    except CorruptRecordError:
        return object_id, ""
    return None if head is None else (object_id, head.class_name)


def _found(held: tuple[ObjectId, str]) -> dict[str, Any]:
    return {"object_id": held[0], "class_name": held[1]}


def _else_copy(then: Then, copied: tuple[ObjectId, str] | None) -> Then:
    """Have a copy that is here tell whose name it is, where nobody else can.

    Who wants to read an older state, or to force the copy, knows it by its name.
    """
    if copied is None:
        return then

    def answered(answer: Any, error: ActiveStoreError | None) -> None:
        if isinstance(error, UnavailableError):
            then(_found(copied), None)
        else:
            then(answer, error)

    return answered


class _Search:
    """One search for an alias that is not here."""

    def __init__(
        self,
        loop: PeerLoop,
        alias: str,
        claim: Claim | None,
        may_scatter: Callable[[], bool],
        then: Then,
    ) -> None:
        self._loop = loop
        self._naming: Naming = loop.naming
        self._alias = alias
        self._may_scatter = may_scatter
        self._then = then
        self._own_claim = claim
        self._keepers = list(self._naming.keepers_of(alias))
        self._answered: set[PeerId] = {self._naming.me}
        self._asked: set[PeerId] = {self._naming.me}
        self._located: set[ObjectId] = set()
        self._lost: ActiveStoreError | None = None
        self._open_count = 0
        self._has_scattered = False
        self._is_done = False

    def begin(self) -> None:
        """Ask the keepers."""
        self._open_count += 1
        if self._own_claim is not None:
            self._locate(self._own_claim.object_id)
        for peer_id in self._keepers:
            self._ask(peer_id)
        self._one_less()

    def _ask(self, peer_id: PeerId) -> None:
        if peer_id in self._asked:
            return
        self._asked.add(peer_id)
        self._open_count += 1

        def then(answer: Any, error: ActiveStoreError | None) -> None:
            if error is None and type(answer) is dict:
                self._answered.add(peer_id)
                held = answer.get("held")
                if type(held) is list and len(held) == 2:
                    self._end({"object_id": held[0], "class_name": held[1]}, None)
                claims = keeping.votes_heard({"votes": answer.get("claims")}) or {}
                for claim in claims.values():
                    self._locate(claim.object_id)
            self._one_less()

        parameters = {"alias": self._alias}
        self._loop.relays.ask(peer_id, "names", parameters, then, wait_s=ASK_S)

    def _locate(self, object_id: ObjectId) -> None:
        """See whether the object that a keeper named is there and has the alias."""
        if object_id in self._located:
            return
        self._located.add(object_id)
        self._open_count += 1

        def then(answer: Any, error: ActiveStoreError | None) -> None:
            if error is None and answer.get("alias") == self._alias:
                class_name = answer.get("class_name", "")
                self._end({"object_id": object_id, "class_name": class_name}, None)
            elif error is not None and type(error) is not ObjectNotFoundError:
                self._lost = UnavailableError(
                    f"alias {self._alias!r}", f"it is given, and {error}"
                )
            self._one_less()

        self._naming.locate(object_id, then)

    def _one_less(self) -> None:
        self._open_count -= 1
        if self._open_count or self._is_done:
            return
        if not self._has_scattered and self._may_scatter():
            self._has_scattered = True
            self._open_count += 1
            others = [p for p in self._loop.cluster.alive() if p not in self._asked]
            for peer_id in others[:SCATTER_MAX]:
                self._ask(peer_id)
            self._one_less()
            return
        self._conclude()

    def _conclude(self) -> None:
        missing = [one for one in self._keepers if one not in self._answered]
        known_count = len(self._keepers) - len(missing)
        if self._lost is not None:
            self._end(None, self._lost)
        elif known_count >= majority(len(self._keepers)):
            self._end(None, AliasNotFoundError(self._alias))
        else:
            names = ", ".join(map(self._loop.cluster.name_of, missing))
            self._end(None, NoQuorumError(
                f"alias {self._alias!r}",
                f"peers that keep it cannot be reached: {names}; start them, or wait",
            ))  # fmt: skip

    def _end(self, answer: Any, error: ActiveStoreError | None) -> None:
        if not self._is_done:
            self._is_done = True
            self._then(answer, error)
