"""The items of a generator method as they come; imported with the first stream.

Rules of this file: a stream that nobody reads any more is ended at the peer, where it holds
its object: by `close`, by leaving a loop, or when the iterator is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from activestore.client.connection import Connection
from activestore.client.requests import Request
from activestore.errors import CancelledError

# What `take` returns where there is no item yet.
NOTHING: Any = object()


class Items:
    """An iterator over a stream; `StopIteration.value` is the method's own result."""

    def __init__(
        self,
        connection: Connection,
        request: Request,
        decode: Callable[[Any], Any],
        result: Callable[[Request], Any],
    ) -> None:
        self._connection = connection
        self._request = request
        self._decode = decode
        self._result = result
        self._is_over = False

    def __iter__(self) -> Items:
        return self

    def __next__(self) -> Any:
        request = self._request
        items = request.items
        try:
            if not self._is_over:
                self._connection.wait_for(
                    lambda: bool(items) or request.is_done, request
                )
            return self.take()
        except BaseException:
            self.close()
            raise

    def take(self) -> Any:
        """Return the next item if it is here, NOTHING where it has yet to come.

        Raises:
            StopIteration: there are no more.
        """
        connection, request = self._connection, self._request
        if self._is_over:
            raise StopIteration
        if request.items:
            item = request.items.pop(0)
            grant = request.credit_due()
            if grant is not None and not request.is_done:
                connection.tell(grant, request)
            return self._decode(item)
        if not request.is_done:
            return NOTHING
        self._is_over = True
        raise StopIteration(self._result(request))

    def wake(self, waiter: Any) -> None:
        """Have `waiter.set()` called whenever something has come."""
        self._request.waiter = waiter

    def close(self) -> None:
        """End the method, if it has not ended; nothing of it is committed then."""
        if not self._is_over:
            self._is_over = True
            self._connection.abandon(self._request, CancelledError(self._request.where))

    def __del__(self) -> None:
        # It may be collected anywhere, also where the connection's lock is held.
        if not self._is_over:
            self._connection.drop(self._request)
