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
it. What is moved has no register: of an object with copies `rehousing` has another lead
it, and one that is on its way gets none. So no write of this file is a group's.

Source: design section 7; reliability.md 2.2 and 3.4 R8.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from activestore.core import effects, events
from activestore.core.calls import Client
from activestore.core.location import Place
from activestore.errors import (
    ActiveStoreError,
    BusyError,
    CorruptRecordError,
    InvalidRequestError,
    ObjectNotFoundError,
    RemoteProtocolError,
    UnavailableError,
)
from activestore.ids import ObjectId, PeerId, home_of
from activestore.peer.answers import answers_in, told_answers
from activestore.peer.cluster import Cluster
from activestore.peer.places import Places, packed_place
from activestore.peer.publishing import as_error
from activestore.peer.relays import Relays
from activestore.peer.table import Session, Table
from activestore.storage.engine import ZERO_ID, Change, Engine, Head, Row
from activestore.wire import packing, values
from activestore.wire.messages import Failure
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
# Of one attempt to move an object.
TOKEN_BYTES = 8
# Requests that wait for one staged copy to become the object.
PARKED_MAX = 1024

Then = Callable[[ActiveStoreError | None], None]


class Shared(Protocol):
    """What moves objects that have replicas; see `rehousing`."""

    # Objects whose groups have a copy fewer since this peer left them: nobody took it.
    fewer: set[ObjectId]

    def is_shared(self, object_id: ObjectId) -> bool:
        """Whether an object has others that vote on where it is."""

    def copies(self) -> list[ObjectId]:
        """Return all such objects of which this peer is one of the voters."""

    def bring(self, object_id: ObjectId, target: PeerId, then: Then) -> None:
        """Have another peer lead an object that is led here."""

    def leave(self, object_id: ObjectId, then: Then) -> None:
        """Have others hold an object instead of this peer."""


class Leaving(NamedTuple):
    """A move that is under way, on the side of the owner.

    `token` tells this attempt from every other: the epoch does not, where one failed.
    """

    object_id: ObjectId
    target: PeerId
    token: bytes
    waiting: list[Then]


class Given(NamedTuple):
    """Where an object went, by which attempt."""

    place: Place
    token: bytes


