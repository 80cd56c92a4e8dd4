"""What is done for one object costs what belongs to it, however many others there are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest

from activestore.core import effects, events
from activestore.core.calls import Call, Kind
from activestore.core.calls_by_object import ENDED_MAX, CallsByObject
from activestore.core.led_objects import CATCH_UP_COUNT
from activestore.core.register import Register
from activestore.core.replication import Replication
from activestore.core.replication_effects import Send
from activestore.core.replication_events import PeerSeen, TimerFired
from activestore.ids import ObjectId, PeerId
from activestore.wire.replicas import Ballot, Config, Drop
from tests.core.stage import Payload, Stage, client
from tests.core.world import object_id_of

ME, OTHER = PeerId(b"a" * 6), PeerId(b"b" * 6)


class Calls(dict[int, Call]):
    """The open calls of a core; counts how many are walked over."""

    walked = 0

    def values(self) -> Any:
        """Walk over all, as far as it is gone."""
        return map(self._count, super().values())

    def __reversed__(self) -> Iterator[int]:
        """Walk over the numbers from the newest on."""
        return map(self._count, super().__reversed__())

    def _count(self, one: Any) -> Any:
        self.walked += 1
        return one


def crowd(calls_count: int, led_count: int) -> tuple[Stage, Calls, list[ObjectId]]:
    """Return a core with calls of led objects, and of others, all of which still load."""
    stage = Stage()
    stage.core.calls = calls = Calls()
    stage.core.calls_by_object = CallsByObject(calls)
    led = [object_id_of(number) for number in range(led_count)]
    for object_id in led:
        stage.core.step(events.ObjectLed(object_id), stage.now_s)
    for number in range(calls_count):
        arrive(stage, object_id_of(number), number)
    stage.core.check()
    calls.walked = 0
    return stage, calls, led


def arrive(stage: Stage, object_id: ObjectId, number: int) -> None:
    """Have a call arrive, without the checks that look at everything."""
    arrived = events.CallArrived(client(number), object_id, Kind.CALL, "add", Payload())
    stage.core.step(arrived, stage.now_s)


@pytest.mark.parametrize("calls_count", [300, 3000])
def test_losing_many_objects_looks_at_each_call_once(calls_count: int) -> None:
    """A peer whose links break loses thousands of them in one turn, with calls open."""
    stage, calls, led = crowd(calls_count, led_count=200)

    sent_on = [
        effect.origin
        for object_id in led
        for effect in stage.core.step(events.ObjectDeposed(object_id), stage.now_s)
        if isinstance(effect, effects.SendOn)
    ]

    assert sent_on == [client(number) for number in range(200)]
    assert calls.walked <= calls_count + 5 * len(led)


def test_calls_that_ended_are_forgotten_and_later_ones_found() -> None:
    stage, _, _ = crowd(calls_count=0, led_count=0)
    found, object_id = stage.core.calls_by_object, object_id_of(1)
    stage.step(events.ObjectLed(object_id))

    for number in range(2 * ENDED_MAX):
        arrive(stage, object_id, number)
        assert [one.origin for one in found.of(object_id)] == [client(number)]
        stage.step(events.ObjectDeposed(object_id))
        stage.step(events.ObjectLed(object_id))
        assert not found.of(object_id)

    assert found.kept_count <= ENDED_MAX + 1


class Line(OrderedDict[Any, Any]):
    """What waits; from its front it is taken without a walk over what was taken before."""

    def __iter__(self) -> Iterator[Any]:
        """Refuse."""
        raise AssertionError("a dict steps over all that were taken from its front")


def test_next_objects_to_be_taken_over_are_found_without_a_walk() -> None:
    """Of 100,000 that wait, the later ones took 0.1 ms each, 1,000 a second."""
    core = Replication(ME, None, lambda: 0.5)
    epoch, config = Ballot(3, OTHER), Config(4, (ME, OTHER), wanted=2)
    ids = [object_id_of(number) for number in range(30)]
    for object_id in ids:
        core.restore(object_id, Register(epoch, epoch, 7, config))
    searches = core._takeovers
    searches._queue = Line(searches._queue.items())
    core.take_effects()

    asked = []
    while (at_s := core.deadline_s()) is not None and at_s < 0.05:
        asked += core.step(TimerFired(), at_s)

    assert [one.message.object_id for one in asked if type(one) is Send] == ids


def test_next_objects_of_a_peer_that_is_back_are_found_without_a_walk() -> None:
    core = Replication(ME, None, lambda: 0.5)
    leads = core._leaders
    leads._catching = Line()
    ids = [object_id_of(number) for number in range(3 * CATCH_UP_COUNT)]
    for object_id in ids:
        register, _ = core.begin(object_id, 1, 1.0)
        leads._tell_leaving(
            object_id, OTHER, Drop(object_id, register.epoch, register.config)
        )
    core.take_effects(1.0)

    told = core.step(PeerSeen(OTHER, True), 1.0)
    while (at_s := core.deadline_s()) is not None and at_s < 1.2:
        told += core.step(TimerFired(), at_s)

    assert [one.message.object_id for one in told if type(one) is Send] == ids
