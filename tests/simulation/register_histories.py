"""Whole histories of registers: clients that ask, faults that happen, and what is checked.

`run(seed, case)` plays one; it raises where something does not hold.
"""

from __future__ import annotations

from collections.abc import Callable

from activestore.core.replication import Replication
from activestore.core.replication_desk import ReplicationConfig
from activestore.core.replication_events import (
    ForceOrdered,
    LeadHandedOver,
    StateLost,
)
from activestore.ids import ObjectId, PeerId
from tests.simulation.register_checks import Broken
from tests.simulation.register_disks import State
from tests.simulation.register_world import Case, Chances, Node, World

# Half of the faults come shortly after the one before, while its effects are under way.
FAULT_PAUSES_S = ((0.01, 0.2), (0.3, 1.5))
# Requests are given up after this; then everything is mended.
TRY_S = 0.7
# What a leader says travels so long, and an age counts from its arrival.
VOUCHED_LATE_S = 1.0
# When all is mended every request is answered within this, whatever happened before.
MENDED_S = 60.0

CASES = {
    "calm": Case(Chances(loss=0.0, doubled=0.0, slow=0.0), faults=0),
    "lossy": Case(Chances(loss=0.1, doubled=0.1, slow=0.15)),
    "crashes": Case(Chances(crash=0.6, power_cut=0.1)),
    "cuts": Case(Chances(cut=0.6, crash=0.1)),
    "readers": Case(
        Chances(cut=0.4, heal=0.15, add=0.06, think_s=0.2), requests=60, clients=5
    ),
    "five": Case(Chances(crash=0.4, cut=0.4, power_cut=0.05), peers=5, copies=5),
    "pairs": Case(Chances(crash=0.4, cut=0.2), peers=2, copies=2),
    "witness": Case(Chances(crash=0.5, cut=0.3), copies=2, witness=True),
    "full_disks": Case(Chances(disk_full=0.5, crash=0.2)),
    "groups": Case(Chances(group=0.7, crash=0.2, cut=0.2), peers=5, copies=3),
    "many_groups": Case(
        Chances(group=0.9, hand_over=0.3, crash=0.1, cut=0.1), peers=4, copies=2
    ),
    "hand_overs": Case(Chances(hand_over=0.7, crash=0.1, cut=0.1)),
    "deletes": Case(Chances(delete=0.15, crash=0.3, cut=0.3, group=0.2), peers=4),
    "forced": Case(Chances(force=0.2, cut=0.4, crash=0.2, group=0.1), peers=4),
    "lost_disks": Case(
        Chances(lose_disk=0.15, crash=0.2, cut=0.1, group=0.4), peers=5, copies=3
    ),
    "restored_disks": Case(Chances(restore_disk=0.3, crash=0.3, cut=0.3), copies=3),
    "damages": Case(Chances(damage=0.5, crash=0.2, cut=0.2)),
    "bursts": Case(
        Chances(crash=0.2, cut=0.2, loss=0.05),
        requests=30,
        clients=5,
        config=ReplicationConfig(
            quorum_wait_s=2.0,
            whole_s=1.0,
            fetch_s=1.0,
            entries_max=3,
            catching_entries_max=6,
        ),
    ),
    "everything": Case(
        Chances(
            loss=0.05,
            crash=0.2,
            power_cut=0.05,
            cut=0.3,
            disk_full=0.1,
            group=0.4,
            hand_over=0.1,
            delete=0.01,
        ),
        peers=5,
        objects=2,
    ),
}
NAMES = tuple(CASES)


def history_of(number: int) -> tuple[str, int]:
    """Return case and seed of a history, by its place in the order of all."""
    return NAMES[number % len(NAMES)], number // len(NAMES)


