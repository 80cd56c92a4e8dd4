"""What is told of an address at which no peer answers: each way to be none, in words."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import zmq

from activestore.peer import knocking
from activestore.peer.knocking import Knocker, why_silent

pytestmark = pytest.mark.net


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait no seconds where an answer never comes."""
    monkeypatch.setattr(knocking, "CONNECT_S", 0.2)
    monkeypatch.setattr(knocking, "ANSWER_S", 0.2)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Return a socket that listens at a free port."""
    with closing(socket.socket()) as made:
        made.bind(("127.0.0.1", 0))
        made.listen(8)
        yield made


def endpoint_of(listener: socket.socket) -> str:
    return f"tcp://127.0.0.1:{listener.getsockname()[1]}"


def test_port_at_which_nothing_listens() -> None:
    with closing(socket.socket()) as bound:  # taken, so that nobody else gets it
        bound.bind(("127.0.0.1", 0))

        assert "connection refused" in why_silent(endpoint_of(bound))


def test_port_that_drops_what_is_sent() -> None:
    """A full backlog drops packets, as a firewall does."""
    with closing(socket.socket()) as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())

        assert "firewall" in why_silent(endpoint_of(full))

        for one in waiting:
            one.close()


def test_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)

    reason = why_silent("tcp://nowhere.invalid:7400")

    assert "'nowhere.invalid' cannot be resolved" in reason


def test_name_that_is_none() -> None:
    assert "no name of a machine" in why_silent(f"tcp://{'a' * 70}:7400")


def test_port_that_accepts_and_says_nothing(listener: socket.socket) -> None:
    assert "says nothing" in why_silent(endpoint_of(listener))


def test_port_that_hangs_up(listener: socket.socket) -> None:
    def hang() -> None:
        listener.accept()[0].close()

    hang_up = threading.Thread(target=hang)
    hang_up.start()

    reason = why_silent(endpoint_of(listener))

    hang_up.join()
    assert "hangs up" in reason or "breaks the connection" in reason


def test_port_of_a_web_server() -> None:
    class Quiet(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Quiet) as server:
        serving = threading.Thread(target=server.handle_request)
        serving.start()

        reason = why_silent(f"tcp://127.0.0.1:{server.server_port}")

        serving.join()
    assert "is no peer: it answers b'" in reason
    assert "HTML" in reason


def test_zeromq_socket_that_is_no_peer() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")

        assert "speaks ZeroMQ" in why_silent(f"tcp://127.0.0.1:{port}")


def test_path_at_which_nothing_listens() -> None:
    assert "no way there: No such file" in why_silent("ipc:///nowhere/at/all")


def test_one_look_at_a_time_and_its_answer_comes_with_the_turn() -> None:
    woken, found = threading.Event(), []
    knocker = Knocker(woken.set)

    assert knocker.knock("ipc:///nowhere/at/all", found.append)
    assert not knocker.knock("ipc:///nowhere/else", found.append)
    assert woken.wait(10.0)
    assert not found
    knocker.turn()

    assert len(found) == 1
    assert knocker.knock("ipc:///nowhere/else", found.append)
    until_s = time.monotonic() + 10.0
    while len(found) < 2 and time.monotonic() < until_s:
        knocker.turn()
        time.sleep(0.01)
    assert len(found) == 2
