"""The search for an order of the operations on one object.

A node of the search: how many of the operations, by when they were asked, are all in
order; which of the later ones are too; how many of each kind of unsure ones; the state.
From a node go on those operations that were asked before any other that is left ended.

    1 2 3 4 5 6 7       first = 2, later = 0b0101: 1, 2, 3 and 5 are in order;
        ^   ^           4 is what the search waits for

Rules of this file: it goes deep first, on a stack of its own; what was tried is not
tried again; it stops at `steps_max` nodes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple, TypeAlias

from activestore.testing.histories import Operation, Outcome
from activestore.testing.sequential import ANYTHING, Model


class Span(NamedTuple):
    """What is to be ordered: all of `certain`, any of `unsure`, from a state on."""

    certain: Sequence[Operation]
    unsure: Sequence[Operation]
    start: Hashable


# How many are all in order; bits of the later ones; used of each kind; the state.
Node: TypeAlias = tuple[int, int, tuple[int, ...], Hashable]


class Search:
    """One search; `run` it once."""

    def __init__(self, model: Model, span: Span, steps_max: int) -> None:
        self._model = model
        self._certain = sorted(span.certain, key=lambda o: o.asked_s)
        self._kinds = _kinds(span.unsure)
        self._start = span.start
        self._steps_max = steps_max
        self.steps_count = 0
        # What an operation that ended then needs was never reached.
        self.reached_s = -math.inf

    def run(self) -> bool | None:
        """Return whether there is an order, None where that took too many steps."""
        count = len(self._certain)
        first: Node = (0, 0, (0,) * len(self._kinds), self._start)
        stack, tried = [first], {first}
        while stack:
            node = stack.pop()
            if node[0] == count:
                return True
            self.steps_count += 1
            if self.steps_count > self._steps_max:
                return None
            for following in self._following(node):
                if following not in tried:
                    tried.add(following)
                    stack.append(following)
        return False

    def _following(self, node: Node) -> list[Node]:
        """Return the nodes after this one; the last is to be tried first."""
        first, later, used, state = node
        places, end_s = self._next(first, later)
        self.reached_s = max(self.reached_s, end_s)
        found: list[Node] = []
        for kind, operations in enumerate(self._kinds):
            taken = used[kind]
            if taken < len(operations) and operations[taken].asked_s <= end_s:
                for after in self._states_after(state, operations[taken]):
                    now_used = (*used[:kind], taken + 1, *used[kind + 1 :])
                    found.append((first, later, now_used, after))
        # What ended first comes first in most histories.
        places.sort(key=lambda place: -self._certain[place].ended_s)
        for place in places:
            operation = self._certain[place]
            is_read = self._model.is_read(operation.call)
            for after in self._states_after(state, operation):
                node_after = (*_ordered(first, later, place), used, after)
                if is_read and state is not ANYTHING:
                    # Nothing is lost by it: whatever else follows can follow as well.
                    return [node_after]
                found.append(node_after)
        return found

    def _next(self, first: int, later: int) -> tuple[list[int], float]:
        """Return which may come next, and when the first of all that are left ended."""
        certain = self._certain
        places: list[int] = []
        end_s = math.inf
        place = first
        while place < len(certain) and certain[place].asked_s <= end_s:
            if not later >> (place - first) & 1:
                places.append(place)
                end_s = min(end_s, certain[place].ended_s)
            place += 1
        return places, end_s

    def _states_after(self, state: Hashable, operation: Operation) -> list[Hashable]:
        """Return the state after an operation, none where it does not end like this."""
        if state is ANYTHING:
            state = self._model.before(operation)
            if state is ANYTHING:
                return [ANYTHING]
        result, after = self._model.apply(state, operation)
        if operation.outcome is Outcome.OK and result != operation.result:
            return []
        return [after]


def _ordered(first: int, later: int, place: int) -> tuple[int, int]:
    """Return both numbers with one more operation in order."""
    later |= 1 << (place - first)
    while later & 1:
        first += 1
        later >>= 1
    return first, later


def _kinds(unsure: Sequence[Operation]) -> list[list[Operation]]:
    """Return them by what they ask for, those first that were asked first."""
    kinds: dict[Hashable, list[Operation]] = {}
    for operation in sorted(unsure, key=lambda o: o.asked_s):
        is_known = operation.outcome is Outcome.OK
        seen = operation.result if is_known else None
        key = (operation.call, operation.argument, is_known, seen)
        kinds.setdefault(key, []).append(operation)
    return list(kinds.values())


__all__ = ["Search", "Span"]
