"""A simulated peer: the production's loop and core between simulated ports.

It is put together as `peer.daemon` does it, with another network, storage and executors.
A crash drops all of it but the disk.

Rules of this file: construction and life only; it decides nothing about calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

from activestore.core import events
from activestore.core.effects import Effect
from activestore.core.executors import PoolConfig
from activestore.core.invocation import InvocationConfig, InvocationCore
from activestore.core.mailboxes import MailboxConfig
from activestore.ids import PEER_ID_BYTES, PeerId
from activestore.peer.classes import Classes
from activestore.peer.loop import PeerLoop
from activestore.peer.processes import ProcessSettings
from activestore.peer.starts import count_start
from activestore.peer.table import LoopSettings, Parts
from activestore.peer.wiring import wire
from activestore.storage.engine import ClassRecord
from activestore.storage.memory_engine import MemoryDisk
from activestore.testing.clock import Agenda, Entry, LocalClock
from activestore.testing.executors import ExecutorSpeed, SimExecutors, World
from activestore.testing.network import SimNetwork, SimTransport
from activestore.testing.storage import DiskSpeed, FaultyEngine, SimStorage
from activestore.wire.gossip import PeerRecord
from activestore.wire.limits import MESSAGE_BYTES_MAX, PROTOCOL_VERSION

# A turn of the loop, and waking it.
TURN_S = 0.000_02
INCARNATION_BYTES = 16
# Membership is checked after every turn of a peer that knows so many others; of one that
# knows ten times as many, after every tenth.
MEMBERS_PER_CHECK = 10
# How long running calls may go on after `stop`, and how often it is looked.
DRAIN_S = 10.0
DRAIN_LOOK_S = 0.01


def endpoint_of(name: str) -> str:
    """Return where the peer of this name listens."""
    return f"tcp://{name}:7400"


class PeerSettings(NamedTuple):
    """What every peer of a simulation is made with; numbers as in peer.toml."""

    executors: int = 1
    executors_max: int = 4
    slots: int = 2
    check_readonly: bool = True
    disk_budget_bytes: int = 1 << 30
    message_bytes_max: int = MESSAGE_BYTES_MAX
    mailbox_max: int = 128
    activation_bytes_max: int = 1 << 40
    session_expiry_s: float = 3600.0
    searches_per_s: float = 20.0
    replicas: int = 1
    witness: bool = False
    repair_after_s: float = 600.0
    cancel_grace_s: float = 2.0
    quarantine_s: float = 600.0
    zone: str = ""
    profile: str = "lan"
    resources: Mapping[str, float] = {"cpus": 4.0, "memory_mb": 8192.0, "gpu": 0.0}
    disk: DiskSpeed = DiskSpeed()
    executor: ExecutorSpeed = ExecutorSpeed()


class Surroundings(NamedTuple):
    """What all peers of a simulation share."""

    agenda: Agenda
    network: SimNetwork
    rng: Random
    record: Callable[..., None]
    classes: Mapping[str, type]
    class_records: Sequence[ClassRecord]
    checks: Sequence[Callable[[SimPeer], None]]


class CheckedCore(InvocationCore):
    """The production's core, whose invariants are checked after every step."""

    steps_count = 0

    def step(self, event: events.Event, now_s: float) -> list[Effect]:
        """Take one event and return what is to be done, in order."""
        ordered = super().step(event, now_s)
        self.check()
        self.steps_count += 1
        return ordered


