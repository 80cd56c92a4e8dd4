"""The storage threads: they answer, they wake the loop once, and nobody waits behind a copy."""

from __future__ import annotations

import dataclasses
import errno
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from activestore.core import effects
from activestore.core.calls import Client
from activestore.core.location import Location
from activestore.errors import UnavailableError
from activestore.ids import ObjectId, PeerId, SessionId
from activestore.peer import daemon, storage_thread
from activestore.peer.ports import Called, CommitsDone, Loaded, StorageFailed
from activestore.peer.requests import Requests
from activestore.peer.storage_thread import StorageThreads
from activestore.storage.engine import Change, Usage
from activestore.storage.memory_engine import MemoryDisk, MemoryEngine
from activestore.wire.state import ObjectState, StateDelta

ORIGIN = Client(SessionId(b"s" * 16), 1)
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


# -- after a refused change ------------------------------------------------------------


@pytest.fixture
def stored() -> Iterator[StorageThreads]:
    """Threads over an engine in memory that holds one object, in version 1."""
    made = StorageThreads(
        MemoryEngine(
            MemoryDisk(PeerId(b"peer66")),
            disk_budget_bytes=1 << 30,
            wall_clock=lambda: 1.0,
        )
    )
    made.commit(0, [created()])
    assert results_of(made, 1) == {0: None}
    yield made
    made.close()


def created(number: int = 0) -> Change:
    content = ObjectState("m.C", b"r" * 16, 0, {"v": b"1"}, b"", (), ())
    return Change(ObjectId(OBJECT[:8] + number.to_bytes(8, "big")), 1, content,
                  is_new=True)  # fmt: skip


def changed(version: int) -> Change:
    step = StateDelta("m.C", b"r" * 16, 0, {"v": b"2"}, (), None, (), ())
    return Change(created().object_id, version, None, step)


def results_of(threads: StorageThreads, count: int) -> dict[int, str | None]:
    """Wait for commits; return by token the code of the error, None where it was done."""
    found: dict[int, str | None] = {}
    while len(found) < count:
        for news in news_of(threads):
            if type(news) is CommitsDone:
                found |= {t: error and error.code for t, error in news.results}
    return found


def test_what_builds_on_a_refused_change_is_refused_until_the_object_is_loaded(
    stored: StorageThreads,
) -> None:
    """A create under an id that is taken must not stop the object that has it."""
    stored.commit(1, [created()])
    stored.commit(2, [changed(2)])
    assert results_of(stored, 2) == {1: "invalid_request", 2: "unavailable"}

    stored.load(created().object_id, is_reader=False)
    stored.commit(3, [changed(2)])
    stored.commit(4, [changed(3)])

    assert results_of(stored, 2) == {3: None, 4: None}


def test_every_object_of_a_refused_group_is_kept_in_mind(
    stored: StorageThreads,
) -> None:
    group = [
        dataclasses.replace(c, group=9) for c in (created(1), created(), changed(2))
    ]
    stored.commit(1, group)
    results_of(stored, 1)

    stored.commit(2, [changed(3)])

    assert results_of(stored, 1) == {2: "unavailable"}


def test_state_that_moves_here_is_taken_after_an_earlier_one_was_refused(
    stored: StorageThreads,
) -> None:
    """It is whole, and comes again under a higher version: nobody loads it before."""
    content = created().state
    stored.commit(1, [Change(OBJECT, 7, content, alias="no\nname")])
    assert results_of(stored, 1) == {1: "invalid_request"}

    stored.commit(2, [Change(OBJECT, 9, content, alias="name")])

    assert results_of(stored, 1) == {2: None}


def test_load_for_a_reader_mends_nothing(stored: StorageThreads) -> None:
    stored.commit(1, [created()])
    results_of(stored, 1)

    stored.load(created().object_id, is_reader=True)
    stored.commit(2, [changed(2)])

    assert results_of(stored, 1) == {2: "unavailable"}


def test_refused_creates_are_not_kept_in_mind_for_ever(
    stored: StorageThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_thread, "BROKEN_MAX", 10)
    for number in range(1, 50):
        missing = dataclasses.replace(changed(5), object_id=created(number).object_id)
        stored.commit(number, [missing])
    results_of(stored, 49)

    assert len(stored._broken) == 10


# -- who asks which thread -------------------------------------------------------------


class _Loop:
    """A loop of which only its storage threads are there."""

    def __init__(self, threads: StorageThreads) -> None:
        self.storage = threads
        self.backups: dict[str, tuple[int, int]] = {}
        self.done: list[Any] = []
        self.location = Location(PeerId(b"peer-1"))

    def carry_out(self, effects: list[Any]) -> None:
        self.done += effects

    def step(self, event: Any) -> None:
        """Take note of nothing: the core is not what is tested."""


def test_status_is_answered_while_a_backup_is_made(
    threads: StorageThreads, engine: FakeEngine
) -> None:
    is_copying, may_end = threading.Event(), threading.Event()

    def backup(_: str) -> Iterator[tuple[int, int]]:
        is_copying.set()
        may_end.wait(WAIT_S)
        yield 5, 5

    engine.backup = backup  # type: ignore[attr-defined]  # only this test asks for it
    engine.usage = lambda: Usage(*range(8))  # type: ignore[attr-defined]
    loop = _Loop(threads)
    requests = Requests(loop, status=dict, stop=lambda: None)  # type: ignore[arg-type]
    requests._do_backup(ORIGIN, {"directory": "copy"})
    assert is_copying.wait(WAIT_S)

    requests._do_status(ORIGIN, {})

    for news in news_of(threads):
        news.then(news.value, news.error)
    assert [type(effect) for effect in loop.done] == [effects.Answer]
    assert loop.backups == {}
    may_end.set()
    for news in news_of(threads):
        news.then(news.value, news.error)
    assert loop.backups == {"copy": (5, 5)}


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
