"""Damage on disk: it is told, it costs what it hit, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

from activestore.errors import (
    ActiveStoreError,
    ConfigurationError,
    CorruptRecordError,
    InvalidRequestError,
    StorageFullError,
)
from activestore.storage.engine import ClassRecord, Damage
from activestore.storage.lmdb_engine import LmdbEngine
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
Open = Callable[..., LmdbEngine]


def damage(engine: LmdbEngine, table: str, key: bytes) -> None:
    """Flip a bit in the middle of a stored value, as a worn-out flash cell does."""
    with engine._env.begin(write=True) as transaction:
        handle = engine._tables[table]
        value = bytearray(transaction.get(key, db=handle))
        value[len(value) // 2] ^= 1
        transaction.put(key, bytes(value), db=handle)
    engine._documents.clear()


def damages(engine: LmdbEngine) -> list[Damage]:
    return [found for found in engine.verify() if isinstance(found, Damage)]


# -- one object ------------------------------------------------------------------------


def test_object_with_a_damaged_head_can_be_deleted_with_all_it_had(
    open_engine: Open,
) -> None:
    engine = open_engine()
    large, chunked = os.urandom(2 * MIB), os.urandom(700_000)
    engine.commit([
        new(1, state(buffers=[large, chunked]), alias="name"),
        new(2, state(buffers=[os.urandom(2 * MIB), chunked]), alias="other"),
    ])  # fmt: skip
    damage(engine, "heads", oid(1))

    assert engine.commit([deleted(1)]) == [None]

    assert engine.head(oid(1)) is None
    assert engine.resolve("name") is None
    assert engine.collect_garbage(-1.0) == len(large)
    assert damages(engine) == []
    assert content_of(engine, 2)[2][1] == chunked
    with engine._reading() as transaction:
        assert transaction.stat(engine._tables["parts"])["entries"] == 3
    assert engine.commit([new(3, alias="name")]) == [None]


def test_files_stay_while_another_head_is_damaged(open_engine: Open) -> None:
    """Whether the second one uses them is not known."""
    engine = open_engine()
    for number in (1, 2):
        engine.commit([new(number, state(buffers=[os.urandom(2 * MIB)]))])
        damage(engine, "heads", oid(number))
    engine.commit([deleted(1)])

    assert engine.collect_garbage(-1.0) == 0

    engine.commit([deleted(2)])
    assert engine.collect_garbage(-1.0) == 2 * (2 * MIB)


def test_list_shows_a_damaged_object_among_the_others(open_engine: Open) -> None:
    engine = open_engine()
    engine.commit([new(n, alias=f"a{n}") for n in (1, 2, 3)])
    damage(engine, "heads", oid(2))

    by_id = engine.heads()
    by_alias = engine.heads(alias_prefix="a", limit=2)
    rest = engine.heads(alias_prefix="a", after=by_alias[-1].object_id)

    assert [head.alias for head in by_id] == ["a1", "a2", "a3"]
    assert [bool(head.damage) for head in by_id] == [False, True, False]
    assert "checksum" in by_id[1].damage
    assert [head.alias for head in by_alias + rest] == ["a1", "a2", "a3"]


def test_change_of_a_damaged_object_is_refused_alone(open_engine: Open) -> None:
    engine = open_engine()
    engine.commit([new(n) for n in (1, 2)])
    damage(engine, "heads", oid(1))
    step = delta(value=b"\x02")

    results = engine.commit([
        changed(1, 2, step, group=1), new(5, group=1), changed(2, 2, step),
    ])  # fmt: skip

    assert [type(r) for r in results] == [
        CorruptRecordError, CorruptRecordError, type(None),
    ]  # fmt: skip
    assert engine.head(oid(5)) is None


# -- code ------------------------------------------------------------------------------


def test_damaged_class_is_named_and_the_others_are_there(open_engine: Open) -> None:
    engine = open_engine()
    records = [ClassRecord(f"m.{n}", REVISION, REVISION, b"i", 1.0) for n in "ABC"]
    engine.put_code(REVISION, b"archive", records)
    damage(engine, "classes", b"m.B\x00" + REVISION)

    assert [record.class_name for record in engine.classes()] == ["m.A", "m.C"]
    told = engine.damaged_classes()["m.B"]
    assert str(told).startswith("class m.B is damaged on disk")
    assert "publish it again" in str(told)
    assert "doctor" not in str(told)

    engine.put_code(REVISION, b"archive", records)
    assert len(engine.classes()) == 3
    assert engine.damaged_classes() == {}


# -- the environment -------------------------------------------------------------------


def test_file_that_is_no_environment_is_told(open_engine: Open, tmp_path: Path) -> None:
    file = open_engine().path / "data" / "data.mdb"
    open_engine(tmp_path / "elsewhere")
    file.write_bytes(os.urandom(64 * 1024))

    with pytest.raises(CorruptRecordError, match=r"data\.mdb.*restore") as told:
        open_engine()

    assert "delete it" not in str(told.value)


def test_file_that_was_cut_short_is_told_and_does_not_end_the_process(
    open_engine: Open, tmp_path: Path
) -> None:
    engine = open_engine()
    for number in range(200):
        engine.commit([new(number, state(value=os.urandom(3000)))])
    file = engine.path / "data" / "data.mdb"
    open_engine(tmp_path / "elsewhere")
    os.truncate(file, 3 * 4096)

    with pytest.raises(CorruptRecordError, match="restore"):
        engine = open_engine()
        for number in range(200):
            engine.load(oid(number))


def test_damaged_page_is_an_error_of_what_lies_on_it(open_engine: Open) -> None:
    """LMDB's own error would end the thread that reads."""
    engine = open_engine()
    engine.commit([new(1)])

    class Broken:
        def get(self, *_: Any, **__: Any) -> Any:
            raise lmdb.CorruptedError("mdb_get: MDB_CORRUPTED")

    with pytest.raises(CorruptRecordError) as told, engine._reading(oid(1)):
        Broken().get()

    assert told.value.object_id == oid(1)


