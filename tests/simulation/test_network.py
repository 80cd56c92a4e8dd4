"""The simulated network keeps the promises of TCP under ZeroMQ, and no more."""

from __future__ import annotations

from random import Random

import pytest

from activestore.errors import ConfigurationError
from activestore.testing import Latency, LinkQuality, seeds
from activestore.testing.clock import Agenda
from activestore.testing.network import SILENCE_S, SimNetwork, SimTransport
from activestore.wire import codec
from activestore.wire.messages import Ping, Reply


class Pair:
    """Two nodes; the first has connected to the second."""

    def __init__(self, seed: int = 1, quality: LinkQuality | None = None) -> None:
        self.agenda = Agenda()
        self.rng = Random(seed)
        self.network = SimNetwork(self.agenda, self.rng, lambda *_: None)
        if quality is not None:
            self.network.default = quality
        self.near = SimTransport(self.network, "near", "tcp://near:1", lambda: None)
        self.far = SimTransport(self.network, "far", "tcp://far:1", lambda: None)
        self.route = self.near.connect("tcp://far:1")

    def run(self, duration_s: float) -> None:
        """Let time pass."""
        end_s = self.agenda.now_s + duration_s
        while (due_s := self.agenda.next_s()) is not None and due_s <= end_s:
            self.agenda.step()
        self.agenda.now_s = end_s

    def send(self, *tokens: int) -> None:
        """Send pings from the near node, each in a frame of its own."""
        for token in tokens:
            self.near.send(self.route, Ping(token))
            self.near.flush()

    def taken(self, node: SimTransport) -> list[tuple[bytes, int]]:
        """Return route and token of the pings that have arrived at a node."""
        found = []
        for route, frames in node.receive(1000):
            found += [(route, ping[0]) for ping in codec.decode_frames(frames)]
        return found

    def tokens(self, node: SimTransport) -> list[int]:
        """Return the tokens of the pings that have arrived at a node."""
        return [token for _, token in self.taken(node)]


@pytest.mark.parametrize("seed", seeds(5))
def test_messages_of_one_connection_stay_in_order(seed: int) -> None:
    pair = Pair(seed, LinkQuality(Latency(0.001, 0.05), loss=0.2))
    pair.send(*range(50))
    pair.run(60.0)

    assert pair.tokens(pair.far) == list(range(50))


def test_messages_until_a_flush_share_a_frame() -> None:
    pair = Pair()
    for token in range(5):
        pair.near.send(pair.route, Ping(token))
    pair.near.flush()
    pair.run(1.0)

    (received,) = pair.far.receive(10)
    assert len(codec.decode_frames(received[1])) == 5


def test_buffers_arrive_as_views() -> None:
    pair = Pair()
    pair.near.send(pair.route, Reply(1, None, b"\xc0", [b"x" * 100_000]))
    pair.run(1.0)

    ((_, frames),) = pair.far.receive(10)
    (reply,) = codec.decode_frames(frames, codec.joined)
    assert bytes(reply.buffers[0]) == b"x" * 100_000


def test_answer_goes_to_the_route_it_came_from() -> None:
    pair = Pair()
    pair.send(1)
    pair.run(1.0)
    ((route, _),) = pair.taken(pair.far)
    pair.far.send(route, Ping(2))
    assert pair.far.flush() == []
    pair.run(1.0)

    assert pair.taken(pair.near) == [(pair.route, 2)]


def test_what_is_sent_before_the_connection_waits_for_it() -> None:
    pair = Pair()
    pair.far.close()
    pair.send(1, 2)
    pair.run(5.0)
    again = SimTransport(pair.network, "far", "tcp://far:1", lambda: None)
    pair.run(40.0)

    assert pair.tokens(again) == [1, 2]


@pytest.mark.parametrize("seed", seeds(20))
def test_of_what_was_on_its_way_a_first_part_survives_a_break(seed: int) -> None:
    pair = Pair(seed, LinkQuality(Latency(0.01, 0.05)))
    pair.run(1.0)
    pair.send(*range(10))
    pair.run(pair.rng.uniform(0.0, 0.1))
    assert pair.network.break_connections("near", "far") == 1
    pair.run(5.0)

    arrived = pair.tokens(pair.far)
    assert arrived == list(range(len(arrived)))


def test_breaks_lose_nothing_all_or_some() -> None:
    """A break that always lost the same would hide what the other cases show."""
    lengths = set()
    for seed in range(30):
        pair = Pair(seed)
        pair.run(1.0)
        pair.send(*range(5))
        pair.network.break_connections("near")
        pair.run(5.0)
        lengths.add(len(pair.tokens(pair.far)))

    assert lengths == set(range(6))


def test_new_connection_has_a_new_route_at_the_side_that_accepts() -> None:
    pair = Pair()
    pair.send(1)
    pair.run(1.0)
    ((before, _),) = pair.taken(pair.far)
    pair.network.break_connections("near")
    pair.run(5.0)
    pair.send(2)
    pair.run(1.0)
    ((after, _),) = pair.taken(pair.far)

    assert after != before
    pair.far.send(before, Ping(3))
    assert pair.far.flush() == [before]


def test_message_of_an_old_connection_may_come_after_one_of_the_new() -> None:
    """Order holds inside a connection only; a peer must know stale from fresh."""
    found = set()
    for seed in range(40):
        pair = Pair(seed, LinkQuality(Latency(0.000_1, 0.5)))
        pair.run(10.0)
        pair.send(1)
        pair.network.break_connections("near")
        pair.send(2)
        pair.run(60.0)
        found.add(tuple(pair.tokens(pair.far)))

    assert found == {(2,), (1, 2), (2, 1)}


def test_partition_shorter_than_the_silence_delays() -> None:
    pair = Pair()
    pair.run(1.0)
    pair.network.block("near", "far")
    pair.send(1, 2)
    pair.run(SILENCE_S / 2)
    assert pair.tokens(pair.far) == []
    pair.network.unblock("near", "far")
    pair.send(3)
    pair.run(1.0)

    assert pair.tokens(pair.far) == [1, 2, 3]


def test_partition_longer_than_the_silence_breaks_the_connection() -> None:
    pair = Pair()
    pair.run(1.0)
    pair.network.block("far", "near")  # One direction is enough.
    pair.run(2 * SILENCE_S)
    assert pair.network.connections_count == 0
    pair.network.unblock("far", "near")
    pair.run(60.0)

    assert pair.network.connections_count == 1


def test_disconnected_route_drops_what_waits_and_is_gone() -> None:
    pair = Pair()
    pair.send(1)
    pair.near.disconnect(pair.route)
    pair.run(5.0)
    assert pair.tokens(pair.far) == []

    pair.near.send(pair.route, Ping(2))
    assert pair.near.flush() == [pair.route]


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="is no address"):
        Pair().near.connect("far")
