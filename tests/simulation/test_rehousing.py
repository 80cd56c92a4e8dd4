"""Objects with replicas are moved and drained: copies go elsewhere, and no call is lost.

Source: design section 8; reliability.md 3.4 R8.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from activestore import remote
from activestore.errors import (
    InvalidRequestError,
    ObjectNotFoundError,
    RequirementError,
    UnavailableError,
)
from activestore.ids import ObjectId
from activestore.testing import Simulation
from tests.simulation.clusters import COUNTER, Player, join
from tests.simulation.models import Counter
from tests.simulation.test_candidates import LARGE, Large

LEADER = "peer-1"


class Copies:
    """A counter with copies, and a client that adds to it all the time."""

    def __init__(self, sim: Simulation, **wanted: Any) -> None:
        join(sim)
        self.sim = sim
        created = sim.client(LEADER).create(COUNTER, alias="hits", **wanted)
        self.object_id: ObjectId = remote.id_of(created)
        sim.run(3.0)

    def config(self) -> Any:
        """Return the group as its leader knows it."""
        (name,) = self.led_by()
        core = self.sim.peers[name].loop.replicating.core
        register = core.register_of(self.object_id)
        return None if register is None else register.config

    def members(self) -> set[str]:
        names = {peer.disk.peer_id: name for name, peer in self.sim.peers.items()}
        config = self.config()
        return set(self.led_by()) if config is None else {
            names[one] for one in config.members
        }  # fmt: skip

    def led_by(self) -> list[str]:
        return [
            peer.name
            for peer in self.sim.peers.values()
            if peer.is_up and peer.loop.location.is_here(self.object_id)
        ]

    def on_disk(self) -> set[str]:
        return {
            peer.name
            for peer in self.sim.peers.values()
            if peer.is_up and peer.engine.head(self.object_id) is not None
        }

    def stranger(self) -> str:
        return next(name for name in self.sim.peers if name not in self.members())

    def beside(self, change: Callable[[], None]) -> None:
        """Change something while calls come, and look that each counted once."""
        player = Player(self.sim, ["peer-5"], [self.object_id])
        task = self.sim.spawn(player.play, 60, 0.02)
        self.sim.run(0.3)
        change()
        assert self.sim.run_until(lambda: task.is_over, timeout_s=60.0)
        assert player.errors == []
        assert player.values[self.object_id] == list(range(1, 61))
        self.sim.run(3.0)


def test_move_to_a_member_has_that_one_lead() -> None:
    with Simulation(1, peers=5, classes=[Counter]) as sim:
        copies = Copies(sim, replicas=3)
        before = copies.members()
        target = sorted(before - {LEADER})[0]

        copies.beside(lambda: sim.client("peer-5").move("hits", target))

        assert copies.led_by() == [target]
        assert copies.members() == before == copies.on_disk()


def test_move_to_another_peer_makes_a_copy_there_in_place_of_the_leaders() -> None:
    with Simulation(2, peers=5, classes=[Counter]) as sim:
        copies = Copies(sim, replicas=3)
        before, target = copies.members(), copies.stranger()

        copies.beside(lambda: sim.client("peer-5").move("hits", target))

        assert copies.led_by() == [target]
        assert copies.members() == before - {LEADER} | {target}
        assert copies.on_disk() == copies.members()
        assert sim.client(LEADER).get("hits").peek() == 60


def test_home_without_a_copy_any_more_knows_after_a_restart_who_leads() -> None:
    with Simulation(8, peers=5, classes=[Counter]) as sim:
        copies = Copies(sim, replicas=3)
        home = sim.peers[LEADER]
        target = copies.stranger()
        others = [name for name in sim.peers if name != LEADER]

        def is_gone() -> bool:
            return home.engine.head(copies.object_id) is None

        sim.spawn(sim.client("peer-5").move, "hits", target)
        assert sim.run_until(is_gone, timeout_s=10.0)
        sim.crash(LEADER)
        sim.partition([LEADER], others)
        sim.restart(LEADER)

        assert not home.loop.location.is_here(copies.object_id)
        with pytest.raises(UnavailableError):
            sim.client(LEADER, timeout_s=3.0).get(copies.object_id).peek()
        sim.heal()
        sim.run(15.0)
        assert sim.client(LEADER).get(copies.object_id).peek() == 0


def test_home_of_a_deleted_object_says_after_a_restart_that_there_is_none() -> None:
    with Simulation(9, peers=5, classes=[Counter]) as sim:
        copies = Copies(sim, replicas=3)
        target = sorted(copies.members() - {LEADER})[0]
        client = sim.client("peer-5")
        client.move("hits", target)
        sim.run(3.0)  # Its home has on disk who leads it now.

        client.delete(client.get("hits"))
        sim.run(10.0)
        sim.crash(LEADER)
        sim.restart(LEADER)

        assert sim.peers[LEADER].loop.location.is_here(copies.object_id)
        with pytest.raises(ObjectNotFoundError):
            sim.client("peer-5").get(copies.object_id).peek()


def test_move_to_where_no_copy_can_go_changes_nothing() -> None:
    with Simulation(3, peers=5, classes=[Counter]) as sim:
        copies = Copies(sim, replicas=2, witness=True)
        config = copies.config()
        names = {peer.disk.peer_id: name for name, peer in sim.peers.items()}

        with pytest.raises(InvalidRequestError, match="witness"):
            sim.client("peer-5").move("hits", names[config.witness])

        assert copies.led_by() == [LEADER]
        assert copies.config() == config


@pytest.mark.parametrize("is_leader", [True, False], ids=["leader", "follower"])
def test_drained_member_is_replaced(*, is_leader: bool) -> None:
    with Simulation(4, peers=6, classes=[Counter]) as sim:
        copies = Copies(sim, replicas=3)
        before = copies.members()
        leaving = LEADER if is_leader else sorted(before - {LEADER, "peer-5"})[0]

        copies.beside(lambda: drain(sim, leaving))

        assert not sim.peers[leaving].is_up
        assert len(copies.members()) == 3
        assert leaving not in copies.members()
        assert copies.on_disk() == copies.members()


@pytest.mark.parametrize("leaving", ["peer-1", "peer-2"])
def test_drained_member_that_nobody_can_replace_leaves_a_copy_fewer(
    leaving: str,
) -> None:
    with Simulation(5, peers=3, classes=[Counter]) as sim:
        copies = Copies(sim, replicas=3)
        counter = sim.client("peer-3").get("hits")
        assert counter.add(1) == 1

        drain(sim, leaving)
        sim.run(10.0)

        assert not sim.peers[leaving].is_up
        assert counter.add(1) == 2
        assert copies.members() == {"peer-1", "peer-2", "peer-3"} - {leaving}
        assert copies.config().wanted == 3


def test_last_two_peers_of_a_group_can_be_drained_one_after_the_other() -> None:
    with Simulation(6, peers=2, classes=[Counter]) as sim:
        copies = Copies(sim, replicas=2)
        counter = sim.client("peer-2").get("hits")
        assert counter.add(1) == 1

        drain(sim, LEADER)
        sim.run(10.0)

        assert not sim.peers[LEADER].is_up
        assert counter.add(1) == 2
        assert copies.members() == {"peer-2"}
        assert copies.config().wanted == 2


@pytest.mark.parametrize("is_witnessed", [False, True], ids=["two", "witnessed"])
def test_what_is_wanted_outlives_any_number_of_drains(*, is_witnessed: bool) -> None:
    """A group that became one peer forgot how many copies an operator had asked for."""
    with Simulation(6, peers=3, classes=[Counter]) as sim:
        copies = Copies(sim, replicas=2, witness=is_witnessed)
        counter = sim.client("peer-3", "peer-2").get("hits")
        follower = sorted(copies.members() - {LEADER})[0]
        (stays,) = {"peer-2", "peer-3"} - {follower}
        assert counter.add(1) == 1

        drain(sim, LEADER)
        sim.run(10.0)
        drain(sim, follower)
        sim.run(10.0)

        assert counter.add(1) == 2
        assert copies.members() == {stays}
        config = copies.config()
        assert config is not None
        assert (config.wanted, config.wants_witness) == (2, is_witnessed)
        for name in (LEADER, follower):
            sim.restart(name)
        sim.run(330.0)
        assert len(copies.members()) == 2
        assert bool(copies.config().witness) is is_witnessed
        assert counter.add(1) == 3


def test_drained_witness_is_replaced() -> None:
    with Simulation(7, peers=5, classes=[Counter]) as sim:
        copies = Copies(sim, replicas=2, witness=True)
        before = copies.config()
        names = {peer.disk.peer_id: name for name, peer in sim.peers.items()}
        leaving = names[before.witness]

        drain(sim, leaving)
        sim.run(5.0)

        assert not sim.peers[leaving].is_up
        assert copies.config().members == before.members
        assert copies.config().witness not in (b"", before.witness)


def test_drain_that_is_refused_says_what_it_leaves_and_that_is_mended() -> None:
    with Simulation(9, peers=3, classes=[Counter, Large]) as sim:
        copies = Copies(sim, replicas=3)
        client = sim.client("peer-2")
        client.create(LARGE)
        lacking = RequirementError(LARGE, ("memory_mb",))
        for name in ("peer-1", "peer-3"):
            sim.peers[name].loop.classes.missing_for = (  # type: ignore[method-assign]
                lambda name: lacking if name == LARGE else None
            )

        with pytest.raises(UnavailableError) as refused:
            client.request("drain", peer_id=sim.peers["peer-2"].disk.peer_id)

        text = str(refused.value)
        assert "1 objects could not be moved, 1 were; the peer stays: " in text
        assert "of that 1 have a copy fewer, which is made again" in text
        assert copies.members() == {"peer-1", "peer-3"}
        sim.run(330.0)
        assert copies.members() == {"peer-1", "peer-2", "peer-3"}


def drain(sim: Simulation, name: str) -> None:
    """Drain a peer, and wait until it has ended."""
    client = sim.client(name)

    def ask() -> None:
        # It takes its last answer with it: the next peer that is asked says it is not meant.
        with contextlib.suppress(InvalidRequestError):
            client.request("drain", peer_id=sim.peers[name].disk.peer_id)

    sim.spawn(ask)
    assert sim.run_until(lambda: not sim.peers[name].is_up, timeout_s=60.0)
