"""The network of the tests itself: late, lossy, slow and cut as it is told to be."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hosts
import pytest

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.serial]

# Sends datagrams to itself on another host, and measures.
ECHO = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 9))
print("ready", flush=True)
while True:
    data, sender = s.recvfrom(2000)
    s.sendto(data, sender)
"""
ASK = """
import json, socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(0.5)
times = []
for n in range(int(sys.argv[2])):
    start = time.monotonic()
    s.sendto(b"x" * int(sys.argv[3]), (sys.argv[1], 9))
    try:
        s.recv(2000)
        times.append(time.monotonic() - start)
    except socket.timeout:
        times.append(None)
print(json.dumps(times))
"""
# Sends all at once.
FLOOD = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range(int(sys.argv[2])):
    s.sendto(b"x" * 100, (sys.argv[1], 9))
"""


def echo_on(host: hosts.Host) -> None:
    """Start what sends datagrams back."""
    process = host.start(
        [sys.executable, "-c", ECHO, host.address],
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"ready\n"


@pytest.fixture
def pair(network: hosts.Network) -> tuple[hosts.Host, hosts.Host]:
    """Return two hosts; the second one sends datagrams back."""
    a, b = network.host("a"), network.host("b")
    echo_on(b)
    return a, b


def ask(pair: tuple[hosts.Host, hosts.Host], count: int, size: int = 10) -> list[Any]:
    a, b = pair
    times: list[Any] = a.python(ASK, b.address, count, size)
    return times


def test_delay_is_paid_on_each_way(network: hosts.Network, pair: Any) -> None:
    network.delay("a", "b", 0.05)

    times = ask(pair, 10)

    assert min(times) >= 0.1
    assert sorted(times)[5] < 0.12


def test_without_delay_a_round_trip_is_short(pair: Any) -> None:
    assert sorted(ask(pair, 20))[10] < 0.005


def test_share_of_frames_is_lost_and_counted(network: hosts.Network, pair: Any) -> None:
    network.loss("a", "b", 0.2)
    a, b = pair

    a.python(FLOOD, b.address, 500)
    network.wait_s(0.5)

    traffic = network.traffic("a", "b")
    # 100 of them, with a standard deviation of 9; ARP comes on top of what arrives.
    assert 60 < traffic.lost < 140
    assert traffic.frames + traffic.lost >= 500


def test_slow_path_takes_its_time_for_each_frame(
    network: hosts.Network, pair: Any
) -> None:
    network.rate("a", "b", 1e6)

    times = ask(pair, 5, 1000)

    # 1,042 bytes with their headers, there and back, at 1 Mbit/s.
    assert min(times) >= 2 * 1042 * 8 / 1e6
    assert sorted(times)[2] < 0.03


def test_cut_lets_nothing_through_until_healed(
    network: hosts.Network, pair: Any
) -> None:
    ask(pair, 1)
    network.cut("a", "b")
    cut = ask(pair, 1)
    network.heal("a", "b")

    assert cut == [None]
    assert ask(pair, 1) != [None]


def test_cut_of_one_way_lets_the_other_through(
    network: hosts.Network, pair: Any
) -> None:
    ask(pair, 1)
    network.cut("b", "a", one_way=True)
    before = network.traffic("a", "b").frames

    assert ask(pair, 1) == [None]
    assert network.traffic("a", "b").frames > before


def test_partition_cuts_between_groups_only(network: hosts.Network) -> None:
    for name in ("a", "b", "c"):
        network.host(name)
    echo_on(network.host("b"))
    echo_on(network.host("c"))

    network.partition(["a", "b"], ["c"])

    assert ask((network.host("a"), network.host("b")), 1) != [None]
    assert ask((network.host("a"), network.host("c")), 1) == [None]


def test_nothing_is_left_of_a_network(network: hosts.Network, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = hosts.Network(tmp_path / "other", seed=1)
    name = other.host("x").namespace
    sleeper = other.host("x").start(["sleep", "60"])

    other.close()

    assert sleeper.returncode is not None
    assert name not in hosts._ip("netns", "list").stdout
    assert f"as{os.getpid():x}" not in hosts._ip("link", "show").stdout


def test_leftovers_of_a_run_that_was_killed_are_swept(network: hosts.Network) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    # Reaped: nobody has this id until ids have gone round.
    name = f"{hosts.PREFIX}-{process.pid}-x"
    hosts._ip("netns", "add", name)
    mine = network.host("mine").namespace

    swept = hosts.sweep()

    assert name in swept
    assert mine not in swept
    assert mine in hosts._ip("netns", "list").stdout


def test_time_of_a_test_is_not_spent_on_hosts(network: hosts.Network) -> None:
    """Twenty hosts, as tests of clusters need them, are there in a moment."""
    start_s = time.monotonic()
    for number in range(20):
        network.host(f"h{number}")

    assert time.monotonic() - start_s < 10.0
