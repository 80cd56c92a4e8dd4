"""What it costs to know where objects are: state, bytes and hops, beside the formulae.

Objects are put straight into the Location cores, as moves leave them: nothing is called,
moved or written to disk. A share of the objects is away from home, at a peer drawn by
chance; their homes and buddies know it. With hints, everybody has heard of every move, up
to the bound of hints. The buddies are those of the production, of records as real ones.

State is measured in Python's bytes: the tables, their keys and their values; the same
object is counted once in a peer. Objects at home cost Location nothing, they are rows on
disk. The formulae of reliability.md 2.3 count bare bytes, 64 for an own object and 48 for
an exception, so the ratio is the price of Python's dicts.

A lookup goes to whom `route` names first, and from there on as that peer's Location says;
a hop is a peer that is asked. Bytes are those of a Call of a null method in Relay, once a
hop; the answer is not counted, it is the call's own.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from activestore.core.location import Location, Place
from activestore.core.peers import buddies_of
from activestore.ids import ObjectId, PeerId, home_of
from activestore.wire import codec
from activestore.wire.messages import Call, Relay
from tests.core.cluster_world import record_of

OBJECTS = (10**2, 10**3, 10**4, 10**5, 10**6)
PEERS = (2, 10, 100, 1000)
MOVED_SHARE = 0.01
LOOKUPS = 2000
# More redirects than the design allows: a lookup that needs them is wrong.
HOPS_MAX = 4
# reliability.md 2.3.
OWN_BYTES = 64
EXCEPTION_BYTES = 48
EXCEPTION_COPIES = 3


class Cost(NamedTuple):
    """One row: of one number of objects on one number of peers."""

    objects_count: int
    peers_count: int
    state_bytes: float  # of exceptions and guests, the average peer
    hints_bytes: float  # the average of the peers that were looked at
    formula_bytes: float  # exceptions only
    own_formula_bytes: float  # on disk
    hops_p50: float
    hops_max: int
    moved_hops_max: int
    hinted_hops_max: int
    bytes_p50: float
    bytes_max: int


class World:
    """Location cores, who stands in for whom, and which objects are away."""

    def __init__(self, objects_count: int, peers_count: int, seed: int) -> None:
        self.rng = random.Random(seed)
        records = [record_of(number) for number in range(peers_count)]
        self.peers = [PeerId(record.peer_id) for record in records]
        self.locations = {one: Location(one) for one in self.peers}
        self.buddies = {
            one.peer_id: [PeerId(b) for b in buddies_of(one.peer_id, records, one)]
            for one in records
        }
        self.objects_count = objects_count
        self.moved: dict[ObjectId, Place] = {}
        for _ in range(max(1, round(objects_count * MOVED_SHARE))):
            self._move(self.draw_id())

    def draw_id(self) -> ObjectId:
        """Return an id at a home drawn by chance."""
        return ObjectId(self.rng.choice(self.peers) + b"\0" + self.rng.randbytes(9))

    def _move(self, object_id: ObjectId) -> None:
        home = home_of(object_id)
        target = self.rng.choice([one for one in self.peers if one != home][:1000])
        place = self.moved[object_id] = Place(target, 2)
        self.locations[target].hold(object_id)
        for keeper in (home, *self.buddies[home]):
            if keeper != target:
                self.locations[keeper].learn_place(object_id, place)

    def hint(self, peers: Iterable[PeerId]) -> None:
        """Let these peers have heard of every move."""
        for peer_id in peers:
            for object_id, place in self.moved.items():
                self.locations[peer_id].hear(object_id, place)

    def hops(self, asker: PeerId, object_id: ObjectId) -> int:
        """Return how many peers are asked until one has the object."""
        here = self.locations[asker]
        if here.is_here(object_id):
            return 0
        target = here.route(object_id, self.peers, self.buddies[home_of(object_id)])[0]
        for hop in range(1, HOPS_MAX + 1):
            there = self.locations[target]
            if there.is_here(object_id):
                return hop
            place = there.place_of(object_id)
            target = home_of(object_id) if place is None else place.peer_id
        message = f"{object_id.hex()} is not found in {HOPS_MAX} hops"
        raise AssertionError(message)


def bytes_of(tables: Iterable[object]) -> int:
    """Return the memory of dicts and sets, their keys and values, each thing once."""
    seen: set[int] = set()
    total = 0

    def add(thing: object) -> None:
        nonlocal total
        if id(thing) not in seen:
            seen.add(id(thing))
            total += sys.getsizeof(thing)

    for table in tables:
        add(table)
        for key in table:  # type: ignore[attr-defined]
            add(key)
        if isinstance(table, dict):
            for place in table.values():
                for thing in (place, *place):
                    add(thing)
    return total


def relayed_bytes(object_id: ObjectId) -> int:
    """Return the bytes of a call without arguments, relayed."""
    call = Call(1, object_id, "peek", 0, 0, 1, 0)
    return len(codec.encode(Relay(b"s" * 16, 0, None, codec.encode(call))))


def measure(
    objects_count: int, peers_count: int, *, lookups: int = LOOKUPS, seed: int = 1
) -> Cost:
    """Return what one size costs."""
    world = World(objects_count, peers_count, seed)
    empty = Location(world.peers[0])
    empty_bytes = bytes_of((empty.places, empty.guests))
    states = [
        bytes_of((one.places, one.guests)) - empty_bytes
        for one in world.locations.values()
    ]
    asked = [world.draw_id() for _ in range(round(lookups * (1 - MOVED_SHARE)))]
    moved = list(world.moved)
    asked += world.rng.choices(moved, k=lookups - len(asked))
    hops = [world.hops(world.rng.choice(world.peers), one) for one in asked]
    moved_hops = [
        world.hops(world.rng.choice(world.peers), one)
        for one in world.rng.choices(moved, k=lookups // 4)
    ]
    sampled = world.peers[:4]
    world.hint(sampled)
    hinted = [
        world.hops(world.rng.choice(sampled), one)
        for one in world.rng.choices(moved, k=lookups // 4)
    ]
    hints = [
        bytes_of((world.locations[one]._hints,))  # noqa: SLF001 - its size is asked
        for one in sampled
    ]
    mean_objects = objects_count / peers_count
    # Two peers have one buddy each, and of a moved object it is the holder.
    copies = min(EXCEPTION_COPIES, peers_count - 1)
    step = relayed_bytes(asked[0])
    return Cost(
        objects_count, peers_count, statistics.fmean(states), statistics.fmean(hints),
        copies * MOVED_SHARE * mean_objects * EXCEPTION_BYTES, mean_objects * OWN_BYTES,
        statistics.median(hops), max(hops), max(moved_hops), max(hinted),
        step * statistics.median(hops), step * max(hops),
    )  # fmt: skip


def markdown(rows: Sequence[Cost]) -> str:
    """Return the table."""
    lines = [
        "| objects | peers | exceptions + guests, B a peer | formula, B | ratio "
        "| hints, B a peer | own rows on disk, by formula, B | hops p50 / max "
        "| of moved: max, with hints | bytes p50 / max |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {r.objects_count:,} | {r.peers_count:,} | {r.state_bytes:,.0f} "
            f"| {r.formula_bytes:,.1f} | {r.state_bytes / r.formula_bytes:.1f} "
            f"| {r.hints_bytes:,.0f} | {r.own_formula_bytes:,.0f} "
            f"| {r.hops_p50:g} / {r.hops_max} "
            f"| {r.moved_hops_max}, {r.hinted_hops_max} "
            f"| {r.bytes_p50:,.0f} / {r.bytes_max:,} |"
            for r in rows
        ),
    ]
    return "\n".join(lines) + "\n"
