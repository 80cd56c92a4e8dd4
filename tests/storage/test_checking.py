"""A check of all that is kept runs beside the peer, at the pace of whoever walks on."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from activestore.errors import CorruptRecordError
from activestore.storage import blobs, checking
from activestore.storage.blobs import address_of
from activestore.storage.engine import ClassRecord, Damage, Engine
from activestore.storage.lmdb_engine import LmdbEngine
from tests.storage.changes import (
    REVISION,
    changed,
    content_of,
    delta,
    new,
    oid,
    place,
    reply,
    rows_only,
    state,
)
from tests.storage.test_rows import damage

MIB = 1 << 20
LARGE = os.urandom(9 * MIB)
Open = Callable[..., LmdbEngine]


def spoil(engine: Any, content: bytes, at: int) -> None:
    """Flip a bit of a file, as a worn-out flash cell does."""
    address = address_of(content)
    spoilt = bytearray(content)
    spoilt[at] ^= 1
    if hasattr(engine._files, "path_of"):
        engine._files.path_of(address).write_bytes(spoilt)
    else:
        engine._disk.files[address] = (bytes(spoilt), 0.0)


def damages(engine: Engine) -> list[Damage]:
    return [found for found in engine.verify() if isinstance(found, Damage)]


def test_every_record_and_file_is_looked_at(engine: Engine) -> None:
    before = sum(n for n in engine.verify() if isinstance(n, int))
    engine.commit([
        new(1, state(value=b"1" * 500, buffers=[LARGE, os.urandom(700_000)]), alias="a"),
        new(2, state(buffers=[LARGE]), reply=reply(1, b"x" * 3000)),
        rows_only(place(3, b"y" * 200)),
    ])  # fmt: skip
    engine.put_code(
        b"p" * 16, b"z" * 5000, [ClassRecord("m.C", REVISION, b"p" * 16, b"i", 1.0)]
    )

    checked = sum(n for n in engine.verify() if isinstance(n, int)) - before

    # The file once, though two name it.
    content = len(LARGE) + 700_000 + 500 + 3000 + 200 + 5000
    assert content <= checked <= content + 4000


def test_file_is_read_in_pieces_and_no_transaction_waits_for_it(
    open_engine: Open,
) -> None:
    engine = open_engine()
    engine.commit([new(1, state(buffers=[LARGE]))])

    pieces = []
    for found in engine.verify():
        pieces.append(found)
        assert engine._gate._inside_count == 0

    assert pieces.count(blobs.PIECE_BYTES) == 2
    assert pieces.count(MIB) == 1


def test_all_pages_are_walked(engine: Engine, monkeypatch: Any) -> None:
    engine.commit([new(n, state(value=b"x" * 100), reply=reply(n)) for n in range(20)])
    whole = sorted(map(str, engine.verify()))

    for name, value in (("RECORDS_PER_READ", 3), ("BYTES_PER_READ", 150)):
        monkeypatch.setattr(checking, name, value)
        assert sorted(map(str, engine.verify())) == whole


def test_file_that_goes_in_the_middle_is_no_damage(engine: Engine) -> None:
    """The peer works on: its object has another state by then."""
    engine.commit(
        [new(1, state(buffers=[LARGE])), new(2, state(buffers=[LARGE[MIB:]]))]
    )
    walk: Any = engine.verify()
    found = [next(walk)]

    engine.commit([
        changed(n, 2, delta(graph=b"g", buffers=[b"small"])) for n in (1, 2)
    ])  # fmt: skip
    engine.collect_garbage(-1.0)

    found += list(walk)
    assert not [one for one in found if isinstance(one, Damage)]


def test_what_came_in_the_middle_is_no_damage(engine: Engine) -> None:
    engine.commit([new(1, alias="a1"), new(2, alias="a2")])
    walk: Any = engine.verify()
    found = [next(walk)]

    engine.commit([new(3, state(buffers=[LARGE]), alias="a3")])

    assert not [one for one in [*found, *walk] if isinstance(one, Damage)]


def test_damaged_file_is_named_until_it_is_written_anew(
    reopen: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = reopen()
    content = state(buffers=[LARGE, b"small"])
    engine.commit([new(1, content), new(2)])
    spoil(engine, LARGE, 5 * MIB)

    (told,) = damages(engine)
    assert told.object_id == oid(1)
    assert told.where == f"blob {address_of(LARGE).hex()}"
    assert engine.verify_object(oid(1)) == [told]
    assert engine.verify_object(oid(2)) == engine.verify_object(oid(9)) == []

    whole = changed(1, 2, None)  # type: ignore[arg-type]  # a state in its place
    engine.commit([_with_state(whole, content)])
    assert engine.verify_object(oid(1)) == []
    assert content_of(engine, 1)[2][0] == LARGE


def _with_state(change: Any, content: Any) -> Any:
    return type(change)(change.object_id, change.version, content)


def test_damaged_file_is_damage_of_each_object_that_names_it(engine: Engine) -> None:
    engine.commit([new(n, state(buffers=[LARGE])) for n in (1, 2)])
    spoil(engine, LARGE, 0)

    assert [told.object_id for told in damages(engine)] == [oid(1), oid(2)]

    for number in (1, 2):  # The check at the end of the test finds nothing.
        engine.commit([_with_state(changed(number, 2, None), state(value=b"1"))])  # type: ignore[arg-type]


def test_each_kind_of_damage_of_one_object_is_found(
    reopen: Callable[..., Engine],
) -> None:
    engine = reopen()
    engine.commit([
        new(1, state(buffers=[os.urandom(300_000)]), reply=reply(1)), new(2),
    ])  # fmt: skip

    for table in ("parts", "replies"):
        one = _keys(engine, table)[0]
        damage(engine, table, one)
        assert [d.object_id for d in engine.verify_object(oid(1))] == [oid(1)]
        damage(engine, table, one)  # The same bit again: it is whole.
    assert engine.verify_object(oid(1)) == []


def _keys(engine: Any, table: str) -> list[bytes]:
    with engine._reading() as transaction:
        cursor = transaction.cursor(db=engine._tables[table])
        return [bytes(key) for key, _ in cursor]


def test_file_that_the_disk_cannot_give_back_is_damage_and_no_end(
    open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map of it would end the process."""
    engine = open_engine()
    engine.commit([new(1, state(buffers=[LARGE]))])

    def fail(_fd: int, _size: int, start: int) -> bytes:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(blobs.os, "pread", fail)

    (told,) = damages(engine)
    assert "cannot be read at 0" in told.reason
    with pytest.raises(CorruptRecordError, match="cannot be read"):
        engine.load(oid(1))
