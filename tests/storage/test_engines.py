"""What every engine promises, the one on disk and the one in memory alike."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable

import pytest

from activestore.errors import (
    AliasExistsError,
    InvalidRequestError,
    ObjectNotFoundError,
    StorageFullError,
)
from activestore.ids import SessionId
from activestore.storage.engine import Change, ClassRecord, Engine
from activestore.storage.records import reply_key, seal
from activestore.wire import packing
from activestore.wire.state import StateDelta
from tests.storage.changes import (
    REVISION,
    SESSION,
    changed,
    content_of,
    deleted,
    delta,
    new,
    oid,
    reply,
    state,
)

MIB = 1 << 20
Open = Callable[..., Engine]


@pytest.mark.parametrize(
    "size", [0, 1, 300, 5000, 300_000, 1 << 20, (1 << 20) + 1, 9 << 20]
)
def test_part_of_any_size_comes_back_after_reopening(reopen, size):
    block = random.Random(size).randbytes(size)
    first = reopen()
    made = state(
        graph=b"g" * min(size, 1 << 20), buffers=[block, b"small"], value=b"\x07"
    )
    assert first.commit([new(1, made)]) == [None]

    again = reopen()

    assert content_of(again, 1) == (
        {"value": b"\x07"}, made.graph, [block, b"small"]
    )  # fmt: skip


def test_delta_replaces_fields_and_buffers_and_keeps_the_others(engine):
    large = random.Random(1).randbytes(3 << 20)
    engine.commit(
        [new(1, state(graph=b"one", buffers=[large, b"b" * 5000], a=b"1", b=b"2"))]
    )

    step = StateDelta(
        "m.C", REVISION, 0, {"a": b"9"}, ("b",), b"two", ("g",), [0, b"new"]
    )
    assert engine.commit([changed(1, 2, step)]) == [None]

    assert content_of(engine, 1) == ({"a": b"9"}, b"two", [large, b"new"])
    head = engine.head(oid(1))
    assert head is not None
    assert (head.version, head.state_bytes) == (2, 1 + 3 + len(large) + 3)


def test_many_deltas_of_one_object_in_a_batch_become_one_record(engine):
    engine.commit([new(1)])
    before = engine.usage().changes

    results = engine.commit(
        [changed(1, n, delta(value=bytes([n]), big=b"x" * 5000)) for n in range(2, 66)]
    )

    assert results == [None] * 64
    assert content_of(engine, 1)[0]["value"] == bytes([65])
    assert engine.usage().changes - before == 64


def test_replies_are_kept_dropped_and_expire(engine):
    engine.commit([new(1, reply=reply(1, b"one"))])
    engine.commit([changed(1, 2, delta(value=b"2"), reply=reply(2, b"two"))])
    engine.commit(
        [Change(oid(1), is_delete=True, version=3, drop_replies=[(SESSION, 1)])]
    )

    assert engine.reply(oid(1), SESSION, 1) is None
    found = engine.reply(oid(1), SESSION, 2)
    assert found is not None
    assert found.body == b"two"
    assert engine.expire_replies(60.0, 60.0) == (0, True)
    assert engine.expire_replies(1.0, 60.0) == (1, True)
    assert engine.reply(oid(1), SESSION, 2) is None


def test_reply_that_its_client_has_is_refused_not_forgotten(reopen):
    engine = reopen()
    engine.commit([new(1, reply=reply(3)), new(2, reply=reply(3))])
    told = dataclasses.replace(reply(5), first_unacked=5)
    engine.commit([
        changed(1, 2, delta(value=b"2"), reply=told, drop_replies=[(SESSION, 3)]),
        changed(1, 3, delta(value=b"3"), reply=reply(6)),
    ])  # fmt: skip

    again = reopen()

    found = {n: again.reply(oid(1), SESSION, n) for n in range(2, 8)}
    codes = {n: None if one is None else one.code for n, one in found.items()}
    refused = dict.fromkeys([2, 3, 4], "invalid_request")
    assert codes == {**refused, 5: "", 6: "", 7: None}
    assert found[5] == told
    assert again.reply(oid(2), SESSION, 2) is None, "that object was told nothing"
    assert again.reply(oid(1), SessionId(b"t" * 16), 3) is None


def test_fences_are_kept_with_a_change_and_replaced_by_the_next(reopen):
    """They are an answer of nobody's session: the object's own id, sequence 0."""
    engine = reopen()
    engine.commit([new(1), new(2)])
    for number, body in enumerate([b"one", b"two"], 2):
        kept = dataclasses.replace(reply(0, body), session=SessionId(oid(1)))
        step = changed(1, number, delta(value=body), reply=reply(number))
        engine.commit([dataclasses.replace(step, replies=(kept,))])

    again = reopen()

    assert again.reply(oid(1), SessionId(oid(1)), 0) == kept
    assert again.reply(oid(2), SessionId(oid(2)), 0) is None
    assert len(again.replies_of(oid(1))) == 3


def test_reply_is_refused_by_the_list_of_those_that_are_open(reopen):
    engine = reopen()
    told = dataclasses.replace(reply(8), first_unacked=2, still_open=(2, 5))
    engine.commit([new(1, reply=told)])
    engine.commit([changed(1, 2, delta(value=b"2"), reply=reply(9))])

    again = reopen()

    refused = [n for n in range(1, 8) if again.reply(oid(1), SESSION, n) is not None]
    assert refused == [1, 3, 4, 6, 7]
    assert again.reply(oid(1), SESSION, 8) == told


def test_reply_written_before_it_said_what_is_over_is_read(engine):
    old = seal(packing.pack(["", b"one", 1000.0, []]))
    engine.commit([new(1)])
    with_key = reply_key(oid(1), SESSION, 4)
    engine._write(
        lambda transaction: transaction.put(with_key, old, db=engine._tables["replies"])
    )

    assert engine.reply(oid(1), SESSION, 4) == reply(4, b"one")
    assert engine.reply(oid(1), SESSION, 3) is None


def test_heads_are_listed_in_pages_by_id_and_by_alias(engine):
    engine.commit([new(n, alias=f"a{9 - n}" if n % 2 else "") for n in range(1, 8)])

    pages, after = [], None
    while page := engine.heads(after=after, limit=3):
        pages.append([head.object_id for head in page])
        after = page[-1].object_id
    by_alias = [head.alias for head in engine.heads(alias_prefix="a", limit=2)]
    rest = engine.heads(alias_prefix="a", after=engine.resolve(by_alias[-1]))

    assert [one for page in pages for one in page] == [oid(n) for n in range(1, 8)]
    assert by_alias + [head.alias for head in rest] == ["a2", "a4", "a6", "a8"]


def test_code_and_classes_come_back(engine):
    record = ClassRecord("m.C", REVISION, REVISION, b"interface", 1.0)
    engine.put_code(REVISION, b"archive", [record])

    assert engine.code(REVISION) == b"archive"
    assert engine.code(b"x" * 16) is None
    assert engine.classes() == [record]
    assert engine.class_revision("m.C", REVISION) == record


def test_refused_change_does_not_hold_up_the_others(engine):
    engine.commit([new(1, alias="taken")])

    results = engine.commit([
        new(2, alias="taken"), new(3), changed(9, 2, delta(value=b"1")),
        Change(oid(8), is_delete=True), new(1),
    ])  # fmt: skip

    assert [type(r) for r in results] == [
        AliasExistsError, type(None), ObjectNotFoundError, ObjectNotFoundError,
        InvalidRequestError,
    ]  # fmt: skip
    assert engine.head(oid(2)) is None
    assert engine.head(oid(3)) is not None


def test_group_is_kept_whole_or_not_at_all(engine):
    engine.commit([new(1, alias="taken")])

    group = [new(2, group=7), new(3, alias="taken", group=7), new(4, group=7)]
    assert all(isinstance(r, AliasExistsError) for r in engine.commit(group))

    assert [engine.head(oid(n)) for n in (2, 3, 4)] == [None, None, None]
    same_alias = [new(5, alias="x", group=8), new(6, alias="x", group=8)]
    assert all(isinstance(r, AliasExistsError) for r in engine.commit(same_alias))


def test_change_made_from_a_refused_one_is_refused_with_it(engine):
    """Its fields alone, on the state before, would be a state that never was."""
    engine.commit([new(1), new(2)])

    results = engine.commit([
        new(1), changed(1, 2, delta(value=b"2")),
        changed(2, 2, delta(value=b"2"), group=5), new(1, group=5),
        changed(2, 3, delta(other=b"3")), Change(oid(2), 3, reply=reply(7)),
    ])  # fmt: skip

    assert [result and result.code for result in results] == [
        "invalid_request", "unavailable", "invalid_request", "invalid_request",
        "unavailable", "unavailable",
    ]  # fmt: skip
    assert engine.reply(oid(2), SESSION, 7) is None
    assert content_of(engine, 1)[0] == content_of(engine, 2)[0] == {"value": b"\x01"}
    assert engine.commit([changed(2, 2, delta(value=b"2"))]) == [None]


def test_retry_of_a_create_that_was_committed_succeeds_and_changes_nothing(engine):
    engine.commit([new(1, reply=reply(5))])
    engine.commit([changed(1, 2, delta(value=b"later"))])

    assert engine.commit([new(1, reply=reply(5))]) == [None]

    assert content_of(engine, 1)[0] == {"value": b"later"}


def test_deleting_frees_the_alias(engine):
    engine.commit([new(1, alias="name")])
    engine.commit([Change(oid(1), version=2, is_delete=True)])

    assert engine.resolve("name") is None
    assert engine.commit([new(2, alias="name")]) == [None]


def test_new_objects_are_refused_when_the_budget_is_nearly_used(reopen):
    engine = reopen(budget=8 << 20)
    refused = None
    kept = 0
    for number in range(1, 200):
        (result,) = engine.commit([new(number, state(buffers=[os.urandom(200_000)]))])
        if result is not None:
            refused = result
            break
        kept = number

    assert isinstance(refused, StorageFullError)
    assert refused.budget_bytes == 8 << 20
    assert refused.used_bytes > 0.8 * refused.budget_bytes
    assert engine.head(oid(kept)) is not None
    for number in range(1, kept + 1):
        assert engine.commit([Change(oid(number), version=2, is_delete=True)]) == [None]
    engine.commit([Change(oid(1))])
    assert engine.commit([new(500)]) == [None]


def test_large_files_go_when_nothing_uses_them(engine, reopen):
    shared = os.urandom(2 * MIB)
    engine.commit(
        [new(1, state(buffers=[shared])), new(2, state(buffers=[bytes(shared)]))]
    )
    engine.commit([deleted(1)])

    assert engine.collect_garbage(-1.0) == 0
    assert content_of(engine, 2)[2] == [shared]
    engine.commit([deleted(2)])
    assert engine.collect_garbage(3600.0) == 0
    assert engine.collect_garbage(-1.0) == len(shared)
    assert reopen().usage().used_bytes < MIB


def test_usage_counts_what_is_there(engine):
    engine.commit([new(1, state(buffers=[os.urandom(2 * MIB)])), new(2)])
    engine.commit([Change(oid(1))])

    usage = engine.usage()

    assert usage.objects == 2
    assert 2 * MIB < usage.used_bytes < 3 * MIB
    assert (usage.commits, usage.changes) == (2, 3)


def test_reading_sees_what_is_committed_and_nothing_else(engine):
    engine.commit([new(1, alias="name")])

    refused = engine.commit([changed(1, 2, delta(value=b"2")), new(1)])

    assert refused[0] is None
    assert isinstance(refused[1], InvalidRequestError)
    head = engine.head(oid(1))
    assert head is not None
    assert (head.version, head.alias) == (2, "name")
    assert engine.head(oid(2)) is None
    assert engine.load(oid(2)) is None
