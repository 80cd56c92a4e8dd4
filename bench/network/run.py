"""The network table: calls over slow and long lines, measured, printed and plotted.

`python bench/network/run.py [--quick] [--out DIRECTORY]` makes hosts of network
namespaces, starts peers on them, and measures each kind of line in turn. It writes
network.json, network.md and network.png. Where the kernel has netem the lines are its
own; elsewhere they are those of the switch of tests/network.

Rules of this file: it ends what it started; where it cannot measure it says why, writes
nothing, and does not fail, for a machine without namespaces is no fault of the code.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cell  # First: it finds the modules of tests/network.
import hosts
import netem
import table
from cell import Line

RESULTS = Path(__file__).resolve().parents[1] / "results"
RTTS_MS = (0.2, 5.0, 50.0, 200.0)
MBITS_PER_S = (1.0, 10.0, 100.0)
LINES = [Line(rtt_ms, mbit) for rtt_ms in RTTS_MS for mbit in MBITS_PER_S]
FORWARDED = [Line(5.0, 100.0), Line(50.0, 10.0), Line(200.0, 10.0)]
QUICK = [Line(5.0, 100.0)]
SEED = 20260


def measure(network: hosts.Network, lines: list[Line]) -> dict[str, Any]:
    """Return everything that is in the table; say on the way how far it is."""
    bench = cell.Bench(network)
    found: dict[str, Any] = {
        "ceiling_mbit_per_s": bench.ceiling_mbit_per_s(), "cells": [], "forwarded": [],
    }  # fmt: skip
    forwarded = [line for line in FORWARDED if line in lines]
    for kind, measured, wanted in (
        ("cells", bench.cell, lines),
        ("forwarded", bench.forwarded, forwarded),
    ):
        for line in wanted:
            start_s = time.monotonic()
            row = measured(line)
            row["took_s"] = time.monotonic() - start_s
            row["load"] = os.getloadavg()[0]
            found[kind].append(row)
            print(f"{kind}: {line.rtt_ms:g} ms, {line.mbit_per_s:g} Mbit/s: "
                  f"{row['took_s']:.0f} s", flush=True)  # fmt: skip
    return found


def main() -> int:
    """Measure and write; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one kind of line only")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results go")
    options = parser.parse_args()
    why = hosts.unable()
    if why:
        print(f"skipped: nothing was measured, for {why}")
        return 0
    hosts.sweep()
    no_netem = netem.unable()
    switch = None if no_netem else netem.NetemSwitch()
    start_s, load_before = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        network = hosts.Network(Path(directory), SEED, switch)
        try:
            found = measure(network, QUICK if options.quick else LINES)
        finally:
            network.close()
    found.update(
        when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        took_s=time.monotonic() - start_s,
        load=[load_before, os.getloadavg()[0]],
        cores=os.cpu_count(),
        python=platform.python_version(),
        kernel=platform.release().partition("-")[0],
        lines_of="tc netem" if switch else "switch",
        no_netem=no_netem,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "network.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    text = table.markdown(found)
    path.with_suffix(".md").write_text(text)
    table.plot(found, path.with_suffix(".png"))
    print(text)
    print(f"written to {path} and beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
