"""Changes for which the leader's disk has room, and those of other members do not.

Such a change is on the leader's disk when the others refuse it: it is in doubt. Where a
majority without it is there, the members soon go on from the state before it. Where every
majority needs who has it, as of two copies, it waits for room, and the object with it.

Rules of this file: disks refuse for their budgets, as they do in life.

Source: reliability.md 3.4 R3, 4.2; docs/explanation/consistency.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from activestore.errors import NoQuorumError, StorageFullError, UnavailableError
from activestore.testing import Simulation
from activestore.testing.clients import SimClient
from tests.simulation.clusters import join
from tests.simulation.large_models import Shelf
from tests.simulation.replica_clusters import (
    check_nothing_left,
    check_whole,
    id_of,
    leaders,
)

SHELF = f"{Shelf.__module__}.Shelf"
LEADER = "peer-1"
MB = 1_000_000
# What fits into the small budget, the middle one once; and what only into the large one.
SMALL, FITS, TOO_LARGE = MB // 10, 2 * MB, 5 * MB
LARGE_BUDGET, SMALL_BUDGET = 10 * MB, 3 * MB
# So long a call may wait, in seconds; in twice that the members have agreed.
WAIT_S = 30.0


def give_budget(sim: Simulation, name: str, budget_bytes: int) -> None:
    """Start a peer again with another budget of its disk."""
    peer = sim.peers[name]
    peer.settings = peer.settings._replace(disk_budget_bytes=budget_bytes)
    sim.restart(name)


@contextmanager
def shelf_at_small_disks(
    seed: int, copies: int, budget_bytes: int = SMALL_BUDGET
) -> Iterator[tuple[Simulation, SimClient, Any]]:
    """Make an object whose leader alone has a large budget, with a client there."""
    with Simulation(seed, peers=copies, classes=[Shelf]) as sim:
        for name in sim.peers:
            is_large = name == LEADER
            give_budget(sim, name, LARGE_BUDGET if is_large else budget_bytes)
        join(sim)
        client = sim.client(LEADER)
        shelf = client.create(SHELF, FITS, replicas=copies, witness=False)
        sim.run(2.0)
        assert [peer.name for peer in leaders(sim, id_of(shelf))] == [LEADER]
        yield sim, client, shelf


@pytest.mark.parametrize("timeout_s", [3.0, WAIT_S])
@pytest.mark.parametrize("copies", [3, 5])
def test_change_that_a_majority_has_no_room_for_is_given_up(
    copies: int, timeout_s: float
) -> None:
    for seed in (1, 2, 3):
        with shelf_at_small_disks(seed, copies) as (sim, _, shelf):
            began_s = sim.now_s
            with pytest.raises((StorageFullError, NoQuorumError)) as refused:
                shelf.fill.options(timeout_s=timeout_s)(TOO_LARGE)

            assert sim.now_s - began_s <= timeout_s
            assert "storage is full" in str(refused.value)
            assert shelf.size.options(timeout_s=WAIT_S)() == FITS
            assert shelf.fill(SMALL) == FITS
            check_whole(sim, {id_of(shelf): copies})
            check_nothing_left(sim)


@pytest.mark.parametrize("then", ["read", "change", "delete"])
def test_change_that_the_other_of_two_has_no_room_for_is_kept_when_it_has(
    then: str,
) -> None:
    """Both must have what is acknowledged, and neither can tell that nobody has it."""
    with shelf_at_small_disks(1, 2) as (sim, client, shelf):
        calls: dict[str, Callable[[], Any]] = {
            "read": shelf.size,
            "change": lambda: shelf.fill(SMALL),
            "delete": lambda: client.delete(shelf),
        }
        with pytest.raises(NoQuorumError, match="peer-2: its disk is full"):
            shelf.fill(TOO_LARGE)
        for _ in range(2):
            with pytest.raises(NoQuorumError, match="peer-2: its disk is full"):
                calls[then]()
        assert shelf.size.options(staleness_s=600.0)() == FITS
        give_budget(sim, "peer-2", LARGE_BUDGET)
        sim.run(WAIT_S)

        assert shelf.size() == TOO_LARGE
        assert calls[then]() == {"read": TOO_LARGE, "change": TOO_LARGE}.get(then)


def test_change_in_doubt_is_kept_once_other_objects_are_deleted() -> None:
    with shelf_at_small_disks(1, 2, budget_bytes=9 * MB) as (sim, _, shelf):
        other = sim.client("peer-2")
        filler = other.create(SHELF, 3 * MB)
        with pytest.raises(NoQuorumError, match="peer-2: its disk is full"):
            shelf.fill(TOO_LARGE)

        other.delete(filler)
        sim.run(WAIT_S)

        assert shelf.size() == TOO_LARGE
        check_whole(sim, {id_of(shelf): 2})
        check_nothing_left(sim)


def test_change_in_doubt_is_given_up_when_the_third_one_is_back() -> None:
    with shelf_at_small_disks(1, 3) as (sim, _, shelf):
        sim.crash("peer-3")
        with pytest.raises(NoQuorumError, match="peer-2: its disk is full"):
            shelf.fill(TOO_LARGE)

        sim.restart("peer-3")
        sim.run(2 * WAIT_S)

        assert shelf.size() == FITS
        assert shelf.fill(SMALL) == FITS


def test_change_in_doubt_is_given_up_where_the_other_one_is_forced() -> None:
    with shelf_at_small_disks(1, 2) as (sim, _, shelf):
        with pytest.raises(NoQuorumError):
            shelf.fill(TOO_LARGE)
        other = sim.client("peer-2")
        theirs = other.get(id_of(shelf))

        other.force(theirs, even_though_majority_answers=True)
        sim.run(5.0)  # What was to change it waits there, and is refused now.

        assert theirs.size() == FITS
        assert theirs.fill(SMALL) == FITS


def test_move_to_a_member_without_room_is_refused_at_once() -> None:
    with Simulation(4, peers=3, classes=[Shelf]) as sim:
        for name in sim.peers:
            give_budget(sim, name, SMALL_BUDGET if name == "peer-2" else LARGE_BUDGET)
        join(sim)
        client = sim.client(LEADER)
        shelf = client.create(SHELF, FITS, replicas=3, witness=False)
        sim.run(2.0)
        shelf.fill(TOO_LARGE)
        sim.run(2.0)

        began_s = sim.now_s
        with pytest.raises(UnavailableError, match="disk is full"):
            client.move(shelf, "peer-2")

        assert sim.now_s - began_s < 2.0
        client.move(shelf, "peer-3")
        assert shelf.size() == TOO_LARGE
