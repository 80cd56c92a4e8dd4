"""One DEALER socket used by many threads, without a thread of its own for plain calls.

A thread that waits for a result reads the socket itself and serves the others too: it
is the *leader*. The others sleep and one of them takes over when the leader has its
result. Futures and streams that nobody waits for are served by a pump thread, which
starts with the first of them and stands back while some thread leads.

Rules of this file: the socket is touched only under `_lock`; whoever touches it drains
it or wakes the leader, because ZeroMQ's descriptor tells of each change once and even
sending may take that away. Nobody polls under the lock.
What a user's callback does happens outside the lock.

Source: design section 4; reliability.md section 6.
"""

from __future__ import annotations

import errno
import os
import random
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq

from activestore.client.session import Request, Session
from activestore.errors import (
    ActiveStoreError,
    CancelledError,
    ConfigurationError,
    InvalidRequestError,
    RemoteProtocolError,
    TooLargeError,
    UnavailableError,
)
from activestore.ids import new_session_id
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
# The pump looks this often after records that wait for company.
PUMP_TICK_S = 0.001
# For this long after a thread led, the pump leaves the socket to such threads.
STAND_BACK_S = 0.005

# The calls below run several times per call; pyzmq's own layer above them costs up to 1 us
# each for turning numbers into enums.
_get: Any = zmq.backend.Socket.get
_send = zmq.backend.Socket.send
_receive = zmq.backend.Socket.recv
_EVENTS, _RCVMORE = int(zmq.EVENTS), int(zmq.RCVMORE)
_POLLIN, _NOBLOCK = int(zmq.POLLIN), int(zmq.NOBLOCK)

_now = time.monotonic


