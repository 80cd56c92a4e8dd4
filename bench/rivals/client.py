"""What every rival's client does: call, take the median, print JSON. No other imports."""

from __future__ import annotations

import json
import time
from collections.abc import Callable


def measure(
    call: Callable[[], object], *, row: str = "null", count: int = 1500
) -> None:
    """Print p50 and p99 of a call in microseconds."""
    for _ in range(count // 5):
        call()
    times = []
    for _ in range(count):
        start_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - start_s)
    times.sort()
    print(
        json.dumps({
            "row": row,
            "p50_us": times[count // 2] * 1e6,
            "p99_us": times[count * 99 // 100] * 1e6,
        })
    )  # fmt: skip
