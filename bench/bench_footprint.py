"""Footprint: the thin client, the idle peer, the start, a hundred thousand objects."""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from measure import HERE, record, running_peer

import activestore

IMPORT = """
import time
start = time.perf_counter()
{statement}
spent = time.perf_counter() - start
# Not ru_maxrss: that of the parent is inherited through fork.
status = open("/proc/self/status").read()
print(spent * 1000, int(status.split("VmHWM:")[1].split()[0]) / 1000)
"""


def imported(statement: str) -> tuple[float, float]:
    """Return milliseconds and MB of an import in a fresh process, medians of nine."""
    rows = []
    for _ in range(10):  # The first one may compile.
        done = subprocess.run(
            [sys.executable, "-c", IMPORT.format(statement=statement)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        rows.append([float(cell) for cell in done.stdout.split()])
    del rows[0]
    return statistics.median(r[0] for r in rows), statistics.median(r[1] for r in rows)


def size_mb(package: str) -> float:
    """Return what a package's files take, without caches."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    folders = [folder, *folder.parent.glob(f"py{package}.libs")]
    files = (p for one in folders for p in one.rglob("*") if p.is_file())
    return sum(p.stat().st_size for p in files if p.suffix != ".pyc") / 1e6


def test_thin_client(benchmark: Any) -> None:
    # The client comes with the first use of its names: use them.
    ours = imported("import activestore; activestore.connect; activestore.Ref")
    bare = imported("import zmq, msgpack")
    record("thin_import", ours[0], bare=bare[0])
    record("thin_rss", ours[1], bare=bare[1])
    parts = {name: size_mb(name) for name in ("activestore", "zmq", "msgpack")}
    record("thin_size", sum(parts.values()), **parts)
    benchmark.pedantic(lambda: None, rounds=1)


def test_idle_peer_and_start(benchmark: Any, tmp_path: Path) -> None:
    starts = []
    for i in range(3):
        with running_peer(tmp_path / str(i), "--executors", "1") as ready:
            starts.append(ready["start_s"])
            if i < 2:
                continue
            time.sleep(2.0)
            daemon = psutil.Process(ready["pid"])
            processes = [daemon, *daemon.children()]
            before = sum(sum(p.cpu_times()[:2]) for p in processes)
            time.sleep(10.0)
            spent = sum(sum(p.cpu_times()[:2]) for p in processes) - before
            memory = sum(p.memory_full_info().pss for p in processes) / 1e6
            resident = sum(p.memory_info().rss for p in processes) / 1e6
    record("start", statistics.median(starts))
    record("idle_memory", resident, proportional=memory)
    record("idle_cpu", spent / 10.0 * 100)
    benchmark.pedantic(lambda: None, rounds=1)


def test_hundred_thousand_objects(benchmark: Any, tmp_path: Path) -> None:
    sys.path.insert(0, str(HERE))
    import models

    with running_peer(tmp_path, "--executors", "1") as ready:
        with activestore.connect(ready["endpoint"]) as store:
            start_s = time.perf_counter()
            for _ in range(10):
                store.persist([models.Bench(i) for i in range(10_000)])
            persist_s = time.perf_counter() - start_s
            store.persist(models.Bench(7), alias="one")
            start_s = time.perf_counter()
            count = sum(1 for _ in store.objects())
            list_s = time.perf_counter() - start_s
            assert count == 100_001
    start_s = time.perf_counter()
    with running_peer(tmp_path, "--executors", "1") as ready:
        with activestore.connect(ready["endpoint"]) as store:
            assert store.get("one").value == 7
            restart_s = time.perf_counter() - start_s
            memory = psutil.Process(ready["pid"]).memory_info().rss / 1e6
    record("objects_100k", restart_s, persist_s=persist_s, list_s=list_s)
    record("daemon_100k", memory)
    benchmark.pedantic(lambda: None, rounds=1)
