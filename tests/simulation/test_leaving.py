"""What a peer that is being drained says of itself, and which moves are none."""

from __future__ import annotations

import contextlib

import pytest

from activestore import remote
from activestore.errors import CancelledError, InvalidRequestError
from activestore.testing import SimClient, Simulation
from tests.simulation.clusters import join
from tests.simulation.models import Counter

COUNTER = "tests.simulation.models.Counter"
# One way: a move takes several of these, so that the drain can be looked at.
SLOW_S = 0.2


def cluster() -> Simulation:
    sim = Simulation(11, peers=2, classes=[Counter])
    join(sim)
    return sim


def drain(asking: SimClient) -> None:
    """Drain a client's peer; the client, or the peer, is gone before the answer."""
    with contextlib.suppress(CancelledError):
        asking.request("drain", peer_id=asking.request("status")["peer_id"])


def test_peer_says_that_it_empties() -> None:
    with cluster() as sim:
        asking, beside = sim.client("peer-1"), sim.client("peer-1")
        asking.create(COUNTER)
        before = beside.request("status")["state"]
        sim.set_link("peer-1", "peer-2", min_s=SLOW_S, mean_s=SLOW_S)

        sim.spawn(drain, asking)
        sim.run(SLOW_S)

        assert (before, beside.request("status")["state"]) == ("serving", "emptying")


@pytest.mark.parametrize("operation", ["drain", "stop"])
def test_next_peer_does_not_end_in_place_of_the_one_that_was_meant(
    operation: str,
) -> None:
    """A client whose peer died before it answered asked the next one, which ended too."""
    with cluster() as sim:
        made = sim.client("peer-2").create(COUNTER)
        asking = sim.client("peer-1", "peer-2")
        meant = asking.request("status")["peer_id"]

        sim.partition("peer-1", "client-2", one_way=True)  # Its answer does not come.
        with pytest.raises(InvalidRequestError, match="where nothing was done"):
            asking.request(operation, peer_id=meant)

        sim.run(30.0)
        assert not sim.peers["peer-1"].is_up
        assert made.peek() == 0


def test_drain_goes_on_when_whoever_asked_for_it_has_gone() -> None:
    """So Ctrl-C says, which ends only the waiting."""
    with cluster() as sim:
        asking = sim.client("peer-1")
        made = asking.create(COUNTER)
        sim.set_link("peer-1", "peer-2", min_s=SLOW_S, mean_s=SLOW_S)

        sim.spawn(drain, asking)
        sim.run(SLOW_S)
        asking.crash()

        assert sim.run_until(lambda: not sim.peers["peer-1"].is_up, timeout_s=60.0)
        assert sim.client("peer-2").get(remote.id_of(made)).peek() == 0


def test_move_to_where_the_object_is_says_so() -> None:
    with cluster() as sim:
        object_id = remote.id_of(sim.client("peer-1").create(COUNTER))
        client = sim.client("peer-2")

        answers = [
            client.request("move", object_id=object_id, peer=name)
            for name in ("peer-1", "peer-2", "peer-2")
        ]

        assert answers == [False, None, False]
