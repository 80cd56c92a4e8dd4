"""Programs and checks for simulated clusters whose objects have replicas.

Rules of this file: what a client was told is the only truth; what is asserted of peers
at the end is asserted after all is well again.

Source: reliability.md 3.5, I1 to I6; design section 8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from activestore import remote
from activestore.core.register import Register
from activestore.errors import (
    ActiveStoreError,
    AliasExistsError,
    CorruptRecordError,
    ObjectNotFoundError,
)
from activestore.ids import ObjectId, PeerId
from activestore.peer import shipping
from activestore.storage.blobs import address_of, view_of
from activestore.testing import SimClient, Simulation
from activestore.testing.peers import SimPeer
from tests.simulation.clusters import COUNTER, join

# Once all is well a group is whole within this, in simulated seconds: a peer that was
# away is dialled again after up to 30 s, a copy that was not sent is asked for again
# after 15, a disk that was full after 2.
WHOLE_S = 240.0
# What waits for a disk, a leader or a way is over within this.
LEFT_S = 60.0


def id_of(proxy: Any) -> ObjectId:
    """Return the id of an object."""
    found = remote.id_of(proxy)
    assert found is not None
    return found


class Book:
    """What all clients together know of one counter: how high it certainly is.

    Every add is by one, so each value is returned once at most, and a value that was
    returned is a bound for all that begins later.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.begun_count = 0
        self.values: dict[int, float] = {}
        self.unsure = 0
        self.streamed = 0
        self.floor = 0

    def add(self, sim: Simulation, do: Callable[[], int]) -> None:
        """Add one; what raises may have counted, or not."""
        floor = self.floor
        self.begun_count += 1
        try:
            value = do()
        except ActiveStoreError:
            self.unsure += 1
            raise
        assert value not in self.values, (
            f"{self.name}: two adds returned {value}, "
            f"at {self.values[value]:.3f} s and at {sim.now_s:.3f} s"
        )
        assert floor < value <= self.begun_count, (
            f"{self.name}: add returned {value}, {floor} were acknowledged before it "
            f"began, {self.begun_count} have begun"
        )
        self.values[value] = sim.now_s
        self.floor = max(self.floor, value)

    def add_many(self, number: int, do: Callable[[], bool]) -> None:
        """Add more than one in one call; False: it was broken off, and may have counted."""
        floor = self.floor
        self.begun_count += number
        try:
            is_over = do()
        except ActiveStoreError:
            is_over = False
            raise
        finally:
            if is_over:
                self.streamed += number
                self.floor = max(self.floor, floor + number)
            else:
                self.unsure += number

    def read(self, do: Callable[[], int]) -> None:
        """Read; it is at least what was told before it began."""
        floor = self.floor
        value = do()
        assert floor <= value <= self.begun_count, (
            f"{self.name}: read {value}, {floor} were told before it began, "
            f"{self.begun_count} have begun"
        )
        self.floor = max(self.floor, value)

    def check_end(self, count: int) -> None:
        """Assert what the counter is at the end."""
        sure = len(self.values) + self.streamed
        assert sure <= count <= sure + self.unsure, (
            f"{self.name} counts {count}: {sure} acknowledged, {self.unsure} unsure"
        )
        assert count >= self.floor


