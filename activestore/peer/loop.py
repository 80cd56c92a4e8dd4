"""The loop: it joins the core with network, storage and executors, and owns all of them.

One thread. Each turn takes what is there from every port, steps the core, carries
effects out in order, and writes once per receiver. While calls come close together it
looks again for a while before it blocks, for waking an idle core costs more than a
call.

Rules of this file: it knows ports, not sockets; every decision about a call is the
core's; what a client asks of the peer itself is `requests`'.

Source: design section 3.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Any, NamedTuple

from activestore.core import effects, events
from activestore.core.calls import Call as CoreCall
from activestore.core.calls import Client, Kind, Nested
from activestore.core.invocation import InvocationCore
from activestore.errors import (
    ActiveStoreError,
    ClassNotFoundError,
    RemoteProtocolError,
    UnavailableError,
)
from activestore.ids import ObjectId, SessionId
from activestore.objects import orders
from activestore.peer import ports
from activestore.peer.classes import Classes
from activestore.storage.engine import Change, Durability, ReplyRecord
from activestore.wire import codec, values
from activestore.wire.limits import (
    BEAT_SEQUENCES_MAX,
    FRAME_BYTES_MAX,
    PROTOCOL_VERSION,
    PROTOCOL_VERSION_MIN,
)
from activestore.wire.messages import (
    Beat,
    Buffer,
    Bye,
    Call,
    Cancel,
    Create,
    Credit,
    Delete,
    Failure,
    Hello,
    Item,
    Message,
    Persist,
    Ping,
    Pong,
    Refused,
    Reply,
    Request,
    Welcome,
)
from activestore.wire.state import FileBuffer, NamedState, decode_states

# Messages taken per turn: their answers leave together, others wait that long.
MESSAGES_PER_TURN = 64
# Turns without work before the memory of executors is looked at again, in seconds.
MEASURE_S = 0.5
# A recorded reply: larger results are not kept, a retry is told so.
REPLY_BYTES_MAX = 1024 * 1024
# Blocking is bounded, so that a lost wake-up costs this much and not for ever.
BLOCK_S_MAX = 0.5
# With a receiver that takes no more, how soon it is tried again.
RETRY_S = 0.005
# Sessions known at once; the one silent for longest goes.
SESSIONS_MAX = 16_384


class Session:
    """A client process as the loop knows it."""

    __slots__ = ("first_seen_s", "name", "route", "session_id")

    def __init__(
        self, session_id: SessionId, route: bytes, name: str, now_s: float
    ) -> None:
        self.session_id = session_id
        self.route = route
        self.name = name
        self.first_seen_s = now_s


class LoopSettings(NamedTuple):
    """What the loop needs of the configuration."""

    peer_id: bytes
    peer_name: str
    incarnation: bytes
    message_bytes_max: int
    spin_s: float
    reply_keep_s: float


class PeerLoop:
    """Everything a peer does, in one thread."""

    def __init__(
        self,
        settings: LoopSettings,
        core: InvocationCore,
        transport: ports.Transport,
        storage: ports.StoragePort,
        executors: ports.ExecutorPort,
        classes: Classes,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        note: Callable[[str, str], None],
    ) -> None:
        self.settings = settings
        self.core = core
        self.transport = transport
        self.storage = storage
        self.executors = executors
        self.classes = classes
        self.clock = clock
        self.wall_clock = wall_clock
        self.note = note
        self.request_handler: Callable[[Client | Nested, Request], None] = (
            lambda origin, request: None
        )
        self.is_stopping = False
        self.failure = ""
        self.routes: dict[bytes, Session] = {}
        self.sessions: dict[SessionId, Session] = {}
        self.calls_count = 0
        self.backups: dict[str, tuple[int, int]] = {}  # directory to bytes done, total
        self._now_s = clock()
        self._loaded: dict[tuple[bytes, bool], ports.Loaded] = {}
        self._nested_streams: dict[int, Nested] = {}
        self._busy_until_s = 0.0
        self._last_work_s = 0.0
        self._measure_due_s = 0.0
        self._poll = select.epoll() if hasattr(select, "epoll") else None
        self._fallback = None if self._poll else select.poll()
        self._watch(transport.wake_fd())
        self._watch(storage.wake_fd())
        executors.watch(self._watch, self._unwatch)
        self._messages: dict[type, Callable[[Session, Any], None]] = {
            Call: self._on_call,
            Create: self._on_create,
            Delete: self._on_delete,
            Persist: self._on_persist,
            Request: self._on_request,
            Cancel: self._on_cancel,
            Credit: self._on_credit,
            Bye: self._on_bye,
        }
        self._effects: dict[type, Callable[[Any], None]] = {
            effects.Dispatch: executors.dispatch,
            effects.Answer: self._do_answer,
            effects.Commit: self._do_commit,
            effects.CommitStates: self._do_commit_states,
            effects.HurryCommits: lambda _: storage.write(
                lambda _: None, lambda *_: None
            ),
            effects.LoadObject: self._do_load,
            effects.LookUpReply: self._do_look_up,
            effects.Activate: self._do_activate,
            effects.Refuse: self._do_refuse,
            effects.SendItem: self._do_send_item,
            effects.SendBeat: self._do_send_beat,
            effects.DropCopy: lambda e: executors.control(
                e.executor, (orders.DROP, e.copy_id)
            ),
            effects.RecallCalls: lambda e: executors.control(
                e.executor, (orders.RECALL, e.slot)
            ),
            effects.PingExecutor: lambda e: executors.control(
                e.executor, (orders.PING,)
            ),
            effects.InterruptCall: self._do_interrupt,
            effects.GrantCredit: lambda e: executors.to_slot(
                e.executor, e.slot, (orders.CREDIT, e.call_id, e.items), None
            ),
            effects.SpawnExecutor: lambda e: executors.spawn(e.executor),
            effects.KillExecutor: lambda e: executors.kill(e.executor, e.why),
            effects.RetireExecutor: lambda e: executors.retire(e.executor),
            effects.Note: lambda e: self.note(e.level, e.text),
        }

    # -- turning --------------------------------------------------------------------------

    def run(self, until: Callable[[], bool]) -> None:
        """Turn until `until()`; it is asked once per turn."""
        self.carry_out(self.core.start(self.clock()))
        while not until():
            self.turn()

    def turn(self) -> None:
        """Take what is there, decide, write; wait only if there was nothing."""
        worked = self._take_network()
        if worked:
            self.executors.flush()  # Calls go first: nothing else is as urgent.
        for fd in self._ready(self._wait_s(worked=worked)):
            worked |= self._take_executor(fd)
        if worked:
            self._flush_network()
        self._now_s = now_s = self.clock()
        worked |= self._take_storage()
        deadline_s = self.core.deadline_s()
        if deadline_s is not None and now_s >= deadline_s:
            self.step(events.TimerFired())
        if now_s >= self._measure_due_s:
            self._measure(now_s)
        self.executors.flush()
        self._flush_network()
        if worked:
            if now_s - self._last_work_s < self.settings.spin_s * 4:
                self._busy_until_s = now_s + self.settings.spin_s
            self._last_work_s = now_s
        elif now_s < self._busy_until_s:
            # Whoever is waited for may need this core: offer it at every look.
            os.sched_yield()

    def _measure(self, now_s: float) -> None:
        """Look at the executors' memory, and at what is held for nobody."""
        self._measure_due_s = now_s + MEASURE_S
        for event in self.executors.measure():
            self.step(event)
        self._drop_unused()

    def _flush_network(self) -> None:
        for route in self.transport.flush():
            self._lose_route(route)

    def _wait_s(self, *, worked: bool) -> float:
        """Return how long this turn may block."""
        if worked or self.clock() < self._busy_until_s or self.transport.has_input():
            return 0.0
        if self.executors.has_unsent or self.transport.has_backlog:
            return RETRY_S
        deadline_s = self.core.deadline_s()
        due_s = self._measure_due_s
        if deadline_s is not None and deadline_s < due_s:
            due_s = deadline_s
        return min(max(due_s - self.clock(), 0.0), BLOCK_S_MAX)

    def _watch(self, fd: int) -> None:
        if self._poll is not None:
            self._poll.register(fd, select.EPOLLIN)
        elif self._fallback is not None:
            self._fallback.register(fd, select.POLLIN)

    def _unwatch(self, fd: int) -> None:
        poll = self._poll or self._fallback
        if poll is not None:
            poll.unregister(fd)

    def _ready(self, wait_s: float) -> list[int]:
        if self._poll is not None:
            return [fd for fd, _ in self._poll.poll(wait_s)]
        if self._fallback is not None:
            return [fd for fd, _ in self._fallback.poll(wait_s * 1000)]
        return []

    def step(self, event: events.Event) -> None:
        """Step the core and carry its effects out."""
        self.carry_out(self.core.step(event, self._now_s))

    def carry_out(self, ordered: list[effects.Effect]) -> None:
        """Carry effects out in order."""
        handlers = self._effects
        for effect in ordered:
            handlers[type(effect)](effect)

    # -- from the network ------------------------------------------------------------------

    def _take_network(self) -> bool:
        received = self.transport.receive(MESSAGES_PER_TURN)
        if not received:
            return False
        self._now_s = self.clock()
        for route, frames in received:
            self._take_frames(route, frames)
        return True

    def _take_frames(self, route: bytes, frames: list[Buffer]) -> None:
        try:
            messages = codec.decode_frames(frames)
        except RemoteProtocolError as error:
            self.note("warning", f"malformed frame route={route.hex()} reason={error}")
            self.transport.send(route, Refused(error.code, str(error)[:1000]))
            return
        session = self.routes.get(route)
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
        if session is None:
            if len(self.sessions) >= SESSIONS_MAX:
                self._end_session(next(iter(self.sessions.values())))
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

    def _end_session(self, session: Session) -> None:
        self.sessions.pop(session.session_id, None)
        self.routes.pop(session.route, None)
        self.step(events.SessionEnded(session.session_id))

    def _is_too_large(self, origin: Client | Nested, message: Any) -> bool:
        if not message.buffers:
            return False
        size = sum(memoryview(b).nbytes for b in message.buffers)
        limit = self.settings.message_bytes_max
        if size <= limit:
            return False
        from activestore.errors import TooLargeError  # noqa: PLC0415 - rare

        self._do_refuse(
            effects.Refuse(
                origin, TooLargeError("message", size, limit, "message_bytes_max")
            )
        )
        return True

    def _on_call(self, session: Session, message: Call) -> None:
        self._call(Client(session.session_id, message.sequence), message)

    def _call(self, origin: Client | Nested, message: Call) -> None:
        if message.operation > 2:
            error = RemoteProtocolError(
                f"unknown operation {message.operation}", "Call"
            )
            self._do_refuse(effects.Refuse(origin, error))
            return
        if message.buffers and self._is_too_large(origin, message):
            return
        self.calls_count += 1
        age_s, credit = 0.0, 0
        if message.extra:
            age_s = _number(message.extra, "age_ms") / 1000
            credit = int(_number(message.extra, "stream"))
        self.step(
            events.CallArrived(
                origin, ObjectId(message.object_id), _KINDS[message.operation],
                message.method, message, message.attempt, message.first_unacked,
                message.deadline_ms / 1000, age_s, credit,
            )
        )  # fmt: skip

    def _on_create(self, session: Session, message: Create) -> None:
        self._create(Client(session.session_id, message.sequence), message)

    def _create(self, origin: Client | Nested, message: Create) -> None:
        if self._is_too_large(origin, message):
            return
        known = self.classes.revision_of(message.class_name)
        if known is None:
            error = ClassNotFoundError(message.class_name, self.classes.names())
            self._do_refuse(effects.Refuse(origin, error))
            return
        lacking = self.classes.missing_for(message.class_name)
        if lacking is not None:
            self._do_refuse(effects.Refuse(origin, lacking))
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
            self._do_refuse(effects.Refuse(origin, error))
            return
        refused = self._why_not_persisted(states)
        if refused is not None:
            self._do_refuse(effects.Refuse(origin, refused))
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

    # -- from executors and storage -----------------------------------------------------------

    def _take_executor(self, fd: int) -> bool:
        news = self.executors.receive(fd)
        if not news:
            return False
        self._now_s = self.clock()
        for event in news:
            if type(event) is ports.NestedRequest:
                self._take_nested(event)
            else:
                self.step(event)
        return True

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

    def _take_storage(self) -> bool:
        done = self.storage.finished()
        for news in done:
            if type(news) is ports.CommitsDone:
                for token, error in news.results:
                    if error is None:
                        self.step(events.Committed(token))
                    else:
                        self.step(events.CommitRefused(token, error))
            elif type(news) is ports.Loaded:
                self._on_loaded(news)
            elif type(news) is ports.Called:
                news.then(news.value, news.error)
            else:
                self.failure = news.reason
                self.is_stopping = True
                self.note("error", f"storage failed, stopping reason={news.reason}")
        return bool(done)

    def _on_loaded(self, news: ports.Loaded) -> None:
        object_id = ObjectId(news.object_id)
        if news.head is None or news.state is None:
            error = news.error or UnavailableError("storage", "nothing was read")
            self.step(events.ObjectMissing(object_id, news.is_reader, error))
            return
        lacking = self.classes.missing_for(news.head.class_name)
        if lacking is not None:
            self.step(events.ObjectMissing(object_id, news.is_reader, lacking))
            return
        self._loaded[object_id, news.is_reader] = news
        self.step(
            events.ObjectLoaded(
                object_id, news.is_reader, news.head.class_name, news.head.version,
                news.head.state_bytes,
            )
        )  # fmt: skip

    def _drop_unused(self) -> None:
        """Let go of loaded states that no call waits for any more."""
        for key in list(self._loaded):
            box = self.core.boxes.boxes.get(ObjectId(key[0]))
            is_wanted = box is not None and (
                box.reader_loading if key[1] else box.main is None and bool(box.waiting)
            )
            if not is_wanted:
                state = self._loaded.pop(key).state
                for buffer in state.buffers if state is not None else ():
                    if isinstance(buffer, FileBuffer):
                        os.close(buffer.fd)

    # -- effects ----------------------------------------------------------------------------

    def _do_load(self, effect: effects.LoadObject) -> None:
        self.storage.load(effect.object_id, is_reader=effect.is_reader)

    def _do_look_up(self, effect: effects.LookUpReply) -> None:
        def found(record: ReplyRecord | None, error: BaseException | None) -> None:
            if error is not None:
                body, _ = values.encode(["storage", str(error)])
                self.step(events.ReplyLookedUp(effect.call_id, "unavailable", body))
            elif record is None:
                self.step(events.ReplyLookedUp(effect.call_id, None))
            else:
                self.step(
                    events.ReplyLookedUp(effect.call_id, record.code, record.body)
                )

        self.storage.read(
            lambda engine: engine.reply(
                effect.object_id, effect.session, effect.sequence
            ),
            found,
        )

    def _do_activate(self, effect: effects.Activate) -> None:
        record = self.classes.record_of(effect.class_name)
        stored = None
        if not effect.is_new:
            loaded = self._loaded.pop((effect.object_id, effect.is_reader), None)
            if (
                loaded is not None
                and loaded.head is not None
                and loaded.state is not None
            ):
                stored = (loaded.head, loaded.state)
        self.executors.activate(effect, stored, record)

    def _do_commit(self, effect: effects.Commit) -> None:
        reply = None
        if effect.client is not None:
            reply = self._record(
                effect.client, effect.code, effect.body, effect.buffers
            )
        durability = Durability(effect.durability)
        change = Change(
            effect.object_id, effect.version, effect.state, effect.delta,
            effect.is_delete, effect.state is not None, effect.alias, durability, reply,
            effect.acknowledged,
        )  # fmt: skip
        if not effect.created:
            self.storage.commit(effect.token, (change,))
            return
        made = [self._new(named, effect.token) for named in effect.created]
        self.storage.commit(effect.token, (*made, _grouped(change, effect.token)))

    def _do_commit_states(self, effect: effects.CommitStates) -> None:
        reply = None
        if effect.client is not None:
            reply = self._record(effect.client, "", _NIL, ())
        changes = [self._new(named, effect.token, reply) for named in effect.states]
        self.storage.commit(effect.token, changes)

    def _new(
        self, named: NamedState, group: int, reply: ReplyRecord | None = None
    ) -> Change:
        durability = Durability(self.classes.durability_of(named.state.class_name))
        return Change(
            ObjectId(named.object_id), 1, named.state, None, False, True, named.alias,
            durability, reply, (), group,
        )  # fmt: skip

    def _record(
        self, client: Client, code: str, body: bytes, buffers: Any
    ) -> ReplyRecord:
        if buffers or len(body) > REPLY_BYTES_MAX:
            size = len(body) + sum(memoryview(b).nbytes for b in buffers)
            code = "invalid_request"
            body, _ = values.encode([
                f"the call ran and was committed; its result of {size} bytes is over "
                f"{REPLY_BYTES_MAX} and was not kept for a retry", "reply",
            ])  # fmt: skip
        return ReplyRecord(
            client.session, client.sequence, code, body, self.wall_clock()
        )

    def _do_answer(self, effect: effects.Answer) -> None:
        origin = effect.origin
        if type(origin) is Client:
            session = self.sessions.get(origin.session)
            if session is not None:
                self.transport.send(
                    session.route,
                    Reply(origin.sequence, None, effect.body, effect.buffers),  # type: ignore[arg-type]
                )
            return
        self._to_parent(
            origin, (orders.RESULT, origin.request, "", effect.body), effect.buffers
        )

    def _do_refuse(self, effect: effects.Refuse) -> None:
        origin = effect.origin
        if effect.error is None:
            code, body = effect.code, effect.body
        else:
            code = effect.error.code
            body, _ = values.encode(list(effect.error.args))
        if type(origin) is Client:
            session = self.sessions.get(origin.session)
            if session is not None:
                failure = Failure(origin.sequence, code, None, body)
                self.transport.send(session.route, failure)
            return
        self._to_parent(origin, (orders.RESULT, origin.request, code, body), ())

    def _to_parent(self, origin: Any, message: tuple[Any, ...], buffers: Any) -> None:
        parent = self.core.calls.get(origin.parent)
        if parent is not None and parent.slot is not None:
            slot = parent.slot
            self.executors.to_slot(
                slot.executor.executor_id, slot.index, message, buffers
            )

    def _do_send_item(self, effect: effects.SendItem) -> None:
        origin = effect.origin
        if type(origin) is Client:
            session = self.sessions.get(origin.session)
            if session is not None:
                item = Item(
                    origin.sequence,
                    effect.number,
                    None,
                    effect.body,
                    effect.buffers,  # type: ignore[arg-type]
                )
                self.transport.send(session.route, item)
            return
        self._to_parent(
            origin, (orders.ITEM_IN, origin.request, effect.number, effect.body),
            effect.buffers,
        )  # fmt: skip

    def _do_send_beat(self, effect: effects.SendBeat) -> None:
        session = self.sessions.get(effect.session)
        if session is None:
            return
        sequences = list(effect.sequences)
        for start in range(0, len(sequences), BEAT_SEQUENCES_MAX):
            part = sequences[start : start + BEAT_SEQUENCES_MAX]
            self.transport.send(session.route, Beat(part))

    def _do_interrupt(self, effect: effects.InterruptCall) -> None:
        self.executors.control(
            effect.executor,
            (orders.INTERRUPT, effect.slot, effect.call_id, effect.reason),
        )
        self.executors.to_slot(
            effect.executor,
            effect.slot,
            (orders.STOP, effect.call_id, effect.reason),
            None,
        )


_KINDS = (Kind.CALL, Kind.GET, Kind.SET)
_NIL = b"\xc0"


def _number(extra: Any, key: str) -> float:
    value = extra.get(key, 0)
    return value if type(value) is int and value >= 0 else 0


def _sequence(origin: Any) -> int:
    return int(origin.sequence)


def _grouped(change: Change, group: int) -> Change:
    return Change(
        change.object_id, change.version, change.state, change.delta, change.is_delete,
        change.is_new, change.alias, change.durability, change.reply, change.drop_replies,
        group,
    )  # fmt: skip


__all__ = ["CoreCall", "LoopSettings", "PeerLoop", "Session"]
