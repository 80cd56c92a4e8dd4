"""Executors of a simulated peer: the production's slots and hosts, in virtual time.

User code runs for real: in this process, in fibers, one at a time. States, deltas and
messages are packed and unpacked on their way as between processes, so that nothing is
shared by mistake. A run takes virtual time, drawn after the method has done its work; in
that time it can be interrupted, and its process can die.

Rules of this file: what a slot does with a message is `objects.slots`'; what a message
means to the loop is `peer.processes`'; here is only how they get across, and when.

What it does not show: user code that waits for the machine's clock (time.sleep) waits
for real; module globals and class attributes are shared by all executors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

from activestore import model, remote
from activestore.core import events
from activestore.errors import ClassNotFoundError
from activestore.ids import ObjectId, PeerId
from activestore.objects import orders
from activestore.objects.executor import ExecutorCaller
from activestore.objects.hosting import Host, HostedCopy, Running
from activestore.objects.outcomes import Interrupted, InterruptedByDeadline, Outcome
from activestore.objects.packages import is_by_value
from activestore.objects.slots import Slot
from activestore.peer.ports import ExecutorNews
from activestore.peer.processes import ExecutorProcesses, ProcessSettings
from activestore.testing.fibers import Fiber
from activestore.testing.network import Latency
from activestore.wire import packing
from activestore.wire.limits import BUFFER_BYTES_MIN
from activestore.wire.messages import whole

Later = Callable[[float, Callable[[], None]], None]

# How often a slot looks whether another has loaded a copy, in seconds.
COPY_LOOK_S = 0.000_1
# File descriptors of the simulated channels begin here, away from the system's.
FIRST_FD = 1000

# What runs in which thread. Each slot has its own, so all hosts may share it, as the
# guard of readonly calls does that Host puts on ActiveObject.
_RUNNING = Running()


class ExecutorSpeed(NamedTuple):
    """How long executors take. `runs`: by "Class.method", "method" or "*"."""

    start: Latency = Latency(0.05, 0.1)
    channel: Latency = Latency(0.000_01, 0.000_03)
    runs: Mapping[str, Latency] = {"*": Latency(0.000_02, 0.000_1)}

    def run_of(self, class_name: str, method: str) -> Latency | None:
        """Return how long a method runs, None for no time."""
        short = class_name.rpartition(".")[2]
        for name in (f"{class_name}.{method}", f"{short}.{method}", method, "*"):
            found = self.runs.get(name)
            if found is not None:
                return found
        return None


class World(NamedTuple):
    """What a peer gives to its executors."""

    classes: Mapping[str, type]
    revisions: Mapping[str, bytes]
    rng: Random
    later: Later
    now_s: Callable[[], float]


class SimLoader:
    """Stands for PackageLoader: the classes are here, nothing is imported."""

    def __init__(self, world: World) -> None:
        self._world = world

    def add(self, digest: bytes, archive: bytes) -> None:
        """Take no code: it is here."""

    def class_of(self, class_name: str, digest: bytes) -> type:
        """Return a class.

        Raises:
            ClassNotFoundError: it was not given to the simulation.
        """
        found = self.find_class(class_name)
        if found is None:
            raise ClassNotFoundError(class_name, tuple(sorted(self._world.classes)))
        return found

    def find_class(self, class_name: str) -> type | None:
        """Return a class, None where it was not given to the simulation."""
        return self._world.classes.get(class_name)

    def revision_of(self, class_name: str) -> bytes:
        """Return the revision of a class."""
        self.class_of(class_name, b"")
        return self._world.revisions[class_name]

    def is_by_value(self, class_name: str) -> bool:
        """Return whether a class can only travel by value."""
        return is_by_value(self.class_of(class_name, b""))


class SimCaller(ExecutorCaller):
    """The store that methods see; ids come from the simulation's chance."""

    def __init__(self, home: PeerId, world: World) -> None:
        super().__init__(home)
        self._world = world

    @property
    def slot(self) -> SimSlot:
        """The slot whose thread asks."""
        slot: Any = self._slot
        return slot  # type: ignore[no-any-return]  # only SimSlot enters

    def new_id(self, home: PeerId) -> ObjectId:
        """Return an id for an object that is made at a peer."""
        return ObjectId(home + b"\x00" + self._world.rng.randbytes(9))