class _Client:
    """Sends one request after the other, each until it is answered."""

    def __init__(self, history: History, number: int) -> None:
        self.history = history
        self.number = number
        self.left = history.case.requests
        self.attempt = 0
        self.request = -1
        self.floor = 0
        self.was_deleted = False
        self.object_id = history.world.objects[0]
        self.target: PeerId | None = None

    def next(self) -> None:
        history, world = self.history, self.history.world
        if not self.left:
            history.clients_left -= 1
            return
        self.left -= 1
        rng = world.rng
        self.object_id = rng.choice(world.objects)
        is_add = rng.random() < history.case.chances.add
        self.request = history.next_request() if is_add else -1
        self.floor = world.checks.seen.get(self.object_id, 0)
        self.was_deleted = self.object_id in world.checks.deleted
        self.send()

    def send(self) -> None:
        world = self.history.world
        self.attempt += 1
        attempt, request = self.attempt, self.request
        target = self.target or world.rng.choice(list(world.nodes))
        delay_s = world.rng.uniform(0.001, 0.02)
        world.later(delay_s, self._arrive, world.nodes[target], attempt, request)
        world.later(TRY_S, self._retry, attempt)

    def _arrive(self, node: Node, attempt: int, request: int) -> None:
        if node.core is None:
            return
        world = self.history.world
        object_id, life = self.object_id, node.life
        register = node.core.register_of(object_id)
        lineage = 0 if register is None else register.config.lineage

        def reply(error: str, state: State | None) -> None:
            if life == node.life:  # One that died answers no more.
                if not error and attempt == self.attempt:
                    self._check(lineage, state)
                world.later(0.002, self._answered, attempt, error, state, lineage)

        world.hint = None
        node.on_request(object_id, request, reply)
        if attempt == self.attempt:
            self.target = world.hint

    def _check(self, lineage: int, state: State | None) -> None:
        """Note an answer when it leaves: it may reach somebody from then on."""
        checks, object_id = self.history.world.checks, self.object_id
        assert state is not None
        floor, request = self.floor, self.request
        checks.on_served(object_id, was_deleted=self.was_deleted)
        now_s = self.history.world.now_s
        checks.on_answer(
            object_id, lineage, state, floor=floor, request=request, now_s=now_s
        )

    def _answered(
        self, attempt: int, error: str, state: State | None, lineage: int
    ) -> None:
        del state, lineage
        if attempt != self.attempt:
            return
        if error == "deleted" or (error and self.object_id in self.history.deleting):
            self.attempt += 1
            self.next()
        elif error:
            self.attempt += 1
            self.history.world.later(0.05, self._again, self.attempt)
        else:
            self.attempt += 1
            think_s = self.history.case.chances.think_s
            pause_s = self.history.world.rng.expovariate(1 / think_s)
            self.history.world.later(pause_s, self.next)

    def _again(self, attempt: int) -> None:
        if attempt == self.attempt:
            self.send()

    def _retry(self, attempt: int) -> None:
        if attempt == self.attempt:
            self.target = None
            if self.object_id in self.history.deleting:
                self.attempt += 1
                self.next()
            else:
                self.send()


