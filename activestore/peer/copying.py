"""This disk as that of a member: steps of copies, and registers, written in group commits.

What gathers while one commit runs goes into the next, in order: a lone step waits for
nobody, many share one sync.

Rules of this file: it decides nothing; the core hears of every step how it ended.

Source: reliability.md 3.2 ("fsync BEFORE any PROMISE or ACK"), 3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from activestore.core import replication_effects as wanted
from activestore.core import replication_events as happened
from activestore.core.register import vouch_of
from activestore.core.registers import Unkept
from activestore.errors import CorruptRecordError, StorageFullError
from activestore.ids import ObjectId
from activestore.peer import shipping
from activestore.peer.dating import Dating
from activestore.peer.table import Table
from activestore.storage.engine import ZERO_ID, Change, Engine, Row

# Steps that are written in one commit: it bounds how long the first waits.
STEPS_MAX = 256
# Rows that go with them and that nobody waits for.
UNKEPT_MAX = 16
# Of a reason in a message to another peer.
TEXT_CHARS_MAX = 500
# Stands for a register that cannot be read: a copy goes with that too.
_DAMAGED = b"damaged"


class Copying:
    """The steps of copies that one peer is to write."""

    def __init__(
        self,
        table: Table,
        dating: Dating,
        tell: Callable[[happened.Stored], None],
        unkept: Callable[[int], Sequence[Unkept]],
    ) -> None:
        self._table = table
        self._dating = dating
        self._tell = tell
        self._unkept = unkept
        self._waiting: list[wanted.Store] = []
        self._is_writing = False
        # Copies that are to go, and which this disk refused to let go of.
        self._left: dict[ObjectId, tuple[Sequence[Row], bytes]] = {}
        # Registers that it did not let go of, of objects that are plain ones again.
        self._shared: dict[ObjectId, tuple[int, bytes]] = {}

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or is being written."""
        left = self._left or self._shared
        return not (self._waiting or self._is_writing or left)

    def add(self, effect: wanted.Store) -> None:
        """Have a step written; `Stored` is told once it is on disk, or refused."""
        self._waiting.append(effect)
        self._write_more()

    def remove(self, object_id: ObjectId, rows: Sequence[Row]) -> None:
        """Have a copy and its register go; `rows`: what is kept in their stead."""
        self._remove(object_id, rows, None)

    def make_plain(self, object_id: ObjectId, counter: int) -> None:
        """Have the register of an object go that only this peer has; the object stays."""
        self._make_plain(object_id, counter, None)

    def remove_again(self) -> None:
        """Have go what a full disk has kept; called now and then."""
        left, self._left = self._left, {}
        for object_id, (rows, register) in left.items():
            self._remove(object_id, rows, register)
        shared, self._shared = self._shared, {}
        for object_id, (counter, known) in shared.items():
            self._make_plain(object_id, counter, known)

    def _make_plain(
        self, object_id: ObjectId, counter: int, register: bytes | None
    ) -> None:
        """Remove a register, unless it is another one than this by now."""

        def write(engine: Engine) -> bytes | None:
            known = engine.row("register", object_id)
            if known is None or (register is not None and known != register):
                return None
            rows = [shipping.register_row(object_id, None)]
            change = Change(object_id, epoch=counter, rows=rows)
            if engine.head(object_id) is None:  # It was deleted meanwhile.
                change = Change(ZERO_ID, rows=rows)
            (refused,) = engine.commit([change])
            return known if isinstance(refused, StorageFullError) else None

        def then(kept: Any, _error: BaseException | None) -> None:
            if kept is not None:
                self._shared[object_id] = (counter, kept)

        self._table.storage.write(write, then)

    def _remove(
        self, object_id: ObjectId, rows: Sequence[Row], register: bytes | None
    ) -> None:
        """Remove a copy, unless it is another one than that of this register by now."""

        def remove(engine: Engine) -> bytes | None:
            try:
                known = engine.row("register", object_id)
            except CorruptRecordError:
                known = _DAMAGED
            if register is not None and known != register:
                return None
            try:
                shipping.remove_copy(engine, object_id, rows)
            except StorageFullError:
                return known
            return None

        def then(kept: Any, _error: BaseException | None) -> None:
            if kept is not None:
                self._left[object_id] = (rows, kept)

        self._table.storage.write(remove, then)

    def _write_more(self) -> None:
        if not self._waiting or self._is_writing:
            return
        ordered = self._waiting[:STEPS_MAX]
        del self._waiting[:STEPS_MAX]
        now_s, wall_s = self._table.clock(), self._dating.wall_s()
        copies = [
            shipping.Copy(
                one.object_id, one.register, one.base, one.change, one.is_delete,
                vouch_of(one.heard, now_s, wall_s),
            )
            for one in ordered
        ]  # fmt: skip
        for object_id, register, heard in self._unkept(UNKEPT_MAX):
            vouch = vouch_of(heard, now_s, wall_s)
            copies.append(shipping.Copy(object_id, register, None, None, vouch=vouch))
        self._is_writing = True

        def then(found: Any, error: BaseException | None) -> None:
            self._is_writing = False
            if error is not None:
                found = [("space", str(error))] * len(ordered)
            for effect, (problem, text) in zip(ordered, found, strict=False):
                told = text[:TEXT_CHARS_MAX]
                self._tell(happened.Stored(effect.token, problem, told))
            self._write_more()

        self._table.storage.write(
            lambda engine: shipping.apply_copies(engine, copies), then
        )
