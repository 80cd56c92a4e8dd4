"""A slot: one thread of an executor that takes calls from its channel and runs them.

Calls of short methods come many at a time and are answered many at a time. While a
method waits for a nested call, the same thread runs what its own chain sends back to
it. The control thread reaches in at two points: it interrupts the running call, and it
takes back calls that have not begun.

Rules of this file: `_inbox_lock` guards the messages read and not yet begun; only the
slot's thread writes results, except in `recall`, which holds the lock and writes what
the thread has ready.

Source: design sections 3 and 5.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from typing import Any

from activestore import model
from activestore.errors import (
    ActiveStoreError,
    CancelledError,
    InternalError,
    InvalidRequestError,
    error_from_wire,
)
from activestore.ids import ObjectId
from activestore.objects import orders
from activestore.objects.channel import Channel, MappedRegions, RegionPool, map_file
from activestore.objects.hosting import Host, HostedCopy
from activestore.objects.outcomes import Interrupted, InterruptedByDeadline, Outcome
from activestore.objects.spinning import Spin
from activestore.remote import CallOptions
from activestore.wire import codec, values
from activestore.wire.messages import Call, Message, Persist
from activestore.wire.state import (
    FileBuffer,
    NamedState,
    ObjectState,
    encode_delta,
    encode_states,
)

# Calls that were stopped before they began and are remembered; most have ended.
STOPPED_MAX = 1024
# The exit status of an executor whose slot thread failed, a bug of ours.
SLOT_FAILED_STATUS = 70
# How long a finished result may wait for others, in seconds.
RESULT_WAIT_S = 0.0002
STREAM_CREDIT = 16

_perf = time.perf_counter


class Slot:
    """One slot thread and its channel."""

    def __init__(
        self, index: int, sock: socket.socket, host: Host, *, spin_s: float
    ) -> None:
        self.index = index
        self.host = host
        self._spin = Spin(spin_s, _perf)
        pool = RegionPool()
        self._released: deque[int] = deque()
        mapped = MappedRegions(self._released.append)
        self.channel = Channel(sock, pool, mapped)
        self._inbox: deque[list[Any]] = deque()
        self._deferred: deque[list[Any]] = deque()
        self._inbox_lock = threading.Lock()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._stack: list[
            tuple[int, int, HostedCopy | None]
        ] = []  # call, attempt, copy
        self._stopped: dict[int, None] = {}  # calls to be answered without a run
        self._credit: dict[int, int] = {}  # stream call to items it may still send
        self._results: dict[int, list[Any]] = {}  # request to its RESULT
        self._items: dict[int, deque[list[Any]]] = {}  # nested stream to its items
        self._open: dict[int, int] = {}  # request to the call that made it
        self._left: deque[int] = deque()  # streams that are not read on
        self._submitted: set[int] = set()  # those that nobody waits for yet
        self._next_request = 1
        self._first_result_s = 0.0
        self._last_call_s = 0.0
        self._interruptible = 0  # the call whose user code runs
        self.thread = threading.Thread(
            target=self._main, name=f"slot-{index}", daemon=True
        )

    # -- the thread --------------------------------------------------------------------

    def _main(self) -> None:
        model.set_thread_store(self.host.caller)
        self.host.caller.enter(self)
        try:
            while True:
                self._serve(self._next())
        except (EOFError, OSError):
            # The daemon is gone, or has closed this slot.
            return
        except BaseException:  # noqa: BLE001 - whatever it is
            # Nobody would serve this slot's calls any more. The daemon can tell their
            # callers of a process that died; of a thread it would never know.
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(SLOT_FAILED_STATUS)

    def _next(self) -> list[Any]:
        """Return the next message, reading and writing as needed."""
        while True:
            with self._inbox_lock:
                if self._inbox:
                    return self._inbox.popleft()
                self._flush()
            self._read()

    def _flush(self) -> None:
        if self._released:
            numbers = []
            while self._released:
                numbers.append(self._released.popleft())
            self.channel.put((orders.RELEASED, numbers))
        if self.channel.pool.gone:
            self.channel.put((orders.GONE, self.channel.pool.gone))
            self.channel.pool.gone = []
        if self.channel.has_output:
            self.channel.flush()
        self._first_result_s = 0.0

    def _read(self) -> None:
        """Wait for messages, first looking again for a while if calls come fast."""
        now_s = _perf()
        until_s = self._spin.until_s(now_s, self._last_call_s)
        while now_s < until_s:
            if self._read_now():
                return
            if not self._spin.offer_core():
                break
            now_s = _perf()
        self._poll.poll()
        self._read_now()

    def _read_now(self) -> bool:
        """Read what is there; under the lock, for the control thread reads here too."""
        with self._inbox_lock:
            try:
                self._take(self.channel.receive(socket.MSG_DONTWAIT))
            except BlockingIOError:
                return False
            return True

    def _take(self, messages: Any) -> None:
        """Put what was received into the inbox; buffers are opened in order of arrival."""
        for message in messages:
            kind = message[0]
            if kind == orders.RELEASED:
                for number in message[1]:
                    self.channel.pool.release(number)
            elif kind == orders.GONE:
                self.channel.forget(message[1])
            else:
                if type(message[-1]) is list and message[-1]:
                    message[-1] = [
                        map_file(b) if isinstance(b, FileBuffer) else b
                        for b in self.channel.open_buffers(message[-1])
                    ]
                self._inbox.append(message)

    def _serve(self, message: list[Any]) -> None:
        kind = message[0]
        if kind == orders.RUN:
            self._run(message)
        elif kind == orders.ACTIVATE:
            self._activate(message)
        elif kind == orders.PACKAGE:
            # A damaged archive is told by the activation that then lacks its class.
            with contextlib.suppress(InvalidRequestError):
                self.host.loader.add(message[1], message[2])
        elif kind in {orders.RESULT, orders.ITEM_IN}:
            self._take_answer(message)
        elif kind == orders.CREDIT:
            if message[1] in self._credit:
                self._credit[message[1]] += message[2]
        elif kind == orders.STOP:
            self._stop(message[1], message[2])

    def _take_answer(self, message: list[Any]) -> None:
        kind, number = message[:2]
        if number not in self._open:
            return  # Its caller has ended without it.
        if kind == orders.RESULT:
            self._results[number] = message
        else:
            self._items.setdefault(number, deque()).append(message)

    def _activate(self, message: list[Any]) -> None:
        (
            _,
            copy_id,
            object_id,
            name,
            revision,
            is_reader,
            is_new,
            row,
            version,
            buffers,
        ) = message
        copy = HostedCopy(copy_id, ObjectId(object_id), name, is_reader=is_reader)
        stored = None
        if not is_new:
            fields, graph, graph_fields = row
            stored = ObjectState(
                name, revision, version, fields, graph, tuple(graph_fields), buffers
            )
        self._flush()  # Loading may take long; what is done must not wait for it.
        self.host.activate(copy, revision, stored)

    def _stop(self, call_id: int, reason: str) -> None:
        """A stop that arrives while the thread waits: end the wait, or the unbegun call."""
        if self._stack and self._stack[-1][0] == call_id:
            raise InterruptedByDeadline if reason == "deadline" else Interrupted
        if any(entry[0] == call_id for entry in self._stack):
            return  # It waits below another; its nested call is being ended first.
        with self._inbox_lock:
            waiting = [*self._inbox, *self._deferred]
        if any(m[0] == orders.RUN and m[1] == call_id for m in waiting):
            self._note_stopped(call_id)

    def _note_stopped(self, call_id: int) -> None:
        """Have a call answered without a run, should it come up yet."""
        self._stopped[call_id] = None
        if len(self._stopped) > STOPPED_MAX:
            self._stopped.pop(next(iter(self._stopped)), None)

    # -- one call ----------------------------------------------------------------------

    def _run(self, message: list[Any]) -> None:
        (
            _, call_id, attempt, copy_id, kind, method, is_readonly, is_short, is_stream,
            credit, is_reentrant, body, buffers,
        ) = message  # fmt: skip
        if not is_short:
            self._flush()
        copy = self.host.copies.get(copy_id) or self.host.copy_of(copy_id)
        # A call that came back to a copy whose holder did not wait for it and has ended:
        # run on top of nothing, nobody would commit what it changes.
        is_late = is_reentrant and all(entry[2] is not copy for entry in self._stack)
        if call_id in self._stopped or copy is None or is_late:
            self._stopped.pop(call_id, None)
            self._end(
                call_id,
                attempt,
                Outcome("not_run", b"", is_dropped=copy is None),
                0,
                copy_id,
            )
            return
        produce = None
        if is_stream:
            self._credit[call_id] = credit
            produce = self._producer(call_id, attempt)
        self._stack.append((call_id, attempt, copy))
        start_s = _perf()
        outcome = self._guarded(
            copy, kind, method, body, buffers, call_id,
            is_readonly=is_readonly, is_reentrant=is_reentrant, produce=produce,
        )  # fmt: skip
        run_s = _perf() - start_s
        self._stack.pop()
        if self._open:
            self._forget_requests(call_id)
        if self._deferred and not self._stack:
            with self._inbox_lock:
                self._inbox.extendleft(reversed(self._deferred))
                self._deferred.clear()
        if is_stream:
            self._credit.pop(call_id, None)
        self._end(call_id, attempt, outcome, run_s, copy_id)
        self._last_call_s = start_s + run_s

    def _forget_requests(self, call_id: int) -> None:
        """Let go of what a call asked for and did not take."""
        for number in [n for n, caller in self._open.items() if caller == call_id]:
            del self._open[number]
            self._submitted.discard(number)
            self._results.pop(number, None)
            self._items.pop(number, None)

    def _guarded(  # noqa: PLR0913 - a call has that many parts
        self, copy: HostedCopy, kind: int, method: str, body: bytes, buffers: Sequence[Any],
        call_id: int, *, is_readonly: bool, is_reentrant: bool, produce: Any,
    ) -> Outcome:  # fmt: skip
        """Run a call so that an interrupt at any bytecode ends in an outcome."""
        outer = self._interruptible
        try:
            self._interruptible = call_id
            try:
                outcome = self.host.run(
                    copy, kind, method, body, buffers, is_readonly=is_readonly,
                    is_reentrant=is_reentrant, produce=produce,
                )  # fmt: skip
            finally:
                with self._inbox_lock:
                    self._interruptible = outer
            _fence()
            return outcome
        except Interrupted:
            # It came after the method had ended, while its outcome was made.
            self._interruptible = outer
            self.host.drop(copy.copy_id)
            told: ActiveStoreError = CancelledError(f"{copy.class_name}.{method}")
        except BaseException as error:  # noqa: BLE001 - whatever it is, the caller must hear
            self.host.drop(copy.copy_id)
            told = _internal(f"{copy.class_name}.{method}", error)
        return Outcome(told.code, values.encode_error(told), is_dropped=True)

    def interrupt(self, call_id: int, reason: str) -> None:
        """Raise in the slot's thread if it runs this call; from the control thread."""
        with self._inbox_lock:
            thread_id = self.thread.ident
            if self._interruptible != call_id or thread_id is None:
                if all(entry[0] != call_id for entry in self._stack):
                    self._note_stopped(call_id)  # It has not begun, or has ended.
                return
            kind = InterruptedByDeadline if reason == "deadline" else Interrupted
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread_id), ctypes.py_object(kind)
            )

    def recall(self) -> None:
        """Give back the calls that have not begun, and write results that are ready."""
        self._read_now()
        with self._inbox_lock:
            waiting = [*self._deferred, *self._inbox]
            self._deferred.clear()
            self._inbox.clear()
            for message in waiting:
                if message[0] == orders.RUN and not message[10]:
                    self._put_ended(
                        message[1], message[2], Outcome("not_run", b""), 0.0
                    )
                else:
                    self._inbox.append(message)
            self._flush()

    def _end(
        self, call_id: int, attempt: int, outcome: Outcome, run_s: float, copy_id: int
    ) -> None:
        with self._inbox_lock:
            try:
                self._put_ended(call_id, attempt, outcome, run_s)
            except (MemoryError, ValueError, TypeError) as error:
                # Nothing of it was sent: what the call left cannot travel, or finds no
                # memory.
                self.host.drop(copy_id)
                told = values.encode_error(_internal("the end of a call", error))
                lost = Outcome(InternalError.code, told, is_dropped=True)
                self._put_ended(call_id, attempt, lost, run_s)
            now_s = _perf()
            if not self._first_result_s:
                self._first_result_s = now_s
            elif now_s - self._first_result_s > RESULT_WAIT_S:
                self._flush()

    def _put_ended(
        self, call_id: int, attempt: int, outcome: Outcome, run_s: float
    ) -> None:
        delta = state = created = None
        describe = self.channel.describe
        buffers = describe(outcome.buffers) if outcome.buffers else ()
        if outcome.delta is not None:
            body, new = encode_delta(outcome.delta)
            delta = (body, describe(new))
        if outcome.state is not None:
            body, new = encode_states([NamedState(bytes(16), "", outcome.state)])
            state = (body, describe(new))
        if outcome.created:
            body, new = encode_states(outcome.created)
            created = (body, describe(new))
        self.channel.put((
            orders.ENDED, call_id, attempt, outcome.code, outcome.body, buffers,
            int(run_s * 1e6), delta, state, created, outcome.is_dropped,
            outcome.state_bytes,
        ))  # fmt: skip

    def _producer(self, call_id: int, attempt: int) -> Any:
        def produce(item: Any) -> None:
            body, buffers = self.host.encode(item, "item")
            while self._credit.get(call_id, 0) <= 0:
                self._serve_while_waiting()
            self._credit[call_id] -= 1
            with self._inbox_lock:
                described = self.channel.describe(buffers)
                self.channel.put((orders.ITEM, call_id, attempt, body, described))
                self._flush()

        return produce

    # -- nested calls ------------------------------------------------------------------

    def _serve_while_waiting(self) -> None:
        """Serve one message while a method waits; calls of other chains keep for later."""
        while True:
            message = self._next()
            if message[0] != orders.RUN or message[10]:
                self._serve(message)
                return
            with self._inbox_lock:
                self._deferred.append(message)

    def request(self, message: Message, *, waits: bool = True) -> int:
        """Send a nested request for the running call; return its number."""
        if not self._stack:
            raise InvalidRequestError("no method runs here", "nested call")
        number = self._next_request
        self._next_request += 1
        with self._inbox_lock:
            self._tell_left()
            described = self.channel.describe(message.buffers)
            record = codec.encode(message._replace(buffers=()))
            self.channel.put(
                (orders.REQUEST, self._stack[-1][0], number, waits, record, described)
            )
            self._flush()
        self._open[number] = self._stack[-1][0]
        if not waits:
            self._submitted.add(number)
        return number

    def wait(self, number: int) -> Any:
        """Wait for the answer to a nested request and decode it."""
        if number in self._submitted:
            self._submitted.discard(number)
            if number not in self._results:
                with self._inbox_lock:
                    self.channel.put((orders.WAITS, self._open[number], number))
                    self._flush()
        if number not in self._open:
            raise InvalidRequestError("the call that made it has ended", "nested call")
        while number not in self._results:
            self._serve_while_waiting()
        self._open.pop(number, None)
        return self._decode(self._results.pop(number))

    def _decode(self, message: list[Any]) -> Any:
        _, _, code, body, buffers = message
        if code:
            fields = values.decode(body)
            raise error_from_wire(code, tuple(fields))  # type: ignore[arg-type]
        return values.decode(
            body, buffers, resolve=self.host.resolve, unpickle=self.host.load_value
        )

    def items(self, number: int) -> NestedItems:
        """Return the items of a nested stream; it ends with its result."""
        self._items.setdefault(number, deque())
        return NestedItems(self, number)

    def next_item(self, number: int) -> Any:
        """Wait for an item and return it; StopIteration where there are no more."""
        while True:
            queue = self._items.get(number)
            if queue:
                message = queue.popleft()
                self._send_credit(number)
                return self._decode([0, 0, "", message[3], message[4]])
            if number in self._results:
                self._open.pop(number, None)
                self._items.pop(number, None)
                raise StopIteration(self._decode(self._results.pop(number)))
            if number not in self._open:
                raise StopIteration  # The call that began it has ended.
            self._serve_while_waiting()

    def leave(self, number: int) -> None:
        """Note that a stream is not read on; told before anything else is asked."""
        self._left.append(number)

    def _tell_left(self) -> None:
        while self._left:
            number = self._left.popleft()
            caller = self._open.pop(number, None)
            self._items.pop(number, None)
            if caller is not None and self._results.pop(number, None) is None:
                self.channel.put((orders.ABANDON, caller, number))

    def _send_credit(self, number: int) -> None:
        with self._inbox_lock:
            self.channel.put((orders.CREDIT, self._stack[-1][0], number, 1))
            self._flush()

    def checkpoint(self) -> None:
        """Commit what the running method has changed so far, and wait for it."""
        call_id, attempt, copy = self._stack[-1]
        if copy is None:
            return
        delta, created = self.host.checkpoint(copy)
        if delta is None and not created:
            return
        number = self._next_request
        self._next_request += 1
        with self._inbox_lock:
            packed = made = None
            if delta is not None:
                body, new = encode_delta(delta)
                packed = (body, self.channel.describe(new))
            if created:
                body, new = encode_states(created)
                made = (body, self.channel.describe(new))
            self._open[number] = call_id
            self.channel.put(
                (orders.CHECKPOINT, call_id, attempt, number, packed, made)
            )
            self._flush()
        self.wait(number)


