"""A peer with a damaged, a full, or no disk to speak of: it says so, and serves the rest."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from activestore import remote
from activestore.errors import (
    ActiveStoreError,
    CorruptRecordError,
    StorageFullError,
)
from activestore.storage.lmdb_engine import LmdbEngine

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(90)]

MIB = 1 << 20


def flip_a_bit(peer: Any, table: str, beginning: bytes) -> None:
    """Damage the first record of a stopped peer whose key begins so."""
    engine = LmdbEngine.open(
        peer.directory / "data", disk_budget_bytes=MIB, wall_clock=lambda: 1.0
    )
    with engine._env.begin(write=True) as transaction:
        cursor = transaction.cursor(db=engine._tables[table])
        assert cursor.set_range(beginning)
        key, value = bytes(cursor.key()), bytearray(cursor.value())
        value[len(value) // 2] ^= 1
        transaction.put(key, bytes(value), db=engine._tables[table])
    engine.close()


def run_start(data: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "activestore.cli.main", "start"]
    return subprocess.run(
        [*command, "--listen", "tcp://127.0.0.1:0", "--data-dir", str(data)],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("by_alias", [True, False], ids=["alias", "id"])
def test_damaged_object_is_listed_and_can_be_deleted(peer, store, by_alias):
    bad = store.create("models.Counter", 5, alias="bad")
    store.create("models.Counter", 6, alias="good")
    object_id = remote.id_of(bad)
    peer.stop()
    flip_a_bit(peer, "heads", object_id)
    peer.start()
    store = peer.connect()

    rows = {row["alias"]: row for row in store.objects()}
    with pytest.raises(CorruptRecordError):
        store.get(object_id.hex()).add(1)
    store.delete("bad" if by_alias else object_id.hex())

    assert "checksum" in rows["bad"]["damage"]
    assert "damage" not in rows["good"]
    assert store.get("good").add(1) == 7
    assert store.create("models.Counter", 1, alias="bad").add(1) == 2


def test_damaged_class_is_left_out_until_it_is_published_again(
    peer, store, models_file
):
    counter = store.create("models.Counter", 5, alias="counter")
    counter.add(1)
    peer.stop()
    flip_a_bit(peer, "classes", b"models.Counter\x00")
    peer.start()
    store = peer.connect()

    with pytest.raises(ActiveStoreError):
        store.get("counter").add(1)
    assert "class models.Counter is damaged" in peer.log()
    store.publish(models_file)

    assert peer.connect().get("counter").add(1) == 7


def test_start_on_a_damaged_environment_says_what_to_do(peer):
    peer.stop()
    data = peer.directory / "data"
    (data / "data" / "data.mdb").write_bytes(os.urandom(64 * 1024))

    done = run_start(data)

    assert done.returncode
    assert "Traceback" not in done.stderr
    assert "restore" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture
def small_peer(make_peer):
    """Return a peer whose data lies on a disk of 48 MiB; only root can make one."""
    if os.geteuid() != 0:
        pytest.skip("a small disk can be mounted by root only")
    peer = make_peer(disk_budget_mb=1000)
    peer.stop()
    data = peer.directory / "data"
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(data)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield peer.start()
    subprocess.run(["umount", "-l", str(data)], check=True)


def test_peer_on_a_full_disk_serves_and_recovers(small_peer, models_file):
    """Nothing acknowledged is lost, also across kill -9 and a start on the full disk."""
    pytest.importorskip("numpy")
    store = small_peer.connect()
    store.publish(models_file)
    counter = store.create("models.Counter", 0, alias="counter")
    made, refusal = [], None
    for number in range(1, 61):
        count = 110_000 if number % 2 else 150_000  # In chunks, and in a file.
        try:
            made.append(store.create("models.Chunk", number, count))
        except StorageFullError as error:
            refusal = error
        assert counter.add(1) == number
    assert refusal is not None
    filler = (small_peer.directory / "data" / "filler").open("wb", buffering=0)
    with filler, pytest.raises(OSError, match="No space"):
        while filler.write(b"x" * 4096):
            pass

    small_peer.restart()

    store = small_peer.connect()
    counter = store.get("counter")
    assert counter.value == 60
    assert len(list(store.objects())) == len(made) + 1
    for one in made[:5]:
        store.delete(remote.id_of(one).hex())
    assert counter.add(1) == 61
    store.create("models.Chunk", 1, 110_000)


@pytest.mark.parametrize("ending", ["kill", "stop"])
def test_code_that_never_ends_its_import_ends_with_the_daemon(
    peer, tmp_path, eventually, ending
):
    loop = tmp_path / "looping.py"
    loop.write_text("while True: pass\n")
    store = peer.connect()

    def publish() -> None:
        with contextlib.suppress(ActiveStoreError):
            store.publish(str(loop))

    thread = threading.Thread(target=publish, daemon=True)
    thread.start()

    def describing() -> list[psutil.Process]:
        return [
            child
            for child in psutil.Process(peer.pid).children(recursive=True)
            if "activestore.objects.describe" in child.cmdline()
        ]

    eventually(lambda: bool(describing()))
    (child,) = describing()

    getattr(peer, ending)()

    eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    store.close()
    thread.join(10)
