"""One socket to all peers, used by many threads; see `waiting` for which of them reads.

It is a ROUTER that only connects: each link has a route that it was connected with, and
one descriptor tells of all of them.

Rules of this file: the socket is touched only under `_lock`; whoever touches it drains
it or wakes the leader, because ZeroMQ's descriptor tells of each change once and even
sending may take that away. Nobody polls under the lock.
What a user's callback does happens outside the lock.

Source: design section 4; reliability.md section 6; docs/decisions/0009.
"""

from __future__ import annotations

import errno
import os
import random
import re
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from activestore.client.knocking import is_listened_to, is_refused
from activestore.client.links import Link
from activestore.client.requests import Request
from activestore.client.session import Out, Session
from activestore.client.waiting import Waiting
from activestore.errors import (
    ActiveStoreError,
    CancelledError,
    ConfigurationError,
    InvalidRequestError,
    RemoteProtocolError,
    TooLargeError,
    UnavailableError,
)
from activestore.ids import PeerId, new_session_id
from activestore.wire import codec
from activestore.wire.limits import FRAME_BYTES_MAX, RECORDS_PER_FRAME_MAX
from activestore.wire.messages import Bye, Message, bytes_count

HIGH_WATER_MARK = 1000
# A client wants its peer back fast; peers among themselves back off further.
RECONNECT_MS, RECONNECT_MS_MAX = 50, 1000
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS, HEARTBEAT_TTL_MS = 2000, 6000, 8000
# Submitted calls go out at once while fewer than this are open, else many in one frame.
BATCH_FROM = 8
BATCH_RECORDS = 32
# ZeroMQ looks up names in the thread that moves the bytes, and waits there. So links to
# names have threads of their own, as many as the user gave addresses.
NAME_THREADS_MAX = 8

# The calls below run several times per call; pyzmq's own layer above them costs up to 1 us
# each for turning numbers into enums.
_get: Any = zmq.backend.Socket.get
_send = zmq.backend.Socket.send
_receive = zmq.backend.Socket.recv
_EVENTS, _RCVMORE = int(zmq.EVENTS), int(zmq.RCVMORE)
_POLLIN, _NOBLOCK, _SNDMORE = int(zmq.POLLIN), int(zmq.NOBLOCK), int(zmq.SNDMORE)

_now = time.monotonic
# Whoever has such an address is not looked up.
_LITERAL = re.compile(r"ipc://|tcp://(\[|[0-9.]+:)")
_OPTIONS = (
    (zmq.ROUTER_MANDATORY, 1),
    (zmq.LINGER, 0),
    (zmq.SNDHWM, HIGH_WATER_MARK),
    (zmq.RCVHWM, HIGH_WATER_MARK),
    (zmq.MAXMSGSIZE, FRAME_BYTES_MAX),
    (zmq.RECONNECT_IVL, RECONNECT_MS),
    (zmq.RECONNECT_IVL_MAX, RECONNECT_MS_MAX),
    (zmq.HEARTBEAT_IVL, HEARTBEAT_MS),
    (zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS),
    (zmq.HEARTBEAT_TTL, HEARTBEAT_TTL_MS),
)


