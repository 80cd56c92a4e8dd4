"""Requests that are answered at another peer: of clients, of methods, and of our own.

A *trip* is one such request on its way. It carries the session and the number under
which it was made, so that the peer of the object answers it once however often, and by
whichever way, it is asked.

    forward | depart | ask -> Relay -> (moved -> Relay ...) -> Relayed -> answered
    link lost, or its end restarted: sent again with the next attempt

Rules of this file: a request that was relayed to us is never relayed on; a stream is not
sent again; whoever asks hears an end of it, always.

Source: design section 7; reliability.md 2.2; schemas/protocol.md section 10.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from activestore.core import effects, events
from activestore.core.location import Place
from activestore.errors import (
    ActiveStoreError,
    CancelledError,
    MovedError,
    ObjectNotFoundError,
    RemoteProtocolError,
    UnavailableError,
    error_from_wire,
)
from activestore.ids import ObjectId, PeerId, SessionId, home_of
from activestore.peer.cluster import Cluster
from activestore.peer.doubts import in_doubt
from activestore.peer.links import Link, Links
from activestore.peer.table import Session, Table
from activestore.peer.trips import Then, Trip
from activestore.wire import codec, values
from activestore.wire.messages import (
    AskOn,
    Beat,
    Buffer,
    Cancel,
    Create,
    Credit,
    Failure,
    Item,
    Message,
    Persist,
    Ping,
    Relay,
    Relayed,
    Reply,
    Request,
    whole,
)

# Redirects that one request follows before it is given up.
REDIRECTS_MAX = 3
# Peers whose last start is remembered.
STARTS_MAX = 4096
# So long a question is asked again of peers that name each other.
REST_S = 2.0
# How long a question of our own may stay unanswered and unnamed, in seconds.
ASK_S = 10.0
# A peer names in a beat every 2 s what it has not answered. What it has not named in
# three of them it never got, or its answer was lost with one of several links.
UNNAMED_S = 7.0
# How often a client is told of a request that is long on its way, or its answer is.
BEAT_S = 2.0
# A peer that was heard so lately would have named it. Others are asked for a sign.
HEARD_S = 2.0

_NIL = b"\xc0"


class Relays:
    """All trips of one peer."""

    def __init__(self, table: Table, links: Links, cluster: Cluster) -> None:
        self._table = table
        self._links = links
        self._cluster = cluster
        self._location = cluster.location
        self._trips: dict[tuple[SessionId, int], Trip] = {}
        self._away: dict[int, Trip] = {}
        self._next_sequence = 1
        # The last start that was seen of each peer; its methods' calls carry it.
        self._starts: dict[PeerId, bytes] = {}
        # Called with the session of a start that is over.
        self.on_restarted: Callable[[SessionId], None] = lambda session_id: None
        # Looks for an object everywhere; False where that is not done now.
        self.search: Callable[[ObjectId, Callable[[], None]], bool] = (
            lambda object_id, then: False
        )
        links.on_up = self._on_link_up
        links.on_lost = self._on_link_lost

    # -- beginning ---------------------------------------------------------------------

    def forward(self, session: Session, message: Any, object_id: ObjectId) -> None:
        """See to a client's request for an object that is not here."""
        if session.is_relayed:
            self._table.tell(session, self._redirect(message.sequence, object_id))
            return
        known = self._trips.get((session.session_id, message.sequence))
        if known is not None:
            known.message = message  # The client asks again: so do we.
            known.attempt = max(known.attempt, message.attempt)
            self._send(known)
            return
        extra = message.extra or {}
        if session.can_follow and extra.get("direct", True):
            place = self._first_place(object_id)
            if place is not None and self._cluster.endpoint_of(place.peer_id):
                self._table.tell(
                    session, self._failure(message.sequence, place, object_id)
                )
                return
        trip = Trip(session.session_id, message, object_id, self._table.clock())
        trip.session = session
        self._trips[trip.session_id, trip.sequence] = trip
        self._go_on(trip)

    def _first_place(self, object_id: ObjectId) -> Place | None:
        for peer_id in self._cluster.route(object_id):
            place = self._location.place_of(object_id)
            epoch = place.epoch if place is not None and place.peer_id == peer_id else 0
            return Place(peer_id, epoch)
        return None

    def _redirect(self, sequence: int, object_id: ObjectId) -> Failure:
        """Return the answer to a request that was relayed to the wrong peer.

        Where nothing is known it names the home: whoever asked there already knows that
        we do not know either.
        """
        place = self._location.place_of(object_id) or Place(home_of(object_id), 0)
        return self._failure(sequence, place, object_id)

    def _failure(self, sequence: int, place: Place, object_id: ObjectId) -> Failure:
        endpoint = self._cluster.endpoint_of(place.peer_id)
        error = MovedError(object_id, place.peer_id, endpoint, place.epoch)
        return Failure(sequence, error.code, None, values.encode_error(error))

    def depart(self, effect: effects.SendAway) -> None:
        """Send a call of a method to the peer of its object."""
        call = effect.call
        extra: dict[str, Any] = {"depth": effect.depth}
        if effect.chain:
            extra["chain"] = [list(mark) for mark in effect.chain]
            extra["began_ms"] = effect.began_ms
        known = self._away.get(call.call_id)
        if known is not None and effect.is_again:
            merged = {**(known.message.extra or {}), **extra}
            known.message = known.message._replace(extra=merged)
            self._send_next(known)
            return
        message: Any = call.payload
        if call.credit:
            extra["stream"] = call.credit
        fresh = {
            "sequence": self._next_sequence, "attempt": 0, "extra": extra,
            "first_unacked": self._first_open(),
        }  # fmt: skip
        if hasattr(message, "deadline_ms"):
            fresh["deadline_ms"] = (
                max(1, int(effect.deadline_s * 1000)) if effect.deadline_s else 0
            )
        trip = self._own_trip(message._replace(**fresh), call.object_id)
        trip.call_id = call.call_id
        self._away[call.call_id] = trip
        self._go_on(trip)

    def ask(
        self, peer_id: PeerId, operation: str, parameters: dict[str, Any], then: Then, *,
        wait_s: float = ASK_S,
    ) -> None:  # fmt: skip
        """Ask another peer for an operation; `then(answer, error)` is called once."""
        body, buffers = values.encode(parameters)
        message = Request(self._next_sequence, operation, None, body, buffers)
        trip = self._own_trip(message, ObjectId(b""))
        trip.then = then
        trip.due_s = trip.began_s + wait_s
        link = self._cluster.reach(peer_id)
        if link is None:
            self._end(trip, self._unreachable(trip, peer_id))
            return
        trip.target, trip.link = peer_id, link
        self._send(trip)

    def ask_about(
        self, object_id: ObjectId, operation: str, parameters: dict[str, Any], then: Then,
        is_relayed: bool,
    ) -> None:  # fmt: skip
        """Ask the peer of an object; one that was asked so itself says where to ask."""
        if is_relayed:
            place = self._location.place_of(object_id) or Place(home_of(object_id), 0)
            endpoint = self._cluster.endpoint_of(place.peer_id)
            then(None, MovedError(object_id, place.peer_id, endpoint, place.epoch))
            return
        body, buffers = values.encode(parameters)
        message = Request(self._next_sequence, operation, None, body, buffers)
        trip = self._own_trip(message, object_id)
        trip.then = then
        trip.due_s = trip.began_s + ASK_S
        self._go_on(trip)

    def _own_trip(self, message: Any, object_id: ObjectId) -> Trip:
        self._next_sequence += 1
        trip = Trip(self._links.session_id, message, object_id, self._table.clock())
        self._trips[trip.session_id, trip.sequence] = trip
        return trip

    def _first_open(self) -> int:
        """Return the lowest number of our own that is not answered."""
        mine = self._links.session_id
        for session_id, sequence in self._trips:
            if session_id == mine:
                return sequence
        return self._next_sequence

    # -- on the way --------------------------------------------------------------------

    def _go_on(self, trip: Trip) -> None:
        """Send a trip to the next peer that may hold its object, or give it up."""
        place = self._location.place_of(trip.object_id)
        for peer_id in self._cluster.route(trip.object_id):
            epoch = place.epoch if place is not None and place.peer_id == peer_id else 0
            if trip.asked.get(peer_id, -1) >= epoch:
                continue
            link = self._cluster.reach(peer_id)
            if link is None:
                continue
            trip.asked[peer_id] = epoch
            trip.target, trip.link = peer_id, link
            self._send(trip)
            return
        trip.target, trip.link = PeerId(b""), None
        if not self.search(trip.object_id, lambda: self._searched(trip)):
            self._give_up(trip)

    def _give_up(self, trip: Trip) -> None:
        """End a trip for which nobody is left to ask; a question rests first.

        Between two peers that move an object each names the other for a moment. A call
        waits there for the copy to become the object, a question does not.
        """
        place = self._location.place_of(trip.object_id)
        is_between = place is not None and place.peer_id in trip.asked
        rested_s = self._table.clock() - trip.began_s
        if not (trip.due_s and trip.redirects and is_between) or rested_s > REST_S:
            self._end(trip, self._why_lost(trip))
            return
        trip.is_resting = True
        trip.redirects = 0
        trip.asked.clear()

    def _searched(self, trip: Trip) -> None:
        """Send a trip on with what was found; where nothing was, that ends it."""
        if (trip.session_id, trip.sequence) in self._trips and trip.link is None:
            self._go_on(trip)

    def _why_lost(self, trip: Trip) -> ActiveStoreError:
        if self._cluster.is_alone:
            # Nobody else was ever heard of, so nobody else can have it.
            return ObjectNotFoundError(trip.object_id, (self._table.settings.peer_id,))
        place = self._location.place_of(trip.object_id)
        holder = place.peer_id if place is not None else home_of(trip.object_id)
        name = self._cluster.name_of(holder)
        where = f"object {trip.object_id.hex()}"
        if holder in trip.asked:
            return UnavailableError(
                where,
                f"peer {name} does not hold it, and nobody else that can be reached",
            )
        role = "holds it" if place is not None else "is its home"
        return UnavailableError(
            where, f"peer {name}, which {role}, cannot be reached; start it, or wait"
        )

    def _unreachable(self, trip: Trip, peer_id: PeerId) -> UnavailableError:
        return UnavailableError(
            trip.message.operation if trip.then else f"object {trip.object_id.hex()}",
            f"peer {self._cluster.name_of(peer_id)} cannot be reached",
        )

    def _send(self, trip: Trip) -> None:
        link = trip.link
        if link is not None:
            self._links.send(link, _relay(trip.session_id, trip.message))
            trip.named_s = link.used_s

    def _send_again(self, trip: Trip) -> None:
        """Send a trip as its next attempt: the one before may have arrived."""
        if trip.is_stream:
            error = UnavailableError(
                f"object {trip.object_id.hex()}",
                "the connection to its peer broke; a stream is not resumed",
            )
            self._end(trip, error)
            return
        self._send_next(trip)

    def _send_next(self, trip: Trip) -> None:
        """Send a trip under its next number of attempt."""
        if hasattr(trip.message, "attempt"):
            trip.attempt += 1
            age_ms = int((self._table.clock() - trip.began_s) * 1000)
            known_ms = (trip.message.extra or {}).get("age_ms", 0)
            extra = {**(trip.message.extra or {}), "age_ms": max(age_ms, known_ms)}
            trip.message = trip.message._replace(attempt=trip.attempt, extra=extra)
        self._send(trip)

    def awaited(self) -> set[Link | None]:
        """Return the links by which answers are to come."""
        return {trip.link for trip in self._trips.values()}

    def look(self, now_s: float) -> None:
        """End the questions that were not answered in time, and mend what was lost."""
        for trip in list(self._trips.values()):
            moved_s = self._moved_s(trip)
            if trip.due_s:
                # What is large may take its time while it gets on.
                if max(trip.due_s, moved_s + ASK_S) <= now_s:
                    self._end(trip, self._unreachable(trip, trip.target))
                elif trip.is_resting:
                    trip.is_resting = False
                    self._go_on(trip)
            elif not trip.call_id or trip.link is None:
                continue  # A client hears no beats of what was lost, and gives it up.
            elif now_s - max(trip.named_s, moved_s) >= UNNAMED_S:
                self._mend(trip, trip.link, now_s)
        self._tell_moving(now_s)

    def _tell_moving(self, now_s: float) -> None:
        """Tell clients of what is large and gets on: its peer cannot name it now."""
        moving: dict[Session, list[int]] = {}
        for trip in self._trips.values():
            if trip.session and self._moved_s(trip) - trip.named_s >= BEAT_S:
                trip.named_s = now_s
                moving.setdefault(trip.session, []).append(trip.sequence)
        for session, sequences in moving.items():
            self._table.beat(session, sequences)

    def _moved_s(self, trip: Trip) -> float:
        """Return when a part of something large last went over the link of a trip."""
        route = b"" if trip.link is None else trip.link.route
        return self._table.lanes.moved_s(route)

    def _mend(self, trip: Trip, link: Link, now_s: float) -> None:
        """Send a trip again that its peer does not name, if that one is heard."""
        link = self._cluster.reach(trip.target) or link
        if link.is_up and now_s - link.heard_s < HEARD_S:
            trip.link = link
            trip.named_s = now_s
            self._send_again(trip)
        elif link.is_up and now_s - link.asked_s >= HEARD_S:
            link.asked_s = now_s
            self._links.send(link, Ping(0))

    # -- what comes back ---------------------------------------------------------------

    def take_relayed(self, message: Relayed) -> None:
        """Take an answer to a trip, or a sign of life of several."""
        inner = opened(message)
        session_id = SessionId(bytes(message.session))
        if type(inner) is Beat:
            now_s = self._table.clock()
            for sequence in inner.sequences:
                named = self._trips.get((session_id, sequence))
                if named is not None:
                    named.named_s = now_s
                    if named.due_s:  # It is at it: a move waits for what runs.
                        named.due_s = max(named.due_s, now_s + ASK_S)
            session = self._table.sessions.get(session_id)
            if session is not None:
                self._table.tell(session, inner)
            return
        if type(inner) not in {Reply, Failure, Item}:
            raise RemoteProtocolError(
                f"a peer relays no {type(inner).__name__}", "Relayed"
            )
        trip = self._trips.get((session_id, inner[0]))  # type: ignore[arg-type]
        if trip is None:
            return
        if type(inner) is Item:
            self._take_item(trip, inner)
        elif (
            type(inner) is Failure and inner.code == MovedError.code and trip.object_id
        ):
            self._take_moved(trip, inner)
        else:
            self._finish(trip, inner)

    def _take_item(self, trip: Trip, item: Item) -> None:
        trip.named_s = self._table.clock()
        if trip.session is not None:
            self._table.tell(trip.session, item)
        else:
            self._table.step(
                events.AwayItem(
                    trip.call_id, item.number, bytes(item.body), item.buffers
                )
            )

    def _take_moved(self, trip: Trip, failure: Failure) -> None:
        error = error_from_wire(failure.code, _fields(failure))
        if not isinstance(error, MovedError) or len(error.peer_id) != len(trip.target):
            raise RemoteProtocolError("the fields of `moved` are malformed", "Failure")
        found = Place(PeerId(error.peer_id), error.epoch)
        known = self._location.place_of(trip.object_id)
        if known is not None and known.peer_id == trip.target:
            self._location.doubt(trip.object_id, known)
        if found.peer_id == self._table.settings.peer_id:
            self._come_home(trip)
            return
        self._location.hear(trip.object_id, found)
        trip.redirects += 1
        if trip.redirects > REDIRECTS_MAX:
            self._give_up(trip)
        else:
            self._go_on(trip)

    def _come_home(self, trip: Trip) -> None:
        """The object has moved here in the meantime, or its holder believes so."""
        if not self._location.is_here(trip.object_id):
            self._go_on(trip)  # Who said so knows no better; others may.
            return
        self._drop(trip)
        if trip.session is not None:
            self._table.receive(trip.session, trip.message)
        elif trip.then is not None:
            where = f"object {trip.object_id.hex()}"
            trip.then(None, UnavailableError(where, "it has just moved; ask again"))
        elif type(trip.message) in {Create, Persist}:
            # Nobody else makes an object of this id: it was made, then it moved here.
            self._table.step(events.AwayAnswered(trip.call_id, "", _NIL, ()))
        else:
            self._table.step(events.AwayReturned(trip.call_id))

    def _finish(self, trip: Trip, answer: Any) -> None:
        self._drop(trip)
        if trip.session is not None:
            self._table.tell(trip.session, answer)
        elif trip.then is not None:
            try:
                if type(answer) is Failure:
                    trip.then(None, error_from_wire(answer.code, _fields(answer)))
                else:
                    buffers = list(map(whole, answer.buffers))
                    trip.then(values.decode(answer.body, buffers), None)
            except RemoteProtocolError as error:
                trip.then(None, error)
        else:
            code = answer.code if type(answer) is Failure else ""
            self._table.step(
                events.AwayAnswered(
                    trip.call_id, code, bytes(answer.body), answer.buffers
                )
            )

    def _end(self, trip: Trip, error: ActiveStoreError) -> None:
        if (trip.session_id, trip.sequence) not in self._trips:
            return
        if trip.then is not None:
            self._drop(trip)
            trip.then(None, error)
            return
        error = in_doubt(trip.message, error, was_sent=bool(trip.target))
        body = values.encode_error(error)
        self._finish(trip, Failure(trip.sequence, error.code, None, body))

    def _drop(self, trip: Trip) -> None:
        self._trips.pop((trip.session_id, trip.sequence), None)
        if trip.call_id:
            self._away.pop(trip.call_id, None)

    # -- cancels and credit ------------------------------------------------------------

    def pass_on(self, session: Session, message: Cancel | Credit) -> None:
        """Pass a client's Cancel or Credit on, where its request is on a trip."""
        trip = self._trips.get((session.session_id, message.sequence))
        if trip is None:
            return
        if trip.link is not None:
            self._links.send(trip.link, _relay(trip.session_id, message))
        elif type(message) is Cancel:
            self._end(trip, CancelledError(f"object {trip.object_id.hex()}"))

    def stop(self, call_id: int) -> None:
        """Cancel a call of a method that is away; its answer is not wanted."""
        trip = self._away.get(call_id)
        if trip is None:
            return
        if trip.link is not None:
            self._links.send(trip.link, _relay(trip.session_id, Cancel(trip.sequence)))
        self._drop(trip)

    def ask_on(self, effect: effects.AskOn) -> None:
        """Ask the peer where a call is whom it waits for; it may be lost."""
        trip = self._away.get(effect.call_id)
        if trip is not None and trip.link is not None:
            question = AskOn(trip.sequence, *effect.waiter, effect.number, effect.hops)
            self._links.send(trip.link, question)

    def grant(self, effect: effects.GrantAway) -> None:
        """Let a stream that is away send more items."""
        trip = self._away.get(effect.call_id)
        if trip is not None and trip.link is not None:
            credit = Credit(trip.sequence, effect.items)
            self._links.send(trip.link, _relay(trip.session_id, credit))

    def end_session(self, session: Session) -> None:
        """Cancel what a client that is gone had on its way."""
        for trip in [t for t in self._trips.values() if t.session is session]:
            self.pass_on(session, Cancel(trip.sequence))
            self._drop(trip)

    # -- links and peers ---------------------------------------------------------------

    def _on_link_up(self, link: Link, is_again: bool) -> None:
        is_restarted = self._note_start(link)
        self._cluster.link_up(link)
        if is_restarted:
            # This link works; another to the same peer may take long to come back.
            for trip in [t for t in self._trips.values() if t.target == link.peer_id]:
                trip.link = link
                self._send_again(trip)
        elif is_again:
            for trip in self._by(link):
                self._send_again(trip)

    def _note_start(self, link: Link) -> bool:
        """End what methods of an earlier start of a peer have asked for, if it is one.

        Nobody takes the answers, and what is left of them may hold objects that the new
        start waits for: each would wait for the other.
        """
        before = self._starts.pop(link.peer_id, link.incarnation)
        self._starts[link.peer_id] = link.incarnation
        if len(self._starts) > STARTS_MAX:
            del self._starts[next(iter(self._starts))]
        if before != link.incarnation:
            self.on_restarted(SessionId(before))
        return before != link.incarnation

    def _on_link_lost(self, link: Link) -> None:
        self._cluster.link_lost(link)
        for trip in self._by(link):
            trip.link = None
            if not trip.object_id:
                self._end(trip, self._unreachable(trip, trip.target))
                continue
            trip.asked.clear()
            other = self._cluster.reach(trip.target)
            if other is not None:
                trip.link = other
                self._send_again(trip)
            else:
                self._go_on(trip)

    def lose_peer(self, peer_id: PeerId) -> None:
        """End what waits for a peer that is dead: whoever asked may ask again."""
        for trip in [t for t in self._trips.values() if t.target == peer_id]:
            self._end(trip, self._unreachable(trip, peer_id))

    def _by(self, link: Link) -> list[Trip]:
        return [trip for trip in self._trips.values() if trip.link is link]

    def __len__(self) -> int:
        return len(self._trips)

    def __iter__(self) -> Iterator[Trip]:
        return iter(self._trips.values())


def _relay(session_id: SessionId, message: Any) -> Relay:
    buffers: Sequence[Any] = message.buffers
    return Relay(session_id, 0, None, codec.encode(message), buffers)


def opened(message: Relay | Relayed) -> Message:
    """Return the message that travels in another.

    Raises:
        RemoteProtocolError: it is not exactly one record.
    """
    body: Buffer = message.body
    found = codec.decode_frame(body)
    if len(found) != 1:
        raise RemoteProtocolError(f"{len(found)} records, expected one", "Relay")
    inner = found[0]
    return inner._replace(buffers=message.buffers) if message.buffers else inner


def _fields(failure: Failure) -> tuple[Any, ...]:
    found = values.decode(failure.body)
    return tuple(found) if type(found) is list else ()
