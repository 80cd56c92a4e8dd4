"""Requests that are answered at another peer: of clients, of methods, and of our own.

A *trip* is one such request on its way. It carries the session and the number under
which it was made, so that the peer of the object answers it once however often, and by
whichever way, it is asked.

    forward | depart | ask -> Relay -> (moved -> Relay ...) -> Relayed -> answered
    link lost, or its end restarted: sent again with the next attempt
    the leader of a group may be gone: sent to another member, and the old one may answer
    nobody leads a copy that is here: it waits until somebody does, or it is refused

Rules of this file: a request that was relayed to us is never relayed on; a stream is not
sent again; whoever asks hears an end of it, always.

Source: design section 7; reliability.md 2.2; schemas/protocol.md section 10.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from activestore.core import effects, events
from activestore.core.location import Place
from activestore.errors import (
    ActiveStoreError,
    MovedError,
    NoQuorumError,
    RemoteProtocolError,
    UnavailableError,
)
from activestore.ids import ObjectId, PeerId, SessionId
from activestore.peer import extras
from activestore.peer.cluster import Cluster
from activestore.peer.extras import NOT_SAID
from activestore.peer.links import LOOK_S, Link, Links
from activestore.peer.routing import Routing
from activestore.peer.table import Session, Table
from activestore.peer.travelling import Travelling, opened, place_in
from activestore.peer.trips import Question, Then, Trip, Wait, asked_before, with_unled
from activestore.wire import values
from activestore.wire.messages import (
    Beat,
    Call,
    Create,
    Delete,
    Failure,
    Item,
    Message,
    Persist,
    Ping,
    Relayed,
    Reply,
    Request,
)

# Redirects that one request follows before it is given up.
REDIRECTS_MAX = 3
# Peers whose last start is remembered.
STARTS_MAX = 4096
# So long a question is asked again of peers that name each other.
REST_S = 2.0
# So long members of a group are asked again while nobody is found to lead it: a take-over
# takes seconds, and a client that set no bound gives up after as long a silence.
LEADERLESS_S = 30.0
# How long a question of our own may stay unanswered and unnamed, in seconds.
ASK_S = 10.0
# A peer names in a beat every 2 s what it has not answered. What it has not named in
# three of them it never got, or its answer was lost with one of several links.
UNNAMED_S = 7.0
# A peer that was heard so lately would have named it. Others are asked for a sign.
HEARD_S = 2.0

_NIL = b"\xc0"

# Called once somebody leads an object, or with why nobody can.
Decided = Callable[[ActiveStoreError | None], None]


class Relays(Travelling):
    """All trips of one peer, and where they go."""

    def __init__(self, table: Table, links: Links, cluster: Cluster) -> None:
        me = PeerId(table.settings.peer_id)
        super().__init__(table, links, Routing(cluster, me))
        self._cluster = cluster
        self._location = cluster.location
        # The last start that was seen of each peer; its methods' calls carry it.
        self._starts: dict[PeerId, bytes] = {}
        # Called with the session of a start that is over.
        self.on_restarted: Callable[[SessionId], None] = lambda session_id: None
        # Looks for an object everywhere; False where that is not done now.
        self.search: Callable[[ObjectId, Callable[[], None]], bool] = (
            lambda object_id, then: False
        )
        # Has somebody lead an object of which a copy is here, and calls back when
        # somebody does, or with why nobody can; False where that is nobody's task.
        self.replicas_wanted: Callable[[ObjectId, Decided], bool] = (
            lambda object_id, then: False
        )
        self._next_wait = 1
        table.answered_here = self._take
        links.on_up = self._on_link_up
        links.on_lost = self._on_link_lost
        # It is probed at once: others may take over what it is asked for.
        links.on_silent = cluster.link_lost

    # -- beginning ---------------------------------------------------------------------

    def forward(self, session: Session, message: Any, object_id: ObjectId) -> None:
        """See to a client's request for an object that is not here."""
        self.routing.note_unled(object_id, extras.unled(message.extra))
        if message.attempt and self.routing.has_others(object_id):
            self._look_at_leader(object_id)
        if session.is_relayed:
            if not self._wait_for_leader(session, message, object_id):
                self._table.tell(session, self._redirect(message, object_id))
            return
        known = self._trips.get((session.session_id, message.sequence))
        if known is not None:
            known.message = message  # The client asks again: so do we.
            known.attempt = max(known.attempt, message.attempt)
            self._send(known)
            return
        extra = message.extra or {}
        if session.can_follow and extra.get("direct", True):
            place = self.routing.first_place(object_id)
            is_here = self.routing.is_leaderless(object_id)
            if place and not is_here and self._cluster.endpoint_of(place.peer_id):
                self._table.tell(session, self._redirect(message, object_id, place))
                return
        trip = Trip(session.session_id, message, object_id, self._table.clock())
        trip.session = session
        self._trips[trip.session_id, trip.sequence] = trip
        self._add_due(trip, trip.began_s)
        self._go_on(trip)

    def _look_at_leader(self, object_id: ObjectId) -> None:
        """See whether a leader is there: somebody has asked it and heard nothing."""
        place = self._location.place_of(object_id)
        if place is not None:
            self._cluster.look_at(place.peer_id)

    def _redirect(
        self, message: Any, object_id: ObjectId, place: Place | None = None
    ) -> Failure:
        """Return the answer to a request that came to the wrong peer."""
        # A later attempt may be of a call that ran, under a leader that was deposed.
        error = self.routing.moved(object_id, place, is_doubtful=message.attempt > 0)
        body = values.encode_error(error)
        return Failure(message.sequence, error.code, None, body)

    def _wait_for_leader(
        self, session: Session, message: Any, object_id: ObjectId
    ) -> bool:
        """Keep a request that was relayed to a copy until somebody leads its object."""
        if not self.routing.is_leaderless(object_id):
            return False
        now_s = self._table.clock()
        number, self._next_wait = self._next_wait, self._next_wait + 1
        wait = Wait(session, message, object_id, now_s)

        def decided(error: ActiveStoreError | None) -> None:
            if self._waits.pop(number, None) is None:
                return  # It was refused at its deadline.
            if error is None and session.session_id in self._table.sessions:
                self._receive_again(session, wait)
            elif error is not None:
                self._refuse(wait, error)

        self._waits[number] = wait
        if not self.replicas_wanted(object_id, decided):
            del self._waits[number]
            return False
        self._dues.add(wait.told_s, number)
        return True

    def _receive_again(self, session: Session, one: Question) -> None:
        """Take a request that has waited here: its client may have the answer by now.

        It is looked up, and what it tells is no word of who leads now. Whoever is said to
        lead in vain has been asked.
        """
        self.routing.forget_unled(one.object_id)
        left = with_unled(one.in_time(self._table.clock()), NOT_SAID)
        self._table.receive(session, asked_before(left))
        session.doubt()

    def depart(self, effect: effects.SendAway) -> None:
        """Send a call of a method to the peer of its object."""
        call = effect.call
        extra: dict[str, Any] = {"depth": effect.depth}
        if effect.chain:
            extra["chain"] = [list(mark) for mark in effect.chain]
            extra["began_ms"] = effect.began_ms
        if call.fence is not None:
            extra["fence"] = list(call.fence)
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
        self._add_due(trip, trip.began_s)
        self._go_on(trip)

    def ask(
        self, peer_id: PeerId, operation: str, parameters: dict[str, Any], then: Then, *,
        wait_s: float = ASK_S,
    ) -> None:  # fmt: skip
        """Ask another peer for an operation; `then(answer, error)` is called once."""
        try:
            body, buffers = values.encode(parameters)
        except ActiveStoreError as error:
            then(None, error)  # Nothing was asked, and whoever asks goes on.
            return
        message = Request(self._next_sequence, operation, None, body, buffers)
        trip = self._own_trip(message, ObjectId(b""))
        trip.then = then
        trip.due_s = trip.began_s + wait_s
        link = self._cluster.reach(peer_id)
        if link is None:
            self._end(trip, self.routing.unreachable(trip, peer_id))
            return
        trip.target, trip.link = peer_id, link
        self._send(trip)

    def ask_about(
        self, object_id: ObjectId, operation: str, parameters: dict[str, Any], then: Then,
        is_relayed: bool, again: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """Ask the peer of an object; one that was asked so itself says where to ask.

        `again`: has the question answered here, where the object has come here meanwhile.
        """
        if is_relayed:

            def decided(error: ActiveStoreError | None) -> None:
                if error is None and again is not None:
                    again()
                else:
                    then(None, error or self.routing.moved(object_id))

            is_leaderless = self.routing.is_leaderless(object_id)
            if not (is_leaderless and self.replicas_wanted(object_id, decided)):
                then(None, self.routing.moved(object_id))
            return
        body, buffers = values.encode(parameters)
        message = Request(self._next_sequence, operation, None, body, buffers)
        trip = self._own_trip(message, object_id)
        trip.then, trip.again = then, again
        trip.due_s = trip.began_s + ASK_S
        self._go_on(trip)

    # -- on the way --------------------------------------------------------------------

    def _go_on(self, trip: Trip) -> None:
        """Send a trip to the next peer that may hold its object, or give it up."""
        if self._location.is_here(trip.object_id):
            self._come_home(trip)
            return
        if self.routing.is_leaderless(trip.object_id) and self._park(trip):
            return
        found = self.routing.next_for(trip)
        if found is not None:
            trip.target, trip.link = found
            if trip.is_again:
                self._send_next(trip)
            else:
                self._send(trip)
            return
        trip.target, trip.link = PeerId(b""), None
        if self.routing.has_others(trip.object_id) or not self.search(
            trip.object_id, lambda: self._searched(trip)
        ):
            self._give_up(trip)

    def _park(self, trip: Trip) -> bool:
        """Keep a trip while nobody leads its object, of which a copy is here."""
        if trip.is_parked:
            return True

        def decided(error: ActiveStoreError | None) -> None:
            trip.is_parked = False
            if (trip.session_id, trip.sequence) not in self._trips:
                return
            if error is not None:
                self._end(trip, error)
            else:
                trip.asked.clear()
                self.routing.forget_unled(trip.object_id)
                self._go_on(trip)

        trip.is_parked = True
        trip.target, trip.link = PeerId(b""), None
        trip.is_parked = self.replicas_wanted(trip.object_id, decided)
        return trip.is_parked

    def _give_up(self, trip: Trip) -> None:
        """End a trip for which nobody is left to ask; a question rests first.

        Between two peers that move an object each names the other for a moment. A call
        waits there for the copy to become the object, a question does not. Members of a
        group name each other, or who is gone, until one of them has taken over.
        """
        place = self._location.place_of(trip.object_id)
        is_between = place is not None and place.peer_id in trip.asked
        rested_s = self._table.clock() - trip.began_s
        if self.routing.has_others(trip.object_id):
            may_rest = rested_s <= LEADERLESS_S and not (
                trip.due_s and self.routing.are_all_gone(trip.object_id)
            )
        else:
            is_asked = bool(trip.due_s and trip.redirects)
            # Who had it knows of nobody now: it goes on to another peer at this moment.
            trip.is_going |= any(trip.asked.values()) and not trip.is_stream
            may_rest = (is_asked and is_between) or trip.is_going
            may_rest = may_rest and rested_s <= REST_S
        if not may_rest:
            self._end(trip, self.routing.why_lost(trip))
            return
        trip.target, trip.link = PeerId(b""), None
        trip.is_resting = True
        trip.redirects = 0
        self.routing.forget_unled(trip.object_id)
        trip.asked.clear()

    def _pass_by(self, trip: Trip) -> None:
        """Ask another member of a group than one that may be gone; it may still answer."""
        trip.passed.add(trip.target)
        trip.asked.clear()
        trip.is_again = True
        self._go_on(trip)

    def _may_pass_by(self, trip: Trip) -> bool:
        return bool(
            trip.object_id
            and not trip.is_stream
            and self.routing.has_others(trip.object_id)
        )

    def heard(self, object_id: ObjectId) -> None:
        """Something newer was heard of an object: what rests goes on."""
        for trip in list(self._trips.values()):
            if trip.is_resting and trip.object_id == object_id:
                trip.is_resting = False
                self._go_on(trip)

    def peer_seen(self, peer_id: PeerId, is_answering: bool) -> None:
        """Pass a suspect by where another peer can take over what was asked of it."""
        if is_answering:
            return
        for trip in [t for t in self._trips.values() if t.target == peer_id]:
            if self._may_pass_by(trip):
                self._pass_by(trip)

    def _searched(self, trip: Trip) -> None:
        """Send a trip on with what was found; where nothing was, that ends it."""
        if (trip.session_id, trip.sequence) in self._trips and trip.link is None:
            self._go_on(trip)

    def look(self, now_s: float) -> None:
        """End the questions that were not answered in time, and mend what was lost."""
        for trip in list(self._trips.values()):
            moved_s = self._moved_s(trip)
            if trip.until_s and self._is_late(trip, now_s):
                self._end(trip, self._why_leaderless(trip))
            elif trip.due_s and max(trip.due_s, moved_s + ASK_S) <= now_s:
                # What is large may take its time while it gets on.
                self._end(trip, self._why_late(trip))
            elif trip.is_resting:
                trip.is_resting = False
                self._go_on(trip)
            elif trip.due_s or trip.link is None:
                continue
            elif now_s - max(trip.named_s, moved_s) >= UNNAMED_S:
                self._mend(trip, trip.link, now_s)
        self._tell_moving(now_s)
        self._tell_unheard(now_s)
        self._dues.begin(now_s + LOOK_S, self._deadlines(now_s))
        self.look_at_due(now_s)

    def _why_late(self, trip: Trip) -> ActiveStoreError:
        if trip.target:
            return self.routing.unreachable(trip, trip.target)
        return self.routing.why_lost(trip)

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

    def take_relayed(self, link: Link, message: Relayed) -> None:
        """Take an answer to a trip, or a sign of life of several."""
        session_id, inner = SessionId(bytes(message.session)), opened(message)
        if self._cancelled and type(inner) is Beat:
            self._cancel_again(link, session_id, inner)
        elif self._cancelled and type(inner) in {Reply, Failure}:
            self._cancelled.pop((session_id, inner[0]), None)  # type: ignore[arg-type]
        self._take(session_id, inner)

    def _take(self, session_id: SessionId, inner: Message) -> None:
        if type(inner) is Beat:
            self._take_beat(session_id, inner)
            return
        if type(inner) not in {Reply, Failure, Item}:
            raise RemoteProtocolError(
                f"a peer relays no {type(inner).__name__}", "Relayed"
            )
        trip = self._trips.get((session_id, inner[0]))  # type: ignore[arg-type]
        if trip is None:
            self._pass_on_result(session_id, inner)
            return
        if type(inner) is Item:
            self._take_item(trip, inner)
        elif type(inner) is Failure and trip.object_id:
            self._take_failure(trip, inner)
        else:
            self._finish(trip, inner)

    def _take_beat(self, session_id: SessionId, beat: Beat) -> None:
        """Note that trips are under way; who leads in vain is not waited for."""
        now_s, unled = self._table.clock(), extras.unled(beat.extra)
        for sequence in beat.sequences:
            trip = self._trips.get((session_id, sequence))
            if trip is None:
                continue
            trip.named_s = now_s
            if trip.due_s:  # It is at it: a move waits for what runs.
                trip.due_s = max(trip.due_s, now_s + ASK_S)
            is_by_target = unled.epoch and unled.peer_id == trip.target
            if is_by_target and self._may_pass_by(trip):
                trip.message = with_unled(trip.message, unled)
                self.routing.note_unled(trip.object_id, unled)
                self._pass_by(trip)
        session = self._table.sessions.get(session_id)
        if session is not None and session_id != self._links.session_id:
            self._table.tell(session, beat)

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

    def _take_failure(self, trip: Trip, failure: Failure) -> None:
        """Take the refusal of a request for an object: it may be asked elsewhere."""
        if failure.code == MovedError.code:
            self._take_moved(trip, failure)
        elif failure.code == NoQuorumError.code and self._has_news(trip):
            trip.is_again = True  # It may have been accepted, and then outvoted.
            self._go_on(trip)
        else:
            self._finish(trip, failure)

    def _has_news(self, trip: Trip) -> bool:
        """Whether a newer leader than was asked is known by now."""
        place = self._location.place_of(trip.object_id)
        if place is None or trip.is_stream:
            return False
        if trip.due_s and not self._cluster.is_answering(place.peer_id):
            return False  # A question is told what is known; nothing is in doubt.
        return bool(place.others) and trip.asked.get(place.peer_id, -1) < place.epoch

    def _take_moved(self, trip: Trip, failure: Failure) -> None:
        found, is_doubtful = place_in(failure)
        trip.is_again = trip.is_again or is_doubtful
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
            # Who said so knows no better; others may. It was here, then, until just now.
            trip.is_going = not trip.is_stream
            self._go_on(trip)
            return
        is_call = trip.call_id and type(trip.message) in {Call, Delete}
        if is_call and trip.is_sent and not trip.is_stream:
            self._ask_here(trip)
            return
        self._drop(trip)
        if trip.session is not None:
            self._receive_again(trip.session, trip)
        elif trip.again is not None:
            trip.again()
        elif trip.then is not None:
            where = f"object {trip.object_id.hex()}"
            trip.then(None, UnavailableError(where, "it has just moved; ask again"))
        elif type(trip.message) in {Create, Persist}:
            # Nobody else makes an object of this id: it was made, then it moved here.
            self._table.step(events.AwayAnswered(trip.call_id, "", _NIL, ()))
        else:
            self._table.step(events.AwayReturned(trip.call_id))

    # -- links and peers ---------------------------------------------------------------

    def _on_link_up(self, link: Link, is_again: bool) -> None:
        is_restarted = self._note_start(link)
        self._cluster.link_up(link)
        if is_restarted:
            for one in self._links.to(link.peer_id):
                self._table.end_streams_by(one.route)
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
                self._end(trip, self.routing.unreachable(trip, trip.target))
                continue
            if self._may_pass_by(trip):
                self._pass_by(trip)
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
            if self._may_pass_by(trip):
                self._pass_by(trip)
            else:
                self._end(trip, self.routing.unreachable(trip, peer_id))
