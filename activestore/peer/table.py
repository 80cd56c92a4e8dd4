"""What the parts of the loop share: the ports, the sessions, and how a step is taken.

Rules of this file: state and helpers only; no message and no effect is handled here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from activestore.core import effects, events
from activestore.core.calls import Client, Nested
from activestore.core.invocation import InvocationCore
from activestore.ids import SessionId
from activestore.peer import ports
from activestore.peer.classes import Classes
from activestore.wire.messages import Request


class Session:
    """A client process as the loop knows it."""

    __slots__ = ("heard_s", "name", "route", "session_id")

    def __init__(
        self, session_id: SessionId, route: bytes, name: str, now_s: float
    ) -> None:
        self.session_id = session_id
        self.route = route
        self.name = name
        self.heard_s = now_s


class LoopSettings(NamedTuple):
    """What the loop needs of the configuration."""

    peer_id: bytes
    peer_name: str
    incarnation: bytes
    message_bytes_max: int
    spin_s: float
    reply_keep_s: float
    session_expiry_s: float


class Parts(NamedTuple):
    """What a loop is made of."""

    settings: LoopSettings
    core: InvocationCore
    transport: ports.Transport
    storage: ports.StoragePort
    executors: ports.ExecutorPort
    classes: Classes
    clock: Callable[[], float]
    wall_clock: Callable[[], float]
    note: Callable[[str, str], None]


class Table:
    """Ports, core and sessions of one peer; the parts of the loop sit around it."""

    def __init__(self, parts: Parts) -> None:
        (
            self.settings, self.core, self.transport, self.storage, self.executors,
            self.classes, self.clock, self.wall_clock, self.note,
        ) = parts  # fmt: skip
        self.request_handler: Callable[[Client | Nested, Request], None] = (
            lambda origin, request: None
        )
        self.is_stopping = False
        self.failure = ""
        self.routes: dict[bytes, Session] = {}
        self.sessions: dict[SessionId, Session] = {}
        self.calls_count = 0
        self.backups: dict[str, tuple[int, int]] = {}  # directory to bytes done, total
        self._now_s = self.clock()
        self._busy_until_s = 0.0
        self._last_work_s = 0.0
        self._measure_due_s = 0.0
        self._effects: dict[type, Callable[[Any], None]] = {}

    def step(self, event: events.Event) -> None:
        """Step the core and carry its effects out."""
        self.carry_out(self.core.step(event, self._now_s))

    def carry_out(self, ordered: list[effects.Effect]) -> None:
        """Carry effects out in order."""
        handlers = self._effects
        for effect in ordered:
            handlers[type(effect)](effect)
