"""Copies as a client asks for them, against a peer of the tests."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import activestore
from activestore import ActiveObject, activemethod, remote
from activestore.client.client import Store
from activestore.client.exporting import DIGEST_BYTES, MAGIC, unpacked
from activestore.client.groups import Group, Info, Member, group_of, info_of
from activestore.errors import (
    InvalidRequestError,
    RemoteProtocolError,
    UnavailableError,
)
from activestore.ids import ObjectId
from activestore.wire import values
from activestore.wire.limits import PROTOCOL_VERSION
from activestore.wire.messages import Call, Create, Persist, Request
from activestore.wire.state import NamedState, ObjectState, decode_states, encode_states
from tests.client.fake_peer import FakePeer
from tests.client.sessions import OBJECT, PEER

pytestmark = pytest.mark.net

ID = ObjectId(OBJECT)
REF = OBJECT.hex()
CLASS = "model.Counter"
INTERFACE = {
    "class_name": CLASS, "doc": "Counts.", "fields": {"value": "int"},
    "methods": {
        "add": {"readonly": False, "parameters": []},
        "peek": {"readonly": True, "parameters": []},
        "rows": {"readonly": True, "stream": True, "parameters": []},
    },
}  # fmt: skip
MEMBERS = [
    {"peer_id": PEER, "peer": "edge-1", "role": "primary", "state": "alive",
     "number": 9, "lag": 0},
    {"peer_id": b"peer-2", "peer": "edge-2", "role": "replica", "state": "dead",
     "number": None, "lag": None},
]  # fmt: skip
GROUP = {
    "members": MEMBERS, "epoch": 4, "number": 9, "version": 7, "wanted": 2,
    "wants_witness": False, "config_version": 3, "lineage": 0, "is_quarantined": False,
    "is_joint": False,
}  # fmt: skip
STATE = ObjectState(CLASS, b"r" * 16, 1, {"value": b"\x05"}, b"", (), ())
INFO = {"version": 7, "epoch": 4, "number": 9, "age_ms": 1500, "peer_id": PEER}


def parameters(request: Any) -> Any:
    """Return what a Request asks."""
    return values.decode(request.body, request.buffers)


@pytest.fixture
def peer() -> Iterator[FakePeer]:
    peer = FakePeer()
    peer.version = PROTOCOL_VERSION
    peer.message_bytes_max = (
        1 << 24
    )  # The class below travels with the package of tests.
    body, _ = encode_states([NamedState(OBJECT, "hits", STATE)])
    peer.answers = {
        "interface": {"interface": INTERFACE, "revision": b"r" * 16},
        "group": GROUP, "replicate": GROUP, "force": GROUP,
        "export": {"states": body, "buffers": [], "class_name": CLASS, "alias": "hits",
                   "epoch": 4, "number": 9, "is_quarantined": True},
    }  # fmt: skip
    yield peer
    peer.close()


@pytest.fixture
def store(peer: FakePeer) -> Iterator[Store]:
    with activestore.connect(peer.endpoint, timeout_s=10.0) as store:
        yield store


class Note(ActiveObject):
    """Made here, kept there."""

    text: str

    def __init__(self, text: str) -> None:
        self.text = text

    @activemethod(readonly=True)
    def read(self) -> str:
        return self.text

    @activemethod
    def write(self, text: str) -> None:
        self.text = text


# -- asking for copies when an object is made ------------------------------------------


def test_create_carries_how_many_copies_are_wanted(peer: FakePeer, store: Store):
    store.create(CLASS, 5, replicas=2, witness=True)
    store.create(CLASS, 5)

    asked, plain = peer.wait_for(Create, 2)
    assert asked.extra == {"replicas": 2, "witness": True}
    assert plain.extra is None


def test_stand_in_of_a_class_takes_the_same_arguments(peer: FakePeer, store: Store):
    store.cls(CLASS)(5, replicas=3)

    assert peer.wait_for(Create)[0].extra == {"replicas": 3}


def test_make_persistent_carries_how_many_copies_are_wanted(
    peer: FakePeer, store: Store
):
    name = f"{__name__}.Note"
    peer.answers["classes"] = []
    peer.answers["publish"] = {"classes": [[name, b"r" * 16]]}

    Note("a").make_persistent(replicas=3, store=store)
    store.persist([Note("b"), Note("c")], replicas=2, witness=False)

    one, many = peer.wait_for(Persist, 2)
    assert one.extra == {"replicas": 3}
    assert many.extra == {"replicas": 2, "witness": False}


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"replicas": 0}, "from 1 to 7"), ({"replicas": 9}, "from 1 to 7"),
     ({"replicas": 3, "witness": True}, "goes with replicas=2"),
     ({"witness": True}, "goes with replicas=2")],
)  # fmt: skip
def test_copies_that_cannot_be_are_refused_before_anything_is_sent(
    peer: FakePeer, store: Store, options: dict[str, Any], expected: str
):
    with pytest.raises(InvalidRequestError, match=expected):
        store.create(CLASS, 5, **options)
    with pytest.raises(InvalidRequestError, match=expected):
        store.persist(Note("a"), **options)

    assert not [m for m in peer.seen if type(m) in (Create, Persist)]


def test_peer_that_would_keep_one_copy_silently_is_not_asked_for_more(peer: FakePeer):
    """A peer of version 1 ignores keys of `extra` that it does not know."""
    peer.version = 1
    with activestore.connect(peer.endpoint, timeout_s=10.0) as store:
        with pytest.raises(RemoteProtocolError, match="replicas=3 needs version"):
            store.create(CLASS, 5, replicas=3)
        store.create(CLASS, 5, replicas=1)

    (made,) = peer.wait_for(Create)
    assert made.extra is None


# -- groups ----------------------------------------------------------------------------


def test_replicate_asks_and_returns_the_group(peer: FakePeer, store: Store):
    group = store.replicate(REF, 3, peers=("edge-1", "edge-2"), leaving=("edge-9",))

    (request,) = peer.wait_for(Request, operation="replicate")
    assert parameters(request) == {
        "object_id": OBJECT, "replicas": 3, "witness": None,
        "peers": ["edge-1", "edge-2"], "leaving": ["edge-9"],
    }  # fmt: skip
    assert (group.primary, group.copies, group.epoch) == ("edge-1", 2, 4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"replicas": 8}, "from 1 to 7"), ({"peers": "edge-1"}, "several names"),
     ({"peers": [1]}, "several names"), ({"leaving": [""]}, "several names"),
     ({"peers": ["a"], "leaving": ["a"]}, "in peers and in leaving")],
)  # fmt: skip
def test_replicate_says_what_is_wrong_before_it_asks(
    peer: FakePeer, store: Store, options: dict[str, Any], expected: str
):
    with pytest.raises(InvalidRequestError, match=expected):
        store.replicate(REF, **options)

    assert not [m for m in peer.seen if type(m) is Request]


def test_group_and_force_name_the_object(peer: FakePeer, store: Store):
    assert store.group(REF) == store.force(REF)

    (request,) = peer.wait_for(Request, operation="group")
    assert parameters(request) == {"object_id": OBJECT}
    (request,) = peer.wait_for(Request, operation="force")
    assert parameters(request) == {
        "object_id": OBJECT, "peer_id": PEER, "unless_majority": True,
    }  # fmt: skip


def test_force_though_a_majority_answers_is_said_so(peer: FakePeer, store: Store):
    store.force(REF, even_though_majority_answers=True)

    (request,) = peer.wait_for(Request, operation="force")
    assert parameters(request) == {"object_id": OBJECT, "peer_id": PEER}


def test_group_with_a_dead_member_is_not_whole(store: Store):
    group = store.group(REF)

    assert not group.is_whole
    living = [one._replace(state="alive") for one in group.members]
    whole = group._replace(members=tuple(living))
    assert whole.is_whole
    assert not whole._replace(wants_witness=True).is_whole
    witness = Member(b"peer-3", "edge-3", "witness", "alive")
    witnessed = whole._replace(members=(*living, witness), wants_witness=True)
    assert witnessed.is_whole
    assert witnessed.copies == 2


def test_group_with_a_copy_that_keeps_no_change_is_not_whole():
    """Its peer answers, and its disk is full."""
    told = [{**one, "state": "alive"} for one in MEMBERS]
    group = group_of({**GROUP, "members": told}, "group")
    full = group_of(
        {**GROUP, "members": [told[0], {**told[1], "reason": "its disk is full"}]},
        "group",
    )

    assert group.is_whole
    assert not full.is_whole
    assert full.members[1].reason == "its disk is full"


def test_group_as_a_quarantined_copy_knows_it_is_not_whole():
    told = [{**one, "state": "alive"} for one in MEMBERS]

    assert not group_of({**GROUP, "members": told, "is_quarantined": True}, "").is_whole


def test_group_without_a_leader_has_no_primary():
    followers = [{**one, "role": "replica"} for one in MEMBERS]

    assert group_of({"members": followers}, "group").primary == ""


def test_what_a_later_version_tells_of_a_group_is_left_out():
    told = {**GROUP, "mood": "good", "members": [{**MEMBERS[0], "age": 3}]}

    assert group_of(told, "group") == Group(
        (Member(PEER, "edge-1", "primary", "alive", 9, 0),), 4, 9, 7, 2, False, 3
    )


@pytest.mark.parametrize("told", [None, 5, {}, {"members": 5}, {"members": [{}]}])
def test_answer_that_is_no_group_breaks_the_protocol(told: Any):
    with pytest.raises(RemoteProtocolError, match="no group"):
        group_of(told, "group")


# -- reads -----------------------------------------------------------------------------


def test_stale_read_says_how_stale_and_what_was_seen(peer: FakePeer, store: Store):
    peer.reply_extra = INFO
    proxy = store.get(REF)

    first = proxy.peek.options(staleness_s=5)()
    value, info = proxy.peek.options(staleness_s=0.25).with_info()

    one, two = peer.wait_for(Call, 2)
    assert first == value == "told"
    assert info == Info(7, 4, 9, 1.5, "edge-1")
    assert one.extra == {"staleness_ms": 5000}
    assert two.extra == {"staleness_ms": 250, "seen": [4, 9], "info": True}


def test_info_may_be_asked_of_any_call(peer: FakePeer, store: Store):
    peer.reply_extra = INFO

    assert store.get(REF).add.with_info(1)[1].version == 7


def test_info_that_does_not_come_is_an_error_that_says_so(peer: FakePeer, store: Store):
    peer.reply_extra = {"version": 7}

    with pytest.raises(RemoteProtocolError, match="install a newer activestore"):
        store.get(REF).peek.with_info()


def test_info_of_a_peer_without_a_link_names_its_id():
    told = {**INFO, "peer_id": b"other6"}

    assert info_of(told, lambda peer_id: peer_id.hex(), "peek").peer == b"other6".hex()


def test_future_with_info_is_a_pair_for_coroutines(peer: FakePeer):
    peer.reply_extra = INFO

    async def run() -> Any:
        async with await activestore.aio.connect(peer.endpoint) as store:
            proxy = await store.get(REF)
            group = await store.group(REF)
            pair = await proxy.peek.options(staleness_s=1).with_info()
            return group, pair, await proxy.peek.options(staleness_s=1)()

    group, (value, info), plain = asyncio.run(run())

    assert group.copies == 2
    assert (value, info.age_s, plain) == ("told", 1.5, "told")


@pytest.mark.parametrize("staleness_s", [0, -1, float("nan"), "5", True, 1e30])
def test_staleness_that_is_no_time_is_refused(store: Store, staleness_s: Any):
    with pytest.raises(InvalidRequestError, match="staleness_s is"):
        store.get(REF).peek.options(staleness_s=staleness_s)


def test_method_that_writes_cannot_be_stale(peer: FakePeer, store: Store):
    """Refused before anything is sent, whether the class's code is here or not."""
    local = remote.make_class_stand_in(Note, ID, store)

    with pytest.raises(InvalidRequestError, match="readonly=True"):
        store.get(REF).add.options(staleness_s=5)
    with pytest.raises(InvalidRequestError, match="readonly=True"):
        local.write.options(staleness_s=5)

    local.read.options(staleness_s=5)
    assert not [m for m in peer.seen if type(m) is Call]


