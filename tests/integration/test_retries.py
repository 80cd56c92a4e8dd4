"""A request that is sent again is answered as the first time, whatever its answer was.

Rules of this file: a client of its own, made of the wire alone, so that it can send the
same request again when the real client would not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from activestore.remote import id_of
from activestore.wire import codec, values
from activestore.wire.messages import Call, Failure, Hello, Reply

WAIT_MS = 20_000


class WireClient:
    """One session, over as many connections as it takes."""

    def __init__(self) -> None:
        self.session = bytes(range(16))
        self.socket: Any = None

    def connect(self, endpoint: str) -> None:
        self.close()
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)
        self.ask(Hello(1, 1, self.session, "test", []))

    def ask(self, message: Any) -> Any:
        """Send a message and return the next answer that is no beat."""
        self.socket.send_multipart(codec.encode_frames(message))
        while self.socket.poll(WAIT_MS):
            found = codec.decode_frames(self.socket.recv_multipart())
            for one in found:
                if type(one).__name__ != "Beat":
                    return one
        raise AssertionError("no answer")

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()


@pytest.fixture
def wire() -> Iterator[WireClient]:
    client = WireClient()
    yield client
    client.close()


def call_of(echo: Any, sequence: int, attempt: int, count: int, size: int) -> Call:
    object_id = id_of(echo)
    assert object_id is not None
    body, buffers = values.encode_arguments((count, size), {})
    return Call(
        sequence, object_id, "keep_and_return", 0, attempt, 1, 0,
        {"age_ms": 5} if attempt else None, body, buffers,
    )  # fmt: skip


@pytest.mark.parametrize(("count", "size"), [(3, 10), (3, 100_000)])
def test_a_result_is_told_again_after_a_crash(peer, store, wire, count, size):
    echo = store.create("models.Echo")
    wire.connect(peer.endpoint)
    first = wire.ask(call_of(echo, 1, 0, count, size))
    assert type(first) is Reply
    assert len(first.buffers) == (count if size >= 65_536 else 0)
    told = values.decode(first.body, first.buffers)
    peer.restart()
    wire.connect(peer.endpoint)
    second = wire.ask(call_of(echo, 1, 1, count, size))
    assert type(second) is Reply
    assert values.decode(second.body, second.buffers) == told
    assert echo.calls == 1


def test_a_result_too_large_to_keep_is_told_to_have_been_committed(peer, store, wire):
    echo = store.create("models.Echo")
    wire.connect(peer.endpoint)
    assert type(wire.ask(call_of(echo, 1, 0, 20, 100_000))) is Reply
    again = wire.ask(call_of(echo, 1, 1, 20, 100_000))
    assert type(again) is Failure
    assert again.code == "invalid_request"
    reason = values.decode(again.body)[0]
    assert "ran and was committed" in reason
    assert "2000" in reason
    assert echo.calls == 1
