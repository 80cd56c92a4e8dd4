"""One client, several peers, real sockets: redirects, dead peers, threads, futures."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import activestore
from activestore.client import finding
from activestore.client.connection import Connection
from activestore.errors import (
    ConfigurationError,
    InvalidRequestError,
    RemoteProtocolError,
    UnavailableError,
)
from activestore.ids import ObjectId
from activestore.remote import CallOptions, MethodSpec, RemoteMethod
from activestore.wire.messages import Bye, Call, Hello
from tests.client.fake_peer import FakePeer, call, decode, maker, stream, submit
from tests.client.sessions import OBJECT

pytestmark = pytest.mark.net
Connect = Callable[..., Connection]
# Long enough for a peer to be given up (2 s) and another to answer, on a busy machine.
SWITCH_S = 6.0


def free_endpoint() -> str:
    """Return an address of the loopback where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def forward(connection: Connection, argument: object) -> object:
    """Call with `direct=False`, as the store sends it."""
    make = maker("echo", argument, extra={"direct": False})
    request = connection.call(make, timeout_s=0.0, where="echo")
    return decode(request.outcome())


# -- moved -----------------------------------------------------------------------------


def test_moved_object_is_called_where_it_is(peers: list[FakePeer], connect: Connect):
    near, far, _ = peers
    near.moved_to = far
    connection = connect(near.endpoint)

    assert [call(connection, "echo", n) for n in range(5)] == list(range(5))

    assert [c.sequence for c in near.wait_for(Call)] == [1]
    assert [(c.sequence, c.attempt) for c in far.wait_for(Call, 5)] == [
        (n, 0) for n in range(1, 6)
    ]
    sessions = {hello.session for peer in peers[:2] for hello in peer.wait_for(Hello)}
    assert len(sessions) == 1
    assert connection.endpoint == near.endpoint


def test_large_buffers_follow_too(peers: list[FakePeer], connect: Connect):
    peers[0].moved_to = peers[1]
    data = os.urandom(500_000)

    assert call(connect(peers[0].endpoint), "echo", data) == data


def test_stream_is_followed(peers: list[FakePeer], connect: Connect):
    peers[0].moved_to = peers[1]
    connection = connect(peers[0].endpoint)

    request = stream(connection, "items")
    connection.wait(request)

    assert [decode(item) for item in request.items] == [0, 1, 2]


def test_direct_false_is_forwarded_by_the_connected_peer(
    peers: list[FakePeer], connect: Connect
):
    near, far, _ = peers
    near.moved_to = far
    connection = connect(near.endpoint)
    call(connection, "echo")

    assert forward(connection, "near") == "near"
    assert len(near.wait_for(Call, 2)) == 2


def test_unreachable_peer_has_its_calls_forwarded(
    peers: list[FakePeer], connect: Connect
):
    near, far, _ = peers
    near.moved_to = far
    far.stop()
    connection = connect(near.endpoint)
    began_s = time.monotonic()

    assert call(connection, "echo", 1) == 1
    waited_s = time.monotonic() - began_s
    assert call(connection, "echo", 2) == 2

    assert 0.9 < waited_s < 3.0
    assert time.monotonic() - began_s - waited_s < 0.5
    calls = near.wait_for(Call, 4)
    assert [(c.sequence, c.attempt) for c in calls] == [(1, 0), (1, 0), (2, 0), (2, 0)]


