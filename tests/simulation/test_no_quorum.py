"""Writes on the side without a majority: each is told so, by whichever way it was asked.

The deadline of a call is known to whoever has it wait: a leader whose members do not
answer, a copy that nobody leads, the peer of a method that calls what has no majority,
and the peer between a client and a leader that is not heard.

Rules of this file: whole peers under virtual time; clients are on the minority's side and
reach no other peer.

Source: reliability.md 3.8; docs/explanation/consistency.md.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable
from typing import Any

import pytest

from activestore.errors import DeadlineExceededError, NoQuorumError, UnavailableError
from activestore.ids import ObjectId
from activestore.peer.links import LOOK_S
from activestore.peer.relays import Relays
from activestore.peer.trips import Trip
from activestore.testing import ExecutorSpeed, Latency, PeerSettings, Simulation
from tests.simulation.clusters import COUNTER, join
from tests.simulation.models import Counter, Relay
from tests.simulation.test_guarantees import at, cut_off, holders
from tests.simulation.test_replicas import id_of

RELAY = "tests.simulation.models.Relay"
CLASSES: list[type] = [Counter, Relay]
TIMEOUTS_S = (2.0, 5.0, 10.0)
# A timeout, and how long the cut has been there when the call is made: nobody has noticed,
# some suspect, all know.
CASES_S = ((2.0, 0.0), (2.0, 20.0), (5.0, 2.0), (10.0, 0.0))
LEADER = "peer-2"
# What a copy may be behind in a calm cluster.
CALM_S = 2.0


def refused_in_time(sim: Simulation, method: Any, timeout_s: float) -> None:
    """Assert that a call is refused for want of a majority before its deadline."""
    begin_s = sim.now_s
    with pytest.raises(NoQuorumError):
        method.options(timeout_s=timeout_s)()
    assert sim.now_s - begin_s <= timeout_s


def counter_led_by(sim: Simulation, leader: str) -> ObjectId:
    """Make a counter with three copies."""
    join(sim)
    counter = sim.client(leader).create(COUNTER, replicas=3)
    assert counter.add() == 1
    sim.run(CALM_S)
    return id_of(counter)


def stranger(sim: Simulation, object_id: ObjectId) -> str:
    """Return the peer that has no copy."""
    (found,) = set(sim.peers) - set(holders(sim, object_id))
    return found


def relay_at(
    sim: Simulation, peer: str, object_id: ObjectId, replicas: int = 1
) -> ObjectId:
    """Make an object at a peer whose method calls another."""
    client = sim.client(peer)
    relay = client.create(RELAY, client.get(object_id), replicas=replicas)
    assert relay.add() == 2
    sim.run(CALM_S)
    return id_of(relay)


def whose_leader_is_alone(sim: Simulation) -> Any:
    """A plain object beside the leader, which has no majority."""
    relay = relay_at(sim, LEADER, counter_led_by(sim, LEADER))
    method = at(sim, LEADER, relay).add
    cut_off(sim, [LEADER])
    return method


def which_is_alone_too(sim: Simulation) -> Any:
    """An object with copies beside the leader; neither has a majority."""
    relay = relay_at(sim, LEADER, counter_led_by(sim, LEADER), 3)
    method = at(sim, LEADER, relay).add
    cut_off(sim, [LEADER])
    return method


def whose_leader_is_elsewhere(sim: Simulation) -> Any:
    """A plain object at a peer that still hears the leader, which has no majority."""
    counter = counter_led_by(sim, LEADER)
    peer = stranger(sim, counter)
    method = at(sim, peer, relay_at(sim, peer, counter)).add
    cut_off(sim, [peer, LEADER])
    return method


def whose_leader_is_not_heard(sim: Simulation) -> Any:
    """A plain object at a peer that has a copy, and is alone."""
    counter = counter_led_by(sim, LEADER)
    peer = next(name for name in holders(sim, counter) if name != LEADER)
    method = at(sim, peer, relay_at(sim, peer, counter)).add
    cut_off(sim, [peer])
    return method


def which_no_copy_is_heard_of(sim: Simulation) -> Any:
    """A plain object at a peer that has no copy, and is alone."""
    counter = counter_led_by(sim, LEADER)
    peer = stranger(sim, counter)
    method = at(sim, peer, relay_at(sim, peer, counter)).add
    cut_off(sim, [peer])
    return method


NESTED: tuple[Callable[[Simulation], Any], ...] = (
    whose_leader_is_alone,
    which_is_alone_too,
    whose_leader_is_elsewhere,
    whose_leader_is_not_heard,
    which_no_copy_is_heard_of,
)


@pytest.mark.parametrize("made", NESTED)
def test_method_that_calls_what_has_no_majority(
    made: Callable[[Simulation], Any],
) -> None:
    for timeout_s, after_s in CASES_S:
        with Simulation(31, peers=4, classes=CLASSES) as sim:
            method = made(sim)
            sim.run(after_s)

            refused_in_time(sim, method, timeout_s)


@pytest.mark.parametrize("is_cut", [False, True], ids=["crashed", "cut off"])
def test_copy_that_nobody_leads(is_cut: bool) -> None:
    for timeout_s, after_s in CASES_S:
        with Simulation(32, peers=3, classes=CLASSES) as sim:
            counter = counter_led_by(sim, LEADER)
            method = at(sim, "peer-1", counter).add
            if is_cut:
                cut_off(sim, ["peer-1"])
            else:
                sim.crash(LEADER)
                sim.crash("peer-3")
            sim.run(after_s)

            refused_in_time(sim, method, timeout_s)


@pytest.mark.parametrize("is_direct", [True, False], ids=["sent on", "forwarded"])
def test_copy_that_nobody_leads_is_asked_by_another_peer(is_direct: bool) -> None:
    for timeout_s, after_s in CASES_S:
        with Simulation(33, peers=4, classes=CLASSES) as sim:
            counter = counter_led_by(sim, LEADER)
            third = stranger(sim, counter)
            copy = next(one for one in holders(sim, counter) if one != LEADER)
            method = at(sim, third, counter).add.options(direct=is_direct)
            cut_off(sim, [third, copy])
            sim.run(after_s)

            refused_in_time(sim, method, timeout_s)


def test_peer_without_a_copy_is_alone() -> None:
    for timeout_s, after_s in CASES_S:
        with Simulation(34, peers=4, classes=CLASSES) as sim:
            counter = counter_led_by(sim, LEADER)
            third = stranger(sim, counter)
            method = at(sim, third, counter).add
            cut_off(sim, [third])
            sim.run(after_s)

            refused_in_time(sim, method, timeout_s)


def test_futures_are_told_too() -> None:
    with Simulation(35, peers=3, classes=CLASSES) as sim:
        method = at(sim, "peer-1", counter_led_by(sim, LEADER)).add
        cut_off(sim, ["peer-1"])
        begin_s = sim.now_s
        futures = [(one, method.options(timeout_s=one).submit()) for one in TIMEOUTS_S]

        for timeout_s, future in futures:
            with pytest.raises(NoQuorumError):
                future.result()
            assert sim.now_s - begin_s <= timeout_s


def test_deadline_of_a_slow_method_is_no_missing_majority() -> None:
    """The peer that runs it answers nothing of it, and is there."""
    runs = {"Counter.add_slowly": Latency(30.0, 30.0), "*": Latency(0.0001, 0.0002)}
    slow = PeerSettings(executor=ExecutorSpeed(runs=runs))
    for timeout_s in (1.5, *TIMEOUTS_S):
        with Simulation(36, peers=4, classes=CLASSES, settings=slow) as sim:
            counter = counter_led_by(sim, LEADER)
            method = at(sim, stranger(sim, counter), counter).add_slowly
            begin_s = sim.now_s

            for direct in (True, False):
                with pytest.raises(DeadlineExceededError):
                    method.options(timeout_s=timeout_s, direct=direct)()
            assert sim.now_s - begin_s < 2 * timeout_s + 1.0


def test_request_that_was_refused_at_its_deadline_does_not_run_later() -> None:
    """It waited, unsent, for somebody to lead; nobody needs to read before a retry."""
    with Simulation(37, peers=3, classes=CLASSES) as sim:
        counter = counter_led_by(sim, LEADER)
        client = at(sim, "peer-1", counter)
        sim.crash(LEADER)
        sim.crash("peer-3")
        sim.run(20.0)
        refused_in_time(sim, client.add, 2.0)
        sim.restart(LEADER)
        sim.restart("peer-3")
        sim.run(60.0)

        assert client.peek() == 1


def test_how_often_one_is_looked_at_does_not_grow_with_those_that_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each has a deadline of its own: were all looked at then, it were their square."""
    looked: Tally[int] = Tally()
    moved_s = Relays._moved_s

    def count(relays: Relays, trip: Trip) -> float:
        looked[trip.sequence] += 1
        return moved_s(relays, trip)

    calls_count, first_s, within_s = 300, 4.0, 2.0
    with Simulation(38, peers=4, classes=CLASSES) as sim:
        counter = counter_led_by(sim, LEADER)
        third = stranger(sim, counter)
        method = at(sim, third, counter).add
        cut_off(sim, [third])
        monkeypatch.setattr(Relays, "_moved_s", count)
        begin_s = sim.now_s
        waits_s = [first_s + within_s * n / calls_count for n in range(calls_count)]
        futures = [(one, method.options(timeout_s=one).submit()) for one in waits_s]

        for timeout_s, future in futures:
            with pytest.raises(NoQuorumError):
                future.result()
            assert sim.now_s - begin_s <= timeout_s

    assert len(looked) >= calls_count
    # At most three steps of a look, and one at its deadline.
    assert max(looked.values()) <= 4 * ((first_s + within_s) / LOOK_S + 2)


