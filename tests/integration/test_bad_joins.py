"""What a peer is told that cannot be: who cannot be joined, who has the wrong name, garbage.

One daemon meets all of it at once, and is asked what it says: in its log, in `status`.
Each case by itself is decided, and tested, in cores: tests/core/test_troubles.py,
tests/peer/test_knocking.py, tests/core/test_membership.py.

Source: reliability.md 6.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import ExitStack, closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest
import zmq

from activestore.errors import UnavailableError
from activestore.wire import codec
from activestore.wire.gossip import PeerRecord, PeerState, Update, encode_update
from activestore.wire.limits import PEER_VERSION_MIN, PROTOCOL_VERSION
from activestore.wire.messages import Gossip, Hello, Refused, Relay, Sync, Welcome

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(120)]

LIAR = b"liar-1"
# What a peer may keep of it: the records of invented peers, each of about 3 kB, are the most;
# the rest is what its allocator and its executors' first calls take.
FLOOD_PEERS = 500
GROWTH_BYTES_MAX = 32 << 20


def troubles_of(store):
    """Return kind and about of each trouble, with its reason."""
    return {
        (row["kind"], row["about"]): row["reason"] for row in store.status()["troubles"]
    }


class _Quiet(BaseHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing."""


def test_addresses_that_cannot_be_joined_are_told_with_the_reason(
    make_peer, eventually
):
    with ExitStack() as stack:
        bound = stack.enter_context(closing(socket.socket()))
        bound.bind(("127.0.0.1", 0))  # and does not listen
        silent = stack.enter_context(closing(socket.socket()))
        silent.bind(("127.0.0.1", 0))
        silent.listen(32)
        web = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), _Quiet))
        threading.Thread(target=web.serve_forever, daemon=True).start()
        stack.callback(web.shutdown)
        ports = [bound.getsockname()[1], silent.getsockname()[1], web.server_port]
        refused, mute, page = (f"tcp://127.0.0.1:{port}" for port in ports)
        nowhere = "tcp://nowhere.invalid:7400"
        theirs = make_peer(name="twin", cluster="theirs")
        peer = make_peer(name="twin", cluster="ours")
        myself = peer.endpoint
        peer.settings["join"] = ",".join(
            [myself, refused, mute, page, nowhere, theirs.endpoint]
        )
        peer.restart()
        store = peer.connect()
        expected = {
            myself: "that is this peer itself: leave it out of `join`",
            refused: "connection refused",
            mute: "says nothing",
            page: "is no peer: it answers b'",
            nowhere: "'nowhere.invalid' cannot be resolved",
            theirs.endpoint: "belongs to the cluster 'theirs'",
        }

        eventually(
            lambda: (
                {key for kind, key in troubles_of(store) if kind == "join"}
                == set(expected)
            ),
            timeout_s=60.0,
        )

        told = troubles_of(store)
        log = peer.log_path.read_text()
        for endpoint, reason in expected.items():
            assert reason in told["join", endpoint]
            assert f"cannot join about='{endpoint}'" in log
        assert [row["peer"] for row in store.peers()] == ["twin"]
        # The other side says too who wanted to join it.
        (stranger,) = theirs.connect().status()["troubles"]
        assert (stranger["kind"], stranger["times"] >= 1) == ("stranger", True)
        assert "'ours'" in stranger["reason"]
        assert store.status()["peer_id"].hex() in stranger["about"]

        # Mended, it is joined by itself, and is no trouble any more.
        theirs.settings["cluster"] = "ours"
        theirs.restart()
        eventually(lambda: len(store.peers()) == 2, timeout_s=60.0)
        assert ("join", theirs.endpoint) not in troubles_of(store)

        # Two of one name: both say so, and the name alone is no address.
        other = theirs.connect()
        eventually(lambda: ("name", "twin") in troubles_of(other))
        ids = sorted(row["peer_id"].hex() for row in store.peers())
        for one in (store, other):
            assert ", ".join(ids) in troubles_of(one)["name", "twin"]
        with pytest.raises(UnavailableError, match=ids[0]):
            store.create("some.Class", peer="twin")
        with pytest.raises(UnavailableError, match=ids[0]):
            store.request(
                "move", object_id=bytes.fromhex(ids[0]) + bytes(10), peer="twin"
            )


