"""What benchmarks share: peers, rounds, medians, and the figures for the report."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
RESULTS: dict[str, dict[str, Any]] = {}


def record(name: str, value: float, **extra: Any) -> None:
    """Note a figure for the report."""
    RESULTS[name] = {"value": value, **extra}


@contextlib.contextmanager
def running_peer(directory: Path, *flags: str, **env: str) -> Iterator[dict[str, Any]]:
    """Start a peer, yield its ready line, end it."""
    command = [sys.executable, "-m", "activestore.cli.main", "start", "--json"]
    command += ["--data-dir", str(directory), "--listen", "tcp://127.0.0.1:0"]
    command += ["--log-level", "error", *flags]
    started_s = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **env}
    ) as process:
        assert process.stdout is not None
        try:
            ready = json.loads(process.stdout.readline())
            ready["start_s"] = time.perf_counter() - started_s
            yield ready
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def p50_us(function: Callable[[], object], count: int = 1500) -> tuple[float, float]:
    """Return median and 99th percentile of one call, in microseconds."""
    times = []
    for _ in range(count):
        start_s = time.perf_counter()
        function()
        times.append(time.perf_counter() - start_s)
    times.sort()
    return times[count // 2] * 1e6, times[count * 99 // 100] * 1e6


def cpu_s(processes: Iterable[psutil.Process]) -> float:
    """Return the CPU time that processes have used, with all their threads.

    Linux tells it to the nanosecond in `schedstat`; elsewhere it comes in ticks.
    """
    spent_s = 0.0
    for process in processes:
        tasks = Path(f"/proc/{process.pid}/task")
        if tasks.is_dir():
            for task in tasks.iterdir():
                spent_s += int((task / "schedstat").read_text().split()[0]) / 1e9
        else:
            spent_s += sum(process.cpu_times()[:2])
    return spent_s


def until(condition: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
    """Look until a condition holds."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, f"did not come true within {timeout_s:g} s"
        time.sleep(0.02)


def alternate(
    first: Callable[[], object], second: Callable[[], object], rounds: int = 5
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Measure two calls in turn; return the median p50 and p99 of each."""
    for function in (first, second):
        p50_us(function, 300)
    pairs = [(p50_us(first), p50_us(second)) for _ in range(rounds)]
    one, two = zip(*pairs, strict=True)
    median = statistics.median
    return (
        (median(p for p, _ in one), median(q for _, q in one)),
        (median(p for p, _ in two), median(q for _, q in two)),
    )
