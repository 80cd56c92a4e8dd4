"""A client of a simulation: the production's session, stand-ins and snapshots.

It has the methods of a store. What blocks lets virtual time pass: in the test itself by
carrying out what is due, in a program of `Simulation.spawn` by giving way to the others.
Every operation is kept in the history, with when it was asked and how it ended.

Rules of this file: retries, silence and resends are `client.session`'s; here is only how
its messages get across.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

from activestore import ids, model, remote
from activestore.client.groups import info_of
from activestore.client.links import Link
from activestore.client.proxy import StandIns
from activestore.client.publish import (
    class_name_of_object,
    dump_value,
    load_value,
    snapshots,
)
from activestore.client.replicating import Replicating, call_extra
from activestore.client.requests import STREAM_CREDIT, Request
from activestore.client.session import Session
from activestore.errors import (
    ActiveStoreError,
    CancelledError,
    ClassNotFoundError,
    InvalidRequestError,
    RemoteProtocolError,
    UnavailableError,
)
from activestore.ids import SESSION_ID_BYTES, ObjectId, PeerId, SessionId
from activestore.remote import CallOptions
from activestore.testing.answers import SimFuture, SimItems
from activestore.testing.clock import Agenda, Entry
from activestore.testing.network import SimNetwork, SimTransport
from activestore.wire import codec, messages, values
from activestore.wire.copies import check_copies, extra_of
from activestore.wire.messages import Bye, Message, Operation
from activestore.wire.state import encode_states

# A client wants its peer back fast; as client.connection does.
RECONNECT_S, RECONNECT_S_MAX = 0.05, 1.0
# Taking what has arrived takes this long.
TAKE_S = 0.000_02
# Between two looks at the time: what is due in no time must not hold time up.
TICK_S_MIN = 0.001
MESSAGES_AT_ONCE = 64
PAGE_ROWS = 1000


class LoggedOperation(NamedTuple):
    """One operation of the history. `ended_s`: -1.0 while it is open."""

    client: str
    what: str
    object_id: bytes
    args: tuple[Any, ...]
    asked_s: float
    ended_s: float = -1.0
    error: ActiveStoreError | None = None

    @property
    def is_acknowledged(self) -> bool:
        """Whether the peer said that it is done."""
        return self.ended_s >= 0.0 and self.error is None


class Around(NamedTuple):
    """What all clients of a simulation share."""

    agenda: Agenda
    network: SimNetwork
    rng: Random
    wait: Callable[[Callable[[], bool]], None]
    rouse: Callable[[], None]
    classes: Mapping[str, type]
    revisions: Mapping[str, bytes]
    history: list[LoggedOperation]


class SimClient(Replicating):
    """One client process, connected to the first of its addresses that answers."""

    def __init__(
        self, name: str, endpoints: Sequence[str], around: Around, *, timeout_s: float
    ) -> None:
        self.name = name
        self._around = around
        self._transport = SimTransport(
            around.network, name, "", self._wake,
            reconnect_s=RECONNECT_S, reconnect_s_max=RECONNECT_S_MAX,
        )  # fmt: skip
        self.session = Session(
            SessionId(around.rng.randbytes(SESSION_ID_BYTES)), name, endpoints, timeout_s,
            around.rng.random,
        )  # fmt: skip
        self._stand_ins = StandIns(self, self._interface)
        for cls in around.classes.values():
            self._stand_ins.use_class(cls)
        self._open: dict[int, tuple[int, Request]] = {}  # history, by id of a request
        self._taking: Entry | None = None
        self._tick: Entry | None = None
        self.is_closed = False
        self.session.begin(self._now_s)
        self._send(())
        self._set_tick()

    def __enter__(self) -> SimClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<SimClient {self.name} at {self.endpoint}>"

    # -- getting across ----------------------------------------------------------------

    @property
    def endpoint(self) -> str:
        """The address of the connected peer."""
        return self.session.endpoint

    def _send(self, out: Sequence[tuple[Link, Message]]) -> None:
        """Connect what the session wants, send in order, disconnect what it has left."""
        links, transport = self.session.links, self._transport
        opened, links.opened = links.opened, []
        for link in opened:
            transport.connect(link.endpoint, route=link.route)
            transport.send(link.route, link.first)
        for link, message in out:
            for one in self.session.chunking.on_wire(link, message, self._now_s):
                transport.send(link.route, one)
        transport.flush()
        ended, links.ended = links.ended, []
        for link in ended:
            transport.disconnect(link.route)
            self.session.chunking.end(link)

    def _wake(self) -> None:
        if self._taking is None:
            self._taking = self._around.agenda.later(TAKE_S, self._take)

    def _take(self) -> None:
        self._taking = None
        while not self.is_closed and self._transport.has_input():
            for route, frames in self._transport.receive(MESSAGES_AT_ONCE):
                for message in codec.decode_frames(frames, codec.joined):
                    link = self.session.links.by_route.get(route)
                    if link is not None:
                        self._take_one(message, link)
        self._set_tick()

    def _take_one(self, message: Any, link: Link) -> None:
        """Take a message; go on without who talks nonsense, or is another than before."""
        try:
            taken = self.session.take(message, self._now_s, link)
        except RemoteProtocolError as error:
            taken = self.session.give_up(link, error, self._now_s)
        self._went_on(*taken)

    def _went_on(
        self, ended: Sequence[Request], out: Sequence[tuple[Link, Message]]
    ) -> None:
        self._send(out)
        for request in ended:
            if request.is_done:
                self._note_end(request)
        if ended or self.session.peer is not None:
            self._around.rouse()

    def _set_tick(self, from_s: float = 0.0) -> None:
        """Have the session look at the time while requests are open, not before `from_s`."""
        is_looking = self.session.links.is_looking
        if self.is_closed or not (self.session.requests or is_looking):
            return
        due_s = max(self.session.next_tick_s(), self._now_s, from_s)
        if self._tick is not None:
            if self._tick.action is not None and self._tick.due_s <= due_s:
                return
            self._tick.cancel()
        self._tick = self._around.agenda.at(due_s, self._on_tick)

    def _on_tick(self) -> None:
        if not self.is_closed:
            self._went_on(*self.session.tick(self._now_s))
            self._set_tick(self._now_s + TICK_S_MIN)

    @property
    def _now_s(self) -> float:
        return self._around.agenda.now_s

    def tell(self, request: Request, message: Message) -> None:
        """Send a message about a request that has no answer of its own: a Credit."""
        self._send([(request.link, message)])

    def abandon(self, request: Request) -> None:
        """End a request from this side."""
        out = self.session.abandon(request, CancelledError(request.where))
        if out is not None:
            self._note_end(request)
            self._send(out)
            self._around.rouse()

    def wait_until(self, is_over: Callable[[], bool]) -> None:
        """Let virtual time pass until `is_over()`."""
        self._around.wait(is_over)

    def wait(self, request: Request) -> None:
        """Let virtual time pass until a request has ended."""
        self.wait_until(lambda: request.is_done)

    def connect(self) -> None:
        """Let virtual time pass until the peer has answered.

        Raises:
            UnavailableError: it did not within the timeout.
            RemoteProtocolError: it refused this client.
        """
        session = self.session
        until_s = self._now_s + session.silence_s
        if session.peer is None:
            # So that time goes on to the timeout where nothing else happens.
            self._around.agenda.at(until_s, self._around.rouse)
        self.wait_until(
            lambda: (
                session.peer is not None
                or session.refusal is not None
                or self._now_s >= until_s
            )
        )
        if session.refusal is not None:
            raise session.refusal
        if session.peer is None:
            raise session.why_unreached() or UnavailableError(
                self.endpoint, f"no peer answered within {session.silence_s:g} s"
            )

    def close(self) -> None:
        """Say goodbye and go; open requests fail."""
        if self.is_closed:
            return
        links = self.session.links.by_route.values()
        self._send([(link, Bye()) for link in links])
        self.is_closed = True
        for request in self.session.fail_all(CancelledError("the client was closed")):
            self._note_end(request)
        self._around.rouse()
        # After the goodbye has left.
        self._around.agenda.later(
            1.0, lambda: self._around.network.remove(self._transport)
        )

    def crash(self) -> None:
        """Be gone from one moment to the next, as `kill -9` does; nothing is said."""
        self.is_closed = True
        self._around.network.remove(self._transport)
        for request in self.session.fail_all(CancelledError("the client has crashed")):
            self._note_end(request)
        self._around.rouse()

    # -- requests ----------------------------------------------------------------------

    def start(
        self, make: Callable[[int, int], Any], where: str, *, object_id: bytes = b"",
        args: tuple[Any, ...] = (), timeout_s: float = 0.0, is_stream: bool = False,
    ) -> Request:  # fmt: skip
        """Send a request and note it in the history."""
        if self.is_closed:
            raise InvalidRequestError("the client is closed", self.name)
        request = self.session.open(make, self._now_s, timeout_s, where)
        request.is_stream = is_stream
        history = self._around.history
        self._open[id(request)] = (len(history), request)
        history.append(LoggedOperation(self.name, where, object_id, args, self._now_s))
        out = [(request.link, request.message)] if request.is_sent else []
        self._send(out)
        self._set_tick()
        return request

    def _note_end(self, request: Request) -> None:
        known = self._open.pop(id(request), None)
        if known is not None:
            history = self._around.history
            history[known[0]] = history[known[0]]._replace(
                ended_s=self._now_s, error=request.error
            )

    def _finish(self, request: Request) -> Any:
        self.wait(request)
        return self.decode(request.outcome())

    def decode(self, reply: Any) -> Any:
        """Return the value of a reply or an item."""
        return values.decode(
            reply.body,
            reply.buffers,
            resolve=self._stand_ins.resolve,
            unpickle=lambda name, data: load_value(name, data, self._stand_ins.resolve),
        )

    def request(self, operation: str, /, **parameters: Any) -> Any:
        """Ask the peer itself; the operations are listed in schemas/protocol.md."""
        body, buffers = values.encode(parameters, path="parameters")
        return self._finish(
            self.start(
                lambda sequence, _: messages.Request(
                    sequence, operation, None, body, buffers
                ),
                operation,
            )
        )

    # -- the Caller of all stand-ins -----------------------------------------------------

    def _call(  # noqa: PLR0913 - a call has that many parts
        self, object_id: ObjectId, method: str, operation: int, args: tuple[Any, ...],
        kwargs: dict[str, Any], options: CallOptions, *, is_stream: bool = False,
    ) -> Request:  # fmt: skip
        body, buffers = self._arguments(args, kwargs)
        timeout_s = options.timeout_s or 0.0
        deadline_ms = max(1, int(timeout_s * 1000)) if timeout_s else 0
        extra: dict[str, Any] | None = {"stream": STREAM_CREDIT} if is_stream else None
        if options is not remote.DEFAULT_OPTIONS:
            extra = call_extra(self.session.sightings, object_id, options, extra)
        return self.start(
            lambda sequence, first_unacked: messages.Call(
                sequence, object_id, method, operation, 0, first_unacked, deadline_ms,
                extra, body, buffers,
            ),
            method, object_id=object_id, args=args, timeout_s=timeout_s,
            is_stream=is_stream,
        )  # fmt: skip

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return values.encode_arguments(
            args,
            kwargs,
            ref_of=self._ref_of,
            pickle=lambda value: dump_value(value, self._ref_of),
        )

    def _ref_of(self, obj: object) -> bytes | None:
        if not isinstance(obj, (model.ActiveObject, remote.Proxy)):
            return None
        if remote.id_of(obj) is None:
            self.persist(obj)
        return bytes(remote.id_of(obj) or b"") + class_name_of_object(obj).encode()

    def invoke(
        self, object_id: ObjectId, method: str, args: tuple[Any, ...],
        kwargs: dict[str, Any], options: CallOptions,
    ) -> Any:  # fmt: skip
        """Run a method of an object; return its result, a pair where info is wanted."""
        request = self._call(object_id, method, Operation.CALL, args, kwargs, options)
        value = self._finish(request)
        if not options.with_info:
            return value
        name_of = self.session.links.name_of
        return value, info_of(request.outcome().extra, name_of, method)

    def submit(
        self, object_id: ObjectId, method: str, args: tuple[Any, ...],
        kwargs: dict[str, Any], options: CallOptions,
    ) -> SimFuture:  # fmt: skip
        """Start a method of an object and return a future of its result."""
        request = self._call(object_id, method, Operation.CALL, args, kwargs, options)
        return SimFuture(self, request)

    def stream(
        self, object_id: ObjectId, method: str, args: tuple[Any, ...],
        kwargs: dict[str, Any], options: CallOptions,
    ) -> SimItems:  # fmt: skip
        """Start a generator method of an object and return an iterator of its items."""
        request = self._call(
            object_id, method, Operation.CALL, args, kwargs, options, is_stream=True
        )
        return SimItems(self, request)

    def get_field(self, object_id: ObjectId, field: str) -> Any:
        """Read a field of an object."""
        options = remote.DEFAULT_OPTIONS
        return self._finish(
            self._call(object_id, field, Operation.GET, (), {}, options)
        )

    def set_field(self, object_id: ObjectId, field: str, value: Any) -> None:
        """Assign a field of an object; durable on return."""
        options = remote.DEFAULT_OPTIONS
        self._finish(self._call(object_id, field, Operation.SET, (value,), {}, options))

    # -- objects -----------------------------------------------------------------------

    def _home(self) -> PeerId:
        self.connect()
        assert self.session.peer is not None
        return PeerId(self.session.peer.peer_id)

    def _new_id(self, home: PeerId) -> ObjectId:
        return ObjectId(home + b"\x00" + self._around.rng.randbytes(9))

    def create(
        self, class_name: str, /, *args: Any, alias: str = "",
        replicas: int | None = None, witness: bool | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Make an object of a class of the simulation where the peer is; see Store.create.

        Raises:
            ClassNotFoundError: the class was not given to the simulation.
            AliasExistsError: the alias names another object.
            MethodError: `__init__` raised.
        """
        check_copies(replicas, witness, class_name)
        object_id = self._new_id(self._home())
        body, buffers = self._arguments(args, kwargs)
        self._finish(
            self.start(
                lambda sequence, first_unacked: messages.Create(
                    sequence, object_id, class_name, alias, 0, first_unacked, 0,
                    extra_of(replicas, witness) or None, body, buffers,
                ),
                "create", object_id=object_id, args=args,
            )
        )  # fmt: skip
        return self._stand_ins.get(object_id, class_name)

    def persist(
        self, obj: Any, /, *, alias: str = "", peer: str = "",
        replicas: int | None = None, witness: bool | None = None,
    ) -> None:  # fmt: skip
        """Keep an object and all it reaches, in one commit; each becomes remote in place.

        `peer`: "", the connected one. `replicas`, `witness`: as for Store.persist.

        Raises:
            AliasExistsError: the alias names another object.
            UnsupportedValueError: a field cannot be kept; names its path.
        """
        if remote.id_of(obj) is not None:
            raise InvalidRequestError("it is persistent already", type(obj).__name__)
        if peer:
            raise UnavailableError(
                f"peer={peer!r}", "a simulated client places nothing"
            )
        check_copies(replicas, witness, type(obj).__name__)
        found = snapshots([(obj, alias)], self._home(), self._revision_of, self._new_id)
        body, buffers = encode_states([named for _, named in found])
        self._finish(
            self.start(
                lambda sequence, first_unacked: messages.Persist(
                    sequence, 0, first_unacked, extra_of(replicas, witness) or None, body,
                    buffers,  # type: ignore[arg-type]  # no files here
                ),
                "persist", object_id=found[0][1].object_id,
            )
        )  # fmt: skip
        for one, named in found:
            object_id = ObjectId(named.object_id)
            remote.become_stand_in(one, object_id, self)
            self._stand_ins.adopt(one, object_id)

    def _revision_of(self, cls: type) -> bytes:
        class_name = model.class_name_of(cls)
        revision = self._around.revisions.get(class_name)
        if revision is None:
            raise ClassNotFoundError(class_name, tuple(self._around.revisions))
        return revision

    def get(self, name: Any) -> Any:
        """Return the object with this alias or 32-digit id.

        Raises:
            AliasNotFoundError: no object has that alias.
            ObjectNotFoundError: no object has that id.
        """
        object_id, class_name = self.identify(name)
        return self._stand_ins.get(object_id, class_name)

    def get_for_class(self, alias: str, cls: type, /) -> Any:
        """Return the object named `alias`; for `Class.get_by_alias`."""
        return self.get(alias)

    def identify(self, name: Any) -> tuple[ObjectId, str]:
        """Return id and class name of what names an object; asks the peer where needed."""
        known = remote.id_of(name)
        if known is not None:
            return known, ""
        if isinstance(name, bytes):
            return ObjectId(name), ""
        object_id = ids.parse_object_id(name)
        if object_id is not None:
            return object_id, ""
        ids.check_alias(name)
        found = self.request("resolve", alias=name)
        return ObjectId(bytes(found["object_id"])), str(found["class_name"])

    def delete(self, obj: Any) -> None:
        """Delete an object, given as stand-in, alias or id; durable on return."""
        object_id, _ = self.identify(obj)
        self._finish(
            self.start(
                lambda sequence, first_unacked: messages.Delete(
                    sequence, object_id, 0, first_unacked
                ),
                "delete",
                object_id=object_id,
            )
        )

    def locate(self, obj: Any) -> dict[str, Any]:
        """Return where an object lives, as Store.locate does."""
        object_id, _ = self.identify(obj)
        found: dict[str, Any] = self.request("locate", object_id=object_id)
        return found

    def move(self, obj: Any, peer: str) -> None:
        """Bring an object to another peer, as Store.move does.

        Raises:
            UnavailableError: no such peer can be reached; the object stays where it is.
        """
        object_id, _ = self.identify(obj)
        self.request("move", object_id=object_id, peer=peer)

    def objects(self, alias_prefix: str = "") -> Iterator[dict[str, Any]]:
        """Iterate over what is stored, as Store.objects does."""
        after = None
        while True:
            page = self.request(
                "objects", alias_prefix=alias_prefix, after=after, limit=PAGE_ROWS
            )
            yield from page["rows"]
            after = page["next"]
            if after is None:
                return

    def _interface(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.request("interface", **parameters)["interface"]
        return found


__all__ = ["LoggedOperation", "SimClient", "SimFuture", "SimItems"]