class Moving:
    """All moves of one peer, out and in."""

    def __init__(
        self, table: Table, cluster: Cluster, relays: Relays, places: Places
    ) -> None:
        self._table = table
        self._cluster = cluster
        self._relays = relays
        self._places = places
        self._location = cluster.location
        self._leaving: dict[ObjectId, Leaving] = {}
        # Objects that were given away, until the new owner has confirmed it.
        self._given: dict[ObjectId, Given] = {}
        # Copies that came, by which attempt; `Location.staged` has the same objects.
        self._staged: dict[ObjectId, Given] = {}
        # Copies that become objects now: their row is on its way off the disk.
        self._parked: dict[ObjectId, list[tuple[Session, Any]]] = {}
        self._asked: set[tuple[str, ObjectId]] = set()
        self._again_due_s = 0.0
        # Moves what has replicas; None where nothing has.
        self.shared: Shared | None = None
        # Called with an object that has come here.
        self.on_held: Callable[[ObjectId], None] = lambda object_id: None
        # Called after each look at what is halfway, with the time.
        self.on_look: Callable[[float], None] = lambda now_s: None

    # -- at start ----------------------------------------------------------------------

    def restore(self, engine: Engine) -> None:
        """Read from disk what was halfway, and where objects are."""
        location = self._location
        for object_id in engine.foreign_ids():
            location.guests.add(object_id)
        for key, value in engine.rows("staged"):
            location.guests.discard(ObjectId(key))
            self._stage(ObjectId(key), _given(value))
        self._places.restore(engine)
        for key, value in engine.rows("forward"):
            self._given[ObjectId(key)] = _given(value)
        me = PeerId(self._table.settings.peer_id)
        for object_id in sorted(location.guests):
            try:
                head = engine.head(object_id)
            except CorruptRecordError:
                continue  # Its home knows that it is here; whoever calls it is told.
            if head is not None:
                self._places.came(object_id, Place(me, head.epoch), is_new=False)

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
        if self.shared is not None and self.shared.is_shared(object_id):
            self.shared.bring(object_id, target, then)
            return
        token = int(self._table.random() * (1 << 53)).to_bytes(TOKEN_BYTES, "big")
        leaving = self._leaving[object_id] = Leaving(object_id, target, token, [then])

        def begin(_value: Any, _error: BaseException | None) -> None:
            if self._leaving.get(object_id) is leaving:
                self._table.step(events.MoveOrdered(object_id))

        # In the writer: had it copies until now, that they went is on disk first.
        self._table.storage.write(lambda _: None, begin)

    def target_of(self, object_id: ObjectId) -> PeerId | None:
        """Return where an object is moving to, None where it stays."""
        leaving = self._leaving.get(object_id)
        return None if leaving is None else leaving.target

    def quiet(self, effect: effects.ObjectQuiet) -> None:
        """Nothing runs on the object any more: copy it."""
        object_id = effect.object_id

        def read(engine: Engine) -> Any:
            found = engine.snapshot(object_id, "register", is_sent=True)
            head, state = found.head, found.state
            if head is None or state is None:
                raise ObjectNotFoundError(object_id, (self._table.settings.peer_id,))
            # Packed here: it takes as long as there are many, and the loop has no time.
            return head, in_memory(state), told_answers(found.replies)

        def then(found: Any, error: BaseException | None) -> None:
            leaving = self._leaving.get(object_id)
            if leaving is None:
                return
            if error is None:
                try:
                    self._install(leaving, *found)
                except Exception as failed:  # noqa: BLE001 - else its calls hang
                    error = failed
            if error is not None:
                self._stay(object_id, as_error(error))

        self._table.storage.read(read, then)

    def _install(
        self,
        leaving: Leaving,
        head: Head,
        state: ObjectState,
        answers: dict[str, Any],
    ) -> None:
        object_id = leaving.object_id
        # Above what was told, which a full disk may have refused: see `Copying`.
        epoch = max(head.epoch, self._places.epoch_alone(object_id) or 0) + 1
        body, buffers = encode_states([NamedState(object_id, head.alias, state)])
        blocks = [bytes(b) for b in buffers]  # type: ignore[arg-type]  # read, all of them
        size = sum(map(len, (body, *blocks, *answers.get("answers", ()))))
        parameters = {
            "object_id": object_id, "epoch": epoch, "token": leaving.token,
            "version": head.version,
            "created_s": head.created_s, "state": body,
            "buffers": blocks,
            **answers,
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
        given = Given(place, leaving.token)
        # Of a group that it had once a full disk may have kept the register.
        rows = [Row("register", object_id, None)]
        rows.append(Row("forward", object_id, _packed_given(given)))
        if home_of(object_id) == self._table.settings.peer_id:
            rows.append(Row("place", object_id, packed_place(place)))
        change = Change(object_id, is_delete=True, forgets_replies=True, rows=rows)

        def then(results: Any, error: BaseException | None) -> None:
            refused = error if error is not None else results[0]
            if refused is not None:
                self._stay(object_id, as_error(refused))
            else:
                self._has_gone(leaving, given)

        self._table.storage.write(lambda engine: engine.commit([change]), then)

    def _has_gone(self, leaving: Leaving, given: Given) -> None:
        object_id, place = leaving.object_id, given.place
        self._location.let_go(object_id)
        if home_of(object_id) == self._table.settings.peer_id:
            self._location.learn_place(object_id, place)
        else:
            self._location.hear(object_id, place)
        self._places.left(object_id)
        self._given[object_id] = given
        self._leaving.pop(object_id, None)
        self._table.note(
            "info", f"object moved object={object_id.hex()} "
            f"peer={self._cluster.name_of(place.peer_id)} epoch={place.epoch}",
        )  # fmt: skip
        self._say_switch(object_id, given)
        self._table.step(events.MoveEnded(object_id, True))
        for then in leaving.waiting:
            then(None)

    def _stay(self, object_id: ObjectId, error: ActiveStoreError) -> None:
        """Give a move up: the object stays, and its calls go on."""
        leaving = self._leaving.pop(object_id, None)
        self._table.step(events.MoveEnded(object_id, False))
        for then in leaving.waiting if leaving is not None else ():
            then(error)

    def _say_switch(self, object_id: ObjectId, given: Given) -> None:
        """Tell the new owner that it is one, until it has heard."""
        place = given.place
        mark = ("switch", object_id)
        if mark in self._asked or not self._cluster.is_reachable(place.peer_id):
            return
        self._asked.add(mark)

        def then(_answer: Any, error: ActiveStoreError | None) -> None:
            self._asked.discard(mark)
            if error is None and self._given.get(object_id) == given:
                del self._given[object_id]
                self._drop_forward(object_id, given)

        parameters = {"object_id": object_id, "token": given.token}
        self._relays.ask(place.peer_id, "switch", parameters, then)

    def _drop_forward(self, object_id: ObjectId, given: Given) -> None:
        """Nobody will ask for this move again; a later one may have its row by now."""
        known = _packed_given(given)
        change = Change(ZERO_ID, rows=[Row("forward", object_id, None)])

        def drop(engine: Engine) -> None:
            if engine.row("forward", object_id) == known:
                engine.commit([change])

        self._table.storage.write(drop, lambda *_: None)

    # -- in: the other peer's side -----------------------------------------------------

    def install(self, source: PeerId, parameters: dict[str, Any], then: Then) -> None:
        """Keep a copy of an object that may come here; `then(error)` once it is kept."""
        named, given, change = self._staged_change(source, parameters)
        object_id = ObjectId(named.object_id)
        if self._location.is_here(object_id):
            then(InvalidRequestError("the object is here already", _named(object_id)))
            return
        if self.shared is not None and self.shared.is_shared(object_id):
            why = "a copy of it from before is there, and goes soon; try again"
            then(UnavailableError(_named(object_id), why))
            return
        if self._table.is_emptying:
            then(UnavailableError("peer", "it is being drained; move it elsewhere"))
            return

        def kept(results: Any, error: BaseException | None) -> None:
            refused = error if error is not None else results[0]
            if refused is not None:
                then(as_error(refused))
                return
            # Asked twice, a copy may have become the object while it was written again.
            if not self._location.is_here(object_id):
                self._stage(object_id, given)
            then(None)

        self._table.storage.write(lambda engine: engine.commit([change]), kept)

    def _stage(self, object_id: ObjectId, given: Given) -> None:
        self._staged[object_id] = given
        self._location.staged[object_id] = given.place

    def _staged_change(
        self, source: PeerId, parameters: dict[str, Any]
    ) -> tuple[NamedState, Given, Change]:
        try:
            (named,) = decode_states(parameters["state"], parameters["buffers"])
            epoch, version = int(parameters["epoch"]), int(parameters["version"])
            replies = answers_in(parameters)
            created_s = float(parameters["created_s"])
            given = Given(Place(source, epoch), bytes(parameters["token"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RemoteProtocolError(
                f"install is malformed: {error}", "Request"
            ) from None
        object_id = ObjectId(named.object_id)
        change = Change(
            object_id, version, named.state, alias=named.alias, epoch=epoch,
            replies=replies, created_s=created_s,
            rows=[
                Row("staged", object_id, _packed_given(given)),
                Row("register", object_id, None),  # Of a copy that was to go.
            ],
        )  # fmt: skip
        return named, given, change

    def switch(self, object_id: ObjectId, token: bytes, then: Then) -> None:
        """The copy that came by this attempt is the object from now on."""
        staged = self._staged.get(object_id)
        if staged is None:
            # Said twice: the copy became the object, which may have moved on since.
            then(None)
            return
        if staged.token != token:
            error = InvalidRequestError(
                "the copy is of another move", _named(object_id)
            )
            then(error)
            return
        epoch = staged.place.epoch
        # Calls may come at once: what they change is written after this row.
        del self._staged[object_id]
        self._location.hold(object_id)
        rows = [Row("staged", object_id, None)]
        if home_of(object_id) == self._table.settings.peer_id:
            rows.append(Row("place", object_id, None))
        change = Change(ZERO_ID, rows=rows)

        def kept(results: Any, error: BaseException | None) -> None:
            refused = error if error is not None else results[0]
            then(None if refused is None else as_error(refused))

        self._table.storage.write(lambda engine: engine.commit([change]), kept)
        me = PeerId(self._table.settings.peer_id)
        self._places.came(object_id, Place(me, epoch))
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
        reason = f"{PARKED_MAX} requests wait for its move"
        error = BusyError(_named(object_id), reason, AGAIN_S)
        body = values.encode_error(error)
        self._table.tell(session, Failure(message.sequence, error.code, None, body))
        return True

    def _drop_staged(self, object_id: ObjectId, staged: Given) -> None:
        """The copy did not become the object: it goes, unless another has come."""
        change = Change(
            object_id, is_delete=True, forgets_replies=True,
            rows=[Row("staged", object_id, None)],
        )  # fmt: skip
        del self._staged[object_id]
        self._location.staged.pop(object_id, None)
        known = _packed_given(staged)

        def drop(engine: Engine) -> None:
            if engine.row("staged", object_id) == known:
                engine.commit([change])

        self._table.storage.write(drop, lambda *_: None)
        for session, message in self._parked.pop(object_id, ()):
            self._table.receive(session, message)

    # -- what became of it -------------------------------------------------------------

    def fate(self, object_id: ObjectId, token: bytes) -> str:
        """Say what became of a copy that was sent: "yours", "pending" or "dropped".

        An attempt that is neither given nor under way was given up: the row of one that
        was given goes only when its switch was confirmed.
        """
        leaving, given = self._leaving.get(object_id), self._given.get(object_id)
        if leaving is not None and leaving.token == token:
            return "pending"
        return "yours" if given is not None and given.token == token else "dropped"

    def _ask_fate(self, object_id: ObjectId, staged: Given) -> None:
        mark = ("fate", object_id)
        source = staged.place.peer_id
        if mark in self._asked or not self._cluster.is_reachable(source):
            return
        self._asked.add(mark)

        def then(answer: Any, error: ActiveStoreError | None) -> None:
            self._asked.discard(mark)
            if error is not None or self._staged.get(object_id) != staged:
                return
            if answer == "yours":
                self.switch(object_id, staged.token, lambda error: None)
            elif answer == "dropped":
                self._drop_staged(object_id, staged)

        parameters = {"object_id": object_id, "token": staged.token}
        self._relays.ask(source, "fate", parameters, then)

    # -- time --------------------------------------------------------------------------

    def look(self, now_s: float) -> None:
        """See again to what is halfway."""
        if now_s < self._again_due_s:
            return
        self._again_due_s = now_s + AGAIN_S
        for object_id, given in list(self._given.items())[:PARKED_MAX]:
            self._say_switch(object_id, given)
        for object_id, staged in list(self._staged.items())[:PARKED_MAX]:
            self._ask_fate(object_id, staged)
        self._places.look()
        self.on_look(now_s)

    def send_on(self, effect: effects.SendOn) -> None:
        """Send a client's request after its object."""
        origin: Client = effect.origin
        session = self._table.sessions.get(origin.session)
        message: Any = effect.payload
        if effect.may_have_run and not message.attempt:
            message = message._replace(attempt=1)  # Whoever gets it looks it up.
        if effect.left_s and hasattr(message, "deadline_ms"):
            message = message._replace(deadline_ms=max(1, int(effect.left_s * 1000)))
        if session is None:
            return
        if effect.is_unproven and not self._location.is_here(message.object_id):
            # Here it would find the copy as it is.
            self._relays.forward(session, message, ObjectId(message.object_id))
        else:
            self._table.receive(session, message)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is halfway."""
        return not (self._leaving or self._given or self._staged)


def _packed_given(given: Given) -> bytes:
    return bytes(packing.pack([*given.place[:2], given.token]))


def _given(value: bytes) -> Given:
    peer_id, epoch, token = packing.unpack(value)[:3]
    return Given(Place(PeerId(bytes(peer_id)), int(epoch)), bytes(token))


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
