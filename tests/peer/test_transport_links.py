"""Links of one peer to others: real sockets of the loopback, and nobody else needed."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from activestore.errors import ConfigurationError
from activestore.peer import transport
from activestore.peer.transport import RouterTransport
from activestore.wire import codec
from activestore.wire.messages import Gossip, Message, Ping, Pong

pytestmark = pytest.mark.net

ANY = "tcp://127.0.0.1:0"
WAIT_S = 10.0
QUIET_S = 0.4
# A connect that waited for somebody would take at least a connection's time-out.
AT_ONCE_S = 0.5


@pytest.fixture
def open_peer() -> Iterator[Callable[..., RouterTransport]]:
    """Open transports; all are closed at the end."""
    opened: list[RouterTransport] = []

    def open_peer(listen: str = ANY) -> RouterTransport:
        until_s = time.monotonic() + WAIT_S
        while True:
            try:
                opened.append(RouterTransport(listen))
            except ConfigurationError:
                # The socket before lets go of the port a moment after its end.
                if listen == ANY or time.monotonic() > until_s:
                    raise
                time.sleep(0.01)
            else:
                return opened[-1]

    yield open_peer
    for one in opened:
        for route in list(one._links):
            one.disconnect(route)
        one.close()


def wait_for(one: RouterTransport, count: int) -> list[tuple[bytes, Message]]:
    """Return the next `count` messages as route and message."""
    found: list[tuple[bytes, Message]] = []
    until_s = time.monotonic() + WAIT_S
    while len(found) < count:
        assert time.monotonic() < until_s, f"{len(found)} of {count} came"
        for route, frames in one.receive(100):
            found += [(route, message) for message in codec.decode_frames(frames)]
        time.sleep(0.002)
    return found


def hears_nothing(one: RouterTransport) -> bool:
    """Return whether nothing comes for a while."""
    until_s = time.monotonic() + QUIET_S
    while time.monotonic() < until_s:
        if one.receive(1):
            return False
        time.sleep(0.01)
    return True


def say(one: RouterTransport, route: bytes, message: Message) -> list[bytes]:
    """Send one message now; return the routes that are gone."""
    one.send(route, message)
    return one.flush()


def free_port() -> int:
    """Return a port of the loopback where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_link_carries_messages_both_ways(open_peer):
    near, far = open_peer(), open_peer()

    route = near.connect(far.endpoint)
    say(near, route, Ping(1))
    ((back, came),) = wait_for(far, 1)
    say(far, back, Pong(1, b"i" * 16, True))

    assert came == Ping(1)
    assert wait_for(near, 1) == [(route, Pong(1, b"i" * 16, True))]


def test_two_peers_may_each_have_a_link_to_the_other(open_peer):
    near, far = open_peer(), open_peer()
    there, back = near.connect(far.endpoint), far.connect(near.endpoint)

    say(near, there, Ping(1))
    say(far, back, Ping(2))

    assert wait_for(far, 1)[0][1] == Ping(1)
    assert wait_for(near, 1)[0][1] == Ping(2)


def test_what_was_sent_before_the_other_side_came_arrives_in_order(open_peer):
    near, port = open_peer(), free_port()
    route = near.connect(f"tcp://127.0.0.1:{port}")
    for token in range(50):
        say(near, route, Ping(token))

    far = open_peer(f"tcp://127.0.0.1:{port}")

    assert [m.token for _, m in wait_for(far, 50)] == list(range(50))


def test_a_link_finds_the_other_side_again_after_its_restart(open_peer):
    near, far = open_peer(), open_peer()
    endpoint = far.endpoint
    route = near.connect(endpoint)
    say(near, route, Ping(1))
    wait_for(far, 1)
    far.close()
    time.sleep(0.1)

    again = open_peer(endpoint)
    gone = say(near, route, Ping(2))
    ((back, came),) = wait_for(again, 1)
    say(again, back, Pong(2, b"j" * 16, True))

    assert (gone, came) == ([], Ping(2))
    assert wait_for(near, 1)[0][0] == route


def test_connecting_and_sending_to_nobody_waits_for_nothing(open_peer):
    near = open_peer()
    started_s = time.monotonic()

    # No port, no such host, and an address that answers nothing.
    for endpoint in (
        f"tcp://127.0.0.1:{free_port()}",
        "tcp://no-such-host.invalid:7400",
        "tcp://192.0.2.1:7400",
        "tcp://[::1]:1",
        "ipc:///nonexistent/activestore.sock",
    ):
        assert say(near, near.connect(endpoint), Ping(1)) == []

    assert time.monotonic() - started_s < AT_ONCE_S


def test_a_name_that_is_looked_up_for_long_delays_no_other_link(open_peer):
    near, far = open_peer(), open_peer()
    for n in range(5):
        near.connect(f"tcp://no-such-host-{n}.invalid:7400")
    started_s = time.monotonic()

    say(near, near.connect(far.endpoint), Ping(1))
    wait_for(far, 1)

    assert time.monotonic() - started_s < AT_ONCE_S


def test_messages_to_nobody_wait_within_bounds_and_then_the_link_is_reported(
    open_peer, monkeypatch
):
    monkeypatch.setattr(transport, "BACKLOG_BYTES_MAX", 10_000)
    near = open_peer()
    route = near.connect(f"tcp://127.0.0.1:{free_port()}")
    sender, body = b"peer06", b"x" * 100

    count, gone = 0, []
    while not gone:
        gone = say(near, route, Gossip(sender, None, body))
        count += 1

    assert gone == [route]
    assert transport.HIGH_WATER_MARK <= count < transport.HIGH_WATER_MARK + 200
    assert not near.has_backlog