class Connection:
    """The connection of one client to one peer."""

    def __init__(self, endpoint: str, timeout_s: float, name: str) -> None:
        self.endpoint = endpoint
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._context = zmq.Context(1)
        self._socket = self._context.socket(zmq.DEALER)
        self._connect(endpoint)
        self._fd = int(self._socket.getsockopt(zmq.FD))
        # A byte in this pipe ends the leader's poll; there is never more than one.
        self._wake_fd, self._wake_end_fd = os.pipe()
        self._is_roused = False
        self._leader = 0
        self._led_s = 0.0
        self._waiters: list[Any] = []
        self._records: list[bytes] = []
        self._unsent: list[list[Any]] = []
        self._pump: threading.Thread | None = None
        self._pump_wake = threading.Event()
        self._unwaited = 0
        self._dropped: deque[Request] = deque()
        self.is_closed = False
        self._has_greeted = False
        self.session = Session(
            new_session_id(),
            name,
            endpoint,
            timeout_s,
            random.Random().random,  # noqa: S311 - jitter, not a secret
        )

    def _connect(self, endpoint: str) -> None:
        socket = self._socket
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, HIGH_WATER_MARK),
            (zmq.RCVHWM, HIGH_WATER_MARK),
            (zmq.MAXMSGSIZE, FRAME_BYTES_MAX),
            (zmq.RECONNECT_IVL, RECONNECT_MS),
            (zmq.RECONNECT_IVL_MAX, RECONNECT_MS_MAX),
            (zmq.HEARTBEAT_IVL, HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS),
            (zmq.HEARTBEAT_TTL, HEARTBEAT_TTL_MS),
        ):
            socket.setsockopt(option, value)
        if "[" in endpoint:
            socket.setsockopt(zmq.IPV6, 1)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            socket.close(0)
            self._context.term()
            raise ConfigurationError(
                "endpoint",
                f"{endpoint!r} is no address: {zmq.strerror(error.errno or 0)}; "
                "expected one like tcp://127.0.0.1:7400",
            ) from None

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
                self._queue([codec.encode(session.hello())])
        while session.peer is None:
            left_s = deadline_s - _now()
            if left_s <= 0:
                raise UnavailableError(
                    self.endpoint,
                    f"no peer answered within {wait_s:g} s; start one with "
                    f"`activestore-node start --listen {self.endpoint}`",
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
                self._queue([codec.encode(Bye())])
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
                self._put(request.message, may_wait=on_done is not None)
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

    def _put(self, message: Message, *, may_wait: bool) -> None:
        size = len(message[-2]) + sum(map(bytes_count, message[-1]))
        peer = self.session.peer
        if peer is not None and size > peer.message_bytes_max:
            raise TooLargeError(
                "arguments",
                size,
                peer.message_bytes_max,
                "message_bytes_max of the peer",
            )
        if message[-1]:
            self._flush_records()
            self._queue(codec.encode_frames(message))
            return
        record = codec.encode(message)
        if may_wait and len(self.session.requests) > BATCH_FROM:
            self._records.append(record)
            if len(self._records) >= BATCH_RECORDS:
                self._flush_records()
        elif self._records:
            self._records.append(record)
            self._flush_records()
        else:
            self._queue([record])

    def _flush_records(self) -> None:
        records = self._records
        while records:
            part = records[:RECORDS_PER_FRAME_MAX]
            del records[:RECORDS_PER_FRAME_MAX]
            self._queue([b"".join(part)])

    def _queue(self, frames: list[Any]) -> None:
        if self._unsent or not self._write(frames):
            self._unsent.append(frames)

    def _write(self, frames: list[Any]) -> bool:
        """Hand one message to ZeroMQ; False where it takes no more now."""
        socket, last = self._socket, len(frames) - 1
        i = 0
        try:
            if last:
                for i, frame in enumerate(frames):
                    flags = zmq.NOBLOCK if i == last else zmq.SNDMORE | zmq.NOBLOCK
                    socket.send(frame, flags, copy=i == 0)
            else:
                _send(socket, frames[0], _NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno == zmq.EAGAIN and i == 0:
                self._rouse()  # The leader is to try again soon.
                return False  # A message is refused at its first frame or not at all.
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

    def tell(self, message: Message) -> None:
        """Send a message that has no answer of its own: Cancel, Credit."""
        with self._lock:
            if not self.is_closed:
                self._flush_records()
                self._queue([codec.encode(message)])

    def abandon(self, request: Request, error: ActiveStoreError) -> None:
        """End a request from this side."""
        with self._lock:
            message = self.session.abandon(request, error)
            if message is not None and not self.is_closed:
                self._flush_records()
                self._queue([codec.encode(message)])
                self._rouse()  # The leader may be waiting for this very request.
        if message is not None:
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
                    self._put(request.message, may_wait=False)
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

    def wait(self, request: Request, until_s: float | None = None) -> bool:
        """Wait until the request has ended; False where `until_s` passed before.

        An exception in the waiting thread, such as KeyboardInterrupt, cancels the
        request.
        """
        return self.wait_for(lambda: request.is_done, request, until_s)

    def wait_for(
        self,
        is_over: Callable[[], bool],
        request: Request,
        until_s: float | None = None,
    ) -> bool:
        """Wait for `is_over`, which only incoming messages can make true."""
        if is_over():
            return True
        me = threading.get_ident()
        try:
            while not is_over():
                if until_s is not None and _now() >= until_s:
                    return False
                if self._lead(me):
                    try:
                        self._turn_until(is_over, until_s)
                    finally:
                        self._hand_over()
                else:
                    self._follow(request, is_over, until_s)
        except (KeyboardInterrupt, SystemExit):
            self.abandon(request, CancelledError(request.where))
            raise
        finally:
            self._pass_on()
        return True

    def _lead(self, me: int) -> bool:
        with self._lock:
            if self._leader in (0, me):
                self._leader = me
                return True
        return False

    def _hand_over(self) -> None:
        with self._lock:
            self._leader = 0
            self._led_s = _now()
            waiter = self._waiters[0] if self._waiters else None
        if waiter is not None:
            waiter.set()

    def _pass_on(self) -> None:
        """Wake another waiter where nobody leads: we may have been woken for that."""
        if self._waiters and not self._leader:
            with self._lock:
                heir = self._waiters[0] if self._waiters else None
            if heir is not None:
                heir.set()

    def _turn_until(self, is_over: Callable[[], bool], until_s: float | None) -> None:
        while not is_over():
            wait_s = 0.25
            if until_s is not None:
                wait_s = min(wait_s, until_s - _now())
                if wait_s <= 0:
                    return
            self._turn(wait_s)

    def _follow(
        self, request: Request, is_over: Callable[[], bool], until_s: float | None
    ) -> None:
        with self._lock:
            if self._leader == 0:
                return
            waiter = request.waiter  # Several threads may wait for one request.
            if waiter is None:
                waiter = request.waiter = threading.Event()
            self._waiters.append(waiter)
            self._flush_records()
        try:
            # Asked after the waiter can be seen: what ends later will wake it.
            if not is_over():
                waiter.wait(
                    0.25 if until_s is None else max(0.0, min(0.25, until_s - _now()))
                )
        finally:
            with self._lock:
                self._waiters.remove(waiter)
                if waiter not in self._waiters:
                    request.waiter = None

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
                for message in out:
                    self._queue(codec.encode_frames(message))
            ended = [*ended, *more]
        if ended:
            self._tell(ended)

    def _drain(self) -> list[Request]:
        """Take everything that is there; under the lock."""
        if self.is_closed:
            return []
        if self._is_roused:
            self._is_roused = False
            os.read(self._wake_fd, 1)
        socket, session = self._socket, self.session
        ended: list[Request] = []
        while self._unsent and self._write(self._unsent[0]):
            del self._unsent[0]
        while _get(socket, _EVENTS) & _POLLIN:
            frames: list[Any] = [_receive(socket, _NOBLOCK)]
            while _get(socket, _RCVMORE):
                frames.append(_receive(socket, _NOBLOCK, False).buffer)
            now_s = _now()
            try:
                for message in codec.decode_frames(frames, codec.joined):
                    more, out = session.take(message, now_s)
                    ended.extend(more)
                    for answer in out:
                        self._queue(codec.encode_frames(answer))
            except RemoteProtocolError as error:
                told = RemoteProtocolError(
                    f"what answers there is no activestore peer: {error}", self.endpoint
                )
                session.refusal = told
                ended.extend(session.fail_all(told))
        return ended

    def _tell(self, ended: list[Request]) -> None:
        """Call or wake those whose requests moved on; outside the lock.

        A stream may be in `ended` several times.
        """
        counted = [request for request in ended if request.is_counted]
        if counted:
            with self._lock:
                for request in counted:
                    if request.is_done and request.is_counted:
                        request.is_counted = False
                        self._unwaited -= 1
        for request in ended:
            # First the callback: it makes true what the waiter looks for.
            if request.on_done is not None and request.is_done:
                request.on_done(request)
            waiter = request.waiter
            if waiter is not None:
                waiter.set()

    # -- the pump ----------------------------------------------------------------------

    def _start_pump(self) -> None:
        self._pump = threading.Thread(
            target=self._run_pump, name="activestore", daemon=True
        )
        self._pump.start()

    def _run_pump(self) -> None:
        me = threading.get_ident()
        while not self.is_closed:
            if not self._unwaited:
                self._pump_wake.clear()
                if not self._unwaited:  # It may have changed before the clear.
                    self._pump_wake.wait(1.0)
                continue
            if self._leader or _now() - self._led_s < STAND_BACK_S:
                time.sleep(PUMP_TICK_S)
                with self._lock:
                    if self._records and not self.is_closed:
                        self._flush_records()
                continue
            if self._lead(me):
                try:
                    self._turn(PUMP_TICK_S if self._records else 0.02)
                finally:
                    led_s = self._led_s
                    self._hand_over()
                    self._led_s = (
                        led_s  # Only foreground threads make the pump stand back.
                    )


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
