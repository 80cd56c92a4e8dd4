"""Computing where the data is, against fetching it; and a large torch model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measure import HERE, record, running_peer

import activestore

MB = 1_000_000
SIZES_MB = (1, 10, 100, 1000)
WIDTH, DEPTH = 2000, 16


def seconds(function: Callable[[], object], rounds: int = 5) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(rounds):
        start_s = time.perf_counter()
        function()
        times.append(time.perf_counter() - start_s)
    return statistics.median(times)


def traffic_of(store: Any, function: Callable[[], object]) -> int:
    """Return the bytes that a call puts on the wire, both ways."""

    def total() -> int:
        traffic = store.status()["traffic"]
        return int(traffic["bytes_in"] + traffic["bytes_out"])

    first = total()
    second = total()
    function()
    # What asking takes is not the call's.
    return total() - second - (second - first)


def test_offloaded_call_against_fetch_then_compute(
    benchmark: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    import models

    with running_peer(tmp_path, "--executors", "1") as ready:
        with activestore.connect(ready["endpoint"]) as store:
            for size in SIZES_MB:
                array = np.random.default_rng(1).random(size * MB // 8)
                local = models.Bench(0, array)
                store.persist(models.Bench(0, array), alias=f"array-{size}")
                far = store.get(f"array-{size}")
                assert far.mean() == local.mean() == float(far.array.mean())
                sent = traffic_of(store, far.mean)
                fetched = traffic_of(store, lambda far=far: far.array.mean())
                record(
                    f"offload_bytes_{size}", sent, fetched_bytes=float(fetched),
                    call_ms=1000 * seconds(far.mean),
                    fetch_ms=1000 * seconds(lambda far=far: far.array.mean(), 3),
                    in_process_ms=1000 * seconds(local.mean),
                )  # fmt: skip
                store.delete(far)
                del local, array
    benchmark.pedantic(lambda: None, rounds=1)


def test_a_model_of_250_mb(benchmark: Any, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(HERE))
    import models

    rows = np.ones((16, WIDTH), np.float32)
    local = models.Perceptron(WIDTH, DEPTH)
    predict_s = seconds(lambda: local.predict(rows))
    step_s = seconds(lambda: local.step(rows))
    with running_peer(tmp_path, "--executors", "1") as ready:
        with activestore.connect(ready["endpoint"]) as store:
            store.publish(str(HERE / "models.py"))
            model = store.create("models.Perceptron", WIDTH, DEPTH, alias="model")
            store.create("models.Perceptron", WIDTH, DEPTH, alias="other")
            model.predict(rows)
            far_predict_s = seconds(lambda: model.predict(rows))
            far_step_s = seconds(lambda: model.step(rows))
    # One executor, so that the second model finds torch imported by the first.
    one = {"ACTIVESTORE_EXECUTORS": "1", "ACTIVESTORE_EXECUTORS_MAX": "1"}
    with running_peer(tmp_path, **one) as ready:
        with activestore.connect(ready["endpoint"]) as store:
            firsts = []
            for alias in ("model", "other"):
                model = store.get(alias)
                start_s = time.perf_counter()
                model.predict(rows)
                firsts.append(time.perf_counter() - start_s)
            warm_s = seconds(lambda: model.predict(rows))
    record(
        "model_predict", far_predict_s / predict_s, ms=1000 * far_predict_s,
        in_process_ms=1000 * predict_s,
    )  # fmt: skip
    record(
        "model_step", far_step_s / step_s, ms=1000 * far_step_s,
        in_process_ms=1000 * step_s,
        commit_mb_per_s=256 / max(far_step_s - step_s, 1e-9),
    )  # fmt: skip
    record(
        "model_activation", 1000 * (firsts[1] - warm_s),
        with_import_of_torch_ms=1000 * (firsts[0] - warm_s),
    )  # fmt: skip
    benchmark.pedantic(lambda: None, rounds=1)
