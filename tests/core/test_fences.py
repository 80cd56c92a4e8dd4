"""Nested calls of objects with a register: what came too late to count is refused."""

from __future__ import annotations

from typing import Any

import pytest

from activestore.core import effects, events
from activestore.core.calls import Call, Kind, Nested
from activestore.core.fences import FENCES_MAX, Fence, Fences
from activestore.errors import RemoteProtocolError, UnavailableError
from activestore.ids import ObjectId
from tests.core.stage import (
    OBJECT,
    OTHER,
    Stage,
    answers,
    client,
    delta,
    dispatched,
    only,
    sent_on,
)
from tests.core.world import object_id_of

CALLER = object_id_of(9)
OLD, NEW = Fence(CALLER, 0, 5), Fence(CALLER, 0, 7)


def kept(*fences: Fence) -> bytes:
    """Return what is on disk once these were seen."""
    seen = Fences()
    for fence in fences:
        assert seen.admits(fence)
    return seen.to_save()


def known(stage: Stage, out: list[Any], on_disk: bytes = b"") -> list[Any]:
    """Have storage tell the fences that one effect of `out` asks for."""
    (asked,) = only(out, effects.LookUpFences)
    return stage.step(events.FencesLookedUp(asked.object_id, asked.token, on_disk))


def run(stage: Stage, sequence: int, fence: Fence, on_disk: bytes = b"") -> Call:
    """Have a fenced call arrive, where nothing is known, and run."""
    known(stage, stage.call(sequence, fence=fence), on_disk)
    return dispatched(stage.load())


# -- what says under which epoch it calls ----------------------------------------------


def test_call_of_a_led_object_says_under_which_epoch(stage: Stage) -> None:
    stage.step(events.ObjectLed(OBJECT, 3, 8))
    parent = stage.run(1)

    (kept_first,) = only(
        stage.step(
            events.NestedLeft(
                Nested(parent.call_id, 1), OTHER, Kind.CALL, "add", None, True
            )
        ),
        effects.CommitStates,
    )
    (away,) = only(
        stage.step(events.Committed(kept_first.token)), effects.SendAway
    )  # fmt: skip

    assert away.call.fence == Fence(OBJECT, 3, 8)


def test_call_of_a_plain_object_has_no_fence_and_costs_no_look(stage: Stage) -> None:
    parent = stage.run(1)

    out = stage.nest(parent, 1)

    assert only(out, effects.LookUpFences) == []
    assert dispatched(stage.load(OTHER)).fence is None


@pytest.mark.parametrize(
    "over", [events.ObjectUnshared(OBJECT), events.ObjectDeposed(OBJECT)]
)
def test_object_that_is_not_led_here_fences_nothing(stage: Stage, over: Any) -> None:
    stage.step(events.ObjectLed(OBJECT, 0, 8))
    stage.step(over)
    parent = stage.run(1)

    assert only(stage.nest(parent, 1), effects.LookUpFences) == []


def test_call_that_comes_back_to_its_own_object_has_no_fence(stage: Stage) -> None:
    stage.step(events.ObjectLed(OBJECT, 0, 8))
    parent = stage.run(1)

    out = stage.nest(parent, 1, object_id=OBJECT)

    assert dispatched(out).fence is None


def test_what_a_method_makes_has_no_fence(stage: Stage) -> None:
    stage.step(events.ObjectLed(OBJECT, 0, 8))
    parent = stage.run(1)
    (away,) = only(
        stage.step(
            events.NestedLeft(
                Nested(parent.call_id, 1), OTHER, Kind.CREATE, "__init__", None, False
            )
        ),
        effects.SendAway,
    )

    assert away.call.fence is None


def test_call_of_an_object_here_is_fenced_like_one_elsewhere(stage: Stage) -> None:
    stage.step(events.ObjectLed(OBJECT, 0, 5))
    parent = stage.run(1)
    out = stage.nest(parent, 1)
    (kept_first,) = only(out, effects.CommitStates)
    out = stage.step(events.Committed(kept_first.token))

    out = known(stage, out, kept(Fence(OBJECT, 0, 6)))

    assert answers(out) == {Nested(parent.call_id, 1): "unavailable"}


# -- what a target does with it --------------------------------------------------------


def test_call_under_an_older_epoch_than_was_seen_is_refused(stage: Stage) -> None:
    stage.end(run(stage, 1, NEW))

    out = stage.call(2, fence=OLD)

    (refused,) = only(out, effects.Refuse)
    assert isinstance(refused.error, UnavailableError)
    assert "epoch 5, and has called under 7; nothing changed" in str(refused.error)
    assert dispatched(stage.call(3, fence=NEW))


def test_epoch_on_disk_refuses_what_is_older(stage: Stage) -> None:
    out = known(stage, stage.call(1, fence=OLD), kept(NEW))

    assert answers(out) == {client(1): "unavailable"}
    assert stage.boxes == {}
    assert stage.core.calls == {}


def test_only_the_caller_that_was_seen_is_fenced(stage: Stage) -> None:
    out = known(stage, stage.call(1, fence=Fence(OTHER, 0, 1)), kept(NEW))

    assert only(out, effects.LoadObject)


def test_forced_lineage_counts_though_its_epochs_are_lower(stage: Stage) -> None:
    forced = Fence(CALLER, 1, 2)
    stage.end(run(stage, 1, forced, kept(NEW)), change=delta())

    out = stage.call(2, fence=NEW)

    assert answers(out) == {client(2): "unavailable"}


