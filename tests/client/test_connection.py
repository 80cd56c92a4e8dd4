"""What only the shell of the client does: sockets, threads, waiting, closing."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from activestore.client.connection import HIGH_WATER_MARK, Connection
from activestore.errors import (
    CancelledError,
    ConfigurationError,
    DeadlineExceededError,
    InvalidRequestError,
    RemoteProtocolError,
    TooLargeError,
    UnavailableError,
)
from activestore.wire.messages import Bye, Call, Cancel, Hello
from tests.client.fake_peer import (
    GARBAGE,
    MESSAGE_BYTES_MAX,
    FakePeer,
    call,
    decode,
    maker,
    stream,
    submit,
)

pytestmark = pytest.mark.net
Connect = Callable[..., Connection]


def in_thread(function: Callable[[], object]) -> Callable[[], object]:
    """Start a thread; return what joins it and returns what it returned or raised."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def join() -> object:
        thread.join(10)
        assert outcome, "the thread never came back"
        return outcome[0]

    return join


# -- greeting --------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A socket that listens, and by itself says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def test_nobody_listens(connect: Connect, listener: socket.socket) -> None:
    endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()

    with pytest.raises(UnavailableError) as caught:
        connect(endpoint, 0.2)

    assert caught.value.where == endpoint
    assert f"activestore-node start --listen {endpoint}" in caught.value.reason


def test_something_accepts_and_never_answers(
    connect: Connect, listener: socket.socket
) -> None:
    began_s = time.monotonic()

    with pytest.raises(UnavailableError, match=r"within 0\.2 s"):
        connect(f"tcp://127.0.0.1:{listener.getsockname()[1]}", 0.2)

    assert time.monotonic() - began_s < 2


def test_something_speaks_another_protocol(
    connect: Connect, listener: socket.socket
) -> None:
    """ZeroMQ hangs up on what is no ZMTP, and tries again until the time is over."""

    def serve() -> None:
        accepted, _ = listener.accept()
        accepted.sendall(GARBAGE)
        accepted.close()

    join = in_thread(serve)

    with pytest.raises(UnavailableError):
        connect(f"tcp://127.0.0.1:{listener.getsockname()[1]}", 0.2)

    assert join() is None


@pytest.mark.parametrize(
    ("greeting", "text"),
    [("garbage", "no activestore peer"), ("version", "this peer speaks versions 7 to 9")],
)  # fmt: skip
def test_what_answers_is_no_peer_or_of_another_version(
    peer: FakePeer, connect: Connect, greeting: str, text: str
) -> None:
    peer.greeting = greeting

    with pytest.raises(RemoteProtocolError, match=text) as caught:
        connect(peer.endpoint)

    assert caught.value.where == peer.endpoint


