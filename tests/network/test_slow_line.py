"""Values that are long on their way over a slow line: no silence, and nobody is given up.

At 1 Mbit/s a value of 1.2 MB takes 10 s. ZeroMQ gives a connection up after 6 s without a
sign of life, so does the client here; peers suspect who is silent for a second.

Source: schemas/protocol.md section 13.
"""

from __future__ import annotations

from pathlib import Path

import hosts
import pytest

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.serial]

BLOBS = str(Path(__file__).parent / "blobs.py")
MBIT_PER_S, BYTES, DELAY_S = 1.0, 1_200_000, 0.01
LINE_S = BYTES * 8 / (MBIT_PER_S * 1e6)
# Each way once.
BOTH_WAYS = """
import hashlib, json, os, sys, time
import activestore
endpoint, nbytes = sys.argv[1], int(sys.argv[2])
with activestore.connect(endpoint, timeout_s=6.0) as store:
    blob = store.get("blob")
    data = os.urandom(nbytes)
    began = time.monotonic()
    blob.data = data
    up_s = time.monotonic() - began
    size = blob.size()
    began = time.monotonic()
    is_same = blob.data == data
    print(json.dumps({"up_s": up_s, "down_s": time.monotonic() - began,
        "size": size, "is_same": is_same}))
"""
MOVE = """
import json, sys, time
import activestore
endpoint, nbytes = sys.argv[1], int(sys.argv[2])
with activestore.connect(endpoint, timeout_s=30.0) as store:
    blob = store.get("blob")
    blob.data = bytes(nbytes)
    began = time.monotonic()
    store.move(blob, "cloud")
    took_s = time.monotonic() - began
    print(json.dumps({"took_s": took_s, "size": blob.size(),
        "peer": store.locate(blob)["peer"]}))
"""
PUBLISH = """
import sys, activestore
with activestore.connect(sys.argv[1], timeout_s=20.0) as store:
    store.publish(sys.argv[2])
    store.create("blobs.Blob", alias="blob")
print("{}")
"""


def slow(network: hosts.Network, a: str, b: str) -> None:
    network.delay(a, b, DELAY_S)
    network.rate(a, b, MBIT_PER_S * 1e6)


def test_value_that_takes_longer_than_any_silence_arrives_both_ways(
    network: hosts.Network,
) -> None:
    peer = network.host("edge").peer()
    desk = network.host("desk")
    desk.python(PUBLISH, peer.endpoint, BLOBS)
    slow(network, "desk", "edge")
    before = network.traffic("desk", "edge")

    found = desk.python(BOTH_WAYS, peer.endpoint, str(BYTES))

    sent = network.traffic("desk", "edge").bytes - before.bytes
    print(found, sent)
    assert found["size"] == BYTES
    assert found["is_same"]
    assert LINE_S <= found["up_s"] < 1.5 * LINE_S
    assert LINE_S <= found["down_s"] < 1.5 * LINE_S
    # Once, with the headers of TCP and the answers to chunks: nothing was sent again.
    assert sent < 1.2 * BYTES


def test_object_moves_over_a_slow_line_and_neither_peer_is_suspected(
    network: hosts.Network,
) -> None:
    edge = network.host("edge").peer()
    cloud = network.host("cloud").peer(join=[edge.endpoint])
    desk = network.host("desk")
    desk.python(PUBLISH, edge.endpoint, BLOBS)
    slow(network, "edge", "cloud")
    noted = len(edge.log()), len(cloud.log())

    found = desk.python(MOVE, edge.endpoint, str(BYTES))

    assert found["size"] == BYTES
    assert found["peer"] == "cloud"
    # All zeros: nothing on the way makes them fewer.
    assert LINE_S <= found["took_s"] < 2 * LINE_S
    logs = edge.log()[noted[0] :] + cloud.log()[noted[1] :]
    assert "suspect" not in logs
    assert "dead" not in logs
