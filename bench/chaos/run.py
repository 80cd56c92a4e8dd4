"""One run of chaos: peers, clients and faults, then the judgement.

Rules of this file: whatever happens, every process that was started is ended by its id,
and every cut is healed. Times are of the machine's monotonic clock, which all processes
share.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import activestore
from activestore.errors import ActiveStoreError
from bench.chaos import judging
from bench.chaos.faults import Nemesis
from bench.chaos.peers import ChaosPeer
from bench.chaos.relay import Relay

HERE = Path(__file__).resolve().parent
MODULE = HERE / "chaos_objects.py"
JOURNAL = "journal"
HISTORY = "history.jsonl"
# Clients give a call up after so long without a sign of life.
SILENCE_S = 10.0
# All is well before the first fault, and after the last.
WARM_UP_S = 2.0
# Every object must be reachable so soon after all peers are.
HEAL_S_MAX = 120.0
# A call that is open when the run ends has so long to end.
LAST_CALLS_S_MAX = 90.0
LOOK_S = 0.02
TELL_S = 5.0
GROUP_S = 5.0


class Options(NamedTuple):
    """What is asked for; see `--help`."""

    minutes: float
    peers: int
    clients: int
    seed: int
    objects: int
    replicas: int
    think_s: float
    staleness_s: float
    is_cruel: bool
    kinds: tuple[str, ...]  # of faults; none: nothing goes wrong
    out: Path


class Known:
    """What the answers tell meanwhile: who leads what, and how many there were."""

    def __init__(self, history: Any) -> None:
        self._history = history
        self._lock = threading.Lock()
        self._led: dict[str, tuple[int, str]] = {}
        self._voters: dict[str, frozenset[str]] = {}
        self.rows: list[Mapping[str, Any]] = []
        # Of peers by id in hex, for clients that have no link to one see that alone.
        self.names: dict[str, str] = {}

    def note(self, row: dict[str, Any]) -> None:
        """Take one operation that has ended."""
        with self._lock:
            if "peer" in row:
                row["peer"] = self.names.get(row["peer"], row["peer"])
            self._history.write(json.dumps(row) + "\n")
            self.rows.append(row)
            if row["call"] != "stale" and "epoch" in row:
                self._led[row["object"]] = max(
                    self._led.get(row["object"], (-1, "")), (row["epoch"], row["peer"])
                )

    def place(self, name: str, leader: str, epoch: int, voters: frozenset[str]) -> None:
        """Take what a peer says of a group."""
        with self._lock:
            self._voters[name] = voters
            if leader:
                self._led[name] = max(self._led.get(name, (-1, "")), (epoch, leader))

    def leaders(self) -> dict[str, str]:
        """Return who leads each object."""
        with self._lock:
            return {name: peer for name, (_, peer) in self._led.items()}

    def voters(self) -> dict[str, frozenset[str]]:
        """Return who has a vote on each object."""
        with self._lock:
            return dict(self._voters)


class Run:
    """Use it in a `with` block."""

    def __init__(self, options: Options, tell: Callable[[str], None]) -> None:
        self.options = options
        self._tell = tell
        self._rng = random.Random(options.seed)
        self._relay = Relay()
        self.peers: list[ChaosPeer] = []
        self._agents: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []
        self._history = (options.out / HISTORY).open("w")
        self.known = Known(self._history)
        self.nemesis: Nemesis | None = None
        self.totals: dict[str, int] = {}
        self.marks_amiss: list[str] = []
        self.healed_in_s = 0.0

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        """End every process that was started."""
        for agent in self._agents:
            if agent.poll() is None:
                agent.kill()
            agent.wait()
        for reader in self._readers:
            reader.join(5.0)
        for peer in self.peers:
            peer.resume()
            peer.kill()
        self._relay.close()
        self._history.close()
        faults = self.nemesis.faults if self.nemesis else []
        (self.options.out / "faults.json").write_text(
            json.dumps([vars(one) for one in faults], default=sorted, indent=1)
        )

    @property
    def names(self) -> list[str]:
        """The objects."""
        counters = [f"counter-{n}" for n in range(self.options.objects)]
        witnessed = ["witnessed-0", "witnessed-1"] if self.options.replicas > 1 else []
        return [*counters, *witnessed, JOURNAL]

    # -- the run -----------------------------------------------------------------------

    def play(self) -> None:
        """Start all, let things go wrong for the time asked for, and read the totals."""
        self._start_peers()
        with self._store() as store:
            self._make_objects(store)
            self._start_agents()
            end_s = time.monotonic() + 60.0 * self.options.minutes
            asking = threading.Thread(target=self._ask_groups, args=(store, end_s))
            asking.start()
            self._go_wrong_until(end_s)
            # First, for who asks about a group that is cut off waits until it is not.
            self._heal()
            asking.join()
            self._end_agents()
        with self._store() as store:
            self._read_totals(store)

    def _start_peers(self) -> None:
        for number in range(self.options.peers):
            join = self.peers[0].endpoint if self.peers else ""
            peer = ChaosPeer(f"peer-{number}", self.options.out, self._relay, join)
            self.peers.append(peer)
            peer.start()
        for peer in self.peers:
            peer.wait_ready()
        with self._store() as store:
            self._until(
                lambda: sum(row["state"] == "alive" for row in store.peers())
                == len(self.peers),
                HEAL_S_MAX, "all peers see each other",
            )  # fmt: skip
            self.known.names = {
                row["peer_id"].hex(): row["peer"] for row in store.peers()
            }
        self._tell(f"{len(self.peers)} peers are up")

    def _store(self) -> Any:
        endpoints = [peer.endpoint for peer in self.peers]
        return activestore.connect(endpoints, timeout_s=SILENCE_S, name="chaos")

    def _make_objects(self, store: Any) -> None:
        store.publish(str(MODULE))
        for number, name in enumerate(self.names):
            kind = "Journal" if name == JOURNAL else "Tally"
            copies: dict[str, Any] = {}
            if self.options.replicas > 1:
                copies = {"replicas": self.options.replicas}
                if name.startswith("witnessed"):
                    copies = {"replicas": 2, "witness": True}
            peer = self.peers[number % len(self.peers)].name
            store.create(f"{MODULE.stem}.{kind}", alias=name, peer=peer, **copies)
            if self.options.replicas == 1:
                self.known.place(name, peer, 0, frozenset([peer]))
        self._tell(f"{len(self.names)} objects are made")

    def _ask_groups(self, store: Any, end_s: float) -> None:
        while self.options.replicas > 1 and time.monotonic() < end_s:
            for name in self.names:
                with contextlib.suppress(ActiveStoreError):
                    group = store.group(name)
                    voters = frozenset(one.peer for one in group.members)
                    self.known.place(name, group.primary, group.epoch, voters)
                if time.monotonic() > end_s:
                    return
            time.sleep(GROUP_S)

    def _start_agents(self) -> None:
        for number in range(self.options.clients):
            first = number % len(self.peers)
            order = {
                "name": f"client-{number}",
                "endpoints": [
                    peer.endpoint for peer in self.peers[first:] + self.peers[:first]
                ],
                "objects": self.names,
                "seed": f"{self.options.seed} {number}",
                "think_s": self.options.think_s,
                "silence_s": SILENCE_S,
                "has_info": self.options.replicas > 1,
                "staleness_s": (
                    self.options.staleness_s if self.options.replicas > 1 else 0.0
                ),
            }
            with (self.options.out / "clients.log").open("ab") as log:
                agent = subprocess.Popen(
                    [sys.executable, str(HERE / "agent.py")], text=True, stderr=log,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    start_new_session=True,
                )  # fmt: skip
            self._agents.append(agent)
            self._relay.know(agent.pid, str(order["name"]))
            assert agent.stdin is not None
            agent.stdin.write(json.dumps(order) + "\n")
            agent.stdin.flush()
            reader = threading.Thread(target=self._read_agent, args=(agent,))
            self._readers.append(reader)
            reader.start()

    def _read_agent(self, agent: subprocess.Popen[str]) -> None:
        assert agent.stdout is not None
        for line in agent.stdout:
            self.known.note(json.loads(line))

    def _go_wrong_until(self, end_s: float) -> None:
        clients = [f"client-{n}" for n in range(self.options.clients)]
        self.nemesis = Nemesis(
            self.peers, self._relay, self.known, self._rng, clients,
            kinds=self.options.kinds, is_cruel=self.options.is_cruel,
        )  # fmt: skip
        time.sleep(WARM_UP_S)
        told_s = 0.0
        while (now_s := time.monotonic()) < end_s:
            if self.options.kinds:
                self.nemesis.turn(now_s)
            for agent in self._agents:
                if agent.poll() is not None:
                    raise RuntimeError(
                        f"a client ended with {agent.returncode}; see "
                        f"{self.options.out / 'clients.log'}"
                    )
            if now_s - told_s > TELL_S:
                told_s = now_s
                faults = len(self.nemesis.faults)
                left_s = end_s - now_s
                self._tell(
                    f"{left_s:4.0f} s left: {len(self.known.rows)} operations, "
                    f"{faults} faults"
                )
            time.sleep(LOOK_S)

    def _heal(self) -> None:
        """End all faults, and wait until each client can call each object again."""
        assert self.nemesis is not None
        begin_s = time.monotonic()
        nemesis = self.nemesis
        self._until(
            lambda: nemesis.end_all(time.monotonic()), HEAL_S_MAX, "all peers are back"
        )
        back_s = time.monotonic()
        self._until(
            lambda: self._answered_since(back_s) >= set(self.names),
            HEAL_S_MAX, "every object is answered for again",
        )  # fmt: skip
        self.healed_in_s = time.monotonic() - begin_s
        self._tell(f"all is well again after {self.healed_in_s:.1f} s")

    def _answered_since(self, since_s: float) -> set[str]:
        found = set()
        for row in reversed(self.known.rows):
            if row["ended_s"] < since_s - LAST_CALLS_S_MAX:
                break
            if "error" not in row and row["asked_s"] > since_s and row["call"] == "add":
                found.add(row["object"])
        return found

    def _end_agents(self) -> None:
        for agent in self._agents:
            assert agent.stdin is not None
            agent.stdin.close()
        self._until(
            lambda: all(agent.poll() is not None for agent in self._agents),
            LAST_CALLS_S_MAX, "the clients' last calls have ended",
        )  # fmt: skip
        for reader in self._readers:
            reader.join()

    def _read_totals(self, store: Any) -> None:
        """Read each object, as one more client."""
        for name in self.names:
            proxy = store.get(name)
            asked_s = time.monotonic()
            total = proxy.read()
            self.totals[name] = total
            self.known.note(
                {
                    "client": "chaos", "object": name, "call": "read", "result": total,
                    "asked_s": asked_s, "ended_s": time.monotonic(),
                }
            )  # fmt: skip
        marks = store.get(JOURNAL).content()
        self.marks_amiss = judging.marks_amiss(self.known.rows, marks, JOURNAL)

    def _until(self, holds: Callable[[], bool], within_s: float, what: str) -> None:
        end_s = time.monotonic() + within_s
        while True:
            with contextlib.suppress(ActiveStoreError):
                if holds():
                    return
            if time.monotonic() > end_s:
                raise RuntimeError(f"not within {within_s:g} s: {what}{self._logs()}")
            time.sleep(LOOK_S)

    def _logs(self) -> str:
        return "".join(f"\n-- {peer.name}\n{peer.log()}" for peer in self.peers)


@contextlib.contextmanager
def playing(options: Options, tell: Callable[[str], None]) -> Iterator[Run]:
    """Yield a run that has been played; its processes are ended already."""
    options.out.mkdir(parents=True, exist_ok=True)
    with Run(options, tell) as run:
        run.play()
    yield run
