"""The executor process: user code and nothing else; no keys, no store, no peers.

`python -m activestore.objects.executor` is started by the daemon with a control socket
and one socket per slot, as inherited descriptors. The control thread answers pings,
interrupts and recalls; each slot thread runs calls. When the daemon goes, the process
goes.

Rules of this file: start, control and the caller that methods see; calls are in
`slots`.

Source: design section 3.
"""

from __future__ import annotations

import importlib
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

from activestore import model, remote
from activestore.errors import AliasNotFoundError, InvalidRequestError
from activestore.ids import ObjectId, PeerId, new_object_id
from activestore.objects import lifeline, orders
from activestore.objects.channel import Channel, MappedRegions, RegionPool
from activestore.objects.hosting import Host
from activestore.objects.slots import STREAM_CREDIT, Slot, call_message, persist_message
from activestore.placing import Placing
from activestore.remote import CallOptions
from activestore.wire import packing, values
from activestore.wire.copies import check_copies, extra_of
from activestore.wire.messages import Create, Delete, Operation, Request


class ExecutorCaller:
    """The store that methods see: nested calls go through the slot of their thread."""

    def __init__(self, home: PeerId) -> None:
        self._placing = Placing(lambda: home, self.request)
        self._local = threading.local()
        self._proxies: dict[str, type[remote.Proxy]] = {}
        self.host: Host

    def enter(self, slot: Slot) -> None:
        """Tie the calling thread to its slot."""
        self._local.slot = slot

    @property
    def _slot(self) -> Slot:
        slot: Slot | None = getattr(self._local, "slot", None)
        if slot is None:
            raise InvalidRequestError(
                "an active object can be called only from the thread that runs the method",
                threading.current_thread().name,
            )
        return slot

    # -- Caller ------------------------------------------------------------------------

    def _call(  # noqa: PLR0913 - a call has that many parts
        self, object_id: ObjectId, method: str, operation: int, args: tuple[Any, ...],
        kwargs: dict[str, Any], options: CallOptions, *, credit: int = 0, waits: bool = True,
    ) -> tuple[Slot, int]:  # fmt: skip
        slot = self._slot
        if options.with_info:
            raise InvalidRequestError(
                "with_info is for clients: inside a method call it without, or return "
                "what you need from the other method",
                method,
            )
        body, buffers = values.encode_arguments(
            args, kwargs, ref_of=self._ref, pickle=self.host.dump_value
        )
        message = call_message(
            object_id, method, operation, body, buffers, options, credit
        )
        return slot, slot.request(message, waits=waits)

    def _ref(self, obj: object) -> bytes | None:
        """Return a ref for an argument; an object that is new is persisted first."""
        if isinstance(obj, model.ActiveObject) and remote.id_of(obj) is None:
            self.persist(obj)
        return self.host.ref_of(obj)

    def invoke(
        self, object_id: ObjectId, method: str, args: tuple[Any, ...],
        kwargs: dict[str, Any], options: CallOptions,
    ) -> Any:  # fmt: skip
        """Run a method of another object and wait for its result."""
        slot, number = self._call(
            object_id, method, Operation.CALL, args, kwargs, options
        )
        return slot.wait(number)

    def submit(
        self, object_id: ObjectId, method: str, args: tuple[Any, ...],
        kwargs: dict[str, Any], options: CallOptions,
    ) -> Any:  # fmt: skip
        """Start a method of another object; `result()` waits in this method's thread."""
        slot, number = self._call(
            object_id, method, Operation.CALL, args, kwargs, options, waits=False
        )
        return NestedFuture(slot, number)

    def stream(
        self, object_id: ObjectId, method: str, args: tuple[Any, ...],
        kwargs: dict[str, Any], options: CallOptions,
    ) -> Iterator[Any]:  # fmt: skip
        """Start a generator method of another object."""
        slot, number = self._call(
            object_id,
            method,
            Operation.CALL,
            args,
            kwargs,
            options,
            credit=STREAM_CREDIT,
        )
        items: Iterator[Any] = slot.items(number)
        return items

    def get_field(self, object_id: ObjectId, field: str) -> Any:
        """Read a field of another object."""
        slot, number = self._call(
            object_id, field, Operation.GET, (), {}, remote.DEFAULT_OPTIONS
        )
        return slot.wait(number)

    def set_field(self, object_id: ObjectId, field: str, value: Any) -> None:
        """Assign a field of another object."""
        slot, number = self._call(
            object_id, field, Operation.SET, (value,), {}, remote.DEFAULT_OPTIONS
        )
        slot.wait(number)

    # -- Store -------------------------------------------------------------------------

    def request(self, operation: str, /, **parameters: Any) -> Any:
        """Ask this peer itself; the operations are listed in schemas/protocol.md."""
        slot = self._slot
        body, _ = values.encode(parameters)
        return slot.wait(slot.request(Request(0, operation, None, body)))

    def persist(
        self, obj: Any, /, *, alias: str = "", peer: str = "",
        replicas: int | None = None, witness: bool | None = None,
    ) -> None:  # fmt: skip
        """Keep a new object and what it reaches, before the method goes on.

        `peer`: name or id of the peer that shall keep it; "" for the one where the method
        runs, or another that has what the class needs if that one lacks it. `replicas`,
        `witness`: how many copies; None for as the profile of that peer has it.
        """
        if remote.id_of(obj) is not None:
            raise InvalidRequestError("it is persistent already", type(obj).__name__)
        check_copies(replicas, witness, type(obj).__name__)
        asked = extra_of(replicas, witness)
        self._placing.place(
            peer, lambda home: self._persist_at(home, obj, alias, asked)
        )

    def _persist_at(
        self, home: PeerId, obj: Any, alias: str, asked: dict[str, Any]
    ) -> None:
        states, made = self.host.states_to_persist(obj, alias, home)
        try:
            slot = self._slot
            slot.wait(slot.request(persist_message(states, asked or None)))
        except BaseException:
            for one in made:
                one.__dict__.pop(model.ID_SLOT, None)
            raise
        for one in made:
            self.host.adopt(one)

    def checkpoint(self) -> None:
        """Commit what the running method has changed so far."""
        self._slot.checkpoint()

    def get(self, alias: str) -> Any:
        """Return the object that `alias` names."""
        found = self.request("resolve", alias=alias)
        ref = bytes(found["object_id"]) + str(found["class_name"]).encode()
        return self.host.resolve(ref)

    def get_for_class(self, alias: str, cls: type, /) -> Any:
        """Return the object that `alias` names, checked to be of `cls`."""
        found = self.get(alias)
        if isinstance(found, model.ActiveObject) and not isinstance(found, cls):
            raise AliasNotFoundError(alias)
        return found

    def new_id(self, home: PeerId) -> ObjectId:
        """Return an id for an object that is made at a peer."""
        return new_object_id(home)

    def create(
        self,
        class_name: str,
        *args: Any,
        alias: str = "",
        peer: str = "",
        replicas: int | None = None,
        witness: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Make an object of a published class, at the peer that `persist` would choose."""
        check_copies(replicas, witness, class_name)
        asked = extra_of(replicas, witness) or None
        body, buffers = values.encode_arguments(
            args, kwargs, ref_of=self._ref, pickle=self.host.dump_value
        )

        def make(home: PeerId) -> ObjectId:
            object_id = self.new_id(home)
            message = Create(
                0, object_id, class_name, alias, 0, 0, 0, asked, body, buffers
            )
            slot = self._slot
            slot.wait(slot.request(message))
            return object_id

        object_id = self._placing.place(peer, make)
        return self.host.resolve(object_id + class_name.encode())

    def delete(self, obj: Any) -> None:
        """Delete another object."""
        object_id = remote.id_of(obj)
        if object_id is None:
            raise InvalidRequestError("it is not persistent", type(obj).__name__)
        slot = self._slot
        slot.wait(slot.request(Delete(0, object_id, 0, 0)))

    def make_proxy(self, object_id: ObjectId, class_name: str) -> Any:
        """Return a proxy of an object whose code is not loaded here."""
        cls = self._proxies.get(class_name)
        if cls is None:
            params: dict[str, Any] = (
                {"class_name": class_name} if class_name else {"object_id": object_id}
            )
            found = self.request("interface", **params)
            cls = remote.proxy_class(found["interface"])
            if class_name:
                self._proxies[class_name] = cls
        return remote.make_proxy(cls, object_id, self)


class NestedFuture:
    """The result of a nested call to come; only for the method that started it."""

    def __init__(self, slot: Slot, number: int) -> None:
        self._slot = slot
        self._number = number
        self._outcome: tuple[bool, Any] | None = None

    def result(self) -> Any:
        """Wait for the result and return it, or raise what the method raised."""
        if self._outcome is None:
            try:
                self._outcome = True, self._slot.wait(self._number)
            except Exception as error:  # noqa: BLE001 - kept, and raised again each time
                self._outcome = False, error
        is_good, value = self._outcome
        if not is_good:
            raise value
        return value


class Executor:
    """The control thread's side of the process."""

    def __init__(self, settings: dict[str, Any]) -> None:
        home = PeerId(settings["home"])
        caller = ExecutorCaller(home)
        self.host = Host(
            home,
            caller,
            check_readonly=settings["check_readonly"],
            message_bytes_max=settings["message_bytes_max"],
        )
        caller.host = self.host
        self._spin_s = settings["spin_us"] / 1e6
        self.slots: dict[int, Slot] = {}
        control = socket.socket(fileno=settings["control_fd"])
        self.control = Channel(control, RegionPool(), MappedRegions(lambda _: None))
        for index, fd in enumerate(settings["slot_fds"]):
            self.add_slot(index, fd)

    def add_slot(self, index: int, fd: int) -> None:
        """Start a slot thread on an inherited or received socket."""
        slot = Slot(index, socket.socket(fileno=fd), self.host, spin_s=self._spin_s)
        self.slots[index] = slot
        slot.thread.start()

    def serve(self) -> None:
        """Answer the daemon's control messages until it goes."""
        self.control.put((orders.READY, os.getpid()))
        self.control.flush()
        while True:
            for message in self.control.receive():
                if message[0] == orders.EXIT:
                    return
                self._control(message)
            if self.control.has_output:
                self.control.flush()

    def _control(self, message: list[Any]) -> None:
        kind = message[0]
        if kind == orders.PING:
            self.control.put((orders.PONG,))
        elif kind == orders.DROP:
            self.host.drop(message[1])
        elif kind == orders.INTERRUPT:
            self.slots[message[1]].interrupt(message[2], message[3])
        elif kind == orders.RECALL:
            self.slots[message[1]].recall()
        elif kind == orders.ADD_SLOT:
            (received,) = self.control.open_buffers(message[2])
            self.add_slot(message[1], received.fd)


def _leave_ending_to_the_daemon() -> None:
    """Let SIGINT and SIGTERM of a whole process group pass: the daemon drains first.

    A handler and not SIG_IGN, which the programs that a method starts would inherit;
    and a forked child of a method ends by these signals as it should.
    """
    here = os.getpid()

    def pass_by(number: int, _frame: object) -> None:
        if os.getpid() != here:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_by)


def main() -> None:
    """Read the settings from standard input, then serve."""
    settings = packing.unpack(sys.stdin.buffer.read())
    if not lifeline.tie_to(settings["daemon_pid"]):
        return
    limit = settings["memory_bytes_max"]
    if limit and sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    _leave_ending_to_the_daemon()
    sys.setswitchinterval(0.0005)
    for name in settings["preload"]:
        importlib.import_module(name)
    executor = Executor(settings)
    try:
        executor.serve()
    except (EOFError, OSError):
        pass
    finally:
        sys.stdout.flush()
        os._exit(
            0
        )  # Slot threads may be inside user code; nothing here needs a farewell.


if __name__ == "__main__":
    main()
