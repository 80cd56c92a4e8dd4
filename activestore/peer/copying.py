"""This disk as that of a member: steps of copies, and registers, written in group commits.

What gathers while one commit runs goes into the next, in order: a lone step waits for
nobody, many share one sync.

Rules of this file: it decides nothing; the core hears of every step how it ended.

Source: reliability.md 3.2 ("fsync BEFORE any PROMISE or ACK"), 3.3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from activestore.core import replication_effects as wanted
from activestore.core import replication_events as happened
from activestore.peer import shipping
from activestore.peer.table import Table

# Steps that are written in one commit: it bounds how long the first waits.
STEPS_MAX = 256


class Copying:
    """The steps of copies that one peer is to write."""

    def __init__(self, table: Table, tell: Callable[[happened.Stored], None]) -> None:
        self._table = table
        self._tell = tell
        self._waiting: list[wanted.Store] = []
        self._is_writing = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or is being written."""
        return not (self._waiting or self._is_writing)

    def add(self, effect: wanted.Store) -> None:
        """Have a step written; `Stored` is told once it is on disk, or refused."""
        self._waiting.append(effect)
        self._write_more()

    def _write_more(self) -> None:
        if not self._waiting or self._is_writing:
            return
        ordered = self._waiting[:STEPS_MAX]
        del self._waiting[:STEPS_MAX]
        copies = [
            shipping.Copy(
                one.object_id, one.register, one.base, one.change, one.is_delete
            )
            for one in ordered
        ]
        self._is_writing = True

        def then(found: Any, error: BaseException | None) -> None:
            self._is_writing = False
            if error is not None:
                found = ["space"] * len(ordered)
            text = str(error) if error is not None else ""
            for effect, problem in zip(ordered, found, strict=True):
                self._tell(happened.Stored(effect.token, problem, text))
            self._write_more()

        self._table.storage.write(
            lambda engine: shipping.apply_copies(engine, copies), then
        )
