"""An object that moves: what it brings, what it takes along, and what it leaves behind."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from activestore.errors import (
    AliasExistsError,
    CorruptRecordError,
    InvalidRequestError,
    ObjectNotFoundError,
    StorageFullError,
)
from activestore.ids import ObjectId, PeerId, SessionId
from activestore.storage import memory_engine, table_reader
from activestore.storage.engine import (
    EPOCH_FIRST,
    EPOCH_MAX,
    Change,
    Damage,
    ReplyRecord,
    Row,
)
from activestore.storage.lmdb_engine import LmdbEngine
from activestore.storage.memory_engine import MemoryDisk, MemoryEngine
from tests.storage.changes import (
    SESSION,
    changed,
    content_of,
    deleted,
    delta,
    new,
    oid,
    place,
    reply,
    rows_only,
    state,
)
from tests.storage.test_rows import damage, fill_with_rows

MIB = 1 << 20
OTHER = SessionId(b"t" * 16)


def installed(number: int, version: int, content: Any, **options: Any) -> Change:
    return Change(oid(number), version, content, **options)


def moved_away(number: int, version: int) -> Change:
    """Return what the old peer commits when the new one has the object."""
    rows = [place(number), Row("forward", oid(number), b"unconfirmed")]
    return Change(oid(number), version, is_delete=True, rows=rows, forgets_replies=True)


def entries(engine: Any, table: str) -> int:
    with engine._reading() as transaction:
        return sum(1 for _ in transaction.cursor(db=engine._tables[table]))


# -- epochs and names ------------------------------------------------------------------


def test_epoch_is_the_first_until_a_change_says_another(reopen):
    engine = reopen()
    engine.commit([new(1), new(2, epoch=7)])
    engine.commit([changed(1, 2, delta(value=b"2")), changed(2, 2, delta(value=b"2"))])
    before = [engine.head(oid(n)).epoch for n in (1, 2)]

    engine.commit([Change(oid(1), epoch=3), changed(2, 3, delta(a=b"3"), epoch=8)])

    again = reopen()
    heads = [again.head(oid(n)) for n in (1, 2)]
    assert before == [EPOCH_FIRST, 7]
    assert [(head.epoch, head.version) for head in heads] == [(3, 2), (8, 3)]
    assert content_of(again, 1)[0] == {"value": b"2"}


def test_epoch_of_an_object_that_is_not_there_is_refused(engine):
    results = engine.commit([
        Change(oid(1), epoch=2, rows=[place(1)]),
        new(2, epoch=EPOCH_MAX + 1), new(3, epoch=-1), new(4, epoch=EPOCH_MAX),
    ])  # fmt: skip

    assert [type(result) for result in results] == [
        ObjectNotFoundError, InvalidRequestError, InvalidRequestError, type(None),
    ]  # fmt: skip
    assert engine.row("place", oid(1)) is None
    assert engine.head(oid(4)).epoch == EPOCH_MAX


def test_object_is_renamed_and_its_old_name_is_free(reopen):
    engine = reopen()
    engine.commit([new(1, alias="hits"), new(2, alias="taken"), new(3, alias="gone")])

    results = engine.commit([
        Change(oid(1), alias="hits~edge", is_rename=True),
        Change(oid(2), alias="hits~edge", is_rename=True),
        Change(oid(3), is_rename=True),
        Change(oid(9), alias="new", is_rename=True),
        new(4, alias="hits"),
    ])  # fmt: skip

    assert [type(result) for result in results] == [
        type(None), AliasExistsError, type(None), ObjectNotFoundError, type(None),
    ]  # fmt: skip
    again = reopen()
    names = {alias: again.resolve(alias) for alias in ("hits", "hits~edge", "gone")}
    assert names == {"hits": oid(4), "hits~edge": oid(1), "gone": None}
    assert [head.alias for head in again.heads()] == ["hits~edge", "taken", "", "hits"]
    assert again.head(oid(1)).version == 1


def test_answer_that_names_an_alias_renames_nothing(engine):
    """A create that failed is answered with the name that it wanted."""
    engine.commit([new(1, alias="hits")])

    assert engine.commit([Change(oid(1), alias="other", reply=reply(2))]) == [None]

    assert engine.resolve("other") is None
    assert engine.head(oid(1)).alias == "hits"


# -- arriving --------------------------------------------------------------------------


def test_installed_object_comes_with_all_it_had(reopen):
    engine = reopen()
    large = os.urandom(2 * MIB)
    answers = [
        reply(1, b"one"),
        ReplyRecord(OTHER, 9, "method", b"two", 990.0, (b"b" * 70_000, b"")),
    ]

    result = engine.commit([
        installed(
            1, 41, state(graph=b"g", buffers=[large], value=b"\x07"), alias="hits",
            epoch=5, replies=answers, created_s=12.5,
            rows=[Row("staged", oid(1), b"from")],
        ),
    ])  # fmt: skip

    assert result == [None]
    again = reopen()
    head = again.head(oid(1))
    assert (head.version, head.epoch, head.alias) == (41, 5, "hits")
    assert (head.created_s, head.changed_s) == (12.5, 1000.0)
    assert content_of(again, 1) == ({"value": b"\x07"}, b"g", [large])
    assert again.resolve("hits") == oid(1)
    assert again.replies_of(oid(1)) == answers
    assert again.reply(oid(1), OTHER, 9) == answers[1]
    assert again.row("staged", oid(1)) == b"from"


def test_installed_copy_takes_the_place_of_an_older_one(engine):
    first = state(graph=b"g" * 9000, buffers=[os.urandom(2 * MIB), b"b" * 600_000],
                  a=b"1", b=b"x" * 5000)  # fmt: skip
    engine.commit([
        installed(1, 3, first, alias="old", epoch=2, replies=[reply(1), reply(2)]),
    ])  # fmt: skip
    kept = os.urandom(3 * MIB)

    again = installed(
        1, 9, state(buffers=[kept, b"c" * 300_000], a=b"9"), alias="name", epoch=4,
        replies=[reply(2), reply(3)], forgets_replies=True,
    )  # fmt: skip
    assert engine.commit([again]) == [None]

    assert content_of(engine, 1) == ({"a": b"9"}, b"", [kept, b"c" * 300_000])
    head = engine.head(oid(1))
    assert (head.version, head.epoch, head.alias) == (9, 4, "name")
    assert engine.resolve("old") is None
    assert [one.sequence for one in engine.replies_of(oid(1))] == [2, 3]
    assert entries(engine, "parts") == 2  # 300,000 bytes in chunks of 256 KiB
    assert engine.collect_garbage(-1.0) == 2 * MIB
    assert engine.usage().objects == 1


def test_installed_copy_without_an_epoch_or_a_name_keeps_the_one_and_drops_the_other(
    engine,
):
    engine.commit([installed(1, 3, state(a=b"1"), alias="old", epoch=6)])

    engine.commit([installed(1, 4, state(a=b"2"))])

    head = engine.head(oid(1))
    assert (head.epoch, head.alias) == (6, "")
    assert engine.resolve("old") is None


def test_installed_copy_takes_the_place_of_a_damaged_one(engine):
    engine.commit([
        new(1, state(buffers=[os.urandom(2 * MIB), b"b" * 600_000]), alias="old"),
        new(2, alias="taken"),
    ])  # fmt: skip
    damage(engine, "heads", oid(1))

    refused = engine.commit([installed(1, 5, state(a=b"5"), alias="taken")])
    is_there = engine.heads()[0].damage
    taken = engine.commit([installed(1, 5, state(a=b"5"), alias="name", epoch=2)])

    assert isinstance(refused[0], AliasExistsError)
    assert "checksum" in is_there
    assert taken == [None]
    assert content_of(engine, 1) == ({"a": b"5"}, b"", [])
    assert engine.resolve("old") is None
    assert engine.resolve("name") == oid(1)
    assert entries(engine, "parts") == 0
    assert engine.collect_garbage(-1.0) == 2 * MIB


def test_installed_copy_is_not_built_on_what_was_refused(engine):
    """It is whole: a refused step before it does not make it wrong."""
    engine.commit([new(1), new(2, alias="taken")])

    results = engine.commit([
        installed(1, 4, state(a=b"4"), alias="taken"),
        changed(1, 5, delta(a=b"5")),
        installed(1, 6, state(a=b"6")),
    ])  # fmt: skip

    assert [result and result.code for result in results] == [
        "alias_exists", "unavailable", None,
    ]  # fmt: skip
    assert content_of(engine, 1)[0] == {"a": b"6"}


def test_installed_copy_with_its_replies_must_find_room(reopen):
    engine = reopen(budget=8 * MIB)
    answers = [reply(n, os.urandom(60_000)) for n in range(200)]

    (refused,) = engine.commit([installed(1, 5, state(), replies=answers)])

    assert isinstance(refused, StorageFullError)
    assert engine.head(oid(1)) is None
    assert engine.replies_of(oid(1)) == []
    assert engine.commit([installed(1, 5, state(), replies=answers[:50])]) == [None]
    assert len(engine.replies_of(oid(1))) == 50


def test_object_that_leaves_and_comes_back_in_one_commit_leaves_no_chunk(engine):
    engine.commit([new(1, state(buffers=[b"b" * 900_000, b"c" * 600_000]))])

    results = engine.commit(
        [moved_away(1, 2), installed(1, 7, state(a=b"x" * 5000, b=b"y" * 6000))]
    )

    assert results == [None, None]
    assert content_of(engine, 1)[0] == {"a": b"x" * 5000, "b": b"y" * 6000}
    assert entries(engine, "parts") == 2


# -- leaving ---------------------------------------------------------------------------


def test_replies_of_one_object_come_with_their_buffers_in_order(engine):
    mine = [
        reply(1, b"one"), reply(300, b"two"),
        ReplyRecord(OTHER, 2, "", b"three", 1000.0, (b"buffer",)),
    ]  # fmt: skip
    engine.commit([new(1), new(2, reply=reply(4)), new(0, reply=reply(5))])
    engine.commit([Change(oid(1), reply=one) for one in reversed(mine)])

    assert engine.replies_of(oid(1)) == mine
    assert engine.replies_of(oid(3)) == []


def test_damaged_reply_is_told_and_goes_with_the_old_ones(engine):
    """The object cannot leave until then: its retry would run anew elsewhere."""
    engine.commit([new(1, replies=[reply(1, b"one" * 9), reply(2)])])
    damage(engine, "replies", oid(1) + SESSION + (1).to_bytes(8, "big"))

    with pytest.raises(CorruptRecordError, match="reply 1"):
        engine.replies_of(oid(1))

    assert engine.expire_replies(0.0, 60.0).dropped_count == 1
    assert [one.sequence for one in engine.replies_of(oid(1))] == [2]


def test_damaged_reply_that_others_have_stays_until_it_is_brought_back(engine):
    """Its request would be run again by whoever asks for it once more."""
    register = Row("register", oid(1), b"register")
    engine.commit([new(1, replies=[reply(1, b"one" * 9)], rows=[register])])
    damage(engine, "replies", oid(1) + SESSION + (1).to_bytes(8, "big"))

    assert engine.expire_replies(0.0, 60.0).dropped_count == 0
    with pytest.raises(CorruptRecordError, match="reply 1"):
        engine.replies_of(oid(1))
    brought = [reply(1, b"one" * 9)]
    engine.commit([Change(oid(1), forgets_replies=True, replies=brought)])
    assert engine.replies_of(oid(1)) == brought


def test_moved_object_goes_with_its_files_and_replies_and_leaves_rows(reopen):
    engine = reopen()
    large = os.urandom(2 * MIB)
    engine.commit([
        new(1, state(buffers=[large, b"b" * 600_000]), alias="hits",
            replies=[reply(1), reply(2)]),
        new(2, replies=[reply(3)]),
    ])  # fmt: skip

    assert engine.commit([moved_away(1, 2)]) == [None]

    again = reopen()
    assert again.load(oid(1)) is None
    assert again.resolve("hits") is None
    assert again.replies_of(oid(1)) == []
    assert [one.sequence for one in again.replies_of(oid(2))] == [3]
    assert again.row("place", oid(1)) == b"elsewhere"
    assert again.row("forward", oid(1)) == b"unconfirmed"
    assert entries(again, "parts") == 0
    assert again.collect_garbage(-1.0) == len(large)


def test_moved_object_that_is_damaged_goes_all_the_same(engine):
    engine.commit([new(1, alias="hits", replies=[reply(1)])])
    damage(engine, "heads", oid(1))

    assert engine.commit([moved_away(1, 2)]) == [None]

    assert engine.head(oid(1)) is None
    assert engine.replies_of(oid(1)) == []
    assert engine.row("place", oid(1)) == b"elsewhere"


def test_deleted_object_leaves_its_replies(engine):
    engine.commit([new(1, replies=[reply(1)])])

    engine.commit([dataclasses.replace(deleted(1), reply=reply(2))])

    assert [one.sequence for one in engine.replies_of(oid(1))] == [1, 2]


def test_answer_to_the_move_itself_stays(engine):
    engine.commit([new(1, replies=[reply(1)])])

    engine.commit([dataclasses.replace(moved_away(1, 2), reply=reply(2))])

    assert [one.sequence for one in engine.replies_of(oid(1))] == [2]


def test_objects_leave_a_store_that_is_full(reopen):
    engine = reopen(budget=8 * MIB)
    engine.commit([new(n) for n in range(1, 200)])
    fill_with_rows(engine)

    results = engine.commit([moved_away(n, 2) for n in range(1, 200)])

    assert results == [None] * 199
    assert len(list(engine.rows("forward"))) == 199


# -- whose home is elsewhere -----------------------------------------------------------


def of_home(home: bytes, number: int) -> ObjectId:
    return ObjectId(home + b"\x00" + number.to_bytes(9, "big"))


def test_ids_of_objects_from_elsewhere_are_found_page_by_page(reopen, monkeypatch):
    monkeypatch.setattr(table_reader, "IDS_PER_READ", 3)
    engine = reopen()
    mine = engine.peer_id
    lower, higher = b"\x00" * 6, b"\xff" * 6
    homes = [lower] * 5 + [higher] * 7
    foreign = [of_home(home, n) for n, home in enumerate(homes)]
    own = [of_home(mine, n) for n in range(9)]
    own.append(ObjectId(mine + b"\xff" * 10))
    engine.commit([Change(one, 1, state()) for one in {*foreign, *own}])

    assert list(engine.foreign_ids()) == sorted(foreign)

    engine.commit([Change(one, is_delete=True) for one in foreign])
    assert list(engine.foreign_ids()) == []
    assert engine.usage().objects == 10


@pytest.mark.parametrize("home", [b"\x00" * 6, b"\xff" * 6, b"\x00\xff" * 3])
def test_ids_from_elsewhere_are_told_from_any_home(home):
    engine = MemoryEngine(
        MemoryDisk(PeerId(home)), disk_budget_bytes=MIB, wall_clock=lambda: 1.0
    )
    others = [
        of_home(other, 0)
        for other in (b"\x00" * 6, b"\x00" * 5 + b"\x01", b"\x7f" * 6,
                      b"\xff" * 5 + b"\xfe", b"\xff" * 6)
        if other != home
    ]  # fmt: skip
    last = ObjectId(home + b"\xff" * 10)
    engine.commit([Change(one, 1, state()) for one in (*others, last)])

    assert list(engine.foreign_ids()) == others


def test_ids_of_one_s_own_objects_are_not_looked_at(monkeypatch):
    """A start must not cost more where there is more."""
    engine = MemoryEngine(
        MemoryDisk(PeerId(b"home66")), disk_budget_bytes=MIB, wall_clock=lambda: 1.0
    )
    engine.commit([new(n) for n in range(200)])
    foreign = [of_home(b"elsewh", 1), of_home(b"other6", 2)]
    engine.commit([Change(one, 1, state()) for one in foreign])
    looked_at = []
    really_iterate = memory_engine._Cursor.iternext

    def counted(cursor: Any, **options: Any) -> Any:
        for key in really_iterate(cursor, **options):
            looked_at.append(key)
            yield key

    monkeypatch.setattr(memory_engine._Cursor, "iternext", counted)

    assert list(engine.foreign_ids()) == foreign
    assert len(looked_at) <= 4


# -- crashes ---------------------------------------------------------------------------

MOVER = """
import sys
from activestore.storage.lmdb_engine import LmdbEngine
from activestore.storage.engine import Change, ReplyRecord, Row
from activestore.wire.state import ObjectState
engine = LmdbEngine.open(sys.argv[1], disk_budget_bytes=1 << 30, wall_clock=lambda: 1.0)
number = int(sys.argv[2])
while True:
    number += 1
    object_id = b"home66\\0" + number.to_bytes(9, "big")
    text = str(number).encode()
    size = (10, 6000, 1_200_000)[number % 3]
    state = ObjectState("m.C", b"r" * 16, 0, {"value": text}, b"", (), (text * size,))
    reply = ReplyRecord(b"s" * 16, number, "", text, 1.0)
    staged = Row("staged", object_id, text)
    assert engine.commit([
        Change(object_id, 1, state, epoch=2, replies=(reply,), rows=(staged,))
    ]) == [None]
    rows = (
        Row("place", object_id, text), Row("forward", object_id, text * 500),
        Row("staged", object_id, None),
    )
    assert engine.commit([
        Change(object_id, 2, is_delete=True, rows=rows, forgets_replies=True)
    ]) == [None]
    engine.collect_garbage(-1.0)
    print(number, flush=True)
