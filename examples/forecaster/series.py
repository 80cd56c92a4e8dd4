"""Reading the series: a CSV with the columns timestamp, CPU, MEM."""

from __future__ import annotations

import csv
from pathlib import Path

DATA = Path(__file__).with_name("utilisation.csv")


def read_rows(path: str | Path) -> list[list[float]]:
    """Return the rows [cpu, mem] in percent; needs nothing but the standard library."""
    with open(path, newline="") as file:
        return [[float(row["CPU"]), float(row["MEM"])] for row in csv.DictReader(file)]
