"""Histories of counters, judged without a search: each sum tells its place.

Where every amount is above zero, an add that returned 7 made the 7, and comes after
whatever returned less. So there is one order of all adds whose sums are known, and each
read has its place in it. What is left to see:

* two adds never made the same number: else one of them was lost;
* numbers that no known add made, were made by adds of unknown outcome, each of which
  was asked before whatever comes after it had ended: else an add was done twice;
* nothing comes before what had ended when it was asked: else a read was stale.

Rules of this file: exact, not a guess; None where the sums do not tell. Sorting is all
that it costs.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

from activestore.testing.histories import Operation, Outcome


class Disorder(NamedTuple):
    """What is wrong; an empty reason: nothing."""

    reason: str = ""
    window: tuple[Operation, ...] = ()


class _Row(NamedTuple):
    """One operation at its place. `missing`: what unknown adds gave just before it."""

    number: int
    operation: Operation
    missing: int


def find_disorder(operations: Sequence[Operation], start: int) -> Disorder | None:
    """Return what is wrong with a history of `add` and `read`, or that nothing is.

    Args:
        operations: Of one counter; none that FAILED.
        start: The number before the first.

    Returns:
        None where the sums do not tell the order: an amount is not above zero, or adds
        of unknown outcome have different amounts.
    """
    adds = [o for o in operations if o.call == "add"]
    known = [o for o in adds if o.outcome is Outcome.OK]
    unknown = [o for o in adds if o.outcome is not Outcome.OK]
    calls = {o.call for o in operations}
    reads = [o for o in operations if o.call == "read" and o.outcome is Outcome.OK]
    numbers: list[Any] = [o.argument for o in adds]
    numbers += [o.result for o in (*known, *reads)]
    if not calls <= {"add", "read"} or not all(type(n) is int for n in numbers):
        return None
    amounts = {o.argument for o in unknown}
    if len(amounts) > 1 or any(n <= 0 for n in numbers[: len(adds)]):
        return None
    step = amounts.pop() if amounts else 0
    rows, wrong = _placed(known, reads, start)
    if wrong is not None:
        return wrong
    wrong = _gap_that_nothing_fills(rows, unknown, step)
    return wrong or _out_of_time(rows) or Disorder()


def _placed(
    known: Sequence[Operation], reads: Sequence[Operation], start: int
) -> tuple[list[_Row], Disorder | None]:
    """Return all operations in their order: an add, then the reads of its sum."""
    rows: list[_Row] = []
    number = start
    keyed: list[tuple[Any, bool, float, int, Operation]] = [
        (o.result, o.call == "read", o.asked_s, place, o)
        for place, o in enumerate((*known, *reads))
    ]
    keyed.sort()
    for result, is_read, _, _, operation in keyed:
        amount: Any = 0 if is_read else operation.argument
        missing = result - amount - number
        if missing < 0:
            # The last one whose number this one should have seen.
            last = (rows[-1].operation,) if rows else ()
            what = f"{operation.call} that returned {result} came on {result - amount}"
            reason = f"{what}, where {number} had been reached: an add is lost"
            return rows, Disorder(reason, (*last, operation))
        rows.append(_Row(result, operation, missing))
        number = result
    return rows, None


def _gap_that_nothing_fills(
    rows: Sequence[_Row], unknown: Sequence[Operation], step: Any
) -> Disorder | None:
    """Look whether adds of unknown outcome can have made what no known add made.

    An unknown add may stand before a row if it was asked before that row and all after
    it ended. Later rows allow more of them, so counting up is enough.
    """
    asked = sorted(o.asked_s for o in unknown)
    bounds = _ends_from_here(rows)
    needed = 0
    for place, row in enumerate(rows):
        if not row.missing:
            continue
        around = tuple(one.operation for one in rows[max(0, place - 1) : place + 1])
        low = row.number - row.missing
        if step == 0 or row.missing % step:
            given = f"adds of {step}" if step else "none"
            reason = f"{row.missing} more before {row.number} than was asked for"
            return Disorder(f"{reason}; of unknown outcome: {given}", around)
        needed += row.missing // step
        there = bisect_right(asked, bounds[place])
        if there < needed:
            late = next(o.operation for o in rows[place:] if _is_at(o, bounds[place]))
            window = around if late in around else (*around, late)
            reason = (
                f"to get to {low + row.missing}, {needed} adds of unknown outcome must "
                f"have been done by {bounds[place]:.6f} s; {there} were asked by then: an "
                "add was done twice, or too early"
            )
            return Disorder(reason, window)
    return None


def _is_at(row: _Row, end_s: float) -> bool:
    return row.operation.ended_s == end_s


def _ends_from_here(rows: Sequence[_Row]) -> list[float]:
    """Return, for each row, when the first of it and all after it ended."""
    found = [math.inf] * len(rows)
    end_s = math.inf
    for place in range(len(rows) - 1, -1, -1):
        end_s = min(end_s, rows[place].operation.ended_s)
        found[place] = end_s
    return found


def _out_of_time(rows: Sequence[_Row]) -> Disorder | None:
    """Look for one that had ended before another was asked which comes before it."""
    latest: Operation | None = None  # of those with lower places, asked last
    waiting: list[Operation] = []  # reads of the number that we are at
    for row in rows:
        operation = row.operation
        if operation.call == "add" or (waiting and waiting[0].result != row.number):
            latest = max((latest, *waiting), key=_asked_s)
            waiting = []
        if latest is not None and operation.ended_s < latest.asked_s:
            return Disorder(_why_late(operation, latest), (operation, latest))
        if operation.call == "add":
            latest = max(latest, operation, key=_asked_s)
        else:
            waiting.append(operation)
    return None


def _asked_s(operation: Operation | None) -> float:
    return -math.inf if operation is None else operation.asked_s


def _why_late(early: Operation, late: Operation) -> str:
    if late.call == "read":
        return f"a stale read: {late.result}, after {early.result} was returned"
    return f"{late.result} was made after {early.result} was returned: an add is lost"


__all__ = ["Disorder", "find_disorder"]
