"""The ROUTER socket: frames in and out, and what ZeroMQ does wrong by default put right.

MANDATORY, so that a reply to nobody is an error and not silence; a bounded backlog per
route, so that one slow client costs itself and nobody else; heartbeats, so that
half-open connections end. The same socket connects to other peers: such a *link* has a
route from the start, and what is sent before anybody is there waits, within bounds.

Rules of this file: it knows frames and routes; sessions and meaning are the loop's.
Only the loop's thread comes here, and nothing here waits for the network.

Source: reliability.md section 6; docs/decisions/0009.
"""

from __future__ import annotations

import errno
import ipaddress
import os
from collections import deque
from typing import Any

import zmq

from activestore.errors import ConfigurationError
from activestore.peer.addresses import check_endpoint
from activestore.wire import codec
from activestore.wire.limits import FRAME_BYTES_MAX, RECORDS_PER_FRAME_MAX
from activestore.wire.messages import Buffer, Message

HEARTBEAT_MS = 2000
HEARTBEAT_TIMEOUT_MS = 6000
HEARTBEAT_TTL_MS = 8000
HANDSHAKE_MS = 5000
# All that it changes: ZeroMQ speaks no version 1 of its protocol. What web servers answer
# looks like that, and libzmq 4.3.5 may end the process over it. It gives such a link up.
ZAP_DOMAIN = b"activestore"
# Messages per connection inside ZeroMQ; beyond it ours wait in the route's backlog.
HIGH_WATER_MARK = 1000
# Bytes that may wait for one client that does not read; more, and it is given up.
BACKLOG_BYTES_MAX = 256 * 1024 * 1024
LINGER_MS = 1000
# A peer that is away is looked for at once and then less and less often.
RECONNECT_MS, RECONNECT_MS_MAX = 100, 30_000
CONNECT_TIMEOUT_MS = 3000
# Bytes that ZeroMQ holds for a link since its other side was heard last; more waits here,
# under the bound of a backlog. ZeroMQ itself counts messages, whatever their size.
UNHEARD_BYTES_MAX = 64 * 1024 * 1024
# Links begin with this and go on with chance: no route that ZeroMQ makes up begins so,
# and nobody who connects can ask for one that is in use.
LINK_PREFIX, LINK_BYTES = b"L", 8
# ZeroMQ looks up names in the thread that moves the bytes, and waits there. So links to
# names have a thread of their own: one that cannot be looked up delays no others.
IO_THREADS, IO_BYTES_ONLY, IO_NAMES = 2, 1, 2
# A joined frame stops growing here: it must not hold up the next client's answers.
JOINED_BYTES_MAX = 256 * 1024


# The calls below run several times per message; pyzmq's own layer above them costs up to
# 1 us each for turning numbers into enums.
_get: Any = zmq.backend.Socket.get
_send = zmq.backend.Socket.send
_receive = zmq.backend.Socket.recv
_EVENTS, _RCVMORE = int(zmq.EVENTS), int(zmq.RCVMORE)
_POLLIN, _NOBLOCK, _SNDMORE = int(zmq.POLLIN), int(zmq.NOBLOCK), int(zmq.SNDMORE)