class SimWaiter:
    """What the loop waits on: never blocks, and notes for how long it would have."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._watched: set[int] = set()
        self._marked: dict[int, None] = {}
        self.wait_s = 0.0
        self.found_count = 0

    def watch(self, fd: int) -> None:
        """Name `fd` in `wait` when it is marked."""
        self._watched.add(fd)

    def unwatch(self, fd: int) -> None:
        """Name it no more."""
        self._watched.discard(fd)

    def mark(self, fd: int) -> None:
        """Note that something is there to be read."""
        self._marked[fd] = None
        self._wake()

    def wait(self, wait_s: float) -> list[int]:
        """Return what was marked since the last time."""
        found = [fd for fd in self._marked if fd in self._watched]
        self._marked.clear()
        self.wait_s = wait_s
        self.found_count = len(found)
        return found


class SimPeer:
    """One peer: up, paused or down, on a disk that stays."""

    def __init__(
        self,
        name: str,
        settings: PeerSettings,
        around: Surroundings,
        seeds: Sequence[str],
    ) -> None:
        """Make it, down; `seeds`: addresses of peers that it joins when it starts."""
        self.name = name
        self.endpoint = endpoint_of(name)
        self.seeds = tuple(seeds)
        self.settings = settings
        self.is_up = False
        self.is_paused = False
        self.failure = ""  # why it stopped by itself
        self.notes: list[tuple[str, str]] = []
        self._around = around
        self._rng = around.rng
        # One machine booted this long ago: monotonic clocks never agree.
        self.clock = LocalClock(around.agenda, start_s=self._rng.uniform(10.0, 1e6))
        self.disk = MemoryDisk(PeerId(self._rng.randbytes(PEER_ID_BYTES)))
        self._life = 0
        self._unchecked = 0  # turns since membership was checked, times members
        self._deferred: list[Callable[[], None]] = []
        self._turn: Entry | None = None

    @property
    def peer_id(self) -> PeerId:
        """The id that its disk keeps."""
        return self.disk.peer_id

    # -- life --------------------------------------------------------------------------

    def start(self) -> None:
        """Come up on what the disk holds."""
        around, settings = self._around, self.settings
        self._life += 1
        self.is_up, self.is_paused, self.failure = True, False, ""
        self.waiter = SimWaiter(self.wake)
        engine = FaultyEngine(
            self.disk,
            disk_budget_bytes=settings.disk_budget_bytes,
            wall_clock=self.clock.wall_s,
        )
        if not engine.classes():
            for record in around.class_records:
                engine.put_code(record.package, b"", [record])
        self.engine = engine
        self.transport = SimTransport(
            around.network, self.name, self.endpoint, self.wake
        )
        self.storage = SimStorage(
            engine, self._rng, self.later, self.wake, self.clock.monotonic_s
        )
        self.storage.speed = settings.disk
        self.executors = self._executors()
        incarnation = self._rng.randbytes(INCARNATION_BYTES)
        self.core = CheckedCore(
            InvocationConfig(
                mark=incarnation,
                grace_s=settings.cancel_grace_s,
                quarantine_s=settings.quarantine_s,
                session_expiry_s=settings.session_expiry_s,
            ),
            MailboxConfig(mailbox_max=settings.mailbox_max),
            PoolConfig(
                executors=settings.executors,
                executors_max=max(settings.executors, settings.executors_max),
                slots=settings.slots,
                activation_bytes_max=settings.activation_bytes_max,
            ),
        )
        self.loop = PeerLoop(self._parts(incarnation), self.waiter)
        wire(self.loop, engine, status=self.status, stop=self.stop)
        self.loop.start()
        self.wake()

    def _executors(self) -> SimExecutors:
        settings, around = self.settings, self._around
        world = World(
            around.classes,
            {record.class_name: record.revision for record in around.class_records},
            self._rng,
            self.later,
            lambda: around.agenda.now_s,
        )
        process = ProcessSettings(
            home=self.disk.peer_id,
            slots=settings.slots,
            spin_us=0,
            check_readonly=settings.check_readonly,
            memory_bytes_max=0,
            message_bytes_max=settings.message_bytes_max,
            threads=1,
            preload=(),
        )
        return SimExecutors(process, world, settings.executor, self.waiter.mark)

    def _parts(self, incarnation: bytes) -> Parts:
        settings = self.settings
        return Parts(
            settings=LoopSettings(
                peer_id=self.disk.peer_id,
                peer_name=self.name,
                incarnation=incarnation,
                message_bytes_max=settings.message_bytes_max,
                spin_s=0.0,
                reply_keep_s=2 * settings.session_expiry_s,
                session_expiry_s=settings.session_expiry_s,
                endpoint=self.endpoint,
                seeds=self.seeds,
                searches_per_s=settings.searches_per_s,
                replicas=settings.replicas,
                witness=settings.witness,
                repair_after_s=settings.repair_after_s,
                record=self._record(),
            ),
            core=self.core,
            transport=self.transport,
            storage=self.storage,
            executors=self.executors,
            classes=Classes(settings.resources),
            clock=self.clock.monotonic_s,
            wall_clock=self.clock.wall_s,
            note=self._note,
            random=self._rng.random,
        )

    def _record(self) -> PeerRecord:
        """Return what this peer tells others of itself; of two starts the later counts."""
        return PeerRecord(
            self.disk.peer_id, count_start(self.engine), self.name,
            (self.endpoint,), self.settings.zone, self.settings.profile, PROTOCOL_VERSION,
            {
                "stable": True, "host": self.name, "start": self._rng.randbytes(8),
                **self.settings.resources,
            },
        )  # fmt: skip

    def crash(self) -> None:
        """Be gone from one moment to the next; the disk keeps what was committed."""
        if not self.is_up:
            return
        self._life += 1
        self.is_up, self.is_paused = False, False
        self._deferred.clear()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        self.executors.close()
        self._around.network.remove(self.transport)

    def lose_disk(self) -> None:
        """Have an empty disk, and with it another id; only while it is down."""
        assert not self.is_up, "a disk is lost with its peer"
        self.disk = MemoryDisk(PeerId(self._rng.randbytes(PEER_ID_BYTES)))

    def stop(self) -> None:
        """Let running calls end, commit, and go; as SIGTERM does."""
        due_s = self._around.agenda.now_s + DRAIN_S
        self.loop.step(events.DrainStarted())
        self.loop.cluster.leave()

        def look() -> None:
            is_over = self.core.owes_nothing and not self.storage.is_writing
            if is_over or self._around.agenda.now_s >= due_s:
                self.transport.flush()
                self.storage.close()
                self.crash()
            else:
                self.later(DRAIN_LOOK_S, look)

        self.later(0.0, look)

    def pause(self) -> None:
        """Stand still; nothing is lost, and time goes on."""
        self.is_paused = True
        self._around.network.pause(self.transport)

    def resume(self) -> None:
        """Go on; what was due meanwhile happens now, in its order."""
        self.is_paused = self.transport.is_paused = False
        deferred, self._deferred = self._deferred, []
        for action in deferred:
            self._around.agenda.later(0.0, action)

    # -- time --------------------------------------------------------------------------

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Have something happen in this life of the peer, and not while it is paused."""
        life = self._life

        def act() -> None:
            if self._life != life:
                return
            if self.is_paused:
                self._deferred.append(act)
            else:
                action()

        self._around.agenda.later(delay_s, act)

    def wake(self) -> None:
        """Have the loop turn soon."""
        self._turn_at(self._around.agenda.now_s + TURN_S)

    def _turn_at(self, due_s: float) -> None:
        known = self._turn
        if not self.is_up or (known is not None and known.due_s <= due_s):
            return
        if known is not None:
            known.cancel()
        self._turn = self._around.agenda.at(due_s, self._turn_now)

    def _turn_now(self) -> None:
        self._turn = None
        if self.is_paused:
            self._deferred.append(self.wake)
            return
        steps = self.core.steps_count
        had_news = self.storage.has_news()
        self.loop.turn()
        if self.loop.is_stopping:
            self.failure = self.loop.failure or "stopped"
            self._around.record("stopped", self.name)
            self.crash()
            return
        self._check_membership()
        for check in self._around.checks:
            check(self)
        waiter = self.waiter
        has_worked = had_news or waiter.found_count or self.core.steps_count != steps
        if has_worked or waiter.wait_s <= 0.0 or self.storage.has_news():
            self.wake()
        else:
            self._turn_at(self._around.agenda.now_s + self.clock.real_s(waiter.wait_s))

    def _check_membership(self) -> None:
        """Check what membership must hold; it costs more the more members there are."""
        membership = self.loop.cluster.membership
        self._unchecked += MEMBERS_PER_CHECK
        if self._unchecked >= len(membership.members):
            self._unchecked = 0
            membership.check()

    # -- what it says ------------------------------------------------------------------

    def _note(self, level: str, text: str) -> None:
        self.notes.append((level, text))
        self._around.record("note", self.name, level)

    def status(self) -> dict[str, Any]:
        """Return what `store.status()` shows of a simulated peer."""
        return {
            "name": self.name,
            "peer_id": self.disk.peer_id,
            "incarnation": self.loop.settings.incarnation,
            "endpoint": self.endpoint,
            "version": "simulated",
            "protocol_version": PROTOCOL_VERSION,
            "state": self.loop.state,
            "sessions": len(self.loop.sessions),
            "classes": list(self.loop.classes.names()),
        }
