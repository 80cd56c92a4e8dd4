"""Calls: null, pipelined, durable, from one process and from four."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import lmdb
import models
from measure import HERE, alternate, p50_us, record, running_peer

import activestore

CLIENT = """
import sys, time
from collections import deque
import activestore
with activestore.connect(sys.argv[1]) as store:
    bench = store.get(sys.argv[2])
    def run(seconds):
        end = time.perf_counter() + seconds; done = 0; flying = deque()
        while time.perf_counter() < end:
            flying.append(bench.nothing.submit())
            if len(flying) >= 100:
                flying.popleft().result(); done += 1
        while flying:
            flying.popleft().result(); done += 1
        return done
    run(0.5); print("ready", flush=True); sys.stdin.readline()
    start = time.perf_counter(); done = run(4.0)
    print(done / (time.perf_counter() - start), flush=True)
"""


def pipelined(method: Any, arguments: tuple[Any, ...], count: int) -> float:
    """Return calls per second with 100 in flight."""
    flying: deque[Any] = deque()
    start_s = time.perf_counter()
    for _ in range(count):
        flying.append(method.submit(*arguments))
        if len(flying) >= 100:
            flying.popleft().result()
    while flying:
        flying.popleft().result()
    return count / (time.perf_counter() - start_s)


def test_null_call_with_spinning(benchmark: Any, store: Any, raw: Any) -> None:
    bench = store.create("models.Bench")
    ours, bare = alternate(bench.nothing, raw.nothing)
    local = models.Bench()
    record(
        "null_spin", ours[0] / bare[0], p50_us=ours[0], p99_us=ours[1], raw_p50_us=bare[0],
        raw_p99_us=bare[1], in_process_us=p50_us(local.nothing)[0], processes=3,
    )  # fmt: skip
    benchmark.pedantic(bench.nothing, rounds=2000)


def test_null_call_without_spinning(benchmark: Any, tmp_path: Path, raw: Any) -> None:
    with running_peer(tmp_path, "--executors", "1", ACTIVESTORE_SPIN_US="0") as ready:
        with activestore.connect(ready["endpoint"]) as store:
            store.publish(str(HERE / "models.py"))
            bench = store.create("models.Bench")
            ours, bare = alternate(bench.nothing, raw.nothing)
            benchmark.pedantic(bench.nothing, rounds=1000)
    record(
        "null_no_spin", ours[0] / bare[0], p50_us=ours[0], p99_us=ours[1],
        raw_p50_us=bare[0],
    )  # fmt: skip


def test_pipelined_null_calls(benchmark: Any, store: Any, raw: Any) -> None:
    bench = store.create("models.Bench")
    pipelined(bench.nothing, (), 5000)
    pairs = [
        (pipelined(bench.nothing, (), 30_000), raw.pipelined(30_000)) for _ in range(5)
    ]
    ours, bare = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    record("pipelined", ours, raw=bare, x_raw=ours / bare)
    benchmark.pedantic(pipelined, (bench.nothing, (), 5000), rounds=3)


def test_four_client_processes(benchmark: Any, tmp_path: Path) -> None:
    with running_peer(tmp_path, "--executors", "1") as ready:
        with activestore.connect(ready["endpoint"]) as store:
            store.publish(str(HERE / "models.py"))
            store.create("models.Bench", alias="bench")
        command = [sys.executable, "-c", CLIENT, ready["endpoint"], "bench"]
        clients = [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for _ in range(4)
        ]
        for client in clients:
            client.stdout.readline()
        for client in clients:
            client.stdin.write("\n")
            client.stdin.flush()
        rates = [float(client.stdout.readline()) for client in clients]
        for client in clients:
            client.communicate()
    record("pipelined_4", sum(rates), processes=6, cores=os.cpu_count())
    benchmark.pedantic(lambda: None, rounds=1)


def test_durable_call(benchmark: Any, store: Any, tmp_path: Path) -> None:
    bench = store.create("models.Bench")
    env = lmdb.open(str(tmp_path / "bare"), map_size=1 << 28)
    count = 0

    def commit() -> None:
        nonlocal count
        count += 1
        with env.begin(write=True) as transaction:
            transaction.put(b"key%d" % (count % 100), b"x" * 100)

    def add() -> None:
        bench.add(1)

    ours, bare = alternate(add, commit, rounds=3)
    local = models.Bench()
    null, _ = p50_us(bench.nothing)
    bound = bare[0] + 1.5 * null
    record(
        "durable", ours[0] / bound, p50_us=ours[0], commit_us=bare[0], null_us=null,
        p99_us=ours[1], in_process_us=p50_us(lambda: local.add(1))[0],
    )  # fmt: skip
    env.close()
    benchmark.pedantic(add, rounds=500)


def test_durable_calls_pipelined(benchmark: Any, store: Any) -> None:
    bench = store.create("models.Bench")
    pipelined(bench.add, (1,), 1000)
    rates = sorted(pipelined(bench.add, (1,), 10_000) for _ in range(3))
    record("durable_pipelined", rates[1])
    benchmark.pedantic(pipelined, (bench.add, (1,), 1000), rounds=3)


def test_bytes_written_and_sent(benchmark: Any, store: Any) -> None:
    bench = store.create("models.Bench")
    text = "x" * 100

    def written() -> int:
        return int(store.status()["storage"]["written_bytes"])

    before = written()
    for i in range(500):
        bench.note(text + str(i))
    record("written_single", (written() - before) / 500)
    before = written()
    flying: deque[Any] = deque()
    for i in range(5000):
        flying.append(bench.note.submit(text + str(i)))
        if len(flying) >= 100:
            flying.popleft().result()
    while flying:
        flying.popleft().result()
    record("written_group", (written() - before) / 5000)
    first = store.status()["traffic"]
    for _ in range(1000):
        bench.nothing()
    second = store.status()["traffic"]
    sent = (second["bytes_in"] - first["bytes_in"]) / 1000
    back = (second["bytes_out"] - first["bytes_out"]) / 1000
    record("header_bytes", max(sent, back), call=sent, reply=back)
    benchmark.pedantic(lambda: bench.note(text), rounds=100)
