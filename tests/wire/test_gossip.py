"""Gossip as bytes: what goes in comes out, and whatever the bytes, nothing else breaks."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from activestore.errors import RemoteProtocolError, TooLargeError
from activestore.wire.gossip import (
    EMPTY,
    GOSSIP_BODY_BYTES_MAX,
    GOSSIP_BYTES_MAX,
    INCARNATION_MAX,
    OTHERS_MAX,
    RECORD_BYTES_MAX,
    ClassHint,
    GossipBody,
    Hint,
    PeerRecord,
    PeerState,
    Update,
    decode_body,
    decode_records,
    encode_body,
    encode_hint,
    encode_records,
    encode_update,
)

A, B, OBJECT = b"a" * 6, b"b" * 6, b"o" * 16
RECORD = PeerRecord(
    A, 7, "edge-1", ("tcp://10.0.0.1:7070", "tcp://[::1]:7070"), "plant", "edge", 1,
    {"cores": 4, "installed": ["torch==2.13", "numpy"], "load": 0.25, "stable": False},
)  # fmt: skip
FIELDS = [list(f) if isinstance(f, tuple) else f for f in RECORD[2:]]
VALID = encode_body(
    [
        encode_update(Update(A, 7, PeerState.ALIVE, RECORD)),
        encode_update(Update(B, 9, PeerState.SUSPECT, None, A)),
    ],
    [encode_hint(Hint(OBJECT, B, 3))],
    [B],
)


def packed(updates: object = (), hints: object = (), wants: object = ()) -> bytes:
    data: bytes = msgpack.packb([updates, hints, wants])
    return data


def test_body_comes_back_as_it_was() -> None:
    body = decode_body(VALID)

    assert body.updates == [
        Update(A, 7, PeerState.ALIVE, RECORD),
        Update(B, 9, PeerState.SUSPECT, None, A),
    ]
    assert body.hints == [Hint(OBJECT, B, 3)]
    assert body.wants == [B]


def test_body_has_the_bytes_that_the_schema_says() -> None:
    """Another language reads this too; a change of these bytes is a new protocol."""
    body = encode_body(
        [encode_update(Update(b"\1" * 6, 5, PeerState.DEAD, None, b"\2" * 6))],
        [encode_hint(Hint(b"\3" * 16, b"\1" * 6, 2))],
    )

    assert body.hex() == (
        "9291" "95c406" + "01" * 6 + "0502c0c406" + "02" * 6
        + "9193c410" + "03" * 16 + "c406" + "01" * 6 + "02"
    )  # fmt: skip


def test_nothing_to_tell_is_no_byte() -> None:
    assert encode_body([]) == b""
    assert decode_body(b"") == EMPTY
    assert decode_body(msgpack.packb([])).updates == []


def test_records_come_back() -> None:
    updates = [Update(A, 7, PeerState.LEFT, RECORD)]

    assert decode_records(encode_records(updates)) == updates


def test_elements_of_a_newer_version_are_ignored() -> None:
    row = [A, 7, 0, [*FIELDS, "new"], None, "new"]
    data = msgpack.packb([[row], [[OBJECT, B, 3, [], 0, "new"]], [B], [], ["new"], 5])

    body = decode_body(data)

    assert body.updates == [Update(A, 7, PeerState.ALIVE, RECORD)]
    assert body.hints == [Hint(OBJECT, B, 3)]


def test_hint_of_an_object_with_replicas_names_its_members() -> None:
    hint = Hint(OBJECT, B, 3, (A, b"c" * 6), 2)

    assert decode_body(encode_body([], [encode_hint(hint)])).hints == [hint]


def test_hint_of_an_object_without_replicas_is_as_short_as_ever() -> None:
    assert msgpack.unpackb(encode_hint(Hint(OBJECT, B, 3))) == [OBJECT, B, 3]


def test_largest_hint_fits_with_others_into_one_gossip() -> None:
    others = tuple(bytes([n]) * 6 for n in range(OTHERS_MAX))
    row = encode_hint(Hint(OBJECT, B, 2**40, others, 2**20))

    assert 10 * len(row) < GOSSIP_BYTES_MAX


def test_state_of_a_newer_version_is_skipped_alone() -> None:
    body = decode_body(packed([[A, 7, 9], [B, 1, 2]]))

    assert body.updates == [Update(B, 1, PeerState.DEAD)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (0, "n" * 257), (0, 5), (1, "tcp://a:1"), (1, ["tcp://a:1"] * 9), (1, [5]),
        (1, ["e" * 257]), (2, "z" * 65), (3, "p" * 17), (4, -1), (4, True), (5, []),
        (5, {"a": {"b": {"c": {"d": {}}}}}), (5, {"a": [0] * 300}), (5, {b"a": 1}),
        (5, {"a": {b"b": 1}}), (5, {"a": "x" * 2000}), (5, {"a": msgpack.Timestamp(1)}),
    ],
)  # fmt: skip
def test_record_that_breaks_a_bound_is_refused(field: int, value: object) -> None:
    fields = [*FIELDS]
    fields[field] = value

    with pytest.raises(RemoteProtocolError):
        decode_body(packed([[A, 7, 0, fields, None]]))


@pytest.mark.parametrize(
    "data",
    [
        packed([[A, 7]]), packed([A]), packed([[b"short", 7, 0]]), packed([["a", 7, 0]]),
        packed([[A, -1, 0]]), packed([[A, INCARNATION_MAX + 1, 0]]),
        packed([[A, 1.5, 0]]), packed([[A, 1, -1]]), packed([[A, 1, 1, None, b"x"]]),
        packed([[A, 1, 0, []]]), packed([[A, 1, 0, "record"]]), packed((), [[OBJECT, B]]),
        packed((), [[B, B, 1]]), packed((), [[OBJECT, B, -1]]),
        packed((), [[OBJECT, B, 1, [A] * 8]]), packed((), [[OBJECT, B, 1, [b"short"]]]),
        packed((), [[OBJECT, B, 1, 5]]), packed((), [[OBJECT, B, 1, [A], -1]]),
        packed((), (), [OBJECT]),
        packed(5), packed((), None), msgpack.packb({}), b"\xc1", VALID[:-1], VALID + b"\0",
        b"\x90" * (GOSSIP_BODY_BYTES_MAX + 1), b"\x91" * 2000,
    ],
)  # fmt: skip
def test_malformed_body_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_body(data)


def test_record_too_large_for_gossip_is_refused_where_it_is_made() -> None:
    record = RECORD._replace(meta={"installed": ["package"] * 150})

    with pytest.raises(TooLargeError):
        encode_update(Update(A, 7, PeerState.ALIVE, record))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**63) | st.floats(allow_nan=False)
    | st.text(max_size=9) | st.binary(max_size=17),
    lambda inner: st.lists(inner, max_size=7)
    | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=12,
)  # fmt: skip
ID = st.sampled_from([A, B]) | JSON
FIELD_LIST = st.tuples(
    st.text(max_size=5), st.lists(st.text(max_size=5), max_size=2), st.text(max_size=3),
    st.just("lan"), st.integers(0, 3), st.dictionaries(st.text(max_size=3), JSON),
)  # fmt: skip
ROW = st.tuples(ID, st.integers(0, 9) | JSON, st.integers(0, 4) | JSON,
                st.none() | FIELD_LIST | JSON, ID)  # fmt: skip
BODY = st.tuples(st.lists(ROW | JSON, max_size=3), JSON, JSON) | JSON


def decode(data: bytes) -> None:
    """Decode what may be anything; what it tells must be told on as well."""
    try:
        body = decode_body(data)
    except RemoteProtocolError:
        return
    for update in body.updates:
        row = encode_update(update)
        assert len(row) <= RECORD_BYTES_MAX
        assert decode_body(encode_body([row])).updates == [update]


@given(st.binary(max_size=60))
def test_random_bytes(data: bytes) -> None:
    decode(data)


@given(BODY)
def test_random_values(body: object) -> None:
    decode(msgpack.packb(body))


@given(st.integers(0, len(VALID) - 1), st.integers(0, 255), st.integers(0, len(VALID)))
def test_valid_body_with_a_changed_byte(place: int, byte: int, end: int) -> None:
    decode((VALID[:place] + bytes([byte]) + VALID[place + 1 :])[: max(end, place)])


def test_what_is_told_of_classes_comes_back_behind_the_wants() -> None:
    hints = [
        ClassHint("model.Counter", bytes(16), 1.5, B),
        ClassHint("é", A + bytes(10), 0.0, A),
    ]
    rows = [encode_hint(hint) for hint in hints]

    body = decode_body(encode_body([], [], [A], rows))

    assert body == GossipBody([], hints, [A])
    assert decode_body(encode_body([], (), (), rows)).hints == hints


@pytest.mark.parametrize(
    "row",
    [
        [], ["c", bytes(16), 1.0], ["c", bytes(15), 1.0, B], ["c", bytes(16), 1, B],
        ["c", bytes(16), -1.0, B], ["c", bytes(16), float("nan"), B],
        ["c" * 201, bytes(16), 1.0, B], [b"c", bytes(16), 1.0, B], "row",
    ],
)  # fmt: skip
def test_malformed_class_is_refused(row: object) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_body(msgpack.packb([[], [], [], [row]]))


def test_newer_of_two_classes_is_the_same_for_everybody() -> None:
    old, new = ClassHint("c", bytes(16), 1.0, A), ClassHint("c", bytes(16), 2.0, A)
    other = ClassHint("c", b"\x01" * 16, 1.0, B)

    assert new.is_newer(old)
    assert not old.is_newer(new)
    assert other.is_newer(old)
    assert not old.is_newer(other)
    assert not old.is_newer(old)
    assert old.is_newer(None)
