"""Peers that are nothing but their core of replication, and what goes wrong with them.

Each has a disk that keeps what it was given when it was given it; a network that loses,
doubles, overtakes and cuts; and clients that add to counters and read them, again at
another peer where no answer came. One seed is one history.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from activestore.core.replication import Replication
from activestore.core.replication_desk import ReplicationConfig
from activestore.core.replication_effects import (
    Deposed,
    GroupChanged,
    GroupDone,
    Led,
    NoQuorum,
    ReadDone,
    Remove,
    ReplicationEffect,
    Send,
    SendWhole,
    Store,
    Unshared,
    WriteDone,
)
from activestore.core.replication_events import (
    GroupWanted,
    LinkReady,
    MessageCame,
    PeerSeen,
    ReplicationEvent,
    Stored,
    TimerFired,
    Touched,
    WriteStored,
)
from activestore.ids import ObjectId, PeerId
from activestore.wire.replicas import Accept
from tests.simulation.register_checks import Broken, Checks
from tests.simulation.register_disks import Disk, State, Write

# What is known later goes to a disk beside so many steps at most.
BESIDE_MAX = 16


class Chances(NamedTuple):
    """What may go wrong, and how often; a cause with 0 does not happen."""

    loss: float = 0.02
    doubled: float = 0.02
    slow: float = 0.05  # a message that takes up to 0.5 s
    crash: float = 0.0  # each of these: in every fault step
    power_cut: float = 0.0
    cut: float = 0.0
    disk_full: float = 0.0
    group: float = 0.0
    witness: float = 0.3  # of the changes of a group
    hand_over: float = 0.0
    delete: float = 0.0
    force: float = 0.0
    lose_disk: float = 0.0
    restore_disk: float = 0.0
    damage: float = 0.0
    heal: float = 0.4
    add: float = 0.6  # of the requests
    think_s: float = 0.3  # of a client between two requests, on average


class Case(NamedTuple):
    """A kind of history."""

    chances: Chances
    peers: int = 3
    objects: int = 1
    copies: int = 3
    witness: bool = False
    clients: int = 3
    requests: int = 25
    faults: int = 25
    config: ReplicationConfig = ReplicationConfig(
        quorum_wait_s=2.0, whole_s=2.0, fetch_s=1.0, learner_wait_s=10.0
    )


class Waiter(NamedTuple):
    """A request that runs at a leader; `number`: what must be committed for it."""

    reply: Callable[[str, State | None], None]
    number: int
    round: int | None
    state: State


class Node:
    """A peer: its core while it runs, its disk always."""

    def __init__(self, world: World, peer_id: PeerId) -> None:
        self.world = world
        self.peer_id = peer_id
        self.disk = Disk()
        self.core: Replication | None = None
        self.life = 0
        self.memory: dict[ObjectId, State | None] = {}
        self.newest: dict[ObjectId, int] = {}
        self.done: dict[ObjectId, int] = {}
        self.rounds: dict[ObjectId, int] = {}
        self.waiters: dict[ObjectId, list[Waiter]] = {}
        self.timer_s: float | None = None
        self.is_flushing = False
        self.is_distrusted = False
        self.backup: Disk | None = None

    # Life

    def start(self) -> None:
        world = self.world
        self.life += 1
        self.core = world.core_class(
            self.peer_id, world.case.config, world.rng.random, self.plain_epoch
        )
        for object_id, row in self.disk.rows.items():
            self.core.restore(object_id, row.register, row.heard)
        for peer_id in world.nodes:
            is_there = world.reaches(peer_id, self.peer_id)
            world.known[self.peer_id, peer_id] = is_there
            if peer_id != self.peer_id and not is_there:
                self.core.step(PeerSeen(peer_id, False), world.now_s)
        if self.is_distrusted:
            world.on_restored_disk(self.core)
        self.do(self.core.take_effects())

    def plain_epoch(self, object_id: ObjectId) -> int | None:
        plain = self.disk.plain.get(object_id)
        return None if plain is None else plain[0]

    def crash(self) -> None:
        """Lose everything but the disk; of what was under way a prefix is kept."""
        if self.core is None:
            return
        self.core = None
        self.life += 1
        pending, rng = self.disk.pending, self.world.rng
        for _ in range(rng.randrange(len(pending) + 1) if pending else 0):
            self._apply(*pending.popleft())
        pending.clear()
        self.memory, self.newest, self.done = {}, {}, {}
        self.rounds, self.waiters = {}, {}
        self.timer_s, self.is_flushing = None, False

    # Events and effects

    def step(self, event: ReplicationEvent) -> None:
        if self.core is not None:
            self.do(self.core.step(event, self.world.now_s))

    def do(self, effects: list[ReplicationEffect]) -> None:
        core = self.core
        assert core is not None
        for effect in effects:
            self._do_one(effect)
        core.check()
        self.arm()

    def arm(self) -> None:
        assert self.core is not None
        at_s = self.core.deadline_s()
        if at_s is not None and (self.timer_s is None or at_s < self.timer_s):
            self.timer_s = at_s
            self.world.at(at_s, self._on_timer, self.life, at_s)

    def _on_timer(self, life: int, at_s: float) -> None:
        if self.core is None or life != self.life or at_s != self.timer_s:
            return
        self.timer_s = None
        self.step(TimerFired())

    def _do_one(self, effect: ReplicationEffect) -> None:
        if isinstance(effect, Send):
            self.world.checks.on_sent(self.disk, effect.message)
            self.world.send(self, effect.peer_id, effect.message)
        elif isinstance(effect, Store):
            self.put("store", effect)
        elif isinstance(effect, SendWhole):
            self.put("whole", effect)
        elif isinstance(effect, Remove):
            self.put("remove", effect.object_id)
        else:
            self._tell(effect)

    def _tell(self, effect: ReplicationEffect) -> None:
        if isinstance(effect, Led):
            self._on_led(effect.object_id)
        elif isinstance(effect, Deposed):
            self._fail(effect.object_id, "deposed")
        elif isinstance(effect, WriteDone):
            self.done[effect.object_id] = effect.number
            self._answer(effect.object_id)
        elif isinstance(effect, ReadDone):
            self.rounds[effect.object_id] = effect.round
            self._answer(effect.object_id)
        elif isinstance(effect, GroupChanged):
            self.world.checks.on_config(effect.object_id, effect.config)
        elif isinstance(effect, Unshared):
            self._fail(effect.object_id, "unshared")
            self.put("unshare", (effect.object_id, effect.counter))
        elif isinstance(effect, GroupDone):
            self.world.on_group_done(effect)
        elif isinstance(effect, NoQuorum):
            self.world.no_quorums += 1

    # The disk

    def put(self, kind: str, order: Any) -> None:
        self.disk.pending.append((kind, order))
        if not self.is_flushing:
            self.is_flushing = True
            delay_s = self.world.rng.uniform(0.001, 0.01)
            self.world.later(delay_s, self._flush, self.life)

    def _flush(self, life: int) -> None:
        """Make what was ordered until now durable: one commit."""
        if life != self.life or self.core is None:
            return
        self.is_flushing = False
        batch = self._batch()
        answers = [(kind, order, self._apply(kind, order)) for kind, order in batch]
        for kind, order, problem in answers:
            if self.core is None or life != self.life:
                return
            self._on_durable(kind, order, problem)
        if self.disk.pending and not self.is_flushing:
            self.is_flushing = True
            self.world.later(0.002, self._flush, self.life)

    def _batch(self) -> list[tuple[str, Any]]:
        """Return what one commit takes: all, or all but the steps of copies.

        The two kinds are each in order, and not always with each other.
        """
        batch, pending = list(self.disk.pending), self.disk.pending
        pending.clear()
        if any(kind == "write" for kind, _ in batch) and self.world.rng.random() < 0.3:
            pending.extend(one for one in batch if one[0] in ("store", "whole"))
            batch = [one for one in batch if one[0] not in ("store", "whole")]
        if self.core is not None and any(kind == "store" for kind, _ in batch):
            batch += [("beside", one) for one in self.core.take_unkept(BESIDE_MAX)]
        return batch

    def _apply(self, kind: str, order: Any) -> str:
        if kind == "whole":
            self._read_whole(order)
            return ""
        if kind == "answer":
            return ""
        object_id = self._object_of(kind, order)
        old = self.disk.rows.get(object_id)
        problem = self.disk.apply(kind, order)
        new = self.disk.rows.get(object_id)
        if new is not None and new is not old:
            self.world.checks.on_row(object_id, old, new)
        return problem

    @staticmethod
    def _object_of(kind: str, order: Any) -> ObjectId:
        if kind in ("store", "write", "beside"):
            return order.object_id
        return order if kind == "remove" else order[0]

    def _read_whole(self, order: SendWhole) -> None:
        """Read the state, in one transaction with its register; sent right after."""
        message = order.message
        row = self.disk.rows.get(message.object_id)
        if row is None or (row.state is None and not row.register.is_deleted):
            return
        register, is_accept = row.register, isinstance(message, Accept)
        if is_accept and register.epoch != message.epoch:
            return
        change = None if register.is_deleted else ("whole", row.state)
        what = {"number": register.number} if is_accept else {"at": register.point}
        message = message._replace(
            config=register.config,
            is_deleted=register.is_deleted,
            change=change,
            **what,
        )
        self.world.send(self, order.peer_id, message)

    def _on_durable(self, kind: str, order: Any, problem: str) -> None:
        if kind == "store":
            self.step(Stored(order.token, problem))
        elif kind == "write":
            if problem:
                self._fail(order.object_id, problem)
            number = order.register.number
            self.step(WriteStored(order.object_id, number, bool(problem)))
        elif kind == "answer":
            order()

    # Requests

    def _on_led(self, object_id: ObjectId) -> None:
        row = self.disk.rows[object_id]
        self.memory[object_id] = row.state
        self.newest[object_id] = self.done[object_id] = row.register.number
        self.rounds[object_id] = 0
        self.waiters[object_id] = []

    def _fail(self, object_id: ObjectId, why: str) -> None:
        self.memory.pop(object_id, None)
        for waiter in self.waiters.pop(object_id, ()):
            waiter.reply(why, None)

    def _answer(self, object_id: ObjectId) -> None:
        waiting = []
        for waiter in self.waiters.get(object_id, ()):
            is_done = self.done[object_id] >= waiter.number
            if waiter.round is not None:
                is_done = is_done and self.rounds[object_id] >= waiter.round
            if is_done:
                waiter.reply("", waiter.state)
            else:
                waiting.append(waiter)
        if object_id in self.waiters:
            self.waiters[object_id] = waiting

    def on_request(
        self,
        object_id: ObjectId,
        request: int,
        reply: Callable[[str, State | None], None],
    ) -> None:
        """Run a request: its number for an add, -1 for a read, -2 for a delete."""
        core = self.core
        assert core is not None
        if object_id in self.disk.plain:
            self._on_plain(object_id, request, reply)
        elif core.is_led(object_id):
            self._on_led_request(core, object_id, request, reply)
        elif core.register_of(object_id) is not None:
            self.step(Touched(object_id))
            leader = core.leader_of(object_id)
            reply("moved" if leader else "unknown", None)
            self.world.hint = leader.leader if leader else None
        else:
            reply("unknown", None)

    def _on_plain(
        self,
        object_id: ObjectId,
        request: int,
        reply: Callable[[str, State | None], None],
    ) -> None:
        if self.disk.pending or request == -2:
            reply("busy", None)
            return
        counter, state = self.disk.plain[object_id]
        if request >= 0 and request not in state:
            state = (*state, request)
            self.put("plain", (object_id, counter, state))
        seen = state[: state.index(request) + 1] if request >= 0 else state
        self.put("answer", lambda: reply("", seen))

    def _on_led_request(
        self,
        core: Replication,
        object_id: ObjectId,
        request: int,
        reply: Callable[[str, State | None], None],
    ) -> None:
        if object_id not in self.memory:
            row = self.disk.rows.get(object_id)
            if any(k == "write" for k, _ in self.disk.pending) or row is None:
                reply("busy", None)
                return
            self.memory[object_id] = row.state  # After a write that was refused.
            self.waiters[object_id] = []
        state = self.memory[object_id]
        if state is None:
            reply("deleted", None)
            return
        number: int | None = None
        if request == -2:
            number = self._write(core, object_id, None, is_delete=True)
        elif request >= 0 and request not in state:
            state = (*state, request)
            number = self._write(core, object_id, state, is_delete=False)
        round_number = core.confirm(object_id) if request == -1 else None
        number = self.newest[object_id] if number is None else number
        seen = state[: state.index(request) + 1] if request >= 0 else state
        self.waiters[object_id].append(Waiter(reply, number, round_number, seen))
        self._answer(object_id)
        self.do(core.take_effects(self.world.now_s))

    def _write(
        self,
        core: Replication,
        object_id: ObjectId,
        state: State | None,
        *,
        is_delete: bool,
    ) -> int:
        before = self.memory[object_id]
        change = None if state is None else ("add", state[-1:])
        register = core.begin_write(object_id, change, is_delete=is_delete, size=10)
        self.memory[object_id] = state
        self.newest[object_id] = register.number
        self.put("write", Write(object_id, register, before, state))
        return register.number


class World:
    """Everything of one history."""

    def __init__(
        self, seed: int, case: Case, core_class: type[Replication] = Replication
    ) -> None:
        self.seed = seed
        self.case = case
        self.core_class = core_class
        self.rng = random.Random(seed)
        self.now_s = 0.0
        self.checks = Checks()
        self.nodes: dict[PeerId, Node] = {}
        self.is_calm = False
        self.hint: PeerId | None = None
        self.no_quorums = 0
        self.group_errors: dict[int, str] = {}
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = 0
        self._cuts: set[tuple[PeerId, PeerId]] = set()
        self.known: dict[tuple[PeerId, PeerId], bool] = {}
        self.steps = 0
        for _ in range(case.peers):
            self.add_node()
        self.objects = [ObjectId(bytes([n]) * 16) for n in range(1, case.objects + 1)]

    def add_node(self) -> Node:
        """Add a peer with an empty disk."""
        peer_id = PeerId(b"peer" + bytes([0x30, 0x30 + len(self.nodes)]))
        node = self.nodes[peer_id] = Node(self, peer_id)
        node.start()
        return node

    def on_restored_disk(self, core: Replication) -> None:
        """R9: what a peer does that finds others remember more than its disk."""
        core.distrust()

    # Time

    def at(self, at_s: float, what: Callable[..., None], *args: Any) -> None:
        self._serial += 1
        at_s = max(at_s, self.now_s)  # What is late is due now.
        heapq.heappush(self._events, (at_s, self._serial, what, args))

    def later(self, in_s: float, what: Callable[..., None], *args: Any) -> None:
        self.at(self.now_s + in_s, what, *args)

    def run_until(self, end_s: float, is_done: Callable[[], bool]) -> None:
        while self._events and self._events[0][0] <= end_s and not is_done():
            self.now_s, _, what, args = heapq.heappop(self._events)
            self.steps += 1
            what(*args)
        if not is_done():
            self.now_s = end_s

    # Network

    def reaches(self, sender: PeerId, receiver: PeerId) -> bool:
        node = self.nodes[sender]
        is_cut = (min(sender, receiver), max(sender, receiver)) in self._cuts
        return node.core is not None and not is_cut

    def send(self, sender: Node, peer_id: PeerId, message: Any) -> None:
        chances, rng = self.case.chances, self.rng
        receiver = self.nodes.get(peer_id)
        if receiver is None:
            return
        copies = 1
        if not self.is_calm:
            chance = rng.random()
            if chance < chances.loss:
                return
            copies = 2 if chance > 1 - chances.doubled else 1
        lives = (sender.life, receiver.life)
        for _ in range(copies):
            delay_s = rng.uniform(0.001, 0.01)
            if not self.is_calm and rng.random() < chances.slow:
                delay_s = rng.uniform(0.01, 0.5)
            self.later(delay_s, self._deliver, sender, receiver, lives, message)

    def _deliver(
        self, sender: Node, receiver: Node, lives: tuple[int, int], message: Any
    ) -> None:
        if receiver.core is None or receiver.life != lives[1]:
            return
        a, b = sender.peer_id, receiver.peer_id
        if (min(a, b), max(a, b)) in self._cuts:
            return
        receiver.step(MessageCame(a, message))

    def watch(self) -> None:
        """Tell each peer which others answer, late, and sometimes wrongly."""
        for a in list(self.nodes.values()):
            for b in list(self.nodes):
                if a.peer_id == b or a.core is None:
                    continue
                is_there = self.reaches(b, a.peer_id)
                if not self.is_calm and self.rng.random() < 0.01:
                    is_there = not is_there
                key = (a.peer_id, b)
                if self.known.get(key, True) != is_there:
                    self.known[key] = is_there
                    a.step(PeerSeen(b, is_there))
                    if is_there:
                        a.step(LinkReady(b))
        self.later(self.rng.uniform(0.2, 0.6), self.watch)

    def cut(self) -> None:
        """Separate the peers into two sides."""
        side = {peer for peer in self.nodes if self.rng.random() < 0.5}
        for a in self.nodes:
            for b in self.nodes:
                if a < b and (a in side) != (b in side):
                    self._cuts.add((a, b))

    def heal(self) -> None:
        """Join the sides again."""
        self._cuts.clear()

    def on_group_done(self, effect: GroupDone) -> None:
        self.group_errors[effect.request] = effect.error

    def share(self, object_id: ObjectId) -> None:
        """Make an object of the first peer, and its group."""
        node = next(iter(self.nodes.values()))
        node.disk.plain[object_id] = (1, ())
        self.grow(node, object_id, self.case.copies, self.case.witness, ())

    def grow(
        self,
        node: Node,
        object_id: ObjectId,
        wanted: int,
        wants_witness: bool,
        leaving: tuple[PeerId, ...],
    ) -> int:
        """Order a group of a peer that leads an object, or has it alone."""
        core = node.core
        assert core is not None
        if object_id in node.disk.plain:
            if node.disk.pending:
                return -1
            counter, _ = node.disk.plain[object_id]
            register, effects = core.begin(object_id, counter, self.now_s)
            # Nothing else is under way at this peer.
            node.disk.apply("share", (object_id, register))
            self.checks.on_row(object_id, None, node.disk.rows[object_id])
            node.do(effects)
        candidates = [peer for peer in self.nodes if peer != node.peer_id]
        self.rng.shuffle(candidates)
        request = self._serial
        event = GroupWanted(
            request, object_id, wanted, wants_witness, tuple(candidates), leaving
        )
        node.step(event)
        return request

    def leader_of(self, object_id: ObjectId) -> Node | None:
        """Return a peer that leads an object, or has it alone."""
        for node in self.nodes.values():
            if node.core is None:
                continue
            if node.core.is_led(object_id) or object_id in node.disk.plain:
                return node
        return None


__all__ = ["Broken", "Case", "Chances", "Node", "World"]
