"""A peer that has ended is left at once: nothing listens where it was."""

from __future__ import annotations

import socket

import pytest

from activestore.client.knocking import is_listened_to, is_refused
from activestore.client.session import PING_S
from activestore.wire.messages import Reply
from tests.client.worlds import A, B, World, world_of


@pytest.fixture
def listening():
    """A socket of 127.0.0.1 that listens, as every peer's."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


def test_an_address_where_somebody_listens_is_not_refused(listening) -> None:
    port = listening.getsockname()[1]

    assert not is_refused(f"tcp://127.0.0.1:{port}")
    assert not is_refused(f"tcp://127.0.0.1:000{port}")


def test_an_address_where_nobody_listens_any_more_is_refused(listening) -> None:
    port = listening.getsockname()[1]
    listening.close()

    assert is_refused(f"tcp://127.0.0.1:{port}")


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://localhost:1", "ipc:///tmp/x", "tcp://127.0.0.1:99999", "tcp://1.2:3:4", ""],
)
def test_what_cannot_be_seen_at_once_is_not_taken_for_refused(endpoint: str) -> None:
    assert not is_refused(endpoint)
    assert not is_listened_to(endpoint)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_what_listens_and_says_nothing_is_seen(listening, host: str) -> None:
    endpoint = f"tcp://{host}:{listening.getsockname()[1]}"
    assert is_listened_to(endpoint)

    listening.close()

    assert not is_listened_to(endpoint)


def silent_link(world: World, endpoint: str):
    """Return the link to an address after the ping that was not answered."""
    world.pass_time(PING_S)
    link = world.link(endpoint)
    assert link in world.session.links.silent
    return link


def test_requests_of_a_peer_that_has_ended_go_by_the_connected_peer_as_a_next_attempt():
    world = world_of(A)
    world.moved(A, world.call(), B)
    world.greet(B)
    world.come(B, Reply(1))
    world.call()
    assert world.calls(B)[-1] == (2, 0, False)
    link = silent_link(world, B)

    world._carry(*world.session.refused(link, world.now_s))

    assert world.calls(A)[-1] == (2, 1, True)
    assert not link.is_open


def test_another_peer_is_looked_for_where_the_connected_one_has_ended():
    world = World(A, B)
    world.greet(A)
    world.call()
    link = silent_link(world, A)

    world._carry(*world.session.refused(link, world.now_s))
    world.pass_time(PING_S)
    world.greet(B)

    assert world.calls(B) == [(1, 1, False)]


def test_lone_peer_that_restarts_is_waited_for():
    world = world_of(A)
    world.call()
    link = silent_link(world, A)

    world._carry(*world.session.refused(link, world.now_s))

    assert link.is_up
    assert world.session.links.main is link
