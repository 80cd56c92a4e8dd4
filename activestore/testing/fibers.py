"""Threads that run one at a time: user code that waits in the middle of virtual time.

A method that waits for a nested call, and a client's program that waits for a result,
are ordinary blocking code. Each has a thread of its own, and one baton goes round: who
resumes a fiber waits until it parks or ends. So nothing ever runs at the same time, and
the order is the same at every run.

Rules of this file: it knows no time; who is resumed when is the callers' affair.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

# How often a fiber that is to end is told so; user code may catch what it is told with.
KILLS_MAX = 8


class FiberKilled(BaseException):
    """Raised in a fiber whose process is gone; not an Exception, so few catch it."""


class Fiber:
    """One thread that runs only while somebody waits in `resume`."""

    def __init__(self, run: Callable[[], None], name: str) -> None:
        self._run = run
        self._go = threading.Lock()
        self._back = threading.Lock()
        self._go.acquire()
        self._back.acquire()
        self._raised: BaseException | None = None
        self.error: BaseException | None = None
        self.is_over = False
        self.has_begun = False
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def resume(self, error: BaseException | None = None) -> None:
        """Let it run until it parks or ends; `error` is raised where it parked.

        Raises:
            BaseException: what its code raised in the end, once.
        """
        if self.is_over:
            return
        self._raised = error
        if self.has_begun:
            self._go.release()
        else:
            self.has_begun = True
            self._thread.start()
        self._back.acquire()
        if self._has_ended():
            self._thread.join()
            error, self.error = self.error, None
            if error is not None:
                raise error

    def _has_ended(self) -> bool:
        return self.is_over

    def park(self) -> None:
        """Hand the baton back and wait to be resumed; only from inside.

        Raises:
            BaseException: what `resume` was given.
        """
        self._back.release()
        self._go.acquire()
        error, self._raised = self._raised, None
        if error is not None:
            raise error

    @property
    def is_current(self) -> bool:
        """Whether the calling code runs in it."""
        return threading.current_thread() is self._thread

    def kill(self) -> None:
        """End it; code that goes on all the same is left parked for ever."""
        if not self.has_begun:
            self.is_over = True
            return
        for _ in range(KILLS_MAX):
            if self.is_over:
                return
            try:
                self.resume(FiberKilled())
            except Exception:  # noqa: BLE001 - a process that is gone tells nobody
                return

    def _main(self) -> None:
        try:
            if self._raised is not None:
                raise self._raised
            self._run()
        except FiberKilled:
            pass
        except BaseException as error:  # noqa: BLE001 - handed to who resumed it
            self.error = error
        self.is_over = True
        self._back.release()
