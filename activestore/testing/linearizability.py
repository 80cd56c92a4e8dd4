"""Whether a history could have come from objects that do one operation at a time.

answer = check_linearizable(operations, Counter())
assert answer.is_linearizable, str(answer)

Linearizable: there is an order of the operations in which each ends as it did, and in
which none comes before another that had ended when it was asked. The search is Wing and
Gong's with Lowe's memory of what was tried, by object and by part of an object (Horn and
Kroening). An operation whose outcome is unknown has no end: it may come at any place
after it was asked, or nowhere.

What keeps the search short, and changes no answer: a read that may come next and sees
the state as it is comes next; operations of unknown outcome that ask for the same are
not told apart; a counter whose sums tell the order is not searched at all
(`activestore.testing.sums`).

Rules of this file: pure, no clock: a search is bounded by its steps, and says so.

Source: J. M. Wing, C. Gong, "Testing and verifying concurrent objects", 1993; G. Lowe,
"Testing for linearizability", 2016; A. Horn, D. Kroening, arXiv:1504.00204.
"""

from __future__ import annotations

import enum
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

from activestore.testing import sums
from activestore.testing.histories import Operation, Outcome
from activestore.testing.search import Search, Span
from activestore.testing.sequential import ANYTHING, Counter, Model

# Some 10 to 20 s of Python on a slow machine, and 200 MB of memory of what was tried.
STEPS_MAX = 1_000_000
# An explanation is made shorter by trying; each try costs at most this.
NARROWING_STEPS_MAX = 50_000
# Reads that are left out one by one where the rest cannot be ordered either.
READS_TRIED_MAX = 64
# Lines of an explanation that are shown.
LINES_SHOWN = 40


class Verdict(enum.Enum):
    """What is known of a history."""

    LINEARIZABLE = "linearizable"
    NOT_LINEARIZABLE = "not linearizable"
    TOO_HARD = "too hard"


class Answer(NamedTuple):
    """What was found; `str` of it is a text to be read.

    `window`: the smallest part found that cannot be ordered, by when it was asked, with
    the operations of unknown outcome that could have come into it. `object_name`: of the
    object that fails, or is too hard. `steps_count`: how long the search was.
    """

    verdict: Verdict
    object_name: str = ""
    reason: str = ""
    window: tuple[Operation, ...] = ()
    steps_count: int = 0

    @property
    def is_linearizable(self) -> bool:
        """Whether it is known to be."""
        return self.verdict is Verdict.LINEARIZABLE

    def __str__(self) -> str:
        if self.is_linearizable:
            return "linearizable"
        lines = [f"{self.object_name}: {self.verdict.value}: {self.reason}"]
        lines += [f"  {operation}" for operation in self.window[:LINES_SHOWN]]
        left = len(self.window) - LINES_SHOWN
        if left > 0:
            lines.append(f"  and {left} more")
        return "\n".join(lines)


def check_linearizable(
    operations: Iterable[Operation], model: Model, *, steps_max: int = STEPS_MAX
) -> Answer:
    """Judge the history of objects of one kind.

    Args:
        operations: In any order; those that FAILED are left out.
        model: What every object does; `sequential` has some.
        steps_max: How long the search for one part of one object may be.

    Returns:
        The first object that fails, else the first that is too hard, else that all is
        linearizable. TOO_HARD says nothing of the history: more clients at one object,
        or more operations of unknown outcome, make it harder.
    """
    parts: dict[tuple[str, Hashable], list[Operation]] = defaultdict(list)
    for operation in operations:
        is_nothing = operation.outcome is Outcome.FAILED or (
            operation.outcome is Outcome.UNKNOWN and model.is_read(operation.call)
        )
        if not is_nothing:
            parts[operation.object_name, model.part(operation)].append(operation)
    steps_count, hard = 0, None
    for part in parts.values():
        answer = _check_part(part, model, steps_max)
        steps_count += answer.steps_count
        if answer.verdict is Verdict.NOT_LINEARIZABLE:
            return answer._replace(steps_count=steps_count)
        if answer.verdict is Verdict.TOO_HARD:
            hard = hard or answer
    answer = hard or Answer(Verdict.LINEARIZABLE)
    return answer._replace(steps_count=steps_count)


