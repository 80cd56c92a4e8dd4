"""Calls that another peer answers: long ones, lost answers, peers that die or stand still.

The client hears of such a call only what is passed on to it.

Source: design section 5, "Two different bounds"; schemas/protocol.md section 10.
"""

from __future__ import annotations

from typing import Any

import pytest

from activestore import remote
from activestore.client.passing import PASS_S
from activestore.errors import UnavailableError
from activestore.peer.relays import UNNAMED_S
from activestore.testing import ExecutorSpeed, Latency, PeerSettings, Simulation
from activestore.wire import messages
from tests.simulation.clusters import join
from tests.simulation.models import Counter, Relay

COUNTER = "tests.simulation.models.Counter"
LONG_S = 60.0
SILENCE_S = 6.0
# Three attempts, each as long as silence lasts, and the pauses between them.
ENDS_S_MAX = 3 * SILENCE_S + 5.0


def simulation(peers: int = 2) -> Simulation:
    runs = {"*": Latency(0.001, 0.001), "add_slowly": Latency(LONG_S, LONG_S)}
    settings = PeerSettings(executor=ExecutorSpeed(runs=runs))
    return Simulation(1, peers=peers, classes=[Counter, Relay], settings=settings)


def counter_at(sim: Simulation, peer: str) -> Any:
    """Return a counter of a peer, as a client of the first one sees it."""
    join(sim)
    with sim.client(peer) as maker:
        object_id = remote.id_of(maker.create(COUNTER))
    return sim.client("peer-1", timeout_s=SILENCE_S).get(object_id)


def slowly(counter: Any) -> Any:
    """Return a future of a long call that is passed on to the counter's peer."""
    return counter.add_slowly.options(direct=False).submit()


def lose_next(sim: Simulation, peer: str, kind: type) -> list[Any]:
    """Have a peer lose the next message of a kind that it would relay back."""
    loop = sim.peers[peer].loop
    tell = loop.tell
    lost: list[Any] = []

    def tell_or_lose(session: Any, message: Any) -> None:
        if type(message) is kind and session.is_relayed and not lost:
            lost.append(message)
        else:
            tell(session, message)

    loop.tell = tell_or_lose  # type: ignore[method-assign]
    return lost


def test_long_call_through_another_peer_is_not_silent() -> None:
    with simulation() as sim:
        counter = counter_at(sim, "peer-2")

        assert slowly(counter).result() == 1

        assert sim.now_s > LONG_S


def test_peer_of_a_relayed_call_dies_and_the_client_is_told() -> None:
    with simulation() as sim:
        future = slowly(counter_at(sim, "peer-2"))
        sim.run(5.0)
        sim.crash("peer-2")
        died_s = sim.now_s

        with pytest.raises(UnavailableError):
            future.result()

        assert sim.now_s - died_s < ENDS_S_MAX


@pytest.mark.parametrize("paused", [["peer-2"], ["peer-1", "peer-2"]])
def test_peer_that_stands_still_is_silence(paused: list[str]) -> None:
    with simulation() as sim:
        future = slowly(counter_at(sim, "peer-2"))
        sim.run(5.0)
        for name in paused:
            sim.pause(name)
        stood_s = sim.now_s

        with pytest.raises(UnavailableError):
            future.result()

        assert sim.now_s - stood_s < ENDS_S_MAX


def test_peer_between_stands_still_and_the_client_goes_on_with_the_other() -> None:
    with simulation() as sim:
        future = slowly(counter_at(sim, "peer-2"))
        sim.run(5.0)
        sim.pause("peer-1")

        assert future.result() == 1

        assert sim.now_s < LONG_S + ENDS_S_MAX


def test_lost_answer_to_a_relayed_call_is_asked_for_by_another_peer() -> None:
    with simulation() as sim:
        counter = counter_at(sim, "peer-2")
        lost = lose_next(sim, "peer-2", messages.Reply)
        began_s = sim.now_s

        assert counter.add.options(direct=False)(1) == 1

        assert lost
        assert sim.now_s - began_s < PASS_S + 1.0
        assert counter.peek() == 1


def test_lost_answer_is_asked_for_again_where_the_client_reaches_no_other_peer() -> (
    None
):
    with simulation() as sim:
        counter = counter_at(sim, "peer-2")
        sim.partition(sim.clients[-1].name, "peer-2")
        lost = lose_next(sim, "peer-2", messages.Reply)
        began_s = sim.now_s

        assert counter.add.options(direct=False)(1) == 1

        assert lost
        assert sim.now_s - began_s < SILENCE_S


def test_lost_answer_to_a_call_of_a_method_is_asked_for_again() -> None:
    """Nobody is silent here: the outer call's beats go on."""
    with simulation() as sim:
        counter = counter_at(sim, "peer-2")
        relay = sim.create("tests.simulation.models.Relay", counter)
        lost = lose_next(sim, "peer-2", messages.Reply)
        began_s = sim.now_s

        assert relay.add(1) == 1

        assert lost
        assert sim.now_s - began_s < UNNAMED_S + 2.0
        assert counter.peek() == 1


def test_stream_whose_end_was_lost_ends() -> None:
    with simulation() as sim:
        counter = counter_at(sim, "peer-2")
        lose_next(sim, "peer-2", messages.Reply)

        with pytest.raises(UnavailableError):
            list(counter.numbers.options(direct=False).stream(3))

        assert counter.peek() == 3


def test_move_asked_for_at_another_peer_waits_for_what_runs() -> None:
    """It was given up after 10 s, as if the peer that has the object could not be reached."""
    with simulation(3) as sim:
        counter = counter_at(sim, "peer-2")
        future = slowly(counter)
        sim.run(1.0)

        sim.client("peer-1").move(counter, "peer-3")

        assert sim.now_s > LONG_S
        assert future.result() == 1
        assert counter.peek() == 1
