"""Large buffers told by what they differ in: little is shipped, and nothing wrong comes out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activestore.core.register import Register
from activestore.errors import CorruptRecordError, RemoteProtocolError
from activestore.ids import PeerId
from activestore.peer.shipping import (
    Content,
    contents_from,
    contents_of,
    outgoing,
    pack_change,
    read_whole,
    register_row,
    unpack_change,
)
from activestore.storage import patches
from activestore.storage.blobs import address_of
from activestore.storage.engine import Change, Engine, Patch
from activestore.wire import packing
from activestore.wire.messages import whole
from activestore.wire.replicas import Ballot, Config, Point
from activestore.wire.state import FileBuffer, buffer_bytes_count
from tests.storage.changes import (
    apply_copy,
    changed,
    content_of,
    delta,
    new,
    oid,
    state,
)

MIB = 1 << 20
CHUNK = patches.CHUNK_BYTES
LEADER = PeerId(b"leader")
CONFIG = Config(1, (LEADER, PeerId(b"other6")))
OLD = os.urandom(6 * MIB)


def at(number: int) -> Register:
    ballot = Ballot(1, LEADER)
    return Register(ballot, ballot, number, CONFIG)


def poked(content: bytes, *offsets: int) -> bytes:
    """Return a content with another byte at some offsets."""
    copy = bytearray(content)
    for offset in offsets:
        copy[offset] ^= 0xFF
    return bytes(copy)


def shipped_bytes(shipment: Any) -> int:
    return len(shipment.body) + sum(map(buffer_bytes_count, shipment.buffers))


def led(engine: Engine, change: Change, number: int) -> Any:
    """Commit a change as its leader does; return what is sent of it."""
    rows = (register_row(change.object_id, at(number)),)
    change, shipment = outgoing(dataclasses.replace(change, rows=rows))
    assert engine.commit([change]) == [None]
    return shipment


def taken(engine: Engine, shipment: Any, number: int, *, base: bool = True) -> str:
    """Apply what was sent, as a replica does."""
    change = unpack_change(oid(1), shipment.body, shipment.buffers)
    point = Point(1, number - 1) if base else None
    return apply_copy(engine, oid(1), at(number), point, change, False)


@pytest.fixture
def leader(engine: Engine) -> Engine:
    return engine


@pytest.fixture
def replica(reopen_other: Callable[..., Engine]) -> Engine:
    return reopen_other()


@pytest.fixture
def pair(leader: Engine, replica: Engine) -> tuple[Engine, Engine]:
    """Two engines with an object of three buffers, two of them files."""
    first = new(1, state(graph=b"g", buffers=[OLD, b"small", OLD[: 2 * MIB]]))
    assert taken(replica, led(leader, first, 1), 1, base=False) == ""
    return leader, replica


# -- a buffer that was changed in place ------------------------------------------------


def test_change_in_place_ships_its_chunks(pair: tuple[Engine, Engine]) -> None:
    leader, replica = pair
    now = poked(OLD, 5, 3 * MIB, 3 * MIB + 1, 6 * MIB - 1)

    step = changed(1, 2, delta(graph=b"h", buffers=[now, 1, 2]))
    shipment = led(leader, step, 2)

    assert shipped_bytes(shipment) < 3 * CHUNK + 1000
    assert taken(replica, shipment, 2) == ""
    assert content_of(replica, 1) == content_of(leader, 1)
    assert content_of(replica, 1)[2] == [now, b"small", OLD[: 2 * MIB]]


def test_changes_that_are_committed_together_follow_on_each_other(
    pair: tuple[Engine, Engine],
) -> None:
    leader, replica = pair
    one, two = poked(OLD, 5), poked(OLD, 5, MIB)
    prepared = [
        outgoing(changed(1, 2, delta(graph=b"h", buffers=[one, 1, 2]))),
        outgoing(changed(1, 3, delta(graph=b"i", buffers=[1, two, 2]))),
    ]

    assert leader.commit([change for change, _ in prepared]) == [None, None]

    for number, (_, shipment) in enumerate(prepared, 2):
        assert shipped_bytes(shipment) < CHUNK + 1000
        assert taken(replica, shipment, number) == ""
    assert content_of(replica, 1) == content_of(leader, 1)


def test_buffer_that_grew_ships_what_was_added(pair: tuple[Engine, Engine]) -> None:
    leader, replica = pair
    grown = OLD + os.urandom(MIB + 7)

    step = changed(1, 2, delta(graph=b"h", buffers=[grown, 2]))
    shipment = led(leader, step, 2)

    assert shipped_bytes(shipment) < 2 * MIB
    assert taken(replica, shipment, 2) == ""
    assert content_of(replica, 1)[2] == [grown, OLD[: 2 * MIB]]


def test_buffer_that_is_new_all_over_goes_whole(pair: tuple[Engine, Engine]) -> None:
    leader, replica = pair
    now = os.urandom(6 * MIB)

    shipment = led(leader, changed(1, 2, delta(graph=b"h", buffers=[now])), 2)

    assert shipped_bytes(shipment) > 6 * MIB
    assert taken(replica, shipment, 2) == ""
    assert content_of(replica, 1)[2] == [now]


def test_file_that_the_leader_has_no_more_is_not_compared_with(
    pair: tuple[Engine, Engine],
) -> None:
    leader, replica = pair
    engine: Any = leader
    engine._files.remove(address_of(OLD))
    now = poked(OLD, 5)

    shipment = led(leader, changed(1, 2, delta(graph=b"h", buffers=[now, 2])), 2)

    assert shipped_bytes(shipment) > 6 * MIB
    assert taken(replica, shipment, 2) == ""


# -- what goes wrong at a replica ------------------------------------------------------


def patched(pair: tuple[Engine, Engine]) -> Change:
    """Return a step with one patch, as a replica unpacks it."""
    step = changed(1, 2, delta(graph=b"h", buffers=[poked(OLD, 5), 2]))
    shipment = led(pair[0], step, 2)
    return unpack_change(oid(1), shipment.body, shipment.buffers)


def files_count(engine: Any) -> int:
    return sum(1 for _ in engine._files.unnamed_before(float("inf")))


def spoil(engine: Any, content: bytes) -> None:
    """Have the file of OLD be another content, behind the engine's back."""
    if hasattr(engine._files, "path_of"):
        engine._files.path_of(address_of(OLD)).write_bytes(content)
    else:
        engine._disk.files[address_of(OLD)] = (content, 0.0)


