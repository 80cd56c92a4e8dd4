"""What answers at an address is no peer, at first or at all.

libzmq takes what a web server answers for version 1 of its protocol, and 4.3.5 may abort
the process over it (zmtp_engine.cpp:422); where that version is refused it gives the
connection up for good, so the client connects again by itself.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

import activestore
from activestore.errors import UnavailableError
from tests.client.fake_peer import FakePeer

ANSWER = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n" + b"X" * 80


def listener_at(port: int) -> socket.socket:
    """Listen, as soon as who listened there before has let go of the port."""
    until_s = time.monotonic() + 5.0
    while True:
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.01)


class WebServer:
    """Answers every connection as a web server does, until it is stopped."""

    def __init__(self, port: int = 0) -> None:
        self._listener = listener_at(port)
        self.is_stopped = False
        self.port: int = self._listener.getsockname()[1]
        self.served_count = 0
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.served_count += 1
                try:
                    connection.recv(100)
                    connection.sendall(ANSWER)
                except OSError:
                    continue

    def stop(self) -> None:
        if self.is_stopped:
            return
        self.is_stopped = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def web_server() -> Iterator[WebServer]:
    server = WebServer()
    yield server
    server.stop()


def test_web_server_is_told_to_be_no_peer_and_is_not_flooded(web_server):
    with pytest.raises(UnavailableError):
        activestore.connect(f"tcp://127.0.0.1:{web_server.port}", timeout_s=2.0)

    assert 1 <= web_server.served_count <= 5


def test_peer_that_comes_where_a_web_server_was_is_found(peer: FakePeer) -> None:
    peer.stop()
    server = WebServer(peer.port)
    later = threading.Timer(1.0, lambda: (server.stop(), peer.restart()))
    later.start()

    try:
        with activestore.connect(peer.endpoint, timeout_s=20.0) as store:
            assert store.request is not None
        assert server.served_count >= 1
    finally:
        later.join()
        server.stop()


def test_other_address_is_used_where_the_first_is_a_web_server(
    web_server: WebServer, peer: FakePeer
) -> None:
    first = f"tcp://127.0.0.1:{web_server.port}"

    with activestore.connect([first, peer.endpoint], timeout_s=10.0) as store:
        assert store._connection.endpoint == peer.endpoint
