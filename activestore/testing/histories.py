"""What clients asked of objects and what came back: the history that a checker judges.

history = History(lambda: sim.now_s)
history.call("client-1", "hits", "add", 1, lambda: counter.add(1))
assert check_linearizable(history.operations, Counter()).is_linearizable

Rules of this file: an operation says what its client knows and nothing else. FAILED is
for errors that promise that nothing happened; whatever else went wrong is UNKNOWN.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from activestore.errors import (
    ActiveStoreError,
    BusyError,
    ExecutorCrashedError,
    InvalidRequestError,
    ObjectNotFoundError,
    StorageFullError,
)


class Outcome(enum.Enum):
    """How an operation ended, as far as its client can know."""

    OK = "ok"
    FAILED = "failed"  # it certainly did nothing
    UNKNOWN = "unknown"  # it may have happened, may happen later, or never


class Operation(NamedTuple):
    """One operation of one client on one object.

    `argument` and `result` are as the model of the object wants them, see
    `activestore.testing.sequential`, and hashable. Times are of one clock, in seconds;
    `ended_s` of an UNKNOWN one is when its client gave up, which proves nothing.
    """

    client: str
    object_name: str
    call: str
    argument: Hashable
    result: Hashable
    asked_s: float
    ended_s: float
    outcome: Outcome = Outcome.OK

    def __str__(self) -> str:
        given = "" if self.argument is None else repr(self.argument)
        ended = f"{self.ended_s:.6f}"
        seen = f"-> {self.result!r}"
        if self.outcome is not Outcome.OK:
            ended, seen = "?", f"({self.outcome.value})"
        times = f"{self.asked_s:.6f} .. {ended}"
        return (
            f"{times} s  {self.client}: {self.object_name}.{self.call}({given}) {seen}"
        )


# Errors after which nothing has happened and nothing will: see docs/reference/errors.md.
NOTHING_HAPPENED = (
    BusyError, InvalidRequestError, ObjectNotFoundError, StorageFullError,
)  # fmt: skip


def outcome_of(error: BaseException) -> Outcome:
    """Return what an error of a call lets its client know."""
    if isinstance(error, NOTHING_HAPPENED):
        return Outcome.FAILED
    if isinstance(error, ExecutorCrashedError) and not error.is_partial:
        return Outcome.FAILED
    return Outcome.UNKNOWN


class History:
    """Collects operations while they are made; one for all clients of a test."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self.operations: list[Operation] = []
        self._now_s = now_s

    def call(
        self,
        client: str,
        object_name: str,
        call: str,
        argument: Hashable,
        do: Callable[[], Any],
    ) -> Any:
        """Do it, and note when it was asked and how it ended.

        Raises:
            ActiveStoreError: what `do` raised; noted too.
        """
        asked_s = self._now_s()
        outcome, result = Outcome.UNKNOWN, None
        try:
            result = do()
            outcome = Outcome.OK
        except ActiveStoreError as error:
            outcome = outcome_of(error)
            raise
        finally:
            self.operations.append(
                Operation(
                    client, object_name, call, argument, result,
                    asked_s, self._now_s(), outcome,
                )
            )  # fmt: skip
        return result


__all__ = ["NOTHING_HAPPENED", "History", "Operation", "Outcome", "outcome_of"]