def test_read_that_is_refused_at_its_deadline_is_not_said_to_have_changed() -> None:
    with Simulation(33, peers=4, classes=CLASSES) as sim:
        counter = counter_led_by(sim, LEADER)
        peer = stranger(sim, counter)
        read = at(sim, peer, counter).peek.options(timeout_s=3.0)
        cut_off(sim, [peer])

        with pytest.raises(NoQuorumError, match="changed, unless it is readonly, may"):
            read()


@pytest.mark.parametrize("asked_at", ["member", "stranger"])
@pytest.mark.parametrize("copies", [2, 3])
def test_where_an_object_is_that_nobody_leads_is_told_at_once(
    copies: int, asked_at: str
) -> None:
    """What a copy knows: where it would be asked for its leader nobody is named."""
    with Simulation(34, peers=4, classes=CLASSES) as sim:
        join(sim)
        counter = sim.client(LEADER).create(COUNTER, replicas=copies)
        assert counter.add() == 1
        sim.run(CALM_S)
        names = holders(sim, id_of(counter))
        gone = [LEADER, *sorted({*names} - {LEADER})][: copies - 1]
        peers = (
            set(names) - {*gone} if asked_at == "member" else {*sim.peers} - {*names}
        )
        for name in gone:
            sim.crash(name)
        sim.run(20.0)
        client = sim.client(*sorted(peers)[:1], *gone)
        begin_s = sim.now_s

        found = client.locate(id_of(counter))
        located_s = sim.now_s - begin_s
        with pytest.raises(NoQuorumError, match="voters answer"):
            client.request("show", object_id=id_of(counter))

        assert (found["peer"], found["peer_id"], found["endpoint"]) == ("", b"", "")
        assert found["version"] == 2
        assert located_s < 1.0
        assert sim.now_s - begin_s < 4.0


