"""The future of a submitted call; imported with the first submit.

Rules of this file: `result` serves the connection while it waits, so that a thread that
waits costs no hop to another thread.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable
from typing import Any

from activestore.client.connection import Connection
from activestore.client.requests import Request
from activestore.errors import CancelledError


class CallFuture(concurrent.futures.Future):  # type: ignore[type-arg]  # of any result
    """A concurrent.futures.Future of one call."""

    def __init__(
        self,
        connection: Connection,
        decode: Callable[[Any], Any],
        explain: Callable[[BaseException], None] | None = None,
    ) -> None:
        super().__init__()
        self._explain = explain
        self._connection = connection
        self._decode = decode
        self.request: Request | None = None

    def settle(self, request: Request) -> None:
        """Take the outcome; called once, by the thread that read it."""
        if not self.set_running_or_notify_cancel():
            return
        try:
            self.set_result(self._decode(request.outcome()))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the outcome
            if self._explain is not None:
                self._explain(error)
            self.set_exception(error)

    def result(self, timeout: float | None = None) -> Any:
        """Return the result, waiting up to `timeout` seconds, or raise the error."""
        self._serve(timeout)
        return super().result(0 if timeout is not None else None)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the error, None where the call ended well."""
        self._serve(timeout)
        return super().exception(0 if timeout is not None else None)

    def _serve(self, timeout: float | None) -> None:
        request = self.request
        if request is None or self.done():
            return
        until_s = None if timeout is None else time.monotonic() + timeout
        self._connection.wait_for(self.done, request, until_s)

    def cancel(self) -> bool:
        """Cancel the call; False where it has ended already."""
        if self.done() or self.request is None or not super().cancel():
            return False
        self._connection.abandon(self.request, CancelledError(self.request.where))
        return True
