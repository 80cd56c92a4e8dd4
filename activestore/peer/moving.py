"""Moving objects between peers: hold, copy, switch, tell; and what a crash left halfway.

    here                          the other peer
    hold the object: calls wait
    install  ------------------->  keep a copy, *staged*: it is not the object
    commit: deleted here, moved to it            <- from here on it is there
    switch   ------------------->  the copy is the object
    calls that waited follow       tell the home and its buddies

The commit here is the one moment at which the owner changes. A peer that finds a staged
copy asks where it came from what became of it; one that finds that it gave an object
away says so until it is heard. So there is one owner whatever dies when.

Rules of this file: the order above; a row on disk before every message that relies on
it.

Source: design section 7; reliability.md 2.2 and 3.4 R8.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from activestore.core import effects, events
from activestore.core.calls import Client
from activestore.core.location import Place
from activestore.errors import (
    ActiveStoreError,
    InvalidRequestError,
    ObjectNotFoundError,
    RemoteProtocolError,
    UnavailableError,
)
from activestore.ids import ObjectId, PeerId, SessionId, home_of
from activestore.peer.cluster import Cluster
from activestore.peer.relays import Relays
from activestore.peer.table import Session, Table
from activestore.storage.engine import Change, Engine, Head, ReplyRecord, Row
from activestore.wire import packing
from activestore.wire.state import (
    FileBuffer,
    NamedState,
    ObjectState,
    decode_states,
    encode_states,
)

# What a copy may take: a round trip of questions, and its bytes at 1 MB/s.
INSTALL_S = 20.0
INSTALL_BYTES_PER_S = 1_000_000
# How often what is halfway is seen to again, in seconds.
AGAIN_S = 1.0
# Requests that wait for one staged copy to become the object.
PARKED_MAX = 1024

Then = Callable[[ActiveStoreError | None], None]


class Leaving(NamedTuple):
    """A move that is under way, on the side of the owner."""

    object_id: ObjectId
    target: PeerId
    waiting: list[Then]


class Moving:
    """All moves of one peer, out and in."""

    def __init__(self, table: Table, cluster: Cluster, relays: Relays) -> None:
        self._table = table
        self._cluster = cluster
        self._relays = relays
        self._location = cluster.location
        self._leaving: dict[ObjectId, Leaving] = {}
        # Objects that were given away, until the new owner has confirmed it.
        self._given: dict[ObjectId, Place] = {}
        # Objects whose keepers are not told yet where they are.
        self._untold: dict[ObjectId, Place] = {}
        # Copies that become objects now: their row is on its way off the disk.
        self._parked: dict[ObjectId, list[tuple[Session, Any]]] = {}
        self._asked: set[tuple[str, ObjectId]] = set()
        self._again_due_s = 0.0
        # Called with an object that has come here.
        self.on_held: Callable[[ObjectId], None] = lambda object_id: None

    # -- at start ----------------------------------------------------------------------

    def restore(self, engine: Engine) -> None:
        """Read from disk what was halfway, and where objects are."""
        location = self._location
        for object_id in engine.foreign_ids():
            location.guests.add(object_id)
        for key, value in engine.rows("staged"):
            location.guests.discard(ObjectId(key))
            location.staged[ObjectId(key)] = _place(value)
        for key, value in engine.rows("place"):
            location.learn_place(ObjectId(key), _place(value))
        for key, value in engine.rows("forward"):
            self._given[ObjectId(key)] = _place(value)
        me = PeerId(self._table.settings.peer_id)
        for object_id in location.guests:
            head = engine.head(object_id)
            if head is not None:
                self._untold[object_id] = Place(me, head.epoch)

    # -- out: the owner's side ---------------------------------------------------------

    def order(self, object_id: ObjectId, target: PeerId, then: Then) -> None:
        """Move an object that is here; `then(error)` is called once it is there."""
        me = self._table.settings.peer_id
        if target == me:
            then(None)
            return
        known = self._leaving.get(object_id)
        if known is not None:
            if known.target == target:
                known.waiting.append(then)
            else:
                name = self._cluster.name_of(known.target)
                then(UnavailableError(_named(object_id), f"it is moving to {name}"))
            return
        if not self._cluster.is_reachable(target):
            name = self._cluster.name_of(target)
            then(UnavailableError(f"peer {name}", "it cannot be reached; start it"))
            return
        self._leaving[object_id] = Leaving(object_id, target, [then])
        self._table.step(events.MoveOrdered(object_id))

    def quiet(self, effect: effects.ObjectQuiet) -> None:
        """Nothing runs on the object any more: copy it."""
        object_id = effect.object_id

        def read(engine: Engine) -> Any:
            found = engine.load(object_id)
            if found is None:
                raise ObjectNotFoundError(object_id, (self._table.settings.peer_id,))
            head, state = found
            return head, in_memory(state), engine.replies_of(object_id)

        def then(found: Any, error: BaseException | None) -> None:
            leaving = self._leaving.get(object_id)
            if leaving is None:
                return
            if error is not None:
                self._stay(object_id, _as_error(error))
            else:
                self._install(leaving, *found)

        self._table.storage.read(read, then)

    def _install(
        self,
        leaving: Leaving,
        head: Head,
        state: ObjectState,
        replies: list[ReplyRecord],
    ) -> None:
        object_id, epoch = leaving.object_id, head.epoch + 1
        body, buffers = encode_states([NamedState(object_id, head.alias, state)])
        blocks = [bytes(b) for b in buffers]  # type: ignore[arg-type]  # read, all of them
        size = len(body) + sum(map(len, blocks))
        parameters = {
            "object_id": object_id, "epoch": epoch, "version": head.version,
            "created_s": head.created_s, "state": body,
            "buffers": blocks,
            "replies": [
                [r.session, r.sequence, r.code, r.body, r.written_s, list(r.buffers)]
                for r in replies
            ],
        }  # fmt: skip

        def then(_answer: Any, error: ActiveStoreError | None) -> None:
            if error is not None:
                self._stay(object_id, error)
            else:
                self._give(leaving, Place(leaving.target, epoch))

        self._relays.ask(
            leaving.target, "install", parameters, then,
            wait_s=INSTALL_S + size / INSTALL_BYTES_PER_S,
        )  # fmt: skip

    def _give(self, leaving: Leaving, place: Place) -> None:
        """Commit that the object is not here any more: the moment of the move."""
        object_id = leaving.object_id
        rows = [Row("forward", object_id, _packed(place))]
        if home_of(object_id) == self._table.settings.peer_id:
            rows.append(Row("place", object_id, _packed(place)))
        change = Change(object_id, is_delete=True, forgets_replies=True, rows=rows)

        def then(results: Any, error: BaseException | None) -> None:
            refused = error if error is not None else results[0]
            if refused is not None:
                self._stay(object_id, _as_error(refused))
            else:
                self._has_gone(leaving, place)

        self._table.storage.write(lambda engine: engine.commit([change]), then)

    def _has_gone(self, leaving: Leaving, place: Place) -> None:
        object_id = leaving.object_id
        self._location.let_go(object_id)
        if home_of(object_id) == self._table.settings.peer_id:
            self._location.learn_place(object_id, place)
        else:
            self._location.hear(object_id, place)
        self._untold.pop(object_id, None)
        self._given[object_id] = place
        self._leaving.pop(object_id, None)
        self._table.note(
            "info", f"object moved object={object_id.hex()} "
            f"peer={self._cluster.name_of(place.peer_id)} epoch={place.epoch}",
        )  # fmt: skip
        self._say_switch(object_id, place)
        self._table.step(events.MoveEnded(object_id, True))
        for then in leaving.waiting:
            then(None)

    def _stay(self, object_id: ObjectId, error: ActiveStoreError) -> None:
        """Give a move up: the object stays, and its calls go on."""
        leaving = self._leaving.pop(object_id, None)
        self._table.step(events.MoveEnded(object_id, False))
        for then in leaving.waiting if leaving is not None else ():
            then(error)

    def _say_switch(self, object_id: ObjectId, place: Place) -> None:
        """Tell the new owner that it is one, until it has heard."""
        mark = ("switch", object_id)
        if mark in self._asked or not self._cluster.is_reachable(place.peer_id):
            return
        self._asked.add(mark)

        def then(_answer: Any, error: ActiveStoreError | None) -> None:
            self._asked.discard(mark)
            if error is None and self._given.get(object_id) == place:
                del self._given[object_id]
                self._write([Row("forward", object_id, None)])

        parameters = {"object_id": object_id, "epoch": place.epoch}
        self._relays.ask(place.peer_id, "switch", parameters, then)

    def _write(self, rows: Sequence[Row]) -> None:
        change = Change(ObjectId(bytes(16)), rows=tuple(rows))

        def then(_results: Any, error: BaseException | None) -> None:
            if error is not None:
                self._table.note("warning", f"rows were not kept error={error}")

        self._table.storage.write(lambda engine: engine.commit([change]), then)

    # -- in: the other peer's side -----------------------------------------------------

    def install(self, source: PeerId, parameters: dict[str, Any], then: Then) -> None:
        """Keep a copy of an object that may come here; `then(error)` once it is kept."""
        named, epoch, change = self._staged_change(source, parameters)
        object_id = ObjectId(named.object_id)
        if self._location.is_here(object_id) and object_id in self._location.guests:
            then(InvalidRequestError("the object is here already", _named(object_id)))
            return
        place = Place(source, epoch)

        def kept(results: Any, error: BaseException | None) -> None:
            refused = error if error is not None else results[0]
            if refused is not None:
                then(_as_error(refused))
                return
            self._location.staged[object_id] = place
            then(None)

        self._table.storage.write(lambda engine: engine.commit([change]), kept)

    def _staged_change(
        self, source: PeerId, parameters: dict[str, Any]
    ) -> tuple[NamedState, int, Change]:
        try:
            (named,) = decode_states(parameters["state"], parameters["buffers"])
            epoch, version = int(parameters["epoch"]), int(parameters["version"])
            replies = tuple(
                ReplyRecord(
                    SessionId(session), int(sequence), str(code), bytes(body),
                    float(written_s), tuple(buffers),
                )
                for session, sequence, code, body, written_s, buffers in parameters["replies"]
            )  # fmt: skip
            created_s = float(parameters["created_s"])
        except (KeyError, TypeError, ValueError) as error:
            raise RemoteProtocolError(
                f"install is malformed: {error}", "Request"
            ) from None
        object_id = ObjectId(named.object_id)
        change = Change(
            object_id, version, named.state, alias=named.alias, epoch=epoch,
            replies=replies, created_s=created_s,
            rows=[Row("staged", object_id, _packed(Place(source, epoch)))],
        )  # fmt: skip
        return named, epoch, change

    def switch(self, object_id: ObjectId, epoch: int, then: Then) -> None:
        """The copy staged under `epoch` is the object from now on."""
        staged = self._location.staged.get(object_id)
        if staged is None:
            # Said twice, or the copy is not here any more.
            is_mine = self._location.is_here(object_id)
            then(None if is_mine else ObjectNotFoundError(object_id))
            return
        if staged.epoch != epoch:
            then(InvalidRequestError(
                f"the copy is of epoch {staged.epoch}, not {epoch}", _named(object_id)
            ))  # fmt: skip
            return
        # Calls may come at once: what they change is written after this row.
        self._location.hold(object_id)
        rows = [Row("staged", object_id, None)]
        if home_of(object_id) == self._table.settings.peer_id:
            rows.append(Row("place", object_id, None))
        change = Change(ObjectId(bytes(16)), rows=rows)

        def kept(results: Any, error: BaseException | None) -> None:
            refused = error if error is not None else results[0]
            then(None if refused is None else _as_error(refused))

        self._table.storage.write(lambda engine: engine.commit([change]), kept)
        me = PeerId(self._table.settings.peer_id)
        self._untold[object_id] = Place(me, epoch)
        self._tell_keepers(object_id)
        self.on_held(object_id)
        for session, message in self._parked.pop(object_id, ()):
            self._table.receive(session, message)

    def park(self, session: Session, message: Any, object_id: ObjectId) -> bool:
        """Keep a request for a staged copy until it is decided; False where it is none."""
        if object_id not in self._location.staged:
            return False
        parked = self._parked.setdefault(object_id, [])
        if len(parked) < PARKED_MAX:
            parked.append((session, message))
        return True

    def _drop_staged(self, object_id: ObjectId) -> None:
        """The copy did not become the object: it goes."""
        change = Change(
            object_id, is_delete=True, forgets_replies=True,
            rows=[Row("staged", object_id, None)],
        )  # fmt: skip
        self._location.staged.pop(object_id, None)
        self._table.storage.write(
            lambda engine: engine.commit([change]), lambda *_: None
        )
        for session, message in self._parked.pop(object_id, ()):
            self._table.receive(session, message)

    # -- what became of it -------------------------------------------------------------

    def fate(self, object_id: ObjectId, epoch: int, asker: PeerId) -> str:
        """Say what became of a copy that was sent: "yours", "mine" or "pending"."""
        if object_id in self._leaving:
            return "pending"
        place = self._given.get(object_id) or self._location.place_of(object_id)
        if place is not None and place.peer_id == asker and place.epoch >= epoch:
            return "yours"
        return "mine"

    def _ask_fate(self, object_id: ObjectId, staged: Place) -> None:
        mark = ("fate", object_id)
        if mark in self._asked or not self._cluster.is_reachable(staged.peer_id):
            return
        self._asked.add(mark)

        def then(answer: Any, error: ActiveStoreError | None) -> None:
            self._asked.discard(mark)
            if error is not None or self._location.staged.get(object_id) != staged:
                return
            if answer == "yours":
                self.switch(object_id, staged.epoch, lambda error: None)
            elif answer == "mine":
                self._drop_staged(object_id)

        parameters = {"object_id": object_id, "epoch": staged.epoch}
        self._relays.ask(staged.peer_id, "fate", parameters, then)

    # -- where it is -------------------------------------------------------------------

    def _tell_keepers(self, object_id: ObjectId) -> None:
        """Tell home and buddies where an object is that is here, and gossip it."""
        place = self._untold.get(object_id)
        mark = ("place", object_id)
        if place is None or mark in self._asked:
            return
        me = self._table.settings.peer_id
        home = home_of(object_id)
        self._cluster.tell(object_id, place)
        keepers = [
            one
            for one in self._cluster.keepers(home)
            if one != me and self._cluster.is_reachable(one)
        ]
        if not keepers:
            return
        self._asked.add(mark)
        left = {"open": len(keepers), "told": set()}

        def answered(keeper: PeerId, error: ActiveStoreError | None) -> None:
            left["open"] -= 1  # type: ignore[operator]
            if error is None:
                left["told"].add(keeper)  # type: ignore[attr-defined]
            if left["open"]:
                return
            self._asked.discard(mark)
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

    def learn(self, object_id: ObjectId, place: Place, then: Then) -> None:
        """Keep, as home or buddy, where an object is."""
        if not self._location.learn_place(object_id, place):
            then(None)
            return
        row = Row("place", object_id, _packed(place))
        change = Change(ObjectId(bytes(16)), rows=[row])

        def kept(results: Any, error: BaseException | None) -> None:
            refused = error if error is not None else results[0]
            then(None if refused is None else _as_error(refused))

        self._table.storage.write(lambda engine: engine.commit([change]), kept)

    # -- time --------------------------------------------------------------------------

    def look(self, now_s: float) -> None:
        """See again to what is halfway."""
        if now_s < self._again_due_s:
            return
        self._again_due_s = now_s + AGAIN_S
        for object_id, place in list(self._given.items())[:PARKED_MAX]:
            self._say_switch(object_id, place)
        for object_id, staged in list(self._location.staged.items())[:PARKED_MAX]:
            self._ask_fate(object_id, staged)
        for object_id in list(self._untold)[:PARKED_MAX]:
            self._tell_keepers(object_id)

    def send_on(self, effect: effects.SendOn) -> None:
        """Send a client's request after its object."""
        origin: Client = effect.origin
        session = self._table.sessions.get(origin.session)
        if session is not None:
            self._table.receive(session, effect.payload)  # type: ignore[arg-type]

    @property
    def is_idle(self) -> bool:
        """Whether nothing is halfway."""
        return not (self._leaving or self._given or self._location.staged)


def _packed(place: Place) -> bytes:
    return bytes(packing.pack([place.peer_id, place.epoch]))


def _place(value: bytes) -> Place:
    peer_id, epoch = packing.unpack(value)[:2]
    return Place(PeerId(bytes(peer_id)), int(epoch))


def _named(object_id: ObjectId) -> str:
    return f"object {object_id.hex()}"


def in_memory(state: ObjectState) -> ObjectState:
    """Return the state with its buffers read; descriptors are closed."""
    buffers = []
    for buffer in state.buffers:
        if isinstance(buffer, FileBuffer):
            try:
                buffers.append(os.pread(buffer.fd, buffer.nbytes, buffer.offset))
            finally:
                os.close(buffer.fd)
        else:
            buffers.append(buffer)  # type: ignore[arg-type]
    return state._replace(buffers=tuple(buffers))


def _as_error(error: BaseException) -> ActiveStoreError:
    if isinstance(error, ActiveStoreError):
        return error
    return UnavailableError("storage", f"{type(error).__name__}: {error}")
