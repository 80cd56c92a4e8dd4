"""What the invocation core remembers: calls, copies, mailboxes, slots, executors, classes.

    call:    WAITING -> DISPATCHED -> (EXECUTED, waits for its commit) -> answered
    mailbox: COLD -> LOADING -> READY -> COLD       (READY: the state's head is known)
    copy:    one activated object in one executor; the *main* copy runs writers, a
             *reader* copy shows the last committed state while a writer runs

Rules of this file: data and what can be read off it; every decision is in `invocation`.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

from activestore.core.fences import Fence, Fences
from activestore.errors import ActiveStoreError
from activestore.ids import ObjectId, SessionId

# A method counts as short below this mean run time: its calls may queue in a slot.
SHORT_RUN_S = 0.0005
# Runs of a method before its mean is believed.
SHORT_RUNS_MIN = 3
# Slots of one executor, those opened because others wait for nested calls included.
SLOTS_MAX = 64
# Weight of the newest run in the mean.
MEAN_WEIGHT = 0.1
# `Call.round`: it was not asked yet whether its object is led here still.
NO_ROUND = -1


class Kind(enum.IntEnum):
    """What a call does to its object; the first three are wire Operations."""

    CALL = 0
    GET = 1
    SET = 2
    CREATE = 3
    DELETE = 4


@final
class Client(NamedTuple):
    """The origin of a call that came over the wire: its session and sequence."""

    session: SessionId
    sequence: int


@final
class Nested(NamedTuple):
    """The origin of a call that a running method made: the call, and its own number.

    `waits`: the method's thread waits for it, so that it may run what comes back.
    """

    parent: int
    request: int
    waits: bool = True


@final
class Waiter(NamedTuple):
    """A call that waits, as all peers know it; of two the greater one gives way.

    `began_ms`: when the outermost call of its chain began, by the wall clock there, so
    that the younger chain gives way. `mark`: of the start of the peer where it waits.
    """

    began_ms: int
    mark: bytes
    call_id: int


class MethodInfo(NamedTuple):
    """What the core needs to know of a published method."""

    is_readonly: bool
    is_stream: bool
    timeout_s: float


class MethodTimes:
    """Run time and traffic of one method, kept for scheduling and for placement later."""

    __slots__ = ("bytes_in", "bytes_out", "mean_s", "runs_count", "total_s")

    def __init__(self) -> None:
        self.runs_count = 0
        self.mean_s = 0.0
        self.total_s = 0.0
        self.bytes_in = 0
        self.bytes_out = 0

    def add(self, run_s: float, bytes_in: int, bytes_out: int) -> None:
        """Count one finished run."""
        self.runs_count += 1
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        self.total_s += run_s
        self.mean_s += (run_s - self.mean_s) * max(MEAN_WEIGHT, 1.0 / self.runs_count)

    @property
    def is_short(self) -> bool:
        """Whether calls of this method may wait in a slot behind others."""
        return self.runs_count >= SHORT_RUNS_MIN and self.mean_s < SHORT_RUN_S


class ClassInfo:
    """The latest published revision of one class."""

    __slots__ = (
        "class_name", "durability", "fields", "methods", "package", "revision", "times",
    )  # fmt: skip

    def __init__(
        self,
        class_name: str,
        revision: bytes,
        package: str,
        durability: int,
        fields: frozenset[str],
        methods: Mapping[str, MethodInfo],
    ) -> None:
        self.class_name = class_name
        self.revision = revision
        self.package = package
        self.durability = durability
        self.fields = fields
        self.methods = methods
        self.times: dict[str, MethodTimes] = {}

    def times_of(self, method: str) -> MethodTimes:
        """Return the times of a method, beginning them where there are none."""
        times = self.times.get(method)
        if times is None:
            times = self.times[method] = MethodTimes()
        return times


class Call:
    """One invocation on its way through the peer."""

    __slots__ = (
        "alias", "arrived_s", "attempt", "began_ms", "call_id", "chain",
        "changed_others", "children", "class_name", "copy", "credit", "deadline_s",
        "depth", "dispatched_s", "fence", "first_unacked", "generation",
        "has_checkpointed", "has_reader_timer", "interrupt", "is_abandoned",
        "is_answered", "is_away", "is_checked", "is_deferred", "is_readonly",
        "is_reentrant", "is_stale", "is_stream", "items_sent", "key", "kind",
        "made_nested", "method", "object_id", "origin", "payload", "promise", "refusal",
        "round", "slot", "still_open", "timeout_s", "times", "version", "waits_nested",
        "wants_info",
    )  # fmt: skip

    def __init__(
        self,
        call_id: int,
        origin: Client | Nested,
        object_id: ObjectId,
        kind: Kind,
        method: str,
        payload: object,
    ) -> None:
        self.call_id = call_id
        self.origin = origin
        self.object_id = object_id
        self.kind = kind
        self.method = method
        self.payload = payload
        self.key: object = None  # what quarantine knows it by
        self.alias = self.class_name = ""
        self.arrived_s = 0.0
        self.deadline_s = 0.0  # absolute; 0 for none
        self.timeout_s = 0.0  # what deadline_s was made from
        self.first_unacked = 0
        self.still_open: Sequence[int] = ()
        self.credit = 0
        self.items_sent = 0
        self.times: MethodTimes | None = None
        # `began_ms`: when its chain began, where that was at another peer.
        self.depth = self.began_ms = 0
        self.children: set[int] | None = None  # nested calls that are not answered
        self.waits_nested = 0  # of those, the ones its thread waits for
        self.made_nested = self.has_checkpointed = False
        self.changed_others = False  # through nested calls
        # At another peer; and the marks of its callers where it came from another.
        self.is_away = False
        self.chain: Sequence[tuple[bytes, int]] = ()
        self.promise = 0  # the commit of what a retry is told; see travels
        self.fence: Fence | None = None  # of the run that made it
        # Where it runs; `attempt` counts dispatches and fences late answers.
        self.attempt = 0
        self.slot: Slot | None = None
        self.copy: Copy | None = None
        self.dispatched_s = 0.0
        self.generation = self.version = 0
        self.interrupt = ""
        self.is_checked = False
        self.is_readonly = False
        self.is_stream = self.is_reentrant = False
        self.is_answered = False
        self.refusal: ActiveStoreError | None = None  # its answer, while it still runs
        self.is_deferred = False  # ended; its answer waits for a commit
        self.is_abandoned = self.has_reader_timer = False
        # It may read a copy that is led elsewhere, and nothing but read.
        self.is_stale = self.wants_info = False
        self.round = NO_ROUND  # of questions whether its object is led here still

    @property
    def is_waited_for(self) -> bool:
        """Whether the call that made this one stands still until it ends."""
        return type(self.origin) is Nested and self.origin.waits

    def is_request(self, number: int) -> bool:
        """Whether its caller knows it by this number."""
        return type(self.origin) is Nested and self.origin.request == number

    def where(self) -> str:
        """Return "object.method" for errors."""
        return f"{self.object_id.hex()}.{self.method}"


class Copy:
    """One activated object in one executor."""

    __slots__ = (
        "copy_id", "executor", "is_reader", "mailbox", "package", "revision", "running",
        "state_bytes", "version",
    )  # fmt: skip

    def __init__(
        self, copy_id: int, mailbox: Mailbox, executor: Executor, *, is_reader: bool
    ) -> None:
        self.copy_id = copy_id
        self.mailbox = mailbox
        self.executor = executor
        self.is_reader = is_reader
        self.running = 0
        self.version = 0
        self.state_bytes = 0
        self.revision = b""
        self.package = ""


class MailboxState(enum.IntEnum):
    """Whether the object's head is known here."""

    COLD = 0
    LOADING = 1
    READY = 2


