"""Tables and plots of the demo, like the paper's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from series import read_rows


def peers_table(title: str, rows: list[tuple[str, ...]]) -> None:
    """Print which peer holds what."""
    from rich.console import Console
    from rich.table import Table

    table = Table("peer", "zone", "state", "received", "sent", "holds", title=title)
    for row in rows:
        table.add_row(*row)
    Console(width=100).print(table)


def tables(result: dict[str, Any]) -> None:
    """Print tables like the paper's."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=100)
    base, thin, trainer = result["baseline"], result["client"], result["trainer"]
    table = Table(
        "",
        "baseline",
        "client",
        trainer,
        "aggregate",
        title="Memory and time",
        caption=f"memory: peaks, of {trainer} that of daemon and executors; times of the "
        f"client hold those of {trainer}",
    )
    peer_mb, client_mb = thin["peer_memory_mb"], thin["memory_mb"]
    table.add_row(
        "memory, MB", f"{base['memory_mb']:.0f}", f"{client_mb:.1f}", f"{peer_mb:.0f}",
        f"{client_mb + peer_mb:.0f}",
    )  # fmt: skip
    for name in ("train_s", "eval_s", "total_s"):
        table.add_row(
            name.replace("_s", ", s"), f"{base[name]:.2f}", f"{thin[name]:.2f}",
            f"{thin['method_s']:.2f}" if name == "train_s" else "-", f"{thin[name]:.2f}",
        )  # fmt: skip
    sizes = result["site_packages_mb"]
    table.add_row(
        "site-packages, MB", f"{sizes['full']:.0f}", f"{sizes['thin']:.1f}",
        f"{sizes['full']:.0f}", f"{sizes['thin'] + sizes['full']:.0f}",
    )  # fmt: skip
    console.print(table)
    quality = Table("column", "where", "MSE", "MAE", "SMAPE", "RMSE", title="Forecasts")
    for column in base["metrics"]:
        for where, metrics in (("baseline", base), ("offloaded", thin)):
            values = metrics["metrics"][column]
            quality.add_row(
                column, where,
                *(f"{values[name]:.3f}" for name in ("MSE", "MAE", "SMAPE", "RMSE")),
            )  # fmt: skip
    console.print(quality)


def plots(
    result: dict[str, Any], predictions: list[list[float]], out: Path, csv: str
) -> None:
    """Write memory.png, time.png and prediction.png."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    base, thin = result["baseline"], result["client"]
    figure, axes = pyplot.subplots(figsize=(6, 4))
    axes.bar(
        ["baseline", "client", result["trainer"]],
        [base["memory_mb"], thin["memory_mb"], thin["peer_memory_mb"]],
        color=["#8da0cb", "#66c2a5", "#fc8d62"],
    )
    axes.set_ylabel("peak memory, MB")
    figure.savefig(out / "memory.png", dpi=120, bbox_inches="tight")
    figure, axes = pyplot.subplots(figsize=(6, 4))
    names = ["train_s", "eval_s", "total_s"]
    for offset, (label, source) in enumerate((("baseline", base), ("offloaded", thin))):
        axes.bar(
            [i + 0.4 * offset for i in range(3)],
            [source[n] for n in names],
            0.38,
            label=label,
        )
    axes.set_xticks([i + 0.2 for i in range(3)], ["train", "evaluate", "total"])
    axes.set_ylabel("seconds")
    axes.legend()
    figure.savefig(out / "time.png", dpi=120, bbox_inches="tight")
    truth = read_rows(csv)[-len(predictions) :]
    figure, both = pyplot.subplots(2, 1, figsize=(9, 6), sharex=True)
    for i, axes in enumerate(both):
        axes.plot([row[i] for row in truth], label="truth", linewidth=0.8)
        axes.plot([row[i] for row in predictions], label="forecast", linewidth=0.8)
        axes.set_ylabel(("CPU", "memory")[i] + ", %")
    both[0].legend()
    both[1].set_xlabel("rows of the last 20 %")
    figure.savefig(out / "prediction.png", dpi=120, bbox_inches="tight")
