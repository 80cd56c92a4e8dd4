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
from tests.simulation.clusters import join
from tests.simulation.models import Counter, Relay

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


def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the numbers of requests that are looked up."""
    looked_up: list[int] = []
    do = PeerLoop._do_look_up
    monkeypatch.setattr(
        PeerLoop,
        "_do_look_up",
        lambda loop, effect: (looked_up.append(effect.sequence), do(loop, effect))[1],
    )
    return looked_up


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
    looked_up = watched(monkeypatch)
    with Simulation(1, peers=1, classes=[Counter]) as sim:
        mine = remote.id_of(sim.create(COUNTER))
        raw = Raw(sim, "peer-1")
        looked_up.clear()

        for n in range(1, 5):
            raw.send(*[HELLO] * (n == 1), call(mine, n))

        assert looked_up == [1], "only the first of a session"


def test_forwarded_request_is_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What stood still at a peer, in order, may have been answered by others since."""
    looked_up = watched(monkeypatch)
    with Simulation(2, peers=3, joined=True, classes=[Counter]) as sim:
        counter = sim.create(COUNTER)
        raw = Raw(sim, "peer-2")
        looked_up.clear()

        for n in range(1, 5):
            raw.send(*[HELLO] * (n == 1), call(remote.id_of(counter), n))
        assert looked_up == [1, 2, 3, 4]
        sim.move(counter, "peer-3")
        for n in range(5, 8):
            raw.send(call(remote.id_of(counter), n))

        assert looked_up == [1, 2, 3, 4, 5, 6, 7]


def test_request_behind_a_long_one_is_not_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is answered is told by number then, as the lowest one stays open."""
    looked_up = watched(monkeypatch)
    with Simulation(1, peers=1, classes=[Counter]) as sim:
        mine = remote.id_of(sim.create(COUNTER))
        raw = Raw(sim, "peer-1")
        looked_up.clear()

        raw.send(HELLO, call(mine, 2, first_unacked=1))
        raw.send(call(mine, 3, first_unacked=1, still_open=[1]))
        raw.send(call(mine, 4, first_unacked=1))

        assert looked_up == [2]


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


def test_create_whose_peer_died_says_that_its_outcome_is_not_known() -> None:
    """It may have been made: only its home can tell, and nobody may make it again."""
    with Simulation(1, peers=2, classes=[Counter]) as sim:
        sim.run(2.0)
        home = PeerId(sim.peers["peer-2"].disk.peer_id)
        body, _ = values.encode_arguments((), {})
        create = messages.Create(
            1, ObjectId(home + b"\0" + b"n" * 9), COUNTER, "", 0, 1, 0, None, body
        )
        raw = Raw(sim, "peer-1")
        sim.pause("peer-2")
        raw.send(HELLO, create)
        sim.crash("peer-2")
        sim.run(60.0)

        told = raw.send()

        (failure,) = [one for one in told if type(one) is messages.Failure]
        assert failure.code == "unavailable"
        assert b"whether it has made the object is known once it is back" in bytes(
            failure.body
        )


def persist_of(sim: Simulation, obj: Any) -> tuple[ObjectId, messages.Persist]:
    """Return the id that an object gets, and the request that keeps it."""
    peer_id = PeerId(sim.peers["peer-1"].disk.peer_id)
    revision = sim.client().request("interface", class_name=COUNTER)["revision"]
    ((_, named),) = snapshots([(obj, "")], peer_id, lambda _: revision)
    body, _ = encode_states([named])
    return ObjectId(named.object_id), messages.Persist(1, 0, 1, None, body)


def stalled(sim: Simulation, by: str, *sent: messages.Message) -> None:
    """Have a client send requests to a peer that stands still and forwards them later."""
    raw = Raw(sim, by)
    raw.send(HELLO)
    sim.pause(by)
    raw.send(*sent)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("forgets", ["restart", "bye"])
def test_burst_of_copies_to_a_peer_that_forgot_the_session_is_not_run(
    forgets: str, count: int
) -> None:
    """They come by a peer that stood still; meanwhile the client went on elsewhere."""
    with Simulation(1, peers=2, joined=True, classes=[Counter]) as sim:
        counter = sim.create(COUNTER)
        mine = remote.id_of(counter)
        numbers = range(1, count + 1)
        stalled(sim, "peer-2", *(call(mine, n, first_unacked=1) for n in numbers))
        again = [call(mine, n, attempt=1, first_unacked=1) for n in numbers]
        direct = Raw(sim, "peer-1")
        assert len(direct.send(HELLO, *again)) == 1 + count
        if forgets == "restart":
            sim.restart("peer-1")
        else:
            direct.send(messages.Bye())
        sim.run(2.0)

        sim.resume("peer-2")
        sim.run(10.0)

        assert counter.peek() == count


def test_copy_that_follows_an_object_to_a_peer_that_knows_the_session_is_not_run() -> (
    None
):
    """There the session's highest number is lower, for it was answered elsewhere."""
    with Simulation(1, peers=3, joined=True, classes=[Counter]) as sim:
        with sim.client("peer-3") as maker:
            other = remote.id_of(maker.create(COUNTER))
        counter = sim.create(COUNTER)
        mine = remote.id_of(counter)
        Raw(sim, "peer-3").send(HELLO, call(other, 1))
        stalled(sim, "peer-2", *(call(mine, n, first_unacked=2) for n in (2, 3)))
        again = [call(mine, n, attempt=1, first_unacked=2) for n in (2, 3)]
        Raw(sim, "peer-1").send(HELLO, *again)
        sim.move(counter, "peer-3")

        sim.resume("peer-2")
        sim.run(10.0)

        assert counter.peek() == 2


