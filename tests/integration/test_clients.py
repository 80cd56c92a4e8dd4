"""One client used in many ways at once: threads, futures, coroutines, pipelines.

Source: design section 4.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time

import pytest

import activestore.aio
from activestore.errors import BusyError, InvalidRequestError, MethodError

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(40)]


def test_one_client_serves_sixteen_threads(shared):
    counter = shared.create("models.Counter")
    echo = shared.create("models.Echo")
    failures: list[BaseException] = []
    sums: list[int] = []

    def call(number: int) -> None:
        try:
            for n in range(200):
                mark = f"{number}:{n}"
                assert echo.same(mark) == mark, "an answer came to the wrong thread"
                sums.append(counter.add(1))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)

    assert not failures
    assert sorted(sums) == list(range(1, 3201))


def test_each_thread_may_have_its_own_client(shared_peer):
    def call(_: int) -> int:
        with activestore.connect(shared_peer.endpoint) as store:
            counter = store.create("models.Counter")
            return [counter.add(1) for _ in range(20)][-1]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(call, range(24))) == [20] * 24


def test_futures_end_in_the_order_of_their_calls(shared):
    counter = shared.create("models.Counter")

    futures = [counter.add.submit(1) for _ in range(100)]

    assert [future.result() for future in futures] == list(range(1, 101))


def test_more_calls_than_a_mailbox_holds_are_refused_or_served(shared):
    """A client that submits 2,000 calls at one object gets an answer to each."""
    counter = shared.create("models.Counter")

    futures = [counter.add.submit(1) for _ in range(2000)]
    outcomes = [future.exception(timeout=30) for future in futures]

    refused = [outcome for outcome in outcomes if outcome is not None]
    assert all(isinstance(outcome, BusyError) for outcome in refused)
    assert counter.peek() == 2000 - len(refused)


def test_callback_of_a_future_runs_without_anybody_waiting(shared):
    counter = shared.create("models.Counter")
    told: list[int] = []
    is_told = threading.Event()

    def note(future) -> None:
        told.append(future.result())
        is_told.set()

    counter.add.submit(7).add_done_callback(note)

    assert is_told.wait(10)
    assert told == [7]


def test_callback_may_call_the_store_again(shared):
    """A callback runs in some thread of the client; calling from it must not hang."""
    counter = shared.create("models.Counter")
    seen: list[int] = []
    is_told = threading.Event()

    def note(future) -> None:
        seen.append(counter.add(future.result()))
        is_told.set()

    counter.add.submit(1).add_done_callback(note)

    assert is_told.wait(10)
    assert seen == [2]


def test_wait_and_as_completed_take_our_futures(shared):
    counters = [shared.create("models.Counter", n) for n in range(8)]
    futures = [counter.add.submit(1) for counter in counters]

    done, left = concurrent.futures.wait(futures, timeout=10)

    assert not left
    assert {future.result() for future in done} == set(range(1, 9))
    again = [counter.peek.submit() for counter in counters]
    completed = concurrent.futures.as_completed(again, timeout=10)
    assert {future.result() for future in completed} == set(range(1, 9))


def test_wait_takes_a_cancelled_future(shared):
    rogue = shared.create("models.Rogue")
    future = rogue.block.submit(60.0)
    time.sleep(0.1)

    assert future.cancel()

    done, left = concurrent.futures.wait([future], timeout=5)
    assert (done, left) == ({future}, set())
    assert future.cancelled()


def test_future_times_out_without_ending_its_call(shared):
    rogue = shared.create("models.Rogue")
    future = rogue.block.submit(1.0)

    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(timeout=0.1)

    assert future.result(timeout=10) == "slept"


def test_future_carries_the_error_of_its_method(shared):
    counter = shared.create("models.Counter")

    error = counter.set_then_raise.submit(1).exception(timeout=10)

    assert isinstance(error, MethodError)
    assert isinstance(error, ValueError)


def test_calls_of_different_objects_overlap(shared):
    """Four calls that sleep take about as long as one."""
    rogues = [shared.create("models.Rogue") for _ in range(4)]

    started_s = time.monotonic()
    futures = [rogue.block.submit(0.5) for rogue in rogues]
    assert [future.result(timeout=10) for future in futures] == ["slept"] * 4

    assert time.monotonic() - started_s < 1.5


def test_coroutines_call_read_assign_and_iterate(shared_peer):
    async def main() -> tuple:
        async with await activestore.aio.connect(shared_peer.endpoint) as store:
            counter = await store.create("models.Counter", 5)
            sums = await asyncio.gather(*(counter.add(1) for _ in range(50)))
            trainer = await store.create("models.Trainer")
            rows = [row async for row in trainer.train.stream(5)]
            return sorted(sums), await counter.value, rows

    sums, value, rows = asyncio.run(main())

    assert sums == list(range(6, 56))
    assert value == 55
    assert rows == [1, 2, 3, 4, 5]


def test_coroutines_pass_objects_and_find_classes(shared_peer):
    async def main() -> tuple:
        async with await activestore.aio.connect(shared_peer.endpoint) as store:
            node_class = await store.cls("models.Node")
            first = await node_class("first", alias="async-first")
            second = await node_class("second", first)
            assert repr(node_class) == "<remote class models.Node>"
            await first.link(second)
            await second.bump_other()
            found = await node_class.get_by_alias("async-first")
            with pytest.raises(InvalidRequestError):
                await (await store.cls("models.Counter")).get_by_alias("async-first")
            return await found.value, await first.is_other(second), await second.value

    assert asyncio.run(main()) == (1, True, 0)


def test_coroutine_that_is_cancelled_cancels_its_call(shared_peer):
    async def main() -> int:
        async with await activestore.aio.connect(shared_peer.endpoint) as store:
            rogue = await store.create("models.Rogue")
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(rogue.block(60.0), 0.3)
            return await asyncio.wait_for(rogue.work(0.01), 10)

    assert asyncio.run(main()) >= 1


def test_client_that_closes_with_calls_open_leaves_the_peer_well(shared_peer, shared):
    for _ in range(5):
        with activestore.connect(shared_peer.endpoint) as store:
            counter = store.create("models.Counter")
            futures = [counter.add.submit(1) for _ in range(50)]
        assert all(future.done() for future in futures)

    assert shared.create("models.Counter", 1).add(1) == 2


def test_results_of_all_kinds_come_back_as_they_went(shared):
    import numpy as np

    echo = shared.create("models.Echo")
    values = [
        None, True, -(2**70), 1.5, 1 + 2j, "ä", b"x", [1, [2]], (1, (2,)), {"a": {1: 2}},
        {1, 2}, frozenset({3}), "x" * 100_000, b"y" * 200_000,
    ]  # fmt: skip

    for value in values:
        again = echo.same(value)
        assert again == value
        assert type(again) is type(value)
    for array in (np.arange(6).reshape(2, 3).T, np.zeros(0), np.ones(100_000)):
        again = echo.same(array)
        assert again.dtype == array.dtype
        assert np.array_equal(again, array)


def test_large_values_of_many_clients_at_once(shared_peer):
    """Shared memory between daemon and executors is used, freed and used again."""

    def call(seed: int) -> bool:
        with activestore.connect(shared_peer.endpoint) as store:
            echo = store.create("models.Echo")
            data = bytes([seed]) * 3_000_000
            return all(echo.same(data) == data for _ in range(10))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(8)))
