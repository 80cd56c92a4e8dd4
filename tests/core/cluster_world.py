"""A small seeded network of Membership cores under virtual time, and nothing else.

Messages take `delay_s`, are lost with a chance, do not cross a partition, and wait at a
peer that is paused. A record's endpoint is the address: two peers with one id can run.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from typing import Any

from activestore.core.cluster_effects import (
    MemberChanged,
    Note,
    SeedWanted,
    SendTo,
    Troubled,
)
from activestore.core.cluster_events import (
    Joined,
    LeaveOrdered,
    MessageArrived,
    TimerFired,
)
from activestore.core.membership import Membership, MembershipConfig
from activestore.core.peers import PeerRecord, PeerState
from activestore.wire import codec

# What ZeroMQ and the record frame add to a header and body.
FRAME_BYTES = 12


def peer_id_of(number: int) -> bytes:
    """Return the id of the numbered peer."""
    return b"p" + number.to_bytes(5, "big")


def record_of(number: int, **changes: Any) -> PeerRecord:
    """Return the record of the numbered peer, as a real one is."""
    meta = {
        "cores": 4, "memory_mb": 8192, "load": 0.5, "stable": True,
        "host": f"host-{number}", "start": number.to_bytes(4, "big"),
    }  # fmt: skip
    record = PeerRecord(
        peer_id_of(number), 1, f"peer-{number}", (f"tcp://10.0.0.1:{number}",), "home",
        "lan", 1, meta,
    )  # fmt: skip
    return record._replace(**changes)


class Node:
    """One peer: its core, and what happened to it."""

    def __init__(self, world: ClusterWorld, core: Membership, address: str) -> None:
        self.world = world
        self.core = core
        self.address = address
        self.side = 0
        self.is_up = True
        self.paused_until_s = 0.0
        self.waiting: list[Any] = []
        self.wake_s = float("inf")
        self.sent_bytes = 0
        self.sent_count = 0
        self.changes: list[tuple[float, MemberChanged]] = []
        self.notes: list[str] = []
        self.effects: list[Any] = []

    @property
    def peer_id(self) -> bytes:
        """Its id."""
        return self.core.me.peer_id

    def sees(self, peer_id: bytes) -> PeerState | None:
        """Return what it believes of a peer."""
        return self.core.state_of(peer_id)

    @property
    def live(self) -> set[bytes]:
        """The ids of all that it takes for live."""
        return {record.peer_id for record in self.core.live()}


class ClusterWorld:
    """A number of nodes, a clock, and what is on its way."""

    def __init__(
        self, seed: int = 1, *, loss: float = 0.0, delay_s: float = 0.002,
        does_check: bool = True, config: MembershipConfig | None = None,
        does_measure: bool = False, does_seed: bool = False,
    ) -> None:  # fmt: skip
        self.rng = random.Random(seed)
        self.loss = loss
        self.delay_s = delay_s
        self.does_check = does_check
        self.does_measure = does_measure
        self.does_seed = does_seed
        self.config = config or MembershipConfig()
        self.now_s = 0.0
        self.nodes: dict[str, Node] = {}
        self.routes: dict[tuple[str, bytes], str] = {}
        self.steps = 0
        self.deaths: list[tuple[float, bytes, bytes]] = []  # when, whose, seen by
        self.suspicions = 0
        self.blocked: Callable[[Node, Node], bool] | None = None
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = 0

    def add(self, record: PeerRecord, *, join: Node | None = None) -> Node:
        """Start a peer; let it join another."""
        core = Membership(record, self.config, self.rng.random)
        node = Node(self, core, record.endpoints[0])
        self.nodes[node.address] = node
        self.step(node, Joined([bare(join)] if join is not None else []))
        return node

    def grow(self, count: int, *, start_s: float = 0.0) -> list[Node]:
        """Start peers that join the first one, all within `start_s`."""
        nodes = [self.add(record_of(0))]
        for number in range(1, count):
            self.now_s += start_s / count
            nodes.append(self.add(record_of(number), join=nodes[0]))
        return nodes

    def kill(self, node: Node) -> None:
        """End a peer without a word."""
        node.is_up = False
        self.nodes.pop(node.address, None)

    def leave(self, node: Node) -> None:
        """End a peer with a word, a second later."""
        self.step(node, LeaveOrdered())
        self.later(1.0, self.kill, node)

    def pause(self, node: Node, for_s: float) -> None:
        """Let a peer do nothing for a while; what is sent to it waits."""
        node.paused_until_s = self.now_s + for_s
        self.later(for_s, self._resume, node)

    def split(self, *sides: Iterable[Node]) -> None:
        """Cut the network between these groups."""
        for number, side in enumerate(sides):
            for node in side:
                node.side = number

    def heal(self) -> None:
        """Mend the network."""
        self.split(self.nodes.values())

    def later(self, delay_s: float, action: Callable[..., None], *args: Any) -> None:
        """Do something at a later time."""
        self._serial += 1
        entry = (self.now_s + delay_s, self._serial, action, args)
        heapq.heappush(self._heap, entry)

    def run(self, for_s: float) -> None:
        """Let time pass."""
        end_s = self.now_s + for_s
        while self._heap and self._heap[0][0] <= end_s:
            self.now_s, _, action, args = heapq.heappop(self._heap)
            action(*args)
        self.now_s = end_s

    def run_until(self, is_done: Callable[[], bool], *, within_s: float) -> float:
        """Let time pass until something holds; return how long it took."""
        start_s = self.now_s
        while not is_done():
            assert self.now_s - start_s <= within_s, f"not within {within_s} s"
            self.run(0.1)
        return self.now_s - start_s

    def is_converged(self) -> bool:
        """Whether all peers that are up take exactly these for live."""
        nodes = [node for node in self.nodes.values() if node.is_up]
        up = {node.peer_id for node in nodes}
        return all(
            len(node.core.live()) == len(up) and node.live == up for node in nodes
        )

    def step(self, node: Node, event: Any) -> None:
        """Let one event happen at a node, and carry out what it wants."""
        self.steps += 1
        for effect in node.core.step(event, self.now_s):
            kind = type(effect)
            if kind is SendTo:
                self._send(node, effect)
            elif kind is MemberChanged:
                node.changes.append((self.now_s, effect))
                self.suspicions += effect.new_state is PeerState.SUSPECT
                if effect.new_state is PeerState.DEAD:
                    self.deaths.append((self.now_s, effect.peer_id, node.peer_id))
            elif kind is Note:
                node.notes.append(effect.text)
            elif kind is Troubled:
                node.notes.append(effect.reason)
            else:
                node.effects.append(effect)
                if kind is SeedWanted and self.does_seed:
                    self.later(self.delay_s, self._ask_seed, node)
        if self.does_check:
            node.core.check()
        self._arm(node)

    def _ask_seed(self, node: Node) -> None:
        """Let a peer find the eldest that is up, as a name or a multicast would."""
        seed = next((one for one in self.nodes.values() if one.is_up), node)
        if node.is_up and seed is not node and seed.side == node.side:
            self.step(node, Joined([bare(seed)]))

    def _arm(self, node: Node) -> None:
        wake_s = node.core.deadline_s()
        if wake_s is not None and wake_s < node.wake_s:
            node.wake_s = wake_s
            self.later(max(0.0, wake_s - self.now_s), self._fire, node, wake_s)

    def _fire(self, node: Node, wake_s: float) -> None:
        if not node.is_up or node.wake_s != wake_s:
            return
        if self.now_s < node.paused_until_s:
            return
        node.wake_s = float("inf")
        self.step(node, TimerFired())

    def _resume(self, node: Node) -> None:
        if not node.is_up or self.now_s < node.paused_until_s:
            return
        node.wake_s = float("inf")
        self.step(node, TimerFired())
        waiting, node.waiting = node.waiting, []
        for sender, message in waiting:
            self._deliver(sender, node, message)

    def _send(self, node: Node, effect: SendTo) -> None:
        if self.does_measure:
            node.sent_bytes += len(codec.encode(effect.message)) + FRAME_BYTES
        node.sent_count += 1
        address = self.routes.get((node.address, effect.peer_id), "")
        if effect.endpoints:
            address = effect.endpoints[0]
        target = self.nodes.get(address)
        if target is None or target.peer_id != effect.peer_id:
            return
        if node.side != target.side or (self.blocked and self.blocked(node, target)):
            return
        if self.loss and self.rng.random() < self.loss:
            return
        delay_s = self.delay_s * (0.5 + self.rng.random())
        self.later(delay_s, self._deliver, node, target, effect.message)

    def _deliver(self, sender: Node, target: Node, message: Any) -> None:
        if not target.is_up:
            return
        if self.now_s < target.paused_until_s:
            target.waiting.append((sender, message))
            return
        self.routes[(target.address, sender.peer_id)] = sender.address
        self.step(target, MessageArrived(sender.peer_id, message))


def bare(node: Node) -> PeerRecord:
    """Return a record as an address gives it: nobody knows more of it yet."""
    me = node.core.me
    return me._replace(incarnation=0, zone="", meta={})
