"""What peers of a cluster tell their operators: clocks that differ, names given twice."""

from __future__ import annotations

from typing import Any

from activestore.core.troubles import CLOCK_OFF_S
from activestore.peer.links import CLOCK_AGAIN_S, JOIN_S
from activestore.testing import Simulation
from tests.simulation.models import Counter


def troubles_of(sim: Simulation, name: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the troubles in a peer's `status`, by kind and what they are about."""
    rows = sim.peers[name].loop.cluster.troubles()
    return {(row["kind"], row["about"]): row for row in rows}


def title_of(sim: Simulation, name: str) -> str:
    return f"peer {name} {sim.peers[name].peer_id.hex()}"


def test_clock_that_is_an_hour_off_is_told_at_both_ends_until_it_is_set() -> None:
    with Simulation(3, peers=3, classes=[Counter]) as sim:
        one, two, three = sim.peers
        sim.set_clock(two, skew_s=3600.0)
        sim.run(60.0)

        (told,) = troubles_of(sim, one).items()
        assert told[0] == ("clock", title_of(sim, two))
        assert f"{two} differs by 3,600 s: it is ahead of" in told[1]["reason"]
        assert ("clock", title_of(sim, two)) in troubles_of(sim, three)
        about_others = troubles_of(sim, two)
        assert set(about_others) == {("clock", title_of(sim, n)) for n in (one, three)}
        assert all("behind" in row["reason"] for row in about_others.values())

        sim.set_clock(two)
        sim.run(2 * CLOCK_AGAIN_S)

        assert not [key for name in sim.peers for key in troubles_of(sim, name)]


def test_peer_that_stood_still_while_it_was_asked_has_no_wrong_clock() -> None:
    with Simulation(4, peers=2, classes=[Counter]) as sim:
        one, two = sim.peers
        sim.run(10.0)
        link = next(sim.peers[one].loop.links.up())
        asked_before_s, link.clock_due_s = link.asked_wall_s, 0.0
        sim.pause(two)
        sim.run(CLOCK_OFF_S + 1.0)
        assert link.asked_wall_s > asked_before_s, "its clock was asked for meanwhile"
        sim.resume(two)
        sim.run(5.0)

        assert link.asked_wall_s < sim.peers[one].clock.wall_s() - CLOCK_OFF_S
        assert link in sim.peers[one].loop.links.up()
        assert not troubles_of(sim, one)


def test_address_that_nobody_answers_at_is_told_until_it_is_joined() -> None:
    with Simulation(5, peers=2, classes=[Counter]) as sim:
        one, two = sim.peers
        sim.crash(one)
        sim.crash(two)
        sim.restart(two)
        sim.run(JOIN_S + 2.0)

        (join,) = troubles_of(sim, two)
        assert join == ("join", sim.peers[one].endpoint)

        sim.restart(one)
        sim.run(60.0)

        assert not troubles_of(sim, two)