class Caller:
    """A client's program that adds to counters and reads them."""

    def __init__(
        self, sim: Simulation, peers: Sequence[str], books: dict[ObjectId, Book], *,
        is_direct: bool, reads: float = 0.3, stale_s: float = 0.0,
    ) -> None:  # fmt: skip
        self.sim = sim
        self.client = sim.client(*peers)
        self.books = books
        self.reads = reads
        self.stale_s = stale_s
        self.errors: list[ActiveStoreError] = []
        self._seen: dict[ObjectId, int] = {}
        self._objects = {one: self.client.get(one) for one in books}
        self._options: dict[str, Any] = {} if is_direct else {"direct": False}

    def play(self, calls: int, pause_s: float) -> None:
        """Call something now and then."""
        rng = self.sim.rng
        for _ in range(calls):
            self.sim.sleep(rng.expovariate(1.0 / pause_s))
            object_id = rng.choice(list(self.books))
            try:
                self._call(object_id, rng.random())
            except ActiveStoreError as error:
                self.errors.append(error)

    def _call(self, object_id: ObjectId, chance: float) -> None:
        book, target = self.books[object_id], self._objects[object_id]
        if chance >= self.reads:
            add = target.add.options(**self._options)
            book.add(self.sim, lambda: add(1))
        elif self.stale_s and chance < self.reads / 2:
            options = {**self._options, "staleness_s": self.stale_s}
            value = target.peek.options(**options)()
            # Bounded in time, not in value: but a client never goes back.
            assert self._seen.get(object_id, 0) <= value <= book.begun_count
            self._seen[object_id] = value
        else:
            book.read(target.peek.options(**self._options))


def leaders(sim: Simulation, object_id: ObjectId) -> list[SimPeer]:
    """Return the peers that lead an object, or hold it alone."""
    found = []
    for peer in sim.peers.values():
        core = peer.loop.replicating.core
        is_plain = core.register_of(object_id) is None
        if is_plain and object_id in peer.loop.location.followed:
            continue
        has_it = is_plain and peer.engine.head(object_id) is not None
        if core.is_led(object_id) or (
            has_it and peer.engine.row("staged", object_id) is None
        ):
            found.append(peer)
    return found


def register_at(peer: SimPeer, object_id: ObjectId) -> Register | None:
    """Return the register that lies on a peer's disk."""
    try:
        value = peer.engine.row("register", object_id)
    except CorruptRecordError:
        return None
    return None if value is None else shipping.unpack_register(value)


def whole_of(peer: SimPeer, object_id: ObjectId) -> tuple[object, ...]:
    """Return everything that a copy must have as all others have it."""
    try:
        found = peer.engine.load(object_id)
    except CorruptRecordError as error:
        return (str(error),)
    if found is None:
        return ()
    head, state = found
    replies = sorted(
        (one.session, one.sequence, one.code, bytes(one.body))
        for one in peer.engine.replies_of(object_id)
    )
    fields = tuple(sorted((k, bytes(v)) for k, v in state.fields.items()))
    graph = (bytes(state.graph), *(address_of(view_of(one)) for one in state.buffers))
    row = (head.version, head.alias, head.class_name, round(head.created_s, 6))
    return (row, fields, graph, tuple(replies))


def why_not_whole(sim: Simulation, object_id: ObjectId, wanted: int) -> str:
    """Return what is not as it shall be with a group, "" where all is well.

    `wanted`: how many copies; 0: as many as the group itself was last told.
    """
    name = object_id.hex()[:16]
    found = leaders(sim, object_id)
    if len(found) != 1:
        return f"{name} is led by {[peer.name for peer in found]}"
    (leader,) = found
    register = leader.loop.replicating.core.register_of(object_id)
    if register is None:
        holders = [p.name for p in sim.peers.values() if register_at(p, object_id)]
        if holders:
            return f"{name} is plain at {leader.name}, registers at {holders}"
        return "" if wanted <= 1 else f"{name} is plain, {wanted} copies are wanted"
    config = register.config
    wanted = wanted or config.wanted
    if len(config.members) != wanted or config.before:
        return f"{name} has {len(config.members)} copies of {wanted}: {config}"
    if not set(config.voters) <= {PeerId(peer.peer_id) for peer in sim.peers.values()}:
        return f"{name} has a copy at a peer that is no more: {config}"
    if bool(config.witness) != config.wants_witness:
        return f"{name} has no witness"
    unlike = [_why_unlike(leader, one, object_id) for one in sim.peers.values()]
    return next((f"{name}: {why}" for why in unlike if why), "")


