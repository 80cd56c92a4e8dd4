"""Many real peers on one machine: three are killed at once, and nobody else notices.

Rules of this file: peers start and stop as people do it, by `up` and `down`; a process
is killed by the id that `up` wrote down.

Source: design section 7; the targets for fifty peers are rows of `bench/bench_cluster.py`.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import activestore
from activestore.cli import cluster

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(300)]

MODELS = str(Path(__file__).parent / "models.py")
# One executor each, and no spinning: there are many times more processes than cores.
TOPOLOGY = """
[settings]
executors = 1
executors_max = 2
spin_us = 0
disk_budget_mb = 64
activation_memory_mb = 64

[[peers]]
name = "p"
count = {count}
"""
KILLED = 3
# Each waits for one call at a time; half of them begin at a peer that is killed.
CLIENTS = 8
# Load before the deaths, and after all have heard of them.
BEFORE_S, AFTER_S = 1.0, 1.0
# For a machine under load: a client sees its connection break within a second, and a
# call that was on its way is made again by another peer.
GAP_S_MAX = 10.0
# Until all others hold the killed for dead: 4 s for two peers, more with their number.
DEAD_S_MAX = 60.0


class Caller(NamedTuple):
    """One client's work, and what came of it."""

    name: str
    store: Any
    is_direct: bool
    counts: dict[str, int]
    ended_s: list[float]
    failures: list[BaseException]


@pytest.fixture
def many(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Return what `up --json` says of a new cluster of so many peers."""
    file, where = tmp_path / "many.toml", tmp_path / "cluster"
    file.write_text(TOPOLOGY.format(count=request.param))
    words = [sys.executable, "-m", "activestore.cli.main", "up", str(file), "--json"]
    try:
        up = subprocess.run(
            [*words, "--dir", str(where)], capture_output=True, text=True, check=False
        )
        assert up.returncode == 0, (up.stdout, up.stderr)
        yield json.loads(up.stdout)
    finally:
        state = cluster.read_state(where)
        for _ in cluster.stop_all(where, state.peers if state else (), grace_s=15.0):
            pass


def work(caller: Caller, names: list[str], seed: int, is_over: threading.Event) -> None:
    """Call objects of peers that live until told to end, or a call fails."""
    chance = random.Random(seed)
    options = {} if caller.is_direct else {"direct": False}
    try:
        proxies = {name: caller.store.get(f"at-{name}") for name in names}
        caller.ended_s.append(time.monotonic())
        while not is_over.is_set():
            name = chance.choice(names)
            proxies[name].add.options(**options)(1)
            caller.counts[name] = caller.counts.get(name, 0) + 1
            caller.ended_s.append(time.monotonic())
    except BaseException as error:
        caller.failures.append(error)


def not_dead(store: Any) -> int:
    return sum(row["state"] in {"alive", "suspect"} for row in store.peers())


@pytest.mark.parametrize(
    "many", [12, pytest.param(50, marks=pytest.mark.soak)], indirect=True
)
def test_three_of_many_are_killed_and_calls_elsewhere_go_on(many: Any) -> None:
    """Those forwarded by others too, and those of clients of a killed peer."""
    peers = many["peers"]
    count = len(peers)
    # Not the first: all have joined it, and `up` must not matter any more.
    killed, living = peers[1 : 1 + KILLED], [peers[0], *peers[1 + KILLED :]]
    names = [peer["name"] for peer in living]
    callers: list[Caller] = []
    is_over = threading.Event()
    with activestore.connect(living[0]["endpoint"], timeout_s=30.0) as store:
        store.publish(MODELS)
        objects = {
            name: store.create("models.Counter", alias=f"at-{name}", peer=name)
            for name in names
        }
        for number in range(CLIENTS):
            first = (killed if number % 2 else living)[number % KILLED]
            is_direct = number % 4 < 2
            way = "direct" if is_direct else "forwarded"
            client = activestore.connect(first["endpoint"], timeout_s=30.0)
            callers.append(
                Caller(f"{first['name']} {way}", client, is_direct, {}, [], [])
            )
        threads = [
            threading.Thread(target=work, args=(caller, names, number, is_over))
            for number, caller in enumerate(callers)
        ]
        for thread in threads:
            thread.start()
        time.sleep(BEFORE_S)
        for peer in killed:
            os.kill(peer["pid"], signal.SIGKILL)
        killed_s = time.monotonic()
        # Who comes now has been told of a dead one first.
        addresses = [killed[0]["endpoint"], living[-1]["endpoint"]]
        with activestore.connect(addresses, timeout_s=30.0) as newcomer:
            for name in names:
                assert newcomer.get(f"at-{name}").peek() >= 0
        newcomer_s = time.monotonic() - killed_s
        while (sees := not_dead(store)) > count - KILLED:
            assert time.monotonic() - killed_s < DEAD_S_MAX, f"{sees} of {count}"
            time.sleep(0.1)
        dead_s = time.monotonic() - killed_s
        time.sleep(AFTER_S)
        is_over.set()
        for thread in threads:
            thread.join(60)
        sums = {name: one.value for name, one in objects.items()}
    for caller in callers:
        caller.store.close()

    gaps = {c.name: _longest_s(c.ended_s) for c in callers}
    done = sum(sum(c.counts.values()) for c in callers)
    print(
        f"peers={count} ready={many['ready_s']} s formed={many['formed_s']} s "
        f"newcomer done after {newcomer_s:.1f} s, dead after {dead_s:.1f} s, "
        f"calls={done}, longest gaps (s) "
        + ", ".join(f"{name}: {gap:.2f}" for name, gap in gaps.items())
    )
    assert [(c.name, c.failures) for c in callers if c.failures] == []
    for name in names:
        assert sums[name] == sum(c.counts.get(name, 0) for c in callers), name
    assert all(c.ended_s[-1] > killed_s for c in callers)
    assert max(gaps.values()) < GAP_S_MAX, gaps


def _longest_s(ended_s: list[float]) -> float:
    pairs = itertools.pairwise(ended_s)
    return max((after - before for before, after in pairs), default=0.0)
