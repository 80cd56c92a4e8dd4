"""The engine: what it promises holds, also after a crash, with little room, with damage."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import lmdb
import pytest

from activestore.errors import (
    ConfigurationError,
    CorruptRecordError,
    DirectoryLockedError,
    StorageFullError,
)
from activestore.ids import ObjectId
from activestore.storage import directory, lmdb_engine, maintenance
from activestore.storage.blobs import view_of
from activestore.storage.directory import read_format
from activestore.storage.engine import Change, Damage, Row
from activestore.storage.lmdb_engine import LmdbEngine
from activestore.wire.state import FileBuffer
from tests.storage.changes import REVISION, changed, content_of, delta, new, oid, state

GIB = 1 << 30


def opened(path: Path, *, budget: int = GIB) -> LmdbEngine:
    return LmdbEngine.open(path, disk_budget_bytes=budget, wall_clock=lambda: 1000.0)


@pytest.fixture
def engine(tmp_path):
    made = opened(tmp_path / "data")
    yield made
    made.close()


@pytest.fixture
def little_address_space(monkeypatch):
    """Let no map be larger than 64 MiB at first, as `ulimit -v` does."""
    really_open = lmdb.open

    def bounded_open(*args: Any, **options: Any) -> Any:
        if options.get("map_size", 0) > 64 << 20:
            raise lmdb.MemoryError("mmap: Cannot allocate memory")
        return really_open(*args, **options)

    monkeypatch.setattr(lmdb, "open", bounded_open)


def test_map_has_room_for_the_budget_from_the_start(engine):
    """A map that grows would pull the ground from under a backup."""
    assert engine.usage().map_bytes > 4 * GIB


@pytest.mark.usefixtures("little_address_space")
def test_map_grows_by_itself(tmp_path):
    engine = opened(tmp_path / "data")
    before = engine.usage().map_bytes

    for number in range(8):
        blocks = [os.urandom(900_000) for _ in range(10)]
        assert engine.commit([new(number, state(buffers=blocks))]) == [None]

    assert engine.usage().map_bytes > before
    assert len(content_of(engine, 7)[2][9]) == 900_000
    engine.close()


@pytest.mark.usefixtures("little_address_space")
def test_map_does_not_grow_under_a_read(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdb_engine, "GROW_WAIT_S", 0.01)
    engine = opened(tmp_path / "data")
    engine.commit([new(1)])
    large = state(buffers=[os.urandom(900_000) for _ in range(80)])

    with engine._reading() as transaction:
        (refused,) = engine.commit([new(2, large)])
        kept = transaction.get(oid(1), db=engine._tables["heads"])

    assert isinstance(refused, StorageFullError)
    assert kept is not None
    assert engine.commit([new(2, large)]) == [None]
    engine.close()


# -- damage --------------------------------------------------------------------------------


def overwrite(path: Path, table: str, key: bytes, change: Any) -> None:
    env = lmdb.open(str(path / "data" / "data"), max_dbs=16)
    with env.begin(write=True) as transaction:
        db = env.open_db(table.encode(), txn=transaction)
        value = bytearray(transaction.get(key, db=db))
        change(value)
        transaction.put(key, bytes(value), db=db)
    env.close()


def test_damaged_record_is_told_and_the_others_work(tmp_path):
    engine = opened(tmp_path / "data")
    engine.commit([new(1), new(2)])
    engine.close()
    overwrite(
        tmp_path, "heads", oid(1), lambda value: value.__setitem__(5, value[5] ^ 1)
    )

    engine = opened(tmp_path / "data")

    with pytest.raises(CorruptRecordError, match="checksum"):
        engine.load(oid(1))
    assert content_of(engine, 2)[0] == {"value": b"\x01"}
    assert [d.object_id for d in engine.verify() if isinstance(d, Damage)] == [oid(1)]
    (refused,) = engine.commit([changed(1, 2, delta(value=b"2"))])
    assert isinstance(refused, CorruptRecordError)
    assert engine.commit([Change(oid(1), is_delete=True)]) == [None]
    assert engine.load(oid(1)) is None
    engine.close()


def test_damaged_or_missing_file_is_told(tmp_path):
    engine = opened(tmp_path / "data")
    engine.commit([new(n, state(buffers=[os.urandom(2 << 20)])) for n in (1, 2)])
    engine.close()
    files = sorted(p for p in (tmp_path / "data" / "blobs").rglob("*") if p.is_file())
    with files[0].open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"damage")
    files[1].unlink()

    engine = opened(tmp_path / "data")

    for number in (1, 2):
        with pytest.raises(CorruptRecordError):
            engine.load(oid(number))
    assert len([d for d in engine.verify() if isinstance(d, Damage)]) == 2
    engine.close()


def test_unreferenced_files_go_and_referenced_ones_stay(engine, tmp_path):
    shared = os.urandom(2 << 20)
    engine.commit(
        [new(1, state(buffers=[shared])), new(2, state(buffers=[bytes(shared)]))]
    )
    engine.commit([Change(oid(1), version=2, is_delete=True)])
    assert engine.collect_garbage(-1.0) == 0

    engine.commit([Change(oid(2), version=2, is_delete=True)])

    assert engine.collect_garbage(3600.0) == 0
    assert engine.collect_garbage(-1.0) == 2 << 20
    assert not [p for p in (tmp_path / "data" / "blobs").rglob("*") if p.is_file()]


# -- the directory ----------------------------------------------------------------------------


def test_second_engine_on_a_directory_is_told_who_uses_it(engine, tmp_path):
    with pytest.raises(DirectoryLockedError) as refused:
        opened(tmp_path / "data")

    assert refused.value.pid == os.getpid()


def test_directory_keeps_its_peer_id_and_counts_its_starts(tmp_path):
    first = opened(tmp_path / "data")
    peer_id, incarnation = first.peer_id, first._directory.incarnation
    first.close()

    second = opened(tmp_path / "data")

    assert second.peer_id == peer_id
    assert second._directory.incarnation == incarnation + 1
    second.close()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": 99, "peer_id": "", "incarnation": 1}', "format 99"),
        ("{", "cannot be read"),
    ],
)
def test_directory_of_another_format_is_refused(tmp_path, text, said):
    opened(tmp_path / "data").close()
    (tmp_path / "data" / "FORMAT").write_text(text)

    with pytest.raises(ConfigurationError, match=said):
        opened(tmp_path / "data")


def test_directory_of_the_format_before_opens_with_all_it_has(tmp_path):
    """Recorded by the last program that knew no rows."""
    with zipfile.ZipFile(Path(__file__).parent / "format-1.zip") as archive:
        archive.extractall(tmp_path / "data")
    assert read_format(tmp_path / "data") == (bytes.fromhex("6e4a44984708"), 1)

    for _ in range(2):  # Of the old format, then of this one.
        engine = opened(tmp_path / "data")
        heads = engine.heads()
        assert [(head.alias, head.version, head.epoch) for head in heads] == [
            ("hits", 1, 1), ("", 2, 1),
        ]  # fmt: skip
        assert content_of(engine, 1) == (
            {"value": b"\x07"}, b"graph", [b"n" * 5000, b"large" * 300_000],
        )  # fmt: skip
        assert content_of(engine, 2)[0] == {"value": b"\x09"}
        assert [one.body for one in engine.replies_of(oid(2))] == [b"\x02"]
        assert engine.code(REVISION) == b"archive"
        assert [record.class_name for record in engine.classes()] == ["m.C"]
        assert list(engine.foreign_ids()) == [oid(1), oid(2)]
        assert not [d for d in engine.verify() if isinstance(d, Damage)]
        engine.close()
    engine = opened(tmp_path / "data")
    row = Row("forward", oid(2), b"there")
    gone = Change(oid(2), 3, is_delete=True, rows=[row])
    assert engine.commit([gone, changed(1, 2, delta(value=b"2"))]) == [None, None]
    assert list(engine.rows("forward")) == [(oid(2), b"there")]
    engine.close()


def test_program_of_the_format_before_refuses_this_one(tmp_path, monkeypatch):
    """It would take a copy that is not the object for the object."""
    opened(tmp_path / "data").close()
    monkeypatch.setattr(directory, "FORMATS_READ", (1,))

    with pytest.raises(ConfigurationError, match="format 2, this program reads 1"):
        opened(tmp_path / "data")


def test_path_that_is_no_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")

    with pytest.raises(ConfigurationError, match="data_dir"):
        opened(tmp_path / "file")


def test_backup_restores_to_a_new_peer_with_the_same_objects(engine, tmp_path):
    block = os.urandom(3 << 20)
    engine.commit([new(1, state(buffers=[block], value=b"\x05"), alias="name"), new(2)])

    steps = list(engine.backup(str(tmp_path / "copy")))
    engine.commit([Change(oid(1), version=2, is_delete=True)])
    engine.collect_garbage(-1.0)
    list(maintenance.restore(str(tmp_path / "copy"), str(tmp_path / "back")))

    assert steps[-1][0] == steps[-1][1] > len(block)
    again = opened(tmp_path / "back")
    assert again.peer_id != engine.peer_id
    assert again.resolve("name") == oid(1)
    assert content_of(again, 1) == ({"value": b"\x05"}, b"", [block])
    assert not [d for d in again.verify() if isinstance(d, Damage)]
    again.close()


def test_restore_refuses_what_is_no_backup_and_what_holds_data(engine, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="no data directory"):
        list(maintenance.restore(str(tmp_path / "empty"), str(tmp_path / "back")))
    list(engine.backup(str(tmp_path / "copy")))

    with pytest.raises(ConfigurationError, match="not empty"):
        list(maintenance.restore(str(tmp_path / "copy"), str(tmp_path / "copy")))


# -- crashes -----------------------------------------------------------------------------------

WRITER = """
import os, sys
from activestore.storage.lmdb_engine import LmdbEngine
from activestore.storage.engine import Change
from activestore.wire.state import ObjectState, StateDelta
engine = LmdbEngine.open(sys.argv[1], disk_budget_bytes=1 << 30, wall_clock=lambda: 1.0)
object_id = b"home66\\0" + bytes(9)
found = engine.head(object_id)
version = found.version if found else 0
if not found:
    state = ObjectState("m.C", b"r" * 16, 0, {"value": b"0"}, b"", (), ())
    assert engine.commit([Change(object_id, 1, state, is_new=True)]) == [None]
    version = 1
