"""Calls of objects at another peer: directly, and forwarded by the peer one is with.

Rules of this file: the same method on the same kind of object, block by block in turn;
what counts is the ratio of two blocks that follow each other.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any

import psutil
from measure import HERE, cpu_s, p50_us, record, running_peer, until

import activestore

ROUNDS = 9
CALLS = 1500


def test_call_to_another_peer(benchmark: Any, tmp_path: Path) -> None:
    """Client, two daemons and their executors: five processes, of which four work."""
    flags = ("--executors", "1", "--name")
    with (
        running_peer(tmp_path / "a", *flags, "a") as a,
        running_peer(tmp_path / "b", *flags, "b", "--join", a["endpoint"]) as b,
        activestore.connect(a["endpoint"]) as store,
    ):
        until(lambda: sum(row["state"] == "alive" for row in store.peers()) == 2)
        store.publish(str(HERE / "models.py"))
        here = store.create("models.Bench", peer="a")
        there = store.create("models.Bench", peer="b")
        ways = {
            "own": here.nothing,
            "direct": there.nothing,
            "forwarded": there.nothing.options(direct=False),
        }
        for way in ways.values():  # Activates, and lets the client follow `moved`.
            p50_us(way, 500)
        daemons = [psutil.Process(ready["pid"]) for ready in (a, b)]
        served = [one for d in daemons for one in (d, *d.children())]
        blocks: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                before_s = cpu_s(served) + cpu_s([psutil.Process()])
                blocks[name].append(p50_us(way, CALLS))
                after_s = cpu_s(served) + cpu_s([psutil.Process()])
                spent[name].append((after_s - before_s) / CALLS * 1e6)
        benchmark.pedantic(ways["forwarded"], rounds=500)
    median = statistics.median
    for name, processes in (("direct", 3), ("forwarded", 4)):
        pairs = zip(blocks[name], blocks["own"], strict=True)
        record(
            f"peer_{name}", median(p50 / own for (p50, _), (own, _) in pairs),
            p50_us=median(p50 for p50, _ in blocks[name]),
            p99_us=median(p99 for _, p99 in blocks[name]),
            own_p50_us=median(p50 for p50, _ in blocks["own"]),
            cpu_us=median(spent[name]), own_cpu_us=median(spent["own"]),
            processes=processes, cores=os.cpu_count(),
        )  # fmt: skip
