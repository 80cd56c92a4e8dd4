"""Large messages in chunks: order, windows, what overtakes, and what is refused.

Source: schemas/protocol.md section 13.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Collection, Iterator
from random import Random
from typing import Any

import msgpack
import pytest

from activestore.errors import RemoteProtocolError
from activestore.wire import chunks, codec
from activestore.wire.chunks import (
    CHUNK_BYTES_MIN,
    STALLED_S,
    WHOLE_BYTES_MAX,
    WINDOW_BYTES_FIRST,
    WINDOW_BYTES_MIN,
    Intake,
    Lane,
    Lanes,
    is_local,
)
from activestore.wire.messages import (
    Beat,
    Call,
    Cancel,
    Chunk,
    Message,
    Ping,
    Relayed,
    Replicate,
    Reply,
    Request,
    Taken,
    whole,
)

MIB = 1024 * 1024


def large(sequence: int, nbytes: int = MIB) -> Reply:
    return Reply(sequence, None, b"body", [Random(sequence).randbytes(nbytes)])


def over(message: Message) -> Message:
    """Return a message as it comes out at the other end of a connection."""
    (found,) = codec.decode_frames(codec.encode_frames(message))
    return found


class Line:
    """A line of some speed between a lane and an intake; the way back takes no bytes."""

    def __init__(self, bytes_per_s: float, delay_s: float = 0.0) -> None:
        self.lane, self.intake = Lane(), Intake(64 * MIB)
        self.now_s = 0.0
        self._bytes_per_s, self._delay_s = bytes_per_s, delay_s
        self._free_s = 0.0  # when the line has sent what was given to it
        self._on_way: list[tuple[float, Message]] = []
        self.came: list[tuple[float, Message]] = []
        self.longest_queue_s = 0.0

    def put(self, message: Message, lines: Collection[bytes] = ()) -> None:
        if self.lane.holds(message, lines):
            self.lane.add(message, lines)
        else:
            self._transmit(message)
        self._fill()

    def _fill(self) -> None:
        for one in self.lane.take(self.now_s):
            self._transmit(one)

    def _transmit(self, message: Message) -> None:
        size = sum(memoryview(f).nbytes for f in codec.encode_frames(message))
        self._free_s = max(self._free_s, self.now_s) + size / self._bytes_per_s
        self.longest_queue_s = max(self.longest_queue_s, self._free_s - self.now_s)
        self._on_way.append((self._free_s + self._delay_s, message))

    def run(self, until_s: float = 1e9) -> None:
        """Let what is on its way arrive, and be answered."""
        while self._on_way and self._on_way[0][0] <= until_s:
            due_s, message = self._on_way.pop(0)
            self.now_s = due_s
            message = over(message)
            if type(message) is not Chunk:
                self.came.append((self.now_s, message))
                continue
            frames = self.intake.arrived(message)
            if frames is not None:
                (found,) = codec.decode_frames(frames)
                self.came.append((self.now_s, found))
            self.now_s += self._delay_s
            self.lane.taken(message.transfer, message.number + 1, self.now_s)
            self._fill()

    @property
    def kinds(self) -> list[Any]:
        return [getattr(message, "sequence", message) for _, message in self.came]


def test_messages_come_as_they_were_and_in_their_order():
    line = Line(1e6)
    sent = [large(1), Reply(2, None, b"small"), large(3, 3 * MIB), large(4)]

    for message in sent:
        line.put(message)
    line.run()

    found = [message for _, message in line.came]
    assert [m.sequence for m in found] == [1, 2, 3, 4]
    for message, expected in zip(found, sent, strict=True):
        assert message.body == expected.body
        assert [bytes(whole(b)) for b in message.buffers] == list(expected.buffers)
    assert not line.lane.is_busy
    assert line.lane.waiting_bytes == 0


def test_body_without_buffers_is_cut_too():
    line = Line(1e6)
    body = Random(1).randbytes(MIB)

    line.put(Request(1, "publish", None, body))
    line.run()

    ((_, found),) = line.came
    assert found.body == body


@pytest.mark.parametrize("nbytes", [WHOLE_BYTES_MAX // 2, WHOLE_BYTES_MAX])
def test_small_message_goes_whole(nbytes):
    lane = Lane()

    assert not lane.holds(Reply(1, None, bytes(nbytes)))


def test_sign_of_life_overtakes_what_waits():
    line = Line(125_000)  # 1 Mbit/s
    line.put(large(1))
    line.run(until_s=1.0)

    began_s = line.now_s
    line.put(Beat([1]))
    line.put(Ping(7))
    line.run()

    came_s = {type(message): at_s for at_s, message in line.came}
    assert came_s[Reply] > 8.0
    assert came_s[Ping] - began_s < 0.75
    assert came_s[Beat] <= came_s[Ping]


@pytest.mark.parametrize(
    "small",
    [(Relayed(b"b" * 16, None, b"answer"), ()), (Replicate(None, b"entries"), {b"y"})],
)
def test_small_message_of_another_line_passes_between_the_chunks(small):
    line = Line(125_000)
    line.put(Replicate(None, b"", [bytes(MIB)]), {b"x"})
    line.put(Relayed(b"a" * 16, None, bytes(MIB)))
    line.run(until_s=1.0)

    began_s = line.now_s
    line.put(*small)
    line.run()

    came_s, first = line.came[0]
    assert first == small[0]
    assert came_s - began_s < 0.75
    assert line.came[-1][0] > 16.0


@pytest.mark.parametrize(
    ("large_one", "small_one"),
    [
        (
            (Relayed(b"a" * 16, None, bytes(MIB)), ()),
            (Relayed(b"a" * 16, None, b"answer"), ()),
        ),
        (
            (Replicate(None, b"", [bytes(MIB)]), {b"x", b"y"}),
            (Replicate(None, b"entries"), {b"y", b"z"}),
        ),
    ],
)
def test_small_message_stays_behind_what_waits_of_its_line(large_one, small_one):
    line = Line(125_000)
    line.put(*large_one)
    line.put(*small_one)
    line.run()

    assert [message for _, message in line.came][1] == small_one[0]
    assert not line.lane.held
    assert not line.lane.holds(*small_one)


@pytest.mark.parametrize("mbit", [1, 10, 100, 1000])
@pytest.mark.parametrize("delay_s", [0.0001, 0.025, 0.1])
def test_window_fills_the_line_and_little_waits_in_it(mbit, delay_s):
    line = Line(mbit * 125_000, delay_s)
    # Three seconds of the line, and what its first round trips leave empty.
    nbytes = min(3 * mbit * 125_000, 64 * MIB)

    line.put(large(1, nbytes))
    line.run()

    ((took_s, _),) = line.came
    bare_s = nbytes / (mbit * 125_000) + delay_s
    assert took_s <= 1.1 * bare_s + 16 * delay_s
    assert line.longest_queue_s <= 3 * chunks.QUEUE_S


def test_window_shrinks_where_the_line_becomes_slow():
    line = Line(12_500_000, 0.01)
    line.put(large(1, 32 * MIB))
    line.run()
    assert line.lane.window_bytes > WINDOW_BYTES_FIRST

    line._bytes_per_s = 125_000
    line.put(large(2, 8 * MIB))
    line.run()

    assert WINDOW_BYTES_MIN <= line.lane.window_bytes < WINDOW_BYTES_FIRST


def test_window_grows_again_where_the_line_has_become_longer():
    line = Line(1_250_000, 0.001)
    line.put(large(1, 4 * MIB))
    line.run()
    line._delay_s = 0.3

    for number in range(2, 5):
        line.put(large(number, 4 * MIB))
        began_s = line.now_s
        line.run()

    assert line.came[-1][0] - began_s < 1.3 * (4 * MIB / 1_250_000) + 0.3


def test_request_that_waits_can_be_dropped_and_one_half_sent_too():
    line = Line(125_000)
    lane = line.lane
    for sequence in (1, 2, 3):
        line.put(Request(sequence, "publish", None, bytes([sequence]) * MIB))
    line.run(until_s=1.0)

    assert lane.drop(1)
    assert lane.drop(2)
    assert not lane.drop(2)
    line.run()

    assert line.kinds == [3]
    assert lane.waiting_bytes == 0


def test_request_of_which_an_earlier_attempt_may_run_is_dropped_and_cancelled_too():
    lane = Lane()
    lane.add(large(1, 8 * MIB))
    lane.add(Call(2, bytes(16), "add", 0, 1, 1, 0, None, b"body"))
    list(lane.take(0.0))

    assert not lane.drop(2)
    assert lane.waiting_bytes == len(b"body") + 8 * MIB


def test_request_that_has_gone_out_is_not_dropped():
    line = Line(125_000)
    line.put(Request(1, "publish", None, bytes(MIB)))
    assert line.lane.is_busy
    until_s = 0.0
    while line.lane.is_busy:
        until_s += 0.1
        line.run(until_s)

    assert not line.lane.drop(1)


def first_chunks(count: int) -> Iterator[Chunk]:
    lane = Lane()
    lane.add(large(1))
    for _, message in zip(range(count), lane.take(0.0), strict=False):
        yield over(message)


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", msgpack.packb([]), msgpack.packb([0]), msgpack.packb(["1"]),
     msgpack.packb([1 << 40]), msgpack.packb([16 * MIB] * 5), bytes(100_000)],
    ids=["nothing", "garbage", "none", "zero", "text", "frame", "sum", "long"],
)  # fmt: skip
def test_first_chunk_without_fitting_sizes_is_refused(body):
    with pytest.raises(RemoteProtocolError):
        Intake(64 * MIB).arrived(Chunk(1, 0, None, body, [b"data"]))


@pytest.mark.parametrize(
    "chunk",
    [Chunk(1, 3, None, b"", [b"x"]), Chunk(2, 2, None, b"", [b"x"]),
     Chunk(1, 2, None, b"", []), Chunk(1, 2, None, b"", [b""]),
     Chunk(1, 2, None, b"", [b"x", b"y"]), Chunk(1, 2, None, b"", [bytes(2 * MIB)])],
    ids=["gap", "transfer", "no-data", "empty", "two", "too-much"],
)  # fmt: skip
def test_chunk_that_cannot_follow_is_refused_and_the_next_transfer_taken(chunk):
    intake = Intake(64 * MIB)
    for one in first_chunks(2):
        assert intake.arrived(one) is None

    with pytest.raises(RemoteProtocolError):
        intake.arrived(chunk)

    lane = Lane()
    lane.window_bytes = MIB
    lane.add(large(1, WHOLE_BYTES_MAX + 1))
    found = [intake.arrived(over(one)) for one in lane.take(0.0)]
    assert found[-1] is not None


def test_chunk_on_a_connection_without_them_is_refused():
    with pytest.raises(RemoteProtocolError):
        Lanes().arrived(b"route", Chunk(1, 0), 0.0)


def test_connection_that_begins_anew_forgets_what_waited():
    lanes = Lanes()
    lanes.open(b"route", MIB)
    assert len(lanes.send(b"route", large(1), 0.0)) == (
        WINDOW_BYTES_FIRST // CHUNK_BYTES_MIN + 1  # the record is a chunk of its own
    )
    assert lanes.holds(b"route", Reply(2))
    assert not lanes.holds(b"route", Cancel(2))
    assert lanes.moved_s(b"route") < 0

    lanes.taken(b"route", Taken(1, 1), 5.0)
    assert lanes.moved_s(b"route") == 5.0

    lanes.open(b"route", MIB)
    assert not lanes.holds(b"route", Reply(2))
    lanes.close(b"route")
    assert b"route" not in lanes


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [("tcp://127.0.0.1:7400", True), ("tcp://[::1]:7400", True), ("ipc:///tmp/a", True),
     ("tcp://localhost:7400", True), ("tcp://10.0.0.1:7400", False),
     ("tcp://board-7:7400", False)],
)  # fmt: skip
def test_chunks_are_for_lines_beyond_this_machine(endpoint, expected):
    assert is_local(endpoint) is expected


def test_intake_takes_no_memory_for_what_is_only_announced():
    tracemalloc.start()
    intake = Intake(64 * MIB)
    intake.arrived(Chunk(1, 0, None, msgpack.packb([16 * MIB]), [b"x"]))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak_bytes < MIB


def test_what_is_sent_and_does_not_get_on_ends_its_connection():
    lanes = Lanes()
    for route in (b"gone", b"idle"):
        lanes.open(route, 64 * MIB)
    assert type(lanes.send(b"gone", large(1), 0.0)[0]) is Chunk

    assert lanes.stalled(1.0) == []
    lanes.taken(b"gone", Taken(1, 1), STALLED_S)
    assert lanes.stalled(STALLED_S + 2.0) == []
    assert lanes.stalled(2 * STALLED_S) == [b"gone"]

    lanes.open(b"gone", 64 * MIB)
    assert lanes.stalled(3 * STALLED_S) == []


def test_what_came_in_part_and_does_not_get_on_is_forgotten():
    """Its client may have cancelled it, and have other calls on the connection."""
    lanes = Lanes()
    lanes.open(b"route", 64 * MIB)
    sizes = msgpack.packb([2])
    lanes.arrived(b"route", Chunk(1, 0, None, sizes, [b"x"]), 0.0)

    assert lanes.stalled(0.0) == []
    assert lanes.stalled(STALLED_S) == []

    with pytest.raises(RemoteProtocolError):
        lanes.arrived(b"route", Chunk(1, 1, None, b"", [b"x"]), STALLED_S)
    begun = Chunk(2, 0, None, sizes, [b"xx"])
    assert lanes.arrived(b"route", begun, STALLED_S)[1] == [b"xx"]
