"""The network table of `bench/network`: one kind of line, so that it cannot rot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hosts
import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench" / "network"
sys.path.append(str(BENCH))

import cell  # noqa: E402 - from the folder above
import netem  # noqa: E402 - as above
import table  # noqa: E402 - as above
from switch import Path as Way  # noqa: E402 - as above

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.serial]

# TCP 1, ZMTP 2, Hello 1, the name with the interface 1, the call 1.
TRIPS = 6
TRIPS_MAX = TRIPS + 0.9


def test_kind_of_line_is_measured_and_a_first_result_takes_six_round_trips(
    network: hosts.Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "SIZES": {cell.SMALL: cell.MB}, "FETCHES": 1, "NULL_S": 0.3,
        "NULL_COUNT_MIN": 3, "ECHOES": 3,
    }.items():  # fmt: skip
        monkeypatch.setattr(cell, name, value)
    line = cell.Line(100.0, 20.0)
    bench = cell.Bench(network, has_gate=False)

    found = bench.cell(line, connects=1)

    for way, is_with_class in (("thin", False), ("class", True)):
        trips = found[way]["seconds"]["first"] * 1000 / line.rtt_ms
        if trips >= TRIPS_MAX:
            # The machine had other things to do; a trip more would be there again.
            again = bench.first(is_with_class=is_with_class, connects=3)
            trips = again["best_s"] * 1000 / line.rtt_ms
        assert TRIPS <= trips < TRIPS_MAX, way
        assert found[way]["traffic"]["bytes_out"] < 2_000
    null, data = found["null"], found["data"][cell.SMALL]
    there, here = data["offloaded"], data["fetched"]
    # 1 MB takes 0.4 s at this rate; a call takes the round trip.
    assert here["s"] >= 0.5
    assert there["s"] < 0.4
    assert there["bytes_out"] + there["bytes_back"] < 2_000
    assert 1_000_000 < here["bytes_back"] < 1_300_000
    assert 0.1 <= null["p50_s"] < 0.25
    # A call and its answer, and beats of the connection.
    assert null["bytes_out"] < 600
    measured = {
        "cells": [found], "forwarded": [], "when": "now", "took_s": 1.0, "cores": 1,
        "load": [0.0, 0.0], "python": "3", "kernel": "6", "ceiling_mbit_per_s": 1.0,
        "lines_of": "switch", "no_netem": "none",
    }  # fmt: skip
    assert "| 1 MB | 100 | 20 |" in table.markdown(measured)


def test_kernel_knows_the_words_for_its_own_lines() -> None:
    """Or lacks the emulation; what `tc` cannot read it refuses in other words."""
    if hosts.unable():
        pytest.skip(hosts.unable())
    words = netem.leaf_words(Way(0.025, 0.01, 1e7))
    assert words == [
        "netem", "limit", "193", "delay", "25000us", "rate", "10000000bit",
        "loss", "1.0000%",
    ]  # fmt: skip

    why = netem.unable()

    assert not why or "kind is unknown" in why or "there is no `tc`" in why


def test_bench_says_why_it_cannot_measure(tmp_path: Path) -> None:
    """Without `ip`, as without root: a line, no traceback, nothing written."""
    result = subprocess.run(
        [sys.executable, str(BENCH / "run.py"), "--out", str(tmp_path / "out")],
        env={"PATH": str(tmp_path), "PYTHONPATH": str(BENCH.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("skipped: nothing was measured, for ")
    assert not (tmp_path / "out").exists()
