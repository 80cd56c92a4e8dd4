"""A disk of the register histories: what was ordered is durable after a while, in order.

A power cut keeps a prefix of what was ordered. A state is the tuple of the requests that
made it, in order: so that states can be compared, and a request that ran twice is seen.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from activestore.core.register import Heard, Register
from activestore.core.registers import Unkept
from activestore.core.replication_effects import Store
from activestore.ids import ObjectId

State = tuple[int, ...]


class Row(NamedTuple):
    """A register and the state that was written with it; None: gone, or at a witness.

    `heard`: what is known to be committed; all peers of a world have one clock.
    """

    register: Register
    state: State | None
    heard: Heard | None = None


class Write(NamedTuple):
    """A write that the leader numbered; `before`: the state that it was made from."""

    object_id: ObjectId
    register: Register
    before: State | None
    state: State | None


class Disk:
    """The rows of one peer, and what is under way to them."""

    def __init__(self) -> None:
        self.rows: dict[ObjectId, Row] = {}
        self.plain: dict[ObjectId, tuple[int, State]] = {}
        self.pending: deque[tuple[str, Any]] = deque()
        self.is_full = False

    def copy(self) -> Disk:
        """Return what a backup of it holds: what is durable."""
        other = Disk()
        other.rows, other.plain = dict(self.rows), dict(self.plain)
        return other

    def apply(self, kind: str, order: Any) -> str:
        """Make one order durable; return what its disk says: "" for done."""
        if kind == "store":
            return self._store(order)
        if kind == "write":
            return self._write(order)
        if kind == "beside":
            return self._beside(order)
        if kind == "remove":
            self.rows.pop(order, None)
        elif kind == "unshare":
            object_id, counter = order
            row = self.rows.pop(object_id, None)
            if row is not None and row.state is not None:
                self.plain[object_id] = (counter, row.state)
        elif kind == "share":
            object_id, register = order
            _, state = self.plain.pop(object_id)
            self.rows[object_id] = Row(register, state)
        elif kind == "plain":
            object_id, counter, state = order
            self.plain[object_id] = (counter, state)
        return ""

    def _store(self, order: Store) -> str:
        object_id, register = order.object_id, order.register
        old = self.rows.get(object_id)
        state = None if old is None else old.state
        point = None if old is None else old.register.point
        if order.base is not None and order.base != point:
            return "base"
        is_delta = order.base is not None and order.change is not None
        if is_delta and (old is None or old.state is None):
            return "base"  # It is damaged.
        is_row = order.base is None and order.change is None and not order.is_delete
        is_kept = register.has_state and old is not None
        if is_row and is_kept and point is not None and point.number != register.number:
            return "base"
        grows = order.change is not None or old is None
        if grows and self.is_full:
            return "space"
        if order.is_delete or not register.has_state:
            state = None
        elif order.change is not None:
            what, value = order.change
            assert (what == "whole") == (order.base is None)
            state = value if what == "whole" else (*(state or ()), *value)
        self.rows[object_id] = Row(register, state, order.heard)
        return ""

    def _beside(self, order: Unkept) -> str:
        old = self.rows.get(order.object_id)
        assert old is not None, "a register was removed before this was ordered"
        assert old.register == order.register, "another one was ordered before this"
        self.rows[order.object_id] = old._replace(heard=order.heard)
        return ""

    def _write(self, order: Write) -> str:
        old = self.rows.get(order.object_id)
        if self.is_full and order.state is not None:
            return "space"
        if old is None or old.state != order.before:
            return "base"  # What it was made from was refused.
        self.rows[order.object_id] = Row(order.register, order.state)
        return ""
