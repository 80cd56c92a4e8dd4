"""Record CPU and memory use of this machine, one row a second, as the forecaster's data.

    python examples/forecaster/record.py --rows 3600 --out utilisation.csv

Each row is the UTC time, the CPU busy share since the row before, and the share of memory
in use, both in percent of the whole machine, as psutil reports them. Rows are written as
they are made, so an interrupted recording keeps what it has.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import sys
import time
from pathlib import Path

import psutil


def record(path: Path, rows_count: int) -> None:
    """Write `rows_count` rows to `path`, one each second, on a fixed schedule.

    The schedule is kept against the first row's time, so that the delay of one row does
    not shift all that follow.
    """
    psutil.cpu_percent()  # The first reading has no earlier one to compare with.
    start_s = time.monotonic()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["timestamp", "CPU", "MEM"])
        for row in range(rows_count):
            time.sleep(max(0.0, start_s + row + 1 - time.monotonic()))
            now = datetime.datetime.now(datetime.timezone.utc)
            memory = psutil.virtual_memory()
            used = 100.0 * (memory.total - memory.available) / memory.total
            writer.writerow(
                [
                    f"{now:%Y-%m-%d %H:%M:%S}",
                    f"{psutil.cpu_percent():.1f}",
                    f"{used:.3f}",
                ]
            )
            file.flush()
            if sys.stderr.isatty() and row % 10 == 0:
                print(f"\r{row + 1} of {rows_count} rows", end="", file=sys.stderr)


def main() -> None:
    """Read the command line and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", type=int, default=3600, help="rows to record, one a second"
    )
    parser.add_argument("--out", type=Path, default=Path("utilisation.csv"))
    arguments = parser.parse_args()
    record(arguments.out, arguments.rows)


if __name__ == "__main__":
    main()
