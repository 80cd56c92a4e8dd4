"""Who runs next on an object, and where: mailboxes, activation, dispatch.

Exclusive calls run one at a time in arrival order, readonly calls share. Calls of short
methods follow each other into the same slot without waiting for answers. A reader that
a long writer holds up runs on a second copy that shows the last committed state.

    COLD --load--> LOADING --loaded--> READY --copy dropped--> COLD

Rules of this file: it dispatches and loads; answers and commits are `invocation`'s.

Source: design section 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from activestore.core.calls import (
    Call,
    ClassInfo,
    Client,
    Copy,
    Executor,
    Kind,
    Mailbox,
    MailboxState,
    Slot,
)
from activestore.core.effects import (
    Activate,
    Dispatch,
    Effect,
    HurryCommits,
    LoadObject,
    ReleaseLoaded,
)
from activestore.core.executors import MOVABLE_BYTES_MAX, Pool
from activestore.core.timers import Timer, Timers
from activestore.errors import (
    ActiveStoreError,
    ClassNotFoundError,
    DeadlineExceededError,
    InvalidRequestError,
    NoSuchMethodError,
)
from activestore.ids import ObjectId

# A slot with more than one call is looked at after this time.
RECALL_S = 0.005
# Mailboxes that are tried in vain when a slot is free, before the rest must wait.
READY_FAILURES_MAX = 8
# Objects that are being read, and the share of an executor's budget that states may
# take that were read and wait for a slot: both bound the memory of the daemon. Nested
# calls do not wait: others wait for them.
LOADS_MAX = 16
LOADED_SHARE = 0.25

_READ_FIELD = "<get>"
_NEED_NO_STATE = (Kind.CREATE, Kind.DELETE)


class MailboxConfig(NamedTuple):
    """Bounds of one object's mailbox; see PeerConfig for reasons."""

    mailbox_max: int = 128
    reader_wait_s: float = 0.05


