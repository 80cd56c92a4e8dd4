"""How a call ends in an executor: what it leaves, and what ends it from outside.

Rules of this file: data and exceptions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from activestore.wire.state import NamedState, ObjectState, StateDelta


class Interrupted(BaseException):
    """Raised in a slot's thread to end a method; not an Exception, so few catch it."""

    reason = "cancelled"


class InterruptedByDeadline(Interrupted):
    """The same, because the deadline passed."""

    reason = "deadline"


class Outcome(NamedTuple):
    """What a call leaves: see CallEnded."""

    code: str
    body: bytes
    buffers: Sequence[Any] = ()
    delta: StateDelta | None = None
    state: ObjectState | None = None
    created: Sequence[NamedState] = ()
    is_dropped: bool = False
    state_bytes: int = 0


def nearest_builtin(error: BaseException) -> str:
    """Return the name of the most derived built-in class of `error`, "" for Exception."""
    for cls in type(error).__mro__:
        if (
            cls.__module__ == "builtins"
            and cls is not Exception
            and cls is not BaseException
        ):
            return cls.__name__ if issubclass(cls, Exception) else ""
    return ""
