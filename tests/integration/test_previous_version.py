"""Peers and clients of this version and of the one before it talk.

What a client and a peer of protocol version 1 said was recorded (`previous/record.py`).
The recorded client talks to a real peer of today; today's client, and today's peer that
is told to join it, talk to the recorded peer.

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


@pytest.fixture
def before() -> Iterator[replay.RecordedPeer]:
    """Return a peer of the version before this one."""
    made = replay.RecordedPeer()
    yield made
    made.close()
    assert not made.surprises, "nobody recorded what was asked: record it anew"


def test_record_is_of_the_version_before_this_one():
    welcomes = [
        message
        for row in replay.RECORDED["talk"]
        for message in replay.messages_of(row)
        if type(message) is Welcome
    ]

    assert [one.version for one in welcomes] == [PROTOCOL_VERSION - 1]
    assert PROTOCOL_VERSION - 1 == PROTOCOL_VERSION_MIN


def test_recorded_frames_mean_today_what_they_meant():
    for row in replay.RECORDED["talk"]:
        frames = [bytes.fromhex(frame) for frame in row["frames"]]

        messages = codec.decode_frames(frames)

        assert b"".join(map(codec.encode, messages)) == b"".join(frames)


@pytest.mark.slow
def test_client_of_the_version_before_gets_its_answers(make_peer, before, eventually):
    peer = make_peer(name="before", join=before.endpoint)
    store = peer.connect()
    peer_id = store.status()["peer_id"]

    with replay.RecordedClient(peer.endpoint) as client:
        talk = client.talk(peer_id)

    kinds = {type(asked) for asked, _, _ in talk}
    assert kinds >= {Hello, Persist, Create, Call, Request}
    for asked, recorded, now in talk:
        assert [type(one) for one in now] == [type(one) for one in recorded], asked
        if type(asked) is Request and asked.operation in VARYING:
            continue
        own = [
            one._replace(body=bytes(one.body).replace(peer_id, replay.PEER_ID))
            for one in now
        ]
        assert [*map(replay.outcome, own)] == [*map(replay.outcome, recorded)], asked
    assert any(type(one) is Item for _, _, now in talk for one in now)
    assert store.get("mine").value == 7, "what it persisted is kept"

    # The peer that it was told to join cannot be in a cluster: it says so, and serves.
    eventually(lambda: before.endpoint in peer.log())
    assert "speaks versions 1 to 1" in str(store.status()["cannot_join"])
    assert [row["peer"] for row in store.peers()] == ["before"]

    # Nor may one of that version join: the range in Hello is what decides.
    hello = Hello(1, 1, bytes(16), "older", ["call", "peer"], {"cluster": "x"})
    with replay.RecordedClient(peer.endpoint) as older:
        answer = older.ask({"frames": [codec.encode(hello).hex()]})
    assert (type(answer), answer.code) == (Refused, "version")
    assert "1 to 1" in answer.reason
    assert f"2 to {PROTOCOL_VERSION}" in answer.reason


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


def test_unknown_kinds_were_answered_and_are_today():
    refusals = [replay.messages_of(answer)[0] for _, answer in replay.RECORDED["asked"]]

    assert [one.code for one in refusals[-2:]] == ["remote_protocol"] * 2
    assert all(type(one) is Refused for one in refusals[-2:])
    assert type(refusals[2]) is Reply
