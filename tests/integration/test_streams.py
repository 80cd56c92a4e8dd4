"""Generators, checkpoints, and readers beside a long writer.

Source: design section 5 ("Readers do not wait", "Generators").
"""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path

import pytest

import activestore
from activestore.errors import UnavailableError

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(40)]


def test_predict_answers_while_train_runs(shared):
    trainer = shared.create("models.Trainer")
    rows = trainer.train.stream(50, pause_s=0.05)
    assert next(rows) == 1

    started_s = time.monotonic()
    answers = [trainer.predict() for _ in range(5)]
    waited_s = time.monotonic() - started_s

    assert answers == [0] * 5, "readers see the committed state"
    assert waited_s < 2.0
    assert list(rows) == list(range(2, 51))
    assert trainer.predict() == 50


def test_reader_sees_the_checkpoint_of_a_running_writer(shared, eventually):
    trainer = shared.create("models.Trainer")
    rows = trainer.train_with_checkpoints.stream(40, 10, pause_s=0.05)
    seen = list(itertools.islice(rows, 12))

    assert seen == list(range(1, 13))
    eventually(lambda: trainer.predict() >= 10)
    assert trainer.predict() % 10 == 0
    assert len(list(rows)) == 28
    assert trainer.predict() == 40


def test_checkpoint_survives_a_kill(peer, store):
    """A long training loses what came after the last checkpoint, and no more."""
    trainer = store.create("models.Trainer", alias="t")
    rows = trainer.train_with_checkpoints.stream(1000, 10, pause_s=0.01)
    for epoch in rows:
        if epoch == 25:
            break
        last = epoch
    assert last == 24
    del rows

    peer.restart()

    kept = peer.connect().get("t").predict()
    assert kept >= 20
    assert kept % 10 == 0


def test_stream_of_a_killed_peer_says_so(peer, store):
    trainer = peer.connect(timeout_s=3.0).create("models.Trainer")
    rows = trainer.train.stream(1000, pause_s=0.01)
    assert next(rows) == 1

    peer.kill()

    with pytest.raises(UnavailableError):
        for _ in rows:
            pass


def test_stream_is_not_resumed_by_a_restarted_peer(peer, store):
    trainer = store.create("models.Trainer", alias="t")
    rows = trainer.train.stream(1000, pause_s=0.01)
    assert next(rows) == 1

    peer.restart()

    with pytest.raises(UnavailableError):
        for _ in rows:
            pass
    assert peer.connect().get("t").predict() == 0


def test_closing_the_iterator_cancels_the_generator(shared, eventually):
    trainer = shared.create("models.Trainer")
    rows = trainer.train.stream(100_000, pause_s=0.01)
    assert next(rows) == 1

    rows.close()

    # The object is free again, and nothing of the cancelled call is kept.
    assert list(trainer.train.options(timeout_s=10).stream(2)) == [1, 2]
    assert trainer.predict() == 2


def test_slow_reader_holds_the_generator_back(shared):
    """Credit: a generator is at most a window ahead of who reads it."""
    trainer = shared.create("models.Trainer")
    rows = trainer.count.stream(2000)

    assert next(rows) == 0
    time.sleep(0.2)

    assert list(rows) == list(range(1, 2000))


def test_generator_that_raises_ends_its_stream_with_the_error(shared):
    rows = shared.create("models.Trainer").failing.stream()

    assert next(rows) == 1
    with pytest.raises(KeyError, match="no more"):
        next(rows)


def test_method_that_is_a_generator_can_be_called_as_one(shared):
    """A plain call of a generator method is not silently something else."""
    trainer = shared.create("models.Trainer")

    assert list(trainer.count(5)) == [0, 1, 2, 3, 4]


@pytest.fixture
def source(store):
    store.publish(str(Path(__file__).with_name("ring_models.py")))
    return store.create("ring_models.Source")


@pytest.mark.parametrize("read", [0, 1, 5])
def test_stream_that_is_forgotten_frees_its_object(source, read):
    items = source.rows.stream(10_000)
    for number in range(read):
        assert next(items) == number
    del items

    assert source.add.options(timeout_s=10)() == 1


def test_stream_that_is_closed_before_it_is_read_ends(source):
    items = source.rows.stream(10_000)
    items.close()

    assert list(items) == []
    assert source.add.options(timeout_s=10)() == 1


@pytest.mark.parametrize("read", [0, 1, 40])
def test_stream_that_a_method_leaves_ends_with_it(store, source, read):
    reader = store.create("ring_models.Reader", source)

    assert reader.read(read) == list(range(read))

    assert source.add.options(timeout_s=10)() == 1


def test_stream_that_has_ended_stays_ended(source):
    items = source.rows.stream(3)

    assert list(items) == [0, 1, 2]
    assert next(items, "over") == "over"


@pytest.mark.parametrize("read", [0, 3, 40])
def test_stream_that_a_method_leaves_frees_its_object_at_once(store, source, read):
    reader = store.create("ring_models.Reader", source)

    assert reader.read_then_add.options(timeout_s=15)(read) == 1


class TestCoroutines:
    """Streams and objects for coroutines; see activestore.aio."""

    @pytest.fixture
    def names(self, store, source):
        store.publish(str(Path(__file__).with_name("ring_models.py")))
        worker = store.create("ring_models.Worker")
        store.create("ring_models.Family", {"w1": worker, "s": source}, alias="family")
        return store

    def run(self, peer, main):
        async def connected():
            async with await activestore.aio.connect(peer.endpoint) as store:
                return await asyncio.wait_for(main(store), 20)

        return asyncio.run(connected())

    def test_many_idle_streams_hold_up_nobody(self, peer, names):
        async def main(store):
            workers = [await store.create("ring_models.Worker") for _ in range(10)]
            streams = [worker.look.stream(1000, 60.0) for worker in workers]
            firsts = await asyncio.gather(*(anext(one) for one in streams))
            other = await store.create("ring_models.Worker")
            added = await other.add()
            for one in streams:
                await one.aclose()
            return firsts, added

        firsts, added = self.run(peer, main)
        assert (firsts, added) == ([0] * 10, 1)

    def test_cancelled_reader_ends_its_stream(self, peer, names):
        async def main(store):
            source = (await (await store.get("family")).members)["s"]

            async def read_all():
                async for _ in source.rows.stream(1_000_000):
                    await asyncio.sleep(0.001)

            try:
                await asyncio.wait_for(read_all(), 0.3)
            except asyncio.TimeoutError:
                pass  # And with it goes the traceback, which held the stream.
            return await source.add()

        assert self.run(peer, main) == 1

    def test_left_loop_ends_its_stream(self, peer, names):
        async def main(store):
            source = (await (await store.get("family")).members)["s"]
            async for number in source.rows.stream(1_000_000):
                if number == 5:
                    break
            return number, await source.add()

        assert self.run(peer, main) == (5, 1)

    def test_objects_in_containers_are_awaited_too(self, peer, names):
        async def main(store):
            family = await store.get("family")
            members = await family.members
            (listed,) = await family.listed()
            return await members["w1"].add(), await listed[0].add(), len(listed)

        assert self.run(peer, main) == (1, 2, 2)
