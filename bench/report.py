"""One table of value, target and verdict; JSON and PNG of the same."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def is_met(row: Any, value: float) -> bool | None:
    """Return whether a value meets its row's target; None where there is none."""
    if row.target is None:
        return None
    return value <= row.target if row.at_most else value >= row.target


def write(rows: Mapping[str, Any], results: Mapping[str, Any], directory: Path) -> None:
    """Print the table, and write JSON and PNG into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    table = Table("row", "value", "target", "met", "beside it", title="activestore")
    for name, found in results.items():
        row = rows[name]
        value = found["value"]
        beside = ", ".join(
            f"{key} {item:,.1f}" if isinstance(item, float) else f"{key} {item}"
            for key, item in found.items()
            if key != "value"
        )
        bound = "<=" if row.at_most else ">="
        target = "measured"
        if row.target is not None:
            target = f"{bound} {row.target:,g} {row.unit}"
        verdict = {True: "yes", False: "NO", None: ""}[is_met(row, value)]
        table.add_row(row.about, f"{value:,.2f} {row.unit}", target, verdict, beside)
    console = Console(width=150)
    console.print(table)
    console.print(f"{os.cpu_count()} cores, Python {platform.python_version()}")
    now = datetime.datetime.now(datetime.timezone.utc)
    stem = directory / f"{now:%Y-%m-%d}"
    content = {
        "when": now.isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "rows": {
            name: {**found, "target": rows[name].target, "unit": rows[name].unit,
                   "met": is_met(rows[name], found["value"])}
            for name, found in results.items()
        },
    }  # fmt: skip
    stem.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")
    plot(rows, results, stem.with_suffix(".png"))
    console.print(f"written to {stem}.json and .png")


def plot(rows: Mapping[str, Any], results: Mapping[str, Any], path: Path) -> None:
    """Draw each value as a share of its target; 1 is met."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    shown = [
        n for n in results if rows[n].target is not None and results[n]["value"] > 0
    ]
    scores = [
        rows[n].target / results[n]["value"]
        if rows[n].at_most
        else results[n]["value"] / rows[n].target
        for n in shown
    ]
    figure, axes = pyplot.subplots(figsize=(9, 0.35 * len(shown) + 1))
    colours = ["#66c2a5" if score >= 1 else "#fc8d62" for score in scores]
    axes.barh([rows[n].about for n in shown], scores, color=colours)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("times better than the target")
    axes.invert_yaxis()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