def test_new_epoch_is_kept_with_the_change_and_once(stage: Stage) -> None:
    first = stage.end(run(stage, 1, NEW), change=delta())
    second = stage.end(dispatched(stage.call(2, fence=NEW)), change=delta())

    assert [only(out, effects.Commit)[0].fences for out in (first, second)] == [
        kept(NEW), b"",
    ]  # fmt: skip


def test_epoch_that_is_on_disk_is_not_kept_again(stage: Stage) -> None:
    out = stage.end(run(stage, 1, NEW, kept(NEW)), change=delta())

    assert only(out, effects.Commit)[0].fences == b""


def test_epoch_of_a_refused_commit_is_kept_with_the_next(stage: Stage) -> None:
    written = stage.end(run(stage, 1, NEW), change=delta())
    behind = dispatched(stage.call(2))
    stage.refuse_commit(written)
    stage.end(behind, change=delta())

    out = stage.end(dispatched(stage.load()), change=delta())

    assert only(out, effects.Commit)[0].fences == kept(NEW)


def test_epoch_of_what_only_read_is_kept_with_the_next_change(stage: Stage) -> None:
    known(stage, stage.call(1, "peek", fence=NEW))
    read = stage.end(dispatched(stage.load()))

    out = stage.end(stage.run(2), change=delta())

    assert only(read, effects.Commit) == []
    assert only(out, effects.Commit)[0].fences == kept(NEW)


def test_calls_wait_for_one_look_and_go_on_in_their_order(stage: Stage) -> None:
    first = stage.call(1, fence=NEW)
    second = stage.call(2, fence=NEW)
    known(stage, first)

    assert second == []
    done = stage.end(dispatched(stage.load()), change=delta())
    assert dispatched(done).origin == client(2)


def test_newer_call_that_came_in_the_meantime_is_not_overtaken(stage: Stage) -> None:
    """Both are looked up together: the one that came first may still run first."""
    out = stage.call(1, fence=NEW)
    stage.call(2, fence=OLD)

    out = known(stage, out)

    assert answers(out) == {client(2): "unavailable"}


def test_call_that_was_cancelled_meanwhile_does_not_run(stage: Stage) -> None:
    out = stage.call(1, fence=NEW)
    stage.step(events.CancelArrived(client(1).session, 1))

    assert known(stage, out) == []
    assert stage.boxes == {}


def test_call_of_an_object_that_is_led_elsewhere_meanwhile_is_sent_on(
    led: Stage,
) -> None:
    """What was read before others decided on the object does not count any more."""
    out = led.call(1, fence=NEW)

    assert sent_on(led.step(events.ObjectDeposed(OBJECT))) == {client(1): True}
    led.step(events.ObjectLed(OBJECT))
    again = led.call(2, fence=OLD)
    assert known(led, out) == []
    assert answers(known(led, again, kept(NEW))) == {client(2): "unavailable"}


def test_deposed_leader_knows_no_fences_when_it_leads_again(led: Stage) -> None:
    led.end(run(led, 1, OLD), change=delta())
    led.step(events.ObjectDeposed(OBJECT))
    led.step(events.ObjectLed(OBJECT))

    assert only(led.call(2, fence=OLD), effects.LookUpFences)


def test_object_that_left_and_came_back_has_its_fences_looked_up(stage: Stage) -> None:
    call = run(stage, 1, OLD)
    stage.step(events.MoveOrdered(OBJECT))
    stage.end(call)
    stage.step(events.MoveEnded(OBJECT, is_gone=True))

    assert only(stage.call(2, fence=OLD), effects.LookUpFences)


@pytest.mark.parametrize(
    "told",
    [
        {"error": UnavailableError("storage", "broken")},
        {"kept": b"\x91\x01"},
    ],
)
def test_fences_that_cannot_be_read_let_nothing_pass(stage: Stage, told: Any) -> None:
    (asked,) = only(stage.call(1, fence=NEW), effects.LookUpFences)

    out = stage.step(events.FencesLookedUp(OBJECT, asked.token, **told))

    assert answers(out) == {client(1): "unavailable"}
    assert stage.boxes == {}


# -- the table -------------------------------------------------------------------------


def test_oldest_of_too_many_callers_is_forgotten() -> None:
    fences = Fences()
    callers = [object_id_of(number) for number in range(FENCES_MAX + 1)]
    for caller in callers:
        assert fences.admits(Fence(caller, 0, 5))

    again = Fences(fences.to_save())

    assert again.epoch_of(callers[0]) == 0
    assert [again.epoch_of(one) for one in callers[1:]] == [5] * FENCES_MAX


@pytest.mark.parametrize(
    "damaged", [b"\xc1", b"\x01", b"\x91\x90", b"\x91\x93\xc4\x01x\x00\x01"]
)
def test_what_is_no_table_of_fences_is_malformed(damaged: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="fences are malformed"):
        Fences(damaged)


def test_largest_epochs_fit_the_size_that_is_told() -> None:
    fences = Fences()
    for number in range(FENCES_MAX):
        caller = ObjectId(number.to_bytes(16, "big"))
        fences.admits(Fence(caller, 2**64 - 1, 2**62))

    assert len(fences.to_save()) <= 10 * 1024
