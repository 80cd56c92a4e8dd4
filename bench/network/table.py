"""The network table as text and as a plot.

Rules of this file: it shows what was measured and says what was not; the one thing it
works out is a quotient or a sum of two measured figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# Below this the machine's own time is more than the line's: no round trips to count.
TRIPS_RTT_MS_MIN = 5.0
STEPS = {
    "tcp": "TCP handshake",
    "zmtp": "ZMTP greeting and READY, by libzmq",
    "hello": "Hello and Welcome",
    "get": "name, with the interface of its class",
    "call": "the call",
}
MB = 1_000_000

Row = dict[str, Any]


def markdown(found: Row) -> str:
    """Return all tables, with a word on each."""
    cells = found["cells"]
    parts = [
        "# Calls over slow and long lines",
        _head(found),
        "## From `connect` to the first result",
        "Seconds, and round trips: those seconds over the measured round trip. A *thin* "
        "client has no code of the class and uses `store.get`; the other one has the class "
        "and uses `get_by_alias`. Medians of runs of a new process each, imports not "
        "counted. Bytes are a thin client's, out and back, from the first SYN to the "
        "first result, with what its goodbye takes left out.",
        _first(cells),
        _steps(cells),
        "## A call that does nothing",
        "Median of calls one after the other. *The same bytes, bare*: datagrams as long as "
        "the call and its reply on the same line, so *overhead* is the time of client, "
        "peer and executor, and of TCP. Bytes with all headers from Ethernet up; beats of "
        "ZMTP every 2 s are in them, and weigh more where calls are slow.",
        _null(cells),
        "## A mean of numbers: computed where they lie, against fetched and computed here",
        "Bytes are both ways together. *Bare line*: the same bytes over a plain TCP "
        "connection that has just been made.",
        _data(cells),
    ]
    if found["forwarded"]:
        parts += [
            "## The same through a peer that forwards (`options(direct=False)`)",
            "Client to peer and peer to peer are lines of the same kind, so a call is two "
            "round trips, and numbers that are fetched take both lines. Bytes are those "
            "between client and peer.",
            _forwarded(found["forwarded"]),
        ]
    return "\n\n".join(parts) + "\n"


def _head(found: Row) -> str:
    lines = found["lines_of"]
    if lines == "switch":
        lines = (
            "the switch of `tests/network`, in user space: the kernel here has no netem "
            f"({found['no_netem'].rpartition('Error: ')[2]})"
        )
    before, after = found["load"]
    return (
        f"Measured {found['when']} in {found['took_s']:.0f} s by `make bench-network`: "
        f"{found['cores']} cores, Python {found['python']}, Linux {found['kernel']}, "
        f"load average {before:.1f} before and {after:.1f} after. Lines are those of "
        f"{lines}. Without delay and bound a bare TCP connection gets "
        f"{found['ceiling_mbit_per_s']:.0f} Mbit/s through them; more than that a figure "
        "cannot show. A delay is the round trip's, half of it each way; a rate holds for "
        "each direction, with a queue of 256 KiB that drops what is more."
        # What whoever keeps results has to say of them.
        f"{found.get('note', '')}"
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---:"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line_of(cell: Row) -> list[str]:
    return [f"{cell['rtt_ms']:g}", f"{cell['mbit_per_s']:g}"]


def _first(cells: list[Row]) -> str:
    def trips(cell: Row, seconds: float) -> str:
        if cell["rtt_ms"] < TRIPS_RTT_MS_MIN:
            return "-"
        return f"{seconds / cell['rtt_s']:.2f}"

    rows = []
    for cell in cells:
        thin, held = (cell[way]["seconds"]["first"] for way in ("thin", "class"))
        traffic = cell["thin"]["traffic"]
        rows.append([
            *_line_of(cell), f"{cell['rtt_s'] * 1e3:.2f}",
            f"{thin:.3f}", trips(cell, thin), f"{held:.3f}", trips(cell, held),
            f"{traffic['bytes_out']:,}", f"{traffic['bytes_back']:,}",
        ])  # fmt: skip
    return _table(
        ["RTT ms", "Mbit/s", "RTT measured, ms", "thin s", "trips", "with class s",
         "trips", "bytes out", "back"],
        rows,
    )  # fmt: skip


def _steps(cells: list[Row]) -> str:
    """Return what the round trips are for, where the line is the longest and fastest."""
    cell = max(cells, key=lambda one: (one["rtt_ms"], one["mbit_per_s"]))
    ways = [cell[way]["seconds"] for way in ("thin", "class")]
    rows = [
        [about, *(f"{seconds[step] / cell['rtt_s']:.2f}" for seconds in ways)]
        for step, about in STEPS.items()
    ]
    title = f"Round trips of each step at {cell['rtt_ms']:g} ms, "
    title += f"{cell['mbit_per_s']:g} Mbit/s:"
    return title + "\n\n" + _table(["step", "thin", "with class"], rows)


def _null(cells: list[Row]) -> str:
    return _table(
        ["RTT ms", "Mbit/s", "p50 ms", "the same bytes, bare, ms", "overhead ms",
         "bytes out", "back", "calls"],
        [
            [
                *_line_of(cell), f"{null['p50_s'] * 1e3:.2f}",
                f"{null['bare_s'] * 1e3:.2f}", f"{null['overhead_s'] * 1e3:.2f}",
                str(null["bytes_out"]), str(null["bytes_back"]), str(null["count"]),
            ]
            for cell in cells for null in [cell["null"]]
        ],
    )  # fmt: skip


def _bytes_of(one: Row) -> int:
    return int(one["bytes_out"] + one["bytes_back"])


def _data(cells: list[Row]) -> str:
    rows: list[list[str]] = []
    failed: dict[str, list[str]] = {}
    for alias in cells[0]["data"]:
        size = next(filter(None, (cell["data"][alias] for cell in cells)))["bytes"]
        for cell in cells:
            data = cell["data"][alias]
            row = [f"{size // MB} MB", *_line_of(cell)]
            if data is None:
                rows.append([*row, *["not measured: too long"] * 2, "-", "-", "-", "-"])
                continue
            there, here = data["offloaded"], data["fetched"]
            if here is None:
                rows.append([
                    *row, f"{there['s']:.3f}", "failed", f"{data['plain_s']:.3f}", "-",
                    f"{_bytes_of(there):,}", "-",
                ])  # fmt: skip
                where = f"{size // MB} MB at {cell['rtt_ms']:g} ms, "
                where += f"{cell['mbit_per_s']:g} Mbit/s"
                failed.setdefault(data["failed"], []).append(where)
                continue
            rows.append([
                *row, f"{there['s']:.3f}", f"{here['s']:.3f}", f"{data['plain_s']:.3f}",
                f"{here['s'] / there['s']:,.0f}", f"{_bytes_of(there):,}",
                f"{_bytes_of(here):,}",
            ])  # fmt: skip
    table = _table(
        ["object", "RTT ms", "Mbit/s", "offloaded s", "fetched s", "bare line s",
         "times faster", "offloaded bytes", "fetched bytes"],
        rows,
    )  # fmt: skip
    told = [f"Failed: {'; '.join(where)}: *{why}*" for why, where in failed.items()]
    return "\n\n".join([table, *told])


def _forwarded(cells: list[Row]) -> str:
    rows = []
    for cell in cells:
        null, data = cell["null"], next(iter(cell["data"].values()))
        there, here = data["offloaded"], data["fetched"]
        rows.append([
            *_line_of(cell), f"{null['p50_s'] * 1e3:.2f}",
            f"{null['overhead_s'] * 1e3:.2f}", f"{there['s']:.3f}", f"{here['s']:.3f}",
            f"{_bytes_of(there):,}", f"{_bytes_of(here):,}",
        ])  # fmt: skip
    return _table(
        ["RTT ms", "Mbit/s", "null call p50 ms", "over two bare trips, ms",
         "1 MB offloaded s", "fetched s", "offloaded bytes", "fetched bytes"],
        rows,
    )  # fmt: skip


def plot(found: Row, path: Path) -> None:
    """Draw first results, overheads, and offloading against fetching."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    cells = found["cells"]
    rates = sorted({cell["mbit_per_s"] for cell in cells})
    figure, (first, overhead, data, sizes) = pyplot.subplots(1, 4, figsize=(19, 4.5))
    for number, rate in enumerate(rates):
        shown = [cell for cell in cells if cell["mbit_per_s"] == rate]
        rtts = [cell["rtt_ms"] for cell in shown]
        name, colour = f"{rate:g} Mbit/s", f"C{number}"
        times = [cell["thin"]["seconds"]["first"] for cell in shown]
        first.plot(rtts, times, "o-", color=colour, label=name)
        own = [cell["null"]["overhead_s"] * 1e3 for cell in shown]
        overhead.plot(rtts, own, "o-", color=colour, label=name)
        for way, style in (("offloaded", "o-"), ("fetched", "s--"), ("plain_s", ":")):
            points = [
                (cell["rtt_ms"], part[way] if way == "plain_s" else part[way]["s"])
                for cell in shown
                for part in [next(iter(cell["data"].values()))]
                if part is not None and part[way] is not None
            ]
            if not points:
                continue
            label = f"{name}, {'bare line' if way == 'plain_s' else way}"
            data.plot(*zip(*points, strict=True), style, color=colour, label=label)
    rtts = sorted({cell["rtt_ms"] for cell in cells})
    trips = 6
    first.plot(rtts, [trips * rtt / 1e3 for rtt in rtts], "k:", label=f"{trips} trips")
    first.set_title("connect to first result, thin client")
    overhead.set_title("null call p50 over the same bytes, bare")
    overhead.set_ylabel("ms")
    data.set_title("mean of 1 MB: offloaded, or fetched and computed")
    for axes in (first, data):
        axes.set_ylabel("s")
        axes.set_yscale("log")
    for axes in (first, overhead, data):
        axes.set_xscale("log")
        axes.set_xlabel("round trip of the line, ms")
        axes.legend(fontsize=7)
    _plot_bytes(sizes, cells)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def _plot_bytes(axes: Any, cells: list[Row]) -> None:
    """Draw the bytes of the fastest line for each size: the line does not change them."""
    cell = max(cells, key=lambda one: (one["mbit_per_s"], -one["rtt_ms"]))
    for way, shift in (("offloaded", -0.2), ("fetched", 0.2)):
        shown = [
            (number + shift, _bytes_of(data[way]))
            for number, data in enumerate(cell["data"].values())
            if data is not None and data[way] is not None
        ]
        if shown:
            places, sizes = zip(*shown, strict=True)
            bars = axes.bar(places, sizes, 0.4, label=way)
            axes.bar_label(bars, [f"{size:,}" for size in sizes], fontsize=7)
    names = [
        f"{data['bytes'] // MB} MB" if data else "" for data in cell["data"].values()
    ]
    axes.set_xticks(range(len(names)), names)
    axes.set_yscale("log")
    axes.set_ylabel("bytes on the line, both ways")
    axes.set_title("a mean: what travels")
    axes.legend(fontsize=7)
