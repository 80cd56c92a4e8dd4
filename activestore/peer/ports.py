"""What the loop needs of the world: network, storage, executors. A simulator has its own.

Rules of this file: no implementation, and no third-party name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, final

from activestore.core.calls import Client
from activestore.core.effects import Activate, Commit, Dispatch
from activestore.core.events import Event
from activestore.errors import ActiveStoreError
from activestore.storage.engine import Change, ClassRecord, Engine, Head
from activestore.wire.messages import Buffer, Message
from activestore.wire.state import ObjectState


class Transport(Protocol):
    """Messages in and out, by route; a route is one connection of one other process.

    It connected to us, or we to it with `connect`.
    """

    def receive(self, count_max: int) -> list[tuple[bytes, list[Buffer]]]:
        """Return up to `count_max` messages that are here now, as route and frames."""

    def send(self, route: bytes, message: Message) -> None:
        """Send soon: small messages of one route share a frame until `flush`."""

    def flush(self) -> list[bytes]:
        """Write what waits; return routes that nobody answers to any more."""

    def connect(self, endpoint: str) -> bytes:
        """Open a link to another peer and return its route; it never waits for anybody.

        Raises:
            ConfigurationError: it is no address.
        """

    def disconnect(self, route: bytes) -> None:
        """End a link and drop what waits for it; nothing happens where it has ended."""

    def wake_fd(self) -> int:
        """Return the descriptor that becomes readable when messages may be here."""

    def has_input(self) -> bool:
        """Return whether `receive` would return something; must be asked after sends."""

    @property
    def has_backlog(self) -> bool:
        """Whether some client reads more slowly than it is answered."""

    def close(self) -> None:
        """Send what can be sent within a second and close."""


@final
class Loaded(NamedTuple):
    """Storage's answer to a load: the object, or why there is none.

    `register`: of a copy, the row of its register at that moment; None where it was
    written in between.
    """

    object_id: bytes
    is_reader: bool
    head: Head | None
    state: ObjectState | None
    error: ActiveStoreError | None
    is_copy: bool = False
    register: bytes | None = None


@final
class CommitsDone(NamedTuple):
    """Commits that are durable, or refused with an error, in order."""

    results: Sequence[tuple[int, ActiveStoreError | None]]


@final
class StorageFailed(NamedTuple):
    """The disk failed: nothing ordered and not yet reported is durable."""

    reason: str


@final
class Called(NamedTuple):
    """A function that ran in a storage thread is done."""

    then: Callable[[Any, BaseException | None], None]
    value: Any
    error: BaseException | None


class MachinePort(Protocol):
    """The machine that the peer runs on; both may block."""

    def installed(self, names: Sequence[str]) -> dict[str, str]:
        """Return the versions of those of these distributions that are here."""

    def load(self) -> tuple[int, int]:
        """Return the load of a core in hundredths, and the MB that are free on the disk."""


class StoragePort(Protocol):
    """The storage threads."""

    engine: Engine
    is_closing: bool

    def commit(self, token: int, changes: Sequence[Change]) -> None:
        """Order changes; answered by CommitsDone. Orders are carried out in order."""

    def load(self, object_id: bytes, *, is_reader: bool, is_copy: bool = False) -> None:
        """Read an object; answered by Loaded. `is_copy`: of one led elsewhere."""

    def read(
        self,
        function: Callable[[Engine], Any],
        then: Callable[[Any, BaseException | None], None],
    ) -> None:
        """Run a reading function in the reader thread; `then` runs in the loop."""

    def write(
        self,
        function: Callable[[Engine], Any],
        then: Callable[[Any, BaseException | None], None],
    ) -> None:
        """Run a writing function in the writer thread, after commits ordered before."""

    def maintain(
        self,
        function: Callable[[Engine], Any],
        then: Callable[[Any, BaseException | None], None],
    ) -> None:
        """Run a function that reads for long; no other read waits behind it.

        It looks at `is_closing` now and then, and raises where that is set.
        """

    def finished(self) -> list[CommitsDone | StorageFailed | Loaded | Called]:
        """Return what has ended since the last time."""

    def wake_fd(self) -> int:
        """Return the descriptor that becomes readable when something has ended."""

    def close(self) -> None:
        """Carry out what is ordered, then stop."""


@final
class NestedRequest(NamedTuple):
    """A running method sent a wire message: call, its own number, does it wait."""

    call_id: int
    request: int
    waits: bool
    message: Message


ExecutorNews: TypeAlias = Event | NestedRequest


class ExecutorPort(Protocol):
    """The executor processes and their channels."""

    def spawn(self, executor_id: int) -> None:
        """Start a process."""

    def kill(self, executor_id: int, why: str) -> None:
        """End a process at once; `why` is told in its ExecutorDied."""

    def retire(self, executor_id: int) -> None:
        """End an idle process kindly."""

    def activate(
        self,
        order: Activate,
        stored: tuple[Head, ObjectState] | None,
        record: ClassRecord,
    ) -> None:
        """Send a state, and before it the code of its class where it is not there yet."""

    def dispatch(self, order: Dispatch) -> None:
        """Send a call."""

    def control(self, executor_id: int, message: Sequence[Any]) -> None:
        """Send a message to the control thread."""

    def to_slot(
        self,
        executor_id: int,
        slot: int,
        message: Sequence[Any],
        buffers: Sequence[Any] | None,
    ) -> None:
        """Send a message to a slot; `buffers` are appended in their channel form."""

    def receive(self, fd: int) -> list[ExecutorNews]:
        """Read the channel with this descriptor."""

    def flush(self) -> None:
        """Write what waits."""

    def watch(
        self, added: Callable[[int], None], removed: Callable[[int], None]
    ) -> None:
        """Tell the loop of descriptors that come and go."""

    def measure(self) -> Sequence[Event]:
        """Return the memory of each process, and the deaths that were not noticed."""

    @property
    def has_unsent(self) -> bool:
        """Whether an executor takes less than it is sent."""

    def close(self) -> None:
        """End all processes."""


__all__ = [
    "Called", "Client", "Commit", "CommitsDone", "ExecutorNews", "ExecutorPort", "Loaded",
    "NestedRequest", "StorageFailed", "StoragePort", "Transport",
]  # fmt: skip


class Looker(Protocol):
    """What looks now and then after something."""

    def look(self, now_s: float) -> None:
        """Look, and see to what is found."""

    def counts(self) -> dict[str, int]:
        """Return what `status` shows of it."""
