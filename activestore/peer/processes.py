"""Executor processes and the daemon's ends of their channels.

Processes are spawned, never forked: a copy of the daemon would hold its sockets and its
store. What they send is turned into events; what they are told is written once per turn
of the loop, many messages at a time.

Rules of this file: it decides nothing; a process that is gone is reported once, with
what killed it.

Source: design section 3.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import psutil

from activestore.core import events
from activestore.core.calls import Kind
from activestore.core.effects import Activate, Dispatch
from activestore.ids import PeerId
from activestore.objects import orders
from activestore.objects.channel import Channel, MappedRegions, RegionPool
from activestore.peer.ports import ExecutorNews, NestedRequest
from activestore.storage.engine import ClassRecord, Head
from activestore.wire import codec, packing
from activestore.wire.state import (
    FileBuffer,
    NamedState,
    ObjectState,
    StateDelta,
    decode_delta,
    decode_states,
)

# How long a dead process may take to be reaped before it is killed, in seconds.
REAP_S = 2.0
# A process that exits after EXIT needs no longer than this.
RETIRE_S = 1.0

# Libraries that start a thread per core each: an executor gets its share of the cores.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip


class ProcessSettings(NamedTuple):
    """What every executor of a peer is started with."""

    home: PeerId
    slots: int
    spin_us: int
    check_readonly: bool
    memory_bytes_max: int
    message_bytes_max: int
    threads: int
    preload: Sequence[str]


class _End:
    """The daemon's end of one channel, and what was opened over it."""

    __slots__ = ("channel", "executor_id", "packages", "released", "slot")

    def __init__(self, sock: socket.socket, executor_id: int, slot: int) -> None:
        self.executor_id = executor_id
        self.slot = slot  # -1: the control channel
        # Code sent over this channel. Each slot gets it once, and not each process: a
        # state on another slot's channel may overtake the code on this one's.
        self.packages: set[bytes] = set()
        self.released: list[int] = []
        self.channel = Channel(sock, RegionPool(), MappedRegions(self.released.append))

    def put_released(self) -> None:
        """Tell the executor which of its regions are free again."""
        if self.released:
            numbers = self.released[:]
            del self.released[: len(numbers)]
            self.channel.put((orders.RELEASED, numbers))
        if self.channel.pool.gone:
            self.channel.put((orders.GONE, self.channel.pool.gone))
            self.channel.pool.gone = []

    def close(self) -> None:
        """Close the channel and free this side's regions."""
        self.channel.close()
        self.channel.pool.close()


class _Process:
    """One executor process."""

    def __init__(
        self,
        executor_id: int,
        popen: subprocess.Popen[bytes],
        control: _End,
        slots: list[_End],
    ) -> None:
        self.executor_id = executor_id
        self.popen = popen
        self.control = control
        self.slots = slots
        self.why = ""
        self.memory: psutil.Process | None = None


