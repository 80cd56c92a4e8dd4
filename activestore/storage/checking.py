"""Checking every byte that is kept, beside a peer that goes on with its work.

    page      some records, in one read transaction
    files     those that the page named, after it, piece by piece

A long transaction would keep old pages from being reused, so a page is short; a file may
go meanwhile, so one that is missing or wrong is damage only where its object still names
it. Whoever walks on sets the pace: between any two pieces the walk may rest.

Rules of this file: it reads and never mends.

Source: reliability.md 4.2; design section 6.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from activestore.errors import CorruptRecordError
from activestore.ids import ObjectId
from activestore.storage.batch import keys_of
from activestore.storage.engine import Damage
from activestore.storage.facts import has_row, row_of, verify_rows
from activestore.storage.records import (
    CHUNK_BYTES,
    Document,
    chunk_key,
    decode_class,
    decode_document,
    decode_reply,
    part_bytes,
    unseal,
)
from activestore.storage.work import is_file

# What is read in one transaction, at most: records, and bytes rather more than that.
RECORDS_PER_READ = 1000
BYTES_PER_READ = 4 * 1024 * 1024

Tables = Mapping[str, Any]
Begin = Callable[[], AbstractContextManager[Any]]
Found = Iterator[Damage | int]
CheckRecord = Callable[[Any, bytes, bytes], Found]


class CheckedFiles(Protocol):
    """Files that can be checked."""

    def check(self, digest: bytes, size: int) -> Iterator[int]:
        """Read a file whole; yield the bytes of each piece.

        Raises:
            CorruptRecordError: it is not there, cannot be read, or is not what its name
                says.
        """


def verify(begin: Begin, tables: Tables, files: CheckedFiles) -> Found:
    """Check every record and file; yield each damage, and bytes checked in between.

    `begin` returns a read transaction.
    """
    seen: dict[bytes, str] = {}  # what is wrong with a file, "" for nothing
    named: list[tuple[ObjectId, int, bytes]] = []

    def object_(transaction: Any, key: bytes, value: bytes) -> Found:
        for found in _object(transaction, tables, ObjectId(key), value):
            if isinstance(found, tuple):
                named.append((ObjectId(key), *found))
            else:
                yield found

    for page in _pages(begin, tables["heads"], object_):
        yield from page
        files_named = named.copy()
        named.clear()
        for object_id, size, digest in files_named:
            if digest not in seen:
                seen[digest] = yield from _file(files, size, digest)
            if seen[digest] and _still_names(begin, tables, object_id, digest):
                yield Damage(f"blob {digest.hex()}", object_id, seen[digest])
    for table, check in (
        ("aliases", _alias_of(tables)), ("replies", _reply), ("packages", _package),
        ("classes", _class),
    ):  # fmt: skip
        for page in _pages(begin, tables[table], check):
            yield from page
    yield from verify_rows(begin, tables["facts"])


def verify_object(
    begin: Begin, tables: Tables, files: CheckedFiles, object_id: ObjectId
) -> Found:
    """Check all that is kept of one object; yield as `verify` does."""
    named: list[tuple[int, bytes]] = []
    found: list[Damage | int] = []
    with begin() as transaction:
        value = transaction.get(object_id, db=tables["heads"])
        for one in _object(transaction, tables, object_id, value) if value else ():
            if isinstance(one, tuple):
                named.append(one)
            else:
                found.append(one)
        for key in keys_of(transaction, tables["replies"], object_id):
            found += _reply(
                transaction, key, transaction.get(key, db=tables["replies"])
            )
        try:
            row_of(transaction, tables["facts"], "register", object_id)
        except CorruptRecordError as error:
            found.append(Damage(error.where, object_id, error.reason))
    yield from found
    for size, digest in named:
        reason = yield from _file(files, size, digest)
        if reason and _still_names(begin, tables, object_id, digest):
            yield Damage(f"blob {digest.hex()}", object_id, reason)


def _pages(
    begin: Begin, table: Any, check: CheckRecord
) -> Iterator[list[Damage | int]]:
    """Yield what a check finds in the records of a table, page by page."""
    after = b"\x00"
    while after:
        found: list[Damage | int] = []
        records = read_bytes = 0
        with begin() as transaction:
            cursor = transaction.cursor(db=table)
            is_more = cursor.set_range(after)
            while (
                is_more and records < RECORDS_PER_READ and read_bytes < BYTES_PER_READ
            ):
                key = bytes(cursor.key())
                for one in check(transaction, key, cursor.value()):
                    found.append(one)
                    read_bytes += one if isinstance(one, int) else 0
                records += 1
                is_more = cursor.next()
            after = bytes(cursor.key()) if is_more else b""
        yield found


# -- objects ---------------------------------------------------------------------------


def _object(
    transaction: Any, tables: Tables, object_id: ObjectId, value: bytes
) -> Iterator[Damage | int | tuple[int, bytes]]:
    """Yield what is found of an object, and size and digest of each file it names."""
    try:
        document = decode_document(value, object_id)
    except CorruptRecordError as error:
        yield Damage(error.where, object_id, error.reason)
        return
    checked = len(value)
    for part in document.parts():
        if isinstance(part, bytes):
            continue
        if is_file(part):
            yield part
            continue
        size, number = part
        yield from _chunks(transaction, tables, object_id, size, int(number))
        checked += part_bytes(part)
    if document.alias and not _is_named(transaction, tables, object_id, document):
        reason = "does not name the object"
        yield Damage(f"alias {document.alias!r}", object_id, reason)
    yield checked


def _chunks(
    transaction: Any, tables: Tables, object_id: ObjectId, size: int, number: int
) -> Iterator[Damage]:
    for chunk in range(-(-size // CHUNK_BYTES)):
        place = f"part {number} chunk {chunk}"
        key = chunk_key(object_id, number, chunk)
        stored = transaction.get(key, db=tables["parts"])
        if stored is None:
            yield Damage(place, object_id, "missing")
            continue
        try:
            unseal(stored, object_id, place)
        except CorruptRecordError as error:
            yield Damage(place, object_id, error.reason)


def _is_named(
    transaction: Any, tables: Tables, object_id: ObjectId, document: Document
) -> bool:
    """Whether the name of an object names it, or need not.

    A copy goes without its name where that is another object's here.
    """
    named = transaction.get(document.alias.encode(), db=tables["aliases"])
    if named is not None and bytes(named) == object_id:
        return True
    return has_row(transaction, tables["facts"], "register", object_id)


def _file(files: CheckedFiles, size: int, digest: bytes) -> Generator[int, None, str]:
    """Yield the bytes of each piece of a file; return what is wrong with it."""
    try:
        yield from files.check(digest, size)
    except CorruptRecordError as error:
        return error.reason
    return ""


def _still_names(
    begin: Begin, tables: Tables, object_id: ObjectId, digest: bytes
) -> bool:
    with begin() as transaction:
        value = transaction.get(object_id, db=tables["heads"])
        try:
            document = None if value is None else decode_document(value, object_id)
        except CorruptRecordError:
            return True
    parts = () if document is None else document.parts()
    return any(is_file(part) and part[1] == digest for part in parts)


# -- what else is kept -----------------------------------------------------------------


def _alias_of(tables: Tables) -> CheckRecord:
    def check(transaction: Any, alias: bytes, object_id: bytes) -> Found:
        if transaction.get(bytes(object_id), db=tables["heads"]) is None:
            name = alias.decode(errors="replace")
            yield Damage(
                f"alias {name!r}", ObjectId(bytes(object_id)), "object missing"
            )
        yield len(alias)

    return check


def _reply(_transaction: Any, key: bytes, value: bytes) -> Found:
    try:
        decode_reply(key, value)
    except CorruptRecordError as error:
        yield Damage(error.where, ObjectId(error.object_id), error.reason)
    yield len(value)


def _package(_transaction: Any, package: bytes, archive: bytes) -> Found:
    try:
        unseal(archive, b"", "package")
    except CorruptRecordError as error:
        yield Damage(f"package {package.hex()}", None, error.reason)
    yield len(archive)


def _class(_transaction: Any, key: bytes, value: bytes) -> Found:
    try:
        decode_class(value)
    except CorruptRecordError as error:
        name = key.partition(b"\x00")[0].decode(errors="replace")
        yield Damage(f"class {name}", None, error.reason)
    yield len(value)
