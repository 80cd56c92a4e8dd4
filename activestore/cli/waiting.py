"""What people see while a command takes long, and how it learns that its peer died.

    0.5 s pass -> a bar on standard error, where that is a terminal -> gone at the end

Rules of this file: the main thread does the work, so that Ctrl-C ends it at once; the
thread beside it only looks and draws; with --json, or without a terminal, nothing is
drawn.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from activestore.cli.options import Target
from activestore.cli.output import UnreachableError, is_terminal
from activestore.client.client import Store
from activestore.errors import ActiveStoreError, UnavailableError

# What is done sooner needs no bar.
SHOWN_AFTER_S = 0.5
# How often the peer is asked how far it is.
ASK_S = 0.2
# A peer that is silent for this long, asked something easy, is gone.
LOST_S = 30.0
# How long the end of a command waits for the thread beside it.
JOIN_S = 2.0

Result = TypeVar("Result")
Step = tuple[int, int]  # bytes done, of how many


@contextlib.contextmanager
def bar(
    title: str, *, quiet: bool, unit: str = "bytes"
) -> Iterator[Callable[[int, int], None]]:
    """Draw a bar; yields what moves it: (done, total). It runs until then.

    `unit` is what is counted: bytes are shown as sizes, anything else as "3/5 peers".
    """
    if quiet or not is_terminal(sys.stderr):
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    text = TextColumn("[progress.description]{task.description}")
    columns: list[Any] = [SpinnerColumn(), text, BarColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as drawn:
        task = drawn.add_task(title, total=None)

        def move(done: int, total: int) -> None:
            if len(drawn.columns) == len(columns):
                counted: ProgressColumn = DownloadColumn(binary_units=True)
                if unit != "bytes":
                    counted = TextColumn(f"{{task.completed}}/{{task.total}} {unit}")
                drawn.columns = (*drawn.columns, counted)
            drawn.update(task, completed=done, total=total)

        yield move


def go_through(title: str, steps: Iterable[Step], *, quiet: bool) -> int:
    """Go through (done, total) byte counts with a bar on standard error; return done."""
    done = 0
    with bar(title, quiet=quiet) as move:
        for done, total in steps:
            move(done, total)
    return done


@contextlib.contextmanager
def spinner(title: str, *, quiet: bool) -> Iterator[Callable[[], None]]:
    """Show that something goes on, after a moment; yields what ends it sooner."""
    if quiet or not is_terminal(sys.stderr):
        yield lambda: None
        return
    beside = _Beside(title, quiet=quiet, look=lambda: None)
    try:
        yield beside.end
    finally:
        beside.end()


def watched(
    target: Target,
    title: str,
    work: Callable[[Store], Result],
    *,
    progress: Callable[[Store], Step | None] = lambda _: None,
    quiet: bool,
    unit: str = "bytes",
) -> Result:
    """Return what `work` returns; look meanwhile whether the peer lives, how far it is.

    A peer answers easy questions while it publishes or copies, but sends no beat for
    them. `progress` asks over a connection of its own; `unit` is what it counts.

    Raises:
        UnreachableError: the peer cannot be reached, or was lost during the work.
        UnavailableError: the work took longer than `target.timeout_s`.
    """
    with target.connected() as store:
        watcher = _Watcher(target, progress, lost=store.close)
        beside = _Beside(title, quiet=quiet, look=watcher.look, unit=unit)
        try:
            return work(store)
        except ActiveStoreError as error:
            if watcher.loss is not None:
                raise UnreachableError(target.endpoint, watcher.loss) from None
            if getattr(error, "where", "") == target.endpoint:
                raise UnavailableError(
                    title,
                    f"not done within {target.timeout_s:g} s (--timeout); the peer "
                    "lives, and may still finish it",
                ) from None
            raise
        finally:
            watcher.close()
            beside.end()


class _Watcher:
    """A second connection that asks the same peer what is easy to answer."""

    def __init__(
        self,
        target: Target,
        progress: Callable[[Store], Step | None],
        *,
        lost: Callable[[], None],
    ) -> None:
        self.loss: str | None = None
        silence_s = min(LOST_S, target.timeout_s)
        self._target = target._replace(connect_s=silence_s, timeout_s=silence_s)
        self._progress = progress
        self._lost = lost
        self._store: Store | None = None
        self._is_closed = False

    def look(self) -> Step | None:
        """Return how far the peer is, None where it cannot say."""
        if self._is_closed or self.loss is not None:
            return None
        try:
            if self._store is None:
                self._store = self._target.connected()
            self._store.peers()
        except UnavailableError as error:
            if not self._is_closed:
                self.loss = f"lost while it worked: {error.reason}"
                self._lost()
            return None
        except ActiveStoreError:
            return (
                None  # Closed under our hands, or a peer that knows no such question.
            )
        try:
            return self._progress(self._store)
        except ActiveStoreError:
            return None  # It lives, and is too busy to say.

    def close(self) -> None:
        """End; a question that waits fails."""
        self._is_closed = True
        if self._store is not None:
            self._store.close()


class _Beside:
    """The thread beside the work: waits a moment, then looks and draws until the end."""

    def __init__(
        self, title: str, *, quiet: bool, look: Callable[[], Step | None],
        unit: str = "bytes",
    ) -> None:  # fmt: skip
        self._title, self._unit = title, unit
        self._quiet = quiet
        self._look = look
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beside", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        if self._over.wait(SHOWN_AFTER_S):
            return
        with bar(self._title, quiet=self._quiet, unit=self._unit) as move:
            while not self._over.is_set():
                step = self._look()
                if step is not None:
                    move(*step)
                self._over.wait(ASK_S)

    def end(self) -> None:
        """Take the bar away; the second time nothing happens."""
        self._over.set()
        self._thread.join(JOIN_S)
