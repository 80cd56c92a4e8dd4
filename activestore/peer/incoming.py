"""What comes from other processes: frames to messages, messages to the core's events.

Rules of this file: a frame that is malformed costs its sender an answer and nobody else
anything; a message before Hello is refused.

Source: schemas/protocol.md; design section 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from activestore.core import events
from activestore.core.calls import Client, Kind, Nested, Waiter
from activestore.core.fences import Fence
from activestore.core.location import Location
from activestore.errors import (
    RemoteProtocolError,
)
from activestore.ids import (
    ObjectId,
    SessionId,
)
from activestore.peer import chunking, extras, greeting, travelling
from activestore.peer.cluster import Cluster
from activestore.peer.fetching import Fetching
from activestore.peer.links import Link, Links
from activestore.peer.making import Making
from activestore.peer.moving import Moving
from activestore.peer.naming import Naming
from activestore.peer.reading import STALENESS, Reading
from activestore.peer.relays import Relays
from activestore.peer.replicating import Replicating
from activestore.peer.table import Session
from activestore.peer.trips import asked_before
from activestore.wire import codec
from activestore.wire.chunks import CHUNKS
from activestore.wire.limits import (
    FRAME_BYTES_MAX,
)
from activestore.wire.messages import (
    Ack,
    AskOn,
    Buffer,
    Bye,
    Call,
    Cancel,
    Chunk,
    Create,
    Credit,
    Delete,
    Gossip,
    Hello,
    Message,
    Nack,
    Persist,
    Ping,
    Pong,
    Probe,
    ProbeFor,
    Refused,
    Relay,
    Relayed,
    Replicate,
    Request,
    Sync,
    Synced,
    Taken,
    Welcome,
)

# Sessions known at once; beyond it the idle one that was silent longest goes.
SESSIONS_MAX = 16_384

# Of a start's number, in a question that goes round: it is kept for a while.
MARK_BYTES_MAX = 16

_KINDS = (Kind.CALL, Kind.GET, Kind.SET)
# What leaves with a method's request that is no call.
_LEAVING = {
    Create: (Kind.CREATE, "__init__"),
    Persist: (Kind.CREATE, "persist"),
    Delete: (Kind.DELETE, "delete"),
}
_OF_PEERS = frozenset(
    {Probe, ProbeFor, Gossip, Sync, Ack, Nack, Synced, Relay, Relayed, AskOn, Replicate}
)
# What a link's own end may say, whoever dialled; all else is of sessions.
_OF_LINKS = _OF_PEERS | {Welcome, Refused, Pong}


class Incoming(Making):
    """Handlers of messages from clients and of requests of running methods."""

    _messages: dict[type, Callable[[Session, Any], None]]
    location: Location
    links: Links
    cluster: Cluster
    relays: Relays
    moving: Moving
    fetching: Fetching
    naming: Naming
    replicating: Replicating
    reading: Reading

    def _take_frames(  # noqa: C901 - who may say what, kind by kind
        self, route: bytes, frames: Sequence[Buffer]
    ) -> None:
        try:
            messages = codec.decode_frames(frames)
        except RemoteProtocolError as error:
            greeting.sent_garbage(self, self.links, route, str(error))
            self.transport.send(route, Refused(error.code, str(error)[:1000]))
            return
        session = self.routes.get(route)
        if session is not None:
            session.heard_s = self._now_s
            session.route = route  # It may have been heard by another way meanwhile.
            session.is_relayed = session.is_peer
            if session.behind:
                session.came_directly(messages)
        link = self.links.by_route.get(route)
        if link is not None:
            link.heard_s = self._now_s
        for message in messages:
            kind = type(message)
            if link is not None and kind in _OF_LINKS:
                self._take_from_peer(link, message)
                continue
            handler = self._messages.get(kind)
            if handler is not None and session is not None:
                handler(session, message)
            elif kind is Hello:
                session = self._on_hello(route, message)
                link = self.links.by_route.get(route)  # Behind it may be a first probe.
            elif kind is Chunk or kind is Taken:
                whole = chunking.take(self, self.links, route, message)
                if whole:
                    self._take_frames(route, whole)
            else:
                self._answer_early(route, message, link, is_known=session is not None)

    def _answer_early(
        self, route: bytes, message: Any, link: Link | None, *, is_known: bool
    ) -> None:
        """Answer what needs no session, or refuse what does."""
        kind = type(message)
        answer: Message
        if kind is Ping:
            extra = None if link is None else {"wall_s": self.wall_clock()}
            answer = Pong(message[0], self.settings.incarnation, is_known, extra)
        elif kind in self._messages or kind in _OF_PEERS:
            answer = Refused("hello_needed", f"{kind.__name__} before Hello")
        else:
            answer = Refused("remote_protocol", f"a peer takes no {kind.__name__}")
        self.transport.send(route, answer)

    def _take_from_peer(self, link: Link, message: Any) -> None:
        """Take what peers say to each other; it costs a peer that lies only its link."""
        try:
            kind = type(message)
            if kind is Relay:
                self._on_relay(link, message)
            elif kind is Relayed:
                self.relays.take_relayed(link, message)
            elif kind is Replicate:
                self.replicating.take(link, message)
            elif kind is AskOn:
                self._on_ask_on(link, message)
            elif kind in _OF_PEERS:
                self.cluster.take(link, message)
            else:
                self.links.take(link, message)
        except RemoteProtocolError as error:
            greeting.sent_garbage(self, self.links, link.route, str(error))

    def _on_relay(self, link: Link, message: Relay) -> None:
        """Take a message of a session that is behind another peer."""
        inner = travelling.opened(message)
        handler = self._messages.get(type(inner))
        if handler is None:
            raise RemoteProtocolError(
                f"a peer takes no {type(inner).__name__} by Relay", "Relay"
            )
        session_id = SessionId(bytes(message.session))
        session = self.sessions.get(session_id)
        if session is None:
            session = self.add_session(session_id, link.route, f"by {link.name}")
            session.is_relayed = True
        session.heard_s = self._now_s
        # Calls of a peer's own methods travel under the number of its start.
        session.is_peer = session.is_peer or session_id == link.incarnation
        if not session.is_peer:
            if session.route != link.route:
                # What stood still on this way may have come by the other.
                session.doubt()
            session.came_behind(link.route, inner)
            inner = asked_before(inner)
        session.route = link.route
        session.is_relayed = True
        handler(session, inner)

    def _on_ask_on(self, link: Link, message: AskOn) -> None:
        """Take a question after a call that a method of that peer has made."""
        waiter = Waiter(message.began_ms, bytes(message.mark), message.waiter)
        if len(waiter.mark) > MARK_BYTES_MAX:
            raise RemoteProtocolError(f"a mark over {MARK_BYTES_MAX} bytes", "AskOn")
        asked = Client(SessionId(link.incarnation), message.sequence)
        self.step(events.RingAsked(asked, waiter, message.number, message.hops))

    def _on_hello(self, route: bytes, message: Any) -> Session | None:
        version, why = greeting.version_for(message)
        if why:
            greeting.turned_away(self, self.links, message, why)
            self.transport.send(route, Refused("version", why))
            return None
        session_id = SessionId(message.session)
        session = self.sessions.get(session_id)
        before = self.routes.get(route)
        if before is not None and before is not session:
            self._end_session(before)  # A connection carries one session.
        if session is None:
            if len(self.sessions) >= SESSIONS_MAX and not self._end_idle_session():
                reason = f"{SESSIONS_MAX} clients have calls in progress"
                self.transport.send(route, Refused("busy", reason))
                return None
            session = self.add_session(session_id, route, message.client_name)
        else:
            self._leave_route(session)
            session.route = route
        self.routes[route] = session
        session.can_follow = "follow" in message.capabilities
        session.is_relayed = session.is_peer = False
        if greeting.is_peer(message):
            why = self.links.accept(session, message)
            if why:
                self._end_session(session)
                greeting.turned_away(self, self.links, message, why)
                self.transport.send(route, Refused("cluster", why))
                return None
        settings = self.settings
        has_chunks = CHUNKS in message.capabilities
        if has_chunks and not (session.is_peer and route in self.lanes):
            self.lanes.open(route, settings.message_bytes_max)
        self.transport.send(
            route,
            Welcome(
                version, settings.peer_id, settings.incarnation, settings.peer_name,
                {
                    "message_bytes_max": settings.message_bytes_max,
                    "frame_bytes_max": FRAME_BYTES_MAX,
                    "reply_keep_s": int(settings.reply_keep_s),
                },
                ["call", "stream", "publish", *([CHUNKS] if has_chunks else ())],
                self._about_us(session, route),
            ),
        )  # fmt: skip
        if session.is_peer:
            self.links.welcomed(route)  # What is sent over it comes behind Welcome.
        return session

    def _about_us(self, session: Session, route: bytes) -> dict[str, Any]:
        """Return what Welcome says beside its fields; to a peer, what is known of it."""
        about: dict[str, Any] = {
            "cluster": self.settings.cluster, "peers": self.cluster.endpoints(),
        }  # fmt: skip
        if session.is_peer:
            about["known"] = self.links.known_of(self.links.by_route[route].peer_id)
        return about

    def _lose_route(self, route: bytes) -> None:
        """A connection is gone. Its client may come back; its streams will not."""
        self.lanes.close(route)
        self.links.lose(route)
        session = self.routes.pop(route, None)
        if session is not None and route in (session.route, session.direct):
            for number in list(self.core.sessions.get(session.session_id, ())):
                if number not in (session.behind or ()):
                    self.end_stream(session, number)
            self.relays.end_streams(session)

    def _end_idle_session(self) -> bool:
        """Forget the session that was silent longest, of those without open requests."""
        idle = (s for s in self.sessions.values() if not self._has_open(s))
        oldest = min(idle, key=lambda session: session.heard_s, default=None)
        if oldest is not None:
            self._end_session(oldest)
        return oldest is not None

    def _has_open(self, session: Session) -> bool:
        core = self.core
        return session.session_id in core.sessions or session.session_id in core.errands

    def _end_silent_sessions(self) -> None:
        """Forget sessions whose requests would be refused as too old."""
        before_s = self._now_s - self.settings.session_expiry_s
        for session in list(self.sessions.values()):
            if session.heard_s < before_s and not self._has_open(session):
                self._end_session(session)

    def _end_start(self, session_id: SessionId) -> None:
        """End what a peer's earlier start has asked for."""
        session = self.sessions.get(session_id)
        if session is not None:
            self._end_session(session)

    def _leave_route(self, session: Session) -> None:
        """Forget a client's connection, and what waits for it.

        A link to a peer behind which it is carries what others say, too.
        """
        for route in (session.route, session.direct):
            if self.routes.get(route) is session:
                del self.routes[route]
                if route not in self.links.by_route:
                    self.lanes.close(route)
        session.direct = b""

    def _end_session(self, session: Session) -> None:
        self.remove_session(session)
        self._leave_route(session)
        self.relays.end_session(session)
        self.naming.end_session(session.session_id)
        self.step(events.SessionEnded(session.session_id))

    def _on_call(self, session: Session, message: Call) -> None:
        if message.sequence > session.highest:
            session.highest = message.sequence
        else:
            message = session.numbered(message)
        is_here = self.location.is_here(message.object_id)  # type: ignore[arg-type]
        if not is_here and not (message.extra and self.reading.may_serve(message)):
            self._elsewhere(session, message, ObjectId(message.object_id))
            return
        self._call(Client(session.session_id, message.sequence), message)

    def _call(self, origin: Client | Nested, message: Call) -> None:
        if message.operation > 2:
            error = RemoteProtocolError(
                f"unknown operation {message.operation}", "Call"
            )
            self._refuse(origin, error)
            return
        if message.buffers and self._is_too_large(origin, message):
            return
        self.calls_count += 1
        age_s, credit = 0.0, 0
        still_open: Sequence[int] = ()
        chain: Sequence[tuple[bytes, int]] = ()
        depth = began_ms = 0
        is_stale = wants_info = is_here = is_young = False
        fence = None
        if message.extra:
            fence = self._fence(origin, message)
            is_stale = extras.number(message.extra, STALENESS) > 0
            is_here = is_stale and self.location.is_here(ObjectId(message.object_id))
            is_young = is_here and self.reading.is_young(message)
            wants_info = message.extra.get("info") is True
            age_s = extras.number(message.extra, "age_ms") / 1000
            credit = int(extras.number(message.extra, "stream"))
            still_open = extras.numbers(message.extra, "open")
            chain, depth, began_ms = extras.callers(message.extra)
        self.step(
            events.CallArrived(
                origin, ObjectId(message.object_id), _KINDS[message.operation],
                message.method, message, message.attempt, message.first_unacked,
                message.deadline_ms / 1000, age_s, credit, "", "", still_open, chain,
                depth, began_ms, is_stale, wants_info, is_here, fence, is_young,
            )
        )  # fmt: skip

    def _fence(self, origin: Client | Nested, message: Call | Delete) -> Fence | None:
        """Return under which epoch the caller is led, where another peer says so."""
        fence = extras.fence(message.extra) if message.extra else None
        if fence is None or type(origin) is not Client:
            return None  # Of a run here the core knows it.
        session = self.sessions.get(origin.session)
        return fence if session is not None and session.is_peer else None

    def _elsewhere(self, session: Session, message: Any, object_id: ObjectId) -> None:
        """See to a request for an object that is not here, or not yet."""
        if not self.moving.park(session, message, object_id):
            self.relays.forward(session, message, object_id)

    def _on_create(self, session: Session, message: Create) -> None:
        message = session.numbered(message)
        origin = Client(session.session_id, message.sequence)
        object_id = ObjectId(message.object_id)
        if self.location.is_here(object_id):
            self._create(origin, message)
        elif not self._is_too_old(origin, message, object_id):
            self._elsewhere(session, message, object_id)

    def _on_delete(self, session: Session, message: Delete) -> None:
        message = session.numbered(message)
        if not self.location.is_here(ObjectId(message.object_id)):
            self._elsewhere(session, message, ObjectId(message.object_id))
            return
        self._delete(Client(session.session_id, message.sequence), message)

    def _delete(self, origin: Client | Nested, message: Delete) -> None:
        age_s = extras.number(message.extra, "age_ms") / 1000 if message.extra else 0.0
        arrived = events.CallArrived(
            origin, ObjectId(message.object_id), Kind.DELETE, "delete", message,
            message.attempt, message.first_unacked, 0.0, age_s,
            fence=self._fence(origin, message),
        )  # fmt: skip
        self.naming.before_delete(origin, arrived.object_id, lambda: self.step(arrived))

    def _on_persist(self, session: Session, message: Persist) -> None:
        message = session.numbered(message)
        origin = Client(session.session_id, message.sequence)
        states = self._states_of(origin, message)
        if states is None:
            return
        # All of them are of one peer, that of the first.
        first = ObjectId(states[0].object_id)
        if self.location.is_here(first):
            self._persist(origin, message, states)
        elif not self._is_too_old(origin, message, first):
            self._elsewhere(session, message, first)

    def _on_request(self, session: Session, message: Request) -> None:
        self.request_handler(Client(session.session_id, message.sequence), message)

    def _on_cancel(self, session: Session, message: Cancel) -> None:
        self.relays.pass_on(session, message)
        self.naming.cancel(Client(session.session_id, message.sequence))
        self.step(events.CancelArrived(session.session_id, message.sequence))

    def _on_credit(self, session: Session, message: Credit) -> None:
        self.relays.pass_on(session, message)
        self.step(
            events.CreditArrived(session.session_id, message.sequence, message.items)
        )

    def _on_bye(self, session: Session, _message: Bye) -> None:
        self._end_session(session)

    def _leave(self, origin: Nested, message: Any, object_id: ObjectId) -> None:
        """Have what a method wants done go to the peer of its object."""
        what = type(message)
        if what is Call:
            kind, method = _KINDS[message.operation], message.method
        else:
            kind, method = _LEAVING[what]
        extra = message.extra or {}
        self.step(
            events.NestedLeft(
                origin, object_id, kind, method, message, kind is not Kind.GET,
                message.deadline_ms / 1000 if what is Call else 0.0,
                int(extras.number(extra, "stream")),
            )
        )  # fmt: skip

    def _take_nested(self, event: Any) -> None:
        origin = Nested(event.call_id, event.request, event.waits)
        message = event.message
        kind = type(message)
        if kind is Request:
            self.request_handler(origin, message)
            return
        if kind is Persist:
            self._take_nested_persist(origin, message)
            return
        object_id = ObjectId(message.object_id)
        if not self.location.is_here(object_id):
            self._leave(origin, message, object_id)
        elif kind is Call:
            self._call(origin, message)
        elif kind is Create:
            self._create(origin, message)
        elif kind is Delete:
            self._delete(origin, message)

    def _take_nested_persist(self, origin: Nested, message: Persist) -> None:
        states = self._states_of(origin, message)
        if states is None:
            return
        first = ObjectId(states[0].object_id)
        if self.location.is_here(first):
            self._persist(origin, message, states)
        else:
            self._leave(origin, message, first)
