"""Objects with three copies: what a change costs, and what it sends.

Rules of this file: all peers are on one machine, so that a round trip costs no line, and
three disks are one; but for the row of lines, whose hosts are network namespaces. Bytes
are what the leader's peer sent, all else included.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from measure import HERE, alternate, p50_us, record, running_peer, until

import activestore

sys.path.insert(0, str(HERE.parent / "tests" / "network"))

import hosts

MB = 1_000_000
# Elements of 8 bytes.
ARRAY_COUNT, CHANGED_COUNT = 100 * MB // 8, MB // 8
NAMES = ("a", "b", "c")
# Each way, between any two hosts: far more than the processes need of two cores.
LINE_S = 0.01
# On the client's host: medians in microseconds, of blocks in turn.
OVER_LINES = """
import json, statistics, sys, time
import activestore

def p50_us(function, count=40):
    times = []
    for _ in range(count):
        start_s = time.perf_counter()
        function()
        times.append(time.perf_counter() - start_s)
    return statistics.median(times) * 1e6

endpoint, models = sys.argv[1:]
with activestore.connect(endpoint, timeout_s=30.0) as store:
    while sum(row["state"] == "alive" for row in store.peers()) < 3:
        time.sleep(0.1)
    store.publish(models)
    shared = store.create("models.Bench", peer="a", replicas=3)
    plain = store.create("models.Bench", peer="a")
    while not store.group(shared).is_whole:
        time.sleep(0.1)
    calls = {
        "shared": lambda: shared.add(1), "plain": lambda: plain.add(1),
        "null": plain.nothing, "read": shared.nothing,
    }
    rounds = [{name: p50_us(call) for name, call in calls.items()} for _ in range(4)]
    print(json.dumps({n: statistics.median(r[n] for r in rounds[1:]) for n in calls}))
"""


@contextmanager
def three_peers(
    directory: Path, stack: ExitStack
) -> Iterator[tuple[Any, dict[str, ExitStack], str]]:
    """Start three peers; yield a client of the first, how to end each, where it is."""
    ends: dict[str, ExitStack] = {}
    first = ""
    for name in NAMES:
        ends[name] = stack.enter_context(ExitStack())
        ready = ends[name].enter_context(started(directory, name, first))
        first = first or ready["endpoint"]
    with activestore.connect(first, timeout_s=60.0) as store:
        until(lambda: alive_count(store) == len(NAMES))
        store.publish(str(HERE / "models.py"))
        yield store, ends, first


def started(directory: Path, name: str, first: str) -> Any:
    """Return a peer that is to be started, at the first one if there is one."""
    join = ("--join", first) if first else ()
    return running_peer(directory / name, "--executors", "1", "--name", name, *join)


def alive_count(store: Any) -> int:
    """Return how many peers the first one knows to be alive."""
    return sum(row["state"] == "alive" for row in store.peers())


def sent_by(store: Any) -> int:
    """Return what the peer of a client has sent, in bytes."""
    return int(store.status()["traffic"]["bytes_out"])


def is_whole(store: Any, proxy: Any) -> bool:
    """Whether every copy has the newest state."""
    members = store.group(proxy).members
    return len(members) == len(NAMES) and all(one.lag == 0 for one in members)


def test_replicated_durable_call(benchmark: Any, tmp_path: Path) -> None:
    """Three daemons, their executors and the client: seven processes."""
    env = lmdb.open(str(tmp_path / "bare"), map_size=1 << 28)
    count = 0

    def commit() -> None:
        nonlocal count
        count += 1
        with env.begin(write=True) as transaction:
            transaction.put(b"key%d" % (count % 100), b"x" * 100)

    with ExitStack() as stack, three_peers(tmp_path, stack) as (store, _, _first):
        shared = store.create("models.Bench", peer="a", replicas=3)
        plain = store.create("models.Bench", peer="a")
        until(lambda: is_whole(store, shared))
        ours, single = alternate(lambda: shared.add(1), lambda: plain.add(1), rounds=3)
        null, bare = p50_us(plain.nothing)[0], p50_us(commit)[0]
        read = p50_us(shared.nothing)[0]
        rates = []
        for _ in range(3):
            flying: deque[Any] = deque()
            start_s = time.perf_counter()
            for _ in range(3000):
                flying.append(shared.add.submit(1))
                if len(flying) >= 100:
                    flying.popleft().result()
            while flying:
                flying.popleft().result()
            rates.append(3000 / (time.perf_counter() - start_s))
        benchmark.pedantic(lambda: shared.add(1), rounds=300)
    env.close()
    record(
        "replicated", ours[0] / (single[0] + null + bare), p50_us=ours[0],
        p99_us=ours[1], plain_us=single[0], null_us=null, commit_us=bare,
        read_us=read,
    )  # fmt: skip
    record("replicated_pipelined", statistics.median(rates))


def test_replicated_call_over_lines(benchmark: Any, tmp_path: Path) -> None:
    """Four hosts with a line between any two: here a round trip is what counts."""
    why = hosts.unable()
    if why:
        pytest.skip(why)
    env = lmdb.open(str(tmp_path / "bare"), map_size=1 << 28)

    def commit() -> None:
        with env.begin(write=True) as transaction:
            transaction.put(b"key", b"x" * 100)

    hosts.sweep()
    network = hosts.Network(tmp_path, seed=1)
    try:
        network.every(delay_s=LINE_S)
        first = network.host("a").peer()
        for name in NAMES[1:]:
            network.host(name).peer(join=[first.endpoint])
        models = str(HERE / "models.py")
        found = network.host("desk").python(OVER_LINES, first.endpoint, models)
    finally:
        network.close()
    bare = p50_us(commit)[0]
    benchmark.pedantic(commit, rounds=100)
    env.close()
    bound = found["plain"] + found["null"] + bare
    record(
        "replicated_over_lines", found["shared"] / bound, p50_us=found["shared"],
        plain_us=found["plain"], null_us=found["null"], commit_us=bare,
        read_us=found["read"],
    )  # fmt: skip


def test_bytes_shipped(benchmark: Any, tmp_path: Path) -> None:
    """A change in place, with all copies there and with one away."""
    content = np.random.default_rng(1).random(ARRAY_COUNT)
    with ExitStack() as stack, three_peers(tmp_path, stack) as (store, ends, first):
        bench = store.create("models.Bench", 0, content, peer="a", replicas=3)
        until(lambda: is_whole(store, bench), timeout_s=120.0)
        in_place = []
        for round_ in range(3):
            before = sent_by(store)
            start_s = time.perf_counter()
            bench.poke(round_ * CHANGED_COUNT, CHANGED_COUNT)
            took_s = time.perf_counter() - start_s
            until(lambda: is_whole(store, bench))
            in_place.append((sent_by(store) - before) / 2)
        ends["c"].close()
        bench.poke(50 * CHANGED_COUNT, CHANGED_COUNT)
        before = sent_by(store)
        ends["c"].enter_context(started(tmp_path, "c", first))
        until(lambda: is_whole(store, bench), timeout_s=120.0)
        after_absence = sent_by(store) - before
        benchmark.pedantic(lambda: bench.poke(0, CHANGED_COUNT), rounds=3)
    record("shipped_in_place", statistics.median(in_place) / MB, poke_s=took_s)
    record("shipped_after_absence", after_absence / MB)