class ExecutorProcesses:
    """All executor processes of one peer."""

    def __init__(
        self, settings: ProcessSettings, code: Callable[[bytes], bytes | None]
    ) -> None:
        self._settings = settings
        self._code = code
        self._processes: dict[int, _Process] = {}
        self._ends: dict[int, _End] = {}
        self._dirty: dict[int, _End] = {}
        self._added: Callable[[int], None] = lambda _: None
        self._removed: Callable[[int], None] = lambda _: None
        self.unstarted: list[tuple[int, str]] = []

    def watch(
        self, added: Callable[[int], None], removed: Callable[[int], None]
    ) -> None:
        """Tell the loop of descriptors that come and go."""
        self._added, self._removed = added, removed

    # -- life --------------------------------------------------------------------------

    def spawn(self, executor_id: int) -> None:
        """Start a process. That it cannot be started is reported by `measure`."""
        settings = self._settings
        pairs = [socket.socketpair() for _ in range(settings.slots + 1)]
        theirs = [pair[1].fileno() for pair in pairs]
        message = {
            "home": settings.home,
            "control_fd": theirs[0],
            "slot_fds": theirs[1:],
            "spin_us": settings.spin_us,
            "check_readonly": settings.check_readonly,
            "memory_bytes_max": settings.memory_bytes_max,
            "message_bytes_max": settings.message_bytes_max,
            "preload": list(settings.preload),
            "daemon_pid": os.getpid(),
        }
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        for variable in _THREAD_VARIABLES:
            environment.setdefault(variable, str(settings.threads))
        try:
            popen = subprocess.Popen(
                [sys.executable, "-m", "activestore.objects.executor"],
                stdin=subprocess.PIPE,
                stdout=sys.stderr.fileno(),  # prints of methods; stdout is for `--json`
                pass_fds=theirs,
                env=environment,
            )
        except OSError as error:
            for pair in pairs:
                pair[0].close()
                pair[1].close()
            self.unstarted.append((executor_id, f"cannot be started: {error}"))
            return
        for pair in pairs:
            pair[1].close()
            pair[0].setblocking(False)
        ends = [_End(pair[0], executor_id, i - 1) for i, pair in enumerate(pairs)]
        process = _Process(executor_id, popen, ends[0], ends[1:])
        self._processes[executor_id] = process
        for end in ends:
            self._watch_end(end)
        if popen.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                popen.stdin.write(packing.pack(message))
                popen.stdin.close()

    def _watch_end(self, end: _End) -> None:
        self._ends[end.channel.fileno()] = end
        self._added(end.channel.fileno())

    def kill(self, executor_id: int, why: str) -> None:
        """End a process at once; `why` is told in its ExecutorDied."""
        process = self._processes.get(executor_id)
        if process is not None:
            process.why = why
            process.popen.kill()

    def retire(self, executor_id: int) -> None:
        """End an idle process kindly."""
        process = self._processes.get(executor_id)
        if process is not None:
            process.why = "retired"
            self.control(executor_id, (orders.EXIT,))

    def _bury(self, process: _Process) -> events.ExecutorDied:
        """Reap a process whose channel closed and say what killed it."""
        del self._processes[process.executor_id]
        for end in (process.control, *process.slots):
            fd = end.channel.fileno()
            self._ends.pop(fd, None)
            self._dirty.pop(fd, None)
            self._removed(fd)
            end.close()
        try:
            code = process.popen.wait(REAP_S)
        except subprocess.TimeoutExpired:
            process.popen.kill()
            code = process.popen.wait()
        return events.ExecutorDied(process.executor_id, process.why or _how(code))

    def close(self) -> None:
        """End all processes: kindly first, then at once."""
        for executor_id, process in list(self._processes.items()):
            process.why = "the peer stops"
            self.control(executor_id, (orders.EXIT,))
        self.flush()
        for process in list(self._processes.values()):
            try:
                process.popen.wait(RETIRE_S)
            except subprocess.TimeoutExpired:
                process.popen.kill()
            self._bury(process)

    def pids(self) -> dict[int, int]:
        """Return the process id of every executor."""
        return {i: process.popen.pid for i, process in self._processes.items()}

    def measure(self) -> list[events.Event]:
        """Return the memory of each process, and the deaths that were not noticed."""
        found: list[events.Event] = [
            events.ExecutorDied(executor_id, how) for executor_id, how in self.unstarted
        ]
        self.unstarted.clear()
        for process in list(self._processes.values()):
            if process.popen.poll() is not None:
                found.append(self._bury(process))
                continue
            with contextlib.suppress(psutil.Error):
                if process.memory is None:
                    process.memory = psutil.Process(process.popen.pid)
                resident = process.memory.memory_info().rss
                if resident > self._settings.memory_bytes_max > 0:
                    self.kill(
                        process.executor_id,
                        f"it used {resident >> 20} MiB of memory, over its limit of "
                        f"{self._settings.memory_bytes_max >> 20} MiB",
                    )
                found.append(events.ExecutorMeasured(process.executor_id, resident))
        return found

    # -- out ---------------------------------------------------------------------------

    def _end_of(self, executor_id: int, slot: int) -> _End | None:
        process = self._processes.get(executor_id)
        if process is None:
            return None
        while slot >= len(process.slots):
            self._add_slot(process)
        end = process.slots[slot]
        self._dirty[end.channel.fileno()] = end
        return end

    def _add_slot(self, process: _Process) -> None:
        """Open one more slot: the executor gets its socket over the control channel."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        index = len(process.slots)
        end = _End(ours, process.executor_id, index)
        process.slots.append(end)
        self._watch_end(end)
        process.control.channel.put_descriptor(
            (orders.ADD_SLOT, index), theirs.detach()
        )
        self._dirty[process.control.channel.fileno()] = process.control

    def activate(
        self,
        order: Activate,
        stored: tuple[Head, ObjectState] | None,
        record: ClassRecord,
    ) -> None:
        """Send a state, and before it the code of its class where it is not there yet."""
        end = self._end_of(order.executor, order.slot)
        if end is None:
            for buffer in stored[1].buffers if stored is not None else ():
                if isinstance(buffer, FileBuffer):
                    os.close(buffer.fd)
            return
        if record.package not in end.packages:
            archive = self._code(record.package) or b""
            end.packages.add(record.package)
            end.channel.put((orders.PACKAGE, record.package, archive))
        row, version, buffers = None, 0, []
        if stored is not None:
            state = stored[1]
            row = (dict(state.fields), state.graph, list(state.graph_fields))
            version = state.class_version
            buffers = end.channel.describe(state.buffers)
        end.channel.put((
            orders.ACTIVATE, order.copy_id, order.object_id, order.class_name,
            order.revision, order.is_reader, order.is_new, row, version, buffers,
        ))  # fmt: skip

    def dispatch(self, order: Dispatch) -> None:
        """Send a call."""
        end = self._end_of(order.executor, order.slot)
        if end is None:
            return
        call = order.call
        message: Any = call.payload
        buffers = message.buffers
        kind = call.kind
        end.channel.put((
            orders.RUN, call.call_id, call.attempt, order.copy_id,
            3 if kind is Kind.CREATE else int(kind), call.method, call.is_readonly,
            call.times is not None and call.times.is_short, call.is_stream, call.credit,
            call.is_reentrant, message.body,
            end.channel.describe(buffers) if buffers else (),
        ))  # fmt: skip

    def control(self, executor_id: int, message: Sequence[Any]) -> None:
        """Send a message to the control thread."""
        process = self._processes.get(executor_id)
        if process is not None:
            process.control.channel.put(message)
            self._dirty[process.control.channel.fileno()] = process.control

    def to_slot(
        self,
        executor_id: int,
        slot: int,
        message: Sequence[Any],
        buffers: Sequence[Any] | None,
    ) -> None:
        """Send a message to a slot; `buffers` are appended in their channel form."""
        end = self._end_of(executor_id, slot)
        if end is None:
            return
        if buffers is not None:
            message = (*message, end.channel.describe(buffers))
        end.channel.put(message)

    def flush(self) -> None:
        """Write what waits; an executor that is gone is noticed when it is read."""
        if not self._dirty:
            return
        for fd, end in list(self._dirty.items()):
            end.put_released()
            try:
                if end.channel.flush():
                    del self._dirty[fd]
            except OSError:
                self._dirty.pop(fd, None)

    @property
    def has_unsent(self) -> bool:
        """Whether an executor takes less than it is sent."""
        return bool(self._dirty)

    # -- in ----------------------------------------------------------------------------

    def receive(self, fd: int) -> list[ExecutorNews]:
        """Read the channel with this descriptor."""
        end = self._ends.get(fd)
        if end is None:
            return []
        news: list[ExecutorNews] = []
        try:
            for message in end.channel.receive():
                self._take(end, message, news)
        except BlockingIOError:
            pass
        except (EOFError, OSError):
            process = self._processes.get(end.executor_id)
            if process is not None:
                news.append(self._bury(process))
        except Exception as error:  # noqa: BLE001 - what user code wrote there can be anything
            # User code shares the process, and has its descriptors.
            self.kill(
                end.executor_id,
                f"it wrote what is no message: {type(error).__name__}: {error}"[:300],
            )
        return news

    def _take(self, end: _End, message: list[Any], news: list[Any]) -> None:  # noqa: C901, PLR0912 - one branch per kind
        kind = message[0]
        if kind == orders.ENDED:
            news.append(_ended(end, message))
        elif kind == orders.ITEM:
            _, call_id, attempt, body, buffers = message
            opened = end.channel.open_buffers(buffers)
            news.append(events.ItemProduced(call_id, attempt, body, opened))
        elif kind == orders.REQUEST:
            _, call_id, request, waits, record, buffers = message
            (wire,) = codec.decode_frame(record)
            opened = end.channel.open_buffers(buffers)
            news.append(
                NestedRequest(call_id, request, waits, wire._replace(buffers=opened))
            )
        elif kind == orders.CHECKPOINT:
            _, call_id, attempt, request, delta, created = message
            news.append(
                events.CheckpointReached(
                    call_id, attempt, request, _delta(end, delta), _states(end, created)
                )
            )
        elif kind == orders.WAITS:
            news.append(events.NestedWaits(message[1], message[2]))
        elif kind == orders.ABANDON:
            news.append(events.NestedAbandoned(message[1], message[2]))
        elif kind == orders.CREDIT:
            news.append(events.NestedCreditArrived(message[1], message[2], message[3]))
        elif kind == orders.RELEASED:
            for number in message[1]:
                end.channel.pool.release(number)
        elif kind == orders.GONE:
            end.channel.forget(message[1])
        elif kind == orders.PONG:
            news.append(events.ExecutorAnswered(end.executor_id))
        elif kind == orders.READY:
            news.append(events.ExecutorStarted(end.executor_id))
        else:
            raise ValueError(f"unknown message {kind!r:.40}")


def _ended(end: _End, message: list[Any]) -> events.CallEnded:
    (
        _, call_id, attempt, code, body, buffers, run_us, delta, state, created,
        is_dropped, state_bytes,
    ) = message  # fmt: skip
    opened = end.channel.open_buffers(buffers) if buffers else ()
    if delta is None and state is None and created is None:
        return events.CallEnded(
            call_id, attempt, code, body, opened, run_us * 1e-6, None, None, (),
            is_dropped, state_bytes,
        )  # fmt: skip
    changed = _delta(end, delta)
    named = _states(end, state)
    return events.CallEnded(
        call_id, attempt, code, body, opened, run_us * 1e-6, changed,
        named[0].state if named else None, _states(end, created), is_dropped, state_bytes,
    )  # fmt: skip


def _delta(end: _End, packed: Any) -> StateDelta | None:
    if packed is None:
        return None
    return decode_delta(packed[0], end.channel.open_buffers(packed[1]))


def _states(end: _End, packed: Any) -> list[NamedState]:
    if packed is None:
        return []
    return decode_states(packed[0], end.channel.open_buffers(packed[1]))


def _how(code: int) -> str:
    """Say what an exit status means."""
    if code < 0:
        name = (
            signal.Signals(-code).name if -code in list(signal.Signals) else str(-code)
        )
        hint = {
            "SIGSEGV": " (segmentation fault)",
            "SIGKILL": " (killed, or out of memory)",
        }
        return f"killed by {name}{hint.get(name, '')}"
    return f"exited with status {code}"
