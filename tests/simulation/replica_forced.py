"""Objects that an operator forces at one peer while the others go on without it.

What was acknowledged is in the object, or in a quarantined copy that can be exported;
only `force` makes the second out of the first. Each mark is in each copy once at most.

Rules of this file: what a client was told, and what disks have at that moment, is the
truth; nothing is asked of a peer that it could be wrong about.

Source: design section 8; reliability.md 3.8 (two copies), decision 11 (lineages).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from activestore.client.exporting import unpacked
from activestore.errors import ActiveStoreError
from activestore.ids import ObjectId
from activestore.testing import Simulation
from activestore.testing.peers import SimPeer
from activestore.wire import values
from activestore.wire.state import ObjectState
from tests.simulation.replica_clusters import WHOLE_S, leaders, register_at

LEDGER = "tests.simulation.models.Ledger"


def marks_of(state: ObjectState | None) -> list[int]:
    """Return what a copy has, in order."""
    if state is None:
        return []
    return [int(mark) for mark in values.decode(state.fields["marks"]).split(",")[:-1]]


def marks_at(peer: SimPeer, object_id: ObjectId) -> list[int]:
    """Return what lies on a peer's disk."""
    found = peer.engine.load(object_id)
    return [] if found is None else marks_of(found[1])


class Marks:
    """What all clients together know of the ledgers, and which copies are history."""

    def __init__(self, sim: Simulation, object_ids: Sequence[ObjectId]) -> None:
        self.sim = sim
        self.object_ids = object_ids
        self.last = 0
        # Of what was acknowledged: the lineages of the copies that had it then.
        self.sure: dict[tuple[ObjectId, int], set[int]] = {}
        # Since when a copy of a peer is quarantined.
        self.since_s: dict[tuple[str, ObjectId], float] = {}
        sim.checks.append(self._look)

    def _look(self, peer: SimPeer) -> None:
        registers = peer.loop.replicating.core.registers
        for object_id in self.object_ids:
            register = registers.get(object_id)
            if register is not None and register.is_quarantined:
                self.since_s.setdefault((peer.name, object_id), self.sim.now_s)

    def kept(self, object_id: ObjectId, mark: int) -> None:
        """A mark was acknowledged."""
        lineages = set()
        for peer in self.sim.peers.values():
            register = register_at(peer, object_id)
            if register is not None and mark in marks_at(peer, object_id):
                lineages.add(register.config.lineage)
        assert lineages, f"{mark} was acknowledged and is nowhere"
        self.sure[object_id, mark] = lineages

    def answered(self, object_id: ObjectId, peer: str, asked_s: float) -> None:
        """A read was answered by a peer."""
        since_s = self.since_s.get((peer, object_id), asked_s)
        assert since_s >= asked_s, (
            f"{peer} answered what was asked at {asked_s:.3f} s; its copy is quarantined "
            f"since {since_s:.3f} s"
        )

    def check_end(self) -> None:
        """Assert that all is there that was acknowledged; have operators clear up."""
        for object_id in self.object_ids:
            self._wait_for_one(object_id)
            self._restart_history(object_id)
            (leader,) = leaders(self.sim, object_id)
            register = register_at(leader, object_id)
            lineage = 0 if register is None else register.config.lineage
            copies = [(lineage, marks_at(leader, object_id))]
            copies += self._exported(object_id)
            for _, marks in copies:
                assert len(set(marks)) == len(marks), f"a mark is there twice: {marks}"
            for (one, mark), lineages in self.sure.items():
                assert one != object_id or any(
                    # Who is forced again goes on with what it has, in a higher lineage.
                    mark in marks
                    for known, marks in copies
                    if known >= min(lineages)
                ), f"{mark} of lineages {lineages} is in none of {copies}"

    def _restart_history(self, object_id: ObjectId) -> None:
        """Have those alone whose copies are quarantined: they lead nothing again."""
        old = [
            name
            for name, peer in self.sim.peers.items()
            if (register := register_at(peer, object_id)) and register.is_quarantined
        ]
        others = [name for name in self.sim.peers if name not in old]
        if not old:
            return
        for name in others:
            self.sim.crash(name)
        for name in old:
            self.sim.restart(name)
        self.sim.run(10.0)
        cores = [self.sim.peers[name].loop.replicating.core for name in old]
        assert not any(core.is_led(object_id) for core in cores), (
            f"a copy that is quarantined is led again: {object_id.hex()}"
        )
        for name in others:
            self.sim.restart(name)
        self._wait_for_one(object_id)

    def _wait_for_one(self, object_id: ObjectId) -> None:
        """Let time pass until all but one lineage are quarantined."""

        def living() -> set[int]:
            return {
                register.config.lineage
                for peer in self.sim.peers.values()
                if (register := register_at(peer, object_id)) is not None
                and not register.is_quarantined
            }

        def is_one() -> bool:
            return len(living()) <= 1 and len(leaders(self.sim, object_id)) == 1

        end_s = self.sim.now_s + WHOLE_S
        while not is_one() and self.sim.now_s < end_s:
            self.sim.run(1.0)
        assert is_one(), (object_id.hex(), living(), leaders(self.sim, object_id))

    def _exported(self, object_id: ObjectId) -> Iterator[tuple[int, list[int]]]:
        """Yield the quarantined copies as they are exported; they are discarded then."""
        for name, peer in self.sim.peers.items():
            register = register_at(peer, object_id)
            if register is None or not register.is_quarantined:
                continue
            if not register.has_state:
                self.sim.client(name).discard(object_id)
                continue
            client = self.sim.client(name)
            exported = unpacked(client.export(object_id))
            marks = marks_of(exported.named.state)
            assert exported.about["is_quarantined"]
            assert marks == marks_at(peer, object_id)
            client.discard(object_id)
            self.since_s.pop((name, object_id), None)
            yield exported.about["lineage"], marks


