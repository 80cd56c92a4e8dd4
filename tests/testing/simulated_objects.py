"""Histories made by objects that are linearizable by construction, and ways to spoil them.

Rules of this file: each operation happens at one moment between its asking and its end;
all chance comes from the generator that is passed in.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from typing import Any

from activestore.testing import Operation, Outcome
from activestore.testing.sequential import Model

Draw = Callable[[random.Random], tuple[str, Hashable]]


def history_of(
    model: Model,
    draw: Draw,
    rng: random.Random,
    *,
    count: int,
    clients: int = 5,
    unknown: float = 0.0,
    failed: float = 0.0,
) -> list[Operation]:
    """Let clients call one object; return what they saw.

    `unknown`: share of the operations whose end is not heard of; half of them happen,
    some of those long after their client gave up.
    """
    asked: list[tuple[float, float, float, str, str, Hashable]] = []
    free_s = [rng.random() for _ in range(clients)]
    for _ in range(count):
        client = min(range(clients), key=free_s.__getitem__)
        begin_s = free_s[client] + rng.expovariate(2.0)
        end_s = begin_s + rng.expovariate(1.0)
        free_s[client] = end_s
        call, argument = draw(rng)
        moment_s = rng.uniform(begin_s, end_s)
        asked.append((moment_s, begin_s, end_s, f"client-{client}", call, argument))
    drawn: list[tuple[float, Operation]] = []
    for moment_s, begin_s, end_s, client_name, call, argument in asked:
        outcome, at_s = Outcome.OK, moment_s
        chance = rng.random()
        if chance < failed:
            outcome = Outcome.FAILED
        elif chance < failed + unknown:
            outcome = Outcome.UNKNOWN
            at_s = moment_s + rng.choice((0.0, rng.expovariate(0.1)))
        drawn.append(
            (
                at_s,
                Operation(
                    client_name, "thing", call, argument, None, begin_s, end_s, outcome
                ),
            )
        )
    states: dict[Hashable, Any] = {}
    history = []
    for _, operation in sorted(drawn, key=lambda pair: pair[0]):
        part = model.part(operation)
        happens = operation.outcome is Outcome.OK or (
            operation.outcome is Outcome.UNKNOWN and rng.random() < 0.5
        )
        result = None
        if happens:
            state = states.get(part, model.initial())
            result, states[part] = model.apply(state, operation)
        if operation.outcome is not Outcome.OK:
            result = None
        history.append(operation._replace(result=result))
    rng.shuffle(history)
    return history


def counter_call(rng: random.Random) -> tuple[str, Hashable]:
    """Add one, or read."""
    return ("add", 1) if rng.random() < 0.6 else ("read", None)


def uneven_counter_call(rng: random.Random) -> tuple[str, Hashable]:
    """Add or take away, or read: sums do not tell the order."""
    return ("add", rng.choice((-1, 1, 2))) if rng.random() < 0.6 else ("read", None)


def register_call(rng: random.Random) -> tuple[str, Hashable]:
    """Read, write, or replace one of a few values."""
    chance = rng.random()
    if chance < 0.4:
        return "read", None
    if chance < 0.8:
        return "write", rng.randrange(4)
    return "cas", (rng.randrange(4), rng.randrange(4))


def map_call(rng: random.Random) -> tuple[str, Hashable]:
    """Get, put or delete one of a few keys."""
    key = f"key-{rng.randrange(3)}"
    chance = rng.random()
    if chance < 0.4:
        return "get", key
    if chance < 0.8:
        return "put", (key, rng.randrange(100))
    return "delete", key
