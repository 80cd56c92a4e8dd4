"""A client and a peer on two hosts: slow lines, lossy lines, no line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hosts
import pytest

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.serial]

COUNTERS = str(Path(__file__).parent / "counters.py")
# What every program of these tests begins with.
HEAD = """
import json, sys, time
import activestore
from activestore.errors import ActiveStoreError
endpoint, *rest = sys.argv[1:]
"""
PUBLISH = """
with activestore.connect(endpoint, timeout_s=20.0) as store:
    store.publish(rest[0])
    store.create("counters.Counter", 0, alias="c")
print("{}")
"""
# Nothing is warm: the interpreter is, for imports are no matter of the line.
FIRST = """
start = time.monotonic()
with activestore.connect(endpoint, timeout_s=20.0) as store:
    connected = time.monotonic()
    counter = store.get("c")
    got = time.monotonic()
    counter.add(1)
    first = time.monotonic()
    for _ in range(5):
        counter.add(1)
    calls = (time.monotonic() - first) / 5
print(json.dumps({"connect_s": connected - start, "get_s": got - connected,
    "call_s": first - got, "first_s": first - start, "next_s": calls}))
"""
COUNT = """
with activestore.connect(endpoint, timeout_s=20.0) as store:
    counter = store.get("c")
    sums = [counter.add(1) for _ in range(int(rest[0]))]
    futures = [counter.add.submit(1) for _ in range(int(rest[0]))]
    sums += [future.result() for future in futures]
    print(json.dumps({"sums": sums, "value": counter.value}))
"""
# Calls until the line is cut; says when it heard that it is.
SILENCE = """
with activestore.connect(endpoint, timeout_s=float(rest[0])) as store:
    counter = store.get("c")
    counter.add(1)
    print("calling", flush=True)
    try:
        while True:
            last = time.monotonic()
            counter.add(1)
            time.sleep(0.01)
    except ActiveStoreError as error:
        print(json.dumps({"code": error.code, "text": str(error),
            "after_s": time.monotonic() - last}), flush=True)
"""
# One after the other; says how long the slowest took.
ONE_BY_ONE = """
with activestore.connect(endpoint, timeout_s=30.0) as store:
    counter = store.get("c")
    print("calling", flush=True)
    sums, longest = [], 0.0
    for _ in range(int(rest[0])):
        start = time.monotonic()
        sums.append(counter.add(1))
        longest = max(longest, time.monotonic() - start)
        time.sleep(0.005)
    print(json.dumps({"sums": sums, "longest_s": longest}), flush=True)
"""


@pytest.fixture
def peer(network: hosts.Network) -> hosts.NetworkPeer:
    """Return a peer on "edge" with a counter "c", before the line gets bad."""
    made = network.host("edge").peer()
    network.host("desk").python(HEAD + PUBLISH, made.endpoint, COUNTERS)
    return made


def test_first_result_over_a_slow_line_comes_in_a_few_round_trips(
    network: hosts.Network, peer: hosts.NetworkPeer, record_property: Any
) -> None:
    """What one waits for at 50 ms each way: round trips, nothing else."""
    network.delay("desk", "edge", 0.05)
    before = network.traffic("desk", "edge")

    runs = [network.host("desk").python(HEAD + FIRST, peer.endpoint) for _ in range(3)]

    after = network.traffic("desk", "edge")
    # The best of three: the machine has other things to do, the line has not.
    took = {name: min(run[name] for run in runs) for name in runs[0]}
    trips = {name: round(seconds / 0.1, 2) for name, seconds in took.items()}
    bytes_count = (after.bytes - before.bytes) // len(runs)
    for name, value in {**trips, "bytes": bytes_count}.items():
        record_property(name, value)
    print(trips, bytes_count)
    # TCP 1, greeting and handshake of ZMTP 2, Hello and Welcome 1, and the client's
    # import; then the name with the class's interface, then the call.
    assert trips["connect_s"] < 7.0
    assert 1.0 <= trips["get_s"] < 2.0
    assert 1.0 <= trips["call_s"] < 1.5
    assert trips["first_s"] < 10.0
    assert 1.0 <= trips["next_s"] < 1.2


def test_calls_over_a_lossy_line_run_once(
    network: hosts.Network, peer: hosts.NetworkPeer
) -> None:
    network.delay("desk", "edge", 0.001)
    network.loss("desk", "edge", 0.01)

    outcome = network.host("desk").python(HEAD + COUNT, peer.endpoint, 300)

    # More are submitted than may wait at an object: those told to come back change
    # their order, and none of them runs twice.
    assert sorted(outcome["sums"]) == list(range(1, 601))
    assert outcome["value"] == 600
    ways = network.traffic("desk", "edge"), network.traffic("edge", "desk")
    assert sum(way.lost for way in ways) > 0, "nothing was lost"


def test_line_that_is_cut_is_reported_within_the_silence_bound(
    network: hosts.Network, peer: hosts.NetworkPeer
) -> None:
    silence_s = 2.0
    desk = network.host("desk")
    words = ["-u", "-c", HEAD + SILENCE, peer.endpoint, str(silence_s)]
    program = desk.start_python(words)
    assert program.stdout.readline() == "calling\n"

    network.cut("desk", "edge")

    heard = hosts.json_line(program)
    assert heard["code"] == "unavailable"
    assert peer.endpoint in heard["text"]
    assert silence_s * 0.9 <= heard["after_s"] <= silence_s + 1.0


def test_line_that_is_back_in_time_is_not_noticed(
    network: hosts.Network, peer: hosts.NetworkPeer
) -> None:
    """Three seconds without a line, in the middle of calls: late, none lost or doubled."""
    desk = network.host("desk")
    words = ["-u", "-c", HEAD + ONE_BY_ONE, peer.endpoint, "200"]
    program = desk.start_python(words)
    assert program.stdout.readline() == "calling\n"

    network.cut("desk", "edge")
    network.wait_s(3.0)
    network.heal("desk", "edge")

    heard = hosts.json_line(program)
    assert heard["sums"] == list(range(1, 201))
    assert heard["longest_s"] >= 2.5


def test_peer_that_advertises_is_reached_at_that_address(
    network: hosts.Network, peer: hosts.NetworkPeer
) -> None:
    """Listening everywhere says nothing about where; the setting does."""
    everywhere = network.host("hall").peer(
        listen="tcp://0.0.0.0:7400",
        advertise=f"tcp://{network.host('hall').address}:7400",
    )

    status = network.host("desk").run(
        [*hosts.COMMAND, "status", "--json", "--endpoint", everywhere.endpoint]
    )

    assert f'"endpoint": "{everywhere.endpoint}"' in status.stdout


def test_peer_beyond_loopback_without_the_setting_says_what_to_write(
    network: hosts.Network,
) -> None:
    host = network.host("edge")

    with pytest.raises(AssertionError) as caught:
        host.peer(insecure=False)

    assert "insecure = true" in str(caught.value)