def _why_unlike(leader: SimPeer, peer: SimPeer, object_id: ObjectId) -> str:
    """Return in what a peer's copy is not as its leader's."""
    at, other = register_at(leader, object_id), register_at(peer, object_id)
    if at is None:
        return f"{leader.name} has no register"
    config = at.config
    if (PeerId(peer.peer_id) in config.voters) != (other is not None):
        return f"register at {peer.name} is {other}, config {config}"
    if other is None:
        has_state = peer.engine.head(object_id) is not None
        return f"{peer.name} has a state and no register" if has_state else ""
    same = {"is_stateless": other.is_stateless, "changed_s": other.changed_s}
    if other != at._replace(**same):
        return f"{peer.name} has {other}, {leader.name} has {at}"
    mine, copy = whole_of(leader, object_id), whole_of(peer, object_id)
    wanted = () if PeerId(peer.peer_id) == config.witness else mine
    return "" if copy == wanted else f"{peer.name} has {copy}, {leader.name} has {mine}"


def what_is_left(peer: SimPeer) -> list[str]:
    """Return what a peer keeps for requests and orders that are not over."""
    shell = peer.loop.replicating
    acceptor = shell.core._acceptor
    tables = {
        name: getattr(shell, name)
        for name in ("_orders", "_waiting", "_lines", "_parked", "_regroupings")
    }
    tables["busy"] = {
        one.hex(): (busy.count, busy.writes, busy.deferred)
        for one, busy in acceptor._busy.items()
    }
    tables["stores"] = {} if shell.copying.is_idle else {"open": True}
    tables["growing"] = peer.loop.growing
    tables["calls"] = peer.core.calls
    tables["names"] = peer.loop.naming.open
    # What a client asked that has gone on with another peer ends with its session.
    tables["trips"] = {
        key: trip.message
        for key, trip in peer.loop.relays._trips.items()
        if trip.session is None
    }
    return [f"{peer.name} keeps {key}: {kept}" for key, kept in tables.items() if kept]


def unlike_disk(peer: SimPeer) -> list[str]:
    """Return the registers that are not on a peer's disk as they are in its memory."""
    core = peer.loop.replicating.core
    on_disk = {one: register for one, register, _ in shipping.registers_of(peer.engine)}
    return [
        f"{peer.name} has {core.register_of(one)} of {one.hex()}, its disk {on_disk.get(one)}"
        for one in {*core.registers, *on_disk}
        if core.register_of(one) != on_disk.get(one)
    ]


def check_nothing_left(sim: Simulation) -> None:
    """Assert that soon no peer keeps anything for a request that has ended.

    What it knows of its groups is then what is on its disk, too.
    """
    left: list[str] = []
    end_s = sim.now_s + LEFT_S
    while sim.now_s < end_s:
        left = [text for peer in sim.peers.values() for text in what_is_left(peer)]
        left += [text for peer in sim.peers.values() for text in unlike_disk(peer)]
        if not left:
            return
        sim.run(0.1)
    raise AssertionError(left)


def check_cores(peer: SimPeer) -> None:
    """Assert what must hold of a peer after every turn; for `Simulation.checks`."""
    peer.loop.replicating.core.check()
    peer.loop.location.check()


def check_whole(sim: Simulation, wanted: dict[ObjectId, int]) -> None:
    """Let time pass until every group is whole, and assert that it is.

    `wanted`: how many copies each has at the end; 0: as many as it was last told.
    """
    join(sim)

    def is_whole() -> bool:
        return not any(why_not_whole(sim, one, count) for one, count in wanted.items())

    end_s = sim.now_s + WHOLE_S
    while not is_whole() and sim.now_s < end_s:
        sim.run(1.0)
    why = [why_not_whole(sim, one, count) for one, count in wanted.items()]
    assert not any(why), [one for one in why if one]


