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
