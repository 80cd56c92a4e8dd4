"""Futures and streams of a connection: served though no thread waits for them."""

from __future__ import annotations

import concurrent.futures
import threading

import pytest

from activestore.client import waiting
from activestore.client.connection import Connection
from activestore.client.futures import CallFuture
from activestore.client.links import Link
from activestore.client.requests import Request
from activestore.errors import CancelledError, MethodError
from activestore.wire.messages import Call, Cancel, Reply
from tests.client.fake_peer import FakePeer, decode, maker, stream, submit

pytestmark = pytest.mark.net


def told_by(future: CallFuture) -> threading.Event:
    """Return an event that the future's callback sets."""
    told = threading.Event()
    future.add_done_callback(lambda _: told.set())
    return told


def test_callback_is_called_though_nobody_waits(connection: Connection) -> None:
    future = submit(connection, "echo", 1)

    assert told_by(future).wait(5)
    assert future.result() == 1


def test_callback_is_called_after_a_stream_of_several_items(
    peer: FakePeer, connection: Connection
) -> None:
    """Items and their end in one frame were counted off as four requests, not one."""
    request = stream(connection, "items")
    connection.wait(request)
    assert [decode(item) for item in request.items] == [0, 1, 2]
    assert connection._unwaited == 0

    futures = [submit(connection, "hold", n) for n in range(3)]
    peer.wait_for(Call, 3, method="hold")
    peer.release()

    done, _ = concurrent.futures.wait(futures, timeout=5)
    assert len(done) == 3


def test_pump_sleeps_when_nothing_is_left_to_serve(connection: Connection) -> None:
    assert submit(connection, "echo").result(5) is None
    request = stream(connection, "items")
    connection.wait(request)

    assert connection._unwaited == 0
    assert told_by(submit(connection, "echo")).wait(5), "and wakes for the next"


def test_result_within_a_timeout_that_is_too_short(
    peer: FakePeer, connection: Connection
) -> None:
    future = submit(connection, "hold", "late")

    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(0.02)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.exception(0.0)
    peer.wait_for(Call)
    peer.release()

    assert future.result(5) == "late"
    assert future.exception() is None


def test_cancelled_future_is_cancelled_at_the_peer(
    peer: FakePeer, connection: Connection
) -> None:
    future = submit(connection, "hold")
    told = told_by(future)

    assert future.cancel()

    assert told.wait(5)
    peer.wait_for(Cancel, sequence=1)
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()
    assert connection._unwaited == 0


def test_future_that_has_ended_cannot_be_cancelled(connection: Connection) -> None:
    future = submit(connection, "echo", 1)
    future.result(5)

    assert not future.cancel()
    assert future.result() == 1


def test_waiting_thread_hears_at_once_that_another_cancelled(
    peer: FakePeer, connection: Connection
) -> None:
    future = submit(connection, "hold")
    peer.wait_for(Call)
    canceller = threading.Timer(0.02, future.cancel)
    canceller.start()

    with pytest.raises(concurrent.futures.CancelledError):
        future.result(5)

    canceller.join()


def test_callback_may_call_on_the_same_connection(connection: Connection) -> None:
    second: list[CallFuture] = []
    told = threading.Event()

    def go_on(future: CallFuture) -> None:
        second.append(submit(connection, "echo", future.result() + 1))
        second[0].add_done_callback(lambda _: told.set())

    submit(connection, "echo", 1).add_done_callback(go_on)

    assert told.wait(5)
    assert second[0].result() == 2


def test_items_are_fetched_while_nobody_reads(
    peer: FakePeer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "STAND_BACK_S", 0.0)
    arrived = threading.Event()
    request = stream(connection, "endless")
    request.waiter = arrived

    assert arrived.wait(5)
    assert len(request.items) == 1


# -- without a connection --------------------------------------------------------------


class NoConnection:
    """A connection on which the answer is on its way already."""

    def abandon(self, request: Request, error: Exception) -> None:
        """Come too late."""


NOWHERE = Link(1, "tcp://127.0.0.1:7400", b"", None, 0.0)


def ended(error: Exception | None = None) -> Request:
    """Return a request that has its outcome."""
    request = Request(1, maker("echo")(1, 1), NOWHERE, 0.0, 0.0, "echo")
    request.error = error  # type: ignore[assignment]
    request.reply = Reply(1, None, b"\x07")
    return request


def future_of_nothing(decoding: object = decode) -> CallFuture:
    """Return a future before its request was sent."""
    return CallFuture(NoConnection(), decoding)  # type: ignore[arg-type]


def test_future_settled_before_its_request_was_noted_has_the_result() -> None:
    """The pump may read the answer before `submit` has returned."""
    future = future_of_nothing()

    future.settle(ended())

    assert future.result() == future.result(1) == 7
    assert future.exception() is None


def test_future_raises_what_the_call_failed_with() -> None:
    future = future_of_nothing()
    error = MethodError("ValueError", "no")

    future.settle(ended(error))

    assert future.exception() is error
    with pytest.raises(MethodError):
        future.result()


def test_result_that_cannot_be_decoded_is_the_futures_error() -> None:
    def fail(_: object) -> None:
        raise KeyError("no such class here")

    future = future_of_nothing(fail)

    future.settle(ended())

    assert isinstance(future.exception(), KeyError)


def test_answer_that_crosses_the_cancel_is_dropped() -> None:
    future = future_of_nothing()
    future.request = ended()
    assert future.cancel()

    future.settle(future.request)

    assert future.cancelled()


def test_future_whose_request_was_not_sent_cannot_be_cancelled() -> None:
    assert not future_of_nothing().cancel()


def test_cancelled_error_of_the_call_is_no_cancelled_future() -> None:
    """Somebody else cancelled it, such as `close`; this future ended with an error."""
    future = future_of_nothing()

    future.settle(ended(CancelledError("echo")))

    assert not future.cancelled()
    assert isinstance(future.exception(), CancelledError)
