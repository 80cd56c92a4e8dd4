"""Whole histories of clusters whose objects have replicas, kind by kind.

Each kind has cases, which tell what goes wrong meanwhile; `HISTORIES[kind].play(case,
seed)` plays one, and raises where something does not hold: what was acknowledged is
there once, at every member, whoever died, stood still, was cut off, lost its disk or a
part of it meanwhile.

Source: design section 8; reliability.md 3.5; issue 4, "It must hold".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from activestore.ids import ObjectId
from activestore.testing import (
    DiskSpeed,
    ExecutorSpeed,
    Latency,
    LinkQuality,
    PeerSettings,
    Simulation,
    Task,
)
from tests.simulation.clusters import CASES, COUNTER, join
from tests.simulation.large_models import Chest
from tests.simulation.models import Author, Counter, Journal, Ledger, Relay
from tests.simulation.replica_authors import (
    AUTHOR,
    JOURNAL,
    MEANWHILE,
    Editor,
    check_unmixed,
    play_deposed,
)
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
from tests.simulation.replica_damage import Decay, check_disk, check_undamaged
from tests.simulation.replica_forced import LEDGER, Forcer, Marks, Scribe

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


@contextmanager
def joined(
    seed: int, peers: int, classes: list[type], settings: PeerSettings
) -> Iterator[Simulation]:
    """Yield peers that see each other, and whose cores are checked at each step."""
    with Simulation(seed, peers=peers, classes=classes, settings=settings) as sim:
        sim.checks.append(check_cores)
        join(sim)
        yield sim


def books_of(objects: Iterable[ObjectId]) -> dict[ObjectId, Book]:
    """Begin to keep count of what each object was told."""
    return {one: Book(one.hex()[:16]) for one in objects}


def wanted_of(made: Mapping[ObjectId, Copies]) -> dict[ObjectId, int]:
    """Return how many copies each object is to have in the end."""
    return {one: copies.replicas for one, copies in made.items()}


def play_faults(case: str, seed: int) -> None:
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
        books = books_of(made)
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
        check_whole(sim, wanted_of(made))
        check_nothing_left(sim)
        reader = sim.client(*names)
        for object_id, book in books.items():
            book.check_end(reader.get(object_id).peek())


# What goes wrong in a history with weather, by its name.
KINDS = {
    "cut_off": ("cut", "halves"),
    "apart": ("apart", "apart", "crash"),
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
    sky: type[Weather] = Weather, kind: type[Caller] = Caller,
) -> list[Caller]:  # fmt: skip
    """Have clients call in bad weather, and return them when all have ended."""
    names = list(sim.peers)
    callers = [
        kind(
            sim, sim.rng.sample(names, 2), books, is_direct=number % 2 == 0,
            stale_s=2.0 * (number % 3 == 1),
        )
        for number in range(BUSY_CALLERS if calls else 0)
    ]  # fmt: skip
    tasks = [sim.spawn(one.play, calls, BUSY_PAUSE_S) for one in callers]
    tasks += others
    weather = sky(sim, STORMY_S, kinds, losers)
    winds = [sim.spawn(weather.blow, 2.0) for _ in range(gusts)]
    sim.run(STORMY_S)
    assert sim.run_until(lambda: all(w.is_over for w in winds), timeout_s=60.0)
    weather.end()
    assert sim.run_until(lambda: all(t.is_over for t in tasks), timeout_s=600.0)
    return callers


def play_stormy(case: str, seed: int) -> None:
    with joined(seed, 3 + seed % 5, [Counter], settings_of(seed)) as sim:
        groups = [one for one in GROUPS if one.voters <= len(sim.peers)]
        made = make(sim, sim.rng.choices(groups, k=2))
        books = books_of(made)
        play_storm(sim, books, KINDS[case], 1 + seed % 2)
        check_end(sim, books, wanted_of(made))


def check_end(
    sim: Simulation, books: dict[ObjectId, Book], wanted: dict[ObjectId, int]
) -> None:
    """Assert that every group is whole, and every counter what was acknowledged."""
    check_whole(sim, wanted)
    check_nothing_left(sim)
    reader = sim.client(*sim.peers)
    for object_id, book in books.items():
        book.check_end(reader.get(object_id).peek())


def play_changing(case: str, seed: int) -> None:
    """They grow, shrink, move, and get other members; nothing is lost meanwhile."""
    settings = settings_of(seed, repair_after_s=5.0)
    with joined(seed, 3 + seed % 5, [Counter], settings) as sim:
        names = list(sim.peers)
        groups = [one for one in GROUPS if one.voters <= len(names)]
        made = make(sim, sim.rng.choices(groups, k=2))
        books = books_of(made)
        operators = [Operator(sim, sim.rng.sample(names, 2), list(made)) for _ in "12"]
        others = [sim.spawn(one.play, 10, 1.0) for one in operators]
        gusts = 0 if case == "calm" else 1 + seed % 2
        play_storm(sim, books, KINDS.get(case, ()), gusts, others=others)
        check_end(sim, books, dict.fromkeys(books, 0))


LOSSES = ("disk", "crash", "cut")
# Deleted objects wait for a lost disk until repair has found, and tried again, without.
LET_GO_S = 900.0


def play_lost(_case: str, seed: int) -> None:
    settings = settings_of(seed, repair_after_s=5.0)
    with joined(seed, 4 + seed % 4, [Counter], settings) as sim:
        names = list(sim.peers)
        groups = [one for one in (Copies(3), Copies(5)) if one.voters <= len(names)]
        made = make(sim, sim.rng.choices(groups, k=2))
        books = books_of(made)
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


def play_relays(case: str, seed: int) -> None:
    """Plain objects and such with copies call each other, whoever leads them."""
    with joined(seed, 3 + seed % 3, [Counter, Relay], settings_of(seed)) as sim:
        names, kinds = list(sim.peers), KINDS.get(case, ())
        made = make(sim, [Copies(3), Copies(1)])
        relays: dict[ObjectId, list[ObjectId]] = {one: [] for one in made}
        for counter in made:
            for replicas in (1, 3):
                maker = sim.client(sim.rng.choice(names))
                relay = maker.create(RELAY, maker.get(counter), replicas=replicas)
                relays[counter].append(id_of(relay))
        books = books_of(made)
        callers = [
            RelayCaller(sim, sim.rng.sample(names, 2), books, is_direct=True)
            for _ in range(4)
        ]
        for caller in callers:
            caller.through(relays)
        others = [sim.spawn(one.play, 15, 0.4) for one in callers]
        gusts = 0 if case == "calm" else 1
        play_storm(sim, books, kinds, gusts, others=others, calls=10)
        check_end(sim, books, wanted_of(made))


def play_names(case: str, seed: int) -> None:
    """What was deleted is gone at all peers, and its name free; what was made is there.

    Where disks are lost too only that nothing is left of what was deleted: what had one
    copy is lost with it, and two of which one is lost serve nobody.
    """
    settings = settings_of(seed, repair_after_s=5.0)
    with joined(seed, 3 + seed % 3, [Counter], settings) as sim:
        names = list(sim.peers)
        makers = [Maker(sim, sim.rng.sample(names, 2), f"m{n}") for n in range(3)]
        others = [sim.spawn(one.play, 6, 0.8) for one in makers]
        gusts = 0 if case == "calm" else 1
        is_losing = case == "disks"
        play_storm(
            sim, {}, KINDS.get(case, LOSSES), gusts, others=others, calls=0,
            losers=names if is_losing else (),
        )  # fmt: skip
        if is_losing:
            for maker in makers:
                maker.check_gone(LET_GO_S)
            return
        if case == "calm":
            assert [error for one in makers for error in one.errors] == []
        made = {one: 0 for maker in makers for one in maker.made}
        check_end(sim, {}, made)
        for maker in makers:
            maker.check_end()


# -- disks that forget -----------------------------------------------------------------

DECAYS = {
    "rotting": ("rot", "rot", "scrub"),
    "rotting_dying": ("rot", "scrub", "crash", "power", "executor"),
    "rotting_cut_off": ("rot", "scrub", "cut", "halves", "pause"),
    "rotting_registers": ("rot_register", "rot_register", "scrub", "cut", "full"),
    "rotting_registers_dying": ("rot_register", "rot_register", "scrub", "crash"),
    "rotting_changing": ("rot",),
    "rotting_all": (
        "rot", "rot", "rot_register", "scrub", "cut", "halves", "pause", "full", "break",
    ),
}  # fmt: skip


SET_BACKS = {"alone": ("set_back",), "stormy": ("set_back", "crash", "cut")}


def play_decay(case: str, seed: int) -> None:
    """What is damaged is found by a call or by scrubbing, and brought back."""
    settings = settings_of(seed, repair_after_s=5.0)
    with joined(seed, 3 + seed % 3, [Counter, Chest], settings) as sim:
        sim.checks.append(check_disk)
        groups = [one for one in GROUPS if 1 < one.voters <= len(sim.peers)]
        made = make(sim, sim.rng.choices(groups, k=2))
        made |= make_chests(sim, [Copies(3)], CHEST_BYTES[seed % 2])
        books = books_of(made)
        many = [one for one, copies in made.items() if copies.replicas >= 3]
        operator = Operator(sim, sim.rng.sample(list(sim.peers), 2), many, least=3)
        others = (
            [sim.spawn(operator.play, 10, 1.5)] if case == "rotting_changing" else []
        )
        play_storm(sim, books, DECAYS[case], 1 + seed % 2, sky=Decay, others=others)
        check_undamaged(sim)
        wanted = wanted_of(made)
        check_end(sim, books, dict.fromkeys(books, 0) if others else wanted)


def play_set_back(case: str, seed: int) -> None:
    """A disk goes back to what it was; its peer has no vote, and is given another."""
    settings = settings_of(seed, repair_after_s=5.0)
    with joined(seed, 3 + seed % 3, [Counter], settings) as sim:
        names = list(sim.peers)
        made = make(sim, [Copies(3), Copies(3), Copies(5 if len(names) > 4 else 3)])
        books = books_of(made)
        play_storm(
            sim,
            books,
            SET_BACKS[case],
            1,
            losers=names,
            sky=Decay,
            calls=2 * BUSY_CALLS,
        )
        check_end(sim, books, dict.fromkeys(books, 0))


# -- what is large, and what comes piece by piece --------------------------------------

CHEST = f"{Chest.__module__}.Chest"
# In chunks of the table, and in a file of its own.
CHEST_BYTES = (80_000, (1 << 20) + 200_000)
LARGE_CALLS = 12


def make_chests(
    sim: Simulation, groups: list[Copies], size: int
) -> dict[ObjectId, Copies]:
    """Make counters with a large block, and copies."""
    maker = sim.client(sim.rng.choice(list(sim.peers)))
    return {
        id_of(maker.create(
            CHEST, size, replicas=copies.replicas, witness=copies.witness or None
        )): copies
        for copies in groups
    }  # fmt: skip


def play_large(case: str, seed: int) -> None:
    """Members change too, so that wholes travel, and what differs of them."""
    settings = settings_of(seed, repair_after_s=5.0)
    with joined(seed, 3 + seed % 3, [Chest], settings) as sim:
        groups = [one for one in GROUPS if 1 < one.voters <= len(sim.peers)]
        made = make_chests(sim, sim.rng.choices(groups, k=2), CHEST_BYTES[seed % 3 > 0])
        books = books_of(made)
        operator = Operator(sim, sim.rng.sample(list(sim.peers), 2), list(made))
        others = [sim.spawn(operator.play, 5, 3.0)] if seed % 2 else []
        gusts = 0 if case == "calm" else 1
        play_storm(
            sim, books, KINDS.get(case, ()), gusts, others=others, calls=LARGE_CALLS
        )
        check_end(sim, books, dict.fromkeys(books, 0))


class Streamer(Caller):
    """Adds by methods that stream, too; some streams are broken off."""

    def _call(self, object_id: ObjectId, chance: float) -> None:
        if chance < 0.6:
            super()._call(object_id, chance)
            return
        number = self.sim.rng.randint(1, 20)
        stop_at = self.sim.rng.randint(0, 60)
        target = self._objects[object_id].numbers.options(**self._options)

        def stream() -> bool:
            items = target.stream(number)
            for at, item in enumerate(items):
                assert at == item
                if at == stop_at:
                    items.close()
                    return False
            return True

        self.books[object_id].add_many(number, stream)


def play_readers(case: str, seed: int) -> None:
    """Few write, and not where the others read: a leader that is none hears of nothing."""
    with joined(seed, 3 + seed % 3, [Counter], settings_of(seed)) as sim:
        names = list(sim.peers)
        made = make(sim, [Copies(3), Copies(2, True)])
        books = books_of(made)
        writers = [
            Caller(sim, [name], books, is_direct=False, reads=0.0)
            for name in sim.rng.sample(names, 2)
        ]
        readers = [
            Caller(sim, [name], books, is_direct=True, reads=1.0, stale_s=number % 2)
            for number, name in enumerate(names)
        ]
        others = [sim.spawn(one.play, 40, 0.5) for one in writers]
        others += [sim.spawn(one.play, 200, 0.1) for one in readers]
        play_storm(sim, books, KINDS[case], 1, others=others, calls=0)
        check_end(sim, books, wanted_of(made))


def play_streams(case: str, seed: int) -> None:
    with joined(seed, 3 + seed % 3, [Counter], settings_of(seed)) as sim:
        groups = [one for one in GROUPS if one.voters <= len(sim.peers)]
        made = make(sim, sim.rng.choices(groups, k=2))
        books = books_of(made)
        gusts = 0 if case == "calm" else 1 + seed % 2
        play_storm(
            sim, books, KINDS.get(case, ()), gusts, calls=LARGE_CALLS, kind=Streamer
        )
        check_end(sim, books, wanted_of(made))


# -- what an operator forces -----------------------------------------------------------


def play_forced(case: str, seed: int) -> None:
    """Nothing is lost but what `force` gives up, and that can be exported."""
    settings = settings_of(seed, repair_after_s=5.0 if seed % 2 else 600.0)
    with joined(seed, 3 + seed % 3, [Ledger], settings) as sim:
        names = list(sim.peers)
        groups = [one for one in GROUPS if 1 < one.voters <= len(names)]
        maker = sim.client(sim.rng.choice(names))
        ledgers = [
            id_of(maker.create(
                LEDGER, replicas=copies.replicas, witness=copies.witness or None
            ))
            for copies in sim.rng.choices(groups, k=2)
        ]  # fmt: skip
        marks = Marks(sim, ledgers)
        scribes = [
            Scribe(marks, sim.rng.sample(names, 2), 30.0 * (number % 2))
            for number in range(6)
        ]
        others = [sim.spawn(one.play, 40, 0.3) for one in scribes]
        others.append(sim.spawn(Forcer(sim, ledgers).play, 6, 3.0))
        gusts = 0 if case == "calm" else 1 + seed % 2
        play_storm(sim, {}, KINDS.get(case, ()), gusts, others=others, calls=0)
        join(sim)
        marks.check_end()
        check_whole(sim, dict.fromkeys(ledgers, 0))
        check_nothing_left(sim)


# -- what leaders write elsewhere ------------------------------------------------------

AUTHORS = 2


def play_authors(case: str, seed: int) -> None:
    """What the runs of one object change elsewhere is not mixed, whoever leads it."""
    rests = {"rest": Latency(0.1, 0.5)}
    settings = PeerSettings(
        executor=ExecutorSpeed(runs={"*": Latency(0.000_02, 0.000_1), **rests})
    )
    with joined(seed, 4 + seed % 3, [Author, Journal], settings) as sim:
        names = list(sim.peers)
        maker = sim.client(*sim.rng.sample(names, 2))
        journals = [maker.create(JOURNAL, replicas=copies) for copies in (1, 3)]
        authors = []
        for number in range(AUTHORS):
            maker = sim.client(sim.rng.choice(names))
            couch = maker.create(JOURNAL)
            journal = journals[(seed + number) % 2]
            authors.append(id_of(maker.create(AUTHOR, journal, couch, replicas=3)))
        numbers = itertools.count(1)
        editors = [
            Editor(sim, sim.rng.sample(names, 2), authors, numbers) for _ in range(4)
        ]
        others = [sim.spawn(one.play, 6, 0.8) for one in editors]
        gusts = 0 if case == "calm" else 2
        play_storm(sim, {}, KINDS.get(case, ()), gusts, others=others, calls=0)
        check_whole(sim, dict.fromkeys(authors, 3))
        check_nothing_left(sim)
        for journal in journals:
            check_unmixed(journal.read(), AUTHORS)


# -- all of them -----------------------------------------------------------------------


class Kind(NamedTuple):
    """A kind of history: who plays it, and its cases."""

    play: Callable[[str, int], None]
    cases: Sequence[str]


HISTORIES = {
    "faults": Kind(play_faults, tuple(CASES)),
    "stormy": Kind(play_stormy, tuple(KINDS)),
    "changing": Kind(play_changing, ("calm", *KINDS)),
    "lost": Kind(play_lost, ("disks",)),
    "relays": Kind(play_relays, ("calm", "cut_off", "apart", "dying", "all")),
    "names": Kind(play_names, ("calm", "cut_off", "dying", "refusing", "disks")),
    "decay": Kind(play_decay, tuple(DECAYS)),
    "set_back": Kind(play_set_back, tuple(SET_BACKS)),
    "large": Kind(play_large, ("calm", "cut_off", "dying", "refusing")),
    "readers": Kind(play_readers, ("cut_off", "apart", "standing_still")),
    "streams": Kind(play_streams, ("calm", *KINDS)),
    "forced": Kind(play_forced, ("calm", *KINDS)),
    "deposed": Kind(play_deposed, tuple(MEANWHILE)),
    "authors": Kind(
        play_authors, ("calm", "cut_off", "apart", "standing_still", "all")
    ),
}