class SimHost(Host):
    """All copies of one simulated executor process."""

    def __init__(self, home: PeerId, world: World, settings: ProcessSettings) -> None:
        caller = SimCaller(home, world)
        super().__init__(
            home,
            caller,
            check_readonly=settings.check_readonly,
            message_bytes_max=settings.message_bytes_max,
        )
        caller.host = self
        self.loader: Any = SimLoader(world)

    def _guard_fields(self) -> None:
        self.running = _RUNNING
        super()._guard_fields()

    def ref_of(self, obj: object) -> bytes | None:
        """Return the ref of an active object; a new one gets its id here."""
        made = self.running.created
        if (
            made is not None
            and isinstance(obj, model.ActiveObject)
            and remote.id_of(obj) is None
        ):
            home = self.running.home or self._home
            obj.__dict__[model.ID_SLOT] = self.caller.new_id(home)
            made.append(obj)
        return super().ref_of(obj)

    def copy_of(self, copy_id: int) -> HostedCopy | None:
        """Return a copy, waiting while another slot loads it; None where it is gone."""
        while copy_id not in self.copies and copy_id not in self._gone:
            self.caller.slot.sleep(COPY_LOOK_S)
        return self.copies.get(copy_id)

    def _call_user(
        self,
        copy: HostedCopy,
        kind: int,
        method: str,
        body: bytes,
        buffers: Sequence[Any],
        produce: Callable[[Any], None] | None,
    ) -> Any:
        result = super()._call_user(copy, kind, method, body, buffers, produce)
        self.caller.slot.work(copy.class_name, method)
        return result


class _Pipe:
    """One direction of a channel: packed messages, in order, each a little later."""

    def __init__(
        self, process: SimProcess, deliver: Callable[[list[Any]], None]
    ) -> None:
        self._process = process
        self._deliver = deliver
        self.last_s = 0.0

    def put(self, message: Sequence[Any]) -> None:
        """Send a message; what a dead process sends is lost."""
        world = self._process.world
        data = packing.pack(message)
        now_s = world.now_s()
        delay_s = self._process.speed.channel.draw_s(world.rng)
        self.last_s = max(self.last_s, now_s + delay_s)
        world.later(self.last_s - now_s, lambda: self._deliver(packing.unpack(data)))


class _End:
    """One end of a simulated channel; takes the place of Channel."""

    def __init__(self, fd: int, pipe: _Pipe) -> None:
        self._fd = fd
        self._pipe = pipe
        self.is_closed = False
        self.pool: Any = _NoRegions()

    def fileno(self) -> int:
        """Return the number that stands for the descriptor."""
        return self._fd

    def describe(self, buffers: Sequence[Any]) -> list[Any]:
        """Return buffers as they cross: as bytes."""
        return [
            buffer if isinstance(buffer, int) else bytes(whole(buffer))
            for buffer in buffers
        ]

    def open_buffers(self, described: Sequence[Any]) -> list[Any]:
        """Return the buffers of a message: large ones can be written, as shared memory."""
        return [
            memoryview(bytearray(form))
            if isinstance(form, bytes) and len(form) >= BUFFER_BYTES_MIN
            else form
            for form in described
        ]

    def put(self, message: Sequence[Any]) -> None:
        """Send a message."""
        if not self.is_closed:
            self._pipe.put(message)

    has_output = False

    def flush(self) -> bool:
        """Have nothing to do: `put` has sent."""
        return True


class _NoRegions:
    """A pool of shared memory without any."""

    gone: Sequence[int] = ()

    def release(self, number: int) -> None:
        """Take nothing back."""


class _NoSocket:
    """What a slot of a process would read from."""

    def fileno(self) -> int:
        return 0


class _DaemonEnd:
    """The loop's side of a channel, and what has arrived there."""

    def __init__(self, process: SimProcess, slot: int, fd: int) -> None:
        self.executor_id = process.executor_id
        self.slot = slot  # -1: the control channel
        self.packages: set[bytes] = set()
        self.inbox: deque[list[Any] | None] = deque()  # None: it is closed
        self.channel: _End

    def put_released(self) -> None:
        """Tell of no shared memory: there is none."""


