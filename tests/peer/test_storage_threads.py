"""The storage threads: they answer, they wake the loop once, and nobody waits behind a copy."""

from __future__ import annotations

import errno
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from activestore.errors import UnavailableError
from activestore.ids import ObjectId
from activestore.peer import daemon, storage_thread
from activestore.peer.ports import Called, CommitsDone, Loaded, StorageFailed
from activestore.peer.storage_thread import StorageThreads
from activestore.storage.engine import Change

OBJECT = ObjectId(b"o" * 16)
WAIT_S = 10.0


class FakeEngine:
    """An engine whose answers are set by the test."""

    peer_id = b"peer66"

    def __init__(self) -> None:
        self.load: Callable[[ObjectId], Any] = lambda _: None
        self.commit: Callable[[Any], Any] = lambda changes: [None for _ in changes]
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def threads(engine: FakeEngine) -> Iterator[StorageThreads]:
    made = StorageThreads(engine)  # type: ignore[arg-type]  # what is asked of it here
    yield made
    if not engine.is_closed:
        made.close()


def is_readable(threads: StorageThreads, *, wait_s: float = 0.0) -> bool:
    return bool(select.select([threads.wake_fd()], [], [], wait_s)[0])


def news_of(threads: StorageThreads, count: int = 1) -> list[Any]:
    found: list[Any] = []
    while len(found) < count:
        assert is_readable(threads, wait_s=WAIT_S), "the loop was not woken"
        found += threads.finished()
    return found


def test_loop_can_block_again_when_news_were_taken_between_telling_and_waking(
    threads: StorageThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop looks at any moment; a byte left in the pipe would make it spin."""
    write = os.write

    def write_late(fd: int, data: bytes) -> int:
        threads.finished()
        count = write(fd, data)
        threads.finished()
        return count

    monkeypatch.setattr(storage_thread.os, "write", write_late)
    threads._tell("news")
    monkeypatch.undo()

    threads.finished()

    assert not is_readable(threads)
    threads._tell("more")
    assert is_readable(threads)


def test_loop_can_block_again_after_thousands_of_news(threads: StorageThreads) -> None:
    for number in range(10_000):
        threads._tell(number)

    assert threads.finished() == list(range(10_000))

    assert not is_readable(threads)


def test_read_does_not_wait_behind_a_copy(threads: StorageThreads) -> None:
    may_end = threading.Event()
    threads.maintain(lambda _: may_end.wait(WAIT_S), lambda *_: None)

    threads.read(lambda _: "read", lambda *_: None)
    first = news_of(threads)
    may_end.set()

    assert [news.value for news in first] == ["read"]
    assert [news.value for news in news_of(threads)] == [True]


def test_stop_ends_a_copy_that_looks(
    threads: StorageThreads, engine: FakeEngine
) -> None:
    def copy(_: Any) -> int:
        while not threads.is_closing:
            time.sleep(0.001)
        return 7

    threads.maintain(copy, lambda *_: None)

    threads.close()

    assert engine.is_closed


def test_stop_leaves_an_engine_open_that_is_being_copied(
    threads: StorageThreads, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_thread, "KEEPER_END_S", 0.01)
    may_end = threading.Event()
    threads.maintain(lambda _: may_end.wait(WAIT_S), lambda *_: None)

    threads.close()

    assert not engine.is_closed
    may_end.set()
    engine.is_closed = True  # The keeper still tells its end through the pipe.


def test_reader_answers_after_an_error_that_nobody_foresaw(
    threads: StorageThreads, engine: FakeEngine
) -> None:
    def load(_: ObjectId) -> Any:
        raise KeyError("surprise")

    engine.load = load
    threads.load(OBJECT, is_reader=False)
    threads.load(OBJECT, is_reader=False)

    for news in news_of(threads, 2):
        assert isinstance(news, Loaded)
        assert isinstance(news.error, UnavailableError)


def test_failed_disk_stops_commits(threads: StorageThreads, engine: FakeEngine) -> None:
    def fail(_: Any) -> Any:
        raise OSError(errno.EIO, "input/output error")

    engine.commit = fail
    threads.commit(1, [Change(OBJECT)])
    threads.commit(2, [Change(OBJECT)])
    done = []
    while len(done) < 2:
        news = news_of(threads)
        done += [r for n in news if type(n) is CommitsDone for r in n.results]
        assert threads.has_failed

    assert [token for token, _ in done] == [1, 2]
    assert all(isinstance(error, UnavailableError) for _, error in done)


def test_failed_disk_in_housekeeping_stops_the_peer_too(
    threads: StorageThreads,
) -> None:
    def clean(_: Any) -> None:
        raise OSError(errno.EIO, "input/output error")

    threads.write(clean, lambda *_: None)

    told, called = news_of(threads, 2)
    assert isinstance(told, StorageFailed)
    assert isinstance(called, Called)
    assert threads.has_failed


class _Stopped(daemon.Daemon):
    """A daemon of which only what a signal touches is there."""

    def __init__(self, threads: StorageThreads) -> None:
        self._storage = threads
        self._stops_asked = self._stops_heard = 0
        self.stops: list[str] = []

    def stop(self) -> None:
        self.stops.append("stopped")


def test_signal_only_leaves_word_and_wakes_the_loop(threads: StorageThreads) -> None:
    """It comes between any two lines, so it must not step the core itself."""
    stopped = _Stopped(threads)

    stopped._on_signal(signal.SIGTERM, None)

    assert stopped.stops == []
    assert stopped._stops_asked == 1
    assert is_readable(threads)
