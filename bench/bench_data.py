"""Data: arrays there and back, small objects, a large one, training."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from measure import HERE, record, running_peer

import activestore

MB = 1_000_000


def rate_of(function: Any, megabytes: float, rounds: int = 15) -> float:
    """Return MB/s as the median of some rounds, after a few to warm up."""
    times = []
    for _ in range(rounds + 5):
        start_s = time.perf_counter()
        function()
        times.append(time.perf_counter() - start_s)
    return megabytes / sorted(times[5:])[rounds // 2]


def test_array_argument_and_result(benchmark: Any, store: Any, raw: Any) -> None:
    bench = store.create("models.Bench")
    array = np.ones(MB)
    local = models.Bench()
    for name, ours, bare, here in (
        (
            "array_out",
            lambda: bench.total(array),
            lambda: raw.total(array),
            lambda: local.total(array),
        ),
        (
            "array_back",
            lambda: bench.make(MB),
            lambda: raw.make(8 * MB),
            lambda: local.make(MB),
        ),
    ):
        pairs = [(rate_of(ours, 8), rate_of(bare, 8)) for _ in range(3)]
        mine, raw_rate = (statistics.median(r) for r in zip(*pairs, strict=True))
        record(
            name, mine, raw=raw_rate, x_raw=mine / raw_rate, in_process=rate_of(here, 8)
        )
    benchmark.pedantic(bench.total, (array,), rounds=10)


def test_persist_small_objects(benchmark: Any, store: Any) -> None:
    rates = []
    for _ in range(4):
        made = [models.Bench(i) for i in range(10_000)]
        start_s = time.perf_counter()
        store.persist(made)
        rates.append(10_000 / (time.perf_counter() - start_s))
    record("persist_small", sorted(rates[1:])[1])
    benchmark.pedantic(lambda: store.persist(models.Bench(1)), rounds=100)


def test_persist_large_array(benchmark: Any, store: Any, tmp_path: Path) -> None:
    rates, bare = [], []
    chance = np.random.default_rng(1)
    for i in range(4):
        content = chance.random(100 * MB // 8)
        one = models.Bench(0, content)
        start_s = time.perf_counter()
        store.persist(one)
        rates.append(100 / (time.perf_counter() - start_s))
        start_s = time.perf_counter()
        with (tmp_path / f"bare{i}").open("wb") as file:
            file.write(content)
            file.flush()
        bare.append(100 / (time.perf_counter() - start_s))
    record("persist_large", sorted(rates)[2], file_write=sorted(bare)[2])
    benchmark.pedantic(lambda: None, rounds=1)


def test_offloaded_training(benchmark: Any, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("torch")
    folder = HERE.parent / "examples" / "forecaster"
    monkeypatch.syspath_prepend(str(folder))
    import series

    with running_peer(tmp_path, "--executors", "1") as ready:
        with activestore.connect(ready["endpoint"]) as store:
            store.publish(str(folder / "forecaster.py"))
            rows = series.read_rows(series.DATA)[:2000]
            forecaster = store.create("forecaster.Forecaster", rows)
            overheads = []
            for _ in range(6):
                start_s = time.perf_counter()
                method_s = sum(
                    row["seconds"]
                    for row in forecaster.train.stream(epochs=10, checkpoint_every=0)
                )
                overheads.append(time.perf_counter() - start_s - method_s)
    record("offload", sorted(overheads)[3] * 1000, first_ms=overheads[0] * 1000)
    benchmark.pedantic(lambda: None, rounds=1)