class Connection(Waiting):
    """The connections of one client: to one peer, and to those that it names."""

    def __init__(
        self, endpoints: str | Sequence[str], timeout_s: float, name: str
    ) -> None:
        super().__init__()
        given = [endpoints] if isinstance(endpoints, str) else endpoints
        self._pid = os.getpid()
        self._name_threads = min(len(given), NAME_THREADS_MAX)
        self._context = zmq.Context(1 + self._name_threads)
        self._socket = self._context.socket(zmq.ROUTER)
        for option, value in _OPTIONS:
            self._socket.setsockopt(option, value)
        self.session = Session(
            new_session_id(),
            name,
            given,
            timeout_s,
            random.Random().random,  # noqa: S311 - jitter, not a secret
        )
        self._addresses: dict[bytes, str] = {}
        self._connect_given(given)
        self._fd = int(self._socket.getsockopt(zmq.FD))
        # A byte in this pipe ends the leader's poll; there is never more than one.
        self._wake_fd, self._wake_end_fd = os.pipe()
        self._is_roused = False
        self._unsent: dict[bytes, deque[list[Any]]] = {}
        self._dropped: deque[Request] = deque()
        # Ended while something was sent, and still to be told outside the lock.
        self._ended_meanwhile: list[Request] = []
        self._has_greeted = False

    @property
    def endpoint(self) -> str:
        """The address of the connected peer."""
        return self.session.endpoint

    def connected_peer(self) -> PeerId:
        """Return the connected peer's id.

        Raises:
            UnavailableError: it has not answered yet.
        """
        peer = self.session.peer
        if peer is None:
            raise UnavailableError(self.endpoint, "the peer has not answered yet")
        return PeerId(peer.peer_id)

    # -- links -------------------------------------------------------------------------

    def _connect_given(self, endpoints: Sequence[str]) -> None:
        """Connect the first address, and refuse those that are none while the user is here.

        Raises:
            ConfigurationError: one is no address.
        """
        main = self.session.links.opened.pop(0)
        for number, endpoint in enumerate(endpoints, 1):
            is_first = number == main.number
            route = main.route if is_first else b"?%d" % number
            try:
                self._connect(endpoint, route, number)
            except zmq.ZMQError as error:
                self._socket.close(0)
                self._context.term()
                raise ConfigurationError(
                    "endpoint",
                    f"{endpoint!r} is no address: {zmq.strerror(error.errno or 0)}; "
                    "expected one like tcp://127.0.0.1:7400",
                ) from None
            if not is_first:
                self._disconnect(route)

    def _connect(self, endpoint: str, route: bytes, number: int) -> None:
        # ZeroMQ ends all connections to an address at once, and compares addresses as
        # text: more zeros before a port, or slashes before a path, are another text.
        address = endpoint
        while address in self._addresses.values():
            if address.startswith("ipc://"):
                address = f"ipc://{'/' if address[6] == '/' else './'}{address[6:]}"
            else:
                host, _, port = address.rpartition(":")
                address = f"{host}:0{port}"
        thread = 0 if _LITERAL.match(address) else 1 + number % self._name_threads
        socket = self._socket
        socket.setsockopt(zmq.AFFINITY, 1 << thread)
        socket.setsockopt(zmq.IPV6, int("[" in address))
        socket.setsockopt(zmq.CONNECT_ROUTING_ID, route)
        socket.connect(address)
        self._addresses[route] = address

    def _disconnect(self, route: bytes) -> None:
        address = self._addresses.pop(route, None)
        if address is not None:
            self._socket.disconnect(address)

    def _follow_links(self) -> None:
        """Open and end connections as the session wants them; under the lock."""
        links = self.session.links
        while links.opened:
            link = links.opened.pop(0)
            if not link.is_open:
                continue
            try:
                self._connect(link.endpoint, link.route, link.number)
            except zmq.ZMQError as error:  # A peer named it; the user's were checked.
                why = RemoteProtocolError(
                    f"it is no address: {zmq.strerror(error.errno or 0)}", link.endpoint
                )
                ended, out = self.session.give_up(link, why, _now())
                self._ended_meanwhile += ended
                self._send_out(out)
            else:
                self._queue(link.route, [codec.encode(link.first)])
        while links.ended:
            link = links.ended.pop(0)
            route = link.route
            self._records.pop(route, None)
            self._unsent.pop(route, None)
            self._disconnect(route)
            self.session.chunking.end(link)

    def _send_out(self, out: Out) -> None:
        """Send what the session wants sent; under the lock."""
        links = self.session.links
        if links.opened or links.ended:
            self._follow_links()
        for link, message in out:
            if link.is_open:
                if self._records:
                    self._flush_records()
                self._send_whole(link, message)

    def _send_whole(self, link: Link, message: Message) -> None:
        """Send a message that shares no frame, in chunks where its link has them."""
        for one in self.session.chunking.on_wire(link, message, _now()):
            self._queue(link.route, codec.encode_frames(one))

    # -- life --------------------------------------------------------------------------

    def shake_hands(self, wait_s: float | None = None) -> None:
        """Say Hello and wait for the Welcome; another call goes on waiting.

        Args:
            wait_s: For how long, in seconds; None for the timeout.

        Raises:
            UnavailableError: nobody answered within that time.
            RemoteProtocolError: what answered is no peer, or of another version.
        """
        session = self.session
        wait_s = session.silence_s if wait_s is None else wait_s
        deadline_s = _now() + wait_s
        if not self._has_greeted:
            self._has_greeted = True
            with self._lock:
                main = session.links.main
                session.begin(_now())
                self._queue(main.route, [codec.encode(main.first)])
        while session.peer is None:
            left_s = deadline_s - _now()
            if left_s <= 0:
                links = session.links
                raise session.why_unreached() or links.why_nobody(
                    wait_s, is_silent=is_listened_to(links.given[0])
                )
            self._turn(min(left_s, 0.1))
            if session.refusal is not None:
                raise session.refusal

    def close(self) -> None:
        """Say goodbye and close; open requests fail."""
        with self._lock:
            if self.is_closed:
                return
            self.is_closed = True
            if self._pid == os.getpid():
                self._flush_records()
                for link in self.session.links.by_route.values():
                    if link.peer is not None:
                        self._queue(link.route, [codec.encode(Bye())])
                self._socket.setsockopt(zmq.LINGER, 100)
            ended = self.session.fail_all(CancelledError("the client was closed"))
            self._rouse()
        self._tell(ended)
        self._pump_wake.set()
        if self._pump is not None and self._pump is not threading.current_thread():
            self._pump.join()
        if self._pid == os.getpid():
            self._socket.close()
            self._context.term()
            os.close(self._wake_fd)
            os.close(self._wake_end_fd)

    def _check(self) -> None:
        if self.is_closed:
            raise InvalidRequestError(
                "the store is closed; connect again", self.endpoint
            )
        if self._pid != os.getpid():
            raise InvalidRequestError(
                "a store does not survive a fork; connect in the child", self.endpoint
            )

    # -- sending -----------------------------------------------------------------------

    def start(
        self,
        make: Callable[[int, int], Any],
        *,
        timeout_s: float,
        where: str,
        on_done: Callable[[Request], None] | None = None,
        is_stream: bool = False,
    ) -> Request:
        """Send a request; `make(sequence, first_unacked)` returns its message.

        With `on_done`, it is called in some thread when the request has ended, and the
        request may wait a moment for others to share its frame.
        """
        self._check()
        with self._lock:
            request = self.session.open(make, _now(), timeout_s, where)
            request.on_done = on_done
            request.is_stream = is_stream
            try:
                self._begin(request, may_wait=on_done is not None)
            except ActiveStoreError:
                self.session.requests.pop(request.sequence, None)
                raise
            if on_done is not None or is_stream:
                request.is_counted = True
                self._unwaited += 1
                if self._pump is None:
                    self._start_pump()
                elif self._unwaited == 1:
                    self._pump_wake.set()
        return request

    def _begin(self, request: Request, *, may_wait: bool) -> None:
        """Send a new request, or hold it where its link is not welcomed yet."""
        links, link, message = self.session.links, request.link, request.message
        is_held = not request.is_sent
        if links.opened or links.ended:
            self._follow_links()
        peer = link.peer
        if peer is not None:
            size = len(message[-2]) + sum(map(bytes_count, message[-1]))
            if size > peer.message_bytes_max:
                raise TooLargeError(
                    "arguments",
                    size,
                    peer.message_bytes_max,
                    "message_bytes_max of the peer",
                )
        if not is_held:
            self._put(link, message, may_wait=may_wait)

    def _put(self, link: Link, message: Message, *, may_wait: bool) -> None:
        route = link.route
        if message[-1] or self.session.chunking.holds(link, message):
            self._flush_records()
            self._send_whole(link, message)
            return
        record = codec.encode(message)
        if may_wait and len(self.session.requests) > BATCH_FROM:
            records = self._records.get(route)
            if records is None:
                self._records[route] = [record]
                return
            records.append(record)
            if len(records) >= BATCH_RECORDS:
                self._flush_records()
        elif self._records:
            self._records.setdefault(route, []).append(record)
            self._flush_records()
        else:
            self._queue(route, [record])

    def _flush_records(self) -> None:
        while self._records:
            route, records = self._records.popitem()
            for start in range(0, len(records), RECORDS_PER_FRAME_MAX):
                part = records[start : start + RECORDS_PER_FRAME_MAX]
                self._queue(route, [b"".join(part)])

    def _queue(self, route: bytes, frames: list[Any]) -> None:
        if route in self._unsent or not self._write(route, frames):
            self._unsent.setdefault(route, deque()).append(frames)

    def _write(self, route: bytes, frames: list[Any]) -> bool:
        """Hand one message to ZeroMQ; False where it takes no more now."""
        socket, last = self._socket, len(frames) - 1
        try:
            _send(socket, route, _SNDMORE | _NOBLOCK)
            if last:  # A message is refused at its route or not at all.
                for i, frame in enumerate(frames):
                    flags = zmq.NOBLOCK if i == last else zmq.SNDMORE | zmq.NOBLOCK
                    socket.send(frame, flags, copy=i == 0)
            else:
                _send(socket, frames[0], _NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno == zmq.EAGAIN:
                self._rouse()  # The leader is to try again soon.
                return False
            if error.errno == errno.EHOSTUNREACH:
                return True  # The link has ended.
            if error.errno in (zmq.ENOTSOCK, zmq.ETERM, errno.EBADF):
                raise InvalidRequestError(
                    "the store is closed", self.endpoint
                ) from None
            raise
        if self._leader and _get(socket, _EVENTS) & _POLLIN:
            self._rouse()
        return True

    def _rouse(self) -> None:
        """End the poll of the leader, if there is one; under the lock."""
        if self._leader and not self._is_roused:
            self._is_roused = True
            os.write(self._wake_end_fd, b"\0")

    def tell(self, message: Message, request: Request | None = None) -> None:
        """Send a message that has no answer of its own: Cancel, Credit."""
        links = self.session.links
        with self._lock:
            if not self.is_closed:
                self._flush_records()
                link = links.main if request is None else request.link
                self._send_whole(link, message)

    def abandon(self, request: Request, error: ActiveStoreError) -> None:
        """End a request from this side."""
        with self._lock:
            out = self.session.abandon(request, error)
            if out is not None and not self.is_closed:
                self._send_out(out)
                self._rouse()  # The leader may be waiting for this very request.
        if out is not None:
            self._tell([request])

    def drop(self, request: Request) -> None:
        """End a request soon; for finalizers, which may run under the lock."""
        self._dropped.append(request)

    # -- waiting -----------------------------------------------------------------------

    def call(
        self, make: Callable[[int, int], Any], *, timeout_s: float, where: str
    ) -> Request:
        """Send a request and wait until it has ended: `start` and `wait` in one.

        The common case, one thread and nothing else on its way, takes the lock twice.
        """
        self._check()
        me = threading.get_ident()
        request: Request | None = None
        leads = False
        try:  # From the first byte sent: an interrupt may come at any point.
            with self._lock:
                request = self.session.open(make, _now(), timeout_s, where)
                try:
                    self._begin(request, may_wait=False)
                except ActiveStoreError:
                    self.session.requests.pop(request.sequence, None)
                    raise
                ended: list[Request] = []
                leads = not self._leader
                if leads:
                    self._leader = me
                    ended = self._drain()
            if leads:
                self._lead_until_done(request, ended)
            else:
                self.wait(request)
        except (KeyboardInterrupt, SystemExit):
            if request is not None:
                self.abandon(request, CancelledError(request.where))
            raise
        finally:
            if leads and self._leader == me:
                self._hand_over()
        return request

    def _lead_until_done(self, request: Request, ended: list[Request]) -> None:
        poll = _poller(self._fd, self._wake_fd).poll
        while True:
            if ended:
                self._tell(ended)
            if request.is_done:
                return
            left_s = self.session.next_tick_s() - _now()
            if left_s <= 0 or self._unsent:
                self._turn(0.002)
                ended = []
                continue
            poll(left_s * 1000)
            with self._lock:
                ended = self._drain()

    # -- one turn ----------------------------------------------------------------------

    def _turn(self, wait_s: float) -> None:
        """Send what waits, take what is there, or wait for it once."""
        while self._dropped:
            request = self._dropped.popleft()
            self.abandon(request, CancelledError(request.where))
        with self._lock:
            if self._records:
                self._flush_records()
            ended = self._drain()
            now_s = _now()
            next_s = self.session.next_tick_s()
        if not ended and now_s < next_s:
            wait_s = min(wait_s, next_s - now_s)
            if self._unsent:
                wait_s = min(wait_s, 0.002)
            _poller(self._fd, self._wake_fd).poll(max(0.0, wait_s * 1000))
            with self._lock:
                ended = self._drain()
                now_s = _now()
        if now_s >= self.session.next_tick_s():
            with self._lock:
                more, out = self.session.tick(now_s)
                self._send_out(out)
            ended = [*ended, *more]
            for link in self.session.links.silent:
                if is_refused(link.endpoint):
                    ended += self._give_up_refused(link)
        if ended:
            self._tell(ended)

    def _give_up_refused(self, link: Link) -> list[Request]:
        with self._lock:
            ended, out = self.session.refused(link, _now())
            if not self.is_closed:
                self._send_out(out)
        return ended

    def _drain(self) -> list[Request]:
        """Take everything that is there; under the lock."""
        if self.is_closed:
            return []
        ended: list[Request] = []
        if self._is_roused or self._unsent or self._ended_meanwhile:
            ended = self._catch_up()
        socket, session = self._socket, self.session
        links = session.links
        while _get(socket, _EVENTS) & _POLLIN:
            route = _receive(socket, _NOBLOCK)
            frames: list[Any] = [_receive(socket, _NOBLOCK)]
            while _get(socket, _RCVMORE):
                frames.append(_receive(socket, _NOBLOCK, False).buffer)
            link = links.by_route.get(route)
            if link is None:
                continue
            now_s = _now()
            try:
                for message in codec.decode_frames(frames, codec.joined):
                    more, out = session.take(message, now_s, link)
                    ended.extend(more)
                    if out or links.opened or links.ended:
                        self._send_out(out)
            except RemoteProtocolError as error:
                ended += self._give_up(link, error, now_s)
        return ended

    def _give_up(
        self, link: Link, error: RemoteProtocolError, now_s: float
    ) -> list[Request]:
        """Go on without who talks nonsense; under the lock."""
        told = RemoteProtocolError(
            f"what answers there is no activestore peer: {error}", link.endpoint
        )
        ended, out = self.session.give_up(link, told, now_s)
        self._send_out(out)
        return ended

    def _catch_up(self) -> list[Request]:
        """Do what an earlier turn left: the leader was roused for it."""
        if self._is_roused:
            self._is_roused = False
            os.read(self._wake_fd, 1)
        for route, waiting in list(self._unsent.items()):
            while waiting and self._write(route, waiting[0]):
                waiting.popleft()
            if not waiting:
                self._unsent.pop(route, None)
        ended, self._ended_meanwhile = self._ended_meanwhile, []
        return ended


_local = threading.local()


def _poller(*fds: int) -> Any:
    """Return this thread's poll object for these descriptors."""
    known = getattr(_local, "pollers", None)
    if known is None:
        known = _local.pollers = {}
    poll = known.get(fds)
    if poll is None:
        poll = known[fds] = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
    return poll