def test_question_about_an_object_whose_peers_are_all_gone_ends_at_once() -> None:
    with Simulation(35, peers=6, classes=CLASSES) as sim:
        counter = counter_led_by(sim, LEADER)
        gone = holders(sim, counter)
        client = sim.client(*sorted(set(sim.peers) - set(gone)))
        assert client.locate(counter)["peer"] == LEADER
        for name in gone:
            sim.crash(name)
        sim.run(60.0)
        begin_s = sim.now_s

        with pytest.raises(UnavailableError, match="does not answer"):
            client.locate(counter)

        assert sim.now_s - begin_s < 4.0


@pytest.mark.parametrize("timeout_s", [0.3, 0.5, 0.75, 1.0, 1.5, 2.0])
def test_leader_that_was_asked_directly_and_is_not_heard(timeout_s: float) -> None:
    """The peer beside the client knows what to say, in what is left of the deadline."""
    with Simulation(36, peers=4, classes=CLASSES) as sim:
        object_id = counter_led_by(sim, LEADER)
        peer = next(name for name in holders(sim, object_id) if name != LEADER)
        counter = at(sim, peer, object_id)
        assert [counter.add(), counter.add()] == [2, 3], "the second goes directly"
        cut_off(sim, [peer])

        for _ in range(3):
            refused_in_time(sim, counter.add, timeout_s)

        sim.heal()
        sim.run(CALM_S)
        assert counter.add() in range(4, 8)
