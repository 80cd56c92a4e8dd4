"""Calls that meet trouble half-way: nothing hangs, nothing is lost, nothing runs twice.

`ACTIVESTORE_CUT_S` sets for how long connections are cut.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

import activestore
from activestore.errors import (
    ActiveStoreError,
    AliasExistsError,
    DeadlineExceededError,
    ExecutorCrashedError,
    InvalidRequestError,
)

MODELS = str(Path(__file__).with_name("ring_models.py"))
CUT_S = float(os.environ.get("ACTIVESTORE_CUT_S", "4"))
WAIT_S = 30.0


class CuttingProxy:
    """A TCP proxy that drops its connections now and then."""

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self._target = (host, int(port))
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: list[tuple[socket.socket, socket.socket]] = []
        self.endpoint = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
                far = socket.create_connection(self._target)
            except OSError:
                return
            self._open.append((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(
                    target=self._pump, args=(source, sink), daemon=True
                ).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                sink.sendall(data)
        except OSError:
            pass
        for one in (source, sink):
            one.close()

    def cut(self) -> int:
        """Drop every connection; return how many there were."""
        count = 0
        while self._open:
            for one in self._open.pop():
                try:
                    one.shutdown(socket.SHUT_RDWR)
                    count += 1
                except OSError:
                    pass
        return count // 2

    def close(self) -> None:
        self._server.close()
        self.cut()


@pytest.fixture
def store(peer) -> Any:
    made = peer.connect()
    made.publish(MODELS)
    return made


@pytest.fixture
def proxy(peer) -> Iterator[CuttingProxy]:
    made = CuttingProxy(peer.endpoint)
    yield made
    made.close()


@pytest.mark.scaled
@pytest.mark.timeout(120 + 2 * CUT_S)
@pytest.mark.parametrize("class_name", ["Worker", "Careless"])
def test_calls_over_a_link_that_breaks_run_once(store, proxy, class_name):
    """The client retries by itself; the peer knows what it has done already."""
    other = store.create("ring_models.Worker")
    worker = store.create(f"ring_models.{class_name}", other, alias="worker")
    counts = {"worker": 0, "other": 0}
    with activestore.connect(proxy.endpoint, timeout_s=WAIT_S) as cut_off:
        far = cut_off.get("worker")
        until_s = time.monotonic() + CUT_S
        lock = threading.Lock()

        def work(number: int) -> None:
            while time.monotonic() < until_s:
                name = "other" if number % 4 == 0 else "worker"
                far.add_to_other() if name == "other" else far.add()
                with lock:
                    counts[name] += 1

        chance = random.Random(5)
        cuts = 0
        with ThreadPoolExecutor(8) as threads:
            futures = [threads.submit(work, number) for number in range(8)]
            while time.monotonic() < until_s:
                time.sleep(chance.uniform(0.05, 0.3))
                cuts += proxy.cut()
            for future in futures:
                future.result(WAIT_S)

    assert cuts >= 5
    assert worker.peek() == counts["worker"] > 0
    assert other.peek() == counts["other"] > 0


def test_pipelined_calls_behind_one_that_raised_go_on(store):
    worker = store.create("ring_models.Worker")
    for _ in range(5):
        worker.add(0)  # Known to be short, so that calls follow each other closely.
    futures = [
        (worker.add_then_raise if n % 5 == 4 else worker.add).submit()
        for n in range(60)
    ]

    errors = [future.exception(WAIT_S) for future in futures]

    assert [type(e) is not type(None) for e in errors] == [
        n % 5 == 4 for n in range(60)
    ]
    assert worker.peek() == 48


def test_readers_beside_one_that_assigns_go_on(store):
    worker = store.create("ring_models.Worker")
    for _ in range(5):
        worker.peek()
    futures = [
        (worker.assign if n % 7 == 3 else worker.peek).submit() for n in range(60)
    ]

    errors = [future.exception(WAIT_S) for future in futures]

    assert sum(error is not None for error in errors) == len(range(3, 60, 7))
    assert worker.peek() == 0


def test_change_by_a_call_that_comes_back_too_late_is_kept(peer, store, eventually):
    other = store.create("ring_models.Worker")
    worker = store.create("ring_models.Worker", other, alias="worker")

    worker.send_and_leave()
    eventually(lambda: worker.peek() == 1)
    peer.restart()

    assert peer.connect().get("worker").peek() == 1


def test_two_that_wait_for_each_other_through_futures_are_told(store):
    first = store.create("ring_models.Worker")
    second = store.create("ring_models.Worker", first)
    first.other = second
    for _ in range(10):
        futures = [one.submit_and_wait.submit() for one in (first, second)]
        for future in futures:
            future.exception(WAIT_S)  # Done, or BusyError: never neither.
    assert first.add() > 0
    assert second.add() > 0


def test_call_that_had_checkpointed_is_not_run_again_by_itself(peer, store):
    worker = store.create("ring_models.Worker")
    future = worker.count.submit(50, 0.05)
    time.sleep(0.5)
    for executor in peer.executors():
        executor.kill()

    error = future.exception(WAIT_S)

    assert isinstance(error, ExecutorCrashedError)
    assert error.is_partial
    assert "last checkpoint" in str(error)
    assert 0 < worker.peek() < 50


def test_call_that_had_checkpointed_is_not_run_again_after_the_peer_died(peer, store):
    worker = store.create("ring_models.Worker", alias="worker")
    future = worker.count.submit(50, 0.05)
    time.sleep(0.5)
    peer.restart()

    error = future.exception(WAIT_S)

    assert isinstance(error, ExecutorCrashedError)
    assert error.is_partial
    assert 0 < peer.connect().get("worker").peek() < 50


def test_call_that_had_changed_another_object_is_not_run_again(store):
    other = store.create("ring_models.Worker")
    worker = store.create("ring_models.Worker", other)

    with pytest.raises(ExecutorCrashedError) as raised:
        worker.add_to_other_then_exit()

    assert raised.value.is_partial
    assert other.peek() == 1


@pytest.mark.parametrize("data", [b"\xc1", b"\x91\x01" * 40, b"\x91\x90"])
def test_what_a_method_writes_to_our_channels_costs_its_executor_only(store, data):
    rogue = store.create("ring_models.Worker")
    worker = store.create("ring_models.Worker")

    with pytest.raises(ExecutorCrashedError):
        rogue.write_garbage.options(timeout_s=20)(data)

    assert worker.add() == 1


class TestRelaxedDurability:
    """What may be lost is the last second of changes; names and answers stay true."""

    def test_names_are_there_at_once_and_once(self, store):
        made = store.create("ring_models.Careless", alias="careless")
        assert store.get("careless") is made
        with pytest.raises(AliasExistsError):
            store.create("ring_models.Careless", alias="careless")

    def test_object_that_a_method_returns_is_on_disk(self, peer, store):
        careless = store.create("ring_models.Careless", alias="careless")
        made = careless.make_other()
        peer.restart()

        assert made.add() == 1

    def test_reader_beside_a_writer_sees_what_was_answered(self, store):
        careless = store.create("ring_models.Careless")
        assert careless.add(5) == 5
        holding = careless.hold.submit(1.0)
        time.sleep(0.05)

        assert careless.peek() == 5
        holding.result(WAIT_S)


def test_object_may_be_entered_again_by_calls_that_raise(store):
    """They are a part of the call that they enter, as local calls would be."""
    other = store.create("ring_models.Worker")
    worker = store.create("ring_models.Worker", other)

    assert [worker.enter_and_fail(3) for _ in range(3)] == [3, 6, 9]
    assert worker.add() == 10


def test_object_that_comes_back_to_itself_is_itself(store):
    other = store.create("ring_models.Worker")
    worker = store.create("ring_models.Worker", other)

    assert worker.is_itself() == [True, True, 0, 1]


def test_call_that_is_overdue_before_it_begins_costs_no_executor(peer, store):
    store.create("ring_models.SlowToWake", alias="slow")
    peer.restart()
    store = peer.connect()
    slow = store.get("slow")
    before = {executor["pid"] for executor in store.status()["executors"]}

    with pytest.raises(DeadlineExceededError):
        slow.add.options(timeout_s=0.2)()
    time.sleep(3.0)

    after = {executor["pid"] for executor in store.status()["executors"]}
    assert before <= after, "an executor was killed for a call that had not begun"
    assert slow.peek() == 0


def test_dead_executors_leave_no_descriptors_in_the_daemon(peer, store):
    counts = []
    for _ in range(4):
        workers = [store.create("ring_models.Worker") for _ in range(8)]
        futures = [one.make_bytes.submit(200_000) for one in workers for _ in range(4)]
        assert all(len(future.result(WAIT_S)) == 200_000 for future in futures)
        for executor in peer.executors():
            executor.kill()
        assert store.create("ring_models.Worker").add() == 1
        counts.append(psutil.Process(peer.pid).num_fds())

    assert counts[-1] <= counts[0] + 16, counts


def test_one_long_call_does_not_keep_the_answers_of_all_others(peer, store):
    holding = store.create("ring_models.Worker").hold.submit(20.0)
    worker = store.create("ring_models.Worker")
    before = store.status()["storage"]["used_bytes"]

    for _ in range(60):
        for future in [worker.add.submit() for _ in range(50)]:
            future.result(WAIT_S)
    grown = store.status()["storage"]["used_bytes"] - before

    assert worker.peek() == 3000
    assert grown < 200_000, "3,000 kept answers would take 300 kB and more"
    holding.cancel()


@pytest.mark.parametrize("read", [0, 1])
def test_deleting_an_object_ends_its_streams(store, read):
    worker = store.create("ring_models.Worker")
    looking = worker.look.stream(1_000_000, 0.01)
    for _ in range(read):
        next(looking)

    store.delete(worker)

    with pytest.raises(ActiveStoreError):
        list(looking)


def test_name_that_is_taken_fails_the_call_and_spoils_nothing(store):
    store.create("ring_models.Worker", alias="taken")
    worker = store.create("ring_models.Worker")

    assert worker.name_other("free") == 1
    for _ in range(2):
        with pytest.raises(AliasExistsError):
            worker.name_other("taken")
    assert worker.peek() == 1
    assert worker.name_other("free too") == 2


def test_readers_go_on_beside_a_writer_after_a_call_that_changed_others(store):
    """The answer of such a call is kept by itself, without a change of the object."""
    other = store.create("ring_models.Worker")
    worker = store.create("ring_models.Worker", other)
    worker.add()
    worker.add_to_other()
    holding = worker.hold.submit(3.0)
    time.sleep(0.1)

    began_s = time.monotonic()
    assert worker.peek() == 1
    assert time.monotonic() - began_s < 1.5
    holding.result(WAIT_S)


def test_readers_do_not_wait_behind_a_writer_that_waits_for_a_long_reader(peer, store):
    worker = store.create("ring_models.Worker", alias="worker")
    of_another_client = peer.connect().get("worker")
    worker.add(5)
    looking = worker.look.stream(100, 0.1)
    assert next(looking) == 5
    adding = worker.add.submit(1)
    time.sleep(0.1)

    began_s = time.monotonic()
    assert of_another_client.peek() == 5
    assert of_another_client.value == 5
    assert time.monotonic() - began_s < 2.0
    looking.close()
    assert adding.result(WAIT_S) == 6


def test_reader_finds_a_free_thread_where_there_is_one_executor(make_peer):
    store = make_peer(executors=1, executors_max=1).connect()
    store.publish(MODELS)
    worker = store.create("ring_models.Worker")
    holding = worker.hold.submit(3.0)
    time.sleep(0.1)

    began_s = time.monotonic()
    assert worker.peek() == 0
    assert time.monotonic() - began_s < 1.5
    holding.result(WAIT_S)


def test_results_that_a_method_does_not_take_are_let_go(store):
    other = store.create("ring_models.Worker")
    worker = store.create("ring_models.Worker", other)
    first = worker.submit_many(30, 1_000_000)
    for _ in range(3):
        last = worker.submit_many(30, 1_000_000)

    assert last - first < 60_000_000, "3 x 30 MB were asked for and not taken"


@pytest.mark.parametrize(
    "alias", ["\N{GRINNING FACE}" * 200, " blank", "two\nlines", "ab" * 16]
)
def test_alias_that_cannot_be_one_is_refused_by_the_peer_too(store, alias):
    with pytest.raises(InvalidRequestError, match="alias"):
        store.create("ring_models.Worker", alias=alias)

    assert store.create("ring_models.Worker").add() == 1