class Operator:
    """An operator's program: groups grow, shrink, and get other members."""

    def __init__(
        self, sim: Simulation, peers: Sequence[str], object_ids: Sequence[ObjectId],
        *, least: int = 1, moves: bool = True,
    ) -> None:  # fmt: skip
        self.sim = sim
        self.client = sim.client(*peers)
        self.object_ids = object_ids
        self.least = least
        self.does_move = moves
        self.done_count = 0
        self.errors: list[ActiveStoreError] = []

    def play(self, changes: int, pause_s: float) -> None:
        """Change a group now and then; it may be refused."""
        rng = self.sim.rng
        for _ in range(changes):
            self.sim.sleep(rng.expovariate(1.0 / pause_s))
            object_id, chance = rng.choice(self.object_ids), rng.random()
            try:
                self._change(object_id, chance)
            except ActiveStoreError as error:
                self.errors.append(error)
            else:
                self.done_count += 1

    def _change(self, object_id: ObjectId, chance: float) -> None:
        rng, names = self.sim.rng, list(self.sim.peers)
        if chance < 0.25 and self.does_move:
            self.client.move(object_id, rng.choice(names))
        elif chance < 0.45:
            self.client.replicate(object_id, leaving=[rng.choice(names)])
        elif chance < 0.6 and self.least <= 2:
            self.client.replicate(object_id, 2, witness=rng.random() < 0.5)
        else:
            count = rng.randint(self.least, min(5, len(names)))
            self.client.replicate(object_id, count, witness=False)


class Maker:
    """A client's program: makes objects with names and copies, and deletes some."""

    def __init__(self, sim: Simulation, peers: Sequence[str], name: str) -> None:
        self.sim = sim
        self.client = sim.client(*peers)
        self.name = name
        self.made: dict[ObjectId, str] = {}  # certainly there, with their names
        self.gone: dict[ObjectId, str] = {}  # certainly not there
        self.errors: list[ActiveStoreError] = []

    def play(self, count: int, pause_s: float) -> None:
        """Make something, use it, and often delete it again."""
        rng = self.sim.rng
        for number in range(count):
            self.sim.sleep(rng.expovariate(1.0 / pause_s))
            try:
                self._live(f"{self.name}-{number}", rng.random() < 0.7)
            except ActiveStoreError as error:
                self.errors.append(error)

    def _live(self, alias: str, is_to_go: bool) -> None:
        copies = self.sim.rng.choice((1, 2, 3))
        counter = self.client.create(COUNTER, alias=alias, replicas=copies)
        object_id = id_of(counter)
        self.made[object_id] = alias
        assert counter.add() == 1
        if not is_to_go:
            return
        del self.made[object_id]  # Not sure until it is answered.
        self.client.delete(counter)
        self.gone[object_id] = alias

    def check_end(self) -> None:
        """Assert that names name what is there, and nothing else is."""
        client = self.sim.client(*self.sim.peers)
        for object_id, alias in self.made.items():
            assert id_of(client.get(alias)) == object_id
        self.check_gone(LEFT_S)
        for object_id, alias in self.gone.items():
            try:
                client.get(object_id).peek()
            except ObjectNotFoundError:
                pass
            else:
                raise AssertionError(f"{alias} was deleted and answers")
            again = self._make_again(client, alias)
            assert id_of(client.get(alias)) == id_of(again)

    def check_gone(self, wait_s: float) -> None:
        """Assert that nothing is left of what was deleted, within so many seconds.

        A leader that died with its own removal not on the disk leads it again first.
        """
        end_s = self.sim.now_s + wait_s
        while self.sim.now_s < end_s and any(
            register_at(peer, object_id) is not None
            for object_id in self.gone
            for peer in self.sim.peers.values()
        ):
            self.sim.run(1.0)
        for object_id, alias in self.gone.items():
            for peer in self.sim.peers.values():
                assert peer.engine.head(object_id) is None, (alias, peer.name)
                assert register_at(peer, object_id) is None, (alias, peer.name)

    def _make_again(self, client: SimClient, alias: str) -> Any:
        """Make another object of this name, within a while.

        A keeper of the name that a full disk kept from letting it go finds out when the
        name is wanted, and refuses that once.
        """
        end_s = self.sim.now_s + LEFT_S
        while True:
            try:
                return client.create(COUNTER, 5, alias=alias)
            except AliasExistsError:
                if self.sim.now_s >= end_s:
                    raise
                self.sim.run(1.0)