# -- names that no table can hold ------------------------------------------------------


@pytest.mark.parametrize("alias", ["", "x" * 600, "😀" * 200, "\ud800", "no\nline"])
def test_name_that_cannot_be_a_key_is_refused_or_not_found(
    open_engine: Open, alias: str
) -> None:
    engine = open_engine()

    assert engine.resolve(alias) is None
    assert engine.class_revision(alias, REVISION) is None
    assert not engine.heads(alias_prefix=alias or "x")
    if alias:
        named, other = engine.commit([new(1, alias=alias), new(2)])
        assert isinstance(named, InvalidRequestError)
        assert other is None
        group = [new(3, alias=alias, group=1), new(4, group=1)]
        assert all(isinstance(r, InvalidRequestError) for r in engine.commit(group))


def test_class_whose_name_is_too_long_is_refused(open_engine: Open) -> None:
    engine = open_engine()
    record = ClassRecord("é" * 256, REVISION, REVISION, b"i", 1.0)

    with pytest.raises(InvalidRequestError, match="at most 494 bytes"):
        engine.put_code(REVISION, b"archive", [record])

    assert engine.code(b"") is None


def test_retry_of_a_reply_is_found_beside_damage(open_engine: Open) -> None:
    engine = open_engine()
    engine.commit([new(1, reply=reply(1, b"one")), new(2, reply=reply(1, b"two"))])
    damage(engine, "heads", oid(1))

    found = engine.reply(oid(1), SESSION, 1)

    assert found is not None
    assert found.body == b"one"


# -- a path that holds no store --------------------------------------------------------


def test_directory_that_must_exist_is_not_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    for path in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(ConfigurationError, match="no data directory"):
            LmdbEngine.open(
                path, disk_budget_bytes=MIB, wall_clock=lambda: 1.0, must_exist=True
            )

    assert list((tmp_path / "empty").iterdir()) == []
    assert not (tmp_path / "missing").exists()


def test_texts_of_a_start_advise_nothing_that_needs_a_running_peer() -> None:
    errors: list[ActiveStoreError] = [
        CorruptRecordError(b"", "data.mdb", "cut short; restore a backup"),
        StorageFullError(0, 0, "the disk has 0 bytes left"),
    ]

    for error in errors:
        assert "delete" not in str(error)
