"""Looking after a store: check every byte, copy a snapshot, bring one back.

Rules of this file: a check reads and never mends; a copy is consistent although the
peer goes on; a restored copy gets a new peer id, for its old one may have promised
things.

Source: design section 6; reliability.md 4.2, R9.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import lmdb

from activestore.errors import ConfigurationError, CorruptRecordError
from activestore.ids import ObjectId, new_peer_id
from activestore.storage.blobs import Blobs
from activestore.storage.directory import (
    BLOBS,
    DATA,
    DataDirectory,
    read_format,
    write_format,
)
from activestore.storage.engine import Damage
from activestore.storage.facts import has_row, verify_rows
from activestore.storage.records import (
    CHUNK_BYTES,
    DIGEST_BYTES,
    chunk_key,
    decode_class,
    decode_document,
    decode_reply,
    part_bytes,
    unseal,
)
from activestore.wire import packing

COPY_BYTES = 4 * 1024 * 1024
# Objects read in one transaction: a longer one would keep old pages from being reused.
OBJECTS_PER_READ = 1000


class CheckedFiles(Protocol):
    """Files that can be checked."""

    def is_intact(self, digest: bytes, size: int) -> bool:
        """Return whether the content is there and is what its name says."""


Begin = Callable[[], AbstractContextManager[Any]]


def verify(
    begin: Begin, tables: Mapping[str, Any], blobs: CheckedFiles
) -> Iterator[Damage | int]:
    """Check every record and file; yield each damage, and bytes checked in between.

    `begin` returns a read transaction.
    """
    after = b"\x00"
    seen_files: set[bytes] = set()
    while True:
        found: list[Damage | int] = []
        with begin() as transaction:
            cursor = transaction.cursor(db=tables["heads"])
            is_more = cursor.set_range(after)
            for _ in range(OBJECTS_PER_READ):
                if not is_more:
                    break
                key = ObjectId(bytes(cursor.key()))
                found.extend(
                    _verify_object(
                        transaction, tables, blobs, key, cursor.value(), seen_files
                    )
                )
                is_more = cursor.next()
            if is_more:
                after = bytes(cursor.key())
        yield from found
        if not is_more:
            break
    yield from _verify_tables(begin, tables)
    yield from verify_rows(begin, tables["facts"])


def _verify_object(  # noqa: C901 - one branch per kind
    transaction: Any,
    tables: Mapping[str, Any],
    blobs: CheckedFiles,
    object_id: ObjectId,
    value: bytes,
    seen_files: set[bytes],
) -> Iterator[Damage | int]:
    try:
        document = decode_document(value, object_id)
    except CorruptRecordError as error:
        yield Damage(error.where, object_id, error.reason)
        return
    checked = len(value)
    for part in document.parts():
        if isinstance(part, bytes):
            continue
        size, where = part
        if isinstance(where, bytes):
            if where not in seen_files and not blobs.is_intact(where, size):
                yield Damage(
                    f"blob {where.hex()}",
                    object_id,
                    "missing, or not what its name says",
                )
            seen_files.add(where)
        else:
            for chunk in range(-(-size // CHUNK_BYTES)):
                place = f"part {where} chunk {chunk}"
                stored = transaction.get(
                    chunk_key(object_id, where, chunk), db=tables["parts"]
                )
                if stored is None:
                    yield Damage(place, object_id, "missing")
                    continue
                try:
                    unseal(stored, object_id, place)
                except CorruptRecordError as error:
                    yield Damage(place, object_id, error.reason)
        checked += part_bytes(part)
    if document.alias:
        named = transaction.get(document.alias.encode(), db=tables["aliases"])
        # A copy goes without its name where that is another object's here.
        is_wrong = named is None or bytes(named) != object_id
        if is_wrong and not has_row(
            transaction, tables["facts"], "register", object_id
        ):
            yield Damage(
                f"alias {document.alias!r}", object_id, "does not name the object"
            )
    yield checked


def _verify_tables(begin: Begin, tables: Mapping[str, Any]) -> Iterator[Damage | int]:
    with begin() as transaction:
        for alias, object_id in transaction.cursor(db=tables["aliases"]):
            if transaction.get(bytes(object_id), db=tables["heads"]) is None:
                name = bytes(alias).decode(errors="replace")
                yield Damage(
                    f"alias {name!r}", ObjectId(bytes(object_id)), "object missing"
                )
        for key, value in transaction.cursor(db=tables["replies"]):
            try:
                decode_reply(bytes(key), value)
            except CorruptRecordError as error:
                yield Damage(error.where, ObjectId(error.object_id), error.reason)
            yield len(value)
        for package, archive in transaction.cursor(db=tables["packages"]):
            try:
                unseal(archive, b"", "package")
            except CorruptRecordError as error:
                yield Damage(f"package {bytes(package).hex()}", None, error.reason)
            yield len(archive)
        for key, value in transaction.cursor(db=tables["classes"]):
            try:
                decode_class(value)
            except CorruptRecordError as error:  # noqa: PERF203 - one by one, to name each
                name = bytes(key).partition(b"\x00")[0].decode(errors="replace")
                yield Damage(f"class {name}", None, error.reason)


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