class Scribe:
    """A client's program that puts marks into ledgers and reads them."""

    def __init__(self, marks: Marks, peers: Sequence[str], stale_s: float) -> None:
        self.marks = marks
        self.sim = marks.sim
        self.client = self.sim.client(*peers)
        self.stale_s = stale_s
        self.errors: list[ActiveStoreError] = []

    def play(self, calls: int, pause_s: float) -> None:
        """Put or read something now and then."""
        rng = self.sim.rng
        for _ in range(calls):
            self.sim.sleep(rng.expovariate(1.0 / pause_s))
            object_id = rng.choice(self.marks.object_ids)
            try:
                self._call(object_id, rng.random())
            except ActiveStoreError as error:
                self.errors.append(error)

    def _call(self, object_id: ObjectId, chance: float) -> None:
        ledger = self.client.get(object_id)
        if chance < 0.6:
            self.marks.last += 1
            mark = self.marks.last
            ledger.put(mark)
            self.marks.kept(object_id, mark)
            return
        asked_s = self.sim.now_s
        options = {"staleness_s": self.stale_s} if self.stale_s else {}
        seen, info = ledger.read.options(**options).with_info()
        assert len(set(seen)) == len(seen), f"a mark is there twice: {seen}"
        self.marks.answered(object_id, info.peer, asked_s)


class Forcer:
    """An operator's program: has some peer's copy be the object, whatever the others do."""

    def __init__(self, sim: Simulation, object_ids: Sequence[ObjectId]) -> None:
        self.sim = sim
        self.object_ids = object_ids
        self.clients = [sim.client(name) for name in sim.peers]
        self.forced_count = 0

    def play(self, orders: int, pause_s: float) -> None:
        """Force something now and then; it may be refused."""
        for _ in range(orders):
            self.sim.sleep(self.sim.rng.expovariate(1.0 / pause_s))
            client = self.sim.rng.choice(self.clients)
            try:
                client.force(
                    self.sim.rng.choice(self.object_ids),
                    even_though_majority_answers=True,
                )
            except ActiveStoreError:
                continue
            self.forced_count += 1