def test_large_messages_to_nobody_are_bounded_by_their_bytes(open_peer, monkeypatch):
    """ZeroMQ counts messages: a thousand of 16 MiB would be all memory there is."""
    monkeypatch.setattr(transport, "UNHEARD_BYTES_MAX", 1_000_000)
    monkeypatch.setattr(transport, "BACKLOG_BYTES_MAX", 1_000_000)
    near = open_peer()
    route = near.connect(f"tcp://127.0.0.1:{free_port()}")
    large = Gossip(b"peer06", None, b"x" * 100_000)

    accepted = 0
    while not say(near, route, large):
        accepted += 1

    assert 20 <= accepted <= 24
    assert near.bytes_out <= 1_200_000


def test_a_link_that_answers_takes_any_number_of_bytes(open_peer, monkeypatch):
    monkeypatch.setattr(transport, "UNHEARD_BYTES_MAX", 1_000_000)
    near, far = open_peer(), open_peer()
    route = near.connect(far.endpoint)
    large = Gossip(b"peer06", None, b"x" * 400_000)

    for token in range(20):
        assert say(near, route, large) == []
        ((back, _),) = wait_for(far, 1)
        say(far, back, Pong(token, b"i" * 16, True))
        wait_for(near, 1)

    assert not near.has_backlog


def test_one_message_over_all_bounds_goes_to_a_link(open_peer, monkeypatch):
    monkeypatch.setattr(transport, "UNHEARD_BYTES_MAX", 1000)
    monkeypatch.setattr(transport, "BACKLOG_BYTES_MAX", 1000)
    near, far = open_peer(), open_peer()
    route = near.connect(far.endpoint)
    large = Gossip(b"peer06", None, b"x" * 400_000)
    say(near, route, large)

    assert say(near, route, large) == []  # Over the first bound, and kept.
    ((back, _),) = wait_for(far, 1)
    say(far, back, Pong(1, b"i" * 16, True))
    wait_for(near, 1)

    assert near.flush() == []
    assert len(wait_for(far, 1)) == 1


def test_disconnect_drops_what_waits(open_peer):
    near, port = open_peer(), free_port()
    route = near.connect(f"tcp://127.0.0.1:{port}")
    say(near, route, Ping(1))
    near.send(route, Ping(2))

    near.disconnect(route)
    far = open_peer(f"tcp://127.0.0.1:{port}")

    assert hears_nothing(far)


def test_sending_to_a_link_that_ended_reports_it_gone(open_peer):
    near, far = open_peer(), open_peer()
    route = near.connect(far.endpoint)
    say(near, route, Ping(1))
    wait_for(far, 1)

    near.disconnect(route)
    near.disconnect(route)

    assert say(near, route, Ping(2)) == [route]
    assert hears_nothing(far)


@pytest.mark.parametrize("kind", ["tcp", "ipc"])
def test_two_links_to_one_endpoint_end_apart(open_peer, tmp_path, kind):
    near = open_peer()
    far = open_peer(ANY if kind == "tcp" else f"ipc://{tmp_path}/far")
    first, second = near.connect(far.endpoint), near.connect(far.endpoint)
    for route in (first, second):
        say(near, route, Ping(1))
    backs = {route for route, _ in wait_for(far, 2)}

    near.disconnect(first)
    say(near, second, Ping(2))
    third = near.connect(far.endpoint)
    say(near, third, Ping(3))

    assert len({first, second, third}) == 3
    assert len(backs) == 2
    assert {m.token for _, m in wait_for(far, 2)} == {2, 3}


def test_a_peer_that_dialled_itself_is_still_there_for_others(open_peer):
    """ZeroMQ has one call for "hang up" and "stop listening", told apart by the text."""
    near, far = open_peer(), open_peer()

    near.disconnect(near.connect(near.endpoint))
    say(far, far.connect(near.endpoint), Ping(7))

    ((_, came),) = wait_for(near, 1)
    assert came == Ping(7)


def test_links_of_both_families_live_beside_each_other(open_peer):
    try:
        far6 = open_peer("tcp://[::1]:0")
    except ConfigurationError:
        pytest.skip("this machine has no IPv6 loopback")
    near, far4 = open_peer(), open_peer()

    for far in (far6, far4):
        say(near, near.connect(far.endpoint), Ping(1))

    assert wait_for(far4, 1)[0][1] == wait_for(far6, 1)[0][1] == Ping(1)


@pytest.mark.parametrize(
    "endpoint",
    ["", "nonsense", "tcp://", "tcp://127.0.0.1", "tcp://127.0.0.1:0", "tcp://*:7400",
     "tcp://127.0.0.1:70000", "udp://127.0.0.1:7400", "inproc://x", "ipc://",
     "tcp://127.0.0.1:7400/x", "tcp://a b:7400", "tcp://0.0.0.0:7400"],
)  # fmt: skip
def test_what_is_no_address_is_refused_by_name(open_peer, endpoint):
    with pytest.raises(ConfigurationError, match="endpoint"):
        open_peer().connect(endpoint)


def test_a_transport_with_dead_links_closes_soon(open_peer, tmp_path: Path) -> None:
    near: Any = RouterTransport(f"ipc://{tmp_path}/near")
    for port in (free_port(), free_port()):
        say(near, near.connect(f"tcp://127.0.0.1:{port}"), Ping(1))
    started_s = time.monotonic()

    near.close()

    assert time.monotonic() - started_s < transport.LINGER_MS / 1000 + AT_ONCE_S