class Mailbox:
    """One object with something to do, or activated."""

    __slots__ = (
        "class_name", "committed_version", "confirmed_round", "entered",
        "executed_version", "fences", "fresh_from", "generation", "hurried_version",
        "is_followed", "is_held", "is_queued", "is_quiet_told", "is_shared",
        "known_replies", "loaded", "loaded_bytes", "main", "object_id",
        "pending_commits", "pipe", "reader", "reader_loading", "reader_running",
        "readers_waiting", "running", "shown_version", "state", "state_bytes",
        "state_version", "unreplied", "waiting", "writers",
    )  # fmt: skip

    def __init__(self, object_id: ObjectId) -> None:
        self.object_id = object_id
        self.state = MailboxState.COLD
        self.class_name = ""
        self.waiting: deque[Call] = deque()
        self.running: dict[int, Call] = {}  # on the main copy
        self.writers = 0
        self.pipe: Slot | None = None  # the slot of all running calls, if it is one
        self.reader_running = 0
        self.entered = 0  # calls of its own chain on top of a running one
        self.readers_waiting = 0
        self.main: Copy | None = None
        self.reader: Copy | None = None
        self.reader_loading = False
        self.is_held = False  # it is to leave: nothing new begins
        self.is_quiet_told = False
        self.hurried_version = 0  # to whose commit storage was hurried
        self.loaded: Any = None  # the state that was read, for the copy to come
        self.loaded_bytes = 0
        self.executed_version = 0
        self.committed_version = 0
        self.shown_version = 0  # the highest that an answer has shown
        self.state_version = 0  # the last committed one that changed the state
        self.pending_commits = 0
        # Version, answer, round: what each waits for; see commits.
        self.unreplied: deque[tuple[int, Any, int]] = deque()
        self.generation = 0
        self.fences: Fences | None = None  # None: what is on disk is not known
        self.is_shared = False  # led here, and others have copies
        self.confirmed_round = 0  # when it was last sure that it is led here
        self.is_followed = False  # perhaps led elsewhere: some may read what is here
        # The state that is read or loaded is too old for calls from this one on; 0: no.
        self.fresh_from = 0
        self.is_queued = False
        self.state_bytes = 0
        # Sequences of replies on disk that their client may not have acknowledged yet.
        self.known_replies: dict[SessionId, deque[int]] = {}

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs, waits, loads or commits."""
        return not (
            self.waiting or self.running or self.pending_commits or self.unreplied
            or self.reader_running or self.entered
            or self.state is MailboxState.LOADING or self.reader_loading or self.is_held
        )  # fmt: skip


class Slot:
    """One thread of an executor, and the calls sent to it, the first one running."""

    __slots__ = (
        "executor",
        "has_recall_timer",
        "head_since_s",
        "index",
        "is_recalling",
        "queue",
    )

    def __init__(self, executor: Executor, index: int) -> None:
        self.executor = executor
        self.index = index
        self.queue: deque[Call] = deque()
        self.head_since_s = 0.0
        self.is_recalling = False
        self.has_recall_timer = False

    @property
    def key(self) -> int:
        """What timers know it by."""
        return self.executor.executor_id * SLOTS_MAX + self.index


class ExecutorState(enum.IntEnum):
    """The life of an executor process."""

    STARTING = 0
    READY = 1
    RETIRING = 2


class Executor:
    """One executor process as the core sees it."""

    __slots__ = (
        "born_s",
        "copies",
        "executor_id",
        "idle_since_s",
        "is_condemned",
        "is_silent",
        "memory_bytes",
        "packages",
        "ping_sent_s",
        "running_packages",
        "slots",
        "state",
        "state_bytes",
    )  # fmt: skip

    def __init__(self, executor_id: int, slots_count: int, now_s: float) -> None:
        self.executor_id = executor_id
        self.state = ExecutorState.STARTING
        self.slots = [Slot(self, index) for index in range(slots_count)]
        self.copies: dict[int, Copy] = {}  # in order of last use
        self.state_bytes = 0
        self.memory_bytes = 0
        self.born_s = now_s
        self.packages: dict[str, bytes] = {}
        self.ping_sent_s = 0.0
        self.is_silent = False
        # Killed by us for a call that did not end: nobody else is to blame.
        self.is_condemned = False
        self.idle_since_s = now_s

    def is_occupied(self, now_s: float, long_s: float) -> bool:
        """Whether a call has run here for `long_s` or longer and still computes."""
        for slot in self.slots:
            queue = slot.queue
            if (
                queue
                and now_s - slot.head_since_s >= long_s
                and not queue[0].waits_nested
            ):
                return True
        return self.is_silent

    @property
    def busy_slots(self) -> int:
        """How many slots have a call."""
        return sum(1 for slot in self.slots if slot.queue)
