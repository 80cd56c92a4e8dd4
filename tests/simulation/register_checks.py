"""What must hold in every history of registers, checked while it happens.

Source: reliability.md 3.5, I1 to I7.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from activestore.core.register import Register, electorate
from activestore.ids import ObjectId
from activestore.wire.replicas import Accepted, Config, Promise
from tests.simulation.register_disks import Disk, Row, State


class Broken(AssertionError):
    """An invariant does not hold."""


class Checks:
    """The invariants of one history, over all of its peers."""

    def __init__(self) -> None:
        self.values: dict[Any, tuple[Any, ...]] = {}
        self.configs: dict[Any, Config] = {}
        self.chains: dict[tuple[ObjectId, int], State] = {}
        self.seen: dict[ObjectId, int] = {}
        self.acked: dict[ObjectId, set[int]] = {}
        self.deleted: set[ObjectId] = set()
        self.is_forced = False
        self.acks = self.stale_reads = 0
        self.answers: dict[ObjectId, list[tuple[float, int]]] = {}

    def on_row(self, object_id: ObjectId, old: Row | None, new: Row) -> None:
        """I1: one value for one point. I3: nothing goes back. I4: none runs twice."""
        register, state = new.register, new.state
        if old is not None:
            self._check_forward(object_id, old.register, register)
        lineage = register.config.lineage
        key = (object_id, lineage, register.epoch.counter, register.number)
        config = register.config._replace(lineage=0)
        value = (register.epoch, config, register.is_deleted)
        known = self.values.setdefault(key, value)
        if known != value:
            raise Broken(f"I1: two values at {key}: {known} and {value}")
        if state is not None:
            key = (*key, "state")
            known_state = self.values.setdefault(key, (state,))
            if known_state != (state,):
                raise Broken(f"I1: two states at {key}: {known_state} and {state}")
            if len(set(state)) != len(state):
                raise Broken(f"I4: a request ran twice: {state}")

    @staticmethod
    def _check_forward(object_id: ObjectId, old: Register, new: Register) -> None:
        if new.promised.counter < old.promised.counter:
            raise Broken(f"I3: {object_id!r} promised {old.promised}, then {new}")
        if new.point < old.point:
            raise Broken(f"I3: {object_id!r} accepted {old.point}, then {new.point}")

    def on_sent(self, disk: Disk, message: object) -> None:
        """I7: what is said to be promised or accepted is on the disk."""
        if isinstance(message, Promise):
            row = disk.rows.get(message.object_id)
            if row is None or row.register.promised != message.epoch:
                raise Broken(f"I7: promised before it is durable: {message}")
            if row.register.point != message.accepted:
                raise Broken(f"I7: promised with something else: {message}")
        elif isinstance(message, Accepted):
            row = disk.rows.get(message.object_id)
            if row is None or row.register.epoch.counter < message.epoch.counter:
                raise Broken(f"I7: accepted before it is durable: {message}")
            register = row.register
            if register.epoch == message.epoch and register.number < message.number:
                raise Broken(f"I7: accepted before it is durable: {message}")

    def on_config(self, object_id: ObjectId, config: Config) -> None:
        """I6: one committed config for one version; each differs from the next by one."""
        key = (object_id, config.lineage, config.version)
        if self.configs.setdefault(key, config) != config:
            raise Broken(
                f"I6: two configs of one version: {self.configs[key]} {config}"
            )
        before = self.configs.get((object_id, config.lineage, config.version - 1))
        if before is not None:
            changes = set(electorate(before)) ^ set(electorate(config))
            if len(changes) > 2:
                raise Broken(f"I6: {before} to {config}")

    def on_answer(
        self,
        object_id: ObjectId,
        lineage: int,
        prefix: State,
        *,
        floor: int,
        request: int,
        now_s: float,
    ) -> None:
        """I2, I5: what was answered is on one chain of states, and none goes back.

        `prefix`: the state that the answer speaks of; `floor`: the longest that anybody
        had been told of when the request was begun; `request`: of a write, else -1.
        """
        key = (object_id, lineage)
        chain = self.chains.get(key, ())
        shorter, longer = sorted((chain, prefix), key=len)
        if longer[: len(shorter)] != shorter:
            raise Broken(f"I2: answered from {prefix}, and before from {chain}")
        self.chains[key] = longer
        self.acks += 1
        if self.is_forced:
            return
        least = floor + 1 if request >= 0 else floor
        if len(prefix) < least:
            raise Broken(f"I5: answered {len(prefix)}, but {least} was known before")
        if request >= 0:
            self.acked.setdefault(object_id, set()).add(request)
        self.seen[object_id] = max(self.seen.get(object_id, 0), len(prefix))
        self.answers.setdefault(object_id, []).append((now_s, len(prefix)))

    def on_served(self, object_id: ObjectId, *, was_deleted: bool) -> None:
        """R10: what was deleted when a request began is not served."""
        if was_deleted and not self.is_forced:
            raise Broken(f"R10: {object_id!r} is served after it was deleted")

    def on_stale(
        self, object_id: ObjectId, lineage: int, state: State, since_s: float
    ) -> None:
        """A stale read sees a committed state, and not one older than it says.

        `since_s`: what was answered by then is in the state.
        """
        key = (object_id, lineage)
        chain = self.chains.get(key, ())
        shorter, longer = sorted((chain, state), key=len)
        if longer[: len(shorter)] != shorter:
            raise Broken(f"I2: a stale read saw {state}, but {chain} was answered")
        self.chains[key] = longer
        self.stale_reads += 1
        known = max(
            (n for at_s, n in self.answers.get(object_id, ()) if at_s <= since_s),
            default=0,
        )
        if len(state) < known and not self.is_forced:
            raise Broken(f"stale: {len(state)} was read, {known} known at {since_s}")

    def on_kept(self, object_id: ObjectId, row: Row | None) -> None:
        """R10: in the end no voter has the state of what was deleted."""
        if row is not None and row.state is not None:
            raise Broken(f"R10: {object_id!r} is deleted, but a voter has {row}")

    def on_end(self, object_id: ObjectId, final: Iterable[int]) -> None:
        """No acknowledged write is lost."""
        lost = self.acked.get(object_id, set()) - set(final)
        if lost and not self.is_forced:
            raise Broken(f"I4: acknowledged and lost: {sorted(lost)}")
