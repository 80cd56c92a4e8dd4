"""Random histories of whole clusters whose objects have replicas.

What was acknowledged is there once, at every member, whoever died, stood still, was cut
off or lost its disk meanwhile. A failing seed replays by the command that it prints;
`ACTIVESTORE_SEEDS` sets how many histories there are of each kind.

Source: design section 8; reliability.md 3.5; issue 4, "It must hold".
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import pytest

from activestore.ids import ObjectId
from activestore.testing import (
    DiskSpeed,
    ExecutorSpeed,
    Latency,
    LinkQuality,
    PeerSettings,
    Simulation,
    Task,
    seeds,
)
from tests.simulation.clusters import CASES, COUNTER, join
from tests.simulation.models import Counter, Relay
from tests.simulation.replica_clusters import (
    Book,
    Caller,
    Maker,
    Operator,
    Weather,
    check_cores,
    check_nothing_left,
    check_whole,
    id_of,
)

HISTORIES = int(os.environ.get("ACTIVESTORE_SEEDS", "3"))
pytestmark = [pytest.mark.scaled, pytest.mark.slow]

FAULTY_S = 10.0
CALLERS, CALLS, PAUSE_S = 4, 20, 0.4


class Copies(NamedTuple):
    """How many copies an object of a history has."""

    replicas: int
    witness: bool = False

    @property
    def voters(self) -> int:
        return self.replicas + self.witness


GROUPS = (Copies(3), Copies(2, True), Copies(3), Copies(2), Copies(5), Copies(1))


def settings_of(seed: int, *, repair_after_s: float = 600.0) -> PeerSettings:
    """Return peers that differ from seed to seed: slower methods, slower disks."""
    runs = [Latency(0.000_02, 0.000_1), Latency(0.001, 0.01), Latency(0.01, 0.2)]
    disk = DiskSpeed()
    if seed % 4 == 1:
        disk = DiskSpeed(Latency(0.01, 0.1), Latency(0.005, 0.02), Latency(0.001, 0.01))
    return PeerSettings(
        executors=1 + seed % 2, executor=ExecutorSpeed(runs={"*": runs[seed % 3]}),
        disk=disk, repair_after_s=repair_after_s,
    )  # fmt: skip


def make(sim: Simulation, groups: list[Copies]) -> dict[ObjectId, Copies]:
    """Make counters with copies, each at another peer."""
    made = {}
    names = list(sim.peers)
    for number, copies in enumerate(groups):
        with sim.client(names[number % len(names)]) as maker:
            counter = maker.create(
                COUNTER, replicas=copies.replicas, witness=copies.witness or None
            )
            made[id_of(counter)] = copies
    return made


@pytest.mark.parametrize("seed", seeds(HISTORIES))
@pytest.mark.parametrize("case", list(CASES))
def test_every_acknowledged_add_counts_once_at_every_member(
    case: str, seed: int
) -> None:
    link = LinkQuality(loss=0.02 if seed % 4 == 3 else 0.0)
    with Simulation(
        seed,
        peers=3 + seed % 5,
        classes=[Counter],
        settings=settings_of(seed),
        link=link,
    ) as sim:
        sim.checks.append(check_cores)
        join(sim)
        names = list(sim.peers)
        groups = [one for one in GROUPS if one.voters <= len(names)]
        made = make(sim, sim.rng.choices(groups, k=3))
        books = {one: Book(one.hex()[:16]) for one in made}
        callers = [
            Caller(
                sim, sim.rng.sample(names, 2), books, is_direct=number % 2 == 0,
                stale_s=2.0 * (number % 3 == 1),
            )
            for number in range(CALLERS)
        ]  # fmt: skip
        tasks = [sim.spawn(one.play, CALLS, PAUSE_S) for one in callers]
        sim.inject(CASES[case], FAULTY_S)
        sim.run(FAULTY_S)
        assert sim.run_until(lambda: all(t.is_over for t in tasks), timeout_s=600.0)
        if case == "calm":
            assert [error for one in callers for error in one.errors] == []
        check_whole(sim, {one: copies.replicas for one, copies in made.items()})
        check_nothing_left(sim)
        reader = sim.client(*names)
        for object_id, book in books.items():
            book.check_end(reader.get(object_id).peek())


# What goes wrong in a history with weather, by its name.
KINDS = {
    "cut_off": ("cut", "halves"),
    "standing_still": ("pause", "cut"),
    "dying": ("crash", "crash", "power", "executor"),
    "refusing": ("full", "full", "crash"),
    "all": (
        "cut", "halves", "pause", "crash", "power", "full", "executor", "break", "lossy",
    ),
}  # fmt: skip
STORMY_S = 20.0
BUSY_CALLERS, BUSY_CALLS, BUSY_PAUSE_S = 8, 40, 0.1


def play_storm(
    sim: Simulation, books: dict[ObjectId, Book], kinds: tuple[str, ...], gusts: int,
    *, others: Sequence[Task] = (), losers: Sequence[str] = (), calls: int = BUSY_CALLS,
) -> list[Caller]:  # fmt: skip
    """Have clients call in bad weather, and return them when all have ended."""
    names = list(sim.peers)
    callers = [
        Caller(
            sim, sim.rng.sample(names, 2), books, is_direct=number % 2 == 0,
            stale_s=2.0 * (number % 3 == 1),
        )
        for number in range(BUSY_CALLERS if calls else 0)
    ]  # fmt: skip
    tasks = [sim.spawn(one.play, calls, BUSY_PAUSE_S) for one in callers]
    tasks += others
    weather = Weather(sim, STORMY_S, kinds, losers)
    winds = [sim.spawn(weather.blow, 2.0) for _ in range(gusts)]
    sim.run(STORMY_S)
    assert sim.run_until(lambda: all(w.is_over for w in winds), timeout_s=60.0)
    weather.end()
    assert sim.run_until(lambda: all(t.is_over for t in tasks), timeout_s=600.0)
    return callers


@pytest.mark.parametrize("seed", seeds(HISTORIES))
@pytest.mark.parametrize("case", list(KINDS))
def test_every_acknowledged_add_counts_once_after_a_storm(case: str, seed: int) -> None:
    with Simulation(
        seed, peers=3 + seed % 5, classes=[Counter], settings=settings_of(seed)
    ) as sim:
        sim.checks.append(check_cores)
        join(sim)
        groups = [one for one in GROUPS if one.voters <= len(sim.peers)]
        made = make(sim, sim.rng.choices(groups, k=2))
        books = {one: Book(one.hex()[:16]) for one in made}
        play_storm(sim, books, KINDS[case], 1 + seed % 2)
        check_end(sim, books, {one: copies.replicas for one, copies in made.items()})


def check_end(
    sim: Simulation, books: dict[ObjectId, Book], wanted: dict[ObjectId, int]
) -> None:
    """Assert that every group is whole, and every counter what was acknowledged."""
    check_whole(sim, wanted)
    check_nothing_left(sim)
    reader = sim.client(*sim.peers)
    for object_id, book in books.items():
        book.check_end(reader.get(object_id).peek())


@pytest.mark.parametrize("seed", seeds(HISTORIES))
@pytest.mark.parametrize("case", ["calm", *KINDS])
def test_groups_change_while_their_objects_are_called(case: str, seed: int) -> None:
    """They grow, shrink, move, and get other members; nothing is lost meanwhile."""
    settings = settings_of(seed, repair_after_s=5.0)
    with Simulation(
        seed, peers=3 + seed % 5, classes=[Counter], settings=settings
    ) as sim:
        sim.checks.append(check_cores)
        join(sim)
        names = list(sim.peers)
        groups = [one for one in GROUPS if one.voters <= len(names)]
        made = make(sim, sim.rng.choices(groups, k=2))
        books = {one: Book(one.hex()[:16]) for one in made}
        operators = [Operator(sim, sim.rng.sample(names, 2), list(made)) for _ in "12"]
        others = [sim.spawn(one.play, 10, 1.0) for one in operators]
        gusts = 0 if case == "calm" else 1 + seed % 2
        play_storm(sim, books, KINDS.get(case, ()), gusts, others=others)
        check_end(sim, books, dict.fromkeys(books, 0))


@pytest.mark.parametrize("seed", seeds(HISTORIES))
def test_peer_that_loses_its_disk_is_replaced(seed: int) -> None:
    settings = settings_of(seed, repair_after_s=5.0)
    with Simulation(
        seed, peers=4 + seed % 4, classes=[Counter], settings=settings
    ) as sim:
        sim.checks.append(check_cores)
        join(sim)
        names = list(sim.peers)
        groups = [one for one in (Copies(3), Copies(5)) if one.voters <= len(names)]
        made = make(sim, sim.rng.choices(groups, k=2))
        books = {one: Book(one.hex()[:16]) for one in made}
        operator = Operator(sim, sim.rng.sample(names, 2), list(made), least=3)
        others = [sim.spawn(operator.play, 5, 2.0)] if seed % 2 else []
        kinds = ("disk", "crash", "cut", "power")
        play_storm(sim, books, kinds, 1, others=others, losers=names)
        check_end(sim, books, dict.fromkeys(books, 0))


RELAY = f"{Relay.__module__}.Relay"


class RelayCaller(Caller):
    """Adds through objects whose methods call a counter; the values are the counter's."""

    def through(self, relays: dict[ObjectId, list[ObjectId]]) -> None:
        """Name the relays of each counter."""
        self._relays = {
            counter: [self.client.get(one) for one in those]
            for counter, those in relays.items()
        }

    def _call(self, object_id: ObjectId, chance: float) -> None:
        if chance < self.reads:
            super()._call(object_id, chance)
            return
        relay = self.sim.rng.choice(self._relays[object_id])
        self.books[object_id].add(self.sim, lambda: relay.add(1))


