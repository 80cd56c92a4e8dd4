"""Power cuts: what was answered is on the disk, whatever part of the next commit is.

A disk that loses its power keeps what was synced. Of what was not it may have any
pages, old, new or torn between two sectors; LMDB syncs the pages of a commit before it
writes the one page that makes them count. So every image that a cut can leave is made
here, from the file before a commit and the file after it, and opened.

Source: reliability.md 4.1, 4.3, 9 (power cut); schemas/protocol.md section 14.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from activestore.core.register import Register, unpack_register
from activestore.ids import PeerId
from activestore.peer.shipping import Copy, apply_copies, outgoing, unpack_change
from activestore.storage import blobs
from activestore.storage.engine import Change, Damage
from activestore.storage.lmdb_engine import LmdbEngine
from activestore.wire.replicas import Ballot, Config, Point
from tests.storage.changes import content_of, delta, oid, reply, state

PAGE, SECTOR, METAS = 4096, 512, (0, 1)
MIB = 1 << 20
MEMBERS = (PeerId(b"peer-1"), PeerId(b"peer-2"), PeerId(b"peer-3"))
CONFIG = Config(1, MEMBERS)
OBJECT = oid(1)


def at(number: int) -> Register:
    ballot = Ballot(1, MEMBERS[0])
    return Register(ballot, ballot, number, CONFIG)


def content(number: int, *, is_large: bool = False) -> dict[str, bytes]:
    """Return fields that fill some pages, of a kind that changes with the number."""
    size = 300_000 if is_large else 900 * (number % 7)
    return {"number": bytes([number]), "filling": bytes([number]) * size}


def step(number: int, **options: Any) -> Copy:
    """Return the step of a copy to a number, as it comes over the wire."""
    if number == 1:
        change = Change(OBJECT, 1, state(**content(1)), alias="hits")
    else:
        change = Change(
            OBJECT, number, None, delta(**content(number, **options)),
            reply=reply(number, bytes([number])),
        )  # fmt: skip
    _, shipment = outgoing(change)
    unpacked = unpack_change(OBJECT, shipment.body, shipment.buffers)
    base = Point(1, number - 1) if number > 1 else None
    return Copy(OBJECT, at(number), base, unpacked)


def opened(path: Path) -> LmdbEngine:
    return LmdbEngine.open(path, disk_budget_bytes=1 << 30, wall_clock=lambda: 1000.0)


class Disk:
    """A data directory, and what its file was after each commit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.engine = opened(path)
        self.files = [self._read()]

    def _read(self) -> bytes:
        return (self.path / "data" / "data.mdb").read_bytes()

    def apply(self, copy: Copy) -> None:
        """Apply a step, which is durable then."""
        assert apply_copies(self.engine, [copy]) == [("", "")]
        self.files.append(self._read())

    def image(self, number: int, rng: random.Random, target: Path) -> Path:
        """Make the directory that a cut leaves which fell into the commit behind `number`."""
        before, after = (
            self.files[number],
            self.files[min(number + 1, len(self.files) - 1)],
        )
        data = bytearray(before.ljust(len(after), b"\x00"))
        for page in range(0, len(after), PAGE):
            if (
                page // PAGE in METAS
                or data[page : page + PAGE] == after[page : page + PAGE]
            ):
                continue
            kept = rng.choice((0, PAGE, SECTOR * rng.randrange(1, PAGE // SECTOR)))
            data[page : page + kept] = after[page : page + kept]
        shutil.copytree(
            self.path, target, ignore=lambda *_: {"data.mdb", "lock.mdb", "lock"}
        )
        (target / "data" / "data.mdb").write_bytes(data)
        return target


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Callable[[str], Disk]]:
    made: list[Disk] = []

    def make(name: str) -> Disk:
        made.append(Disk(tmp_path / name))
        return made[-1]

    yield make
    for disk in made:
        disk.engine.close()


def kept_in(path: Path) -> tuple[int, dict[str, bytes], list[bytes]]:
    """Return number, fields and answers that an image has; they belong together."""
    engine = opened(path)
    try:
        assert not [found for found in engine.verify() if isinstance(found, Damage)]
        row = engine.row("register", OBJECT)
        if row is None:
            assert engine.head(OBJECT) is None
            return 0, {}, []
        number = unpack_register(row).number
        head = engine.head(OBJECT)
        assert head is not None
        assert head.version == number
        assert engine.resolve("hits") == OBJECT
        answers = [one.body for one in engine.replies_of(OBJECT)]
        return number, content_of(engine, 1)[0], answers
    finally:
        engine.close()


@pytest.mark.parametrize("seed", range(3))
def test_cut_in_a_commit_leaves_the_state_before_with_its_register(
    disks: Callable[[str], Disk], tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    disk = disks("disk")
    for number in range(1, 10):
        disk.apply(
            step(number, **({"is_large": number in {4, 7}} if number > 1 else {}))
        )

    for number in range(10):
        path = disk.image(number, rng, tmp_path / f"cut-{number}")
        found, fields, answers = kept_in(path)

        assert found == number
        expected = content(number, is_large=number in {4, 7}) if number else {}
        assert fields == expected
        assert answers == [bytes([n]) for n in range(2, number + 1)]


@pytest.mark.parametrize("seed", range(4))
def test_cut_of_all_replicas_at_once_loses_nothing_acknowledged(
    disks: Callable[[str], Disk], tmp_path: Path, seed: int
) -> None:
    """Of any two that come back, the one with the newest state has all that was answered."""
    rng = random.Random(100 + seed)
    three = [disks(f"disk-{n}") for n in range(3)]
    durable = [0, 0, 0]
    moments: list[tuple[int, tuple[int, ...]]] = []
    for number in range(1, 6):
        others = [1, 2]
        rng.shuffle(others)
        # The leader's disk first; then the others, of which one may fall behind.
        for count, index in enumerate([0, *others][: rng.choice((2, 3))], 1):
            for missing in range(durable[index] + 1, number + 1):
                three[index].apply(step(missing))
            durable[index] = number
            acknowledged = number if count >= 2 else number - 1
            moments.append((acknowledged, tuple(durable)))

    for moment, (acknowledged, numbers) in enumerate(moments):
        found = []
        for index, disk in enumerate(three):
            path = disk.image(numbers[index], rng, tmp_path / f"{moment}-{index}")
            found.append(kept_in(path))
        for pair in itertools.combinations(found, 2):
            best, fields, _ = max(pair, key=lambda one: one[0])
            assert best >= acknowledged
            assert fields == (content(best) if best else {})


# -- large buffers ---------------------------------------------------------------------


def large_step(number: int, buffer: bytes) -> Copy:
    change = Change(OBJECT, number, state(value=bytes([number]), buffers=[buffer]))
    return Copy(OBJECT, at(number), None, change)


def test_cut_in_a_large_write_leaves_the_state_before(
    disks: Callable[[str], Disk], tmp_path: Path
) -> None:
    """A torn file in `tmp/`, and one that is whole and named by nothing yet."""
    disk = disks("disk")
    old, new = os.urandom(2 * MIB), os.urandom(2 * MIB)
    disk.apply(large_step(1, old))
    before = set(_files(disk.path))
    disk.apply(large_step(2, new))
    (added,) = set(_files(disk.path)) - before

    for name, torn in (("torn", new[: MIB + 7]), ("whole", b"")):
        path = disk.image(1, random.Random(1), tmp_path / name)
        if torn:
            (path / added).unlink()
            (path / "tmp" / "1-1").write_bytes(torn)
        engine = opened(path)
        assert not [found for found in engine.verify() if isinstance(found, Damage)]
        assert content_of(engine, 1)[2] == [old]
        assert engine.collect_garbage(-1e12) in {0, 2 * MIB}
        assert apply_copies(engine, [large_step(2, new)]) == [("", "")]
        assert content_of(engine, 1)[2] == [new]
        assert not list((path / "tmp").iterdir())
        engine.close()


def _files(path: Path) -> list[Path]:
    return [p.relative_to(path) for p in (path / "blobs").rglob("*") if p.is_file()]


# -- a disk that fails -----------------------------------------------------------------


@pytest.mark.parametrize("failing", range(1, 4))
def test_sync_that_fails_is_no_answer(
    disks: Callable[[str], Disk], monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Of the file, and of each directory: the step is not done, and nothing of it stays."""
    disk = disks("disk")
    old, new = os.urandom(2 * MIB), os.urandom(2 * MIB)
    disk.apply(large_step(1, old))
    before = _files(disk.path)
    count = 0
    really_sync = os.fsync

    def fail(fd: int) -> None:
        nonlocal count
        count += 1
        if count == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        really_sync(fd)

    monkeypatch.setattr(blobs.os, "fsync", fail)

    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        apply_copies(disk.engine, [large_step(2, new)])

    monkeypatch.undo()
    assert count == failing
    disk.engine.close()
    disk.engine = opened(disk.path)
    assert content_of(disk.engine, 1)[2] == [old]
    row = disk.engine.row("register", OBJECT)
    assert row is not None
    assert unpack_register(row) == at(1)
    left = set(_files(disk.path)) - set(before)
    assert disk.engine.collect_garbage(-1e12) == 2 * MIB * len(left)


def test_commit_that_fails_is_no_answer(
    disks: Callable[[str], Disk], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = disks("disk")
    disk.apply(step(1))

    def fail(*_: Any) -> Any:
        raise lmdb.Error(f"mdb_txn_commit: {os.strerror(errno.EIO)}")

    monkeypatch.setattr(disk.engine, "_count_tables", fail)

    with pytest.raises(OSError, match="commit failed") as failed:
        apply_copies(disk.engine, [step(2)])

    assert failed.value.errno == errno.EIO
    monkeypatch.undo()
    row = disk.engine.row("register", OBJECT)
    assert row is not None
    assert unpack_register(row) == at(1)
    assert content_of(disk.engine, 1)[0] == content(1)
