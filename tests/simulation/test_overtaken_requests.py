"""A copy of a request that arrives after its answer was acknowledged.

One connection keeps order, so this cannot happen on one. A client that went on with
another peer has sent its request twice, by two ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from activestore import remote
from activestore.client.publish import snapshots
from activestore.ids import ObjectId, PeerId, SessionId
from activestore.peer.loop import PeerLoop
from activestore.testing import Simulation
from activestore.testing.network import SimTransport
from activestore.wire import codec, messages, values
from activestore.wire.limits import PROTOCOL_VERSION, PROTOCOL_VERSION_MIN
from activestore.wire.state import encode_states
from tests.simulation.models import Counter

COUNTER = "tests.simulation.models.Counter"
HELLO = messages.Hello(
    PROTOCOL_VERSION_MIN, PROTOCOL_VERSION, SessionId(bytes(16)), "raw", ["call"]
)


class Raw:
    """A client that sends what it is told to, to a peer's own objects."""

    def __init__(self, sim: Simulation, peer: str) -> None:
        self.sim = sim
        self.transport = SimTransport(sim.network, "raw", "", lambda: None)
        self.route = self.transport.connect(sim.peers[peer].endpoint)

    def send(self, *sent: messages.Message) -> list[Any]:
        """Send messages at once; return what has come back a second later."""
        for message in sent:
            self.transport.send(self.route, message)
        self.transport.flush()
        self.sim.run(1.0)
        received = self.transport.receive(1000)
        return [one for _, frames in received for one in codec.decode_frames(frames)]


def call(
    object_id: ObjectId,
    sequence: int,
    *,
    attempt: int = 0,
    first_unacked: int = 0,
    still_open: Sequence[int] = (),
) -> messages.Call:
    """Return a call of `add`; without `first_unacked` all before it are answered."""
    body, _ = values.encode_arguments((), {})
    extra = {"open": list(still_open)} if still_open else None
    return messages.Call(
        sequence,
        object_id,
        "add",
        0,
        attempt,
        first_unacked or sequence,
        0,
        extra,
        body,
    )


@pytest.mark.parametrize("attempt", [0, 1])
def test_request_below_what_was_acknowledged_is_not_run(attempt: int) -> None:
    with Simulation(1, peers=1, classes=[Counter]) as sim:
        counter = sim.create(COUNTER)
        mine = remote.id_of(counter)
        raw = Raw(sim, "peer-1")

        raw.send(HELLO, call(mine, 1))
        raw.send(call(mine, 2))
        assert counter.peek() == 2
        late = raw.send(call(mine, 1, attempt=attempt))

        assert [type(one) for one in late] == [messages.Failure]
        assert late[0].code == "invalid_request"
        assert counter.peek() == 2


@pytest.mark.parametrize("attempt", [0, 1])
def test_request_that_was_told_not_to_be_open_is_not_run(attempt: int) -> None:
    with Simulation(1, peers=1, classes=[Counter]) as sim:
        counter = sim.create(COUNTER)
        mine = remote.id_of(counter)
        raw = Raw(sim, "peer-1")

        raw.send(HELLO, call(mine, 2, first_unacked=1))
        raw.send(call(mine, 3, first_unacked=1, still_open=[1]))
        raw.send(call(mine, 4, first_unacked=1))
        assert counter.peek() == 3
        raw.send(call(mine, 2, attempt=attempt, first_unacked=1))
        assert counter.peek() == 3
        raw.send(call(mine, 1, attempt=attempt, first_unacked=1))

        assert counter.peek() == 4, "the one that is open has not run yet"


def test_copy_that_finds_its_record_gets_the_answer_again() -> None:
    with Simulation(1, peers=1, classes=[Counter]) as sim:
        counter = sim.create(COUNTER)
        mine = remote.id_of(counter)
        raw = Raw(sim, "peer-1")

        (_, first) = raw.send(HELLO, call(mine, 1))
        (again,) = raw.send(call(mine, 1))

        assert type(again) is messages.Reply
        assert bytes(again.body) == bytes(first.body)
        assert counter.peek() == 1


