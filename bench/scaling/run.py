"""Both tables and both plots of how activestore scales: `make bench-scaling`.

python bench/scaling/run.py [--out DIRECTORY] [--peers-max N]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.scaling import idle, lookup

OUT = Path(__file__).resolve().parents[1] / "results"


def plot_idle(rows: Sequence[idle.Idle], path: Path) -> None:
    """Draw bytes a second over the number of peers, a line for each profile."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for profile in dict.fromkeys(row.profile for row in rows):
        mine = [row for row in rows if row.profile == profile]
        counts = [row.peers_count for row in mine]
        axes.plot(counts, [row.bytes_per_s for row in mine], "o-", label=profile)
    axes.set(xscale="log", xlabel="peers", ylabel="B/s that one peer sends, idle")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def plot_lookup(rows: Sequence[lookup.Cost], path: Path) -> None:
    """Draw a peer's exceptions over the number of objects, and the formula beside."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for count in dict.fromkeys(row.peers_count for row in rows):
        mine = [row for row in rows if row.peers_count == count]
        objects = [row.objects_count for row in mine]
        (line,) = axes.plot(
            objects, [row.state_bytes for row in mine], "o-", label=f"{count:,} peers"
        )
        formula = [row.formula_bytes for row in mine]
        axes.plot(objects, formula, "--", color=line.get_color())
    axes.set(
        xscale="log", yscale="log", xlabel="objects, 1 % of them moved",
        ylabel="exceptions + guests, B a peer (dashed: formula)",
    )  # fmt: skip
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def run(out: Path, peers_max: int, objects_max: int) -> None:
    """Measure, print, and write tables and plots into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    costs = [
        lookup.measure(objects, peers)
        for peers in lookup.PEERS
        for objects in lookup.OBJECTS
        if peers <= peers_max and objects <= objects_max
    ]
    table = lookup.markdown(costs)
    print(table, flush=True)
    (out / "scaling-lookup.md").write_text(f"# Lookup\n\n{lookup.__doc__}\n{table}")
    plot_lookup(costs, out / "scaling-lookup.png")
    rows = []
    for profile in idle.PROFILES:
        for count in idle.COUNTS:
            if count <= peers_max:
                rows.append(idle.measure(profile, count))
                print(rows[-1], flush=True)
    table = idle.markdown(rows)
    (out / "scaling-idle.md").write_text(f"# Idle\n\n{idle.__doc__}\n{table}")
    plot_idle(rows, out / "scaling-idle.png")
    print(f"written to {out}/scaling-*.md and .png")


def main() -> None:
    """Read the flags, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--peers-max", type=int, default=max(lookup.PEERS))
    parser.add_argument("--objects-max", type=int, default=max(lookup.OBJECTS))
    chosen = parser.parse_args()
    run(chosen.out, chosen.peers_max, chosen.objects_max)


if __name__ == "__main__":
    main()
