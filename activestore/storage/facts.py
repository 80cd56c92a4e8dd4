"""Rows: small facts about the cluster, kept on disk beside the objects.

    facts    kind | 0 | key  ->  value | checksum

Each function works inside a transaction that the engine begins and ends; `table` is its
handle of the facts. What a value means is its writer's affair.

Rules of this file: bytes only. A damaged row is an error where it is asked for by name,
and left out, with a note, where it is one of many.

Source: design section 7; reliability.md 2.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from activestore.errors import CorruptRecordError, InvalidRequestError
from activestore.ids import OBJECT_ID_BYTES, ObjectId
from activestore.storage.engine import (
    CHANGE_ROWS_MAX,
    ROW_KEY_BYTES_MAX,
    ROW_KINDS,
    ROW_VALUE_BYTES_MAX,
    Damage,
    Row,
)
from activestore.storage.records import seal, unseal
from activestore.storage.room import RECORD_BYTES

# Rows read in one transaction: a longer one would keep old pages from being reused.
ROWS_PER_READ = 1000

Begin = Callable[[], AbstractContextManager[Any]]


def check_rows(rows: Sequence[Row]) -> None:
    """Make sure that rows can be kept.

    Raises:
        InvalidRequestError: there are too many, a kind is unknown, a key is empty, or a
            key or value too long.
    """
    if len(rows) > CHANGE_ROWS_MAX:
        raise InvalidRequestError(
            f"a change has {len(rows)} rows; at most {CHANGE_ROWS_MAX} are taken at once",
            "rows",
        )
    for kind, key, value in rows:
        _prefix(kind)
        if not 1 <= len(key) <= ROW_KEY_BYTES_MAX:
            raise InvalidRequestError(
                f"its key has {len(key)} bytes, it must have 1 to {ROW_KEY_BYTES_MAX}",
                _name(_prefix(kind) + key[:80]),
            )
        if value is not None and len(value) > ROW_VALUE_BYTES_MAX:
            raise InvalidRequestError(
                f"its value has {len(value)} bytes, at most {ROW_VALUE_BYTES_MAX} are "
                "taken",
                _name(_prefix(kind) + key),
            )


def growth_bytes(transaction: Any, table: Any, rows: Sequence[Row]) -> int:
    """Return by how much rows would make the table larger; negative: smaller."""
    grown = 0
    for kind, key, value in rows:
        old = transaction.get(_prefix(kind) + key, db=table)
        if old is not None:
            grown -= len(key) + len(old) + RECORD_BYTES
        if value is not None:
            grown += len(key) + len(value) + RECORD_BYTES
    return grown


def put_rows(transaction: Any, table: Any, rows: Sequence[Row]) -> None:
    """Put rows, and take away those without a value."""
    for kind, key, value in rows:
        if value is None:
            transaction.delete(_prefix(kind) + key, db=table)
        else:
            transaction.put(_prefix(kind) + key, seal(bytes(value)), db=table)


def row_of(transaction: Any, table: Any, kind: str, key: bytes) -> bytes | None:
    """Return the value of a row, None where there is none.

    Raises:
        CorruptRecordError: its checksum fails.
        InvalidRequestError: there is no such kind.
    """
    place = _prefix(kind) + key
    if not 1 <= len(key) <= ROW_KEY_BYTES_MAX:
        return None  # LMDB would take it for an error; it is only not there.
    value = transaction.get(place, db=table)
    return None if value is None else unseal(value, b"", _name(place))


def has_row(transaction: Any, table: Any, kind: str, key: bytes) -> bool:
    """Return whether there is such a row, whatever its value."""
    return transaction.get(_prefix(kind) + key, db=table) is not None


def rows_of(
    begin: Begin, table: Any, kind: str, on_damage: Callable[[Damage], None] | None
) -> Iterator[tuple[bytes, bytes]]:
    """Yield key and value of every row of a kind; damaged ones go to `on_damage`."""
    prefix = _prefix(kind)
    for key, value in _read(begin, table, prefix):
        try:
            content = unseal(value, b"", _name(key))
        except CorruptRecordError as error:
            if on_damage is not None:
                on_damage(_damage(key, error))
            continue
        yield key[len(prefix) :], content


def verify_rows(begin: Begin, table: Any) -> Iterator[Damage | int]:
    """Check every row; yield each damage, and bytes checked in between."""
    for key, value in _read(begin, table, b""):
        try:
            unseal(value, b"", _name(key))
        except CorruptRecordError as error:
            yield _damage(key, error)
        yield len(value)


def staged_count(transaction: Any, facts: Any, heads: Any) -> int:
    """Return how many of the heads are copies that a row says are not the object."""
    prefix = _prefix("staged")
    cursor = transaction.cursor(db=facts)
    count = 0
    if cursor.set_range(prefix):
        for key in cursor.iternext(values=False):
            if not key.startswith(prefix):
                break
            object_id = bytes(key[len(prefix) :])
            if len(object_id) == OBJECT_ID_BYTES:
                count += transaction.get(object_id, db=heads) is not None
    return count


def _read(begin: Begin, table: Any, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield key and stored value of the rows with a prefix, page by page."""
    after = prefix
    while True:
        with begin() as transaction:
            page = _page(transaction, table, prefix, after)
        yield from page
        if len(page) < ROWS_PER_READ:
            return
        after = page[-1][0]


def _page(
    transaction: Any, table: Any, prefix: bytes, after: bytes
) -> list[tuple[bytes, bytes]]:
    cursor = transaction.cursor(db=table)
    found: list[tuple[bytes, bytes]] = []
    if not cursor.set_range(after or b"\x00"):
        return found
    for key, value in cursor:
        if not key.startswith(prefix):
            break
        if key != after:
            found.append((bytes(key), bytes(value)))
            if len(found) >= ROWS_PER_READ:
                break
    return found


def _prefix(kind: str) -> bytes:
    if kind not in ROW_KINDS:
        raise InvalidRequestError(
            f"no row is of this kind, only {', '.join(sorted(ROW_KINDS))}", kind[:80]
        )
    return kind.encode() + b"\x00"


def _damage(place: bytes, error: CorruptRecordError) -> Damage:
    """Return what is told of a damaged row: a register is one object's."""
    kind, _, key = place.partition(b"\x00")
    is_of_object = kind == b"register" and len(key) == OBJECT_ID_BYTES
    object_id = ObjectId(key) if is_of_object else None
    return Damage(error.where, object_id, error.reason)


def _name(place: bytes) -> str:
    """Return what a row is called in a text: its key as it is read best."""
    kind, _, key = place.partition(b"\x00")
    text = key.hex()
    if kind in {b"name", b"cluster"}:
        text = repr(key.decode(errors="replace"))
    return f"row {kind.decode(errors='replace')} {text}"