def test_copy_that_was_overtaken_on_its_first_way_is_not_run_where_it_is_forwarded() -> (
    None
):
    """The peer that held the object stood still, and then the object left it."""
    with Simulation(1, peers=2, joined=True, classes=[Counter]) as sim:
        counter = sim.create(COUNTER)
        mine = remote.id_of(counter)
        sim.move(counter, "peer-2")
        Raw(sim, "peer-2").send(HELLO, call(mine, 1))
        stalled(sim, "peer-1", *(call(mine, n, first_unacked=2) for n in (2, 3)))
        again = [call(mine, n, attempt=1, first_unacked=2) for n in (2, 3)]
        Raw(sim, "peer-2").send(HELLO, *again, call(mine, 4))

        sim.resume("peer-1")
        sim.run(10.0)

        assert counter.peek() == 4


@pytest.mark.parametrize("is_relayed", [False, True])
def test_request_that_waited_while_another_peer_answered_it_is_not_run(
    monkeypatch: pytest.MonkeyPatch, is_relayed: bool
) -> None:
    """The later one tells that the first is answered, and was sent no later for that."""
    with Simulation(1, peers=2, classes=[Counter]) as sim:
        join(sim)
        client = sim.client("peer-2")
        counter = client.create(COUNTER)
        mine = remote.id_of(counter)
        assert mine is not None
        loop = sim.peers["peer-1"].loop
        released: list[Any] = []
        with monkeypatch.context() as nobody_leads:
            nobody_leads.setattr(loop.relays.routing, "is_leaderless", lambda _: True)
            nobody_leads.setattr(
                loop.relays,
                "replicas_wanted",
                lambda _, then: released.append(then) or True,
            )
            waits = Raw(sim, "peer-1")
            waits.send(HELLO)
            if is_relayed:
                next(
                    one
                    for one in loop.sessions.values()
                    if one.session_id == HELLO.session
                ).is_relayed = True
            waits.send(call(mine, 1), call(mine, 2))
        assert len(released) == 2
        other = Raw(sim, "peer-2")
        other.send(HELLO, call(mine, 1, attempt=1), call(mine, 2, attempt=1))
        assert counter.peek() == 2
        client.move(counter, "peer-1")

        for session in loop.sessions.values():
            session.doubt()  # As where this peer leads from now on.
        for decided in released:
            decided(None)
        sim.run(1.0)

        assert counter.peek() == 2


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("seed", [1, 3])
def test_call_of_a_method_that_was_answered_elsewhere_comes_home(
    seed: int, replicas: int
) -> None:
    """Its answer was lost, and then its object came to the peer of the method."""
    with Simulation(seed, peers=3, classes=[Counter, Relay]) as sim:
        join(sim)
        client = sim.client("peer-3")
        made = sim.client("peer-1").create(COUNTER, replicas=replicas)
        counter = client.get(remote.id_of(made))
        relay = client.create("tests.simulation.models.Relay", counter, replicas=1)
        assert relay.add() == 1
        sim.run(2.0)
        sim.partition("peer-1", "peer-3", one_way=True)
        answer = relay.add.submit()
        sim.run(0.3)
        sim.break_connections("peer-1", "peer-3")
        sim.heal()

        sim.client("peer-1").move(made, "peer-3")

        assert answer.result() == 2
        assert counter.peek() == 2


def test_sign_of_life_for_a_call_that_came_home_ends_there() -> None:
    """The session of a peer's own methods has nobody behind it to pass it on to."""
    with Simulation(1, peers=1) as sim:
        sim.run(1.0)
        loop = sim.peers["peer-1"].loop
        here = loop.session_here(loop.links.session_id)

        loop.beat(here, [1])
        loop.tell(here, messages.Reply(1))


def test_sign_of_life_of_a_request_that_nobody_has_now_passes_nobody_by() -> None:
    """It waits here for a leader; who had it before says that it is under way."""
    with Simulation(2, peers=3, classes=[Counter]) as sim:
        join(sim)
        counter = sim.client("peer-1").create(COUNTER, replicas=3)
        object_id = remote.id_of(counter)
        assert object_id is not None
        sim.run(2.0)
        loop = sim.peers["peer-2"].loop
        trip = loop.relays._own_trip(call(object_id, 1), object_id)

        loop.tell(loop.session_here(trip.session_id), messages.Beat([trip.sequence]))

        assert (trip.passed, trip.is_again) == (set(), False)
