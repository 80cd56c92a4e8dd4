"""Waiting for answers on one socket with many threads: the leader and the pump.

A thread that waits for a result reads the socket itself and serves the others too: it
is the *leader*. The others sleep and one of them takes over when the leader has its
result. Futures and streams that nobody waits for are served by a pump thread, which
starts with the first of them and stands back while some thread leads.

Rules of this file: it does no I/O; one turn of it is its subclass's. Nobody waits under
the lock. What a user's callback does happens outside the lock.

Source: design section 4.
"""

from __future__ import annotations

import abc
import threading
import time
from collections.abc import Callable
from typing import Any

from activestore.client.requests import Request
from activestore.errors import ActiveStoreError, CancelledError

# The pump looks this often after records that wait for company.
PUMP_TICK_S = 0.001
# For this long after a thread led, the pump leaves the socket to such threads.
STAND_BACK_S = 0.005

_now = time.monotonic


class Waiting(abc.ABC):
    """Who reads the socket, and who is told what came."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._leader = 0
        self._led_s = 0.0
        self._waiters: list[Any] = []
        # Records of small messages that wait for others to share their frame, by route.
        self._records: dict[bytes, list[bytes]] = {}
        self._pump: threading.Thread | None = None
        self._pump_wake = threading.Event()
        self._unwaited = 0
        self.is_closed = False

    @abc.abstractmethod
    def _turn(self, wait_s: float) -> None:
        """Send what waits, take what is there, or wait for it once."""

    @abc.abstractmethod
    def _flush_records(self) -> None:
        """Send the records that wait for company; under the lock."""

    @abc.abstractmethod
    def abandon(self, request: Request, error: ActiveStoreError) -> None:
        """End a request from this side."""

    def wait(self, request: Request, until_s: float | None = None) -> bool:
        """Wait until the request has ended; False where `until_s` passed before.

        An exception in the waiting thread, such as KeyboardInterrupt, cancels the
        request.
        """
        return self.wait_for(lambda: request.is_done, request, until_s)

    def wait_for(
        self,
        is_over: Callable[[], bool],
        request: Request,
        until_s: float | None = None,
    ) -> bool:
        """Wait for `is_over`, which only incoming messages can make true."""
        if is_over():
            return True
        me = threading.get_ident()
        try:
            while not is_over():
                if until_s is not None and _now() >= until_s:
                    return False
                if self._lead(me):
                    try:
                        self._turn_until(is_over, until_s)
                    finally:
                        self._hand_over()
                else:
                    self._follow(request, is_over, until_s)
        except (KeyboardInterrupt, SystemExit):
            self.abandon(request, CancelledError(request.where))
            raise
        finally:
            self._pass_on()
        return True

    def _lead(self, me: int) -> bool:
        with self._lock:
            if self._leader in (0, me):
                self._leader = me
                return True
        return False

    def _hand_over(self) -> None:
        with self._lock:
            self._leader = 0
            self._led_s = _now()
            waiter = self._waiters[0] if self._waiters else None
        if waiter is not None:
            waiter.set()

    def _pass_on(self) -> None:
        """Wake another waiter where nobody leads: we may have been woken for that."""
        if self._waiters and not self._leader:
            with self._lock:
                heir = self._waiters[0] if self._waiters else None
            if heir is not None:
                heir.set()

    def _turn_until(self, is_over: Callable[[], bool], until_s: float | None) -> None:
        while not is_over():
            wait_s = 0.25
            if until_s is not None:
                wait_s = min(wait_s, until_s - _now())
                if wait_s <= 0:
                    return
            self._turn(wait_s)

    def _follow(
        self, request: Request, is_over: Callable[[], bool], until_s: float | None
    ) -> None:
        with self._lock:
            if self._leader == 0:
                return
            waiter = request.waiter  # Several threads may wait for one request.
            if waiter is None:
                waiter = request.waiter = threading.Event()
            self._waiters.append(waiter)
            self._flush_records()
        try:
            # Asked after the waiter can be seen: what ends later will wake it.
            if not is_over():
                waiter.wait(
                    0.25 if until_s is None else max(0.0, min(0.25, until_s - _now()))
                )
        finally:
            with self._lock:
                self._waiters.remove(waiter)
                if waiter not in self._waiters:
                    request.waiter = None

    def _tell(self, ended: list[Request]) -> None:
        """Call or wake those whose requests moved on; outside the lock.

        A stream may be in `ended` several times.
        """
        counted = [request for request in ended if request.is_counted]
        if counted:
            with self._lock:
                for request in counted:
                    if request.is_done and request.is_counted:
                        request.is_counted = False
                        self._unwaited -= 1
        for request in ended:
            # First the callback: it makes true what the waiter looks for.
            if request.on_done is not None and request.is_done:
                request.on_done(request)
            waiter = request.waiter
            if waiter is not None:
                waiter.set()

    # -- the pump ----------------------------------------------------------------------

    def _start_pump(self) -> None:
        self._pump = threading.Thread(
            target=self._run_pump, name="activestore", daemon=True
        )
        self._pump.start()

    def _run_pump(self) -> None:
        me = threading.get_ident()
        while not self.is_closed:
            if not self._unwaited:
                self._pump_wake.clear()
                if not self._unwaited:  # It may have changed before the clear.
                    self._pump_wake.wait(1.0)
                continue
            if self._leader or _now() - self._led_s < STAND_BACK_S:
                time.sleep(PUMP_TICK_S)
                with self._lock:
                    if self._records and not self.is_closed:
                        self._flush_records()
                continue
            if self._lead(me):
                try:
                    self._turn(PUMP_TICK_S if self._records else 0.02)
                finally:
                    led_s = self._led_s
                    self._hand_over()
                    self._led_s = (
                        led_s  # Only foreground threads make the pump stand back.
                    )