def apply(engine: Engine, change: Change) -> str:
    return apply_copy(engine, oid(1), at(2), Point(1, 1), change, False)


def test_patch_of_a_file_that_is_not_here_asks_for_the_whole(
    pair: tuple[Engine, Engine],
) -> None:
    change = patched(pair)
    (patch,) = change.patches
    wrong = patch._replace(base=address_of(b"of nothing here"))

    assert apply(pair[1], dataclasses.replace(change, patches=[wrong])) == "base"

    assert content_of(pair[1], 1)[2][0] == OLD
    assert apply(pair[1], change) == ""


def test_patch_that_makes_another_content_is_refused_and_leaves_no_file(
    pair: tuple[Engine, Engine],
) -> None:
    change = patched(pair)
    before = files_count(pair[1])
    (patch,) = change.patches
    wrong = patch._replace(content=poked(bytes(patch.content), 7))

    assert apply(pair[1], dataclasses.replace(change, patches=[wrong])) == "base"

    assert files_count(pair[1]) == before
    assert content_of(pair[1], 1)[2][0] == OLD


def test_patch_counts_what_it_makes(
    pair: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    change = patched(pair)
    room = pair[1]._room  # type: ignore[attr-defined]
    monkeypatch.setattr(room, "budget_bytes", room.used_bytes + 3 * MIB)

    assert apply(pair[1], change) == "space"


def test_refused_change_with_a_patch_without_spans_keeps_the_file(
    pair: tuple[Engine, Engine],
) -> None:
    """It is the file of a state that is kept."""
    replica = pair[1]
    same = Patch(0, address_of(OLD), len(OLD), address_of(OLD), len(OLD), (), b"")
    content = state(graph=b"g", buffers=[FileBuffer(-1, 0, len(OLD))])
    change = Change(oid(1), 5, content, is_new=True, patches=(same,))

    (refused,) = replica.commit([change])

    assert refused is not None
    assert content_of(replica, 1)[2][0] == OLD


# -- a replica that fell behind --------------------------------------------------------


def test_whole_of_what_the_replica_has_in_part_ships_the_rest(
    pair: tuple[Engine, Engine],
) -> None:
    leader, replica = pair
    now = poked(OLD, MIB)
    for number in range(2, 6):
        step = delta(graph=b"h", buffers=[poked(OLD, MIB, number), 1, 2])
        led(leader, changed(1, number, step), number)
    led(leader, changed(1, 6, delta(graph=b"h", buffers=[now, 1, 2])), 6)

    told = packing.unpack(packing.pack(contents_of(replica, oid(1))))
    found = read_whole(leader, oid(1), contents_from(told))
    assert found is not None
    body, buffers = pack_change(found[1])

    assert len(body) + sum(map(buffer_bytes_count, buffers)) < CHUNK + 1000
    change = unpack_change(oid(1), body, buffers)
    assert apply_copy(replica, oid(1), found[0], None, change, False) == ""
    assert content_of(replica, 1) == content_of(leader, 1)
    assert content_of(replica, 1)[2][0] == now


def test_file_that_was_damaged_since_is_written_anew(
    pair: tuple[Engine, Engine],
) -> None:
    """Its name is the right one; its chunks tell that it is not."""
    leader, replica = pair
    spoil(replica, poked(OLD, 3 * MIB))

    told = contents_of(replica, oid(1))
    found = read_whole(leader, oid(1), told)
    assert found is not None
    change = unpack_change(oid(1), *pack_change(found[1]))
    assert [len(patch.spans) for patch in change.patches] == [1, 0]

    assert apply_copy(replica, oid(1), at(1), None, change, False) == ""
    assert content_of(replica, 1)[2][0] == OLD


def test_patch_without_spans_makes_what_a_damaged_base_is_by_chance(
    pair: tuple[Engine, Engine],
) -> None:
    """Else the same patch is refused, and sent again, for ever."""
    replica = pair[1]
    now = poked(OLD, 3 * MIB)
    spoil(replica, now)
    patch = Patch(0, address_of(OLD), len(OLD), address_of(now), len(now), (), b"")
    content = state(graph=b"g", buffers=[FileBuffer(-1, 0, len(now))])

    assert apply(replica, Change(oid(1), 2, content, patches=(patch,))) == ""

    assert content_of(replica, 1)[2] == [now]
    assert replica.snapshot(oid(1), "register").addresses == [address_of(now)]
    assert replica.verify_object(oid(1)) == []


def test_file_that_was_damaged_since_it_was_read_is_not_sent(
    pair: tuple[Engine, Engine],
) -> None:
    """Its receiver would name it by what came: nobody could find the damage any more."""
    leader = pair[0]
    assert read_whole(leader, oid(1)) is not None
    spoil(leader, poked(OLD, 3 * MIB))

    with pytest.raises(CorruptRecordError, match="its content is not"):
        read_whole(leader, oid(1))

    spoil(leader, OLD)
    assert read_whole(leader, oid(1)) is not None


def sent_whole(leader: Engine) -> tuple[bytes, list[Any]]:
    """Return the whole of the object of `pair`, as it travels; nothing of it is a file."""
    found = read_whole(leader, oid(1))
    assert found is not None
    body, buffers = pack_change(found[1])
    return body, list(buffers)


def test_whole_that_was_damaged_on_its_way_is_refused_and_leaves_no_file(
    pair: tuple[Engine, Engine],
) -> None:
    leader, replica = pair
    body, buffers = sent_whole(leader)
    buffers[0] = poked(bytes(buffers[0]), 3 * MIB)
    change = unpack_change(oid(1), body, buffers)
    before = files_count(replica)

    assert apply_copy(replica, oid(1), at(2), None, change, False) == "base"

    assert files_count(replica) == before
    assert content_of(replica, 1)[2][0] == OLD


def test_whole_of_a_peer_that_tells_no_addresses_is_taken(
    pair: tuple[Engine, Engine],
) -> None:
    """As of one with an earlier version; fields that are not known are ignored as well."""
    leader, replica = pair
    body, buffers = sent_whole(leader)
    row = packing.unpack(body)
    assert row[13] == [address_of(OLD), b"", address_of(OLD[: 2 * MIB])]

    change = unpack_change(oid(1), packing.pack(row[:13]), buffers)
    later = unpack_change(oid(1), packing.pack([*row, "unknown"]), buffers)

    assert later.addresses == tuple(row[13])
    assert change.addresses == ()
    assert apply_copy(replica, oid(1), at(2), None, change, False) == ""
    assert content_of(replica, 1) == content_of(leader, 1)


@pytest.mark.parametrize(
    "told", [7, [b""], [b"", b"", b"short"], [b"", b"", "text"], [b""] * 4]
)
def test_addresses_that_are_none_are_refused(
    pair: tuple[Engine, Engine], told: Any
) -> None:
    body, buffers = sent_whole(pair[0])
    row = packing.unpack(body)

    with pytest.raises(RemoteProtocolError, match=r"address"):
        unpack_change(oid(1), packing.pack([*row[:13], told]), buffers)


def test_what_the_replica_does_not_have_goes_whole(
    pair: tuple[Engine, Engine],
) -> None:
    leader, _ = pair
    other = Content(7, 9 * MIB, address_of(b"other"), bytes(36 * 8))

    found = read_whole(leader, oid(1), [other])

    assert found is not None
    assert found[1].patches == ()
    assert contents_of(leader, oid(9)) == []


@pytest.mark.parametrize(
    "rows", [7, [7], [[1, 2]], [[-1, 2, b"", b""]], [["a", 1, b"", b""]]]
)
def test_contents_that_are_none_are_refused(rows: Any) -> None:
    with pytest.raises(RemoteProtocolError, match="contents"):
        contents_from(rows)


# -- as bytes --------------------------------------------------------------------------

BASE, MADE = bytes(32), bytes(range(32))
PATCH = Patch(1, BASE, 3 * MIB, MADE, 2 * MIB, ((0, 4), (MIB, 5)), b"123456789")


def packed(patch: Patch) -> Change:
    step = delta(graph=b"h", buffers=[0, FileBuffer(-1, 0, 2 * MIB), b"x"])
    change = dataclasses.replace(changed(1, 2, step), patches=(patch,))
    return unpack_change(oid(1), *pack_change(change))


def test_patch_arrives_with_a_place_of_its_size() -> None:
    found = packed(PATCH)

    assert found.patches == (PATCH,)
    assert found.delta is not None
    assert found.delta.buffers == [0, FileBuffer(-1, 0, 2 * MIB), b"x"]


@pytest.mark.parametrize(
    "fields",
    [
        {"base": b"short"}, {"address": "text"}, {"base_bytes": -1}, {"nbytes": 2.5},
        {"nbytes": MIB}, {"nbytes": 4 * MIB}, {"spans": ((0, 4),)},
        {"spans": ((0, 9), (4, 5))}, {"spans": ((5, 4), (0, 5))}, {"spans": ((0, -9),)},
        {"spans": ((2 * MIB - 1, 9),)}, {"spans": (("a", 9),)}, {"spans": ((0, 0), (0, 9))},
    ],
)  # fmt: skip
def test_malformed_patch_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError, match="malformed"):
        packed(PATCH._replace(**fields))


