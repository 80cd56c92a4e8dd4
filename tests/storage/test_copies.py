"""Copies of objects that other peers lead: what their disk says they have, they have."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from activestore.core.register import Register, unpack_register
from activestore.errors import AliasExistsError, StorageFullError
from activestore.ids import ObjectId, PeerId
from activestore.peer.shipping import (
    Copy,
    apply_copies,
    claim_name,
    mend_register,
    pack_change,
    read_whole,
    register_row,
    registers_of,
    remove_copy,
    unpack_change,
)
from activestore.storage.engine import Change, Damage, Engine
from activestore.wire.replicas import Ballot, Config, Point
from tests.storage.changes import (
    SESSION,
    apply_copy,
    changed,
    content_of,
    deleted,
    delta,
    new,
    oid,
    reply,
    state,
)

LEADER, OTHER = PeerId(b"leader"), PeerId(b"other6")
CONFIG = Config(1, (LEADER, OTHER))
MIB = 1 << 20


def at(counter: int, number: int, **fields: Any) -> Register:
    ballot = Ballot(counter, LEADER)
    return Register(ballot, ballot, number, CONFIG, **fields)


def shipped(change: Change) -> Change:
    body, buffers = pack_change(change)
    return unpack_change(change.object_id, body, buffers)


def keep(engine: Engine, number: int, content: Any = None, **options: Any) -> ObjectId:
    """Have a copy of an object, at counter 1 and number 1."""
    content = state(value=b"\x01") if content is None else content
    change = shipped(Change(oid(number), 1, content, **options))
    assert apply_copy(engine, oid(number), at(1, 1), None, change, False) == ""
    return oid(number)


def register_of(engine: Engine, object_id: ObjectId) -> Register | None:
    value = engine.row("register", object_id)
    return None if value is None else unpack_register(value)


def damage(engine: Any, table: str, key: bytes) -> None:
    def work(transaction: Any) -> None:
        handle = engine._tables[table]
        value = bytearray(transaction.get(key, db=handle))
        value[len(value) // 2] ^= 1
        transaction.put(key, bytes(value), db=handle)

    engine._write(work)
    engine._documents.clear()


# -- steps -----------------------------------------------------------------------------


def test_state_and_register_come_back_together(reopen: Callable[..., Engine]) -> None:
    engine = reopen()
    keep(engine, 1, state(value=b"\x01", graph=b"g", buffers=[b"b" * 9]), alias="hits")
    step = shipped(changed(1, 2, delta(value=b"\x02"), reply=reply(1, b"answer")))

    assert apply_copy(engine, oid(1), at(1, 2), Point(1, 1), step, False) == ""

    engine = reopen()
    head = engine.head(oid(1))
    assert head is not None
    assert (head.version, head.epoch, head.alias) == (2, 1, "hits")
    assert content_of(engine, 1) == ({"value": b"\x02"}, b"g", [b"b" * 9])
    assert register_of(engine, oid(1)) == at(1, 2)
    found = engine.reply(oid(1), SESSION, 1)
    assert found is not None
    assert found.body == b"answer"


@pytest.mark.parametrize("base", [Point(1, 2), Point(2, 1), Point(1, 0)])
def test_step_that_follows_on_another_state_is_not_done(
    engine: Engine, base: Point
) -> None:
    keep(engine, 1)
    step = shipped(changed(1, 3, delta(value=b"\x03")))

    for change in (step, None, shipped(deleted(1))):
        assert apply_copy(engine, oid(1), at(2, 3), base, change, False) == "base"

    assert content_of(engine, 1)[0] == {"value": b"\x01"}
    assert register_of(engine, oid(1)) == at(1, 1)


def test_step_without_anything_here_is_not_done(engine: Engine) -> None:
    step = shipped(changed(1, 3, delta(value=b"\x03")))

    assert apply_copy(engine, oid(1), at(1, 3), Point(1, 2), step, False) == "base"
    assert apply_copy(engine, oid(1), at(1, 3), None, step, False) == "base"

    assert register_of(engine, oid(1)) is None
    assert engine.head(oid(1)) is None


def test_whole_takes_the_place_of_all_that_was_kept(engine: Engine) -> None:
    """Also of the answer to a write that was accepted here and nowhere else."""
    keep(engine, 1, alias="before", reply=reply(1, b"of a lost write"))
    whole = shipped(Change(
        oid(1), 5, state(other=b"\x05"), alias="after", replies=(reply(2, b"kept"),),
        created_s=7.0,
    ))  # fmt: skip

    assert apply_copy(engine, oid(1), at(3, 5), None, whole, False) == ""

    assert content_of(engine, 1)[0] == {"other": b"\x05"}
    assert [one.body for one in engine.replies_of(oid(1))] == [b"kept"]
    assert (engine.resolve("before"), engine.resolve("after")) == (None, oid(1))
    head = engine.head(oid(1))
    assert head is not None
    assert (head.epoch, head.version, head.created_s) == (3, 5, 7.0)


def test_promise_changes_the_register_alone(engine: Engine) -> None:
    keep(engine, 1)
    promised = at(1, 1)._replace(promised=Ballot(4, OTHER))

    assert apply_copy(engine, oid(1), promised, None, None, False) == ""

    head = engine.head(oid(1))
    assert head is not None
    assert head.epoch == 1
    assert register_of(engine, oid(1)) == promised


def test_same_state_under_a_new_epoch_tells_its_counter(engine: Engine) -> None:
    keep(engine, 1)

    assert apply_copy(engine, oid(1), at(6, 1), Point(1, 1), None, False) == ""

    head = engine.head(oid(1))
    assert head is not None
    assert (head.epoch, head.version) == (6, 1)


def test_member_that_is_the_witness_now_lets_its_state_go(engine: Engine) -> None:
    object_id = keep(engine, 1, replies=(reply(1),))
    joint = CONFIG._replace(before=CONFIG.members)
    asked = at(2, 2, is_stateless=True)._replace(config=joint)
    assert apply_copy(engine, object_id, asked, None, None, False) == ""
    assert engine.head(object_id) is not None, "it may not come to be the witness"

    witness = at(2, 3, is_stateless=True)
    assert apply_copy(engine, object_id, witness, None, None, False) == ""

    assert engine.head(object_id) is None
    assert read_whole(engine, object_id) is None
    assert unpack_register(engine.row("register", object_id) or b"") == witness
    assert (
        apply_copy(engine, object_id, at(2, 4, is_stateless=True), None, None, False)
        == ""
    )


def test_witness_keeps_a_register_and_no_state(engine: Engine) -> None:
    for number in (1, 2):
        register = at(1, number)
        point = Point(1, number - 1) if number > 1 else None
        assert apply_copy(engine, oid(1), register, point, None, False) == ""

    assert register_of(engine, oid(1)) == at(1, 2)
    assert engine.head(oid(1)) is None
    assert read_whole(engine, oid(1)) is None


def test_register_is_not_written_ahead_of_its_state(engine: Engine) -> None:
    """The step before was refused: what is told of it must not be promised."""
    keep(engine, 1)
    later = at(1, 2)._replace(promised=Ballot(3, OTHER))

    assert apply_copy(engine, oid(1), later, None, None, False) == "base"

    assert register_of(engine, oid(1)) == at(1, 1)


# -- deleting --------------------------------------------------------------------------


def test_delete_leaves_the_register_and_the_answers(engine: Engine) -> None:
    """A retry of the delete is answered as the delete was, by whoever leads then."""
    keep(engine, 1, alias="hits", reply=reply(1, b"first"))
    gone = shipped(Change(oid(1), 2, is_delete=True, reply=reply(2, b"deleted")))
    register = at(1, 2, is_deleted=True)

    assert apply_copy(engine, oid(1), register, Point(1, 1), gone, True) == ""

    assert engine.head(oid(1)) is None
    assert engine.resolve("hits") is None
    assert register_of(engine, oid(1)) == register
    assert [one.body for one in engine.replies_of(oid(1))] == [b"first", b"deleted"]


def test_whole_of_a_deleted_object_is_its_answers(
    reopen: Callable[..., Engine],
) -> None:
    engine = reopen()
    keep(engine, 1)
    gone = shipped(Change(oid(1), 2, is_delete=True, reply=reply(2, b"deleted")))
    register = at(1, 2, is_deleted=True)
    apply_copy(engine, oid(1), register, Point(1, 1), gone, True)

    found = read_whole(engine, oid(1))
    assert found is not None
    keep(engine, 2, reply=reply(1, b"of a lost write"))
    again = unpack_change(oid(2), *pack_change(found[1]))

    assert found[0] == register
    assert apply_copy(engine, oid(2), register, None, again, True) == ""
    assert engine.head(oid(2)) is None
    assert [one.body for one in engine.replies_of(oid(2))] == [b"deleted"]


def test_delete_that_is_done_again_is_done(engine: Engine) -> None:
    register = at(2, 4, is_deleted=True)

    for change in (None, shipped(Change(oid(1), 2, is_delete=True))):
        assert apply_copy(engine, oid(1), register, None, change, True) == ""
    again = apply_copy(engine, oid(1), at(3, 4), Point(2, 4), None, True)

    assert again == ""
    assert engine.head(oid(1)) is None


def test_copy_that_is_removed_leaves_nothing(engine: Engine) -> None:
    engine.commit([new(1, alias="hits")])
    keep(engine, 2, alias="hits", reply=reply(1))
    damage(engine, "heads", keep(engine, 3, alias="other"))

    for number in (2, 3, 4):
        remove_copy(engine, oid(number))

    for number in (2, 3, 4):
        assert register_of(engine, oid(number)) is None
        assert engine.replies_of(oid(number)) == []
    assert [head.object_id for head in engine.heads()] == [oid(1)]
    assert (engine.resolve("hits"), engine.resolve("other")) == (oid(1), None)


# -- names -----------------------------------------------------------------------------


def test_name_of_another_object_refuses_no_copy_and_goes_on_naming_the_other(
    engine: Engine,
) -> None:
    engine.commit([new(1, alias="hits")])

    keep(engine, 2, alias="hits")

    assert engine.resolve("hits") == oid(1)
    head = engine.head(oid(2))
    assert head is not None
    assert head.alias == "hits"
    assert not [found for found in engine.verify() if isinstance(found, Damage)]


def test_copy_that_goes_takes_no_name_of_another_object_along(engine: Engine) -> None:
    engine.commit([new(1, alias="hits")])
    for number, change in (
        (2, shipped(Change(oid(2), 2, is_delete=True))),
        (3, shipped(Change(oid(3), 2, state(value=b"\x02")))),
        (4, shipped(Change(oid(4), 2, is_rename=True, alias="other"))),
    ):
        keep(engine, number, alias="hits")
        base = None if change.state is not None else Point(1, 1)
        gone = change.is_delete
        register = at(1, 2, is_deleted=gone)
        assert apply_copy(engine, oid(number), register, base, change, gone) == ""

    assert engine.resolve("hits") == oid(1)
    assert engine.resolve("other") == oid(4)


def test_new_object_can_not_take_the_name_of_a_copy(engine: Engine) -> None:
    keep(engine, 1, alias="hits")

    (refused,) = engine.commit([new(2, alias="hits")])

    assert isinstance(refused, AliasExistsError)


def test_copy_that_begins_to_lead_claims_its_name_where_it_is_free(
    engine: Engine,
) -> None:
    engine.commit([new(1, alias="hits")])
    keep(engine, 2, alias="hits")

    assert not claim_name(engine, oid(2))
    assert engine.resolve("hits") == oid(1)

    engine.commit([deleted(1)])
    assert engine.resolve("hits") is None
    assert claim_name(engine, oid(2))
    assert engine.resolve("hits") == oid(2)
    assert claim_name(engine, keep(engine, 3))
    assert claim_name(engine, oid(9))


# -- many in one commit ----------------------------------------------------------------


def test_steps_of_a_batch_build_on_each_other(reopen: Callable[..., Engine]) -> None:
    engine = reopen()
    commits = engine.usage().commits
    steps = [
        Copy(oid(1), at(1, 1), None, shipped(Change(oid(1), 1, state(value=b"\x01"))))
    ]
    steps += [
        Copy(
            oid(1), at(1, number), Point(1, number - 1),
            shipped(changed(1, number, delta(value=bytes([number])))),
        )
        for number in range(2, 6)
    ]  # fmt: skip
    steps += [Copy(oid(2), at(1, 1), None, shipped(Change(oid(2), 1, state(v=b"2"))))]
    wrong = Copy(oid(2), at(1, 9), Point(1, 8), steps[1].change)

    found = apply_copies(engine, [*steps, wrong])

    assert found == [("", "")] * 6 + [("base", "")]
    assert engine.usage().commits == commits + 1
    engine = reopen()
    assert content_of(engine, 1)[0] == {"value": b"\x05"}
    assert register_of(engine, oid(1)) == at(1, 5)
    assert register_of(engine, oid(2)) == at(1, 1)


def test_what_builds_on_a_step_that_had_no_room_is_not_done(
    reopen: Callable[..., Engine],
) -> None:
    engine = reopen(budget=8 * MIB)
    keep(engine, 1)
    large = shipped(changed(1, 2, delta(value=os.urandom(9 * MIB))))
    after = shipped(changed(1, 3, delta(value=b"\x03")))
    promise = at(1, 3)._replace(promised=Ballot(2, OTHER))

    found = apply_copies(engine, [
        Copy(oid(1), at(1, 2), Point(1, 1), large),
        Copy(oid(1), at(1, 3), Point(1, 2), after),
    ])  # fmt: skip

    assert [problem for problem, _ in found] == ["space", "base"]
    assert "storage is full" in found[0][1]
    assert apply_copy(engine, oid(1), promise, None, None, False) == "base"
    assert register_of(engine, oid(1)) == at(1, 1)
    assert content_of(engine, 1)[0] == {"value": b"\x01"}


def test_promise_is_kept_where_no_state_has_room(reopen: Callable[..., Engine]) -> None:
    engine = reopen(budget=8 * MIB)
    keep(engine, 1)
    number = 2
    while not isinstance(
        engine.commit([new(number, state(value=os.urandom(MIB // 2)))])[0],
        StorageFullError,
    ):
        number += 1

    promised = at(1, 1)._replace(promised=Ballot(4, OTHER))
    assert apply_copy(engine, oid(1), promised, None, None, False) == ""
    register = at(4, 2, is_deleted=True)
    assert apply_copy(engine, oid(1), register, Point(1, 1), None, True) == ""


# -- the whole -------------------------------------------------------------------------


def test_replica_made_of_the_whole_is_the_same(reopen: Callable[..., Engine]) -> None:
    engine = reopen()
    large = os.urandom(2 * MIB)
    content = state(value=b"\x01", graph=b"g", buffers=[b"b" * 9, large])
    engine.commit([new(
        1, content, alias="hits", reply=reply(1, b"one"),
        rows=[register_row(oid(1), at(2, 7))],
    )])  # fmt: skip

    found = read_whole(engine, oid(1))
    assert found is not None
    register, change = found
    assert change.state is not None
    blocks = content_of(engine, 1)[2]
    for buffer in change.state.buffers:
        if hasattr(buffer, "fd"):
            os.close(buffer.fd)
    packed, _ = pack_change(change)
    again = unpack_change(oid(2), packed, blocks)

    assert register == at(2, 7)
    assert apply_copy(engine, oid(2), register, None, again, False) == ""
    assert content_of(engine, 2) == content_of(engine, 1)
    heads = [engine.head(oid(number)) for number in (1, 2)]
    assert {(h.version, h.alias, h.created_s) for h in heads if h} == {
        (1, "hits", 1000.0)
    }
    assert engine.replies_of(oid(2)) == engine.replies_of(oid(1))


def test_object_without_a_register_has_no_whole(engine: Engine) -> None:
    engine.commit([new(1)])

    assert read_whole(engine, oid(1)) is None
    assert read_whole(engine, oid(2)) is None


# -- damage ----------------------------------------------------------------------------


def test_damaged_state_takes_no_step_and_is_mended_by_the_whole(engine: Engine) -> None:
    keep(engine, 1, alias="hits")
    damage(engine, "heads", oid(1))
    step = shipped(changed(1, 2, delta(value=b"\x02")))

    assert apply_copy(engine, oid(1), at(1, 2), Point(1, 1), step, False) == "base"
    promised = at(1, 1)._replace(promised=Ballot(4, OTHER))
    assert apply_copy(engine, oid(1), promised, None, None, False) == ""
    whole = shipped(Change(oid(1), 2, state(value=b"\x02"), alias="hits"))
    assert apply_copy(engine, oid(1), at(4, 2), None, whole, False) == ""

    assert content_of(engine, 1)[0] == {"value": b"\x02"}
    assert engine.resolve("hits") == oid(1)


def test_lost_state_takes_no_step(engine: Engine) -> None:
    keep(engine, 1)
    lost = at(1, 1, is_lost=True)
    assert apply_copy(engine, oid(1), lost, None, None, False) == ""
    step = shipped(changed(1, 2, delta(value=b"\x02")))

    assert apply_copy(engine, oid(1), at(1, 2), Point(1, 1), step, False) == "base"

    whole = shipped(Change(oid(1), 2, state(value=b"\x02")))
    assert apply_copy(engine, oid(1), at(1, 2), None, whole, False) == ""


def test_damaged_register_is_named_and_written_anew_by_the_whole(
    engine: Engine,
) -> None:
    """What was promised is not known: it must not be taken for a plain object."""
    keep(engine, 1)
    keep(engine, 2)
    damage(engine, "facts", b"register\x00" + oid(1))

    assert {row[:2] for row in registers_of(engine)} == {
        (oid(1), None), (oid(2), at(1, 1))
    }  # fmt: skip
    told = [found for found in engine.verify() if isinstance(found, Damage)]
    assert [found.object_id for found in told] == [oid(1)]
    step = shipped(changed(1, 2, delta(value=b"\x02")))
    assert apply_copy(engine, oid(1), at(1, 2), Point(1, 1), step, False) == "base"
    whole = shipped(Change(oid(1), 2, state(value=b"\x02")))
    assert apply_copy(engine, oid(1), at(1, 2), None, whole, False) == ""
    assert (oid(1), at(1, 2), None) in registers_of(engine)


def test_register_that_was_written_since_its_damage_was_seen_stays(
    engine: Engine,
) -> None:
    """What is known in memory is older than a write that comes to the disk meanwhile."""
    keep(engine, 1)
    step = shipped(changed(1, 2, delta(value=b"\x02")))
    assert apply_copy(engine, oid(1), at(1, 2), Point(1, 1), step, False) == ""

    mend_register(engine, oid(1), at(1, 1))

    assert register_of(engine, oid(1)) == at(1, 2)
