"""What goes wrong in a run: which fault when, at whom, and never more than is fair.

    kill       kill -9, and started again some seconds later
    pause      SIGSTOP, SIGCONT
    isolate    nothing gets to or from a peer, in half of the cases also not for clients
    pair       two peers do not hear each other, all others do
    apart      a leader and the rest of a group do not hear each other, all others do
    one-way    what one peer says does not reach another
    disk       nothing that the daemon writes gets to the disk: it is full
    growth     its files cannot grow; what they have can be written
    executor   kill -9 of a process that runs methods

Rules of this file: all chance comes from one generator, but which peer leads what is as
it happens to be, so that a seed gives the same plan and not the same run. Unless it is
cruel, a minority of each group's voters is hit at a time, and a peer counts as hit until
it has been well again for `SETTLE_S`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Protocol

from bench.chaos.peers import ChaosPeer
from bench.chaos.relay import Relay

# How often a kind is chosen, and how long it lasts, in seconds.
KINDS: Mapping[str, tuple[float, float, float]] = {
    "kill": (3.0, 0.2, 6.0),
    "pause": (2.0, 1.0, 8.0),
    "isolate": (2.0, 2.0, 10.0),
    "pair": (1.0, 2.0, 10.0),
    "apart": (1.0, 2.0, 10.0),
    "one-way": (1.0, 2.0, 10.0),
    "disk": (1.0, 2.0, 8.0),
    "growth": (0.5, 2.0, 8.0),
    "executor": (0.5, 0.0, 0.0),
}
# Between two faults, on average.
BETWEEN_S = 3.0
# A peer that is back is heard of, and has heard what it missed.
SETTLE_S = 4.0
# Share of the faults that are aimed at the leader of some object.
AIMED = 0.6
FULL = frozenset({"disk", "growth"})


class View(Protocol):
    """What is known of the groups now."""

    def leaders(self) -> dict[str, str]:
        """Return who leads each object."""
        ...

    def voters(self) -> dict[str, frozenset[str]]:
        """Return who has a vote on each object."""
        ...


class Fault:
    """One fault. `impaired`: peers that count as down. `led`: objects that they led."""

    def __init__(self, kind: str, names: tuple[str, ...], begin_s: float) -> None:
        self.kind = kind
        self.names = names
        self.begin_s = begin_s
        self.end_s = begin_s
        self.impaired = frozenset(names[:1]) if kind != "executor" else frozenset()
        self.led: tuple[str, ...] = ()
        self.is_starting = False  # a daemon that was killed and is not ready yet
        self.with_clients = False


class Nemesis:
    """Begins and ends faults; `turn` it often."""

    def __init__(
        self,
        peers: Sequence[ChaosPeer],
        relay: Relay,
        view: View,
        rng: random.Random,
        clients: Sequence[str],
        *,
        kinds: Sequence[str],
        is_cruel: bool,
    ) -> None:
        self._peers = {peer.name: peer for peer in peers}
        self._relay = relay
        self._view = view
        self._rng = rng
        self._clients = clients
        self._kinds = kinds
        self._is_cruel = is_cruel
        self._next_s = 0.0
        self._active: list[Fault] = []
        self.faults: list[Fault] = []

    def turn(self, now_s: float) -> None:
        """End what is over, and begin what is due."""
        for fault in list(self._active):
            if now_s >= fault.end_s:
                self._end(fault, now_s)
        if self._next_s == 0.0:
            self._next_s = now_s + self._rng.expovariate(1.0 / BETWEEN_S)
        elif now_s >= self._next_s:
            self._next_s = now_s + self._rng.expovariate(1.0 / BETWEEN_S)
            self._begin_one(now_s)

    def end_all(self, now_s: float) -> bool:
        """End everything that goes on; return whether all peers are ready again."""
        for fault in list(self._active):
            fault.end_s = min(fault.end_s, now_s)
            self._end(fault, now_s)
        return not self._active

    # -- begin -------------------------------------------------------------------------

    def _begin_one(self, now_s: float) -> None:
        weights = [KINDS[one][0] for one in self._kinds]
        kind = self._rng.choices(self._kinds, weights)[0]
        _, low_s, high_s = KINDS[kind]
        lasts_s = self._rng.uniform(low_s, high_s)
        first = self._target()
        names = self._names(kind, first)
        with_clients = self._rng.random() < 0.5
        fault = Fault(kind, names, now_s)
        busy = {name for one in self._active for name in one.names}
        if busy & set(names) or not (self._is_cruel or self._is_fair(fault, now_s)):
            return
        leaders = self._view.leaders()
        fault.led = tuple(
            one
            for one, peer in leaders.items()
            if peer in fault.impaired and self._is_lost(one, fault)
        )
        fault.end_s = now_s + lasts_s
        fault.with_clients = with_clients and kind == "isolate"
        self._active.append(fault)
        self.faults.append(fault)
        self._do(fault)

    def _names(self, kind: str, first: str) -> tuple[str, ...]:
        """Return who is hit: the first one, and whom it does not hear."""
        others = [name for name in self._peers if name != first]
        second = self._rng.choice(others) if others else first
        if kind == "apart":
            leaders, voters = self._view.leaders(), self._view.voters()
            led = [o for o, peer in leaders.items() if peer == first and o in voters]
            groups = [voters[one] for one in led]
            rest = self._rng.choice(groups) - {first} if groups else frozenset()
            return first, *(sorted(rest & self._peers.keys()) or [second])
        return (first, second) if kind in {"pair", "one-way"} else (first,)

    def _is_lost(self, name: str, fault: Fault) -> bool:
        """Whether the leader of an object is down, or hears no majority of its group."""
        if fault.kind != "apart":
            return True
        voters = self._view.voters().get(name, frozenset())
        return len(voters - set(fault.names[1:])) <= len(voters) // 2

    def _target(self) -> str:
        leaders = sorted(self._view.leaders().items())
        if leaders and self._rng.random() < AIMED:
            peer = self._rng.choice(leaders)[1]
            if peer in self._peers:
                return peer
        return self._rng.choice(list(self._peers))

    def _is_fair(self, fault: Fault, now_s: float) -> bool:
        down = set(fault.impaired)
        for one in self.faults:
            if one in self._active or now_s < one.end_s + SETTLE_S:
                down |= one.impaired
        groups = self._view.voters().values() or [frozenset(self._peers)]
        return all(
            # Of one voter nothing is a minority: then one peer at a time.
            len(down & voters) <= (len(voters) - 1) // 2
            or (len(voters) == 1 and len(down) <= 1)
            for voters in groups
        )

    def _do(self, fault: Fault) -> None:
        peer = self._peers[fault.names[0]]
        if fault.kind == "kill":
            peer.kill()
        elif fault.kind == "pause":
            peer.pause()
        elif fault.kind in FULL:
            peer.fill_disk(can_overwrite=fault.kind == "growth")
        elif fault.kind == "executor":
            peer.kill_executor()
        else:
            for source, target in self._ways(fault):
                self._relay.cut(source, target)

    def _ways(self, fault: Fault) -> list[tuple[str, str]]:
        first = fault.names[0]
        if fault.kind == "one-way":
            return [(first, fault.names[1])]
        others = list(fault.names[1:])
        if fault.kind == "isolate":
            others = [name for name in self._peers if name != first]
            others += self._clients if fault.with_clients else ()
        return [way for one in others for way in ((first, one), (one, first))]

    # -- end ---------------------------------------------------------------------------

    def _end(self, fault: Fault, now_s: float) -> None:
        peer = self._peers[fault.names[0]]
        if fault.kind == "kill":
            if not fault.is_starting:
                fault.is_starting = True
                peer.start()
            if not peer.is_ready():
                return
        elif fault.kind == "pause":
            peer.resume()
        elif fault.kind in FULL:
            peer.free_disk()
        elif fault.kind != "executor":
            still = {w for one in self._active if one is not fault and _cuts(one)
                     for w in self._ways(one)}  # fmt: skip
            for way in self._ways(fault):
                if way not in still:
                    self._relay.heal(*way)
        fault.end_s = now_s
        self._active.remove(fault)


def _cuts(fault: Fault) -> bool:
    return fault.kind in {"isolate", "pair", "apart", "one-way"}