@pytest.mark.parametrize("seed", seeds(HISTORIES))
@pytest.mark.parametrize("case", ["calm", "cut_off", "dying", "all"])
def test_call_of_another_object_counts_once_there(case: str, seed: int) -> None:
    """Plain objects and such with copies call each other, whoever leads them."""
    with Simulation(
        seed, peers=3 + seed % 3, classes=[Counter, Relay], settings=settings_of(seed)
    ) as sim:
        sim.checks.append(check_cores)
        join(sim)
        names, kinds = list(sim.peers), KINDS.get(case, ())
        made = make(sim, [Copies(3), Copies(1)])
        relays: dict[ObjectId, list[ObjectId]] = {one: [] for one in made}
        for counter in made:
            for replicas in (1, 3):
                maker = sim.client(sim.rng.choice(names))
                relay = maker.create(RELAY, maker.get(counter), replicas=replicas)
                relays[counter].append(id_of(relay))
        books = {one: Book(one.hex()[:16]) for one in made}
        callers = [
            RelayCaller(sim, sim.rng.sample(names, 2), books, is_direct=True)
            for _ in range(4)
        ]
        for caller in callers:
            caller.through(relays)
        others = [sim.spawn(one.play, 15, 0.4) for one in callers]
        gusts = 0 if case == "calm" else 1
        play_storm(sim, books, kinds, gusts, others=others, calls=10)
        wanted = {one: copies.replicas for one, copies in made.items()}
        check_end(sim, books, wanted)


@pytest.mark.parametrize("seed", seeds(HISTORIES))
@pytest.mark.parametrize("case", ["calm", "cut_off", "dying", "refusing"])
def test_objects_come_and_go_with_their_names(case: str, seed: int) -> None:
    """What was deleted is gone at all peers, and its name free; what was made is there."""
    settings = settings_of(seed, repair_after_s=5.0)
    with Simulation(
        seed, peers=3 + seed % 3, classes=[Counter], settings=settings
    ) as sim:
        sim.checks.append(check_cores)
        join(sim)
        names = list(sim.peers)
        makers = [Maker(sim, sim.rng.sample(names, 2), f"m{n}") for n in range(3)]
        others = [sim.spawn(one.play, 6, 0.8) for one in makers]
        gusts = 0 if case == "calm" else 1
        play_storm(sim, {}, KINDS.get(case, ()), gusts, others=others, calls=0)
        if case == "calm":
            assert [error for one in makers for error in one.errors] == []
        made = {one: 0 for maker in makers for one in maker.made}
        check_end(sim, {}, made)
        for maker in makers:
            maker.check_end()
