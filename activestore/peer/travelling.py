"""Trips under way: numbered, sent, sent again, cancelled, and ended.

A *trip* is a request that is answered at another peer. It travels in Relay, its answer
in Relayed, under the session and the number with which it was made.

Rules of this file: where a trip goes is decided by `relays`; a stream is not sent again;
whoever asks hears an end of it, always.

Source: design section 7; schemas/protocol.md section 10.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from activestore.core import effects, events
from activestore.core.calls import Client
from activestore.core.location import Place
from activestore.errors import (
    ActiveStoreError,
    CancelledError,
    MovedError,
    RemoteProtocolError,
    UnavailableError,
    error_from_wire,
)
from activestore.ids import PEER_ID_BYTES, ObjectId, PeerId, SessionId
from activestore.peer.doubts import in_doubt
from activestore.peer.dues import Dues, Key
from activestore.peer.links import Link, Links
from activestore.peer.routing import Routing, why_leaderless
from activestore.peer.table import Session, Table
from activestore.peer.trips import UNHEARD_S, Trip, Wait
from activestore.wire import codec, values
from activestore.wire.gossip import OTHERS_MAX
from activestore.wire.messages import (
    AskOn,
    Beat,
    Buffer,
    Cancel,
    Credit,
    Failure,
    Message,
    Ping,
    Relay,
    Relayed,
    Reply,
    whole,
)

# How often a client is told of a request that is long on its way, or its answer is.
BEAT_S = 2.0
# Streams that were cancelled and may run on elsewhere. Of one that is forgotten, and whose
# Cancel was lost with a link, the object is held until its peer loses that link too.
CANCELLED_MAX = 4096


class Travelling:
    """The trips of one peer, wherever they are."""

    def __init__(self, table: Table, links: Links, routing: Routing) -> None:
        self._table = table
        self._links = links
        self.routing = routing
        self._trips: dict[tuple[SessionId, int], Trip] = {}
        self._away: dict[int, Trip] = {}
        self._next_sequence = 1
        # Requests that were relayed here, and wait for a leader.
        self._waits: dict[int, Wait] = {}
        # Streams that were cancelled, and whose peer has not said yet that they ended.
        self._cancelled: dict[tuple[SessionId, int], None] = {}
        self._dues = Dues(table.look_by)

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

    def _send(self, trip: Trip) -> None:
        link = trip.link
        trip.is_here = False
        if link is not None:
            trip.is_sent = True
            message = trip.in_time(self._table.clock())
            self._links.send(link, relay_of(trip.session_id, message))
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
        trip.is_again = False
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

    def _tell_moving(self, now_s: float) -> None:
        """Tell clients of what is large and gets on: its peer cannot name it now."""
        moving: dict[Session, list[int]] = {}
        for trip in self._trips.values():
            if trip.session and self._moved_s(trip) - trip.named_s >= BEAT_S:
                trip.named_s = now_s
                moving.setdefault(trip.session, []).append(trip.sequence)
        for session, sequences in moving.items():
            self._table.beat(session, sequences)

    def _tell_unheard(self, now_s: float) -> None:
        """Tell clients once of what nobody has who is heard: others may reach who leads."""
        told: dict[tuple[Session, int], list[int]] = {}
        for trip in self._trips.values():
            if trip.session is None or trip.is_told or trip.is_stream:
                continue
            if now_s - trip.began_s >= UNHEARD_S and self._is_unheard(trip, now_s):
                trip.is_told = True
                key = trip.session, self.routing.unled_at(trip.object_id)
                told.setdefault(key, []).append(trip.sequence)
        for wait in self._waits.values():
            if now_s - wait.began_s >= UNHEARD_S and not wait.is_told:
                wait.is_told = True
                key = wait.session, self.routing.unled_at(wait.object_id)
                told.setdefault(key, []).append(wait.message.sequence)
        for (session, unled), sequences in told.items():
            self._table.beat(session, sequences, is_unheard=True, unled=unled)

    def _is_unheard(self, trip: Trip, now_s: float) -> bool:
        """Whether nobody has a trip who gives signs of life when asked for them."""
        link = trip.link
        if link is None:
            return True
        link = self._links.best(trip.target) or link
        silent_s = now_s - max(link.heard_s, self._moved_s(trip))
        asked_s = now_s - link.unanswered_s
        if link.is_up and asked_s >= silent_s >= trip.patience_s / 2:
            link.unanswered_s, asked_s = now_s, 0.0
            self._links.send(link, Ping(0))
        is_in_vain = silent_s > asked_s >= trip.answering_s
        return not link.is_up or (is_in_vain and silent_s >= trip.patience_s)

    def _pass_on_result(self, session_id: SessionId, inner: Any) -> None:
        """Tell a client what it asked by another peer, whose link was lost."""
        session = self._table.sessions.get(session_id)
        if type(inner) is Reply and session is not None and not session.is_relayed:
            self._table.tell(session, inner)

    def _deadlines(self, now_s: float) -> Iterator[tuple[float, Key]]:
        for key, trip in self._trips.items():
            yield trip.next_look_s(now_s), key
        for number, wait in self._waits.items():
            yield wait.told_s, number

    def _add_due(self, trip: Trip, now_s: float) -> None:
        """Have a trip looked at in time: once more for each look, most end before the first."""
        self._dues.add(trip.next_look_s(now_s), (trip.session_id, trip.sequence))

    def look_at_due(self, now_s: float) -> None:
        """Refuse those whose deadline has come since all were looked at."""
        for key in self._dues.take(now_s):
            if isinstance(key, int):
                wait = self._waits.pop(key, None)
                if wait is not None:
                    self._refuse(wait, self._why_leaderless(wait))
                continue
            trip = self._trips.get(key)
            if trip is None or not trip.until_s:
                continue
            if self._is_late(trip, now_s):
                self._end(trip, self._why_leaderless(trip))
            else:
                self._add_due(trip, now_s)

    def _why_leaderless(self, one: Trip | Wait) -> ActiveStoreError:
        return why_leaderless(one, self._table.core.why_each(one.object_id))

    @property
    def has_deadlines(self) -> bool:
        """Whether it must be looked in time, though there is no link to look at."""
        return bool(self._waits or self._trips)

    def _is_late(self, trip: Trip, now_s: float) -> bool:
        """Whether a request for what others have copies of ends here, at its deadline.

        Who has it says so itself, if it is there.
        """
        is_soon = now_s >= trip.told_s - UNHEARD_S
        if trip.is_here or not (is_soon and self.routing.has_others(trip.object_id)):
            return False
        return self._is_unheard(trip, now_s) and now_s >= trip.told_s

    def _refuse(self, wait: Wait, error: ActiveStoreError) -> None:
        """End a request that waited for a leader."""
        session, sequence = wait.session, wait.message.sequence
        if session.session_id in self._table.sessions:
            body = values.encode_error(error)
            self._table.tell(session, Failure(sequence, error.code, None, body))

    def _moved_s(self, trip: Trip) -> float:
        """Return when a part of something large last went over the link of a trip."""
        route = b"" if trip.link is None else trip.link.route
        return self._table.lanes.moved_s(route)

    def _finish(self, trip: Trip, answer: Any) -> None:
        self._drop(trip)
        if trip.session is not None:
            self._table.tell(trip.session, answer)
        elif trip.then is not None:
            try:
                if type(answer) is Failure:
                    trip.then(None, error_from_wire(answer.code, fields_of(answer)))
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
        if trip.is_stream:
            self._cancel(trip)  # Else it waits there for credit, and holds its object.
        error = in_doubt(trip.message, error, was_sent=trip.is_sent)
        body = values.encode_error(error)
        self._finish(trip, Failure(trip.sequence, error.code, None, body))

    def _ask_here(self, trip: Trip) -> None:
        """Ask this peer, which has the object now, for what others may have answered.

        It is done as for any other peer: its answer is looked up, and kept.
        """
        trip.target, trip.link = PeerId(b""), None
        trip.is_here = True
        trip.attempt += 1
        message = trip.in_time(self._table.clock())._replace(attempt=trip.attempt)
        self._table.receive(self._table.session_here(trip.session_id), message)

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
            self._links.send(trip.link, relay_of(trip.session_id, message))
        elif type(message) is Cancel:
            self._end(trip, CancelledError(f"object {trip.object_id.hex()}"))

    def stop(self, call_id: int) -> None:
        """Cancel a call of a method that is away; its answer is not wanted."""
        trip = self._away.get(call_id)
        if trip is None:
            return
        self._cancel(trip)
        self._drop(trip)
        if trip.is_here:
            here = self._table.session_here(trip.session_id)
            self._table.receive(here, Cancel(trip.sequence))

    def ask_on(self, effect: effects.AskOn) -> None:
        """Ask the peer where a call is whom it waits for; it may be lost."""
        trip = self._away.get(effect.call_id)
        if trip is not None and trip.is_here:
            asked = Client(trip.session_id, trip.sequence)
            self._table.step(
                events.RingAsked(asked, effect.waiter, effect.number, effect.hops)
            )
        elif trip is not None and trip.link is not None:
            question = AskOn(trip.sequence, *effect.waiter, effect.number, effect.hops)
            self._links.send(trip.link, question)

    def grant(self, effect: effects.GrantAway) -> None:
        """Let a stream that is away send more items."""
        trip = self._away.get(effect.call_id)
        if trip is not None and trip.link is not None:
            credit = Credit(trip.sequence, effect.items)
            self._links.send(trip.link, relay_of(trip.session_id, credit))

    def _cancel(self, trip: Trip) -> None:
        """Have a request end where it is; a stream by and by, where this Cancel is lost."""
        if trip.is_stream:
            self._cancelled[trip.session_id, trip.sequence] = None
            if len(self._cancelled) > CANCELLED_MAX:
                del self._cancelled[next(iter(self._cancelled))]
        if trip.link is not None:
            cancel = Cancel(trip.sequence)
            self._links.send(trip.link, relay_of(trip.session_id, cancel))

    def _cancel_again(self, link: Link, session_id: SessionId, beat: Beat) -> None:
        """Cancel the streams that a peer has still, and nobody here reads any more."""
        for sequence in beat.sequences:
            if (session_id, sequence) in self._cancelled:
                self._links.send(link, relay_of(session_id, Cancel(sequence)))

    def end_session(self, session: Session) -> None:
        """Cancel what a client that is gone had on its way."""
        self._end_trips(session, is_gone=True)

    def end_streams(self, session: Session) -> None:
        """Cancel the streams of a client that may come back: they are not resumed."""
        self._end_trips(session, is_gone=False)

    def _end_trips(self, session: Session, *, is_gone: bool) -> None:
        for trip in [t for t in self._trips.values() if t.session is session]:
            if is_gone or trip.is_stream:
                self._cancel(trip)
                self._drop(trip)

    def _by(self, link: Link) -> list[Trip]:
        return [trip for trip in self._trips.values() if trip.link is link]

    def __len__(self) -> int:
        return len(self._trips)

    def __iter__(self) -> Iterator[Trip]:
        return iter(self._trips.values())


def relay_of(session_id: SessionId, message: Any) -> Relay:
    """Return the message in which that of a session travels."""
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


def fields_of(failure: Failure) -> tuple[Any, ...]:
    """Return the fields of the error that a Failure carries."""
    found = values.decode(failure.body)
    return tuple(found) if type(found) is list else ()


def place_in(failure: Failure) -> tuple[Place, bool]:
    """Return where `moved` says that an object is, and whether the request may have run.

    Raises:
        RemoteProtocolError: its fields are malformed.
    """
    error = error_from_wire(failure.code, fields_of(failure))
    if isinstance(error, MovedError) and type(error.others) in {list, tuple}:
        ids = [error.peer_id, *error.others]
        are_ids = all(type(one) is bytes and len(one) == PEER_ID_BYTES for one in ids)
        if are_ids and {type(error.epoch), type(error.group_version)} == {int}:
            leader, *others = map(PeerId, ids)
            place = Place(
                leader, error.epoch, tuple(others[:OTHERS_MAX]), error.group_version
            )
            return place, error.is_doubtful is True
    raise RemoteProtocolError("the fields of `moved` are malformed", "Failure")
