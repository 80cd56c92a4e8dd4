"""What the parts of the loop share: the ports, the sessions, and how a step is taken.

Rules of this file: state and helpers only; no message and no effect is handled here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, TypeVar

from activestore.core import effects, events
from activestore.core.calls import Client, Nested
from activestore.core.invocation import InvocationCore
from activestore.core.troubles import TroubleKind, Troubles
from activestore.ids import ObjectId, SessionId
from activestore.peer import ports
from activestore.peer.classes import Classes
from activestore.wire import codec
from activestore.wire.chunks import AT_ONCE, Lanes
from activestore.wire.gossip import PeerRecord
from activestore.wire.limits import BEAT_SEQUENCES_MAX, UNHEARD, UNLED
from activestore.wire.messages import (
    Beat,
    Call,
    Create,
    Delete,
    Failure,
    Item,
    Message,
    Persist,
    Relayed,
    Reply,
    Request,
)

# Bytes that may wait for a connection with chunks, beside what is larger in one message:
# what ZeroMQ's backlog may hold of others.
WAITING_BYTES_MAX = 256 * 1024 * 1024
# What no sequence reaches: those of the wire are 64 bits.
ABOVE_ALL = 1 << 64
# Requests of which one has to be answered before the next ones are not looked up: some
# may run for long.
DOUBTED_MAX = 16
# Requests of one client of which it is known by which peer they came; the answer to an
# older one goes where its client was heard last.
BEHIND_MAX = 4096

_ANSWERED = (Call, Create, Delete, Persist, Request)
_ANSWERS = (Reply, Failure, Item)

_Numbered = TypeVar("_Numbered", Call, Create, Delete, Persist)


# The route of this peer's own methods: what is said to them stays here.
HERE = b""


class Session:
    """A client process as the loop knows it, or a peer that calls for its methods.

    `route`: where it was heard last. `is_relayed`: it is not at that route's end, but
    somewhere behind the peer that is. `can_follow`: it goes where it is told to.
    `highest`: the highest number of its requests that came here; above all numbers
    while each is looked up. `doubted`, `seen`: the first of those, and the highest.
    `behind`: by which link each open request of a client came that came by a peer; its
    answer goes back there, for the peer at another link's end knows nothing of it. None
    until there was one. `direct`: the client's own connection, where it had one then.
    `asking`: all sessions that have sent a request since they were doubted, this one too
    once it has; see `Table.doubt_sessions`.
    """

    __slots__ = (
        "asking", "behind", "can_follow", "direct", "doubted", "heard_s", "highest",
        "is_peer", "is_relayed", "name", "route", "seen", "session_id",
    )  # fmt: skip

    def __init__(
        self,
        session_id: SessionId,
        route: bytes,
        name: str,
        now_s: float,
        asking: set[Session],
    ) -> None:
        self.session_id = session_id
        self.asking = asking
        self.route = route
        self.name = name
        self.heard_s = now_s
        self.is_relayed = False
        self.is_peer = False
        self.can_follow = False
        self.behind: dict[int, bytes] | None = None
        self.direct = b""
        self.doubt()

    def doubt(self) -> None:
        """Have requests looked up until one was sent after we answered: see `numbered`."""
        self.highest = ABOVE_ALL
        self.doubted: list[int] = []
        self.seen = 0

    def came_behind(self, route: bytes, message: Message) -> None:
        """Note that a message of a client came by a link, from behind another peer."""
        if not self.is_relayed:
            self.direct = self.route
        if not isinstance(message, _ANSWERED):
            return
        if self.behind is None:
            self.behind = {}
        self.behind.pop(message.sequence, None)
        self.behind[message.sequence] = route
        if len(self.behind) > BEHIND_MAX:
            del self.behind[next(iter(self.behind))]

    def came_directly(self, messages: Sequence[Message]) -> None:
        """Note that messages came over the client's own connection.

        A first attempt that comes behind a later one is a copy that stood still.
        """
        for message in messages:
            if isinstance(message, _ANSWERED) and getattr(message, "attempt", True):
                (self.behind or {}).pop(message.sequence, None)

    def numbered(self, message: _Numbered) -> _Numbered:
        """Note the number of a request; return it, as a retry where it may be one.

        A client that went on with another peer has sent it twice: the copy that it gave
        up may come long after the other was answered. So one whose number was passed is
        looked up before it runs. Of those that come first it may have been answered
        before this process, or this session, began, or where the object was then: they
        are looked up until one tells that the answer to such a one has arrived, for
        that was sent after it. A peer asks for its own methods in order, by one way.
        A later attempt proves nothing: its client asks several peers, and what it has
        the answer to may have been answered by another. So is all that comes by a peer.
        """
        sequence = message.sequence
        if sequence > self.highest:
            self.highest = sequence
            return message
        if self.highest == ABOVE_ALL:
            self.asking.add(self)
            if self.is_peer:
                self.highest = sequence
            elif message.attempt:
                self.seen = max(self.seen, sequence)
            elif any(_has_answer_to(one, message) for one in self.doubted):
                self.highest = max(self.seen, sequence)
                if sequence > self.seen:
                    return message
            else:
                self.seen = max(self.seen, sequence)
                if len(self.doubted) < DOUBTED_MAX:
                    self.doubted.append(sequence)
        return message if message.attempt else message._replace(attempt=1)


def _has_answer_to(sequence: int, message: Call | Create | Delete | Persist) -> bool:
    """Whether a request tells that its client has the answer to an earlier one."""
    if sequence < message.first_unacked:
        return True
    still_open = message.extra.get("open") if message.extra else None
    return (
        type(still_open) is list
        and sequence < message.sequence
        and sequence not in still_open
    )


class Growing(NamedTuple):
    """Copies that are made of what a request makes, before it is answered."""

    object_ids: Sequence[ObjectId]
    wanted: int
    wants_witness: bool


class LoopSettings(NamedTuple):
    """What the loop needs of the configuration."""

    peer_id: bytes
    peer_name: str
    incarnation: bytes
    message_bytes_max: int
    spin_s: float
    reply_keep_s: float
    session_expiry_s: float
    cluster: str = "activestore"
    endpoint: str = ""
    seeds: tuple[str, ...] = ()
    searches_per_s: float = 20.0
    # Of objects that are made here and whose maker says nothing.
    replicas: int = 1
    witness: bool = False
    record: PeerRecord | None = None  # what this peer says of itself
    repair_after_s: float = 600.0
    scrub_interval_s: float = 0.0  # 0: never


def _knock_nowhere(_endpoint: str, then: Callable[[str], None]) -> bool:
    """Stand in where there is no network to look at."""
    then("nobody answers there")
    return True


class Parts(NamedTuple):
    """What a loop is made of."""

    settings: LoopSettings
    core: InvocationCore
    transport: ports.Transport
    storage: ports.StoragePort
    executors: ports.ExecutorPort
    classes: Classes
    clock: Callable[[], float]
    wall_clock: Callable[[], float]
    note: Callable[[str, str], None]
    random: Callable[[], float] = lambda: 0.5
    # Looks why nobody answers at an address, and tells it; False while it looks elsewhere.
    knock: Callable[[str, Callable[[str], None]], bool] = _knock_nowhere
    machine: ports.MachinePort | None = None  # None: nothing is told of it


class Table:
    """Ports, core and sessions of one peer; the parts of the loop sit around it."""

    def __init__(self, parts: Parts) -> None:
        (
            self.settings, self.core, self.transport, self.storage, self.executors,
            self.classes, self.clock, self.wall_clock, self.note, self.random,
            self.knock,
            self.machine,
        ) = parts  # fmt: skip
        self.request_handler: Callable[[Client | Nested, Request], None] = (
            lambda origin, request: None
        )
        self.lanes = Lanes()
        # Connections whose other side takes too little, or is gone: they are given up.
        self.overfull: list[bytes] = []
        self.is_stopping = False
        self.is_emptying = False  # objects move off; none is made here
        self.failure = ""
        # Requests that make objects with replicas, and what has them made.
        self.growing: dict[Client | Nested, Growing] = {}
        self.grow: Callable[[Growing, effects.Answer], None] = lambda growing, answer: (
            None
        )
        self.troubles = Troubles()
        self.repairing: ports.Looker | None = None
        self.routes: dict[bytes, Session] = {}
        self.sessions: dict[SessionId, Session] = {}
        # Takes what is said to the session of this peer's own methods.
        self.answered_here: Callable[[SessionId, Message], None] = lambda *_: None
        # Of these, those that have sent a request since they were doubted.
        self._asking: set[Session] = set()
        self.calls_count = 0
        self.backups: dict[str, tuple[int, int]] = {}  # directory to bytes done, total
        self._now_s = self.clock()
        self._busy_until_s = 0.0
        self._last_work_s = 0.0
        self._measure_due_s = 0.0
        self._look_due_s = self._look_all_s = 0.0
        self._effects: dict[type, Callable[[Any], None]] = {}
        self._messages: dict[type, Callable[[Session, Any], None]] = {}

    @property
    def state(self) -> str:
        """What this peer does, in one word, as `status` shows it."""
        if self.core.is_draining:
            return "draining"  # running calls end, then the peer does
        return "emptying" if self.is_emptying else "serving"

    def session_here(self, session_id: SessionId) -> Session:
        """Return the session of this peer's own methods, for what has come back to it."""
        session = self.sessions.get(session_id)
        if session is None:
            session = self.add_session(session_id, HERE, "methods here")
            session.is_peer = session.is_relayed = True
        session.heard_s = self._now_s
        return session

    def add_session(self, session_id: SessionId, route: bytes, name: str) -> Session:
        """Note a session that was not known."""
        session = Session(session_id, route, name, self._now_s, self._asking)
        self.sessions[session_id] = session
        return session

    def remove_session(self, session: Session) -> None:
        """Forget a session."""
        self.sessions.pop(session.session_id, None)
        self._asking.discard(session)

    def doubt_sessions(self) -> None:
        """Doubt every session: what they ask may have been answered elsewhere.

        It is called for each object that comes; who has asked nothing since the last one
        is in doubt still, and costs nothing.
        """
        asking = list(self._asking)
        self._asking.clear()
        for session in asking:
            session.doubt()

    def tell(self, session: Session, message: Message) -> None:
        """Send a message to a session, through the peer that it is behind, if any."""
        route, is_relayed = session.route, session.is_relayed
        if session.behind is not None and isinstance(message, _ANSWERS):
            route, is_relayed = self._way_back(session, message.sequence)
            if type(message) is not Item:
                session.behind.pop(message.sequence, None)
        self._tell_by(route, session, message, is_relayed=is_relayed)

    def _way_back(self, session: Session, sequence: int) -> tuple[bytes, bool]:
        """Return the route by which a request came, and whether from behind a peer."""
        route = None if session.behind is None else session.behind.get(sequence)
        if route is not None:
            return route, True
        if session.is_relayed and self.routes.get(session.direct) is session:
            return session.direct, session.is_peer
        return session.route, session.is_relayed

    def _tell_by(
        self, route: bytes, session: Session, message: Message, *, is_relayed: bool
    ) -> None:
        if route == HERE:
            self.answered_here(session.session_id, message)
            return
        is_at_once = type(message) in AT_ONCE
        if is_relayed:
            buffers = message[-1]
            message = Relayed(session.session_id, None, codec.encode(message), buffers)
        if is_at_once:
            self.transport.send(route, message)
        else:
            self.send(route, message)

    def beat(
        self, session: Session, sequences: Sequence[int], *, is_unheard: bool = False,
        unled: int = 0,
    ) -> None:  # fmt: skip
        """Tell a session that its requests are still under way, each by its own way.

        `is_unheard`: but that nothing is heard of who is to answer them; `unled`: up to
        which epoch this peer, as a member, knows of nobody who leads; 0: it is none.
        """
        extra: dict[str, Any] | None = {UNHEARD: True} if is_unheard else None
        if extra is not None and unled:
            extra[UNLED] = [unled, self.settings.peer_id]
        ways: dict[tuple[bytes, bool], list[int]] = {}
        for sequence in sequences:
            ways.setdefault(self._way_back(session, sequence), []).append(sequence)
        for (route, is_relayed), named in ways.items():
            for start in range(0, len(named), BEAT_SEQUENCES_MAX):
                beat = Beat(named[start : start + BEAT_SEQUENCES_MAX], extra)
                self._tell_by(route, session, beat, is_relayed=is_relayed)

    def look_by(self, at_s: float) -> None:
        """Look what time asks of links and requests by a time, if not before."""
        self._look_due_s = min(self._look_due_s, at_s)

    def forget_way(self, route: bytes) -> None:
        """Note that a link to a peer is gone: what came by it may be asked another way.

        Its streams will not.
        """
        self.end_streams_by(route)
        for session in self.sessions.values():
            if session.behind:
                gone = [n for n, by in session.behind.items() if by == route]
                for number in gone:
                    del session.behind[number]

    def end_streams_by(self, route: bytes) -> None:
        """End the streams that came by a link: nobody is left who takes their items."""
        for session in list(self.sessions.values()):
            if session.is_peer and session.route == route:
                for number in list(self.core.sessions.get(session.session_id, ())):
                    self.end_stream(session, number)
            for number, by in list((session.behind or {}).items()):
                if by == route:
                    self.end_stream(session, number)

    def end_stream(self, session: Session, number: int) -> None:
        """End a request of a session where it is a stream."""
        call = self.core.sessions.get(session.session_id, {}).get(number)
        if call is not None and call.is_stream:
            self.step(events.CancelArrived(session.session_id, number))

    def send(
        self, route: bytes, message: Message, lines: Collection[bytes] = ()
    ) -> None:
        """Send a message in its turn, and in chunks where its connection has them.

        `lines`: the objects that a Replicate is about, see `Lane.holds`.
        """
        if not self.lanes.holds(route, message, lines):
            self.transport.send(route, message)
            return
        for one in self.lanes.send(route, message, self.clock(), lines):
            self.transport.send(route, one)
        if self.lanes.waiting_bytes(route) > WAITING_BYTES_MAX:
            self.overfull.append(route)

    def trouble(self, kind: TroubleKind, about: str, reason: str) -> None:
        """Tell the operator what is wrong: in `status`, and where it is news in the log."""
        text = self.troubles.tell(kind, about, reason, self.clock())
        if text:
            self.note("warning", text)

    def hurry_commits(self) -> None:
        """Have commits of relaxed durability wait for no company: a write ends the wait."""
        self.storage.write(lambda _: None, lambda *_: None)

    def receive(self, session: Session, message: Message) -> None:
        """Take a message of a session."""
        self._messages[type(message)](session, message)

    def step(self, event: events.Event) -> None:
        """Step the core and carry its effects out."""
        self.carry_out(self.core.step(event, self._now_s))

    def carry_out(self, ordered: list[effects.Effect]) -> None:
        """Carry effects out in order."""
        handlers = self._effects
        for effect in ordered:
            handlers[type(effect)](effect)