class NestedItems:
    """An iterator over a nested stream; only for the method that began it."""

    def __init__(self, slot: Slot, number: int) -> None:
        self._slot = slot
        self._number = number
        self._is_over = False

    def __iter__(self) -> NestedItems:
        return self

    def __next__(self) -> Any:
        if self._is_over:
            raise StopIteration
        try:
            return self._slot.next_item(self._number)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the stream, if it has not ended."""
        if not self._is_over:
            self._is_over = True
            self._slot.leave(self._number)

    def __del__(self) -> None:
        self.close()


def _fence() -> None:
    """Be a place where a pending interrupt is raised: entering a function is one."""


def call_message(  # noqa: PLR0913, PLR0917 - a call has that many parts
    object_id: ObjectId, method: str, operation: int, body: bytes, buffers: Sequence[Any],
    options: CallOptions, credit: int = 0,
) -> Call:  # fmt: skip
    """Return the wire message of a nested call."""
    extra: dict[str, Any] = {"stream": credit} if credit else {}
    if options.staleness_s is not None:
        extra["staleness_ms"] = max(1, int(options.staleness_s * 1000))
    return Call(
        0, object_id, method, operation, 0, 0, int((options.timeout_s or 0.0) * 1000),
        extra or None, body, buffers,
    )  # fmt: skip


def persist_message(
    states: Sequence[NamedState], extra: dict[str, Any] | None = None
) -> Persist:
    """Return the wire message that keeps states."""
    body, buffers = encode_states(states)
    return Persist(0, 0, 0, extra, body, buffers)  # type: ignore[arg-type]  # no files here


def _internal(where: str, error: BaseException) -> InternalError:
    """Return our own failure as an error that names where it came from."""
    trace = traceback.extract_tb(error.__traceback__)
    last = f"{trace[-1].filename}:{trace[-1].lineno}" if trace else "?"
    return InternalError(f"{where}: {type(error).__name__}: {error!r} at {last}"[:2000])