while True:
    version += 1
    text = str(version).encode()
    size = (10, 6000, 2_000_000)[version % 3]
    block = text * (size // len(text))
    step = StateDelta("m.C", b"r" * 16, 0, {"value": text}, (), text, ("g",), [block])
    assert engine.commit([Change(object_id, version, None, step)]) == [None]
    print(version, flush=True)
"""


@pytest.mark.slow
def test_every_acknowledged_commit_survives_kill_9(tmp_path):
    """The last one is whole or absent: field, graph and buffer always fit together."""
    chance = random.Random(4711)
    acknowledged = 1
    for _ in range(10):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "data")],
            stdout=subprocess.PIPE,
            text=True,
        ) as writer:
            time.sleep(chance.uniform(0.25, 0.6))
            writer.send_signal(signal.SIGKILL)
            assert writer.stdout is not None
            lines = writer.stdout.read().splitlines()
        if lines:
            acknowledged = int(lines[-1])

        engine = opened(tmp_path / "data")
        found = engine.load(ObjectId(b"home66\x00" + bytes(9)))
        assert found is not None or acknowledged == 1
        if found is not None:
            head, kept = found
            assert head.version in (acknowledged, acknowledged + 1)
            text = str(head.version).encode()
            if head.version > 1:
                assert kept.fields["value"] == kept.graph == text
                (buffer,) = kept.buffers
                assert bytes(view_of(buffer)).startswith(text)
                if isinstance(buffer, FileBuffer):
                    os.close(buffer.fd)
            acknowledged = head.version
        assert not [d for d in engine.verify() if isinstance(d, Damage)]
        engine.close()


@pytest.mark.slow
def test_100_000_objects_open_at_once_and_list_in_pages(tmp_path):
    engine = opened(tmp_path / "data")
    for start in range(0, 100_000, 1000):
        engine.commit([new(n) for n in range(start, start + 1000)])
    engine.close()
    start_s = time.perf_counter()

    again = opened(tmp_path / "data")

    assert time.perf_counter() - start_s < 1.0
    count, after = 0, None
    while page := again.heads(after=after, limit=1000):
        count, after = count + len(page), page[-1].object_id
    assert count == 100_000
    again.close()