def _check_part(operations: list[Operation], model: Model, steps_max: int) -> Answer:
    if isinstance(model, Counter):
        found = sums.find_disorder(operations, model.start)
        if found is not None:
            if not found.reason:
                return Answer(Verdict.LINEARIZABLE)
            name = operations[0].object_name
            return Answer(Verdict.NOT_LINEARIZABLE, name, found.reason, found.window)
    return _search(operations, model, steps_max)


def _search(operations: list[Operation], model: Model, steps_max: int) -> Answer:
    name = operations[0].object_name
    certain = [o for o in operations if o.outcome is Outcome.OK]
    unsure = [o for o in operations if o.outcome is not Outcome.OK]
    search = Search(model, Span(certain, unsure, model.initial()), steps_max)
    is_ordered = search.run()
    if is_ordered:
        return Answer(Verdict.LINEARIZABLE, steps_count=search.steps_count)
    if is_ordered is None:
        reason = (
            f"no order of {len(certain)} operations and {len(unsure)} of unknown outcome "
            f"within {steps_max} steps; some order was found up to {search.reached_s:.6f} s"
        )
        return Answer(Verdict.TOO_HARD, name, reason, (), search.steps_count)
    window = _narrowed(certain, unsure, search.reached_s, model)
    reason = f"no order of these explains what they returned, from {window.start!r} on"
    shown = sorted((*window.certain, *window.unsure), key=lambda o: o.asked_s)
    return Answer(
        Verdict.NOT_LINEARIZABLE, name, reason, tuple(shown), search.steps_count
    )


# -- the smallest window ---------------------------------------------------------------


def _narrowed(
    certain: Sequence[Operation],
    unsure: Sequence[Operation],
    reached_s: float,
    model: Model,
) -> Span:
    """Return a span of time, as short as is found, that cannot be ordered by itself.

    No order got past `reached_s`: an operation had ended by then and fits nowhere. So
    what ended later proves nothing. Nor does what ended before the start of the span,
    once the span fails whatever the state was when it began; a longer span then fails
    too, so that the latest such start is found by halving.
    """
    whole = Span(
        [o for o in certain if o.ended_s <= reached_s],
        _may_come_in(certain, unsure, -math.inf, reached_s, model),
        model.initial(),
    )
    starts = sorted({o.asked_s for o in whole.certain})
    best, low, high = whole, 0, len(starts) - 1
    while low <= high:
        middle = (low + high) // 2
        start_s = starts[middle]
        tried = Span(
            [o for o in whole.certain if o.asked_s >= start_s],
            _may_come_in(certain, unsure, start_s, reached_s, model),
            ANYTHING,
        )
        if Search(model, tried, NARROWING_STEPS_MAX).run() is False:
            best, low = tried, middle + 1
        else:
            high = middle - 1
    return _without_reads(best, model)


def _may_come_in(
    certain: Sequence[Operation],
    unsure: Sequence[Operation],
    start_s: float,
    end_s: float,
    model: Model,
) -> list[Operation]:
    """Return the writes that may have come within the span, or before or after it."""
    found = [o for o in unsure if o.asked_s <= end_s]
    for o in certain:
        is_across_start = o.asked_s < start_s <= o.ended_s <= end_s
        is_across_end = o.asked_s <= end_s < o.ended_s
        if (is_across_start or is_across_end) and not model.is_read(o.call):
            found.append(o)
    return found


def _without_reads(span: Span, model: Model) -> Span:
    """Leave out reads that the failure does not need; to leave out a read is always fair."""
    reads = [o for o in span.certain if model.is_read(o.call)]
    for read in reads[:READS_TRIED_MAX]:
        rest = [o for o in span.certain if o is not read]
        tried = span._replace(certain=rest)
        if Search(model, tried, NARROWING_STEPS_MAX).run() is False:
            span = tried
    return span


__all__ = ["STEPS_MAX", "Answer", "Verdict", "check_linearizable"]
