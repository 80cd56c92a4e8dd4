"""The storage threads: one writes in group commits, one reads, one does what takes long.

The writer takes everything that was ordered while the last commit ran, up to a bound,
and commits it in one transaction: a lone call waits for nobody, many calls share one
sync. Changes of classes with a relaxed durability wait for company up to their
interval. The keeper copies backups, so that no read waits behind one; it is started
when it is first needed.

Rules of this file: orders of one object are carried out in order; after a refused
change all later ones of the same object are refused too, until the core begins anew
from what is committed: it orders the refused version again, or loads the object. After
a disk error nothing more is written.

Source: design section 6; reliability.md 4.2.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from activestore.errors import ActiveStoreError, ObjectNotFoundError, UnavailableError
from activestore.ids import ObjectId
from activestore.peer.clock import monotonic_s
from activestore.peer.ports import Called, CommitsDone, Loaded, StorageFailed
from activestore.storage.engine import (
    Change,
    Durability,
    Engine,
    not_built,
)

_log = logging.getLogger(__name__)

# Changes of one transaction: bounds how long the first one waits for the last.
CHANGES_PER_COMMIT_MAX = 256
# How long changes of relaxed durability may wait for a commit, in seconds.
RELAXED_S = {Durability.INTERVAL: 1.0, Durability.NONE: 60.0}

# Objects with a refused change that are kept in mind. The oldest go first: what was ordered
# on top of their refused change has long been refused.
BROKEN_MAX = 65_536
# At least what a pipe holds: one read empties it.
PIPE_BYTES_MAX = 1 << 16
# How long a stop waits for the keeper: a copy of gigabytes cannot be cut short.
KEEPER_END_S = 5.0


class _Order(NamedTuple):
    token: int
    changes: Sequence[Change]


class _Function(NamedTuple):
    run: Callable[[Engine], Any]
    then: Callable[[Any, BaseException | None], None]


class _Load(NamedTuple):
    object_id: ObjectId
    is_reader: bool
    is_copy: bool = False


class StorageThreads:
    """Writer, reader and keeper around one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._orders: queue.SimpleQueue[_Order | _Function | None] = queue.SimpleQueue()
        self._reads: queue.SimpleQueue[_Function | _Load | None] = queue.SimpleQueue()
        self._upkeep: queue.SimpleQueue[_Function | None] = queue.SimpleQueue()
        self._done: deque[Any] = deque()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._is_awake = False
        self._broken: dict[ObjectId, int] = {}
        self._relaxed: list[_Order] = []
        self._relaxed_due_s = 0.0
        self.has_failed = False
        self.is_closing = False
        self._keeper: threading.Thread | None = None
        self._writer = threading.Thread(
            target=self._write_all, name="writer", daemon=True
        )
        self._reader = threading.Thread(
            target=self._read_all, name="reader", daemon=True
        )
        self._writer.start()
        self._reader.start()

    # -- from the loop -----------------------------------------------------------------

    def commit(self, token: int, changes: Sequence[Change]) -> None:
        """Order changes; answered by CommitsDone. Orders are carried out in order."""
        self._orders.put(_Order(token, changes))

    def load(self, object_id: bytes, *, is_reader: bool, is_copy: bool = False) -> None:
        """Read an object; answered by Loaded. `is_copy`: of one led elsewhere."""
        if not is_reader and object_id in self._broken:
            # Through the writer: what was ordered before this must be judged before.
            mended = ObjectId(object_id)
            self.write(lambda _: self._broken.pop(mended, None), _pass)
        self._reads.put(_Load(ObjectId(object_id), is_reader, is_copy))

    def read(
        self,
        function: Callable[[Engine], Any],
        then: Callable[[Any, BaseException | None], None],
    ) -> None:
        """Run a reading function in the reader thread; `then` runs in the loop."""
        self._reads.put(_Function(function, then))

    def write(
        self,
        function: Callable[[Engine], Any],
        then: Callable[[Any, BaseException | None], None],
    ) -> None:
        """Run a writing function in the writer thread, after commits ordered before."""
        self._orders.put(_Function(function, then))

    def maintain(
        self,
        function: Callable[[Engine], Any],
        then: Callable[[Any, BaseException | None], None],
    ) -> None:
        """Run a function that reads for long in the keeper thread, one at a time.

        It should look at `is_closing` now and then, and raise where that is set.
        """
        if self._keeper is None:
            self._keeper = threading.Thread(
                target=self._keep_all, name="keeper", daemon=True
            )
            self._keeper.start()
        self._upkeep.put(_Function(function, then))

    def finished(self) -> list[Any]:
        """Return what has ended since the last time."""
        # The pipe is emptied before the news are taken, also where there are none: what is
        # told from now on writes to it anew, and a byte left in it would keep the loop
        # from ever blocking.
        if self._is_awake:
            self._is_awake = False
            try:
                os.read(self._wake_read, PIPE_BYTES_MAX)
            except BlockingIOError:
                pass
        found = []
        while self._done:
            found.append(self._done.popleft())
        return found

    def wake_fd(self) -> int:
        """Return the descriptor that becomes readable when something has ended."""
        return self._wake_read

    def wake(self) -> None:
        """Make `wake_fd` readable; for signal handlers too."""
        try:
            os.write(self._wake_write, b"x")
        except BlockingIOError:
            pass  # The pipe is full of wake-ups already.
        # The flag comes last: the loop clears it and then empties the pipe, so a byte
        # that came after its flag would stay there, and the loop would never block.
        self._is_awake = True

    def close(self) -> None:
        """Carry out what is ordered, then stop and close the engine."""
        self.is_closing = True
        self._orders.put(None)
        self._reads.put(None)
        self._upkeep.put(None)
        self._writer.join()
        self._reader.join()
        if self._keeper is not None:
            self._keeper.join(KEEPER_END_S)
            if self._keeper.is_alive():
                # The engine must not be closed under it. Nothing is lost: the process
                # ends, and with it the lock.
                _log.warning("stopping in the middle of a backup")
                return
        self.engine.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    # -- in the threads ----------------------------------------------------------------

    def _tell(self, news: object) -> None:
        self._done.append(news)
        self.wake()

    def _write_all(self) -> None:
        while True:
            batch, function, is_last = self._collect()
            if batch:
                self._commit(batch)
            if function is not None:
                called = _called(function, self.engine)
                if getattr(called.error, "errno", 0) == errno.EIO:
                    self._fail(f"{type(called.error).__name__}: {called.error}")
                self._tell(called)
            if is_last:
                return

    def _fail(self, reason: str) -> None:
        self.has_failed = True
        self._tell(StorageFailed(reason))

    def _collect(self) -> tuple[list[_Order], _Function | None, bool]:
        """Wait for orders; return those of one commit, what comes after, whether to end."""
        batch: list[_Order] = []
        count = 0
        while True:
            try:
                order = self._next_order(may_wait=not batch)
            except queue.Empty:
                # Nobody else is waiting: what is relaxed goes when it is due or in
                # company.
                if batch or monotonic_s() >= self._relaxed_due_s:
                    return self._with_relaxed(batch), None, False
                continue
            if order is None:
                return self._with_relaxed(batch), None, True
            if isinstance(order, _Function):
                return self._with_relaxed(batch), order, False
            relaxed_s = RELAXED_S.get(order.changes[0].durability, 0.0)
            if relaxed_s:
                if not self._relaxed:
                    self._relaxed_due_s = monotonic_s() + relaxed_s
                self._relaxed_due_s = min(
                    self._relaxed_due_s, monotonic_s() + relaxed_s
                )
                self._relaxed.append(order)
                if len(self._relaxed) < CHANGES_PER_COMMIT_MAX:
                    continue
                return self._with_relaxed(batch), None, False
            batch.append(order)
            count += len(order.changes)
            if count >= CHANGES_PER_COMMIT_MAX:
                return self._with_relaxed(batch), None, False

    def _next_order(self, *, may_wait: bool) -> _Order | _Function | None:
        if not may_wait:
            return self._orders.get_nowait()
        if not self._relaxed:
            return self._orders.get()
        return self._orders.get(timeout=max(0.0, self._relaxed_due_s - monotonic_s()))

    def _with_relaxed(self, batch: list[_Order]) -> list[_Order]:
        if not self._relaxed:
            return batch
        relaxed, self._relaxed = self._relaxed, []
        return relaxed + batch

    def _commit(self, batch: list[_Order]) -> None:
        if self.has_failed:
            error = UnavailableError(
                "storage", "the disk has failed; the peer is stopping"
            )
            self._tell(CommitsDone([(order.token, error) for order in batch]))
            return
        changes: list[Change] = []
        spans: list[tuple[int, int, int, ActiveStoreError | None]] = []
        for order in batch:
            refusal = self._refusal(order)
            start = len(changes)
            if refusal is None:
                changes.extend(order.changes)
            spans.append((order.token, start, len(changes), refusal))
        try:
            results = self.engine.commit(changes) if changes else []
        except Exception as error:  # noqa: BLE001 - a dead thread would answer nobody
            # OSError: the disk. Anything else is our bug; the peer stops all the same.
            self._fail(f"{type(error).__name__}: {error}")
            told = UnavailableError("storage", f"the disk failed: {error}")
            self._tell(CommitsDone([(order.token, told) for order in batch]))
            return
        done: list[tuple[int, ActiveStoreError | None]] = []
        for (token, start, end, refusal), order in zip(spans, batch, strict=True):
            error_found = refusal or next((r for r in results[start:end] if r), None)
            if error_found is not None:
                self._note_broken(order)
            done.append((token, error_found))
        self._tell(CommitsDone(done))

    def _note_broken(self, order: _Order) -> None:
        """Remember what was refused: each object of a group, for all were."""
        for change in order.changes:
            if not change.has_effect:
                continue  # Nothing builds on an answer.
            self._broken.setdefault(change.object_id, change.version)
            if len(self._broken) > BROKEN_MAX:
                del self._broken[next(iter(self._broken))]

    def _refusal(self, order: _Order) -> ActiveStoreError | None:
        """Refuse what builds on a refused change; the core then begins from the committed."""
        if not self._broken:
            return None
        for change in order.changes:
            broken = self._broken.get(change.object_id)
            if broken is None or change.state is not None:  # It is built on nothing.
                continue
            if change.version > broken:
                return not_built(change.object_id)
        for change in order.changes:
            self._broken.pop(change.object_id, None)
        return None

    def _read_all(self) -> None:
        while True:
            order = self._reads.get()
            if order is None:
                return
            if isinstance(order, _Function):
                self._tell(_called(order, self.engine))
            else:
                self._tell(self._load(order))

    def _keep_all(self) -> None:
        while (order := self._upkeep.get()) is not None:
            self._tell(_called(order, self.engine))

    def _load(self, order: _Load) -> Loaded:
        loaded = Loaded(
            order.object_id, order.is_reader, None, None, None, order.is_copy
        )
        try:
            before = self._register_of(order)
            found = self.engine.load(order.object_id)
            after = self._register_of(order)
        except ActiveStoreError as error:
            return loaded._replace(error=error)
        except Exception as error:  # noqa: BLE001 - a dead thread would answer nobody
            told = UnavailableError(
                "storage", f"cannot read: {type(error).__name__}: {error}"
            )
            return loaded._replace(error=told)
        if found is None:
            missing = ObjectNotFoundError(order.object_id, (self.engine.peer_id,))
            return loaded._replace(error=missing)
        # A state is written together with its register, which never goes back: where it
        # is the same before and after, it is that of the state.
        register = before if before == after else None
        return loaded._replace(head=found[0], state=found[1], register=register)

    def _register_of(self, order: _Load) -> bytes | None:
        return self.engine.row("register", order.object_id) if order.is_copy else None


def _pass(_value: Any, _error: BaseException | None) -> None:
    """Take note of what needs no answer."""


def _called(function: _Function, engine: Engine) -> Called:
    try:
        return Called(function.then, function.run(engine), None)
    except Exception as error:  # noqa: BLE001 - handed to the loop, which answers with it
        return Called(function.then, None, error)
