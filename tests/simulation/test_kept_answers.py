"""Answers that are kept for clients that ask again: how long, how many, and on the way.

Source: reliability.md 3.7.
"""

from __future__ import annotations

from typing import Any

import pytest

from activestore.errors import TooLargeError, UnavailableError
from activestore.ids import SESSION_ID_BYTES, ObjectId, SessionId
from activestore.peer import moving
from activestore.peer.forgetting import EXPIRE_COUNT, EXPIRE_S, REST_S
from activestore.storage.engine import Change, ReplyRecord
from activestore.testing import Simulation
from activestore.testing.peers import PeerSettings, SimPeer
from tests.simulation.clusters import COUNTER, join
from tests.simulation.models import Counter
from tests.simulation.replica_clusters import id_of
from tests.simulation.test_followed_objects import drop_replies

HOURS_OFF_S = 5 * 3600.0


def answers_of_one_shot_clients(peer: SimPeer, object_id: ObjectId, count: int) -> None:
    """Keep what so many clients leave that each called an object once and went."""
    for start in range(0, count, 1000):
        sessions = range(start, min(start + 1000, count))
        replies = tuple(
            ReplyRecord(
                SessionId(n.to_bytes(SESSION_ID_BYTES, "big")), 1, "", b"\x01", 0.0
            )
            for n in sessions
        )
        change = Change(object_id, replies=replies, is_copy=True)
        assert peer.engine.commit([change]) == [None]


@pytest.mark.parametrize(
    "skews_s",
    [
        {},
        {"peer-1": -HOURS_OFF_S},
        {"peer-2": HOURS_OFF_S, "peer-3": HOURS_OFF_S},
    ],
    ids=["right", "leader behind", "copies ahead"],
)
def test_call_in_doubt_counts_once_over_a_take_over_whatever_the_clocks_say(
    skews_s: dict[str, float],
) -> None:
    with Simulation(1, peers=3, classes=[Counter]) as sim:
        for name, skew_s in skews_s.items():
            sim.set_clock(name, skew_s=skew_s)
        join(sim)
        counter = sim.client("peer-1").create(COUNTER, replicas=3)
        client = sim.client("peer-1", "peer-2", "peer-3", timeout_s=300.0)
        add = client.get(id_of(counter)).add
        drop_replies(sim.peers["peer-1"])
        future = add.submit(1)
        sim.run(EXPIRE_S + 5.0)
        sim.crash("peer-1")

        assert future.result() == 1
        assert sim.client("peer-2").get(id_of(counter)).peek() == 1


def test_call_in_doubt_counts_once_though_the_clock_of_its_peer_jumps() -> None:
    """A board without a clock of its own boots in 1970 and hears the time later."""
    with Simulation(1, peers=1, classes=[Counter]) as sim:
        counter = sim.client().create(COUNTER)
        client = sim.client(timeout_s=300.0)
        add = client.get(id_of(counter)).add
        drop_replies(sim.peers["peer-1"])
        future = add.submit(1)
        sim.run(1.0)
        sim.set_clock("peer-1", skew_s=HOURS_OFF_S)
        sim.run(EXPIRE_S + 5.0)
        sim.crash("peer-1")
        sim.restart("peer-1")

        assert future.result() == 1
        assert sim.client().get(id_of(counter)).peek() == 1


def test_object_moves_with_more_answers_than_a_value_has_elements() -> None:
    count = 15_000
    with Simulation(1, peers=2, classes=[Counter]) as sim:
        join(sim)
        client = sim.client("peer-1")
        counter = client.create(COUNTER)
        assert counter.add(1) == 1
        answers_of_one_shot_clients(sim.peers["peer-1"], id_of(counter), count)

        client.move(counter, "peer-2")

        assert counter.add(1) == 2
        engines = [sim.peers[name].engine for name in ("peer-1", "peer-2")]
        kept = [len(engine.replies_of(id_of(counter))) for engine in engines]
        assert kept[0] == 0
        assert kept[1] > count


@pytest.mark.parametrize("kind", ["of ours", "any"])
def test_object_that_cannot_be_sent_stays_and_is_served_where_it_was(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def fail(_states: Any) -> Any:
        if kind == "any":
            raise RuntimeError("something nobody thought of")
        raise TooLargeError("state", 2, 1)

    with Simulation(1, peers=2, classes=[Counter]) as sim:
        join(sim)
        client = sim.client("peer-1")
        counter = client.create(COUNTER)
        monkeypatch.setattr(moving, "encode_states", fail)

        with pytest.raises((TooLargeError, UnavailableError), match=r"nobody|state"):
            client.move(counter, "peer-2")

        assert counter.add(1) == 1
        monkeypatch.undo()
        client.move(counter, "peer-2")
        assert counter.add(1) == 2
        assert not sim.peers["peer-1"].failure


def test_question_that_cannot_be_told_ends_with_why_and_not_its_peer() -> None:
    with Simulation(1, peers=2, classes=[Counter]) as sim:
        join(sim)
        heard: list[Any] = []

        sim.peers["peer-1"].loop.relays.ask(
            sim.peers["peer-2"].peer_id,
            "install",
            {"rows": [0] * 200_000},
            lambda _answer, error: heard.append(error),
        )

        assert [type(error) for error in heard] == [TooLargeError]
        assert not sim.peers["peer-1"].loop.relays.has_deadlines


def test_old_answers_go_as_fast_as_they_came() -> None:
    """Each look is bounded; one a minute would let 34 a second grow without end."""
    count = 5 * EXPIRE_COUNT + 1
    settings = PeerSettings(session_expiry_s=100.0)
    with Simulation(1, peers=1, classes=[Counter], settings=settings) as sim:
        counter = sim.client().create(COUNTER)
        peer = sim.peers["peer-1"]
        answers_of_one_shot_clients(peer, id_of(counter), count)
        kept_s = 2 * peer.loop.settings.reply_keep_s
        before = len(peer.engine.replies_of(id_of(counter)))

        sim.run(kept_s)
        assert len(peer.engine.replies_of(id_of(counter))) == before
        sim.run(3 * EXPIRE_S + 6 * 2 * REST_S)
        assert peer.engine.replies_of(id_of(counter)) == []


def test_long_pause_does_not_age_what_came_just_before() -> None:
    with Simulation(1, peers=1, classes=[Counter]) as sim:
        counter = sim.client().create(COUNTER)
        assert counter.add(1) == 1
        sim.pause("peer-1")
        sim.run(HOURS_OFF_S)
        sim.resume("peer-1")
        sim.run(2 * EXPIRE_S)

        (answer,) = sim.peers["peer-1"].engine.replies_of(id_of(counter))
        assert answer.age_s <= 3 * EXPIRE_S
