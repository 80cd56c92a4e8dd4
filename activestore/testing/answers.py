"""What a call of a simulated client gives before its answer is there: futures and items.

Rules of this file: waiting is the client's, which lets virtual time pass.
"""

from __future__ import annotations

from typing import Any

from activestore.client.requests import Request


class SimFuture:
    """The result of a submitted call."""

    def __init__(self, client: Any, request: Request) -> None:
        self._client = client
        self.request = request

    def done(self) -> bool:
        """Return whether the call has ended."""
        return self.request.is_done

    def result(self) -> Any:
        """Let virtual time pass until the call has ended; return its result or raise."""
        self._client.wait(self.request)
        return self._client.decode(self.request.outcome())

    def exception(self) -> BaseException | None:
        """Let time pass until the call has ended; return its error, None for none."""
        self._client.wait(self.request)
        return self.request.error

    def cancel(self) -> bool:
        """Cancel the call; False where it has ended already."""
        if self.request.is_done:
            return False
        self._client.abandon(self.request)
        return True


class SimItems:
    """The items of a generator method, as they come."""

    def __init__(self, client: Any, request: Request) -> None:
        self._client = client
        self._request = request

    def __iter__(self) -> SimItems:
        return self

    def __next__(self) -> Any:
        request, client = self._request, self._client
        client.wait_until(lambda: bool(request.items) or request.is_done)
        if request.items:
            item = request.items.pop(0)
            grant = request.credit_due()
            if grant is not None and not request.is_done:
                client.tell(request, grant)
            return client.decode(item)
        raise StopIteration(client.decode(request.outcome()))

    def close(self) -> None:
        """End the method, if it has not ended; nothing of it is committed then."""
        if not self._request.is_done:
            self._client.abandon(self._request)
