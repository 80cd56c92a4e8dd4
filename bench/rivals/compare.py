"""One table of theirs, ours and the ratio; JSON and PNG of the same."""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

from harness import ROWS
from rich.console import Console
from rich.table import Table

WIDTH = 170
PANELS_ACROSS = 2
REASON_CHARS_MAX = 18  # in a cell; whole below the table


def times_better(row: str, theirs: float, ours: float) -> float:
    """Return how many times better ours is; below 1 theirs is."""
    return theirs / ours if ROWS[row].less else ours / theirs


def ratios(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the ratio of each row that both sides have, by rival."""
    ours = found["ours"]["rows"]
    return {
        name: {
            row: times_better(row, theirs["value"], ours[row]["value"])
            for row, theirs in session["rows"].items()
            if row in ours and theirs["value"] > 0 and ours[row]["value"] > 0
        }
        for name, session in found.items()
        if name != "ours"
    }


def number(value: float) -> str:
    """Return three digits that matter."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def cell(session: dict[str, Any], row: str, ratio: float | None) -> str:
    """Return what the table says of a rival in a row."""
    if row not in session["rows"]:
        return str(session["why"].get(row, "-"))[:REASON_CHARS_MAX]
    mark = "*" if row in session["notes"] else ""
    text = number(session["rows"][row]["value"]) + mark
    return text if ratio is None else f"{text} ({number(ratio)}x)"


def show(found: dict[str, Any]) -> None:
    """Print the table, and beneath it what needs a word."""
    better = ratios(found)
    table = Table("row", "unit", title="theirs (how many times better ours is)")
    for name, session in found.items():
        table.add_column(f"{name} {session['version']}".strip(), justify="right")
    for row, what in ROWS.items():
        cells = [
            cell(session, row, better.get(name, {}).get(row))
            for name, session in found.items()
        ]
        table.add_row(what.about, what.unit, *cells)
    console = Console(width=WIDTH, highlight=False)
    console.print(table)
    for name, session in found.items():
        for row, note in session["notes"].items():
            console.print(f"* {name}, {ROWS[row].about}: {note}", markup=False)
        for row, why in session["why"].items():
            if len(why) > REASON_CHARS_MAX:
                console.print(f"{name}, {ROWS[row].about}: {why}", markup=False)
        if session["failed"]:
            console.print(f"{name}: {session['failed']}", markup=False)
    console.print(f"{os.cpu_count()} cores, Python {platform.python_version()}")


def write(found: dict[str, Any], directory: Path) -> None:
    """Print the table, and write JSON and PNG into `directory`."""
    show(found)
    directory.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.timezone.utc)
    content = {
        "when": now.isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "times_better": ratios(found),
        "found": found,
    }
    stem = directory / f"rivals-{now:%Y-%m-%d}"
    stem.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")
    plot(ratios(found), stem.with_suffix(".png"))
    print(f"written to {stem}.json and .png")


def plot(better: dict[str, dict[str, float]], path: Path) -> None:
    """Draw a panel per row, a bar per rival: to the right of 1 ours is better."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in ROWS if any(row in one for one in better.values())]
    if not rows:
        return
    lines = -(-len(rows) // PANELS_ACROSS)
    figure, panels = pyplot.subplots(
        lines, PANELS_ACROSS, figsize=(6 * PANELS_ACROSS, 1.6 * lines + 1),
        sharex=True, squeeze=False,
    )  # fmt: skip
    for axes in panels.flat[len(rows) :]:
        axes.set_visible(False)
    for row, axes in zip(rows, panels.flat, strict=False):
        shown = {name: one[row] for name, one in better.items() if row in one}
        colours = ["#66c2a5" if ratio >= 1 else "#fc8d62" for ratio in shown.values()]
        # From 1, where both are alike: to the right ours is better.
        widths = [ratio - 1 for ratio in shown.values()]
        bars = axes.barh(list(shown), widths, left=1, color=colours)
        axes.bar_label(bars, [f" {number(r)}x " for r in shown.values()], fontsize=7)
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_title(ROWS[row].about, fontsize=8, loc="left", pad=2)
        axes.tick_params(labelsize=7, labelbottom=True)
        axes.margins(x=0.15)
        axes.invert_yaxis()
    figure.suptitle("how many times better ours is (log scale)", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
