"""How the loop waits: for descriptors that become readable, or for time to pass.

A simulation hands the loop a `Waiter` of its own, that never blocks and knows no
descriptor of the system.

Rules of this file: it waits and names who is ready; it reads nothing.
"""

from __future__ import annotations

import select
from typing import Protocol


class Waiter(Protocol):
    """What a loop waits on."""

    def watch(self, fd: int) -> None:
        """Name `fd` in `wait` whenever it is readable."""

    def unwatch(self, fd: int) -> None:
        """Name it no more; it must be watched."""

    def wait(self, wait_s: float) -> list[int]:
        """Return the descriptors that are readable, after at most `wait_s` seconds."""


class DescriptorWaiter:
    """Waits with epoll where the system has it, else with poll."""

    def __init__(self) -> None:
        self._poll = select.epoll() if hasattr(select, "epoll") else None
        self._fallback = None if self._poll else select.poll()

    def watch(self, fd: int) -> None:
        """Name `fd` in `wait` whenever it is readable."""
        if self._poll is not None:
            self._poll.register(fd, select.EPOLLIN)
        elif self._fallback is not None:
            self._fallback.register(fd, select.POLLIN)

    def unwatch(self, fd: int) -> None:
        """Name it no more; it must be watched."""
        poll = self._poll or self._fallback
        if poll is not None:
            poll.unregister(fd)

    def wait(self, wait_s: float) -> list[int]:
        """Return the descriptors that are readable, after at most `wait_s` seconds."""
        if self._poll is not None:
            return [fd for fd, _ in self._poll.poll(wait_s)]
        if self._fallback is not None:
            return [fd for fd, _ in self._fallback.poll(wait_s * 1000)]
        return []
