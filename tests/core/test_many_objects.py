"""What is done for one object costs what belongs to it, however many others there are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from activestore.core import effects, events
from activestore.core.calls import Call, Kind
from activestore.core.calls_by_object import ENDED_MAX, CallsByObject
from activestore.ids import ObjectId
from tests.core.stage import Payload, Stage, client
from tests.core.world import object_id_of


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