@pytest.mark.parametrize("places", [[4], [-1], [1, 1], [2, 1]])
def test_patches_out_of_order_are_refused(places: list[int]) -> None:
    step = delta(graph=b"h", buffers=[0, b"", b"x"])
    body, buffers = pack_change(changed(1, 2, step))
    row = packing.unpack(body)
    row[12] = [[place, *PATCH[1:-1]] for place in places]
    contents = [PATCH.content] * len(places)

    with pytest.raises(RemoteProtocolError, match="malformed"):
        unpack_change(oid(1), packing.pack(row), [*buffers, *contents])


# -- the arithmetic --------------------------------------------------------------------


@given(st.data())
def test_patch_makes_the_new_content_of_the_old(data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "CHUNK_BYTES", 4)
        patch.setattr(patches, "PIECE_BYTES", data.draw(st.sampled_from([4, 6, 16])))
        patch.setattr(patches, "WORTH_SHARE", 1.0)
        old = data.draw(st.binary(max_size=40))
        new_content = bytearray(old + data.draw(st.binary(max_size=12)))
        del new_content[data.draw(st.integers(0, len(new_content))) :]
        for index in data.draw(st.lists(st.integers(0, 60), max_size=4)):
            if index < len(new_content):
                new_content[index] ^= 1
        views = memoryview(old), memoryview(bytes(new_content))
        digests = patches.chunk_digests(views[0])

        for spans in (
            patches.spans_between(*views), patches.spans_unlike(digests, views[1])
        ):  # fmt: skip
            made = patches.patch_of(0, (len(old), b""), views[1], b"", spans)
            assert made is not None
            assert whole(patches.assembled(views[0], made)) == new_content
