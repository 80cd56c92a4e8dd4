"""What this disk forgot of an object that others keep: had from them again.

    state      -> StateLost: the core hands the lead over, and asks for the whole
    register   -> written anew, as it is known in memory

Damage is found by scrubbing, or by a call that meets it. Such a call does not fail: it
goes on where the object is led then.

Rules of this file: it asks the core, and writes nothing but a register that cannot be
read.

Source: reliability.md 4.2.
"""

from __future__ import annotations

from typing import Any, Protocol

from activestore.core.replication import Replication
from activestore.core.replication_events import ReplicationEvent, StateLost
from activestore.errors import ActiveStoreError, CorruptRecordError, UnavailableError
from activestore.ids import ObjectId
from activestore.peer import shipping
from activestore.peer.table import Table
from activestore.storage.engine import Damage

# An object has its state elsewhere too where so many members have it.
MEMBERS_MIN = 2


class Groups(Protocol):
    """What is needed of the shell of replication."""

    core: Replication

    def step(self, event: ReplicationEvent) -> None:
        """Step the core and carry its effects out."""

    def is_writing(self, object_id: ObjectId) -> bool:
        """Whether writes of an object are on their way to this disk."""


class Mending:
    """Has damaged copies of one peer brought back."""

    def __init__(self, table: Table, groups: Groups) -> None:
        self._table = table
        self._groups = groups

    def state_lost(self, object_id: ObjectId, damage: Damage) -> bool:
        """Have what is damaged brought back; False where nobody else has it.

        A register is written anew once no write is under way, which would do that too.
        """
        register = self._groups.core.register_of(object_id)
        if register is None or register.is_stateless:
            return False
        if damage.where.startswith("row register"):
            if not self._groups.is_writing(object_id):
                self._table.storage.write(
                    lambda engine: shipping.mend_register(engine, object_id, register),
                    _pass,
                )
            return True
        if len(register.config.members) < MEMBERS_MIN:
            return False
        self._groups.step(StateLost(object_id))
        return True

    def met(self, error: ActiveStoreError) -> ActiveStoreError:
        """Return what is told of an error of this disk: damage that others mend passes."""
        if type(error) is not CorruptRecordError or not error.object_id:
            return error
        object_id = ObjectId(error.object_id)
        damage = Damage(error.where, object_id, error.reason)
        if not self.state_lost(object_id, damage):
            return error
        self._table.note(
            "error", f"damaged on disk, met in use object={object_id.hex()} "
            f"where={error.where!r} reason={error.reason!r}",
        )  # fmt: skip
        return UnavailableError(
            f"object {object_id.hex()}",
            "the copy here is damaged; another member takes over",
        )


def _pass(_value: Any, _error: BaseException | None) -> None:
    """Take note of what needs no answer."""
