"""Looking after a store: copy a snapshot, bring one back.

Rules of this file: a copy is consistent although the peer goes on; a restored copy gets
a new peer id, for its old one may have promised things.

Source: design section 6; reliability.md 4.2, R9.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import lmdb

from activestore.errors import ConfigurationError
from activestore.ids import new_peer_id
from activestore.storage.blobs import Blobs
from activestore.storage.directory import (
    BLOBS,
    DATA,
    DataDirectory,
    read_format,
    write_format,
)
from activestore.storage.records import (
    DIGEST_BYTES,
)
from activestore.wire import packing

COPY_BYTES = 4 * 1024 * 1024


def backup(
    env: lmdb.Environment, blobs: Blobs, directory: DataDirectory, target: Path
) -> Iterator[tuple[int, int]]:
    """Copy a consistent snapshot to an empty directory; yield (bytes done, total).

    Raises:
        ConfigurationError: the target is not empty or cannot be written.
    """
    _make_empty(target, "backup directory")
    (target / DATA).mkdir()
    try:
        env.copy(str(target / DATA), compact=True)
    except lmdb.Error as error:
        raise ConfigurationError("backup directory", f"{target}: {error}") from None
    done = (target / DATA / "data.mdb").stat().st_size
    wanted = list(_referenced(target / DATA))
    total = done + sum(size for _, size in wanted)
    yield done, total
    try:
        for digest, size in wanted:
            source = blobs.path_of(digest)
            place = target / BLOBS / source.relative_to(directory.path / BLOBS)
            place.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(source, place)
            done += size
            yield done, total
        write_format(target, directory.peer_id, directory.incarnation)
    except OSError as error:
        raise ConfigurationError(
            "backup directory", f"{target}: {error.strerror or error}"
        ) from None
    yield total, total


def restore(
    source: str, target: str, *, new_identity: bool = True
) -> Iterator[tuple[int, int]]:
    """Make a data directory of a backup; yield (bytes done, total).

    Args:
        source: A directory that `backup` filled.
        target: The data directory to be; it must be empty or not there.
        new_identity: Give it a new peer id. Keep the old one only where the old peer is
            gone for good: two peers of one id promise things for each other.

    Raises:
        ConfigurationError: the source is no backup, or the target is not empty.
    """
    origin, place = Path(source), Path(target)
    peer_id, incarnation = read_format(origin)
    data = origin / DATA / "data.mdb"
    if not data.exists():
        raise ConfigurationError(
            "backup", f"{origin} is no backup: it has no {DATA}/data.mdb"
        )
    _make_empty(place, "data_dir")
    (place / DATA).mkdir()
    files = [data, *sorted(p for p in (origin / BLOBS).rglob("*") if p.is_file())]
    total = sum(path.stat().st_size for path in files)
    done = 0
    for path in files:
        copy = place / path.relative_to(origin)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as reader, copy.open("wb") as writer:
            while block := reader.read(COPY_BYTES):
                writer.write(block)
                done += len(block)
                yield done, total
            writer.flush()
            os.fsync(writer.fileno())
    write_format(place, new_peer_id() if new_identity else peer_id, incarnation + 1)
    yield total, total


def _make_empty(path: Path, setting: str) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise ConfigurationError(setting, f"{path} is not empty; choose another")
    except OSError as error:
        raise ConfigurationError(
            setting, f"{path} cannot be used: {error.strerror}"
        ) from None


def _referenced(data: Path) -> Iterator[tuple[bytes, int]]:
    """Yield address and size of the files that a copied environment refers to."""
    env = lmdb.open(str(data), readonly=True, lock=False, max_dbs=16)
    try:
        with env.begin() as transaction:
            table = env.open_db(b"blobs", txn=transaction, create=False)
            for digest, value in transaction.cursor(db=table):
                references, size, _ = packing.unpack(value)
                if references > 0 and len(digest) == DIGEST_BYTES:
                    yield bytes(digest), int(size)
    finally:
        env.close()


def _link_or_copy(source: Path, place: Path) -> None:
    try:
        os.link(source, place)
    except OSError:
        shutil.copyfile(source, place)
        with place.open("rb") as file:
            os.fsync(file.fileno())
