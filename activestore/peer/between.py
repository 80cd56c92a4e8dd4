"""What peers ask of each other about objects, and what clients ask that concerns several.

    move      client: bring an object to another peer
    refs      client: which objects an object refers to
    drain     client: move every object to other peers, then stop
    install, switch, fate, place     peer to peer; see `moving`

Rules of this file: parameters are checked here; a client that asks what only peers may
is refused.

Source: schemas/protocol.md section 6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from activestore.core.location import Place
from activestore.errors import (
    ActiveStoreError,
    InvalidRequestError,
    ObjectNotFoundError,
    RemoteProtocolError,
    UnavailableError,
)
from activestore.ids import PEER_ID_BYTES, ObjectId, PeerId, home_of
from activestore.objects.references import refs_of
from activestore.peer.collecting import is_kept
from activestore.peer.draining import Draining
from activestore.peer.loop import PeerLoop
from activestore.peer.moving import in_memory
from activestore.peer.requests import (
    Origin,
    Requests,
    check_meant,
    object_id_of,
    text_of,
)
from activestore.storage.engine import Engine
from activestore.wire.gossip import OTHERS_MAX
from activestore.wire.state import decode_states


class Between:
    """Operations that concern more than one peer."""

    def __init__(
        self, loop: PeerLoop, requests: Requests, stop: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._moving = loop.moving
        self._stop = stop
        self._draining = Draining(loop, loop.moving)
        self._requests = requests
        for name in (
            "move",
            "refs",
            "drain",
            "install",
            "switch",
            "fate",
            "place",
            "keeps",
        ):
            requests.add(name, getattr(self, f"_do_{name}"))

    def _then(self, origin: Origin, error: ActiveStoreError | None) -> None:
        if error is not None:
            self._requests.refuse(origin, error)
        else:
            self._requests.answer(origin, None)

    def _do_move(self, origin: Origin, parameters: dict[str, Any]) -> None:
        object_id = object_id_of(parameters)
        if self._requests.is_elsewhere(origin, "move", object_id, parameters):
            return
        name = text_of(parameters, "peer")
        target = self._loop.cluster.named(name)
        if target is None:
            known = ", ".join(sorted(self._loop.cluster.names())) or "none"
            raise UnavailableError(
                f"peer {name!r}", f"it is not known, or does not answer; known: {known}"
            )
        if target == self._loop.settings.peer_id:
            self._requests.answer(origin, False)  # It is there already.
            return
        self._moving.order(object_id, target, lambda error: self._then(origin, error))

    def _do_refs(self, origin: Origin, parameters: dict[str, Any]) -> None:
        object_id = object_id_of(parameters)
        if self._requests.is_elsewhere(origin, "refs", object_id, parameters):
            return

        def read(engine: Engine) -> list[ObjectId]:
            found = engine.load(object_id)
            if found is None:
                raise ObjectNotFoundError(object_id, (self._loop.settings.peer_id,))
            return refs_of(in_memory(found[1]))

        self._requests.read(origin, read, list)

    def _do_drain(self, origin: Origin, parameters: dict[str, Any]) -> None:
        check_meant(parameters, self._loop.settings.peer_id)
        if not self._loop.cluster.alive():
            self._requests.answer(origin, _moved(parameters, 0, 0))
            self._stop()  # Nobody else is there: its objects stay on its disk.
            return

        def then(error: ActiveStoreError | None) -> None:
            if error is not None:
                self._requests.refuse(origin, error)
                return
            moved, fewer = self._draining.moved_count, self._draining.fewer_count
            self._requests.answer(origin, _moved(parameters, moved, fewer))
            self._stop()

        self._draining.begin(then)

    def _do_install(self, origin: Origin, parameters: dict[str, Any]) -> None:
        source = self._requests.asker(origin, "install")
        class_name, revision = _class_of(parameters)

        def then(error: ActiveStoreError | None) -> None:
            lacking = error or self._loop.classes.missing_for(class_name)
            if lacking is not None:
                self._then(origin, lacking)
                return
            try:
                self._moving.install(
                    source, parameters, lambda error: self._then(origin, error)
                )
            except ActiveStoreError as malformed:
                self._then(origin, malformed)

        # Its code first: the source may be gone when somebody calls the object here.
        if self._loop.fetching.has(class_name, revision):
            then(None)
        else:
            self._loop.fetching.bring(class_name, revision, [source], then)

    def _do_switch(self, origin: Origin, parameters: dict[str, Any]) -> None:
        self._requests.asker(origin, "switch")
        self._moving.switch(
            object_id_of(parameters), _token(parameters),
            lambda error: self._then(origin, error),
        )  # fmt: skip

    def _do_fate(self, origin: Origin, parameters: dict[str, Any]) -> None:
        self._requests.asker(origin, "fate")
        fate = self._moving.fate(object_id_of(parameters), _token(parameters))
        self._requests.answer(origin, fate)

    def _do_place(self, origin: Origin, parameters: dict[str, Any]) -> None:
        self._requests.asker(origin, "place")
        peer_id = parameters.get("peer_id")
        if type(peer_id) is not bytes or len(peer_id) != PEER_ID_BYTES:
            raise RemoteProtocolError("peer_id must be 6 bytes", "place")
        others = parameters.get("others", [])
        if not _are_peer_ids(others) or len(others) > OTHERS_MAX:
            raise RemoteProtocolError(
                f"others must be a list of at most {OTHERS_MAX} ids of 6 bytes", "place"
            )
        place = Place(
            PeerId(peer_id), _number(parameters, "epoch"), tuple(map(PeerId, others)),
            _number(parameters, "group_version", 0),
        )  # fmt: skip
        self._loop.places.learn(
            object_id_of(parameters), place, lambda error: self._then(origin, error)
        )

    def _do_keeps(self, origin: Origin, parameters: dict[str, Any]) -> None:
        """Tell whether the place of an object is known here, and whether it was deleted."""
        self._requests.asker(origin, "keeps")
        object_id, epoch = object_id_of(parameters), _number(parameters, "epoch")
        location, me = self._loop.location, self._loop.settings.peer_id

        def answer(found: tuple[bool, bool]) -> object:
            is_known, is_nothing = found
            is_home = home_of(object_id) == me and location.is_here(object_id)
            lineage = self._loop.places.graves.lineage_of(object_id)
            is_gone = is_home and is_nothing
            return {"is_known": is_known, "is_gone": is_gone, "deleted": lineage}

        self._requests.read(
            origin, lambda engine: is_kept(engine, object_id, epoch), answer
        )


def _moved(parameters: dict[str, Any], moved: int, fewer: int) -> Any:
    """Return what a drain did, in the shape that was asked for."""
    told = {"moved": moved, "fewer": fewer}
    return told if parameters.get("is_told_fewer", False) else moved


def _token(parameters: dict[str, Any]) -> bytes:
    token = parameters.get("token")
    if type(token) is not bytes:
        raise InvalidRequestError("token must be bytes", "token")
    return token


def _are_peer_ids(value: Any) -> bool:
    return type(value) is list and all(
        type(one) is bytes and len(one) == PEER_ID_BYTES for one in value
    )


def _class_of(parameters: dict[str, Any]) -> tuple[str, bytes]:
    """Return class and revision of the object that comes."""
    try:
        (named,) = decode_states(parameters["state"], parameters["buffers"])
    except (KeyError, TypeError, ValueError) as error:
        raise RemoteProtocolError(
            f"install is malformed: {error!r}", "Request"
        ) from None
    return named.state.class_name, named.state.revision


def _number(parameters: dict[str, Any], name: str, default: int | None = None) -> int:
    number = parameters.get(name, default)
    if type(number) is not int or number < 0:
        raise InvalidRequestError(f"{name} is {number!r}, expected 0 or more", name)
    return number
