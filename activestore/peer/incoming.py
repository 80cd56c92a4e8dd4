"""What comes from other processes: frames to messages, messages to the core's events.

Rules of this file: a frame that is malformed costs its sender an answer and nobody else
anything; a message before Hello is refused.

Source: schemas/protocol.md; design section 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from activestore.core import effects, events
from activestore.core.calls import Client, Kind, Nested
from activestore.errors import (
    ActiveStoreError,
    ClassNotFoundError,
    RemoteProtocolError,
    TooLargeError,
)
from activestore.ids import ObjectId, SessionId, check_alias
from activestore.peer.table import Session, Table
from activestore.wire import codec
from activestore.wire.limits import (
    FRAME_BYTES_MAX,
    OPEN_TOLD_MAX,
    PROTOCOL_VERSION,
    PROTOCOL_VERSION_MIN,
)
from activestore.wire.messages import (
    Buffer,
    Bye,
    Call,
    Cancel,
    Create,
    Credit,
    Delete,
    Hello,
    Persist,
    Ping,
    Pong,
    Refused,
    Request,
    Welcome,
)
from activestore.wire.state import NamedState, buffer_bytes_count, decode_states

# Sessions known at once; beyond it the idle one that was silent longest goes.
SESSIONS_MAX = 16_384

_KINDS = (Kind.CALL, Kind.GET, Kind.SET)


class Incoming(Table):
    """Handlers of messages from clients and of requests of running methods."""

    _messages: dict[type, Callable[[Session, Any], None]]

    def _refuse(self, origin: Client | Nested, error: ActiveStoreError) -> None:
        self.carry_out([effects.Refuse(origin, error)])

    def _take_frames(self, route: bytes, frames: list[Buffer]) -> None:
        try:
            messages = codec.decode_frames(frames)
        except RemoteProtocolError as error:
            self.note("warning", f"malformed frame route={route.hex()} reason={error}")
            self.transport.send(route, Refused(error.code, str(error)[:1000]))
            return
        session = self.routes.get(route)
        if session is not None:
            session.heard_s = self._now_s
        for message in messages:
            kind = type(message)
            handler = self._messages.get(kind)
            if handler is not None and session is not None:
                handler(session, message)
            elif kind is Hello:
                session = self._on_hello(route, message)
            elif kind is Ping:
                token: Any = message[0]
                pong = Pong(token, self.settings.incarnation, session is not None)
                self.transport.send(route, pong)
            elif handler is not None:
                self.transport.send(
                    route, Refused("hello_needed", f"{kind.__name__} before Hello")
                )
            else:
                self.transport.send(
                    route,
                    Refused("remote_protocol", f"a peer takes no {kind.__name__}"),
                )

    def _on_hello(self, route: bytes, message: Any) -> Session | None:
        version = min(PROTOCOL_VERSION, message.version_max)
        if version < max(PROTOCOL_VERSION_MIN, message.version_min):
            self.transport.send(
                route,
                Refused(
                    "version",
                    f"this peer speaks versions {PROTOCOL_VERSION_MIN} to "
                    f"{PROTOCOL_VERSION}, the client {message.version_min} to "
                    f"{message.version_max}",
                ),
            )
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
            session = Session(session_id, route, message.client_name, self._now_s)
            self.sessions[session_id] = session
        else:
            self.routes.pop(session.route, None)
            session.route = route
        self.routes[route] = session
        settings = self.settings
        self.transport.send(
            route,
            Welcome(
                version, settings.peer_id, settings.incarnation, settings.peer_name,
                {
                    "message_bytes_max": settings.message_bytes_max,
                    "frame_bytes_max": FRAME_BYTES_MAX,
                    "reply_keep_s": int(settings.reply_keep_s),
                },
                ["call", "stream", "publish"],
            ),
        )  # fmt: skip
        return session

    def _lose_route(self, route: bytes) -> None:
        """A connection is gone. Its client may come back; its streams will not."""
        session = self.routes.pop(route, None)
        if session is not None and session.route == route:
            for call in list(self.core.sessions.get(session.session_id, {}).values()):
                if call.is_stream:
                    self.step(
                        events.CancelArrived(session.session_id, _sequence(call.origin))
                    )

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

    def _end_session(self, session: Session) -> None:
        self.sessions.pop(session.session_id, None)
        self.routes.pop(session.route, None)
        self.step(events.SessionEnded(session.session_id))

    def _is_too_large(self, origin: Client | Nested, message: Any) -> bool:
        size = len(message.body) + sum(map(buffer_bytes_count, message.buffers))
        limit = self.settings.message_bytes_max
        if size <= limit:
            return False
        self._refuse(origin, TooLargeError("message", size, limit, "message_bytes_max"))
        return True

    def _on_call(self, session: Session, message: Call) -> None:
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
        if message.extra:
            age_s = _number(message.extra, "age_ms") / 1000
            credit = int(_number(message.extra, "stream"))
            still_open = _numbers(message.extra, "open")
        self.step(
            events.CallArrived(
                origin, ObjectId(message.object_id), _KINDS[message.operation],
                message.method, message, message.attempt, message.first_unacked,
                message.deadline_ms / 1000, age_s, credit, "", "", still_open,
            )
        )  # fmt: skip

    def _on_create(self, session: Session, message: Create) -> None:
        self._create(Client(session.session_id, message.sequence), message)

    def _create(self, origin: Client | Nested, message: Create) -> None:
        if self._is_too_large(origin, message):
            return
        refused = _why_no_alias(message.alias)
        if refused is not None:
            self._refuse(origin, refused)
            return
        known = self.classes.revision_of(message.class_name)
        if known is None:
            error = ClassNotFoundError(message.class_name, self.classes.names())
            self._refuse(origin, error)
            return
        lacking = self.classes.missing_for(message.class_name)
        if lacking is not None:
            self._refuse(origin, lacking)
            return
        age_s = _number(message.extra, "age_ms") / 1000 if message.extra else 0.0
        self.step(
            events.CallArrived(
                origin, ObjectId(message.object_id), Kind.CREATE, "__init__", message,
                message.attempt, message.first_unacked, message.deadline_ms / 1000, age_s,
                0, message.class_name, message.alias,
            )
        )  # fmt: skip

    def _on_delete(self, session: Session, message: Delete) -> None:
        self._delete(Client(session.session_id, message.sequence), message)

    def _delete(self, origin: Client | Nested, message: Delete) -> None:
        age_s = _number(message.extra, "age_ms") / 1000 if message.extra else 0.0
        self.step(
            events.CallArrived(
                origin, ObjectId(message.object_id), Kind.DELETE, "delete", message,
                message.attempt, message.first_unacked, 0.0, age_s,
            )
        )  # fmt: skip

    def _on_persist(self, session: Session, message: Persist) -> None:
        self._persist(Client(session.session_id, message.sequence), message)

    def _persist(self, origin: Client | Nested, message: Persist) -> None:
        if self._is_too_large(origin, message):
            return
        try:
            states = decode_states(message.body, message.buffers)
        except RemoteProtocolError as error:
            self._refuse(origin, error)
            return
        refused = self._why_not_persisted(states)
        if refused is not None:
            self._refuse(origin, refused)
            return
        age_s = _number(message.extra, "age_ms") / 1000 if message.extra else 0.0
        self.step(
            events.PersistArrived(
                origin, states, message.attempt, message.first_unacked, age_s
            )
        )

    def _why_not_persisted(self, states: list[NamedState]) -> ActiveStoreError | None:
        if not states:
            return RemoteProtocolError("a Persist without states", "Persist")
        for named in states:
            refused = _why_no_alias(named.alias)
            if refused is not None:
                return refused
            if self.classes.revision_of(named.state.class_name) is None:
                return ClassNotFoundError(named.state.class_name, self.classes.names())
        return None

    def _on_request(self, session: Session, message: Request) -> None:
        self.request_handler(Client(session.session_id, message.sequence), message)

    def _on_cancel(self, session: Session, message: Cancel) -> None:
        self.step(events.CancelArrived(session.session_id, message.sequence))

    def _on_credit(self, session: Session, message: Credit) -> None:
        self.step(
            events.CreditArrived(session.session_id, message.sequence, message.items)
        )

    def _on_bye(self, session: Session, _message: Bye) -> None:
        self._end_session(session)

    def _take_nested(self, event: Any) -> None:
        origin = Nested(event.call_id, event.request, event.waits)
        message = event.message
        kind = type(message)
        if kind is Call:
            self._call(origin, message)
        elif kind is Create:
            self._create(origin, message)
        elif kind is Persist:
            self._persist(origin, message)
        elif kind is Delete:
            self._delete(origin, message)
        elif kind is Request:
            self.request_handler(origin, message)


def _why_no_alias(alias: str) -> ActiveStoreError | None:
    """Return why an alias cannot be one, None where it can or there is none."""
    try:
        if alias:
            check_alias(alias)
    except ActiveStoreError as error:
        return error
    return None


def _number(extra: Any, key: str) -> float:
    value = extra.get(key, 0)
    return value if type(value) is int and value >= 0 else 0


def _numbers(extra: Any, key: str) -> Sequence[int]:
    """Return a list of few numbers, none where it is anything else."""
    found = extra.get(key, ())
    is_good = type(found) is list and len(found) <= OPEN_TOLD_MAX
    return found if is_good and all(type(n) is int for n in found) else ()


def _sequence(origin: Any) -> int:
    return int(origin.sequence)
