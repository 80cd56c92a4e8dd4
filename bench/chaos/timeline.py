"""The picture of a run: what was answered, and what went wrong meanwhile."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.chaos.faults import Fault
from bench.chaos.judging import outcome_of_row

COLOURS = {
    "kill": "tab:red", "pause": "tab:orange", "isolate": "tab:purple",
    "pair": "tab:blue", "one-way": "tab:cyan", "disk": "tab:brown",
    "growth": "tab:olive", "apart": "tab:green", "executor": "tab:pink",
}  # fmt: skip


def draw(
    rows: Sequence[Mapping[str, Any]],
    faults: Sequence[Fault],
    peers: Sequence[str],
    path: Path,
) -> None:
    """Draw adds a second by outcome, answered adds by object, and faults by peer."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    start_s = min(row["asked_s"] for row in rows)
    adds = [row for row in rows if row["call"] == "add"]
    names = sorted({row["object"] for row in adds})
    figure = Figure(figsize=(12, 7))
    rates, objects, wrong = figure.subplots(
        3, 1, sharex=True, height_ratios=[3, len(names) / 2, len(peers) / 2]
    )
    last = int(max(row["ended_s"] for row in rows) - start_s)
    for outcome in ("ok", "unknown", "failed"):
        counts = Count(
            int(row["ended_s"] - start_s)
            for row in adds
            if outcome_of_row(row).value == outcome
        )
        rates.plot(
            range(last + 1), [counts[s] for s in range(last + 1)], label=outcome, lw=1
        )
    rates.set(ylabel="adds/s")
    rates.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for number, name in enumerate(names):
        times = [
            row["ended_s"] - start_s
            for row in adds
            if row["object"] == name and "error" not in row
        ]
        objects.plot(
            times, [number] * len(times), "|", ms=6, mew=0.5, color="tab:green"
        )
    objects.set_yticks(range(len(names)), names)
    objects.set(ylabel="answered")
    for fault in faults:
        begin_s, lasts_s = fault.begin_s - start_s, fault.end_s - fault.begin_s
        for name in fault.names:
            wrong.broken_barh(
                [(begin_s, max(lasts_s, 0.3))], (peers.index(name) - 0.4, 0.8),
                color=COLOURS[fault.kind], alpha=0.7 if name == fault.names[0] else 0.3,
            )  # fmt: skip
    wrong.set_yticks(range(len(peers)), peers)
    wrong.set(xlabel="s", ylabel="faults")
    handles = [Patch(color=colour, label=kind) for kind, colour in COLOURS.items()]
    wrong.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.35), ncols=8
    )
    figure.savefig(path, dpi=110, bbox_inches="tight")
