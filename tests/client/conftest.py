"""A fake peer and connections to it; all are closed at the end of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from activestore.client.connection import Connection
from tests.client.fake_peer import FakePeer

TIMEOUT_S = 10.0


@pytest.fixture
def peer() -> Iterator[FakePeer]:
    """A peer that welcomes everybody."""
    peer = FakePeer()
    yield peer
    peer.close()


@pytest.fixture
def peers() -> Iterator[list[FakePeer]]:
    """Three peers of one cluster: the first is connected to."""
    peers = [FakePeer() for _ in range(3)]
    for number, peer in enumerate(peers):
        peer.peer_id = b"peer-%d" % number
    yield peers
    for peer in peers:
        peer.close()


@pytest.fixture
def connect() -> Iterator[Callable[..., Connection]]:
    """Open connections; greeted unless told otherwise."""
    opened: list[Connection] = []

    def connect(
        endpoint: str | list[str], timeout_s: float = TIMEOUT_S, *, greets: bool = True
    ) -> Connection:
        connection = Connection(endpoint, timeout_s, "tester")
        opened.append(connection)
        if greets:
            connection.shake_hands()
        return connection

    yield connect
    for connection in opened:
        connection.close()


@pytest.fixture
def connection(peer: FakePeer, connect: Callable[..., Connection]) -> Connection:
    """A connection to the fake peer."""
    return connect(peer.endpoint)
