"""Large messages over slow lines: sent in chunks, a window at a time, in order.

ZeroMQ hands a message on when all of it is there, and sends one after the other. Over a
line of 1 Mbit/s a value of 8 MB would so be a minute of silence, in which heartbeats end
the connection and probes wait behind it. In chunks each is a sign of life, and only what
the window holds is ever ahead of a probe.

    sender    add -> take: Chunk, Chunk ... | Taken -> taken -> take: Chunk ...
    receiver  Chunk -> arrived: Taken, and the whole message behind its last chunk

Messages keep their order within a *line*: one session that is relayed, one object whose
copies are kept, or all else of a connection. A small message passes between the chunks of
another line's. Those in `AT_ONCE` overtake everything that waits: they say that somebody is
there, or steer what has arrived before them.

Rules of this file: pure; no time but `now_s`. It copies on the receiving side only. Both
sides agreed to it in Hello and Welcome; nothing of it is sent over loopback.

Source: schemas/protocol.md section 13; the window follows LEDBAT (RFC 6817) in aiming at a
queue of bounded delay.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import msgpack

from activestore.errors import RemoteProtocolError
from activestore.wire import codec
from activestore.wire.limits import FRAME_BYTES_MAX, HEADER_BYTES_MAX
from activestore.wire.messages import (
    Ack,
    AskOn,
    Beat,
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
    bytes_count,
)

# Who can send and take chunks says so by this capability.
CHUNKS = "chunks"
# Smaller messages go whole: 0.5 s at 1 Mbit/s, and what pyzmq sends without a copy.
WHOLE_BYTES_MAX = 64 * 1024
# The first window of a connection: 0.5 s at 1 Mbit/s; at 100 Mbit/s and 200 ms it has
# grown to the line's 2.5 MB after six round trips.
WINDOW_BYTES_FIRST, WINDOW_BYTES_MIN = 64 * 1024, 16 * 1024
WINDOW_BYTES_MAX = 32 * 1024 * 1024
# A window has at least so many chunks, so that it is refilled while it is on the line.
CHUNKS_PER_WINDOW = 8
CHUNK_BYTES_MIN, CHUNK_BYTES_MAX = 8 * 1024, 1024 * 1024
# The delay that waiting in line may add, in seconds: below half of it the window grows,
# above it shrinks. Probes between sites are given 3 s.
QUEUE_S = 0.25
# A transfer of which nothing went through for so long is of a side that is gone: ten times
# what ZeroMQ waits for a sign of life of a connection.
STALLED_S = 60.0
# What a record frame has beside a body and buffers, and a list of sizes of its own.
_ROOM_BYTES = HEADER_BYTES_MAX + 64
_SIZES_BYTES_MAX = 64 * 1024

AT_ONCE = frozenset({
    Hello, Welcome, Refused, Ping, Pong, Bye, Cancel, Credit, Beat, Probe, ProbeFor,
    Gossip, Sync, Synced, Ack, Nack, AskOn, Chunk, Taken,
})  # fmt: skip
_NUMBERED = frozenset({Call, Create, Persist, Delete, Request})
# The line of what is of neither another's session nor copies.
_OWN_LINE: Collection[bytes] = (b"",)
_LOCAL = ("ipc://", "tcp://127.", "tcp://[::1]", "tcp://localhost:")


def is_local(endpoint: str) -> bool:
    """Whether an address is on this machine, where nothing is sent in chunks."""
    return endpoint.startswith(_LOCAL)


class _Item:
    """A message that waits; `frames` where it goes in chunks."""

    __slots__ = ("frames", "lines", "message", "nbytes", "position", "transfer")

    def __init__(self, message: Message, nbytes: int, lines: Collection[bytes]) -> None:
        self.message = message
        self.nbytes = nbytes
        self.lines = lines
        self.transfer = 0
        self.frames: list[memoryview] = []
        self.position = (0, 0)  # the next chunk: which frame, and from where


class Lane:
    """What is sent over one connection."""

    def __init__(self) -> None:
        self.window_bytes = WINDOW_BYTES_FIRST
        self.waiting_bytes = 0
        self._waiting: deque[_Item] = deque()
        # Lines of which something waits, and how many messages.
        self.held: dict[bytes, int] = {}
        # Chunks that are on their way: transfer, count up to it, bytes, when it was sent.
        self._flight: deque[tuple[int, int, int, float]] = deque()
        self._flight_bytes = 0
        self._shortest_s = float("inf")
        self._shrunk_s = float("-inf")
        self._transfer = 0
        self._number = 0

    @property
    def is_busy(self) -> bool:
        """Whether something waits, which others of its line must stay behind."""
        return bool(self._waiting)

    @property
    def is_open(self) -> bool:
        """Whether something waits, or was not taken yet."""
        return bool(self._waiting or self._flight)

    def holds(self, message: Message, lines: Collection[bytes] = ()) -> bool:
        """Whether a message is to be added; else it is sent as it is, now.

        `lines`: the objects that a Replicate has entries of; those of others it tells.
        """
        if type(message) in AT_ONCE:
            return False
        if _size_of(message) > WHOLE_BYTES_MAX:
            return True
        held = self.held
        return bool(held) and any(one in held for one in _lines_of(message, lines))

    def add(self, message: Message, lines: Collection[bytes] = ()) -> None:
        """Have a message sent after those before it."""
        item = _Item(message, _size_of(message), _lines_of(message, lines))
        for line in item.lines:
            self.held[line] = self.held.get(line, 0) + 1
        if item.nbytes > WHOLE_BYTES_MAX:
            frames = codec.encode_frames(message)
            item.frames = [memoryview(one).cast("B") for one in frames]
        self.waiting_bytes += item.nbytes
        self._waiting.append(item)

    def drop(self, sequence: int) -> bool:
        """Forget a request that waits; True where the other side will never have it.

        It may have an earlier attempt, from before the connection broke.
        """
        for item in self._waiting:
            message: Any = item.message
            if type(message) in _NUMBERED and message.sequence == sequence:
                self._waiting.remove(item)
                self._ended(item)
                return not getattr(message, "attempt", 0)
        return False

    def take(self, now_s: float) -> Iterator[Message]:
        """Yield what is to be sent now."""
        while self._waiting:
            item = self._waiting[0]
            if not item.frames:
                self._end_first()
                yield item.message
                continue
            if self._flight and self._flight_bytes >= self.window_bytes:
                return
            yield self._next_chunk(item, now_s)

    def _next_chunk(self, item: _Item, now_s: float) -> Chunk:
        body = b""
        if not item.transfer:
            self._transfer += 1
            item.transfer, self._number = self._transfer, 0
            body = msgpack.packb([frame.nbytes for frame in item.frames])
        index, start = item.position
        frame = item.frames[index]
        size = self.window_bytes // CHUNKS_PER_WINDOW
        size = max(CHUNK_BYTES_MIN, min(CHUNK_BYTES_MAX, size))
        data = frame[start : start + size]
        chunk = Chunk(item.transfer, self._number, None, body, [data])
        self._number += 1
        self._flight.append((item.transfer, self._number, data.nbytes, now_s))
        self._flight_bytes += data.nbytes
        end = start + data.nbytes
        item.position = (index, end) if end < frame.nbytes else (index + 1, 0)
        if item.position[0] == len(item.frames):
            self._end_first()
        return chunk

    def _end_first(self) -> None:
        self._ended(self._waiting.popleft())

    def _ended(self, item: _Item) -> None:
        self.waiting_bytes -= item.nbytes
        for line in item.lines:
            self.held[line] -= 1
            if not self.held[line]:
                del self.held[line]

    def taken(self, transfer: int, chunks: int, now_s: float) -> None:
        """Note that the other side has the first `chunks` of a transfer."""
        flight = self._flight
        while flight and flight[0][:2] <= (transfer, chunks):
            _, _, nbytes, sent_s = flight.popleft()
            self._flight_bytes -= nbytes
            self._steer(now_s - sent_s, nbytes, now_s)

    def _steer(self, trip_s: float, nbytes: int, now_s: float) -> None:
        """Fit the window to the line by how long a chunk was on its way."""
        self._shortest_s = min(self._shortest_s, trip_s)
        queued_s = trip_s - self._shortest_s
        if queued_s < QUEUE_S / 2:
            self.window_bytes = min(self.window_bytes + nbytes, WINDOW_BYTES_MAX)
        elif queued_s > QUEUE_S and now_s - self._shrunk_s > trip_s:
            self._shrunk_s = now_s
            if self.window_bytes <= WINDOW_BYTES_MIN:
                # So little cannot queue: the line itself has become longer.
                self._shortest_s = trip_s
                return
            # What the line carries in the time that a chunk may take.
            fitting = self.window_bytes * (self._shortest_s + QUEUE_S / 2) / trip_s
            self.window_bytes = max(int(fitting), WINDOW_BYTES_MIN)


class Intake:
    """What comes in over one connection."""

    def __init__(self, message_bytes_max: int) -> None:
        self._bytes_max = message_bytes_max + _ROOM_BYTES
        self._transfer = 0
        self._count = 0
        self._sizes: list[int] = []
        self._frames: list[Buffer] = []
        self._part = bytearray()

    @property
    def is_open(self) -> bool:
        """Whether a message has come in part."""
        return bool(self._sizes)

    def arrived(self, chunk: Chunk) -> list[Buffer] | None:
        """Take a chunk; return the frames of its message once all of it is there.

        A transfer that begins ends the one before: its sender has given it up.

        Raises:
            RemoteProtocolError: it is none that could follow; what had come is dropped.
        """
        if chunk.number == 0:
            self._begin(chunk)
        elif (chunk.transfer, chunk.number) != (self._transfer, self._count):
            self._fail(f"chunk {chunk.number} of transfer {chunk.transfer} came where "
                       f"{self._count} of {self._transfer} was due")  # fmt: skip
        if len(chunk.buffers) != 1:
            self._fail(f"a chunk has one buffer, this one {len(chunk.buffers)}")
        self._count += 1
        self._put(memoryview(chunk.buffers[0]).cast("B"))  # type: ignore[arg-type]  # one frame
        if len(self._frames) < len(self._sizes):
            return None
        found, self._frames, self._sizes = self._frames, [], []
        return found

    def _begin(self, chunk: Chunk) -> None:
        self._transfer, self._count = chunk.transfer, 0
        self._frames, self._part = [], bytearray()
        self._sizes = []
        sizes: Any = None
        if len(chunk.body) <= _SIZES_BYTES_MAX:
            try:
                sizes = msgpack.unpackb(chunk.body)
            except Exception:  # noqa: BLE001 - msgpack raises ValueError, its own
                sizes = None
        is_list = type(sizes) is list and bool(sizes)
        if not is_list or not all(
            type(size) is int and 0 < size <= FRAME_BYTES_MAX for size in sizes
        ):
            self._fail("the first chunk must list the sizes of the frames, each of "
                       f"1 to {FRAME_BYTES_MAX} bytes")  # fmt: skip
        if sum(sizes) > self._bytes_max:
            self._fail(f"a message of {sum(sizes)} bytes, over {self._bytes_max}")
        self._sizes = sizes

    def _put(self, data: memoryview) -> None:
        """Put the bytes of a chunk where they belong; a frame that came whole is it."""
        if len(self._frames) == len(self._sizes):
            self._fail("a chunk behind the last one")
        size = self._sizes[len(self._frames)]
        due = size - len(self._part)
        if not 0 < data.nbytes <= due:
            self._fail(f"a chunk of {data.nbytes} bytes, {due} are due")
        if data.nbytes == size:
            self._frames.append(data)
            return
        # It grows with what comes: who only announces much costs nothing.
        self._part += data
        if len(self._part) == size:
            self._frames.append(memoryview(self._part))
            self._part = bytearray()

    def forget(self) -> None:
        """Drop what has come of a message: its sender went, or has given it up."""
        self._transfer, self._count = 0, 0
        self._sizes, self._frames, self._part = [], [], bytearray()

    def _fail(self, why: str) -> None:
        self.forget()
        raise RemoteProtocolError(why, "Chunk")


class Lanes:
    """The lanes and intakes of all connections that have them, by route."""

    def __init__(self) -> None:
        self._lanes: dict[bytes, Lane] = {}
        self._intakes: dict[bytes, Intake] = {}
        # When a chunk last went through, either way.
        self._moved_s: dict[bytes, float] = {}
        # Since when something is on its way, as `stalled` has seen it.
        self._open_s: dict[bytes, float] = {}

    def __contains__(self, route: bytes) -> bool:
        return route in self._lanes

    def open(self, route: bytes, message_bytes_max: int) -> None:
        """Use chunks on a connection from now on; what waited there is forgotten."""
        self._lanes[route] = Lane()
        self._intakes[route] = Intake(message_bytes_max)
        self._open_s.pop(route, None)

    def close(self, route: bytes) -> None:
        """Forget a connection."""
        self._lanes.pop(route, None)
        self._intakes.pop(route, None)
        self._moved_s.pop(route, None)
        self._open_s.pop(route, None)

    def holds(
        self, route: bytes, message: Message, lines: Collection[bytes] = ()
    ) -> bool:
        """Whether a message must go through `send`; else it may be sent as it is."""
        lane = self._lanes.get(route)
        return lane is not None and lane.holds(message, lines)

    def send(
        self, route: bytes, message: Message, now_s: float,
        lines: Collection[bytes] = (),
    ) -> Sequence[Message]:  # fmt: skip
        """Return what is to be sent now for a message to be sent in its turn."""
        lane = self._lanes.get(route)
        if lane is None or not lane.holds(message, lines):
            return (message,)
        lane.add(message, lines)
        return tuple(lane.take(now_s))

    def held(self, route: bytes) -> Collection[bytes] | None:
        """Return the lines of which something waits; None: a connection without chunks."""
        lane = self._lanes.get(route)
        return None if lane is None else lane.held

    def drop(self, route: bytes, sequence: int) -> bool:
        """Forget a request that waits; True where the other side will never have it."""
        lane = self._lanes.get(route)
        return lane is not None and lane.drop(sequence)

    def taken(self, route: bytes, message: Taken, now_s: float) -> Sequence[Message]:
        """Return what is to be sent now that the other side has taken some."""
        lane = self._lanes.get(route)
        if lane is None:
            return ()
        self._moved_s[route] = now_s
        lane.taken(message.transfer, message.chunks, now_s)
        return tuple(lane.take(now_s))

    def arrived(
        self, route: bytes, chunk: Chunk, now_s: float
    ) -> tuple[Taken, list[Buffer] | None]:
        """Return what to answer a chunk, and the frames of a message that is whole.

        Raises:
            RemoteProtocolError: it is none that could follow.
        """
        intake = self._intakes.get(route)
        if intake is None:
            raise RemoteProtocolError("a chunk on a connection without them", "Chunk")
        frames = intake.arrived(chunk)
        self._moved_s[route] = now_s
        return Taken(chunk.transfer, chunk.number + 1), frames

    def moved_s(self, route: bytes) -> float:
        """Return when a chunk last went through a connection, either way."""
        return self._moved_s.get(route, float("-inf"))

    def stalled(self, now_s: float) -> list[bytes]:
        """Return the connections on which what is sent does not get on.

        Their other side is gone, as a rule, and ZeroMQ does not tell. What came in part
        and does not get on is forgotten; that is no reason to end a connection, for its
        sender may have been told to cancel it.
        """
        found = []
        for route, lane in self._lanes.items():
            intake = self._intakes[route]
            if not lane.is_open and not intake.is_open:
                self._open_s.pop(route, None)
                continue
            since_s = max(self._open_s.setdefault(route, now_s), self.moved_s(route))
            if now_s - since_s < STALLED_S:
                continue
            intake.forget()
            if lane.is_open:
                found.append(route)
        return found

    def waiting_bytes(self, route: bytes) -> int:
        """Return how much waits for a connection."""
        lane = self._lanes.get(route)
        return 0 if lane is None else lane.waiting_bytes


def _lines_of(message: Message, lines: Collection[bytes]) -> Collection[bytes]:
    """Return in which lines a message keeps its place."""
    kind = type(message)
    if kind is Relay or kind is Relayed:
        return (message.session,)  # type: ignore[union-attr]
    return lines if kind is Replicate else _OWN_LINE


def _size_of(message: Message) -> int:
    body = message[-2]
    return len(body) + sum(map(bytes_count, message[-1]))
