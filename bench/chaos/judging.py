"""What the history of a run says: was anything lost, doubled, or seen out of order.

Rules of this file: pure; rows are those that the agents print. What clients saw is the
evidence, no peer is asked what it believes.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter as Count
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from activestore.errors import BY_CODE
from activestore.testing import Counter, Operation, Outcome, check_linearizable
from activestore.testing.histories import NOTHING_HAPPENED
from bench.chaos.faults import Fault

Row = Mapping[str, Any]
# Those of others are in the relay's and the kernel's hands a moment longer.
AFTER_FAULT_S = 0.1


class Tally(NamedTuple):
    """What became of the adds to one object, and of reads that may be old."""

    object_name: str
    acknowledged: int
    failed: int
    unknown: int
    total: int
    lost: int
    doubled: int
    longest_gap_s: float
    stale_reads: int
    went_back: int  # reads of a client that saw less than it had seen
    too_old: int  # reads older than their bound
    oldest_s: float


class Takeover(NamedTuple):
    """From a fault at an object's leader to the next add that was answered."""

    object_name: str
    kind: str
    peer: str
    took_s: float


def outcome_of_row(row: Row) -> Outcome:
    """Return what the client knows of a row."""
    code = row.get("error")
    if code is None:
        return Outcome.OK
    cls = BY_CODE.get(code)
    is_nothing = cls is not None and issubclass(cls, NOTHING_HAPPENED)
    if is_nothing or (code == "executor_crashed" and not row.get("is_partial")):
        return Outcome.FAILED
    return Outcome.UNKNOWN


def operations_of(rows: Iterable[Row]) -> list[Operation]:
    """Return the rows as a checker wants them; reads that may be old are left out."""
    return [
        Operation(
            row["client"], row["object"], row["call"],
            1 if row["call"] == "add" else None, row.get("result"),
            row["asked_s"], row["ended_s"], outcome_of_row(row),
        )
        for row in rows
        if row["call"] in {"add", "read"}
    ]  # fmt: skip


def why_not_linearizable(rows: Iterable[Row]) -> str:
    """Return what cannot be explained, "" where all can."""
    answer = check_linearizable(operations_of(rows), Counter())
    return "" if answer.is_linearizable else str(answer)


def tallies(
    rows: Sequence[Row], totals: Mapping[str, int], staleness_s: float
) -> list[Tally]:
    """Count, object by object; `totals`: what each had in the end."""
    by_object: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_object[row["object"]].append(row)
    return [
        _tally(name, by_object[name], totals[name], staleness_s)
        for name in sorted(totals)
    ]


def _tally(name: str, rows: Sequence[Row], total: int, staleness_s: float) -> Tally:
    adds = [row for row in rows if row["call"] == "add"]
    ends = Count(outcome_of_row(row) for row in adds)
    acknowledged, unknown = ends[Outcome.OK], ends[Outcome.UNKNOWN]
    sums = Count(row["result"] for row in adds if "error" not in row)
    repeated = sum(count - 1 for count in sums.values())
    answered = sorted(row["ended_s"] for row in adds if "error" not in row)
    gaps = [b - a for a, b in pairwise(answered)]
    stale, too_old, oldest_s = _ages(rows, staleness_s)
    return Tally(
        name, acknowledged, ends[Outcome.FAILED], unknown, total,
        max(0, acknowledged - total, repeated),
        max(0, total - acknowledged - unknown),
        max(gaps, default=0.0), stale, _went_back(rows), too_old, oldest_s,
    )  # fmt: skip


def marks_amiss(rows: Iterable[Row], marks: Sequence[str], name: str) -> list[str]:
    """Return which marks of a journal are not where the client was told they are."""
    amiss = [f"{mark} is there twice" for mark, n in Count(marks).items() if n > 1]
    for row in rows:
        if row["object"] != name or row["call"] != "add" or "error" in row:
            continue
        at = row["result"]
        if marks[at - 1 : at] != [row["mark"]]:
            amiss.append(f"{row['mark']} is not at {at}")
    return amiss


def _went_back(rows: Iterable[Row]) -> int:
    """Count the answers that show less than the same client saw of the object before."""
    seen: dict[str, int] = {}
    count = 0
    for row in sorted(rows, key=lambda row: row["asked_s"]):
        if "error" not in row:
            last = seen.get(row["client"], 0)
            count += row["result"] < last
            seen[row["client"]] = max(last, row["result"])
    return count


def _ages(rows: Sequence[Row], staleness_s: float) -> tuple[int, int, float]:
    """Return how many reads may be old, how many are older than asked, the oldest's age.

    The age of an answer: how long before it was asked the next number had been returned
    to somebody. It may be a little older, for nobody need have been told.
    """
    known = sorted(
        (row["ended_s"], row["result"])
        for row in rows
        if "error" not in row and row["call"] in {"add", "read"}
    )
    firsts: list[tuple[int, float]] = []  # a number, and when it was first known
    for ended_s, result in known:
        if not firsts or result > firsts[-1][0]:
            firsts.append((result, ended_s))
    numbers = [number for number, _ in firsts]
    stale = [row for row in rows if row["call"] == "stale" and "error" not in row]
    ages = []
    for row in stale:
        place = bisect_right(numbers, row["result"])
        if place < len(firsts):
            ages.append(max(0.0, row["asked_s"] - firsts[place][1]))
    return len(stale), sum(age > staleness_s for age in ages), max(ages, default=0.0)


def takeovers(rows: Iterable[Row], faults: Iterable[Fault]) -> list[Takeover]:
    """Return how long each object was without an answered add after its leader was hit.

    What the leader still had answered does not count: either somebody else answered, or
    the add was asked afterwards, or the fault was over.
    """
    adds: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["call"] == "add" and "error" not in row:
            adds[row["object"]].append(row)
    for answered in adds.values():
        answered.sort(key=lambda row: row["ended_s"])
    found = []
    for fault in faults:
        if fault.kind not in {"kill", "pause", "isolate", "apart"}:
            continue
        for name in fault.led:
            ended_s = _next_answer_s(adds[name], fault)
            if ended_s < math.inf:
                took_s = ended_s - fault.begin_s
                found.append(Takeover(name, fault.kind, fault.names[0], took_s))
    return found


def _next_answer_s(answered: Sequence[Row], fault: Fault) -> float:
    start = bisect_right(answered, fault.begin_s, key=lambda row: row["ended_s"])
    for row in answered[start:]:
        is_other = row.get("peer", fault.names[0]) != fault.names[0]
        is_after = row["asked_s"] > fault.begin_s or row["ended_s"] > fault.end_s
        if is_other or (is_after and row["ended_s"] > fault.begin_s + AFTER_FAULT_S):
            return float(row["ended_s"])
    return math.inf


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value below which that share of them lies, 0.0 for none."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