def test_stream_is_of_no_one_state(store: Store):
    rows = store.get(REF).rows

    with pytest.raises(InvalidRequestError, match="generator"):
        rows.options(staleness_s=5)
    with pytest.raises(InvalidRequestError, match="generator"):
        rows.with_info()


# -- export and back -------------------------------------------------------------------


def test_exported_copy_comes_back_as_a_new_object(peer: FakePeer, store: Store):
    data = store.export(REF)

    object_id = store.bring_back(data, alias="again", replicas=2)

    exported = unpacked(data)
    assert exported.named.state == STATE._replace(buffers=[])
    assert exported.about == {
        "object_id": OBJECT, "class_name": CLASS, "alias": "hits", "epoch": 4,
        "number": 9, "is_quarantined": True,
    }  # fmt: skip
    (persist,) = peer.wait_for(Persist)
    (named,) = decode_states(persist.body, persist.buffers)
    assert (named.object_id, named.alias) == (object_id, "again")
    assert object_id != OBJECT
    assert persist.extra == {"replicas": 2}


def test_large_buffers_survive_the_file(peer: FakePeer, store: Store):
    large = [b"x" * 200_000, b"y" * 70_000]
    state = STATE._replace(graph=b"graph", graph_fields=("model",), buffers=large)
    body, buffers = encode_states([NamedState(OBJECT, "", state)])
    peer.answers["export"] = {"states": body, "buffers": [bytes(b) for b in buffers]}  # type: ignore[arg-type]

    data = store.export(REF)

    assert [bytes(b) for b in unpacked(data).named.state.buffers] == large  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "expected"),
    [(lambda data: b"PK" + data, "begins with"), (lambda data: b"", "begins with"),
     (lambda data: data[:-1], "checksum"),
     (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "checksum"),
     (lambda data: data[: len(MAGIC)], "checksum")],
)  # fmt: skip
def test_damaged_file_is_told_and_nothing_is_made(
    peer: FakePeer, store: Store, change: Any, expected: str
):
    data = change(store.export(REF))

    with pytest.raises(InvalidRequestError, match=expected):
        store.bring_back(data)

    assert not [m for m in peer.seen if type(m) is Persist]


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_any_bytes_under_a_right_checksum_are_an_export_or_refused(content: bytes):
    digest = hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()

    with pytest.raises(InvalidRequestError, match="malformed"):
        unpacked(MAGIC + digest + content)


@pytest.mark.parametrize(
    "told", [None, {}, {"states": 5, "buffers": []}, {"states": b"\x90", "buffers": []}]
)
def test_answer_that_is_no_copy_breaks_the_protocol(
    peer: FakePeer, store: Store, told: Any
):
    peer.answers["export"] = told

    with pytest.raises(RemoteProtocolError):
        store.export(REF)


def test_refusal_of_a_group_reaches_the_caller(peer: FakePeer, store: Store):
    peer.answers["replicate"] = UnavailableError("replicate", "2 peers, 3 are needed")

    with pytest.raises(UnavailableError, match="3 are needed"):
        store.replicate(REF, 3)