def test_address_that_is_none_has_its_calls_forwarded(
    peers: list[FakePeer], connect: Connect, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(FakePeer, "endpoint", property(lambda self: "nonsense"))
    near, far, _ = peers
    near.moved_to = far
    connection = connect(f"tcp://127.0.0.1:{near.port}")

    assert [call(connection, "echo", n) for n in range(3)] == [0, 1, 2]


def test_name_that_nobody_knows_delays_no_other_call(
    peers: list[FakePeer], connect: Connect
):
    near = peers[0]
    connection = connect(near.endpoint)
    near.moved_to = peers[1]
    peers[1].stop()
    with pytest.MonkeyPatch.context() as patched:
        name = "tcp://no-such-host.invalid:7400"
        patched.setattr(FakePeer, "endpoint", property(lambda self: name))
        future = submit(connection, "echo", "moved")
        began_s = time.monotonic()
        for number in range(10):
            forward(connection, number)
        waited_s = time.monotonic() - began_s

        assert future.result(5) == "moved"
    assert waited_s < 0.5


def test_peer_that_dies_behind_a_direct_link(peers: list[FakePeer], connect: Connect):
    near, far, _ = peers
    near.moved_to = far
    connection = connect(near.endpoint)
    held = submit(connection, "hold", "kept")
    running = stream(connection, "endless")
    far.wait_for(Call, 2)

    far.stop()
    (again,) = near.wait_for(Call, attempt=1)
    near.release()

    assert held.result(5) == "kept"
    assert again.extra["direct"] is False
    connection.wait(running)
    assert isinstance(running.error, UnavailableError)


def test_many_threads_and_futures_call_objects_on_two_peers(
    peers: list[FakePeer], connect: Connect
):
    """None sleeps past its answer, wherever it comes from."""
    near, far, _ = peers
    near.moved_to = far
    connection = connect(near.endpoint)
    began_s = time.monotonic()

    def work(number: int) -> None:
        for i in range(50):
            assert call(connection, "echo", [number, i]) == [number, i]
            assert forward(connection, [number, -i]) == [number, -i]
            assert submit(connection, "echo", i).result(5) == i

    with ThreadPoolExecutor(8) as threads:
        for future in [threads.submit(work, number) for number in range(8)]:
            future.result(30)

    assert time.monotonic() - began_s < 10


def test_submitted_calls_to_two_peers_keep_their_order_at_each(
    peers: list[FakePeer], connect: Connect
):
    near, far, _ = peers
    near.moved_to = far
    connection = connect(near.endpoint)
    call(connection, "echo")

    futures = []
    for number in range(200):
        futures.append(submit(connection, "echo", number))
        if number % 3 == 0:
            make = maker("echo", number, extra={"direct": False})
            connection.start(make, timeout_s=0.0, where="echo", on_done=lambda _: None)

    assert [future.result(5) for future in futures] == list(range(200))
    near.wait_for(Call, 68)
    for peer in (near, far):
        sequences = [message.sequence for message in peer.wait_for(Call)]
        assert sequences == sorted(sequences)


def test_close_says_goodbye_to_all(peers: list[FakePeer], connect: Connect):
    peers[0].moved_to = peers[1]
    connection = connect(peers[0].endpoint)
    call(connection, "echo")

    connection.close()

    for peer in peers[:2]:
        peer.wait_for(Bye)


# -- the connected peer dies -----------------------------------------------------------


@pytest.mark.parametrize("how", ["stops", "freezes"])
@pytest.mark.parametrize("is_learned", [False, True])
def test_connected_peer_dies_and_its_calls_go_to_another(
    peers: list[FakePeer], connect: Connect, how: str, *, is_learned: bool
):
    first, second, _ = peers
    endpoints = [first.endpoint, second.endpoint]
    if is_learned:
        first.welcome_extra = {"peers": endpoints}
        endpoints = endpoints[:1]
    connection = connect(endpoints)
    held = [submit(connection, "hold", n) for n in range(3)]
    running = stream(connection, "endless")
    first.wait_for(Call, 4)
    began_s = time.monotonic()

    if how == "stops":
        first.stop()
    else:
        first.freeze()
    calls = second.wait_for(Call, 3, attempt=1)
    second.release()

    assert [future.result(5) for future in held] == [0, 1, 2]
    assert [c.sequence for c in calls] == [1, 2, 3]
    assert time.monotonic() - began_s < SWITCH_S
    connection.wait(running)
    assert isinstance(running.error, UnavailableError)
    assert connection.endpoint == second.endpoint
    assert connection.session.peer is not None
    assert connection.session.peer.peer_id == second.peer_id
    assert call(connection, "echo", "after") == "after"


def test_thread_that_waits_for_a_plain_call_notices_too(
    peers: list[FakePeer], connect: Connect
):
    first, second, _ = peers
    connection = connect([first.endpoint, second.endpoint])
    timer = threading.Timer(0.1, first.freeze)
    timer.start()

    waiting = threading.Thread(
        target=lambda: second.wait_for(Call) and second.release()
    )
    waiting.start()
    result = call(connection, "hold", "kept")

    waiting.join()
    assert result == "kept"


def test_call_after_the_connected_peer_died_idle(
    peers: list[FakePeer], connect: Connect
):
    first, second, third = peers
    connection = connect([first.endpoint, second.endpoint, third.endpoint])
    first.stop()
    second.stop()
    began_s = time.monotonic()

    assert call(connection, "echo", 1) == 1

    assert time.monotonic() - began_s < SWITCH_S
    assert connection.endpoint == third.endpoint


def test_all_peers_are_gone_and_one_comes_back(peers: list[FakePeer], connect: Connect):
    first, second, _ = peers
    connection = connect([first.endpoint, second.endpoint])
    future = submit(connection, "echo", "late")
    future.result(5)
    first.stop()
    second.stop()
    future = submit(connection, "echo", "later")
    time.sleep(3.0)

    second.restart()

    assert future.result(SWITCH_S) == "later"


def test_stopped_lone_peer_is_reported_when_the_silence_is_over(
    peers: list[FakePeer], connect: Connect
):
    connection = connect(peers[0].endpoint, 2.0)
    peers[0].freeze()
    began_s = time.monotonic()

    with pytest.raises(UnavailableError, match="nothing was heard"):
        call(connection, "echo")

    assert 1.9 < time.monotonic() - began_s < 3.5


def test_one_descriptor_watches_all_links(peers: list[FakePeer], connect: Connect):
    first, second, _ = peers
    first.moved_to = second
    connection = connect(first.endpoint)
    call(connection, "echo")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    fd = connection._fd

    for number in range(20):
        call(connection, "echo", number)

    assert connection._fd == fd
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 2


# -- the first peer --------------------------------------------------------------------


def test_dead_first_address_and_a_live_second(peers: list[FakePeer]):
    began_s = time.monotonic()

    with activestore.connect([free_endpoint(), peers[0].endpoint]) as store:
        assert store.endpoint == peers[0].endpoint

    assert time.monotonic() - began_s < 3.0


def test_unknown_name_first_and_a_live_second(peers: list[FakePeer]):
    endpoints = ["tcp://no-such-host.invalid:7400", peers[0].endpoint]

    with activestore.connect(endpoints) as store:
        assert store.endpoint == peers[0].endpoint


def test_nobody_at_any_address():
    endpoints = [free_endpoint(), free_endpoint()]

    with pytest.raises(UnavailableError, match=r"within 0\.3 s") as caught:
        activestore.connect(endpoints, timeout_s=0.3)

    assert caught.value.where == ", ".join(endpoints)


def test_first_refuses_and_second_is_dead(peers: list[FakePeer]):
    peers[0].greeting = "version"

    with pytest.raises(RemoteProtocolError, match="versions 7 to 9"):
        activestore.connect([peers[0].endpoint, free_endpoint()], timeout_s=0.5)


def test_first_refuses_and_second_welcomes(peers: list[FakePeer]):
    peers[0].greeting = "garbage"

    with activestore.connect([p.endpoint for p in peers[:2]]) as store:
        assert store.endpoint == peers[1].endpoint


def test_any_address_that_is_none_is_refused_at_once(peers: list[FakePeer]):
    with pytest.raises(ConfigurationError, match="'nonsense' is no address"):
        activestore.connect([peers[0].endpoint, "nonsense"])


@pytest.mark.parametrize("timeout_s", [True, "5", 0, -1.0, float("nan"), None])
def test_timeout_that_is_none(timeout_s: object):
    with pytest.raises(ConfigurationError, match="timeout_s"):
        finding.open_connection("tcp://127.0.0.1:1", timeout_s, "")  # type: ignore[arg-type]


def test_coroutines_follow_and_survive_the_connected_peer(peers: list[FakePeer]):
    first, second, third = peers
    first.moved_to = third

    async def run() -> list[object]:
        store = await activestore.aio.connect([first.endpoint, second.endpoint])
        connection = store._store._connection
        results = []
        for number in range(3):
            future = submit(connection, "echo", number)
            results.append(await asyncio.wrap_future(future))
        third.stop()
        first.freeze()
        results.append(await asyncio.wrap_future(submit(connection, "echo", "on")))
        assert store._store.endpoint == second.endpoint
        await store.close()
        return results

    assert asyncio.run(run()) == [0, 1, 2, "on"]


def test_store_asks_the_connected_peer_to_forward_with_direct_false(
    peers: list[FakePeer],
):
    near, far, _ = peers
    near.moved_to = far
    with activestore.connect(near.endpoint) as store:
        for direct in (True, False):
            store.invoke(OBJECT, "echo", (), {}, CallOptions(direct=direct))

    (first, second), (followed,) = near.wait_for(Call, 2), far.wait_for(Call)
    assert (first.extra, followed.extra) == (None, None)
    assert second.extra == {"direct": False}


@pytest.mark.parametrize(
    "options",
    [{"timeout_s": "a"}, {"timeout_s": True}, {"timeout_s": 0}, {"timeout_s": -1.0},
     {"timeout_s": float("nan")}, {"timeout_s": float("inf")}, {"timeout_s": 1e30},
     {"timeout_s": [1]}, {"direct": "no"}, {"direct": None}],
)  # fmt: skip
def test_options_that_are_none_are_refused(options: dict[str, Any]):
    method = RemoteMethod(
        MethodSpec(
            "add", "Counter", is_stream=False, doc="", signature=inspect.Signature
        ),
        ObjectId(OBJECT),
        None,  # type: ignore[arg-type]  # it is not called
    )

    with pytest.raises(InvalidRequestError, match=next(iter(options))):
        method.options(**options)
