"""Peers and clients of this version and of those before it talk.

What a client and a peer of protocol versions 1 and 2 said was recorded
(`previous/record.py`). The recorded client talks to a real peer of today; today's client,
and today's peer that is told to join it, talk to the recorded peer.

Source: schemas/protocol.md sections 2 and 8; reliability.md 8.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import activestore
from activestore.errors import RemoteProtocolError
from activestore.wire import codec
from activestore.wire.limits import PROTOCOL_VERSION, PROTOCOL_VERSION_MIN
from activestore.wire.messages import (
    Call,
    Create,
    Hello,
    Item,
    Persist,
    Refused,
    Reply,
    Request,
    Welcome,
)
from tests.integration.previous import replay

pytestmark = [pytest.mark.net, pytest.mark.timeout(90)]

# What they answer has times, addresses and paths in it.
VARYING = {"classes", "publish", "objects", "locate", "peers"}


VERSIONS = range(PROTOCOL_VERSION_MIN, PROTOCOL_VERSION)


@pytest.fixture
def version() -> int:
    """Return which version the recorded peer speaks."""
    return PROTOCOL_VERSION_MIN


@pytest.fixture
def before(version: int) -> Iterator[replay.RecordedPeer]:
    """Return a peer of a version before this one."""
    made = replay.RecordedPeer(version)
    yield made
    made.close()
    assert not made.surprises, "nobody recorded what was asked: record it anew"


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_that_is_spoken_was_recorded(version):
    welcomes = [
        message
        for row in replay.RECORDED[version]["talk"]
        for message in replay.messages_of(row)
        if type(message) is Welcome
    ]

    assert [one.version for one in welcomes] == [version]


@pytest.mark.parametrize("version", VERSIONS)
def test_recorded_frames_mean_today_what_they_meant(version):
    for row in replay.RECORDED[version]["talk"]:
        frames = [bytes.fromhex(frame) for frame in row["frames"]]

        messages = codec.decode_frames(frames)

        assert b"".join(map(codec.encode, messages)) == b"".join(frames)


@pytest.mark.slow
def test_client_of_the_version_before_gets_its_answers(make_peer, before, eventually):
    peer = make_peer(name="before", join=before.endpoint)
    store = peer.connect()
    peer_id = store.status()["peer_id"]

    talk = compare(peer.endpoint, peer_id, 1)

    kinds = {type(asked) for asked, _, _ in talk}
    assert kinds >= {Hello, Persist, Create, Call, Request}
    assert any(type(one) is Item for _, _, now in talk for one in now)
    assert store.get("mine").value == 7, "what it persisted is kept"

    # The peer that it was told to join cannot be in a cluster: it says so, and serves.
    eventually(lambda: before.endpoint in peer.log())
    assert "speaks versions 1 to 1" in str(store.status()["cannot_join"])
    assert [row["peer"] for row in store.peers()] == ["before"]

    # Nor may one of that version join: the range in Hello is what decides.
    hello = Hello(1, 1, bytes(16), "older", ["call", "peer"], {"cluster": "x"})
    with replay.RecordedClient(peer.endpoint, 1) as older:
        answer = older.ask({"frames": [codec.encode(hello).hex()]})
    assert (type(answer), answer.code) == (Refused, "version")
    assert "1 to 1" in answer.reason
    assert f"2 to {PROTOCOL_VERSION}" in answer.reason


def compare(endpoint, peer_id, version):
    """Have the recorded client talk to a peer; its answers are what they were."""
    with replay.RecordedClient(endpoint, version) as client:
        talk = client.talk(peer_id)
    for asked, recorded, now in talk:
        assert [type(one) for one in now] == [type(one) for one in recorded], asked
        if type(asked) is Request and asked.operation in VARYING:
            continue
        own = [
            one._replace(
                body=bytes(one.body).replace(peer_id, replay.PEER_IDS[version])
            )
            for one in now
        ]
        assert [*map(replay.outcome, own)] == [*map(replay.outcome, recorded)], asked
        for one, old in zip(now, recorded, strict=True):
            if type(one) is Welcome:
                assert set(one.capabilities) >= set(old.capabilities)
    return talk


@pytest.mark.slow
def test_peers_of_today_serve_a_client_and_welcome_a_peer_of_version_2(make_peer):
    peer = make_peer(name="before")
    store = peer.connect()
    peer_id = store.status()["peer_id"]

    compare(peer.endpoint, peer_id, 2)

    assert store.get("mine").value == 7, "what it persisted is kept"
    about = {"peer_id": b"older6", "cluster": store.status()["cluster"]}
    hello = Hello(2, 2, bytes(range(16)), "older", ["call", "peer"], about)
    with replay.RecordedClient(peer.endpoint, 2) as older:
        answer = older.ask({"frames": [codec.encode(hello).hex()]})
    assert (type(answer), answer.version) == (Welcome, 2)


@pytest.mark.parametrize("version", VERSIONS)
def test_client_calls_a_peer_of_the_version_before(before):
    with activestore.connect(before.endpoint, timeout_s=10.0) as store:
        made = store.get("made")

        assert made.add(2) == 7  # what the recorded peer answered to the first `add`
        assert made.value == 1
        assert list(made.count.stream(3)) == [0, 10, 20]
        with pytest.raises(ValueError, match="as it should"):
            made.fail()
        assert store.create("gauge.Gauge", 1, alias="made") is not None
        assert [row["peer"] for row in store.peers()] == ["before"]
        assert len(list(store.objects())) == 2
    (greeting,) = before.greetings
    assert (greeting.version_min, greeting.version_max) == (1, PROTOCOL_VERSION)


def test_what_the_version_before_lacks_is_refused_with_both_versions(before):
    with activestore.connect(before.endpoint, timeout_s=10.0) as store:
        made = store.get("made")

        with pytest.raises(RemoteProtocolError) as moved:
            store.move(made, "other")
        with pytest.raises(RemoteProtocolError) as created:
            store.create("gauge.Gauge", peer="other")
        with pytest.raises(RemoteProtocolError):
            # Also where the client does not know that it is missing.
            store._send(lambda sequence, _: Request(sequence, "refs"), "refs")

    for error in (moved, created):
        assert "version 1" in str(error.value)
        assert f"1 to {PROTOCOL_VERSION}" in str(error.value)
        assert before.endpoint in str(error.value)


@pytest.mark.parametrize("version", [2])
def test_copies_are_not_asked_of_a_peer_that_would_make_one(before):
    with activestore.connect(before.endpoint, timeout_s=10.0) as store:
        made = store.get("made")
        asks = [
            lambda: store.create("gauge.Gauge", replicas=3),
            lambda: store.create("gauge.Gauge", replicas=2, witness=True),
            lambda: store.replicate(made, 3),
            lambda: store.group(made),
            lambda: store.force(made),
        ]
        refused = []
        for ask in asks:
            with pytest.raises(RemoteProtocolError) as error:
                ask()
            refused.append(str(error.value))
        assert store.create("gauge.Gauge", 1, alias="made", replicas=1) is not None

    for text in refused:
        assert "needs version 3" in text
        assert "speaks version 2" in text


def test_unknown_kinds_were_answered_and_are_today():
    asked = replay.RECORDED[1]["asked"]
    refusals = [replay.messages_of(answer)[0] for _, answer in asked]

    assert [one.code for one in refusals[-2:]] == ["remote_protocol"] * 2
    assert all(type(one) is Refused for one in refusals[-2:])
    assert type(refusals[2]) is Reply