"""


@pytest.mark.slow
def test_object_or_what_it_left_is_there_after_kill_9_and_never_both(tmp_path):
    chance = random.Random(4711)
    first = 0
    for _ in range(10):
        with subprocess.Popen(
            [sys.executable, "-c", MOVER, str(tmp_path / "data"), str(first)],
            stdout=subprocess.PIPE,
            text=True,
        ) as mover:
            assert mover.stdout is not None
            lines = [mover.stdout.readline()]
            time.sleep(chance.uniform(0.0, 0.3))
            mover.send_signal(signal.SIGKILL)
            lines += mover.stdout.read().splitlines()
        left = int(lines[-1])

        engine = LmdbEngine.open(
            tmp_path / "data", disk_budget_bytes=1 << 30, wall_clock=time.time
        )
        gone = dict(engine.rows("place"))
        here = [head.object_id for head in engine.heads()]
        assert set(gone) >= {oid(n) for n in range(1, left + 1)}
        assert len(gone) in (left, left + 1)
        assert dict(engine.rows("forward")) == {k: v * 500 for k, v in gone.items()}
        assert [key for key, _ in engine.rows("staged")] == here
        assert here in ([], [oid(left + 1)])
        assert not set(here) & set(gone)
        for object_id in gone:
            assert engine.replies_of(ObjectId(object_id)) == []
        for object_id in here:
            (answer,) = engine.replies_of(object_id)
            assert answer.body == str(left + 1).encode()
            assert engine.head(object_id).epoch == 2
            engine.commit([moved_away(left + 1, 2)])
            engine.commit([rows_only(Row("staged", object_id, None))])
        forward = str(left + 1).encode() * 500
        if here:
            engine.commit([rows_only(
                Row("forward", oid(left + 1), forward),
                place(left + 1, str(left + 1).encode()),
            )])  # fmt: skip
        assert not [d for d in engine.verify() if isinstance(d, Damage)]
        engine.collect_garbage(-60.0)  # Also what a killed commit wrote.
        files = [p for p in (tmp_path / "data" / "blobs").rglob("*") if p.is_file()]
        assert files == []
        first = len(gone) + len(here)
        engine.close()
    assert first >= 10