class SimSlot(Slot):
    """A slot whose thread is a fiber."""

    def __init__(self, index: int, process: SimProcess, channel: _End) -> None:
        super().__init__(index, _NoSocket(), process.host, spin_s=0.0)  # type: ignore[arg-type]
        self.channel: Any = channel
        self._process = process
        self._arrived: deque[list[Any]] = deque()
        self._is_reading = False
        self._is_working = False
        self._ran_s: dict[int, float] = {}
        self.fiber = Fiber(self._main, f"slot-{index}")

    def deliver(self, message: list[Any]) -> None:
        """Have a message of the daemon arrive."""
        self._arrived.append(message)
        if self._is_reading or not self.fiber.has_begun:
            self._process.resume(self)

    # -- the fiber ---------------------------------------------------------------------

    def _main(self) -> None:
        model.set_thread_store(self.host.caller)
        self.host.caller.enter(self)
        while True:
            self._serve(self._next())

    def _read(self) -> None:
        while not self._read_now():
            self._is_reading = True
            try:
                self.fiber.park()
            finally:
                self._is_reading = False

    def _read_now(self) -> bool:
        if not self._arrived:
            return False
        with self._inbox_lock:
            messages = list(self._arrived)
            self._arrived.clear()
            self._take(messages)
        return True

    def sleep(self, duration_s: float) -> None:
        """Let virtual time pass in the fiber."""
        self._process.world.later(duration_s, lambda: self._process.resume(self))
        self.fiber.park()

    def work(self, class_name: str, method: str) -> None:
        """Let the time pass that a run of the method takes; it can be interrupted."""
        run = self._process.speed.run_of(class_name, method)
        if run is None:
            return
        is_over = False

        def end() -> None:
            if not is_over:
                self._process.resume(self)

        self._process.world.later(run.draw_s(self._process.world.rng), end)
        self._is_working = True
        try:
            self.fiber.park()
        finally:
            is_over = True
            self._is_working = False

    def interrupt(self, call_id: int, reason: str) -> None:
        """Raise in the fiber if it works on this call."""
        if self._interruptible == call_id:
            if self._is_working:
                kind = InterruptedByDeadline if reason == "deadline" else Interrupted
                self._process.resume(self, kind())
        elif all(entry[0] != call_id for entry in self._stack):
            self._note_stopped(call_id)

    def _guarded(  # noqa: PLR0913 - a call has that many parts
        self, copy: HostedCopy, kind: int, method: str, body: bytes, buffers: Sequence[Any],
        call_id: int, *, is_readonly: bool, is_reentrant: bool, produce: Any,
    ) -> Outcome:  # fmt: skip
        start_s = self._process.world.now_s()
        outcome = super()._guarded(
            copy, kind, method, body, buffers, call_id,
            is_readonly=is_readonly, is_reentrant=is_reentrant, produce=produce,
        )  # fmt: skip
        self._ran_s[call_id] = self._process.world.now_s() - start_s
        return outcome

    def _put_ended(
        self, call_id: int, attempt: int, outcome: Outcome, run_s: float
    ) -> None:
        # What the machine's clock says of it would differ from run to run.
        virtual_s = self._ran_s.pop(call_id, 0.0)
        super()._put_ended(call_id, attempt, outcome, virtual_s)


class SimProcess:
    """One simulated executor process: a host, slots, a control thread."""

    def __init__(self, executors: SimExecutors, executor_id: int) -> None:
        self.executor_id = executor_id
        self.executors = executors
        self.world = executors.world
        self.speed = executors.speed
        self.why = ""
        self.is_dead = False
        settings = executors.settings
        self.host = SimHost(settings.home, self.world, settings)
        self.sim_slots: list[SimSlot] = []
        self._pipes: list[_Pipe] = []
        self.control = self._open(-1, self._take_control)
        self._control_out = self._answers_over(self.control)
        self.slots = [self._open_slot(index) for index in range(settings.slots)]

    def _open(self, slot: int, deliver: Callable[[list[Any]], None]) -> _DaemonEnd:
        """Open a channel whose other side is `deliver`; return the loop's end."""
        end = _DaemonEnd(self, slot, self.executors.new_fd())
        fd = self.executors.last_fd
        end.channel = _End(fd, _Pipe(self, deliver))
        self.executors.open_end(fd, end)
        return end

    def _open_slot(self, index: int) -> _DaemonEnd:
        end = self._open(index, lambda message: self._to_slot(index, message))
        self.sim_slots.append(SimSlot(index, self, self._answers_over(end)))
        return end

    def _answers_over(self, end: _DaemonEnd) -> _End:
        """Return the executor's end of a channel."""
        pipe = _Pipe(self, lambda message: self.executors.arrive(end, message))
        self._pipes.append(pipe)
        return _End(end.channel.fileno(), pipe)

    def add_slot(self) -> None:
        """Open one more slot."""
        self.slots.append(self._open_slot(len(self.slots)))

    def begin(self) -> None:
        """Say that it takes calls; the process has started."""
        if not self.is_dead:
            self._control_out.put((orders.READY, 0))

    def _to_slot(self, index: int, message: list[Any]) -> None:
        if not self.is_dead:
            self.sim_slots[index].deliver(message)

    def _take_control(self, message: list[Any]) -> None:
        if self.is_dead:
            return
        kind = message[0]
        if kind == orders.PING:
            self._control_out.put((orders.PONG,))
        elif kind == orders.DROP:
            self.host.drop(message[1])
        elif kind == orders.INTERRUPT:
            self.sim_slots[message[1]].interrupt(message[2], message[3])
        elif kind == orders.RECALL:
            self.sim_slots[message[1]].recall()
        elif kind == orders.EXIT:
            self.die("exited with status 0")

    def resume(self, slot: SimSlot, error: BaseException | None = None) -> None:
        """Let a slot go on, unless the process is gone."""
        if not self.is_dead:
            slot.fiber.resume(error)

    def die(self, how: str) -> None:
        """End at once; what it has sent arrives before the news of its end."""
        if self.is_dead:
            return
        self.is_dead = True
        self.why = self.why or how
        now_s = self.world.now_s()
        last_s = max((pipe.last_s for pipe in self._pipes), default=now_s)
        for slot in self.sim_slots:
            slot.channel.is_closed = True
        self.end_fibers()
        self.world.later(
            max(0.0, last_s - now_s) + self.speed.channel.draw_s(self.world.rng),
            lambda: self.executors.arrive(self.control, None),
        )

    def end_fibers(self) -> None:
        """End the threads of all slots."""
        self.is_dead = True
        for slot in self.sim_slots:
            slot.channel.is_closed = True
            slot.fiber.kill()