def test_garbage_from_peers_and_strangers_is_told_once_and_costs_nothing(
    make_peer, models_file
):
    peer = make_peer()
    store = peer.connect()
    store.publish(models_file)
    counter = store.create("models.Counter", 1)
    cluster = store.status()["cluster"]
    before_bytes = psutil.Process(peer.pid).memory_info().rss
    host, port = peer.endpoint.removeprefix("tcp://").split(":")
    with zmq.Context() as context, ExitStack() as stack:
        for data in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"\xff" + bytes(200)):
            with socket.create_connection((host, int(port)), 5.0) as raw:
                raw.sendall(data)
        stranger = stack.enter_context(context.socket(zmq.DEALER))
        liar = stack.enter_context(context.socket(zmq.DEALER))
        for one in (stranger, liar):
            one.setsockopt(zmq.LINGER, 0)
            one.connect(peer.endpoint)
        for number in range(50):
            stranger.send_multipart([os.urandom(1 + 100 * number)])
            assert stranger.poll(10_000)
            (answer,) = codec.decode_frames(stranger.recv_multipart())
            assert type(answer) is Refused
        about = {"peer_id": LIAR, "cluster": cluster}
        liar.send(
            codec.encode(
                Hello(
                    PEER_VERSION_MIN,
                    PROTOCOL_VERSION,
                    bytes(16),
                    "liar",
                    ["peer"],
                    about,
                )
            )
        )
        assert liar.poll(10_000)
        welcome, *_ = codec.decode_frames(liar.recv_multipart())
        assert type(welcome) is Welcome
        for message in (
            Gossip(LIAR, None, b"\xc1\xff\x00"),
            Gossip(b"nobody", None, b"\x91" * 60_000),
            Gossip(LIAR, None, b"\x90" * (1 << 20)),
            Sync(LIAR, {"from": 7, "to": []}, os.urandom(5000)),
            Relay(bytes(16), 99, None, os.urandom(300)),
            Relay(bytes(16), 0, None, codec.encode(welcome)),
        ):
            liar.send(codec.encode(message))
        # A gossip that claims a million members, and some with peers that nobody has. That
        # the table has a bound is tested in tests/core/test_membership.py.
        liar.send(codec.encode(Gossip(LIAR, None, _flood(0, 1_000_000))))
        for start in range(0, FLOOD_PEERS, 100):
            liar.send(codec.encode(Gossip(LIAR, None, _flood(start, 100))))
        for number in range(1, 31):
            assert counter.add(1) == number + 1, "it serves all the while"

    abouts = {row["about"]: row for row in store.status()["troubles"]}
    # Raw bytes are frames too, to ZeroMQ, where they look like those of its version 2.
    assert abouts["somebody unknown"]["times"] >= 50
    assert abouts[f"peer liar {LIAR.hex()}"]["times"] >= 4
    assert peer.log_path.read_text().count("garbage about=") == 2
    assert len(store.peers()) <= FLOOD_PEERS + 2
    assert psutil.Process(peer.pid).memory_info().rss - before_bytes < GROWTH_BYTES_MAX
    assert counter.add(1) == 32


def _flood(start: int, count: int) -> bytes:
    """Return a body with rows of `count` peers that nobody has."""
    rows = [
        encode_update(
            Update(
                b"f" + number.to_bytes(5, "big"), 1, PeerState.ALIVE,
                PeerRecord(
                    b"f" + number.to_bytes(5, "big"), 1, f"f{number}",
                    ("tcp://127.0.0.1:9",), "", "lan", 2, {},
                ),
            )
        )
        for number in range(start, start + min(count, 500))
    ]  # fmt: skip
    # A count that the rows do not keep costs nothing either: it is refused as malformed.
    return b"\x91\xdd" + count.to_bytes(4, "big") + b"".join(rows)
