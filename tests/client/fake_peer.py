"""A peer of the tests: a ROUTER on a free port of the loopback, told how to behave.

What it does with a Call depends on the method that the call names:

    echo       answers with the arguments as they came
    hold       keeps the call until `release`
    swallow    never answers, and sends no beats
    items      three items and the reply in one frame
    endless    one item, then nothing until `release`
    garbage    answers with bytes that are no message

With `moved_to` another peer it answers calls by naming that one, and echoes only those
that it is asked to forward; with `is_frozen` it does nothing at all, like a stopped process.
A Request is answered from `answers`, by its operation; what makes objects is done at once.
Every Reply carries `reply_extra`.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import zmq

from activestore.client.connection import Connection
from activestore.client.futures import CallFuture
from activestore.errors import ActiveStoreError, MovedError
from activestore.wire import codec, values
from activestore.wire.messages import (
    Bye,
    Call,
    Cancel,
    Create,
    Hello,
    Item,
    Message,
    Persist,
    Ping,
    Pong,
    Refused,
    Reply,
    Request,
)
from tests.client.sessions import OBJECT, PEER, failure, welcome

GARBAGE = b"HTTP/1.1 400 Bad Request\r\n\r\n"
POLL_MS = 5
MESSAGE_BYTES_MAX = 1 << 20


class FakePeer:
    """One thread with one ROUTER; `restart` makes it another incarnation."""

    def __init__(self, *, greeting: str = "welcome") -> None:
        self.greeting = greeting
        self.peer_id = PEER
        self.version = 1
        self.message_bytes_max = MESSAGE_BYTES_MAX
        self.answers: dict[str, Any] = {}
        self.reply_extra: dict[str, Any] | None = None
        self.welcome_extra: dict[str, Any] | None = None
        self.moved_to: FakePeer | None = None
        self.epoch = 1
        self.is_frozen = False
        self.incarnation = 0
        self.port = 0
        self.arrived = threading.Condition()  # Its lock guards what came.
        self._seen: list[Message] = []
        self._context = zmq.Context()
        self._start()

    @property
    def endpoint(self) -> str:
        """The address to connect to; the same after a restart."""
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def seen(self) -> list[Message]:
        """What came until now; whoever has an answer finds here what it answers."""
        with self.arrived:
            return list(self._seen)

    def _start(self) -> None:
        self.incarnation += 1
        self._routes: set[bytes] = set()
        self._held: list[tuple[bytes, Call]] = []
        self._to_send: list[tuple[bytes, Message]] = []
        self._is_stopping = False
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 100)
        self._bind()
        address = self._socket.getsockopt(zmq.LAST_ENDPOINT).decode()
        self.port = int(address.rpartition(":")[2])
        self._thread = threading.Thread(target=self._run, name="fake peer", daemon=True)
        self._thread.start()

    def _bind(self) -> None:
        """Bind, as soon as the socket before has let go of the port."""
        until_s = time.monotonic() + 5.0
        while True:
            try:
                self._socket.bind(f"tcp://127.0.0.1:{self.port or '*'}")
                return
            except zmq.ZMQError as error:
                if error.errno != zmq.EADDRINUSE or time.monotonic() > until_s:
                    raise
                time.sleep(0.01)

    def stop(self) -> None:
        """Go away; what was held is forgotten."""
        self._is_stopping = True
        self._thread.join()
        self._socket.close()
        # ZeroMQ closes in its own time; who connects until then would talk to nobody, and
        # what it sends would be lost.
        until_s = time.monotonic() + 5.0
        while time.monotonic() < until_s:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)):
                    return
            time.sleep(0.01)

    def freeze(self) -> None:
        """Do nothing any more, like a stopped process."""
        self.is_frozen = True
        time.sleep(4 * POLL_MS / 1000)  # The poll under way ends.

    def restart(self) -> None:
        """Come back at the same address as another incarnation."""
        self._start()

    def close(self) -> None:
        """Go away for good."""
        if not self._is_stopping:
            self.stop()
        self._context.term()

    # -- for the tests -----------------------------------------------------------------

    def wait_for(self, kind: type, count: int = 1, **fields: Any) -> list[Any]:
        """Wait until `count` messages of this kind with these fields came; return them."""

        def found() -> list[Any]:
            return [
                message
                for message in self.seen
                if type(message) is kind
                and all(getattr(message, k) == v for k, v in fields.items())
            ]

        with self.arrived:
            came = self.arrived.wait_for(lambda: len(found()) >= count, timeout=10)
            assert came, f"{len(found())} of {count} {kind.__name__} {fields} came"
            return found()

    def release(self, *, is_reversed: bool = False) -> None:
        """Answer all calls that are held, in order of arrival or against it."""
        held, self._held = self._held, []
        for route, call in reversed(held) if is_reversed else held:
            self._to_send.append((route, Reply(call.sequence, None, call.body)))

    # -- its thread --------------------------------------------------------------------

    def _run(self) -> None:
        while not self._is_stopping:
            while self._to_send:
                route, message = self._to_send.pop(0)
                self._send(route, [codec.encode(message)])
            if self.is_frozen:
                time.sleep(POLL_MS / 1000)
            elif self._socket.poll(POLL_MS):
                route, *frames = self._socket.recv_multipart()
                with self.arrived:
                    for message in codec.decode_frames(frames):
                        self._take(route, message)
                        self._seen.append(message)
                    self.arrived.notify_all()

    def _send(self, route: bytes, frames: list[Any]) -> None:
        self._socket.send_multipart([route, *frames])

    def _take(self, route: bytes, message: Any) -> None:
        answers: list[Message] = []
        incarnation = self.incarnation.to_bytes(16, "big")
        if type(message) is Hello:
            if self.greeting == "garbage":
                self._send(route, [GARBAGE])
            elif self.greeting == "version":
                answers = [Refused("version", "this peer speaks versions 7 to 9")]
            elif self.greeting == "welcome":
                self._routes.add(route)
                answers = [
                    welcome(incarnation)._replace(
                        peer_id=self.peer_id,
                        version=self.version,
                        limits={"message_bytes_max": self.message_bytes_max},
                        extra=self.welcome_extra,
                    )
                ]
        elif self.greeting != "welcome" or type(message) in (Bye, Cancel):
            pass
        elif type(message) is Ping:
            answers = [Pong(message.token, incarnation, route in self._routes)]
        elif route not in self._routes:
            answers = [Refused("hello_needed", "Call before Hello")]
        elif type(message) is Call:
            answers = self._serve(route, message)
        else:
            answers = self._answer(message)
        if answers:
            self._send(route, framed(answers))

    def _answer(self, message: Any) -> list[Message]:
        if type(message) in (Create, Persist):
            return [Reply(message.sequence, self.reply_extra, encoded(None))]
        if type(message) is not Request:
            return []
        answer = self.answers[message.operation]
        if isinstance(answer, ActiveStoreError):
            return [failure(message.sequence, answer)]
        body, buffers = values.encode(answer)
        return [Reply(message.sequence, None, body, buffers)]

    def _serve(self, route: bytes, call: Call) -> list[Message]:
        sequence = call.sequence
        if self.moved_to is not None and (call.extra or {}).get("direct") is not False:
            to = self.moved_to
            error = MovedError(call.object_id, to.peer_id, to.endpoint, self.epoch)
            return [failure(sequence, error)]
        if self.reply_extra is not None:
            return [Reply(sequence, self.reply_extra, encoded("told"))]
        if call.method == "echo":
            if call.buffers:
                reply = Reply(sequence, None, call.body, call.buffers)
                self._send(route, codec.encode_frames(reply))
                return []
            return [Reply(sequence, None, call.body)]
        if call.method == "items":
            items = [Item(sequence, n, None, encoded(n)) for n in range(3)]
            return [*items, Reply(sequence, None, encoded(None))]
        if call.method == "garbage":
            self._send(route, [GARBAGE])
        if call.method in ("hold", "endless"):
            self._held.append((route, call))
        return [Item(sequence, 0, None, encoded(0))] if call.method == "endless" else []


# -- calls as the store makes them -----------------------------------------------------


def encoded(value: object) -> bytes:
    """Return the encoded value."""
    return values.encode(value)[0]


def framed(answers: list[Message]) -> list[Any]:
    """Return the frames of one message; of one with buffers there is one in a frame."""
    if answers[0][-1]:
        return codec.encode_frames(answers[0])
    return [b"".join(map(codec.encode, answers))]


def maker(method: str, argument: object = None, **fields: Any) -> Any:
    """Return what makes the Call once it has its numbers."""
    body, buffers = values.encode(argument)

    def make(sequence: int, first_unacked: int) -> Call:
        call = Call(
            sequence, OBJECT, method, 0, 0, first_unacked, 0, None, body, buffers
        )
        return call._replace(**fields)

    return make


def decode(reply: Any) -> Any:
    """Return the value of a reply or an item."""
    return values.decode(reply.body, reply.buffers)


def call(connection: Connection, method: str, argument: object = None) -> Any:
    """Call and wait for the result."""
    request = connection.call(maker(method, argument), timeout_s=0.0, where=method)
    return decode(request.outcome())


def submit(connection: Connection, method: str, argument: object = None) -> CallFuture:
    """Call and return a future of the result."""
    future = CallFuture(connection, decode)
    future.request = connection.start(
        maker(method, argument), timeout_s=0.0, where=method, on_done=future.settle
    )
    return future


def stream(connection: Connection, method: str) -> Request:
    """Start a stream; its items are waited for with `wait_for`."""
    return connection.start(maker(method), timeout_s=0.0, where=method, is_stream=True)