class History:
    """One history: a world, its clients and its faults."""

    def __init__(self, seed: int, case: Case, core_class: type[Replication]) -> None:
        self.case = case
        self.world = World(seed, case, core_class)
        self._request = 0
        self.clients_left = case.clients
        self.faults_left = case.faults
        self.deleting: set[ObjectId] = set()
        self.voters: dict[ObjectId, tuple[PeerId, ...]] = {}
        self.lost: set[PeerId] = set()
        self.is_lossy = False

    def next_request(self) -> int:
        self._request += 1
        return self._request

    def play(self) -> World:
        """Play it to its end, and check the end."""
        world = self.world
        for object_id in world.objects:
            world.share(object_id)
        world.watch()
        world.run_until(0.3, lambda: False)
        for number in range(self.case.clients):
            world.later(world.rng.uniform(0, 0.2), _Client(self, number).next)
        self._fault()
        self._read_stale()
        end_s = FAULT_PAUSES_S[1][1] * (self.case.faults + 2)
        world.run_until(end_s, self._is_over)
        self._mend()
        world.run_until(world.now_s + MENDED_S, lambda: not self.clients_left)
        if self.clients_left and not self.is_lossy and not world.checks.is_forced:
            raise Broken(f"{self.clients_left} clients wait for ever: {self._state()}")
        self._check_end()
        return world

    def _is_over(self) -> bool:
        return not self.clients_left and not self.faults_left

    def _state(self) -> str:
        lines = []
        for object_id in self.world.objects:
            for node in self.world.nodes.values():
                row = node.disk.rows.get(object_id)
                if row is not None:
                    lines.append(f"\n  {node.peer_id!r} {row}")
                elif object_id in node.disk.plain:
                    lines.append(f"\n  {node.peer_id!r} {node.disk.plain[object_id]}")
        return "".join(lines)

    def _read_stale(self) -> None:
        """Read at any member what it may show, and look how old that says it is."""
        world = self.world
        object_id = world.rng.choice(world.objects)
        node = world.rng.choice(list(world.nodes.values()))
        row, core = node.disk.rows.get(object_id), node.core
        if core is not None and row is not None and row.state is not None:
            age_s = core.age_s(object_id, world.now_s)
            if age_s is not None and core.is_shown(object_id):
                lineage = row.register.config.lineage
                since_s = world.now_s - age_s - VOUCHED_LATE_S
                world.checks.on_stale(object_id, lineage, row.state, since_s)
        world.later(world.rng.uniform(0.01, 0.1), self._read_stale)

    # Faults

    def _fault(self) -> None:
        world, chances, rng = self.world, self.case.chances, self.world.rng
        if not self.faults_left:
            return
        self.faults_left -= 1
        faults: dict[str, Callable[[Node], None]] = {
            "crash": self._crash,
            "power_cut": self._power_cut,
            "cut": lambda _: world.cut(),
            "disk_full": self._disk_full,
            "group": self._group,
            "hand_over": self._hand_over,
            "delete": self._delete,
            "force": self._force,
            "lose_disk": self._lose_disk,
            "restore_disk": self._restore_disk,
            "damage": self._damage,
        }
        for name, act in faults.items():
            if rng.random() < getattr(chances, name):
                act(rng.choice(list(world.nodes.values())))
        for node in world.nodes.values():
            is_down = node.core is None and node.peer_id not in self.lost
            if is_down and rng.random() < 0.5:
                node.start()
            if node.disk.is_full and rng.random() < 0.5:
                node.disk.is_full = False
        if rng.random() < chances.heal:
            world.heal()
        world.later(rng.uniform(*rng.choice(FAULT_PAUSES_S)), self._fault)

    def _crash(self, node: Node) -> None:
        node.crash()

    def _power_cut(self, node: Node) -> None:
        del node
        for each in self.world.nodes.values():
            each.crash()

    def _disk_full(self, node: Node) -> None:
        node.disk.is_full = True

    def _leader(self) -> tuple[Node | None, ObjectId]:
        object_id = self.world.rng.choice(self.world.objects)
        return self.world.leader_of(object_id), object_id

    def _group(self, _: Node) -> None:
        leader, object_id = self._leader()
        rng, world = self.world.rng, self.world
        if leader is None or leader.core is None:
            return
        wanted = rng.randrange(1, len(world.nodes) + 1)
        wants_witness = rng.random() < self.case.chances.witness
        leaving = tuple(p for p in world.nodes if rng.random() < 0.2 or p in self.lost)
        wanted = max(1, min(wanted, len(world.nodes) - len(leaving)))
        if self.lost or self.case.chances.lose_disk:
            wanted = max(wanted, 2)
        if object_id in leader.disk.plain and object_id in self.deleting:
            return
        world.grow(leader, object_id, wanted, wants_witness, leaving)

    def _hand_over(self, node: Node) -> None:
        leader, object_id = self._leader()
        if leader is not None and object_id not in leader.disk.plain:
            leader.step(LeadHandedOver(0, object_id, node.peer_id))

    def _delete(self, _: Node) -> None:
        leader, object_id = self._leader()
        if leader is None or leader.core is None or object_id in leader.disk.plain:
            return
        self.deleting.add(object_id)

        def reply(error: str, state: State | None) -> None:
            if not error:
                self.world.checks.deleted.add(object_id)
                row = leader.disk.rows.get(object_id)
                if row is not None:
                    self.voters[object_id] = row.register.config.voters

        leader.on_request(object_id, -2, reply)

    def _force(self, node: Node) -> None:
        if node.core is not None:
            self.world.checks.is_forced = True
            node.step(ForceOrdered(0, self.world.objects[0]))

    def _lose_disk(self, node: Node) -> None:
        """A disk is gone for ever; an empty peer of another id comes for it.

        One in a history, of an object that others have too, or it would be gone.
        """
        if self.lost or not self._are_others(node):
            return
        node.crash()
        node.disk = type(node.disk)()
        self.lost.add(node.peer_id)
        self.is_lossy = True
        self.world.add_node()

    def _damage(self, node: Node) -> None:
        """A state can not be read any more; another has it, or it would be gone."""
        object_id = self.world.rng.choice(self.world.objects)
        row = node.disk.rows.get(object_id)
        if node.core is None or row is None or row.state is None:
            return
        # A copy that is to become a member's, or was one's, may go at any time.
        others = [
            n.disk.rows.get(object_id)
            for n in self.world.nodes.values()
            if n.peer_id in row.register.config.members
        ]
        equals = [
            other for other in others if other is not None and other.state == row.state
        ]
        if len(equals) < 2 or max(o.register.point for o in others if o) > min(
            o.register.point for o in equals
        ):
            return
        # What only a leader's disk has, and no majority, may be gone for good.
        self.is_lossy |= node.core.is_led(object_id)
        node.disk.rows[object_id] = row._replace(state=None)
        node.step(StateLost(object_id))

    def _are_others(self, node: Node) -> bool:
        for object_id in self.world.objects:
            if object_id in node.disk.plain:
                return False
            row = node.disk.rows.get(object_id)
            if row is not None and len(row.register.config.members) < 2:
                return False
        return True

    def _restore_disk(self, node: Node) -> None:
        """A disk is set back to an earlier state of it: once, at one peer."""
        others = [n for n in self.world.nodes.values() if n.is_distrusted]
        if others and others != [node]:
            return
        if node.backup is None or self.world.rng.random() < 0.5:
            node.backup = node.disk.copy()
            return
        node.crash()
        node.disk = node.backup.copy()
        node.is_distrusted = self.is_lossy = True
        node.start()

    # The end

    def _mend(self) -> None:
        world = self.world
        self.faults_left = 0
        world.is_calm = True
        world.heal()
        for node in world.nodes.values():
            node.disk.is_full = False
            if node.core is None and node.peer_id not in self.lost:
                node.start()

    def _check_end(self) -> None:
        """All acknowledged adds are in the newest state that anybody has."""
        world = self.world
        if self.is_lossy or world.checks.is_forced:
            return
        world.run_until(world.now_s + 10.0, lambda: False)
        for object_id in world.objects:
            for peer_id in self.voters.get(object_id, ()):
                row = world.nodes[peer_id].disk.rows.get(object_id)
                world.checks.on_kept(object_id, row)
            if object_id in self.deleting:
                continue
            leader = world.leader_of(object_id)
            if leader is None:
                raise Broken(f"nobody leads at the end: {self._state()}")
            plain = leader.disk.plain.get(object_id)
            state = plain[1] if plain else leader.disk.rows[object_id].state
            world.checks.on_end(object_id, state or ())


def run(seed: int, case: Case, core_class: type[Replication] = Replication) -> World:
    """Play a history."""
    return History(seed, case, core_class).play()
