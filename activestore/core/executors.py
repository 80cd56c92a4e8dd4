"""Where calls run: which executor holds which copy, which slot takes the next call.

An executor with a call that runs long is *occupied*: small objects move away from it,
and as long as the maximum allows there is always one executor that is not occupied.
Short calls may queue in a slot, so that a busy object pays one write for many calls.

Rules of this file: it chooses and counts; what happens to calls is in `invocation`.

Source: design section 3 (executors, slots); reliability.md section 7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from activestore.core.calls import (
    SLOTS_MAX,
    Call,
    Copy,
    Executor,
    ExecutorState,
    Mailbox,
    MailboxState,
    Slot,
)
from activestore.core.effects import DropCopy, Effect, RetireExecutor, SpawnExecutor

# Calls that may stand in one slot, all short: one wake of the executor serves them all.
SLOT_QUEUE_MAX = 64
# Their summed mean run time: how long the last one may wait for its turn.
SLOT_BACKLOG_S = 0.002
# A first call older than this gets no more company in its slot.
HEAD_AGE_S = 0.002
# A state up to this size moves to another executor when its own is occupied.
MOVABLE_BYTES_MAX = 8 * 1024 * 1024
# Back-off before an executor that died young starts again, doubling up to the maximum.
RESPAWN_S = 0.05
RESPAWN_S_MAX = 10.0
# An executor beyond the configured number ends after this time without a call.
EXTRA_IDLE_S = 30.0


class PoolConfig(NamedTuple):
    """How many executors and slots, and what their copies may use.

    `activation_bytes_max`: summed sizes of activated states per executor.
    `memory_bytes_max`: resident memory of one executor above which copies are dropped.
    `long_run_s`: a call that runs longer makes its executor occupied.
    """

    executors: int = 2
    executors_max: int = 8
    slots: int = 4
    long_run_s: float = 0.02
    activation_bytes_max: int = 1 << 40
    memory_bytes_max: int = 1 << 40


class Pool:
    """The executors of one peer."""

    def __init__(self, config: PoolConfig, emit: Callable[[Effect], None]) -> None:
        self.config = config
        self.emit = emit
        self.executors: dict[int, Executor] = {}
        self._next_executor = 1
        self._next_copy = 1
        self.deaths_in_a_row = 0
        # Mailboxes that have lost a copy or a call, and may have nothing left.
        self.left: list[Mailbox] = []

    def spawn(self, now_s: float) -> Executor:
        """Order one more executor."""
        executor = Executor(self._next_executor, self.config.slots, now_s)
        self._next_executor += 1
        self.executors[executor.executor_id] = executor
        self.emit(SpawnExecutor(executor.executor_id))
        return executor

    def ready(self) -> Iterator[Executor]:
        """Yield the executors that take calls."""
        for executor in self.executors.values():
            if executor.state is ExecutorState.READY:
                yield executor

    @property
    def is_short(self) -> bool:
        """Whether fewer executors stay than are configured."""
        executors = self.executors.values()
        kept = sum(one.state is not ExecutorState.RETIRING for one in executors)
        return kept < self.config.executors

    def respawn_delay_s(self) -> float:
        """Return how long to wait before the next start after a death."""
        exponent = min(self.deaths_in_a_row, 16)
        return 0.0 if not exponent else min(RESPAWN_S * 2**exponent, RESPAWN_S_MAX)

    def ensure_free(self, now_s: float) -> None:
        """Order one more executor where all are occupied and the maximum allows."""
        if len(self.executors) >= self.config.executors_max:
            return
        for executor in self.executors.values():
            if executor.state is ExecutorState.STARTING:
                return
            if executor.state is ExecutorState.READY and not executor.is_occupied(
                now_s, self.config.long_run_s
            ):
                return
        self.spawn(now_s)

    def place(
        self, package: str, revision: bytes, now_s: float, avoid: Executor | None = None
    ) -> Executor | None:
        """Choose the executor for a new copy: free before occupied, then least loaded.

        Idle copies of another revision give way where no executor is without. Returns
        None where no executor can load this revision now.
        """
        ready = list(self.ready())
        able = [one for one in ready if self._can_load(one, package, revision)]
        if not able:
            for executor in ready:
                copies = self._other_revisions(executor, package, revision)
                if not any(copy.running for copy in copies):
                    for copy in copies:
                        self.passivate(copy)
                    able = [executor]
                    break
        best: Executor | None = None
        best_score: tuple[object, ...] = ()
        for executor in able:
            score = (
                executor is avoid,
                executor.is_silent,
                executor.is_occupied(now_s, self.config.long_run_s),
                executor.busy_slots,
                executor.state_bytes,
                len(executor.copies),
            )
            if best is None or score < best_score:
                best, best_score = executor, score
        return best

    def _can_load(self, executor: Executor, package: str, revision: bytes) -> bool:
        """Whether no copy of another revision of the package is there."""
        loaded = executor.packages.get(package)
        if loaded is None or loaded == revision:
            return True
        return not self._other_revisions(executor, package, revision)

    @staticmethod
    def _other_revisions(
        executor: Executor, package: str, revision: bytes
    ) -> list[Copy]:
        return [
            copy
            for copy in executor.copies.values()
            if copy.package == package and copy.revision != revision
        ]

    def free_slot(self, executor: Executor, call: Call, now_s: float) -> Slot | None:
        """Return the slot of `executor` that shall take `call`, None where none can now."""
        is_short = call.times is not None and call.times.is_short
        idle: Slot | None = None
        for slot in executor.slots:
            if not slot.queue:
                if idle is None:
                    idle = slot
            elif is_short and self.can_join(slot, call, now_s):
                return slot
        if idle is not None:
            return idle
        if len(executor.slots) < SLOTS_MAX and any(
            slot.queue[0].waits_nested for slot in executor.slots
        ):
            # All threads are taken and some only wait for nested calls: without one
            # more thread two chains could wait for each other for ever.
            extra = Slot(executor, len(executor.slots))
            executor.slots.append(extra)
            return extra
        return None

    @staticmethod
    def can_join(slot: Slot, call: Call, now_s: float) -> bool:
        """Whether `call` may queue in a slot that already has calls."""
        times, queue = call.times, slot.queue
        if times is None or not times.is_short or len(queue) >= SLOT_QUEUE_MAX:
            return False
        if now_s - slot.head_since_s > HEAD_AGE_S or slot.is_recalling:
            return False
        if queue[0].waits_nested:
            return False  # It may be a long time, and be waiting for this very call.
        last = queue[-1].times
        head = queue[0].times
        if last is None or head is None or not (last.is_short and head.is_short):
            return False
        return len(queue) * times.mean_s < SLOT_BACKLOG_S

    def add_copy(
        self, mailbox: Mailbox, executor: Executor, revision: bytes, package: str, *,
        is_reader: bool,
    ) -> Copy:  # fmt: skip
        """Note that `executor` is about to hold a copy; make room for it first."""
        copy = Copy(self._next_copy, mailbox, executor, is_reader=is_reader)
        self._next_copy += 1
        copy.revision = revision
        copy.package = package
        copy.version = mailbox.executed_version
        executor.packages[package] = revision
        executor.copies[copy.copy_id] = copy
        self.resize(copy, mailbox.state_bytes)
        self.make_room(executor, keep=copy)
        return copy

    def resize(self, copy: Copy, state_bytes: int) -> None:
        """Note the size of a copy's state."""
        if copy.copy_id in copy.executor.copies:
            copy.executor.state_bytes += state_bytes - copy.state_bytes
            copy.state_bytes = state_bytes

    def touch(self, copy: Copy) -> None:
        """Note that a copy is in use: it is the last to be passivated."""
        copies = copy.executor.copies
        if len(copies) > 1:
            copies[copy.copy_id] = copies.pop(copy.copy_id)

    def make_room(self, executor: Executor, keep: Copy | None = None) -> None:
        """Passivate the copies used longest ago until the states fit the budget."""
        if executor.state_bytes <= self.config.activation_bytes_max:
            return
        for copy in self.idle_copies(executor):
            if copy is not keep:
                self.passivate(copy)
            if executor.state_bytes <= self.config.activation_bytes_max:
                return

    def shrink(self, executor: Executor, memory_bytes: int) -> None:
        """React to the measured memory: over the budget, drop the older half of copies."""
        executor.memory_bytes = memory_bytes
        if memory_bytes <= self.config.memory_bytes_max:
            return
        idle = self.idle_copies(executor)
        for copy in idle[: max(1, len(idle) // 2)]:
            self.passivate(copy)

    @staticmethod
    def idle_copies(executor: Executor) -> list[Copy]:
        """Return the copies on which nothing runs, in order of last use."""
        return [copy for copy in executor.copies.values() if not copy.running]

    def passivate(self, copy: Copy) -> None:
        """Tell the executor to forget an idle copy."""
        self.forget(copy)
        self.emit(DropCopy(copy.executor.executor_id, copy.copy_id))

    def drop_aside(self, copy: Copy) -> None:
        """Drop a copy that only its last call has kept, where it still is."""
        executor = copy.executor
        self.left.append(copy.mailbox)
        if copy.copy_id in executor.copies:
            if executor.executor_id in self.executors:
                self.passivate(copy)
            else:
                self.forget(copy)

    def forget(self, copy: Copy) -> None:
        """Take a copy out of the tables; its executor does not have it any more."""
        mailbox, executor = copy.mailbox, copy.executor
        if executor.copies.pop(copy.copy_id, None) is None:
            return
        executor.state_bytes -= copy.state_bytes
        if mailbox.main is copy:
            mailbox.main = None
            mailbox.state = MailboxState.COLD
        if mailbox.reader is copy:
            mailbox.reader = None
        self.left.append(mailbox)

    def retire_idle(self, now_s: float) -> None:
        """End executors that had no call for a while, down to the configured number.

        Whichever they are: one that was started beside another may have outlived it.
        """
        ready = list(self.ready())
        extra_count = len(ready) - self.config.executors
        for executor in reversed(ready):
            if extra_count <= 0:
                return
            if executor.busy_slots or now_s - executor.idle_since_s < EXTRA_IDLE_S:
                continue
            extra_count -= 1
            for copy in self.idle_copies(executor):
                self.passivate(copy)
            executor.state = ExecutorState.RETIRING
            self.emit(RetireExecutor(executor.executor_id))
