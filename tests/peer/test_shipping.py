"""Changes in transit: a replica gets all that it must do, and nothing malformed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activestore.errors import RemoteProtocolError
from activestore.ids import ObjectId, SessionId
from activestore.peer import transit
from activestore.peer.shipping import pack_change, unpack_change
from activestore.storage.engine import Change, Durability, ReplyRecord, Row
from activestore.wire import packing
from activestore.wire.messages import PartedBuffer
from activestore.wire.state import ObjectState, StateDelta

OBJECT = ObjectId(b"home66\x00" + b"o" * 9)
SESSION = SessionId(b"s" * 16)
REPLY = ReplyRecord(SESSION, 9, "method", b"\x90", 1.5, (b"beside",), 4, (5, 7))
STATE = ObjectState("m.C", b"r" * 16, 3, {"n": b"\x01"}, b"graph", ("g",), [b"b" * 9])
DELTA = StateDelta(
    "m.C", b"r" * 16, 3, {"n": b"\x02"}, ("gone",), b"graph", ("g",), [0, b"new", 2]
)


def shipped(change: Change) -> Change:
    return unpack_change(OBJECT, *pack_change(change))


def as_copy(change: Change, **fields: Any) -> Change:
    names = {
        "version", "state", "delta", "is_delete", "alias", "durability", "reply",
        "drop_replies", "epoch", "replies", "forgets_replies", "is_rename", "created_s",
    }  # fmt: skip
    kept = {name: getattr(change, name) for name in names}
    return Change(OBJECT, is_copy=True, **{**kept, **fields})


@pytest.mark.parametrize(
    "change",
    [
        Change(OBJECT, 8, STATE, alias="hits", created_s=12.5, epoch=4),
        Change(OBJECT, 8, delta=DELTA, reply=REPLY, drop_replies=((SESSION, 3),)),
        Change(OBJECT, 9, is_delete=True, reply=REPLY),
        Change(OBJECT, 8, is_rename=True, alias="other"),
        Change(OBJECT, durability=Durability.INTERVAL, reply=REPLY),
        Change(OBJECT, 8, STATE, replies=(REPLY, REPLY), forgets_replies=True),
    ],
)
def test_all_that_a_replica_must_do_arrives(change: Change) -> None:
    assert shipped(change) == as_copy(change)


def test_what_is_about_this_peer_alone_is_not_shipped() -> None:
    change = Change(
        OBJECT, 1, STATE, is_new=True, group=7, rows=(Row("place", OBJECT, b"x"),)
    )

    found = shipped(change)

    assert found == as_copy(change)
    assert not found.is_new
    assert not found.rows
    assert found.group == 0


def test_large_body_travels_beside_the_entries() -> None:
    """An entry of one object must not fill the frame of all others."""
    state = STATE._replace(graph=bytes(5_000_000))

    body, buffers = pack_change(Change(OBJECT, 1, state))
    parted = PartedBuffer([buffers[0][:4096], buffers[0][4096:]], len(buffers[0]))  # type: ignore[arg-type,index]

    assert len(body) < 100
    assert unpack_change(OBJECT, body, [parted, *buffers[1:]]).state == state


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (0, 9), (0, None), (1, b"\xc1"), (1, None), (1, packing.pack([1] * 8)),
        (2, -1), (2, 2**64 - 1 + 0.5), (3, 7), (3, "no\nline"), (5, 9), (6, [1, 2]),
        (6, [b"short", 1, "", b"", 1.0, [], 0, []]), (7, [[b"short", 1]]),
        (8, [[SESSION, 1, "", b"", 1.0, ["text"], 0, []]]), (10, "now"),
        (11, 2**63), (11, "x"),
    ],
)  # fmt: skip
def test_malformed_field_is_refused_and_named(field: int, value: Any) -> None:
    body, buffers = pack_change(Change(OBJECT, 8, delta=DELTA, reply=REPLY))
    row = packing.unpack(body)
    row[field] = value

    with pytest.raises(RemoteProtocolError, match=OBJECT.hex()):
        unpack_change(OBJECT, packing.pack(row), buffers)


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x01", b"\x90", b"\xc0", b"\x80"])
def test_body_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="malformed"):
        unpack_change(OBJECT, body, [])


def test_buffers_that_belong_to_nothing_are_refused() -> None:
    for change in (
        Change(OBJECT, 8, delta=DELTA),
        Change(OBJECT, 8, STATE),
        Change(OBJECT, 8, is_delete=True),
    ):
        body, buffers = pack_change(change)
        with pytest.raises(RemoteProtocolError, match="buffers"):
            unpack_change(OBJECT, body, [*buffers, b"more"])


@given(st.data())
def test_no_bytes_make_anything_but_a_change_or_a_refusal(data: st.DataObject) -> None:
    body, buffers = pack_change(Change(OBJECT, 8, delta=DELTA, reply=REPLY))
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        changed[at] = data.draw(st.integers(0, 255))

    try:
        found = unpack_change(OBJECT, bytes(changed), buffers)
    except RemoteProtocolError:
        return
    assert isinstance(found, Change)
    assert found.is_copy


def test_body_with_too_many_elements_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A map of a byte costs 72 bytes in memory."""
    monkeypatch.setattr(
        transit.packing, "unpack", lambda *_, **__: pytest.fail("was decoded")
    )

    with pytest.raises(RemoteProtocolError, match="elements"):
        unpack_change(OBJECT, b"\xc0", [b"\xdd\x00\x10\x00\x00" + b"\x80" * (1 << 20)])