@pytest.mark.parametrize(
    "endpoint", ["127.0.0.1:7400", "tcp://", "tcp://127.0.0.1", ""]
)
def test_endpoint_that_is_no_address(connect: Connect, endpoint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        connect(endpoint)

    assert caught.value.setting == "endpoint"
    assert repr(endpoint) in caught.value.reason


# -- a peer that goes, comes back, or talks nonsense -----------------------------------


def test_call_is_sent_again_to_a_peer_that_restarted(
    peer: FakePeer, connection: Connection
) -> None:
    result = in_thread(lambda: call(connection, "hold", "kept"))
    (first,) = peer.wait_for(Call)

    peer.stop()
    peer.restart()
    (second,) = peer.wait_for(Call, attempt=1)
    peer.release()

    assert result() == "kept"
    assert second.sequence == first.sequence
    assert second.extra["age_ms"] >= 0
    assert len({hello.session for hello in peer.wait_for(Hello, 2)}) == 1


def test_stream_fails_when_its_peer_restarts(
    peer: FakePeer, connection: Connection
) -> None:
    request = stream(connection, "endless")
    connection.wait_for(lambda: bool(request.items), request)

    peer.stop()
    peer.restart()
    connection.wait(request)

    with pytest.raises(UnavailableError, match="not resumed"):
        request.outcome()
    assert decode(request.items[0]) == 0


def test_call_to_a_peer_that_fell_silent_fails_and_the_next_one_works(
    peer: FakePeer, connect: Connect
) -> None:
    connection = connect(peer.endpoint, 0.2)

    with pytest.raises(UnavailableError, match="nothing was heard"):
        call(connection, "swallow")

    assert call(connection, "echo", 1) == 1


def test_deadline_passes_though_the_peer_says_nothing(
    peer: FakePeer, connection: Connection
) -> None:
    request = connection.call(maker("swallow"), timeout_s=0.05, where="swallow")

    with pytest.raises(DeadlineExceededError):
        request.outcome()
    peer.wait_for(Cancel, sequence=request.sequence)


def test_garbage_fails_what_is_open_and_the_next_call_works(
    peer: FakePeer, connection: Connection
) -> None:
    other = submit(connection, "hold")
    peer.wait_for(Call, method="hold")

    with pytest.raises(RemoteProtocolError, match="no activestore peer"):
        call(connection, "garbage")

    assert isinstance(other.exception(5), RemoteProtocolError)
    assert call(connection, "echo", 1) == 1


def test_messages_beyond_the_high_water_mark_wait_for_the_peer_in_order(
    peer: FakePeer, connect: Connect
) -> None:
    peer.stop()
    connection = connect(peer.endpoint, greets=False)
    count = HIGH_WATER_MARK + 500

    for number in range(count):
        connection.tell(Cancel(number))
    waiting = sum(map(len, connection._unsent.values()))
    peer.restart()
    connection.shake_hands()

    told = [message.sequence for message in peer.wait_for(Cancel, count)]
    assert told == list(range(count))
    assert waiting > 0, "all of it fitted; the mark was not reached"


# -- messages --------------------------------------------------------------------------


def test_large_buffers_travel_beside_the_message(connection: Connection) -> None:
    data = os.urandom(MESSAGE_BYTES_MAX // 2)

    assert call(connection, "echo", data) == data


@pytest.mark.parametrize("is_future", [False, True])
def test_message_over_the_peers_limit_stays_here(
    peer: FakePeer, connection: Connection, *, is_future: bool
) -> None:
    too_much = bytes(MESSAGE_BYTES_MAX + 1)

    with pytest.raises(TooLargeError, match="message_bytes_max of the peer"):
        (submit if is_future else call)(connection, "echo", too_much)

    assert not connection.session.requests
    assert call(connection, "echo", 1) == 1
    assert len(peer.wait_for(Call)) == 1


def test_many_submitted_calls_share_frames_and_keep_their_order(
    peer: FakePeer, connection: Connection
) -> None:
    futures = [submit(connection, "echo", number) for number in range(300)]

    assert [future.result(5) for future in futures] == list(range(300))
    assert [call.sequence for call in peer.wait_for(Call, 300)] == list(range(1, 301))


# -- threads ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", [call, lambda *args: submit(*args).result()])
def test_many_threads_on_one_connection_get_their_own_answers(
    connection: Connection, how: Callable[..., object]
) -> None:
    """None sleeps past its answer: a lost wake-up costs a quarter of a second.

    Before the leader was woken by those who send, 8 threads had 20 such calls of 1,200.
    """
    slow = []

    def work(number: int) -> list[object]:
        answers = []
        for i in range(100):
            began_s = time.monotonic()
            answers.append(how(connection, "echo", [number, i]))
            slow.extend([1] if time.monotonic() - began_s > 0.15 else [])
        return answers

    joins = [in_thread(lambda n=number: work(n)) for number in range(8)]

    for number, join in enumerate(joins):
        assert join() == [[number, i] for i in range(100)]
    assert len(slow) <= 8, "more than one hiccup of the machine per thread"


def test_answers_in_the_wrong_order_reach_those_who_asked(
    peer: FakePeer, connection: Connection
) -> None:
    joins = [in_thread(lambda n=n: call(connection, "hold", n)) for n in range(6)]
    peer.wait_for(Call, 6)

    peer.release(is_reversed=True)

    assert [join() for join in joins] == list(range(6))


def test_waiting_thread_takes_over_when_the_leader_has_its_answer(
    peer: FakePeer, connection: Connection
) -> None:
    leader = in_thread(lambda: call(connection, "hold", "first"))
    peer.wait_for(Call)
    followers = [in_thread(lambda n=n: call(connection, "hold", n)) for n in range(3)]
    peer.wait_for(Call, 4)
    last = peer._held.pop()
    peer.release()
    assert leader() == "first"

    peer._held.append(last)
    peer.release()

    assert sorted(join() for join in followers) == [0, 1, 2]


def test_two_threads_wait_for_one_future(
    peer: FakePeer, connection: Connection
) -> None:
    future = submit(connection, "hold", "shared")
    joins = [in_thread(future.result) for _ in range(3)]
    peer.wait_for(Call)

    peer.release()

    assert [join() for join in joins] == ["shared"] * 3


def test_interrupted_thread_cancels_its_call(
    peer: FakePeer, connection: Connection
) -> None:
    def interrupt() -> None:
        peer.wait_for(Call)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    join = in_thread(interrupt)

    with pytest.raises(KeyboardInterrupt):
        call(connection, "hold")

    assert join() is None
    peer.wait_for(Cancel, sequence=1)
    assert not connection.session.requests
    assert call(connection, "echo", 1) == 1


# -- closing ---------------------------------------------------------------------------


def test_close_fails_calls_that_wait_at_once(
    peer: FakePeer, connection: Connection
) -> None:
    joins = [in_thread(lambda: call(connection, "hold")) for _ in range(3)]
    future = submit(connection, "hold")
    request = stream(connection, "endless")
    peer.wait_for(Call, 5)
    began_s = time.monotonic()

    connection.close()

    for outcome in (*(join() for join in joins), future.exception(5), request.error):
        assert isinstance(outcome, CancelledError)
        assert outcome.where == "the client was closed"
    assert time.monotonic() - began_s < 2
    peer.wait_for(Bye)


def test_use_after_close(peer: FakePeer, connection: Connection) -> None:
    connection.close()

    for use in (call, submit, stream):
        with pytest.raises(InvalidRequestError, match="closed; connect again"):
            use(connection, "echo")
    connection.tell(Cancel(1))
    assert not [message for message in peer.seen if type(message) is Call]


def test_closing_twice_is_closing_once(peer: FakePeer, connection: Connection) -> None:
    connection.close()
    connection.close()

    assert len(peer.wait_for(Bye)) == 1


def test_callback_may_close_the_connection(connection: Connection) -> None:
    """The callback runs in the thread that would have to be waited for."""
    closed = threading.Event()
    future = submit(connection, "echo")

    def close(_: object) -> None:
        connection.close()
        closed.set()

    future.add_done_callback(close)

    assert closed.wait(5)


def test_connection_is_not_used_in_a_forked_child(connection: Connection) -> None:
    connection._pid = -1  # as a child sees it: the process that opened it is another

    with pytest.raises(InvalidRequestError, match="does not survive a fork"):
        call(connection, "echo")

    connection.close()
    assert not connection._socket.closed, "the parent's socket is left alone"
    connection._socket.close()
    connection._context.term()