class Mailboxes:
    """All objects with something to do, or activated."""

    def __init__(
        self,
        config: MailboxConfig,
        pool: Pool,
        timers: Timers,
        emit: Callable[[Effect], None],
        refuse: Callable[[Call, ActiveStoreError], None],
        delete: Callable[[Mailbox], None],
    ) -> None:
        self.config = config
        self.pool = pool
        self.timers = timers
        self.emit = emit
        self.refuse = refuse
        self.delete = delete
        # Called for what reads a shared object, as it begins.
        self.ask_round: Callable[[Call], None] = lambda _call: None
        self.now_s = 0.0
        self.boxes: dict[ObjectId, Mailbox] = {}
        self.shared: set[ObjectId] = set()
        # Readings whose result is too old for anybody: by object, and whether for a reader.
        self._old_loads: dict[tuple[ObjectId, bool], int] = {}
        self.classes: dict[str, ClassInfo] = {}
        # Mailboxes whose next call found no slot, in order of arrival.
        self._ready: dict[ObjectId, Mailbox] = {}
        # Mailboxes whose object is to be read once others have been activated.
        self._to_load: dict[ObjectId, Mailbox] = {}
        self.loads_count = 0  # being read
        self.loaded_bytes = 0  # read, and not yet activated

    def box_of(self, object_id: ObjectId) -> Mailbox:
        """Return the mailbox of an object, beginning it where there is none."""
        box = self.boxes.get(object_id)
        if box is None:
            box = self.boxes[object_id] = Mailbox(object_id)
            box.is_shared = object_id in self.shared
        return box

    def tidy(self, box: Mailbox) -> None:
        """Forget a mailbox that says nothing that storage does not say."""
        if box.main is not None or box.reader is not None or not box.is_idle:
            return
        if self.boxes.get(box.object_id) is box:
            self.cool(box)
            del self.boxes[box.object_id]
            self._ready.pop(box.object_id, None)
            self._to_load.pop(box.object_id, None)

    def cool(self, box: Mailbox) -> None:
        """Forget the object's head, and its state where it was read in vain."""
        if box.state is MailboxState.LOADING:
            self.loads_count -= 1
        if box.loaded is not None:
            self.emit(ReleaseLoaded(self._take_loaded(box)))
        box.state = MailboxState.COLD

    def set_aside(self, box: Mailbox) -> None:
        """Have nothing more begin on what was read of an object.

        What runs ends on the copy it has, as readers do beside a writer.
        """
        self._drop_loads(box)
        for call in box.running.values():
            if call.copy is not None:
                call.copy.is_reader = True
        box.reader_running += len(box.running)
        box.running.clear()
        box.writers = 0
        for copy in (box.main, box.reader):
            if copy is not None and not copy.running:
                self.pool.passivate(copy)
        box.main = box.reader = box.pipe = None
        box.fresh_from = 0
        box.state = MailboxState.COLD

    def _drop_loads(self, box: Mailbox) -> None:
        is_loading = box.state is MailboxState.LOADING
        for is_reader, is_open in ((False, is_loading), (True, box.reader_loading)):
            if is_open:
                key = (box.object_id, is_reader)
                self._old_loads[key] = self._old_loads.get(key, 0) + 1
        box.reader_loading = False
        self.cool(box)

    def is_old_load(self, object_id: ObjectId, *, is_reader: bool) -> bool:
        """Whether a state that comes from the disk was asked for too early for anybody.

        Storage answers in the order in which it was asked for an object.
        """
        if not self._old_loads:
            return False
        count = self._old_loads.pop((object_id, is_reader), 0)
        if count > 1:
            self._old_loads[object_id, is_reader] = count - 1
        return count > 0

    def _take_loaded(self, box: Mailbox) -> Any:
        loaded, box.loaded = box.loaded, None
        if loaded is not None:
            self.loaded_bytes -= box.loaded_bytes
        return loaded

    def put_loaded(self, box: Mailbox, loaded: object, state_bytes: int) -> None:
        """Note the state that was read for a mailbox."""
        self.loads_count -= 1
        self.loaded_bytes += state_bytes
        box.loaded = loaded
        box.loaded_bytes = box.state_bytes = state_bytes
        box.state = MailboxState.READY

    @property
    def _may_load(self) -> bool:
        bytes_max = LOADED_SHARE * self.pool.config.activation_bytes_max
        return self.loads_count < LOADS_MAX and self.loaded_bytes <= bytes_max

    @property
    def wants_loads(self) -> bool:
        """Whether objects wait to be read and can be now."""
        return bool(self._to_load) and self._may_load

    def load_more(self) -> None:
        """Read objects that had to wait for others, in order of arrival."""
        while self.wants_loads:
            object_id = next(iter(self._to_load))
            box = self._to_load.pop(object_id)
            if box.waiting and self.boxes.get(object_id) is box:
                self.pump(box)

    def tidy_left(self) -> None:
        """Forget the mailboxes that lost their last copy or call in this step."""
        for box in self.pool.left:
            self.tidy(box)
        self.pool.left.clear()

    # -- what runs next ----------------------------------------------------------------

    def enqueue(self, box: Mailbox, call: Call) -> None:
        """Put a call at the end of the mailbox and dispatch what can run."""
        box.waiting.append(call)
        if box.state is not MailboxState.READY or self._check(box, call):
            self.pump(box)

    def check_waiting(self, box: Mailbox) -> None:
        """Look up the methods of the calls that came while the object was loaded.

        All of them, so that a reader among them is known before a writer runs.
        """
        for call in list(box.waiting):
            if not call.is_checked:
                self._check(box, call)

    def requeue(self, box: Mailbox, call: Call) -> None:
        """Put a call that did not run back where it stood: in order of arrival."""
        waiting = box.waiting
        position = 0
        while position < len(waiting) and waiting[position].call_id < call.call_id:
            position += 1
        waiting.insert(position, call)
        box.readers_waiting += call.is_readonly

    def take(self, box: Mailbox, call: Call) -> None:
        """Take a waiting call out of the mailbox."""
        waiting = box.waiting
        if waiting[0] is call:
            waiting.popleft()
        else:
            waiting.remove(call)
        if call.is_checked:
            box.readers_waiting -= call.is_readonly

    def pump(self, box: Mailbox) -> None:
        """Dispatch what can run on this object now; of one that is to leave, readers."""
        if not box.is_held:
            self._pump(box)
        elif box.running and box.readers_waiting:
            self._serve_readers(box)

    def _pump(self, box: Mailbox) -> None:
        waiting = box.waiting
        while waiting:
            call = waiting[0]
            if not self._is_ready(box, call):
                return
            if not call.is_checked and not self._check(box, call):
                continue
            if call.deadline_s and self.now_s >= call.deadline_s:
                self.take(box, call)
                self.refuse(call, DeadlineExceededError(call.where(), call.timeout_s))
                continue
            if call.kind is Kind.DELETE:
                self.delete(box)  # Waits until nothing runs.
                return
            slot = self._slot_for(box, call)
            if slot is not None:
                self.take(box, call)
                self._dispatch(box, call, slot)
            elif box.running:
                if box.readers_waiting:
                    self._serve_readers(box)
                return
            elif box.state is MailboxState.READY:
                box.is_queued = True
                self._ready[box.object_id] = box
                return

    def pump_ready(self) -> None:
        """Serve the mailboxes that waited for a slot, the oldest first.

        Who cannot use what is free goes behind the others; who only came too late for
        it keeps the place, for behind new ones it could wait for ever.
        """
        failures = 0
        was_any_served = False
        for object_id in list(self._ready):
            box = self._ready[object_id]
            box.is_queued = False
            self.pump(box)
            if not box.is_queued:
                was_any_served = True
                del self._ready[object_id]
                continue
            if not was_any_served:
                self._ready[object_id] = self._ready.pop(object_id)
            failures += 1
            if failures >= READY_FAILURES_MAX:
                return

    def _is_ready(self, box: Mailbox, call: Call) -> bool:
        """Return whether a call could run; else see to it that it can."""
        if box.state is not MailboxState.READY:
            return self._wake(box, call)
        if box.main is None and box.loaded is None and call.kind not in _NEED_NO_STATE:
            box.state = MailboxState.COLD  # What was read was for a call that is gone.
            return self._wake(box, call)
        if box.fresh_from and call.call_id >= box.fresh_from:
            self.set_aside(box)
            return self._wake(box, call)
        return True

    def _wake(self, box: Mailbox, call: Call) -> bool:
        """Begin to load a cold object; return whether its head is known now."""
        if box.state is MailboxState.LOADING:
            return False
        if call.kind is Kind.CREATE:
            box.class_name = call.class_name
            box.state = MailboxState.READY
            return True
        if call.kind is Kind.DELETE and not box.running and not box.pending_commits:
            box.state = MailboxState.READY  # Also of what cannot be read any more.
            return True
        if box.pending_commits or box.running:
            if box.pending_commits:
                self.emit(HurryCommits())
            return False  # Storage must have the last executed state first.
        if not self._may_load and type(call.origin) is Client:
            self._to_load[box.object_id] = box
            return False
        self.loads_count += 1
        box.state = MailboxState.LOADING
        self.emit(LoadObject(box.object_id, is_reader=False))
        return False

    def _check(self, box: Mailbox, call: Call) -> bool:
        """Look the call's method up; refuse and drop a call that cannot be."""
        error = self.why_not(box, call)
        if error is not None:
            self.take(box, call)
            if call.kind is Kind.CREATE and box.main is None:
                self.cool(box)
            self.refuse(call, error)
            return False
        call.is_checked = True
        box.readers_waiting += call.is_readonly
        return True

    def why_not(self, box: Mailbox, call: Call) -> ActiveStoreError | None:
        """Return what is wrong with a call, None where it can be; note what it is."""
        info = self.classes.get(box.class_name)
        if call.kind is Kind.DELETE:
            return None
        if info is None:
            return ClassNotFoundError(box.class_name, tuple(sorted(self.classes)))
        if call.kind is Kind.CREATE:
            call.times = info.times_of("__init__")
            return None
        if call.kind is not Kind.CALL:
            if call.method not in info.fields:
                return NoSuchMethodError(info.class_name, call.method, _names(info))
            call.is_readonly = call.kind is Kind.GET
            call.times = info.times_of(_READ_FIELD)
            return _why_not_stale(call) if call.is_stale else None
        method = info.methods.get(call.method)
        if method is None:
            return NoSuchMethodError(info.class_name, call.method, _names(info))
        if method.is_stream and not call.credit:
            return InvalidRequestError(
                "a generator method needs .stream(...)",
                f"{info.class_name}.{call.method}",
            )
        call.is_readonly = method.is_readonly
        call.is_stream = method.is_stream
        call.times = info.times_of(call.method)
        if method.timeout_s and not call.deadline_s:
            call.timeout_s = method.timeout_s
            call.deadline_s = call.arrived_s + method.timeout_s
            self.timers.add(call.deadline_s, Timer.DEADLINE, call.call_id)
        return _why_not_stale(call) if call.is_stale else None

    def _slot_for(self, box: Mailbox, call: Call) -> Slot | None:
        """Choose the slot for the main copy, None where the call must wait.

        Beside a writer, or as a writer beside others, a call may only follow them in
        the same slot. An idle copy may be given up here for a better place; the mailbox
        is cold then.
        """
        copy = box.main
        if box.running:
            pipe = box.pipe
            if pipe is not None and self.pool.can_join(pipe, call, self.now_s):
                return pipe
            if not call.is_readonly or box.writers or copy is None:
                return None
            return self.pool.free_slot(copy.executor, call, self.now_s)
        if copy is not None:
            if self._should_move(copy):
                self.pool.passivate(copy)
                return None
            return self.pool.free_slot(copy.executor, call, self.now_s)
        executor = self._place(box)
        return (
            None
            if executor is None
            else self.pool.free_slot(executor, call, self.now_s)
        )

    def _should_move(self, copy: Copy) -> bool:
        """Whether an idle copy is better loaded anew elsewhere than called where it is."""
        box, executor = copy.mailbox, copy.executor
        info = self.classes.get(box.class_name)
        if info is not None and info.revision != copy.revision:
            return True  # The class was published anew.
        if box.pending_commits or box.reader_running:
            return False
        if not executor.is_occupied(self.now_s, self.pool.config.long_run_s):
            return False
        if copy.state_bytes > MOVABLE_BYTES_MAX and not executor.is_silent:
            return False
        other = self._place(box, avoid=executor)
        if other is None or other is executor:
            self.pool.ensure_free(self.now_s)
            return False
        return not other.is_occupied(self.now_s, self.pool.config.long_run_s)

    def _place(self, box: Mailbox, avoid: Executor | None = None) -> Executor | None:
        info = self.classes[box.class_name]
        return self.pool.place(info.package, info.revision, self.now_s, avoid)

    # -- dispatch ----------------------------------------------------------------------

    def _dispatch(self, box: Mailbox, call: Call, slot: Slot) -> None:
        copy = box.main
        if copy is None:
            copy = box.main = self._activate(box, slot, call, is_reader=False)
        if not box.running:
            box.pipe = slot
        elif box.pipe is not slot:
            box.pipe = None
        box.running[call.call_id] = call
        if not call.is_readonly:
            box.writers += 1
        self.send(call, slot, copy)

    def _activate(
        self, box: Mailbox, slot: Slot, call: Call, *, is_reader: bool
    ) -> Copy:
        info = self.classes[box.class_name]
        copy = self.pool.add_copy(
            box, slot.executor, info.revision, info.package, is_reader=is_reader
        )
        self.emit(
            Activate(
                slot.executor.executor_id, slot.index, copy.copy_id, box.object_id,
                info.class_name, info.revision, is_reader, call.kind is Kind.CREATE,
                None if is_reader else self._take_loaded(box),
            )
        )  # fmt: skip
        return copy

    def send(
        self, call: Call, slot: Slot, copy: Copy, *, is_stacked: bool = False
    ) -> None:
        """Order the dispatch of a call to a slot.

        `is_stacked`: the slot's thread waits for this very chain and runs the call on
        top; it does not stand in the slot's queue.
        """
        now_s = self.now_s
        call.attempt += 1
        call.slot = slot
        call.copy = copy
        call.dispatched_s = now_s
        call.generation = copy.mailbox.generation
        call.version = copy.version if copy.is_reader else copy.mailbox.executed_version
        copy.running += 1
        if copy.mailbox.is_shared and (call.is_readonly or call.is_stream):
            self.ask_round(call)  # While it runs.
        if is_stacked:
            copy.mailbox.entered += 1
        else:
            slot.queue.append(call)
            if len(slot.queue) == 1:
                slot.head_since_s = now_s
            elif not slot.has_recall_timer:
                slot.has_recall_timer = True
                self.timers.add(now_s + RECALL_S, Timer.RECALL, slot.key)
        if call.times is None or not call.times.is_short:
            self.timers.add(
                now_s + self.pool.config.long_run_s, Timer.LONG_RUN, call.call_id
            )
        self.pool.touch(copy)
        self.emit(Dispatch(slot.executor.executor_id, slot.index, copy.copy_id, call))

    # -- readers beside a long writer --------------------------------------------------

    def _serve_readers(self, box: Mailbox) -> None:
        """Let readers that waited long enough run on the last committed state."""
        if not self.holds_readers_up(box):
            return
        writer_since_s = min(call.dispatched_s for call in box.running.values())
        wait_s = self.config.reader_wait_s
        writing = set()
        for call in list(box.waiting):
            session = call.origin.session if type(call.origin) is Client else None
            if not call.is_readonly:
                writing.add(session)
                continue
            if session in writing:
                continue  # Its own client's earlier write goes first.
            due_s = min(call.arrived_s, writer_since_s) + wait_s
            if self.now_s < due_s:
                if not call.has_reader_timer:
                    call.has_reader_timer = True
                    self.timers.add(due_s, Timer.READER, call.call_id)
            elif not self._run_reader(box, call):
                return

    @staticmethod
    def holds_readers_up(box: Mailbox) -> bool:
        """Whether a writer runs, or one waits for long readers and others behind it."""
        if box.writers:
            return True
        return bool(box.running and box.waiting and not box.waiting[0].is_readonly)

    def _run_reader(self, box: Mailbox, call: Call) -> bool:
        """Dispatch one reader on the reader copy; False where it must wait for it."""
        copy = box.reader
        if box.shown_version > box.committed_version:
            self.emit(HurryCommits())  # What was told already must be seen.
            return False
        if copy is not None and copy.version < box.state_version:
            if copy.running:
                box.reader = None  # Its readers end on it; it is dropped after them.
            else:
                self.pool.passivate(copy)
            copy = None
        if copy is None:
            if not box.reader_loading and box.committed_version:
                box.reader_loading = True
                self.emit(LoadObject(box.object_id, is_reader=True))
            return False
        slot = self.pool.free_slot(copy.executor, call, self.now_s)
        if slot is None:
            return False
        self.take(box, call)
        box.reader_running += 1
        self.send(call, slot, copy)
        return True

    def reader_loaded(self, box: Mailbox, version: int, loaded: object) -> bool:
        """Make the reader copy of a state that was loaded; False where none is wanted."""
        box.reader_loading = False
        is_wanted = any(call.is_readonly for call in box.waiting)
        if not is_wanted or not self.holds_readers_up(box):
            self.emit(ReleaseLoaded(loaded))
            self.pump(box)
            return False
        main = box.main
        executor = self._place(box, avoid=None if main is None else main.executor)
        if executor is None:
            self.emit(ReleaseLoaded(loaded))
            return False
        info = self.classes[box.class_name]
        copy = self.pool.add_copy(
            box, executor, info.revision, info.package, is_reader=True
        )
        copy.version = version
        box.reader = copy
        idle = (slot for slot in executor.slots if not slot.queue)
        slot = next(idle, executor.slots[0])
        self.emit(
            Activate(
                executor.executor_id, slot.index, copy.copy_id, box.object_id,
                info.class_name, info.revision, True, False, loaded,
            )
        )  # fmt: skip
        self._serve_readers(box)
        return True


def _why_not_stale(call: Call) -> ActiveStoreError | None:
    if call.is_readonly:
        return None
    return InvalidRequestError(
        "it changes the object; what may read an older state is readonly methods and "
        "fields: call it without staleness_s",
        call.where(),
    )


def _names(info: ClassInfo) -> tuple[str, ...]:
    return (*sorted(info.methods), *sorted(info.fields))