class Weather:
    """What goes wrong, one after the other and at once, until it is told to end.

    Longer and wider than `Faults`: peers that are cut off from all others, all that lose
    power at once, disks that are full for a while. `losers`: peers that may lose their
    disk, one of them once.
    """

    def __init__(
        self, sim: Simulation, for_s: float, kinds: Sequence[str],
        losers: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.sim = sim
        self.end_s = sim.now_s + for_s
        self.kinds = kinds
        self.losers = list(losers)

    def blow(self, pause_s: float) -> None:
        """Have something go wrong now and then; `pause_s`: the mean between two."""
        sim, rng = self.sim, self.sim.rng
        while True:
            sim.sleep(rng.expovariate(1.0 / pause_s))
            if sim.now_s >= self.end_s:
                return
            kind = rng.choice(self.kinds)
            name = rng.choice(list(sim.peers))
            getattr(self, f"_{kind}")(name)

    def _lasting(self, mean_s: float) -> None:
        left_s = max(0.0, self.end_s - self.sim.now_s)
        self.sim.sleep(min(left_s, self.sim.rng.expovariate(1.0 / mean_s)))

    def _cut(self, name: str) -> None:
        """Cut a peer off from all other peers; a third of the times one way only."""
        others = [one for one in self.sim.peers if one != name]
        sides = [[name], others]
        self.sim.rng.shuffle(sides)
        self.sim.partition(*sides, one_way=self.sim.rng.random() < 1 / 3)
        self._lasting(4.0)
        self.sim.heal([name], others)

    def _apart(self, name: str) -> None:
        """Cut a peer off from some others; the rest hear both sides."""
        others = [one for one in self.sim.peers if one != name]
        far = self.sim.rng.sample(others, self.sim.rng.randint(1, len(others) - 1))
        self.sim.partition(name, far)
        self._lasting(6.0)
        self.sim.heal(name, far)

    def _halves(self, _name: str) -> None:
        """Cut the cluster in two."""
        names = list(self.sim.peers)
        self.sim.rng.shuffle(names)
        at = self.sim.rng.randint(1, len(names) - 1)
        self.sim.partition(names[:at], names[at:])
        self._lasting(4.0)
        self.sim.heal(names[:at], names[at:])

    def _pause(self, name: str) -> None:
        self.sim.pause(name)
        self._lasting(4.0)
        self.sim.resume(name)

    def _crash(self, name: str) -> None:
        self.sim.crash(name)
        self._lasting(2.0)
        if not self.sim.peers[name].is_up:
            self.sim.restart(name)

    def _power(self, _name: str) -> None:
        """Have all peers lose power at once."""
        for name in self.sim.peers:
            self.sim.crash(name)
        self._lasting(1.0)
        for name, peer in self.sim.peers.items():
            if not peer.is_up:
                self.sim.restart(name)

    def _full(self, name: str) -> None:
        """Have a disk refuse some commits."""
        if self.sim.peers[name].is_up:
            self.sim.refuse_commits(name, self.sim.rng.randint(1, 6))

    def _executor(self, name: str) -> None:
        self.sim.crash_executor(name)

    def _break(self, name: str) -> None:
        self.sim.break_connections(name)

    def _lossy(self, name: str) -> None:
        """Have the lines of a peer lose messages for a while."""
        for other in self.sim.peers:
            if other != name:
                self.sim.set_link(name, other, loss=0.1)
        self._lasting(4.0)
        for other in self.sim.peers:
            if other != name:
                self.sim.set_link(name, other)

    def _disk(self, _name: str) -> None:
        """Have a peer lose its disk: it comes back as another one."""
        if not self.losers:
            return
        name = self.sim.rng.choice(self.losers)
        self.losers = []
        self.sim.crash(name, disk=False)
        self._lasting(2.0)
        if not self.sim.peers[name].is_up:
            self.sim.restart(name)

    def end(self) -> None:
        """Have all be well again."""
        self.sim.heal()
        self.sim.network.qualities.clear()
        for name, peer in self.sim.peers.items():
            if not peer.is_up:
                self.sim.restart(name)
            if peer.is_paused:
                self.sim.resume(name)
            peer.engine.refusals_left = 0