class RouterTransport:
    """All connections of one peer."""

    def __init__(self, listen: str, *, sockets_max: int = 4096) -> None:
        self._context = zmq.Context(IO_THREADS)
        self._context.setsockopt(zmq.MAX_SOCKETS, max(64, sockets_max))
        socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
        socket.setsockopt(zmq.LINGER, LINGER_MS)
        socket.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
        socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TTL_MS)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MS_MAX)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
        socket.setsockopt(zmq.AFFINITY, IO_BYTES_ONLY)
        if "[" in listen:
            socket.setsockopt(zmq.IPV6, 1)
        self._socket = socket
        # Links: the address as ZeroMQ knows it, and the bytes that nobody has taken.
        self._links: dict[bytes, str] = {}
        self._unheard_bytes: dict[bytes, int] = {}
        self._out: dict[bytes, list[bytes]] = {}
        self._backlog: dict[bytes, deque[list[Buffer]]] = {}
        self._backlog_bytes: dict[bytes, int] = {}
        self._gone: list[bytes] = []
        self.bytes_in = 0
        self.bytes_out = 0
        try:
            socket.bind(listen)
        except zmq.ZMQError as error:
            socket.close(0)
            self._context.term()
            raise ConfigurationError("listen", _why_not_bound(listen, error)) from None
        self.endpoint: str = socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def wake_fd(self) -> int:
        """Return the descriptor that becomes readable when messages may be here."""
        return int(self._socket.getsockopt(zmq.FD))

    def has_input(self) -> bool:
        """Return whether a message is here. The descriptor is edge-triggered: ask this."""
        return bool(_get(self._socket, _EVENTS) & _POLLIN)

    def connect(self, endpoint: str) -> bytes:
        """Open a link to another peer and return its route; it never waits for anybody.

        The link finds the other side again after a restart of either. Several links may
        lead to one endpoint.

        Raises:
            ConfigurationError: it is no address.
        """
        check_endpoint(endpoint, "endpoint", port_min=1)
        route = LINK_PREFIX + os.urandom(LINK_BYTES)
        address = self._unused_form(endpoint)
        socket = self._socket
        socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        socket.setsockopt(
            zmq.AFFINITY, IO_NAMES if _has_name(endpoint) else IO_BYTES_ONLY
        )
        socket.setsockopt(zmq.CONNECT_ROUTING_ID, route)
        try:
            socket.connect(address)
        except zmq.ZMQError as error:
            raise ConfigurationError(
                "endpoint",
                f"{endpoint!r} is no address: {zmq.strerror(error.errno or 0)}",
            ) from None
        self._links[route] = address
        self._unheard_bytes[route] = 0
        return route

    def disconnect(self, route: bytes) -> None:
        """End a link and drop what waits for it; nothing happens where it has ended."""
        address = self._links.pop(route, None)
        if address is None:
            return
        del self._unheard_bytes[route]
        self._out.pop(route, None)
        self._backlog.pop(route, None)
        self._backlog_bytes.pop(route, None)
        # The connection would linger as long as the socket does, and find the other side.
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.disconnect(address)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)

    def _unused_form(self, endpoint: str) -> str:
        """Return the endpoint in a form that no link has yet.

        ZeroMQ ends all connections to an address at once, and compares addresses as
        text: more zeros before a port, or slashes before a path, are another text.
        """
        taken = {self.endpoint, *self._links.values()}  # Its own one stays bound.
        form = endpoint
        while form in taken:
            if form.startswith("ipc://"):
                form = f"ipc://{'/' if form[6] == '/' else './'}{form[6:]}"
            else:
                host, _, port = form.rpartition(":")
                form = f"{host}:0{port}"
        return form

    def receive(self, count_max: int) -> list[tuple[bytes, list[Buffer]]]:
        """Return up to `count_max` messages that are here now, as route and frames.

        Buffer frames are memoryviews of ZeroMQ's memory; they live as long as they are
        referenced.
        """
        found: list[tuple[bytes, list[Buffer]]] = []
        socket, unheard_bytes = self._socket, self._unheard_bytes
        while len(found) < count_max and _get(socket, _EVENTS) & _POLLIN:
            route = _receive(socket, _NOBLOCK)
            frames: list[Buffer] = []
            if _get(socket, _RCVMORE):
                frames.append(_receive(socket, _NOBLOCK))
            while _get(socket, _RCVMORE):
                frame = _receive(socket, _NOBLOCK, False)
                frames.append(frame.buffer)
                self.bytes_in += len(frame)
            if frames:
                self.bytes_in += len(frames[0])
                if route in unheard_bytes:
                    unheard_bytes[route] = 0
                found.append((route, frames))
        return found

    def send(self, route: bytes, message: Message) -> None:
        """Send soon: small messages of one route share a frame until `flush`."""
        if message[-1]:
            self._join(route)
            self._queue(route, codec.encode_frames(message))
            return
        records = self._out.get(route)
        if records is None:
            self._out[route] = [codec.encode(message)]
        else:
            records.append(codec.encode(message))
            if len(records) >= RECORDS_PER_FRAME_MAX:
                self._join(route)

    def flush(self) -> list[bytes]:
        """Write what waits; return routes that nobody answers to any more.

        A link is among them when too much waited for it, which is dropped then; it stays
        until `disconnect`.
        """
        if self._out:
            for route in list(self._out):
                self._join(route)
        if self._backlog:
            for route in list(self._backlog):
                self._drain(route)
        gone, self._gone = self._gone, []
        return gone

    @property
    def has_backlog(self) -> bool:
        """Whether some client reads more slowly than it is answered."""
        return bool(self._backlog)

    def _join(self, route: bytes) -> None:
        records = self._out.pop(route, None)
        if not records:
            return
        if len(records) == 1:
            self._queue(route, [records[0]])
            return
        frame: list[bytes] = []
        size = 0
        for record in records:
            if frame and size + len(record) > JOINED_BYTES_MAX:
                self._queue(route, [b"".join(frame)])
                frame, size = [], 0
            frame.append(record)
            size += len(record)
        self._queue(route, [b"".join(frame)])

    def _queue(self, route: bytes, frames: list[Buffer]) -> None:
        backlog = self._backlog.get(route)
        if backlog is None:
            if self._write(route, frames):
                return
            backlog = self._backlog[route] = deque()
            self._backlog_bytes[route] = 0
        if self._backlog_bytes[route] > BACKLOG_BYTES_MAX:
            self._forget(route)
            return
        backlog.append(frames)
        self._backlog_bytes[route] += sum(memoryview(f).nbytes for f in frames)

    def _drain(self, route: bytes) -> None:
        backlog = self._backlog[route]
        while backlog:
            if not self._write(route, backlog[0]):
                return
            if route not in self._backlog:
                return
            frames = backlog.popleft()
            self._backlog_bytes[route] -= sum(memoryview(f).nbytes for f in frames)
        del self._backlog[route]
        del self._backlog_bytes[route]

    def _write(self, route: bytes, frames: list[Buffer]) -> bool:
        """Hand frames to ZeroMQ; False where the pipe of this route is full."""
        socket = self._socket
        unheard_bytes = self._unheard_bytes.get(route, 0)
        if unheard_bytes > UNHEARD_BYTES_MAX:
            return False
        try:
            _send(socket, route, _SNDMORE | _NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno == zmq.EAGAIN:
                return False
            if error.errno != errno.EHOSTUNREACH:
                raise
            self._forget(route)
            return True
        last = len(frames) - 1
        for i, frame in enumerate(frames):
            # A message is accepted as a whole: after the route no part can be refused.
            if i:
                socket.send(frame, 0 if i == last else zmq.SNDMORE, copy=False)
            else:
                _send(socket, frame, 0 if i == last else _SNDMORE)
            self.bytes_out += len(frame)
        if route in self._unheard_bytes:
            unheard_bytes += sum(memoryview(f).nbytes for f in frames)
            self._unheard_bytes[route] = unheard_bytes
        return True

    def _forget(self, route: bytes) -> None:
        self._backlog.pop(route, None)
        self._backlog_bytes.pop(route, None)
        self._gone.append(route)

    def close(self) -> None:
        """Send what can be sent within a second and close."""
        self.flush()
        self._socket.close()
        self._context.term()


def _has_name(endpoint: str) -> bool:
    """Return whether a checked endpoint has a host that must be looked up."""
    if endpoint.startswith("ipc://"):
        return False
    host = endpoint[6:].rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


def _why_not_bound(listen: str, error: zmq.ZMQError) -> str:
    if error.errno == zmq.EADDRINUSE:
        return (
            f"{listen} is in use by another process; stop it, choose another port, "
            "or port 0 for a free one"
        )
    if error.errno in (zmq.EADDRNOTAVAIL, errno.ENODEV):
        return f"{listen} is no address of this machine"
    if error.errno == errno.EACCES:
        return f"no permission to listen at {listen}; ports below 1024 need root"
    return f"cannot listen at {listen}: {zmq.strerror(error.errno or 0)}"
