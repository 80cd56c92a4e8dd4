"""The storage of a simulated peer: the production's order of commits, in virtual time.

What is committed lies on a `MemoryDisk`, which survives a crash. What was ordered and
not yet committed is lost with the peer, and so is the news of a commit that was durable
already: between the two there is a moment.

Rules of this file: what is refused, and what a refusal drags along, is
`peer.storage_thread`'s; here is only when things happen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

from activestore.errors import ActiveStoreError, StorageFullError
from activestore.peer.storage_thread import (
    CHANGES_PER_COMMIT_MAX,
    RELAXED_S,
    StorageThreads,
    _called,
    _Function,
    _Load,
    _Order,
)
from activestore.storage.engine import Change
from activestore.storage.memory_engine import MemoryDisk, MemoryEngine
from activestore.testing.network import Latency


class DiskSpeed(NamedTuple):
    """How long a simulated disk takes."""

    commit: Latency = Latency(0.000_3, 0.001)
    read: Latency = Latency(0.000_02, 0.000_05)
    news: Latency = Latency(0.000_01, 0.000_03)


class FaultyEngine(MemoryEngine):
    """An engine that refuses, or fails, when it is told to."""

    def __init__(
        self,
        disk: MemoryDisk,
        *,
        disk_budget_bytes: int,
        wall_clock: Callable[[], float],
    ) -> None:
        super().__init__(
            disk, disk_budget_bytes=disk_budget_bytes, wall_clock=wall_clock
        )
        self.refusals_left = 0
        self.is_broken = False
        self.commits_count = 0

    def commit(self, changes: Sequence[Change]) -> list[ActiveStoreError | None]:
        """Apply changes, or refuse them as a full disk does, or fail as a dead one."""
        if self.is_broken:
            raise OSError(5, "simulated: the disk has failed")
        if self.refusals_left > 0:
            self.refusals_left -= 1
            budget_bytes = self.usage().budget_bytes
            return [StorageFullError(budget_bytes, budget_bytes) for _ in changes]
        self.commits_count += 1
        return super().commit(changes)


class _Orders:
    """A queue as the storage threads have it; putting something is noticed at once."""

    def __init__(self, put: Callable[[Any], None]) -> None:
        self.put = put


class SimStorage(StorageThreads):
    """The StoragePort of one simulated peer, without threads."""

    def __init__(
        self,
        engine: FaultyEngine,
        rng: Random,
        later: Callable[[float, Callable[[], None]], None],
        wake: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        # Not the base's: it starts threads and opens a pipe.
        self.engine = engine
        self._disk = engine
        self.speed = DiskSpeed()
        self.is_closing = False
        self.has_failed = False
        self._rng = rng
        self._later = later
        self._wake = wake
        self._clock = clock
        self._orders: Any = _Orders(self._put_order)
        self._reads: Any = _Orders(self._put_read)
        self._waiting: deque[_Order | _Function] = deque()
        self._done: deque[Any] = deque()
        self._broken = {}
        self._relaxed = []
        self._relaxed_due_s = 0.0
        self._is_writing = False
        self._reader_free_s = 0.0
        self._news_s = 0.0

    # -- the port ----------------------------------------------------------------------

    def maintain(
        self,
        function: Callable[[Any], Any],
        then: Callable[[Any, BaseException | None], None],
    ) -> None:
        """Run a function that reads for long; here it takes no longer than others."""
        self.read(function, then)

    def finished(self) -> list[Any]:
        """Return what has ended since the last time."""
        found = list(self._done)
        self._done.clear()
        return found

    def has_news(self) -> bool:
        """Return whether `finished` would return something."""
        return bool(self._done)

    def wake_fd(self) -> int:
        """Return a number that stands for a descriptor."""
        return -2

    def wake(self) -> None:
        """Have the loop look."""
        self._wake()

    @property
    def is_writing(self) -> bool:
        """Whether a commit is under way; `close` of a real one waits for it."""
        return self._is_writing

    def close(self) -> None:
        """Carry out what is ordered, at once."""
        self.is_closing = True
        while self._waiting or self._relaxed:
            batch, function = self._next_batch(is_last=True)
            self._carry_out(batch, function)
        self.engine.close()

    # -- writing -----------------------------------------------------------------------

    def _put_order(self, order: _Order | _Function) -> None:
        self._waiting.append(order)
        self._begin_write()

    def _begin_write(self) -> None:
        """Begin a commit with all that waits, unless one runs."""
        if self._is_writing:
            return
        batch, function = self._next_batch()
        if not batch and function is None:
            if self._relaxed:
                self._later(
                    max(0.0, self._relaxed_due_s - self._clock()), self._begin_write
                )
            return
        self._is_writing = True

        def go_on() -> None:
            self._is_writing = False
            self._begin_write()

        def end() -> None:
            took_s = self._carry_out(batch, function)
            if took_s:
                self._later(took_s, go_on)
            else:
                go_on()

        duration_s = self.speed.commit.draw_s(self._rng) if batch else 0.0
        self._later(duration_s, end)

    def _next_batch(
        self, *, is_last: bool = False
    ) -> tuple[list[_Order], _Function | None]:
        """Take the orders of one commit, and the function that comes after them."""
        batch: list[_Order] = []
        function: _Function | None = None
        count = 0
        while self._waiting and count < CHANGES_PER_COMMIT_MAX:
            order = self._waiting.popleft()
            if isinstance(order, _Function):
                function = order
                break
            relaxed_s = RELAXED_S.get(order.changes[0].durability, 0.0)
            if relaxed_s:
                due_s = self._clock() + relaxed_s
                if not self._relaxed or due_s < self._relaxed_due_s:
                    self._relaxed_due_s = due_s
                self._relaxed.append(order)
                continue
            batch.append(order)
            count += len(order.changes)
        is_due = is_last or self._clock() >= self._relaxed_due_s
        if batch or function is not None or is_due:
            batch = self._with_relaxed(batch)
        return batch, function

    def _carry_out(self, batch: list[_Order], function: _Function | None) -> float:
        """Do what was ordered; return how long the commits of a function still take."""
        if batch:
            self._commit(batch)
        if function is None:
            return 0.0
        commits_count = self._disk.commits_count
        called = _called(function, self.engine)
        if self._disk.commits_count == commits_count:
            self._tell(called)
            return 0.0
        took_s = self.speed.commit.draw_s(self._rng)
        self._later(took_s, lambda: self._tell(called))
        return took_s

    # -- reading -----------------------------------------------------------------------

    def _put_read(self, order: _Function | _Load) -> None:
        now_s = self._clock()
        duration_s = self.speed.read.draw_s(self._rng)
        self._reader_free_s = max(self._reader_free_s, now_s) + duration_s

        def end() -> None:
            if isinstance(order, _Function):
                self._tell(_called(order, self.engine))
            else:
                self._tell(self._load(order))

        self._later(self._reader_free_s - now_s, end)

    # -- news --------------------------------------------------------------------------

    def _tell(self, news: object) -> None:
        def arrive() -> None:
            self._done.append(news)
            self._wake()

        # In order, and not at once: a crash may come in between.
        now_s = self._clock()
        self._news_s = max(self._news_s, now_s + self.speed.news.draw_s(self._rng))
        self._later(self._news_s - now_s, arrive)
