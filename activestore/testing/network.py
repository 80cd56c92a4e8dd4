"""The simulated network: connections with delay and loss, that break and are made again.

It behaves as TCP under ZeroMQ does. Inside one connection messages stay in order and
each arrives once; a lost packet delays all after it, it is sent again. What was on its
way when a connection breaks is lost from some point on. The side that connected makes a
new connection by itself and keeps what it was told to send meanwhile; the other side
knows the new one under a new route. So messages are reordered only between connections,
and doubled only by those who send again.

    connecting --(both up, no partition)--> open --(break, crash, silence)--> connecting

Rules of this file: messages pass through the wire's codec; chance comes from the
simulation's generator; a node is a process with an address, a peer or a client.

Source: reliability.md section 6.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from activestore.errors import ConfigurationError
from activestore.testing.clock import Agenda, Entry
from activestore.wire import codec
from activestore.wire.limits import RECORDS_PER_FRAME_MAX
from activestore.wire.messages import Buffer, Message

# A lost packet is sent again after this, then after twice that, as TCP does.
RETRANSMIT_S = 0.2
RETRANSMITS_MAX = 6
# After this long without a byte from the other side a connection is given up.
SILENCE_S = 6.0
# Reconnecting, as peer.transport and client.connection do.
RECONNECT_S = 0.1
RECONNECT_S_MAX = 30.0
# Messages that wait for a connection; more, and the route is given up.
PENDING_MAX = 100_000
# Beyond it, `has_backlog` says so.
HIGH_WATER_MARK = 1000

Frames = list[bytes]


class Latency(NamedTuple):
    """How long a message is on its way: at least `min_s`, on average `mean_s`."""

    min_s: float = 0.000_05
    mean_s: float = 0.000_2

    def draw_s(self, rng: Random) -> float:
        """Return one delay in seconds: exponential above the minimum."""
        if self.mean_s <= self.min_s:
            return self.min_s
        return self.min_s + rng.expovariate(1.0 / (self.mean_s - self.min_s))


class LinkQuality(NamedTuple):
    """One direction between two nodes. `loss`: chance that a packet is sent again.

    `bytes_per_s`: what each connection carries, one message behind the other; 0: all at once.
    """

    latency: Latency = Latency()
    loss: float = 0.0
    bytes_per_s: float = 0.0


class _Flow:
    """One direction of one connection: what is on its way, in order."""

    __slots__ = ("free_s", "held", "last_s", "left", "on_way")

    def __init__(self) -> None:
        self.free_s = 0.0  # when all that was given to it has left
        self.last_s = 0.0
        self.on_way = 0
        self.left = -1  # after a break: how many still arrive; -1: it is whole
        self.held: deque[Frames] = deque()  # behind a partition


class Connection:
    """One TCP connection: `ends[0]` made it, `ends[1]` accepted it."""

    def __init__(self, link: Link, acceptor: SimTransport, route: bytes) -> None:
        self.link = link
        self.ends = (link.owner, acceptor)
        self.routes = (link.route, route)  # as each end calls the other
        self.flows = (_Flow(), _Flow())  # from the maker, to the maker
        self.is_open = True


class Link:
    """A connection that one side keeps up: connected, or trying."""

    def __init__(self, owner: SimTransport, endpoint: str, route: bytes) -> None:
        self.owner = owner
        self.endpoint = endpoint
        self.route = route
        self.connection: Connection | None = None
        self.pending: deque[Frames] = deque()
        self.retry_s = owner.reconnect_s
        self.retry: Entry | None = None


class SimTransport:
    """The Transport port of one node."""

    def __init__(
        self,
        network: SimNetwork,
        name: str,
        endpoint: str,
        wake: Callable[[], None],
        *,
        reconnect_s: float = RECONNECT_S,
        reconnect_s_max: float = RECONNECT_S_MAX,
    ) -> None:
        """Join the network; `endpoint`: where others reach it, "" for a client."""
        self.network = network
        self.name = name
        self.endpoint = endpoint
        self.wake = wake
        self.reconnect_s = reconnect_s
        self.reconnect_s_max = reconnect_s_max
        self.is_up = True
        self.is_paused = False
        self.links: dict[bytes, Link] = {}
        self._behind: dict[bytes, Link] = {}  # those for which something is pending
        self.accepted: dict[bytes, Connection] = {}
        self.bytes_in = 0
        self.bytes_out = 0
        self._inbox: deque[tuple[bytes, Frames]] = deque()
        self._out: dict[bytes, list[bytes]] = {}
        self._gone: list[bytes] = []
        self._next_route = 1
        network.add(self)

    # -- the port ----------------------------------------------------------------------

    def receive(self, count_max: int) -> list[tuple[bytes, list[Buffer]]]:
        """Return up to `count_max` messages that are here now, as route and frames."""
        found: list[tuple[bytes, list[Buffer]]] = []
        while self._inbox and len(found) < count_max:
            route, frames = self._inbox.popleft()
            # Buffer frames are views, as those of ZeroMQ's memory are.
            views: list[Buffer] = [memoryview(frame) for frame in frames[1:]]
            found.append((route, [frames[0], *views]))
        return found

    def send(self, route: bytes, message: Message) -> None:
        """Send soon: small messages of one route share a frame until `flush`."""
        if message[-1]:
            self._join(route)
            self._put(route, [bytes(frame) for frame in codec.encode_frames(message)])
            return
        records = self._out.setdefault(route, [])
        records.append(codec.encode(message))
        if len(records) >= RECORDS_PER_FRAME_MAX:
            self._join(route)

    def flush(self) -> list[bytes]:
        """Write what waits; return routes that nobody answers to any more."""
        for route in list(self._out):
            self._join(route)
        gone, self._gone = self._gone, []
        return gone

    def wake_fd(self) -> int:
        """Return a number that stands for the socket's descriptor."""
        return -1

    def has_input(self) -> bool:
        """Return whether a message is here."""
        return bool(self._inbox)

    @property
    def has_backlog(self) -> bool:
        """Whether some route takes no more now."""
        return any(len(one.pending) > HIGH_WATER_MARK for one in self._behind.values())

    def connect(self, endpoint: str, *, route: bytes = b"") -> bytes:
        """Keep a connection to `endpoint` from now on; return its route. Never blocks.

        `route`: how to call it, where the caller has a name of its own.

        Raises:
            ConfigurationError: it is no address.
        """
        if not endpoint.startswith("tcp://"):
            raise ConfigurationError(
                "endpoint", f"{endpoint!r} is no address; expected tcp://HOST:PORT"
            )
        link = Link(self, endpoint, route or self.new_route())
        self.links[link.route] = link
        self.network.try_later(link, 0.0)
        return link.route

    def disconnect(self, route: bytes) -> None:
        """Close a connection that `connect` made; what was queued for it is dropped."""
        link = self.links.pop(route, None)
        if link is None:
            return
        self._behind.pop(route, None)
        if link.retry is not None:
            link.retry.cancel()
        if link.connection is not None:
            self.network.break_connection(link.connection)

    def close(self) -> None:
        """Send what can be sent, then leave the network."""
        self.flush()
        self.network.remove(self)

    # -- inside ------------------------------------------------------------------------

    def new_route(self) -> bytes:
        """Return a route that was never used; five bytes, as ZeroMQ's own are."""
        route = b"\x00" + self._next_route.to_bytes(4, "big")
        self._next_route += 1
        return route

    def _join(self, route: bytes) -> None:
        records = self._out.pop(route, None)
        if records:
            self._put(route, [b"".join(records)])

    def _put(self, route: bytes, frames: Frames) -> None:
        self.bytes_out += sum(map(len, frames))
        link = self.links.get(route)
        if link is not None:
            if link.connection is not None:
                self.network.transmit(link.connection, 0, frames)
            elif len(link.pending) < PENDING_MAX:
                link.pending.append(frames)
                self._behind[route] = link
            else:
                self._gone.append(route)
            return
        connection = self.accepted.get(route)
        if connection is None:
            self._gone.append(route)
        else:
            self.network.transmit(connection, 1, frames)

    def caught_up(self, link: Link) -> deque[Frames]:
        """Return what waited for a link that is connected now."""
        self._behind.pop(link.route, None)
        waiting, link.pending = link.pending, deque()
        return waiting

    def take(self, route: bytes, frames: Frames) -> None:
        """Have a message arrive."""
        self.bytes_in += sum(map(len, frames))
        self._inbox.append((route, frames))
        self.wake()


