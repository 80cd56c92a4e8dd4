"""Rows: they come and go with their change, stay bounded, and damage costs one of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from activestore.errors import (
    AliasExistsError,
    CorruptRecordError,
    InvalidRequestError,
    ObjectNotFoundError,
    StorageFullError,
    UnavailableError,
)
from activestore.storage import facts, maintenance
from activestore.storage.engine import (
    CHANGE_ROWS_MAX,
    ROW_KEY_BYTES_MAX,
    ROW_KINDS,
    ROW_VALUE_BYTES_MAX,
    ZERO_ID,
    Change,
    Damage,
    Engine,
    Row,
)
from activestore.storage.lmdb_engine import LmdbEngine
from tests.storage.changes import (
    changed,
    deleted,
    delta,
    new,
    oid,
    place,
    reply,
    rows_only,
    state,
)

MIB = 1 << 20


def damage(engine: Any, table: str, key: bytes) -> None:
    """Flip a bit in the middle of a stored value."""

    def work(transaction: Any) -> None:
        handle = engine._tables[table]
        value = bytearray(transaction.get(key, db=handle))
        value[len(value) // 2] ^= 1
        transaction.put(key, bytes(value), db=handle)

    engine._write(work)
    engine._documents.clear()


# -- what is kept ----------------------------------------------------------------------


def test_a_retry_that_was_done_before_is_refused_where_it_brings_rows(engine):
    """What was done writes nothing: whoever sent rows must not take them for written."""
    first = new(1, reply=reply(5))
    row = Row("register", oid(1), b"counter 2")
    assert engine.commit([first]) == [None]
    assert engine.commit([first]) == [None]
    (refused,) = engine.commit([new(1, reply=reply(5), rows=[row])])
    assert isinstance(refused, InvalidRequestError)
    assert "not written" in str(refused)
    assert engine.row("register", oid(1)) is None


def test_an_object_is_not_made_anew_where_only_its_register_is(engine):
    row = Row("register", oid(1), b"of a witness")
    assert engine.commit([Change(oid(1), rows=[row])]) == [None]
    (refused,) = engine.commit([new(1, reply=reply(5))])
    assert isinstance(refused, UnavailableError)
    assert engine.head(oid(1)) is None


def test_rows_come_back_by_kind_in_the_order_of_keys(reopen):
    engine = reopen()
    rows = [Row("place", bytes([n]), bytes([n]) * n) for n in (3, 1, 2)]
    rows += [Row("name", b"hits", b"claim"), Row("cluster", b"\xff" * 500, b"")]

    assert engine.commit([rows_only(*rows)]) == [None]

    again = reopen()
    assert list(again.rows("place")) == [
        (b"\x01", b"\x01"), (b"\x02", b"\x02" * 2), (b"\x03", b"\x03" * 3),
    ]  # fmt: skip
    assert again.row("name", b"hits") == b"claim"
    assert again.row("cluster", b"\xff" * 500) == b""
    assert list(again.rows("staged")) == []
    assert again.usage().objects == 0


def test_row_is_replaced_and_taken_away(engine):
    engine.commit([rows_only(place(1, b"one"), place(2))])

    engine.commit([rows_only(place(1, b"two"), place(2, None), place(3, None))])

    assert list(engine.rows("place")) == [(oid(1), b"two")]
    assert engine.row("place", oid(2)) is None


@pytest.mark.parametrize("key", [b"", b"x" * 501, b"x" * 5000])
def test_row_that_no_table_can_hold_is_not_found(engine, key):
    assert engine.row("name", key) is None


def test_kind_that_nobody_knows_is_refused(engine):
    with pytest.raises(InvalidRequestError, match="cluster, forward, grave, name"):
        engine.row("nonsense", b"key")
    with pytest.raises(InvalidRequestError, match="nonsense"):
        list(engine.rows("nonsense"))


def test_rows_are_read_in_pages_that_see_what_goes_on(engine, monkeypatch):
    monkeypatch.setattr(facts, "ROWS_PER_READ", 3)
    engine.commit([rows_only(*(place(n) for n in range(10)), Row("name", b"a", b""))])
    assert len(list(engine.rows("place"))) == 10

    found = engine.rows("place")
    first = next(found)
    engine.commit([rows_only(place(7, None), place(11))])

    numbers = [key[-1] for key, _ in (first, *found)]
    assert numbers == [0, 1, 2, 3, 4, 5, 6, 8, 9, 11]


# -- with their change, or not at all --------------------------------------------------


def test_rows_of_a_refused_change_are_not_kept(engine):
    engine.commit([new(1, alias="taken")])

    results = engine.commit([
        new(2, alias="taken", rows=[place(2)]),
        changed(3, 2, delta(value=b"1"), rows=[place(3)]),
        Change(oid(4), is_delete=True, rows=[place(4)]),
        rows_only(place(5)),
    ])  # fmt: skip

    assert [type(result) for result in results] == [
        AliasExistsError, ObjectNotFoundError, ObjectNotFoundError, type(None),
    ]  # fmt: skip
    assert [key for key, _ in engine.rows("place")] == [oid(5)]


def test_rows_of_a_group_are_kept_whole_or_not_at_all(engine):
    engine.commit([new(1, alias="taken")])

    refused = engine.commit([
        Change(ZERO_ID, rows=[place(2)], group=7), new(3, alias="taken", group=7),
    ])  # fmt: skip
    assert all(isinstance(result, AliasExistsError) for result in refused)
    assert engine.row("place", oid(2)) is None

    kept = engine.commit([
        Change(ZERO_ID, rows=[place(2)], group=8), new(3, alias="free", group=8),
    ])  # fmt: skip
    assert kept == [None, None]
    assert engine.row("place", oid(2)) == b"elsewhere"


def test_rows_come_with_any_change(engine):
    results = engine.commit([
        new(1, rows=[place(1)]),
        changed(1, 2, delta(value=b"2"), rows=[place(2)]),
        Change(oid(1), reply=reply(3), rows=[place(3)]),
        Change(oid(1), 3, is_delete=True, rows=[place(1, None)]),
    ])  # fmt: skip

    assert results == [None] * 4
    assert [key for key, _ in engine.rows("place")] == [oid(2), oid(3)]


@pytest.mark.parametrize(
    "rows",
    [
        [Row("place", b"", b"value")],
        [Row("place", b"k" * (ROW_KEY_BYTES_MAX + 1), b"value")],
        [Row("place", b"k" * (ROW_KEY_BYTES_MAX + 1), None)],
        [Row("place", b"k", b"v" * (ROW_VALUE_BYTES_MAX + 1))],
        [Row("nonsense", b"k", b"v")],
        [place(n) for n in range(CHANGE_ROWS_MAX + 1)],
    ],
    ids=["no key", "long key", "long key goes", "long value", "kind", "many"],
)
@pytest.mark.parametrize("is_damaged", [False, True])
def test_row_beyond_a_limit_refuses_its_change_alone(engine, rows, is_damaged):
    engine.commit([new(1), new(2)])
    if is_damaged:
        damage(engine, "heads", oid(2))

    results = engine.commit([
        rows_only(place(5), *rows), Change(oid(2), 2, is_delete=True, rows=rows),
        deleted(1),
    ])  # fmt: skip

    assert [type(result) for result in results] == [
        InvalidRequestError, InvalidRequestError, type(None),
    ]  # fmt: skip
    assert engine.row("place", oid(5)) is None
    assert [head.object_id for head in engine.heads()] == [oid(2)]
    engine.commit([deleted(2)])


def test_every_kind_takes_a_key_and_a_value_of_full_length(engine):
    key, value = os.urandom(ROW_KEY_BYTES_MAX), os.urandom(ROW_VALUE_BYTES_MAX)

    rows = [Row(kind, key, value) for kind in sorted(ROW_KINDS)]
    assert engine.commit([rows_only(*rows)]) == [None]

    assert all(list(engine.rows(kind)) == [(key, value)] for kind in ROW_KINDS)


# -- room ------------------------------------------------------------------------------


def fill_with_rows(engine: Engine) -> tuple[int, StorageFullError]:
    """Commit rows of 60 kB until one is refused; return how many there are, and why."""
    for number in range(10_000):
        (result,) = engine.commit([rows_only(place(number, os.urandom(60_000)))])
        if result is not None:
            assert isinstance(result, StorageFullError)
            return number, result
    raise AssertionError("the store never got full")


def test_rows_are_counted_and_taken_up_to_the_whole_budget(reopen):
    """Beyond what objects may use: without them an object is not found."""
    engine = reopen(budget=8 * MIB)
    engine.commit([new(1), new(2, state(value=b"v" * 3000), reply=reply(1))])

    kept, refused = fill_with_rows(engine)

    assert refused.used_bytes > 0.98 * 8 * MIB
    assert engine.usage().used_bytes <= 8 * MIB
    assert "100 %" in str(refused)
    grown = changed(2, 2, delta(more=b"m" * 5000))
    assert isinstance(engine.commit([grown])[0], StorageFullError)
    # What takes away is taken always, with what it must leave behind.
    left = Change(oid(1), 2, is_delete=True, rows=[Row("forward", oid(1), b"there")])
    assert engine.commit([left]) == [None]
    assert engine.row("forward", oid(1)) == b"there"
    gone = rows_only(*(place(n, None) for n in range(kept)))
    assert engine.commit([gone]) == [None]
    assert engine.commit([Change(oid(2))]) == [None]  # It counts what is used anew.
    assert engine.usage().used_bytes < 1 * MIB
    assert engine.commit([new(5)]) == [None]


def test_rows_of_one_batch_stay_within_the_budget(reopen):
    engine = reopen(budget=8 * MIB)

    results = engine.commit(
        [rows_only(place(n, os.urandom(60_000))) for n in range(200)]
    )

    kept = results.count(None)
    assert 100 < kept < 140
    assert all(isinstance(result, StorageFullError) for result in results[kept:])
    assert len(list(engine.rows("place"))) == kept


def test_row_that_does_not_grow_is_taken_at_the_limit(reopen):
    engine = reopen(budget=8 * MIB)
    fill_with_rows(engine)
    grown = [place(n, os.urandom(60_000)) for n in range(5000, 5004)]

    same = engine.commit([rows_only(place(0, os.urandom(60_000)))])
    (more,) = engine.commit([rows_only(place(0), place(8), *grown)])

    assert same == [None]
    assert isinstance(more, StorageFullError)
    assert len(engine.row("place", oid(0)) or b"") == 60_000
    assert engine.commit([rows_only(place(0), *grown[:1])]) == [None]


def test_staged_copy_is_not_counted_as_an_object(engine):
    engine.commit([new(1), new(2, rows=[Row("staged", oid(2), b"from")])])
    engine.commit([rows_only(Row("staged", oid(3), b"of none"))])
    engine.commit([rows_only(Row("staged", b"short", b""))])

    assert engine.usage().objects == 1

    engine.commit([rows_only(Row("staged", oid(2), None))])
    assert engine.usage().objects == 2


# -- damage ----------------------------------------------------------------------------


def test_damaged_row_is_left_out_with_a_note_and_the_others_are_there(engine):
    engine.commit([rows_only(*(place(n) for n in (1, 2, 3)))])
    damage(engine, "facts", b"place\x00" + oid(2))
    notes: list[Damage] = []

    found = [key for key, _ in engine.rows("place", notes.append)]

    assert found == [oid(1), oid(3)]
    assert [key for key, _ in engine.rows("place")] == found
    assert [(note.where, note.object_id) for note in notes] == [
        (f"row place {oid(2).hex()}", None)
    ]
    with pytest.raises(CorruptRecordError, match=r"row place.*damaged on disk"):
        engine.row("place", oid(2))
    engine.commit([rows_only(place(2, b"again"))])
    assert engine.row("place", oid(2)) == b"again"


def test_check_names_every_damaged_row(engine, monkeypatch):
    monkeypatch.setattr(facts, "ROWS_PER_READ", 2)
    names = [f"n{n}" for n in range(5)]
    engine.commit([rows_only(*(Row("name", n.encode(), b"claim") for n in names))])
    for name in (b"n1", b"n4"):
        damage(engine, "facts", b"name\x00" + name)

    found = [one for one in engine.verify() if isinstance(one, Damage)]

    assert [one.where for one in found] == ["row name 'n1'", "row name 'n4'"]
    assert "checksum" in found[0].reason
    engine.commit([rows_only(*(Row("name", n.encode(), None) for n in names))])


def test_damaged_row_does_not_keep_a_store_from_opening(reopen):
    first = reopen()
    first.commit([new(1), rows_only(place(1), place(2))])
    damage(first, "facts", b"place\x00" + oid(1))

    again = reopen()

    assert [key for key, _ in again.rows("place")] == [oid(2)]
    assert again.usage().objects == 1
    again.commit([rows_only(place(1, None))])


def test_rows_alone_do_not_look_at_the_object_that_they_are_about(engine):
    engine.commit([new(1)])
    damage(engine, "heads", oid(1))

    assert engine.commit([Change(oid(1), rows=[place(1)])]) == [None]

    assert engine.row("place", oid(1)) == b"elsewhere"
    engine.commit([deleted(1)])


# -- copies ----------------------------------------------------------------------------


def test_backup_and_restore_keep_rows(
    open_engine: Callable[..., LmdbEngine], tmp_path: Path
) -> None:
    engine = open_engine()
    engine.commit([new(1), rows_only(place(1), Row("cluster", b"count", b"7"))])

    list(engine.backup(str(tmp_path / "copy")))
    engine.commit([rows_only(place(1, None))])
    list(maintenance.restore(str(tmp_path / "copy"), str(tmp_path / "back")))

    again = open_engine(tmp_path / "back")
    assert list(again.rows("place")) == [(oid(1), b"elsewhere")]
    assert again.row("cluster", b"count") == b"7"
