"""A simulated cluster with counters that move, and what must hold of it at any time.

Rules of this file: what is asserted here holds after every turn of every peer, whatever
has gone wrong before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from activestore import remote
from activestore.errors import ActiveStoreError
from activestore.ids import ObjectId
from activestore.testing import Faults, Simulation
from activestore.testing.peers import SimPeer

COUNTER = "tests.simulation.models.Counter"
# Peers find each other within this, in simulated seconds.
JOIN_S = 60.0
# What is halfway is over within this once all is well: a peer that was away is dialled
# again after up to 30 s, and what it then says takes a second each time.
SETTLE_S = 120.0

# What goes wrong in a history, by its name.
CASES = {
    "calm": Faults(),
    "crashing": Faults(crashes_per_s=0.6, executor_crashes_per_s=0.3),
    "connecting": Faults(breaks_per_s=3.0, partitions_per_s=0.5, partition_s=3.0),
    "standing_still": Faults(pauses_per_s=0.6, pause_s=2.0),
    "everything": Faults(
        crashes_per_s=0.3, pauses_per_s=0.3, breaks_per_s=1.0, partitions_per_s=0.3,
        executor_crashes_per_s=0.2, refused_commits_per_s=0.3,
    ),
}  # fmt: skip


def has_object(peer: SimPeer, object_id: ObjectId) -> bool:
    """Return whether an object lies on a peer's disk as what it is, no staged copy."""
    engine = peer.engine
    return (
        engine.head(object_id) is not None and engine.row("staged", object_id) is None
    )


class Owners:
    """A check of a simulation: who is the owner of what, at most one at a time."""

    def __init__(self, sim: Simulation, object_ids: Sequence[ObjectId]) -> None:
        self._sim = sim
        self._object_ids = object_ids
        self._owner: dict[ObjectId, SimPeer] = {}
        sim.checks.append(self.look)

    def look(self, peer: SimPeer) -> None:
        """Compare what a peer claims after its turn with what others do.

        Who is down or paused keeps what it owned: it gives nothing away meanwhile.
        """
        location = peer.loop.location
        location.check()
        for object_id in self._object_ids:
            owner = self._owner.get(object_id)
            if not location.is_here(object_id):
                if owner is peer:
                    del self._owner[object_id]
                continue
            assert object_id not in location.staged, "a staged copy is no object"
            if owner is not None and owner is not peer:
                is_over = owner.is_up and not owner.loop.location.is_here(object_id)
                assert is_over, (
                    f"{object_id.hex()} is at {owner.name} and at {peer.name}"
                )
            self._owner[object_id] = peer


class Player:
    """A client's program: adds to counters, and what became of it."""

    def __init__(
        self, sim: Simulation, peers: Sequence[str], object_ids: Sequence[ObjectId],
        *, is_direct: bool = True,
    ) -> None:  # fmt: skip
        self.sim = sim
        self.client = sim.client(*peers)
        self.values: dict[ObjectId, list[int]] = {one: [] for one in object_ids}
        self.unsure: dict[ObjectId, int] = dict.fromkeys(object_ids, 0)
        self.errors: list[ActiveStoreError] = []
        self._adds: dict[ObjectId, Callable[[int], int]] = {}
        for object_id in object_ids:
            method = self.client.get(object_id).add
            self._adds[object_id] = (
                method if is_direct else method.options(direct=False)
            )

    def play(self, calls: int, pause_s: float) -> None:
        """Add now and then; what raised may have counted, or not."""
        rng = self.sim.rng
        for _ in range(calls):
            self.sim.sleep(rng.expovariate(1.0 / pause_s))
            object_id = rng.choice(list(self._adds))
            self.add(object_id)

    def add(self, object_id: ObjectId) -> None:
        """Add once."""
        try:
            self.values[object_id].append(self._adds[object_id](1))
        except ActiveStoreError as error:
            self.unsure[object_id] += 1
            self.errors.append(error)


class Mover:
    """A client's program: moves objects about."""

    def __init__(
        self, sim: Simulation, peers: Sequence[str], object_ids: Sequence[ObjectId],
        targets: Sequence[str],
    ) -> None:  # fmt: skip
        self.sim = sim
        self.client = sim.client(*peers)
        self.object_ids = object_ids
        self.targets = targets
        self.done_count = 0
        self.errors: list[ActiveStoreError] = []

    def play(self, moves: int, pause_s: float) -> None:
        """Move something somewhere now and then; it may be refused."""
        rng = self.sim.rng
        for _ in range(moves):
            self.sim.sleep(rng.expovariate(1.0 / pause_s))
            object_id, target = rng.choice(self.object_ids), rng.choice(self.targets)
            try:
                self.client.move(object_id, target)
            except ActiveStoreError as error:
                self.errors.append(error)
            else:
                self.done_count += 1


def join(sim: Simulation) -> None:
    """Let peers find each other.

    Raises:
        AssertionError: they did not in time.
    """
    peers = sim.peers.values()

    def is_joined() -> bool:
        return all(len(p.loop.cluster.alive()) == len(peers) - 1 for p in peers)

    assert sim.run_until(is_joined, timeout_s=JOIN_S), (
        "the peers do not find each other"
    )


def make_counters(sim: Simulation, homes: Sequence[str]) -> list[ObjectId]:
    """Make a counter at each of these peers."""
    made = []
    for home in homes:
        with sim.client(home) as maker:
            object_id = remote.id_of(maker.create(COUNTER))
            assert object_id is not None
            made.append(object_id)
    return made


def settle(sim: Simulation) -> None:
    """Let time pass until no move is halfway, all peers being up and nothing cut.

    Raises:
        AssertionError: something stays halfway.
    """
    peers = sim.peers.values()

    def is_settled() -> bool:
        return all(peer.loop.moving.is_idle for peer in peers)

    assert sim.run_until(is_settled, timeout_s=SETTLE_S), [
        (peer.name, peer.loop.location.staged) for peer in peers
        if not peer.loop.moving.is_idle
    ]  # fmt: skip


def check_counts(
    sim: Simulation, players: Sequence[Player], object_ids: Sequence[ObjectId],
    readers: Sequence[str],
) -> None:  # fmt: skip
    """Assert one owner and an exact count of each object, read through each peer."""
    join(sim)
    settle(sim)
    clients = [sim.client(name) for name in readers]
    for object_id in object_ids:
        owners = [p.name for p in sim.peers.values() if has_object(p, object_id)]
        assert len(owners) == 1, f"{object_id.hex()} is at {owners}"
        values = [v for player in players for v in player.values[object_id]]
        unsure = sum(player.unsure[object_id] for player in players)
        assert len(set(values)) == len(values), "two adds returned the same"
        counts = {client.get(object_id).peek() for client in clients}
        assert len(counts) == 1, counts
        (count,) = counts
        assert len(values) <= count <= len(values) + unsure, (
            f"{object_id.hex()} counts {count}: {len(values)} acknowledged, {unsure} unsure"
        )
    for client in clients:
        client.close()