class SimNetwork:
    """All nodes, the quality of the ways between them, and what is cut."""

    def __init__(
        self, agenda: Agenda, rng: Random, record: Callable[..., None]
    ) -> None:
        self.agenda = agenda
        self.default = LinkQuality()
        self.qualities: dict[tuple[str, str], LinkQuality] = {}
        self._rng = rng
        self._record = record
        self._nodes: dict[str, SimTransport] = {}  # by endpoint
        self._blocked: dict[tuple[str, str], float] = {}  # from, to: since when
        self._connections: dict[Connection, None] = {}
        # By the names of their ends, in either order.
        self._between: dict[frozenset[str], dict[Connection, None]] = {}

    @property
    def connections_count(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def add(self, node: SimTransport) -> None:
        """Let others reach a node."""
        if node.endpoint:
            self._nodes[node.endpoint] = node

    def remove(self, node: SimTransport) -> None:
        """Take a node away: its connections break, nobody reaches it."""
        node.is_up = False
        if self._nodes.get(node.endpoint) is node:
            del self._nodes[node.endpoint]
        for link in node.links.values():
            if link.retry is not None:
                link.retry.cancel()
        for connection in list(self._connections):
            if node in connection.ends:
                self.break_connection(connection)

    # -- faults ------------------------------------------------------------------------

    def block(self, sender: str, receiver: str) -> None:
        """Cut one direction between two nodes, by name."""
        key = (sender, receiver)
        if key in self._blocked:
            return
        self._blocked[key] = self.agenda.now_s
        for connection in self._between.get(frozenset(key), ()):
            self._watch(connection)

    def unblock(self, sender: str, receiver: str) -> None:
        """Mend one direction; what waited behind the cut arrives soon."""
        if self._blocked.pop((sender, receiver), None) is None:
            return
        for connection in self._between.get(frozenset((sender, receiver)), ()):
            for side in (0, 1):
                ends = connection.ends[side].name, connection.ends[1 - side].name
                if ends == (sender, receiver) and connection.flows[side].held:
                    self._release_later(connection, side)

    def _release_later(self, connection: Connection, side: int) -> None:
        """Have the other side send again what was lost behind a cut."""
        wait_s = self._rng.uniform(0.0, RETRANSMIT_S)
        self.agenda.later(wait_s, lambda: self._release(connection, side))

    def blocked(self) -> list[tuple[str, str]]:
        """Return the directions that are cut, in the order in which they were."""
        return list(self._blocked)

    def pause(self, node: SimTransport) -> None:
        """Note that a node's process stands still; the others will notice in a while."""
        node.is_paused = True
        for connection in self._connections:
            if node in connection.ends:
                self._watch(connection)

    def break_connections(self, one: str, other: str = "") -> int:
        """Break the connections of a node, or those between two; return how many."""
        found = [
            connection
            for connection in self._connections
            if one in (names := [end.name for end in connection.ends])
            and other in ("", *names)
        ]
        for connection in found:
            self.break_connection(connection)
        return len(found)

    def break_connection(self, connection: Connection) -> None:
        """Break one: of what is on its way the first part arrives, or nothing."""
        if not connection.is_open:
            return
        connection.is_open = False
        del self._connections[connection]
        pair = frozenset(end.name for end in connection.ends)
        del self._between[pair][connection]
        if not self._between[pair]:
            del self._between[pair]
        for flow in connection.flows:
            flow.left = self._rng.randint(0, flow.on_way)
            flow.held.clear()
        maker, acceptor = connection.ends
        self._record("broken", maker.name, acceptor.name)
        acceptor.accepted.pop(connection.routes[1], None)
        link = connection.link
        link.connection = None
        if maker.is_up and link.route in maker.links:
            link.retry_s = maker.reconnect_s
            self.try_later(link, link.retry_s)

    def _watch(self, connection: Connection) -> None:
        """Look in a while whether the two still do not hear each other."""
        since_s = self.agenda.now_s
        wait_s = SILENCE_S * self._rng.uniform(1.0, 1.3)
        self.agenda.later(wait_s, lambda: self._end_silent(connection, since_s))

    def _end_silent(self, connection: Connection, since_s: float) -> None:
        if not connection.is_open:
            return
        one, other = connection.ends
        cuts = [
            self._blocked.get((one.name, other.name)),
            self._blocked.get((other.name, one.name)),
        ]
        is_cut = any(cut is not None and cut <= since_s for cut in cuts)
        if is_cut or one.is_paused or other.is_paused:
            self.break_connection(connection)

    # -- connecting --------------------------------------------------------------------

    def try_later(self, link: Link, wait_s: float) -> None:
        """Try to connect after a while."""
        wait_s += self._quality(link.owner.name, "").latency.draw_s(self._rng)
        link.retry = self.agenda.later(wait_s, lambda: self._try(link))

    def _try(self, link: Link) -> None:
        link.retry = None
        owner = link.owner
        target = self._nodes.get(link.endpoint)
        if not owner.is_up or link.connection is not None:
            return
        if (
            target is None
            or target.is_paused
            or owner.is_paused
            or (owner.name, target.name) in self._blocked
            or (target.name, owner.name) in self._blocked
        ):
            link.retry_s = min(2 * link.retry_s, owner.reconnect_s_max)
            self.try_later(link, link.retry_s * self._rng.uniform(0.5, 1.0))
            return
        connection = Connection(link, target, target.new_route())
        link.connection = connection
        link.retry_s = owner.reconnect_s
        target.accepted[connection.routes[1]] = connection
        self._connections[connection] = None
        pair = frozenset((owner.name, target.name))
        self._between.setdefault(pair, {})[connection] = None
        self._record("connected", owner.name, target.name)
        for frames in owner.caught_up(link):
            self.transmit(connection, 0, frames)

    # -- messages ----------------------------------------------------------------------

    def _quality(self, sender: str, receiver: str) -> LinkQuality:
        return self.qualities.get((sender, receiver), self.default)

    def transmit(self, connection: Connection, side: int, frames: Frames) -> None:
        """Put a message of `ends[side]` on its way."""
        sender, receiver = connection.ends[side], connection.ends[1 - side]
        quality = self._quality(sender.name, receiver.name)
        delay_s = quality.latency.draw_s(self._rng)
        if quality.loss:
            again_s = RETRANSMIT_S
            for _ in range(RETRANSMITS_MAX):
                if self._rng.random() >= quality.loss:
                    break
                delay_s += again_s
                again_s *= 2
        flow = connection.flows[side]
        now_s = self.agenda.now_s
        if quality.bytes_per_s:
            size = sum(map(len, frames))
            flow.free_s = max(flow.free_s, now_s) + size / quality.bytes_per_s
            delay_s += flow.free_s - now_s
        flow.last_s = max(flow.last_s, now_s + delay_s)
        flow.on_way += 1
        self.agenda.at(flow.last_s, lambda: self._arrive(connection, side, frames))

    def _arrive(self, connection: Connection, side: int, frames: Frames) -> None:
        flow = connection.flows[side]
        flow.on_way -= 1
        if not connection.is_open:
            if flow.left <= 0:
                return
            flow.left -= 1
        sender, receiver = connection.ends[side], connection.ends[1 - side]
        if flow.held or (sender.name, receiver.name) in self._blocked:
            if connection.is_open:
                flow.held.append(frames)
            return
        self._deliver(connection, side, frames)

    def _release(self, connection: Connection, side: int) -> None:
        """Let what waited behind a cut arrive, if the way is free."""
        sender, receiver = connection.ends[side], connection.ends[1 - side]
        held = connection.flows[side].held
        while held and (sender.name, receiver.name) not in self._blocked:
            self._deliver(connection, side, held.popleft())

    def _deliver(self, connection: Connection, side: int, frames: Frames) -> None:
        sender, receiver = connection.ends[side], connection.ends[1 - side]
        if not receiver.is_up:
            return
        self._record("message", sender.name, receiver.name, *frames)
        receiver.take(connection.routes[1 - side], frames)