class SimExecutors(ExecutorProcesses):
    """The ExecutorPort of one simulated peer."""

    def __init__(
        self,
        settings: ProcessSettings,
        world: World,
        speed: ExecutorSpeed,
        mark: Callable[[int], None],
    ) -> None:
        """Make none yet; `mark`: tells the loop's waiter that a descriptor is ready."""
        super().__init__(settings, lambda _digest: b"")
        self.settings = settings
        self.world = world
        self.speed = speed
        self._mark = mark
        self.last_fd = FIRST_FD

    def new_fd(self) -> int:
        """Return a number for a channel."""
        self.last_fd += 1
        return self.last_fd

    def open_end(self, fd: int, end: Any) -> None:
        """Have the loop watch a channel."""
        self._ends[fd] = end
        self._added(fd)

    def arrive(self, end: _DaemonEnd, message: list[Any] | None) -> None:
        """Have a message of an executor arrive, or the news that it is gone."""
        end.inbox.append(message)
        self._mark(end.channel.fileno())

    # -- life --------------------------------------------------------------------------

    def spawn(self, executor_id: int) -> None:
        """Start a process."""
        process = SimProcess(self, executor_id)
        self._processes[executor_id] = process  # type: ignore[assignment]
        duration_s = self.speed.start.draw_s(self.world.rng)
        self.world.later(duration_s, process.begin)

    def kill(self, executor_id: int, why: str) -> None:
        """End a process at once; `why` is told in its ExecutorDied."""
        process: Any = self._processes.get(executor_id)
        if process is not None:
            process.why = why
            process.die(why)

    def crash(self, how: str = "killed by SIGSEGV (segmentation fault)") -> bool:
        """Have one of the processes die, by chance; False where there is none."""
        alive: list[Any] = [p for p in self._processes.values() if not _is_dead(p)]
        if not alive:
            return False
        self.world.rng.choice(alive).die(how)
        return True

    def _bury(self, process: Any) -> events.ExecutorDied:
        del self._processes[process.executor_id]
        for end in (process.control, *process.slots):
            fd = end.channel.fileno()
            self._ends.pop(fd, None)
            self._dirty.pop(fd, None)
            self._removed(fd)
        return events.ExecutorDied(process.executor_id, process.why)

    def _add_slot(self, process: Any) -> None:
        process.add_slot()

    def measure(self) -> list[events.Event]:
        """Return nothing: memory is not simulated."""
        return []

    def receive(self, fd: int) -> list[ExecutorNews]:
        """Read the channel with this descriptor."""
        end: Any = self._ends.get(fd)
        news: list[ExecutorNews] = []
        while end is not None and end.inbox:
            message = end.inbox.popleft()
            if message is None:
                news.append(self._bury(self._processes[end.executor_id]))
                break
            self._take(end, message, news)
        return news

    def close(self) -> None:
        """End all processes at once, and their threads."""
        for process in list(self._processes.values()):
            _end_fibers(process)
        self._processes.clear()


def _is_dead(process: Any) -> bool:
    return bool(process.is_dead)


def _end_fibers(process: Any) -> None:
    process.end_fibers()


__all__ = [
    "ExecutorSpeed", "SimExecutors", "SimProcess", "World",
]  # fmt: skip