def test_copy_that_is_the_first_after_a_restart_is_not_run() -> None:
    with Simulation(1, peers=1, classes=[Counter]) as sim:
        counter = sim.create(COUNTER)
        mine = remote.id_of(counter)
        Raw(sim, "peer-1").send(HELLO, call(mine, 1), call(mine, 2))
        sim.run(1.0)
        sim.crash("peer-1")
        sim.restart("peer-1")
        sim.run(1.0)

        Raw(sim, "peer-1").send(HELLO, call(mine, 1))

        assert counter.peek() == 2


def test_copy_that_finds_the_object_moved_is_not_run() -> None:
    """What tells that it is over moves along."""
    with Simulation(1, peers=2, classes=[Counter]) as sim:
        counter = sim.create(COUNTER)
        mine = remote.id_of(counter)
        Raw(sim, "peer-1").send(HELLO, call(mine, 1), call(mine, 2))
        sim.move(counter, "peer-2")

        late = Raw(sim, "peer-2").send(HELLO, call(mine, 1))

        assert [one.code for one in late if type(one) is messages.Failure] == [
            "invalid_request"
        ]
        assert counter.peek() == 2


def test_first_requests_of_a_session_run_in_order() -> None:
    """The first is looked up on disk; those behind it do not overtake it."""
    with Simulation(1, peers=1, classes=[Counter]) as sim:
        counter = sim.create(COUNTER)
        mine = remote.id_of(counter)
        Raw(sim, "peer-1").send(HELLO._replace(session=b"o" * 16), call(mine, 1))

        calls = [call(mine, n, first_unacked=1) for n in range(1, 6)]
        answers = Raw(sim, "peer-1").send(HELLO, *calls)

        found = [
            (one.sequence, values.decode(bytes(one.body), []))
            for one in answers
            if type(one) is messages.Reply
        ]
        assert found == [(n, n + 1) for n in range(1, 6)]


def test_request_in_order_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up = []
    do = PeerLoop._do_look_up
    monkeypatch.setattr(
        PeerLoop,
        "_do_look_up",
        lambda loop, effect: (looked_up.append(effect.sequence), do(loop, effect))[1],
    )
    with Simulation(1, peers=1, classes=[Counter]) as sim:
        mine = remote.id_of(sim.create(COUNTER))
        raw = Raw(sim, "peer-1")
        looked_up.clear()

        for n in range(1, 5):
            raw.send(*[HELLO] * (n == 1), call(mine, n))

        assert looked_up == [1], "only the first of a session"


@pytest.mark.parametrize("attempt", [0, 1])
@pytest.mark.parametrize("calls", [0, 1])
def test_persist_that_arrives_after_a_delete_brings_nothing_back(
    attempt: int, calls: int
) -> None:
    """Its object has the answer to it, or to what its client asked later."""
    with Simulation(1, peers=1, classes=[Counter]) as sim:
        made, persist = persist_of(sim, Counter(5))
        raw = Raw(sim, "peer-1")

        (_, kept) = raw.send(HELLO, persist)
        raw.send(*[call(made, 2 + n) for n in range(calls)])
        (deleted,) = raw.send(messages.Delete(2 + calls, made, 0, 2 + calls))
        late = raw.send(persist._replace(attempt=attempt))

        assert [type(one) for one in (kept, deleted)] == [messages.Reply] * 2
        assert len(late) == 1, "it is answered as it was, or refused"
        assert list(sim.client().objects()) == []


def test_persist_that_arrives_after_a_delete_by_another_brings_nothing_back() -> None:
    with Simulation(1, peers=1, classes=[Counter]) as sim:
        made, persist = persist_of(sim, Counter(5))
        raw = Raw(sim, "peer-1")
        raw.send(HELLO, persist)
        sim.client().delete(made)

        late = raw.send(persist._replace(attempt=1))

        assert [type(one) for one in late] == [messages.Reply], "it was kept, once"
        assert list(sim.client().objects()) == []


def persist_of(sim: Simulation, obj: Any) -> tuple[ObjectId, messages.Persist]:
    """Return the id that an object gets, and the request that keeps it."""
    peer_id = PeerId(sim.peers["peer-1"].disk.peer_id)
    revision = sim.client().request("interface", class_name=COUNTER)["revision"]
    ((_, named),) = snapshots([(obj, "")], peer_id, lambda _: revision)
    body, _ = encode_states([named])
    return ObjectId(named.object_id), messages.Persist(1, 0, 1, None, body)
