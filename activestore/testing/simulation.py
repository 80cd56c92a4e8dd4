"""A simulated cluster: N peers and their clients under virtual time, from one seed.

Peers run the production's loop and core; network, disks, executors and clocks are
simulated. One seed makes one history, always the same; the invariants of every core are
checked after every step.

Rules of this file: it joins the parts and is what users see; nothing sleeps.

Source: design section 3; reliability.md section 9.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from types import TracebackType
from typing import Any

from activestore import model
from activestore.errors import InvalidRequestError, UnavailableError
from activestore.objects.packages import is_by_value
from activestore.objects.registry import describe
from activestore.peer.classes import package_of
from activestore.storage.engine import ClassRecord
from activestore.testing import faults as faults_
from activestore.testing.clients import Around, LoggedOperation, SimClient
from activestore.testing.clock import WALL_START_S, Agenda
from activestore.testing.faults import Faults
from activestore.testing.fibers import Fiber
from activestore.testing.network import Latency, LinkQuality, SimNetwork
from activestore.testing.peers import PeerSettings, SimPeer, Surroundings, endpoint_of
from activestore.testing.seeds import replay_command
from activestore.wire import values

# A blocking call of a test gives up after this much virtual time, in seconds.
WAIT_S_MAX = 3600.0
# Lines of the trace that a failure shows.
TRACE_LINES = 40
# Addresses of others that a peer is started with, as with `--join`.
SEEDS_MAX = 3
REVISION_BYTES = 16


class Task:
    """A program that runs beside others; see Simulation.spawn."""

    def __init__(self, name: str, fiber: Fiber) -> None:
        self.name = name
        self.fiber = fiber
        self.value: Any = None

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.fiber.is_over


class Simulation:
    """A cluster in one process, in virtual time.

    Use it in a `with` block: what goes wrong inside prints the command that plays the
    same history again.
    """

    def __init__(
        self,
        seed: int,
        *,
        peers: int | Sequence[str] = 3,
        classes: Sequence[type] = (),
        settings: PeerSettings | None = None,
        link: LinkQuality | None = None,
        joined: bool = True,
    ) -> None:
        """Start peers; `run` lets them come up and find each other.

        Args:
            seed: Of all chance in it; the same seed gives the same history.
            peers: How many, 1 or more, named "peer-1" and so on; or their names.
            classes: The ActiveObject classes that objects may have. They are published
                at every peer from the beginning.
            settings: What every peer is made with.
            link: Delay and loss between any two nodes; 50 us and more, no loss.
            joined: Whether the peers join one cluster; else each is alone.

        Raises:
            InvalidRequestError: a class is none that can be published; no peer.
        """
        self.seed = seed
        self.rng = Random(seed)  # noqa: S311 - chance to be repeated, no secret
        self.agenda = Agenda()
        self.history: list[LoggedOperation] = []
        self.checks: list[Callable[[SimPeer], None]] = []
        self._digest = hashlib.blake2b(digest_size=16)
        self._trace: deque[str] = deque(maxlen=TRACE_LINES)
        self.network = SimNetwork(self.agenda, self.rng, self._record)
        if link is not None:
            self.network.default = link
        self._classes = {model.class_name_of(cls): cls for cls in classes}
        records = _records_of(classes)
        self._around = Surroundings(
            self.agenda, self.network, self.rng, self._record, self._classes, records,
            self.checks,
        )  # fmt: skip
        revisions = {record.class_name: record.revision for record in records}
        self._client_around = Around(
            self.agenda, self.network, self.rng, self._wait, self._rouse, self._classes,
            revisions, self.history,
        )  # fmt: skip
        if isinstance(peers, int):
            peers = [f"peer-{number + 1}" for number in range(peers)]
        chosen = settings or PeerSettings()
        self.peers: dict[str, SimPeer] = {}
        for name in peers:
            others = [endpoint_of(one) for one in peers if one != name and joined]
            self.peers[name] = SimPeer(name, chosen, self._around, others[:SEEDS_MAX])
        if not self.peers:
            raise InvalidRequestError("a simulation needs a peer", "peers")
        self.clients: list[SimClient] = []
        self._default: SimClient | None = None
        self._tasks: list[Task] = []
        self._waiting: list[tuple[Fiber, Callable[[], bool]]] = []
        self._is_rousing = False
        self._is_running = False
        self._main = threading.current_thread()
        for peer in self.peers.values():
            peer.start()

    # -- a block -----------------------------------------------------------------------

    def __enter__(self) -> Simulation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if error is not None:
            sys.stderr.write(self.report() + "\n")
        self.close()

    def close(self) -> None:
        """End all programs, clients and peers."""
        for client in self.clients:
            model.drop_default_store(client)
        for task in self._tasks:
            task.fiber.kill()
        for peer in self.peers.values():
            peer.crash()

    def report(self) -> str:
        """Return what led here: the last events, and the command that repeats them."""
        lines = "\n".join(self._trace)
        return (
            f"{lines}\nsimulation failed at {self.now_s:.6f} s, seed {self.seed}; "
            f"replay: {replay_command(self.seed)}"
        )

    def _record(self, kind: str, *parts: str | bytes) -> None:
        """Add an event to the trace; all of it decides the fingerprint."""
        digest = self._digest
        digest.update(f"{self.agenda.now_s!r} {kind}".encode())
        shown = []
        for part in parts:
            if isinstance(part, bytes):
                digest.update(part)
                shown.append(f"{len(part)} B")
            else:
                digest.update(part.encode())
                shown.append(part)
        self._trace.append(f"{self.agenda.now_s:12.6f} {kind} {' '.join(shown)}")

    @property
    def fingerprint(self) -> str:
        """A digest of all that has happened: equal for equal histories."""
        return self._digest.copy().hexdigest()

    # -- time --------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        """Virtual seconds since the beginning."""
        return self.agenda.now_s

    def run(self, duration_s: float) -> None:
        """Let virtual time pass, in seconds, 0 or more.

        Raises:
            AssertionError: an invariant does not hold, or a program's assertion.
            Exception: what a program of `spawn` raised.
        """
        self._check_main("run")
        end_s = self.now_s + duration_s
        while (due_s := self.agenda.next_s()) is not None and due_s <= end_s:
            self._step()
        self.agenda.now_s = max(self.now_s, end_s)

    def run_until(self, is_over: Callable[[], bool], *, timeout_s: float) -> bool:
        """Let time pass until `is_over()`; False where `timeout_s` passed before."""
        self._check_main("run_until")
        end_s = self.now_s + timeout_s
        while not is_over():
            due_s = self.agenda.next_s()
            if due_s is None or due_s > end_s:
                self.agenda.now_s = max(self.now_s, end_s)
                return False
            self._step()
        return True

    def sleep(self, duration_s: float) -> None:
        """Let time pass in a program of `spawn`; outside of one, as `run`."""
        fiber = self._fiber()
        if fiber is None:
            self.run(duration_s)
            return
        due_s = self.now_s + duration_s
        self.agenda.at(due_s, self._rouse)
        self._wait(lambda: self.now_s >= due_s)

    def _step(self) -> None:
        self._is_running = True
        try:
            self.agenda.step()
        finally:
            self._is_running = False

    def _check_main(self, what: str) -> None:
        if self._is_running or threading.current_thread() is not self._main:
            raise InvalidRequestError(
                "only the test itself may let time pass for all; use sleep in a program",
                f"Simulation.{what}",
            )

    def _fiber(self) -> Fiber | None:
        for task in self._tasks:
            if task.fiber.is_current:
                return task.fiber
        return None

    def _wait(self, is_over: Callable[[], bool]) -> None:
        """Let time pass until `is_over()`: what a blocking call of a client does."""
        fiber = self._fiber()
        if fiber is None:
            if not self.run_until(is_over, timeout_s=WAIT_S_MAX):
                raise UnavailableError(
                    "simulation", f"nothing has ended a call for {WAIT_S_MAX:g} s"
                )
            return
        while not is_over():
            self._waiting.append((fiber, is_over))
            fiber.park()

    def _rouse(self) -> None:
        """Look soon which programs can go on."""
        if self._waiting and not self._is_rousing:
            self._is_rousing = True
            self.agenda.later(0.0, self._resume_waiting)

    def _resume_waiting(self) -> None:
        self._is_rousing = False
        waiting, self._waiting = self._waiting, []
        for fiber, is_over in waiting:
            if is_over():
                fiber.resume()
            else:
                self._waiting.append((fiber, is_over))

    def spawn(self, program: Callable[..., Any], *args: Any) -> Task:
        """Start a program beside others: ordinary code with blocking calls.

        It runs when time passes, in turns with everything else. What it raises ends the
        `run` in which it does; what it returns is the task's `value`.
        """
        name = f"{getattr(program, '__name__', 'program')}-{len(self._tasks) + 1}"
        task = Task(name, Fiber(lambda: self._run_task(task, program, args), name))
        self._tasks.append(task)
        self.agenda.later(0.0, task.fiber.resume)
        return task

    @staticmethod
    def _run_task(task: Task, program: Callable[..., Any], args: Sequence[Any]) -> None:
        task.value = program(*args)

    # -- clients -----------------------------------------------------------------------

    def client(self, *peers: str, timeout_s: float = 30.0) -> SimClient:
        """Return a new client; see SimClient, which works as a store.

        Args:
            *peers: Names of the peers whose addresses it has, the first one by default.
            timeout_s: How long a call may go without a sign of life, in seconds.
        """
        names = peers or (next(iter(self.peers)),)
        endpoints = [self._peer(name).endpoint for name in names]
        name = f"client-{len(self.clients) + 1}"
        client = SimClient(name, endpoints, self._client_around, timeout_s=timeout_s)
        self.clients.append(client)
        model.push_default_store(client)
        return client

    @property
    def store(self) -> SimClient:
        """The client that `create`, `get` and `persist` of the simulation use."""
        if self._default is None:
            self._default = self.client()
        return self._default

    def create(
        self, class_name: str, /, *args: Any, alias: str = "", **kwargs: Any
    ) -> Any:
        """Make an object at the first peer; see SimClient.create."""
        return self.store.create(class_name, *args, alias=alias, **kwargs)

    def get(self, name: Any) -> Any:
        """Return the object with this alias or id; see SimClient.get."""
        return self.store.get(name)

    def persist(self, obj: Any, /, *, alias: str = "") -> None:
        """Keep an object and all it reaches; see SimClient.persist."""
        self.store.persist(obj, alias=alias)

    def move(self, obj: Any, peer: str) -> None:
        """Bring an object to another peer; see SimClient.move."""
        self.store.move(obj, peer)

    # -- faults ------------------------------------------------------------------------

    def _peer(self, name: str) -> SimPeer:
        found = self.peers.get(name)
        if found is None:
            raise InvalidRequestError(
                f"no peer {name!r}; there are {', '.join(self.peers)}", "peer"
            )
        return found

    def crash(self, peer: str, *, disk: bool = True) -> None:
        """End a peer at once, as `kill -9` does; without `disk`, its disk is lost too."""
        found = self._peer(peer)
        self._record("crash", peer)
        found.crash()
        if not disk:
            found.lose_disk()

    def restart(self, peer: str) -> None:
        """Start a peer that is down, on what its disk holds; one that is up is crashed."""
        found = self._peer(peer)
        self._record("restart", peer)
        found.crash()
        found.start()

    def stop(self, peer: str) -> None:
        """Have a peer end in order: running calls end, then it goes."""
        self._record("stop", peer)
        self._peer(peer).stop()

    def pause(self, peer: str) -> None:
        """Have a peer stand still, as SIGSTOP or a suspended machine does."""
        found = self._peer(peer)
        if found.is_up and not found.is_paused:
            self._record("pause", peer)
            found.pause()

    def resume(self, peer: str) -> None:
        """Have a paused peer go on."""
        found = self._peer(peer)
        if found.is_paused:
            self._record("resume", peer)
            found.resume()

    def partition(
        self, one: str | Sequence[str], other: str | Sequence[str] = (), *,
        one_way: bool = False,
    ) -> None:  # fmt: skip
        """Cut nodes off from each other until `heal`.

        Args:
            one: A name, or several, of peers and clients ("client-1").
            other: The other side; all other nodes by default.
            one_way: Only what `one` sends is lost, what it is sent arrives.
        """
        for sender, receiver in self._pairs(one, other):
            self._record("cut", sender, receiver)
            self.network.block(sender, receiver)
            if not one_way:
                self.network.block(receiver, sender)

    def heal(
        self, one: str | Sequence[str] = (), other: str | Sequence[str] = ()
    ) -> None:
        """Mend what `partition` has cut: all of it, or between these nodes."""
        self._record("heal")
        if not one:
            for sender, receiver in self.network.blocked():
                self.network.unblock(sender, receiver)
            return
        for sender, receiver in self._pairs(one, other):
            self.network.unblock(sender, receiver)
            self.network.unblock(receiver, sender)

    def _pairs(
        self, one: str | Sequence[str], other: str | Sequence[str]
    ) -> list[tuple[str, str]]:
        nodes = [*self.peers, *(client.name for client in self.clients)]
        ones = [one] if isinstance(one, str) else list(one)
        others = [other] if isinstance(other, str) else list(other)
        others = others or [name for name in nodes if name not in ones]
        unknown = [name for name in (*ones, *others) if name not in nodes]
        if unknown:
            raise InvalidRequestError(
                f"no node {unknown[0]!r}; there are {', '.join(nodes)}", "partition"
            )
        return [(a, b) for a in ones for b in others]

    def break_connections(self, one: str, other: str = "") -> int:
        """Break the connections of a node, or between two; return how many.

        Of what is on its way the first part arrives, or nothing. They are made again.
        """
        return self.network.break_connections(one, other)

    def set_link(
        self, one: str, other: str, *, min_s: float = 0.000_05, mean_s: float = 0.000_2,
        loss: float = 0.0, bytes_per_s: float = 0.0,
    ) -> None:  # fmt: skip
        """Set delay (seconds, one way), loss (0 to 1) and speed between two nodes."""
        quality = LinkQuality(Latency(min_s, mean_s), loss, bytes_per_s)
        self.network.qualities[one, other] = quality
        self.network.qualities[other, one] = quality

    def set_clock(self, peer: str, *, drift: float = 0.0, skew_s: float = 0.0) -> None:
        """Have a peer's clocks run fast or slow, and its wall clock be wrong.

        Args:
            peer: The name of a peer.
            drift: Part by which they run faster, such as 1e-4; above -1.
            skew_s: How far its wall clock is ahead, in seconds.
        """
        clock = self._peer(peer).clock
        clock.set_drift(drift)
        clock.skew_s = skew_s

    def crash_executor(self, peer: str) -> bool:
        """Have one of a peer's executor processes die; False where it has none now."""
        found = self._peer(peer)
        return found.is_up and found.executors.crash()

    def refuse_commits(self, peer: str, count: int) -> None:
        """Have a peer's disk refuse the next commits, as a full one does."""
        self._peer(peer).engine.refusals_left = count

    def fail_disk(self, peer: str) -> None:
        """Have a peer's disk fail with its next commit; the peer stops then."""
        self._peer(peer).engine.is_broken = True

    def inject(self, faults: Faults, for_s: float) -> list[faults_.Planned]:
        """Plan faults by chance for the next seconds; return the plan.

        At the end of that time all peers are up and nothing is cut.
        """
        clients = [client.name for client in self.clients]
        planned = faults_.plan(faults, for_s, list(self.peers), clients, self.rng)
        for fault in planned:
            self.agenda.later(fault.at_s, partial(self._begin, fault))
        self.agenda.later(for_s, self._end_faults)
        return planned

    def _begin(self, fault: faults_.Planned) -> None:
        begin: Mapping[str, Callable[[str], Any]] = {
            "crash": self.crash,
            "pause": self.pause,
            "break": self.break_connections,
            "executor": self.crash_executor,
            "refuse": lambda name: self.refuse_commits(name, 1),
        }
        end: Mapping[str, Callable[[str], Any]] = {
            "crash": self._start_again, "pause": self.resume,
        }  # fmt: skip
        if fault.kind in ("partition", "cut"):
            one, other = fault.names
            self.partition(one, other, one_way=fault.kind == "cut")
            self.agenda.later(fault.lasts_s, lambda: self.heal(one, other))
            return
        name = fault.names[0]
        begin[fault.kind](name)
        if fault.kind in end:
            self.agenda.later(fault.lasts_s, lambda: end[fault.kind](name))

    def _start_again(self, name: str) -> None:
        if not self.peers[name].is_up:
            self.restart(name)

    def _end_faults(self) -> None:
        self.heal()
        for name, peer in self.peers.items():
            self.resume(name)
            if not peer.is_up:
                self.restart(name)


def _records_of(classes: Sequence[type]) -> list[ClassRecord]:
    """Return the classes as they would be published: a revision for each package."""
    interfaces = describe(classes)
    digests: dict[str, Any] = {}
    packages = []
    for cls, interface in zip(classes, interfaces, strict=True):
        name = interface["class_name"]
        package = name if is_by_value(cls) else package_of(name)
        packages.append(package)
        digest = digests.setdefault(
            package, hashlib.blake2b(digest_size=REVISION_BYTES)
        )
        digest.update(f"{name} {interface['code']}".encode())
    return [
        ClassRecord(
            interface["class_name"],
            digests[package].digest(),
            digests[package].digest(),
            values.encode(interface)[0],
            WALL_START_S,
        )
        for package, interface in zip(packages, interfaces, strict=True)
    ]
