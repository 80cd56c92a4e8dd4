"""Little room: the budget holds, a full disk refuses, nothing acknowledged is lost."""

from __future__ import annotations

import dataclasses
import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from activestore.errors import StorageFullError
from activestore.storage import disk
from activestore.storage.engine import Change, Damage, Row
from activestore.storage.lmdb_engine import LmdbEngine
from tests.storage.changes import (
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

MIB = 1 << 20
Open = Callable[..., LmdbEngine]


@pytest.fixture
def limit_files() -> Iterator[Callable[[int], None]]:
    """Return a function that bounds the size of files, as a full disk or a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(count: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def files_of(engine: LmdbEngine) -> list[Path]:
    return [p for p in (engine.path / "blobs").rglob("*") if p.is_file()]


def no_damage(engine: LmdbEngine) -> bool:
    return not [found for found in engine.verify() if isinstance(found, Damage)]


# -- the budget ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2000, 600_000, 1_300_000])
def test_new_objects_of_one_batch_stay_within_the_budget(
    open_engine: Open, size: int
) -> None:
    """In chunks, and in files: usage is known change by change, not batch by batch."""
    engine = open_engine(budget=16 * MIB)
    count = 20 * MIB // size

    results = engine.commit(
        [new(n, state(buffers=[os.urandom(size)])) for n in range(1, count + 1)]
    )

    kept = results.count(None)
    assert 0.5 * 16 * MIB < kept * size < 0.95 * 16 * MIB
    assert all(isinstance(r, StorageFullError) for r in results[kept:])
    assert engine.usage().used_bytes < 16 * MIB
    assert len(files_of(engine)) == (kept if size > MIB else 0)


def test_growth_in_one_batch_stays_within_the_budget(open_engine: Open) -> None:
    engine = open_engine(budget=16 * MIB)
    engine.commit([new(n) for n in range(1, 41)])

    results = engine.commit(
        [changed(n, 2, delta(value=os.urandom(600_000))) for n in range(1, 41)]
    )

    assert results.count(None) < 40 * 0.7
    assert isinstance(results[-1], StorageFullError)
    assert engine.usage().used_bytes < 16 * MIB


def test_group_that_fits_in_part_only_is_refused_whole(open_engine: Open) -> None:
    engine = open_engine(budget=16 * MIB)
    content = [state(buffers=[os.urandom(900_000)]) for _ in range(20)]

    results = engine.commit([new(n + 1, content[n], group=7) for n in range(20)])

    assert all(isinstance(result, StorageFullError) for result in results)
    assert engine.head(oid(1)) is None
    assert engine.commit([new(1, content[0])]) == [None]


def test_change_that_does_not_grow_is_taken_at_the_limit(open_engine: Open) -> None:
    engine = open_engine(budget=16 * MIB)
    blocks = [os.urandom(300_000) for _ in range(60)]
    results = engine.commit([new(n + 1, state(v=blocks[n])) for n in range(60)])
    number = results.count(None)
    for version in range(2, 9):  # Up to 95 %.
        engine.commit([changed(number, version, delta(more=b"m" * 300_000 * version))])

    same = engine.commit([changed(1, 2, delta(v=os.urandom(300_000)))])
    (more,) = engine.commit([changed(1, 3, delta(w=os.urandom(2 * MIB)))])

    assert same == [None]
    assert isinstance(more, StorageFullError)


def test_room_of_deleted_objects_is_there_again_at_once(open_engine: Open) -> None:
    """Their files go when room is short, and not an hour later."""
    engine = open_engine(budget=16 * MIB)
    results = engine.commit(
        [new(n, state(buffers=[os.urandom(1_300_000)])) for n in range(1, 15)]
    )
    kept = results.count(None)
    assert kept < 14

    engine.commit([deleted(n) for n in range(1, kept + 1)])

    assert engine.commit([new(20, state(buffers=[os.urandom(1_300_000)]))]) == [None]
    assert len(files_of(engine)) == 1
    assert no_damage(engine)


def test_file_of_a_refused_change_is_removed(open_engine: Open) -> None:
    engine = open_engine()
    engine.commit([new(1, alias="taken")])

    (refused,) = engine.commit(
        [new(2, state(buffers=[os.urandom(2 * MIB)]), alias="taken")]
    )

    assert refused is not None
    assert files_of(engine) == []


def test_files_stay_while_a_copy_looks_for_them(
    open_engine: Open, tmp_path: Path
) -> None:
    engine = open_engine()
    block = os.urandom(2 * MIB)
    engine.commit([new(1, state(buffers=[block]))])
    copy = engine.backup(str(tmp_path / "copy"))
    next(copy)

    engine.commit([deleted(1)])
    assert engine.collect_garbage(-1.0) == 0
    list(copy)

    assert engine.collect_garbage(-1.0) == len(block)
    assert sum(p.stat().st_size for p in (tmp_path / "copy" / "blobs").rglob("*")
               if p.is_file()) == len(block)  # fmt: skip


# -- a full disk -----------------------------------------------------------------------


def fill(engine: LmdbEngine) -> tuple[int, StorageFullError]:
    """Create objects until one is refused; return how many there are, and why."""
    for number in range(1, 400):
        (refused,) = engine.commit([new(number, state(buffers=[os.urandom(200_000)]))])
        if refused is not None:
            assert isinstance(refused, StorageFullError)
            return number - 1, refused
    raise AssertionError("the disk never got full")


def test_full_disk_refuses_what_grows_and_takes_the_rest(
    open_engine: Open, limit_files: Callable[[int], None]
) -> None:
    engine = open_engine()
    engine.commit([new(500)])
    limit_files(24 * MIB)

    kept, refused = fill(engine)

    assert "disk is full" in str(refused)
    for version in range(2, 60):
        step = changed(500, version, delta(value=bytes([version])))
        assert engine.commit([step]) == [None]
    for number in range(1, 6):
        assert engine.commit([deleted(number)]) == [None]
    assert engine.commit([new(900, state(buffers=[b"b" * 200_000]))]) == [None]
    again = open_engine()
    assert content_of(again, 500)[0] == {"value": bytes([59])}
    assert all(again.head(oid(n)) is not None for n in (*range(6, kept + 1), 900))
    assert no_damage(again)


def test_objects_leave_a_full_disk_and_say_where_they_went(
    open_engine: Open, limit_files: Callable[[int], None]
) -> None:
    engine = open_engine()
    limit_files(24 * MIB)
    kept, _ = fill(engine)

    for number in range(1, 4):
        rows = [Row("forward", oid(number), b"there"), place(number)]
        left = Change(oid(number), 2, is_delete=True, rows=rows, forgets_replies=True)
        assert engine.commit([left]) == [None]
    results = engine.commit([
        rows_only(place(1, None)), rows_only(place(900, os.urandom(60_000))),
    ])  # fmt: skip

    assert results[0] is None
    again = open_engine()
    assert [key for key, _ in again.rows("forward")] == [oid(n) for n in (1, 2, 3)]
    assert [key for key, _ in again.rows("place")][:2] == [oid(2), oid(3)]
    assert again.usage().objects == kept - 3
    assert no_damage(again)


def test_commit_that_finds_no_room_does_what_takes_away(
    open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it leaves rows behind; what only adds is refused."""
    engine = open_engine()
    engine.commit([new(n) for n in range(1, 5)])
    engine.commit([rows_only(place(8), place(9))])
    really_write, failures = engine._write, [True]

    def write(work: Callable[[Any], Any]) -> Any:
        if failures:
            failures.pop()
            raise engine._room.full("the disk is full")
        return really_write(work)

    monkeypatch.setattr(engine, "_write", write)
    results = engine.commit([
        rows_only(place(8, None)),
        rows_only(place(9, None), place(10)),
        Change(oid(1), 2, is_delete=True, rows=[place(1)]),
        Change(oid(2), 2, epoch=3),
        Change(oid(3), 2, is_delete=True, group=5),
        Change(oid(3), rows=[place(3)], group=5),
    ])  # fmt: skip

    kinds = [type(result) for result in results]
    full = StorageFullError
    assert kinds == [type(None), full, type(None), full, full, full]
    assert [key for key, _ in engine.rows("place")] == [oid(1), oid(9)]
    assert [head.object_id for head in engine.heads()] == [oid(2), oid(3), oid(4)]


def test_commit_that_meets_a_full_disk_is_refused_and_the_next_one_works(
    open_engine: Open,
    limit_files: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where no blocks can be had ahead, LMDB finds out itself, and says EIO or EFBIG."""
    engine = open_engine()
    monkeypatch.setattr(engine._file, "ensure", lambda _: True)
    limit_files(24 * MIB)

    kept, refused = fill(engine)
    mixed = engine.commit([
        deleted(1), new(901, state(buffers=[b"b" * 900_000])), deleted(2),
    ])  # fmt: skip
    engine.commit([changed(3, 2, delta(value=b"1"))])

    assert "disk is full" in str(refused)
    assert mixed[0] is mixed[2] is None
    assert isinstance(mixed[1], StorageFullError)
    assert engine.commit([new(900)]) == [None]
    again = open_engine()
    assert all(again.head(oid(n)) is not None for n in range(3, kept + 1))
    assert no_damage(again)


def test_file_that_finds_no_room_is_refused_and_leaves_nothing(
    open_engine: Open, limit_files: Callable[[int], None]
) -> None:
    engine = open_engine()
    limit_files(12 * MIB)

    results = engine.commit([new(1, state(buffers=[os.urandom(20 * MIB)])), new(2)])

    assert isinstance(results[0], StorageFullError)
    assert results[1] is None
    assert files_of(engine) == []
    assert list((engine.path / "tmp").iterdir()) == []


def test_code_that_finds_no_room_is_refused(
    open_engine: Open, limit_files: Callable[[int], None]
) -> None:
    engine = open_engine()
    limit_files(8 * MIB)

    with pytest.raises(StorageFullError):
        engine.put_code(b"p" * 16, os.urandom(20 * MIB), [])

    engine.put_code(b"p" * 16, b"small", [])
    assert engine.code(b"p" * 16) == b"small"


@pytest.mark.parametrize("text", ["Input/output error", "MDB_PANIC"])
def test_disk_that_fails_with_room_left_is_an_error(
    open_engine: Open, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Nobody knows what such a disk has kept: the peer must stop."""
    engine = open_engine()

    def fail(*_: Any) -> Any:
        raise lmdb.Error(f"mdb_txn_commit: {text}")

    monkeypatch.setattr(engine, "_count_tables", fail)

    with pytest.raises(OSError, match=text) as failed:
        engine.commit([new(1)])

    assert failed.value.errno == errno.EIO


def test_file_gets_its_blocks_before_a_commit(open_engine: Open) -> None:
    engine = open_engine()
    file = engine.path / "data" / "data.mdb"

    engine.commit([new(1, state(value=os.urandom(900_000)))])

    about = file.stat()
    assert about.st_size >= 900_000 + disk.RESERVE_BYTES
    assert about.st_blocks * 512 >= about.st_size


def test_file_gets_the_blocks_of_rows_before_a_commit(open_engine: Open) -> None:
    """Each may lie on a page of its own, and those bytes are counted too."""
    engine = open_engine()
    file = engine.path / "data" / "data.mdb"

    engine.commit([rows_only(*(place(n, os.urandom(60_000)) for n in range(100)))])

    assert file.stat().st_size >= 100 * 64_000 + disk.RESERVE_BYTES


def test_file_gets_the_blocks_of_answers_before_a_commit(open_engine: Open) -> None:
    """Those that an object brings along: their keys take more than what they say."""
    engine = open_engine()
    file = engine.path / "data" / "data.mdb"
    brought = [reply(sequence) for sequence in range(20_000)]

    engine.commit([dataclasses.replace(new(1, state()), replies=brought)])

    assert file.stat().st_size >= 20_000 * 150 + disk.RESERVE_BYTES


def test_refused_objects_on_a_small_disk_leave_room_for_deletes(
    open_engine: Open, small_disk: Path
) -> None:
    engine = open_engine(small_disk / "data")
    kept, refused = 0, None
    for number in range(1, 40):
        block = os.urandom(3 * MIB if number % 2 else 700_000)
        (refused,) = engine.commit([new(number, state(buffers=[block]))])
        if refused is not None:
            break
        kept = number

    assert isinstance(refused, StorageFullError)
    assert engine.commit([deleted(1)]) == [None]
    assert engine.commit([new(900, state(buffers=[os.urandom(2 * MIB)]))]) == [None]
    again = open_engine(small_disk / "data")
    assert all(again.head(oid(n)) is not None for n in (*range(2, kept + 1), 900))
    assert no_damage(again)


def test_store_on_a_full_disk_opens_for_reads_and_deletes(
    open_engine: Open, small_disk: Path
) -> None:
    engine = open_engine(small_disk / "data")
    engine.commit([new(n) for n in range(1, 10)])
    fill_up(small_disk / "filler")

    for _ in range(3):
        engine = open_engine(small_disk / "data")
        assert engine.head(oid(9)) is not None
    assert engine.commit([deleted(1)]) == [None]
    incarnation = engine._directory.incarnation
    (small_disk / "filler").unlink()

    again = open_engine(small_disk / "data")
    assert again._directory.incarnation == incarnation + 1
    assert again.head(oid(1)) is None
    assert again.commit([new(1)]) == [None]


def test_new_store_on_a_full_disk_says_what_to_do(
    open_engine: Open, small_disk: Path
) -> None:
    fill_up(small_disk / "filler")

    with pytest.raises(StorageFullError, match="free some room there") as refused:
        open_engine(small_disk / "data")

    assert "deletes still work" not in str(refused.value)


def fill_up(path: Path) -> None:
    """Write until the disk takes no byte more."""
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while file.write(b"x" * 4096):
            pass
