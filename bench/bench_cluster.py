"""Fifty peers on one machine: until all see all, and what they cost when idle.

Rules of this file: `up` starts them, as people do it; seconds are counted from the start
of the first process. With fifty processes on few cores the CPU time says more than the
clock, so it stands beside. What killed peers cost others is in
`tests/integration/test_many_peers.py`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from measure import cpu_s, record

from activestore.cli import cluster

PEERS = 50
IDLE_S = 60.0
# After the last start push-pulls are frequent, and waits double: they end by then.
SETTLE_S = 20.0
TOPOLOGY = f"""
[settings]
executors = 1
disk_budget_mb = 64
activation_memory_mb = 64

[[peers]]
name = "p"
count = {PEERS}
"""


def test_fifty_peers(benchmark: Any, tmp_path: Path) -> None:
    file, where = tmp_path / "fifty.toml", tmp_path / "cluster"
    file.write_text(TOPOLOGY)
    words = [sys.executable, "-m", "activestore.cli.main", "up", str(file), "--json"]
    load = os.getloadavg()[0]
    try:
        up = subprocess.run(
            [*words, "--dir", str(where)], stdout=subprocess.PIPE, check=True
        )
        about = json.loads(up.stdout)
        daemons = [psutil.Process(peer["pid"]) for peer in about["peers"]]
        peers = [[daemon, *daemon.children()] for daemon in daemons]
        started_cpu_s = [cpu_s(peer) for peer in peers]
        time.sleep(SETTLE_S)
        before_s = [cpu_s(peer) for peer in peers]
        time.sleep(IDLE_S)
        after_s = [cpu_s(peer) for peer in peers]
        resident = [sum(p.memory_info().rss for p in peer) / 1e6 for peer in peers]
        shared_once = [
            sum(p.memory_full_info().pss for p in peer) / 1e6 for peer in peers
        ]
    finally:
        state = cluster.read_state(where)
        for _ in cluster.stop_all(where, state.peers if state else (), grace_s=30.0):
            pass
    record(
        "cluster_form", about["formed_s"], ready_s=about["ready_s"],
        after_last_ready_s=about["formed_s"] - about["ready_s"],
        cpu_s=sum(started_cpu_s), load_before=load, processes=2 * PEERS,
        cores=os.cpu_count(),
    )  # fmt: skip
    idle = sorted(
        (b - a) / IDLE_S * 100 for a, b in zip(before_s, after_s, strict=True)
    )
    record("cluster_idle", idle[-1], p50=statistics.median(idle), all_peers=sum(idle))
    median = statistics.median
    record("cluster_memory", median(shared_once), resident=median(resident))
    benchmark.pedantic(lambda: None, rounds=1)
