"""Activated objects and what runs on them: the part of an executor that knows user code.

A copy is loaded from a committed state, methods run on it, and what they changed is
told as a delta. A call that fails leaves the copy as it was or gives it up. Nothing
here reads a socket: refs and nested calls go through the caller that the slot hands in.

Rules of this file: user code runs only inside `_call_user`; whatever it raises becomes
an error of activestore.errors; a copy whose state is in doubt is dropped, never kept.

Source: design sections 4 and 5.
"""

from __future__ import annotations

import threading
import traceback
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from activestore import ids, model, remote
from activestore.errors import (
    ActiveStoreError,
    CancelledError,
    DeadlineExceededError,
    InvalidRequestError,
    NotActiveMethodError,
    ReadonlyViolationError,
    TooLargeError,
    method_error,
)
from activestore.ids import ObjectId, PeerId
from activestore.objects import opaque
from activestore.objects.outcomes import Interrupted, Outcome, nearest_builtin
from activestore.objects.registry import PackageLoader
from activestore.objects.snapshot import Snapshot, Snapshotter, migrate
from activestore.wire import values
from activestore.wire.limits import BODY_BYTES_MAX, MESSAGE_BYTES_MAX
from activestore.wire.state import (
    NamedState,
    ObjectState,
    StateDelta,
    state_bytes_count,
)

CALL, GET, SET, CREATE = 0, 1, 2, 3

# Characters of a traceback that travel; the innermost frames are the last ones.
TRACEBACK_CHARS_MAX = 16_000
# Characters of an error's text that travel, and bytes of all its fields.
ERROR_TEXT_CHARS_MAX = 4000
ERROR_BYTES_MAX = 256 * 1024
# Copies that were given up and are remembered: far more than calls can be on their way.
GONE_COPIES_MAX = 65_536
# How long a call waits for another slot of the executor to load its copy, in seconds.
ACTIVATION_WAIT_S = 600.0


class HostedCopy:
    """One activated object."""

    __slots__ = (
        "baseline", "class_name", "cls", "copy_id", "error", "is_new", "is_reader",
        "must_rewrite", "obj", "object_id", "snapshotter", "stored_fields",
    )  # fmt: skip

    def __init__(
        self, copy_id: int, object_id: ObjectId, class_name: str, *, is_reader: bool
    ) -> None:
        self.copy_id = copy_id
        self.object_id = object_id
        self.class_name = class_name
        self.is_reader = is_reader
        self.is_new = False
        self.must_rewrite = False
        self.stored_fields: tuple[str, ...] = ()
        self.error: ActiveStoreError | None = None
        self.cls: Any = None
        self.obj: Any = None
        self.snapshotter: Any = None
        self.baseline: Snapshot | None = None


class Running(threading.local):
    """What runs in this thread: the guarded object, the objects made."""

    readonly_obj: object = None
    readonly_method: str = ""
    created: list[Any] | None = None
    home: PeerId | None = None  # whose new objects are, if not this peer's
    loading: HostedCopy | None = None
    current: HostedCopy | None = None  # whose call runs


class Host:
    """All copies of one executor process."""

    def __init__(
        self,
        home: PeerId,
        caller: Any,
        *,
        check_readonly: bool,
        message_bytes_max: int = MESSAGE_BYTES_MAX,
    ) -> None:
        self._home = home
        self.caller = caller
        self._check_readonly = check_readonly
        self._message_bytes_max = message_bytes_max
        self.loader = PackageLoader()
        self.copies: dict[int, HostedCopy] = {}
        # Copies that were given up: calls for them may be on their way still.
        self._gone: OrderedDict[int, None] = OrderedDict()
        self._changed = threading.Condition()
        self._stand_ins: weakref.WeakValueDictionary[bytes, Any] = (
            weakref.WeakValueDictionary()
        )
        self.running = Running()
        self._guard_fields()

    # -- copies ------------------------------------------------------------------------

    def activate(
        self, copy: HostedCopy, revision: bytes, stored: ObjectState | None
    ) -> None:
        """Make a copy ready for calls; a failure is kept in it and answers its calls."""
        try:
            self._activate(copy, revision, stored)
        except Interrupted:
            copy.error = CancelledError(copy.class_name)
        except ActiveStoreError as error:
            copy.error = error
        except Exception as error:  # noqa: BLE001 - user code ran: on_activate, __setstate__
            copy.error = self._method_error(error, f"{copy.class_name}.on_activate")
        with self._changed:
            if copy.copy_id not in self._gone:
                self.copies[copy.copy_id] = copy
            self._changed.notify_all()

    def _activate(
        self, copy: HostedCopy, revision: bytes, stored: ObjectState | None
    ) -> None:
        cls = self.loader.class_of(copy.class_name, revision)
        copy.cls = cls
        copy.snapshotter = self._snapshotter(cls, copy.class_name, revision)
        new: Any = cls.__new__
        copy.obj = new(cls)
        copy.obj.__dict__[model.ID_SLOT] = copy.object_id
        if stored is None:
            copy.is_new = True
            return
        self.running.loading = copy
        try:
            copy.baseline = copy.snapshotter.load(copy.obj, stored)
            version = int(getattr(cls, "class_version", 0))
            if version != stored.class_version:
                self._migrate(copy, stored)
            activate = getattr(copy.obj, "on_activate", None)
            if activate is not None:
                activate()
        finally:
            self.running.loading = None

    @staticmethod
    def _migrate(copy: HostedCopy, stored: ObjectState) -> None:
        """Bring loaded fields to the class's version; kept with the next commit."""
        attributes = copy.obj.__dict__
        names = (*stored.fields, *stored.graph_fields)
        old = {name: attributes.pop(name) for name in names if name in attributes}
        attributes.update(migrate(copy.cls, stored.class_version, old))
        copy.stored_fields = tuple(stored.fields)
        copy.must_rewrite = True

    def _snapshotter(self, cls: type, class_name: str, revision: bytes) -> Snapshotter:
        return Snapshotter(
            cls,
            class_name=class_name,
            revision=revision,
            class_version=int(getattr(cls, "class_version", 0)),
            ref_of=self.ref_of,
            resolve=self.resolve,
            by_value=self.loader.is_by_value(class_name),
        )

    def copy_of(self, copy_id: int) -> HostedCopy | None:
        """Return a copy, waiting while another slot loads it; None where it is gone."""
        copy = self.copies.get(copy_id)
        if copy is not None:
            return copy
        with self._changed:
            self._changed.wait_for(
                lambda: copy_id in self.copies or copy_id in self._gone,
                ACTIVATION_WAIT_S,
            )
        return self.copies.get(copy_id)

    def drop(self, copy_id: int) -> None:
        """Forget a copy; calls that come for it find it gone."""
        with self._changed:
            self.copies.pop(copy_id, None)
            self._gone[copy_id] = None
            if len(self._gone) > GONE_COPIES_MAX:
                self._gone.popitem(last=False)
            self._changed.notify_all()

    # -- one call ----------------------------------------------------------------------

    def run(  # noqa: PLR0913 - a call has that many parts
        self,
        copy: HostedCopy,
        kind: int,
        method: str,
        body: bytes,
        buffers: Sequence[Any],
        *,
        is_readonly: bool,
        is_reentrant: bool,
        produce: Callable[[Any], None] | None,
    ) -> Outcome:
        """Run one call on a copy and return what it leaves.

        `produce` takes the items of a generator method. `is_reentrant`: an outer call
        of the chain holds the copy and commits for both.
        """
        if copy.error is not None:
            return self._failure(copy.error, is_dropped=True)
        running = self.running
        outer = running.readonly_obj, running.readonly_method, running.current
        running.current = copy
        running.readonly_obj = copy.obj if is_readonly else None
        running.readonly_method = method
        created = running.created = [] if not is_reentrant else running.created
        try:
            result = self._call_user(copy, kind, method, body, buffers, produce)
            outcome = self._success(
                copy,
                kind,
                method,
                result,
                is_readonly=is_readonly,
                is_reentrant=is_reentrant,
            )
        except BaseException as error:  # noqa: BLE001 - user code: anything may come
            told = self._told(error, f"{copy.class_name}.{method}")
            outcome = self._undo(
                copy,
                told,
                is_readonly=is_readonly,
                is_reentrant=is_reentrant,
                kind=kind,
            )
        finally:
            running.readonly_obj, running.readonly_method, running.current = outer
        if outcome.code and not is_reentrant:
            for made in created or ():
                made.__dict__.pop(model.ID_SLOT, None)
        if not is_reentrant:
            running.created = None
        return outcome

    def _call_user(
        self,
        copy: HostedCopy,
        kind: int,
        method: str,
        body: bytes,
        buffers: Sequence[Any],
        produce: Callable[[Any], None] | None,
    ) -> Any:
        args, kwargs = values.decode_arguments(
            body, buffers, resolve=self.resolve, unpickle=self.load_value
        )
        obj = copy.obj
        if kind == CALL:
            function = getattr(copy.cls, method, None)
            if getattr(function, "__activestore__", None) is None:
                raise NotActiveMethodError(copy.class_name, method)
            result = self._bound(getattr(obj, method), args, kwargs)
            return result if produce is None else self._exhaust(result, produce)
        if kind == GET:
            return getattr(obj, method)
        if kind == SET:
            setattr(obj, method, args[0])
            return None
        self._bound(obj.__init__, args, kwargs)
        return None

    @staticmethod
    def _bound(function: Callable[..., Any], args: Sequence[Any], kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            # Raised by the call itself, not inside the method: wrong arguments.
            trace = error.__traceback__
            if trace is not None and trace.tb_next is None:
                raise InvalidRequestError(str(error), "arguments") from None
            raise

    @staticmethod
    def _exhaust(generator: Any, produce: Callable[[Any], None]) -> Any:
        try:
            while True:
                produce(next(generator))
        except StopIteration as stop:
            return stop.value
        finally:
            generator.close()

    # -- what a call leaves ------------------------------------------------------------

    def _success(
        self,
        copy: HostedCopy,
        kind: int,
        method: str,
        result: Any,
        *,
        is_readonly: bool,
        is_reentrant: bool,
    ) -> Outcome:
        buffers: Sequence[Any] = ()
        if result is None:
            body = b"\xc0"
        else:
            body, buffers = self.encode(result, "result")
        if is_reentrant:
            return Outcome("", body, buffers)
        created = self.running.created
        if is_readonly:
            if self._check_readonly and copy.baseline is not None:
                field = copy.snapshotter.first_difference(copy.obj, copy.baseline)
                if field is not None:
                    raise ReadonlyViolationError(copy.class_name, method, field)
            if not created:
                return Outcome("", body, buffers)
            return Outcome("", body, buffers, created=self._keep_created())
        if kind == CREATE:
            state, baseline = copy.snapshotter.take(copy.obj)
            copy.is_new = False
            copy.baseline = baseline
            return Outcome(
                "", body, buffers, state=state, created=self._keep_created(),
                state_bytes=state_bytes_count(state),
            )  # fmt: skip
        delta, size = self._delta(copy, self._only(copy, kind, method))
        return Outcome(
            "", body, buffers, delta=delta,
            created=self._keep_created() if created else (), state_bytes=size,
        )  # fmt: skip

    @staticmethod
    def _only(copy: HostedCopy, kind: int, method: str) -> tuple[str, ...] | None:
        if kind == SET:
            return (method,)
        options: model.MethodOptions = getattr(copy.cls, method).__activestore__
        return options.changes

    def _delta(
        self, copy: HostedCopy, only: tuple[str, ...] | None
    ) -> tuple[StateDelta | None, int]:
        """Return what changed since the last commit, and make it the new baseline."""
        if copy.must_rewrite:
            state, copy.baseline = copy.snapshotter.take(copy.obj)
            removed = tuple(n for n in copy.stored_fields if n not in state.fields)
            copy.must_rewrite = False
            delta = StateDelta(
                state.class_name, state.revision, state.class_version, state.fields,
                removed, state.graph, state.graph_fields, state.buffers,
            )  # fmt: skip
            return delta, state_bytes_count(state)
        found = copy.snapshotter.changes(copy.obj, copy.baseline, only)
        if found is None:
            return None, 0
        delta, copy.baseline = found
        return delta, copy.baseline.state_bytes

    def checkpoint(
        self, copy: HostedCopy
    ) -> tuple[StateDelta | None, Sequence[NamedState]]:
        """Return what the running method has changed so far.

        Raises:
            ReadonlyViolationError: the method is readonly.
        """
        if self.running.readonly_obj is not None:
            raise ReadonlyViolationError(
                copy.class_name, self.running.readonly_method, "checkpoint"
            )
        if copy.is_new:
            raise InvalidRequestError("no checkpoint in __init__", copy.class_name)
        delta, _ = self._delta(copy, None)
        return delta, self._keep_created()

    def _keep_created(self) -> list[NamedState]:
        """Return the states of objects that the method made, and turn them remote."""
        created = self.running.created or []
        states: list[NamedState] = []
        position = 0
        while position < len(created):  # Taking one may find more.
            obj = created[position]
            position += 1
            states.append(self._state_of(obj))
        for obj in created:
            self.adopt(obj)
        created.clear()
        return states

    def adopt(self, obj: Any) -> None:
        """Turn an object that now lives in the store into its stand-in here."""
        object_id = obj.__dict__[model.ID_SLOT]
        remote.become_stand_in(obj, object_id, self.caller)
        self._stand_ins[object_id] = obj

    def _state_of(self, obj: Any, alias: str = "") -> NamedState:
        cls = type(obj)
        class_name = model.class_name_of(cls)
        revision = self.loader.revision_of(class_name)
        state, _ = self._snapshotter(cls, class_name, revision).take(obj)
        return NamedState(obj.__dict__[model.ID_SLOT], alias, state)

    def states_to_persist(
        self, obj: Any, alias: str, home: PeerId | None = None
    ) -> tuple[list[NamedState], list[Any]]:
        """Return the states of an object and all it reaches, and these objects.

        `home`: the peer that is to have them, None for this one.
        """
        outer, self.running.created = self.running.created, []
        self.running.home = home
        try:
            self.ref_of(obj)
            made = self.running.created
            states: list[NamedState] = []
            while len(states) < len(made):
                target = made[len(states)]
                states.append(self._state_of(target, alias if target is obj else ""))
            return states, made
        finally:
            self.running.created, self.running.home = outer, None

    def _undo(
        self, copy: HostedCopy, error: ActiveStoreError, *, is_readonly: bool,
        is_reentrant: bool, kind: int,
    ) -> Outcome:  # fmt: skip
        """Return a failure, giving the copy up where the call changed something.

        A call that entered its own chain's object is a part of the call it entered: what
        it changed is that one's to keep or to give up.
        """
        if is_reentrant:
            return self._failure(error)
        is_dropped = kind == CREATE or isinstance(error, ReadonlyViolationError)
        if not is_dropped and not is_readonly:
            try:
                before = copy.baseline
                is_dropped = before is None or (
                    copy.snapshotter.changes(copy.obj, before, None) is not None
                )
            except Exception:  # noqa: BLE001 - a state that cannot be read is in doubt
                is_dropped = True
        if is_dropped:
            self.drop(copy.copy_id)
        return self._failure(error, is_dropped=is_dropped)

    @staticmethod
    def _failure(error: ActiveStoreError, *, is_dropped: bool = False) -> Outcome:
        try:
            body = values.encode_error(error)
            is_told = len(body) <= ERROR_BYTES_MAX
        except ActiveStoreError:
            is_told = False
        if not is_told:
            # A method may raise our errors too, with fields that nobody can carry.
            told = method_error(type(error).__name__, _text_of(error))
            error, body = told, values.encode_error(told)
        return Outcome(error.code, body, is_dropped=is_dropped)

    def _told(self, error: BaseException, where: str) -> ActiveStoreError:
        """Return what a caller is told of what a method raised."""
        if isinstance(error, Interrupted):
            if error.reason == "cancelled":
                return CancelledError(where)
            return DeadlineExceededError(where, 0.0)
        if isinstance(error, ActiveStoreError):
            return error
        return self._method_error(error, where)

    @staticmethod
    def _method_error(error: BaseException, where: str) -> ActiveStoreError:
        # The frames of this file say nothing to the author of the method.
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        lines = traceback.format_exception(type(error), error, trace, limit=-40)
        return method_error(
            type(error).__name__, _text_of(error), where,
            "".join(lines)[-TRACEBACK_CHARS_MAX:], nearest_builtin(error),
        )  # fmt: skip

    # -- values and refs ---------------------------------------------------------------

    def encode(self, value: object, what: str) -> tuple[bytes, Sequence[Any]]:
        """Return a result or an item as it travels.

        Raises:
            UnsupportedValueError: it cannot travel; names the path inside it.
            TooLargeError: it is over what a message may have.
        """
        body, buffers = values.encode(
            value, ref_of=self.ref_of, pickle=self.dump_value, path=what
        )
        if len(body) > BODY_BYTES_MAX:
            raise TooLargeError(f"inline part of the {what}", len(body), BODY_BYTES_MAX)
        size = len(body)
        for buffer in buffers:
            size += memoryview(buffer).nbytes
        if size > self._message_bytes_max:
            limit = self._message_bytes_max
            raise TooLargeError(what, size, limit, "message_bytes_max of the peer")
        return body, buffers

    def dump_value(self, value: object) -> tuple[str, bytes]:
        """Pickle a value without a wire form."""
        return opaque.dump_value(value, self.ref_of)

    def load_value(self, name: str, data: bytes) -> Any:
        """Unpickle one."""
        return opaque.load_value(name, data, self.resolve)

    def ref_of(self, obj: object) -> bytes | None:
        """Return the ref of an active object; a new one gets its id here."""
        if not isinstance(obj, (model.ActiveObject, remote.Proxy)):
            return None
        object_id = remote.id_of(obj)
        if object_id is None:
            if self.running.created is None:
                raise InvalidRequestError(
                    "a new active object cannot be kept here: make_persistent it first",
                    type(obj).__name__,
                )
            object_id = ids.new_object_id(self.running.home or self._home)
            obj.__dict__[model.ID_SLOT] = object_id
            self.running.created.append(obj)
        cls: Any = remote.original_class(type(obj))
        name = (
            cls._activestore_interface["class_name"]
            if issubclass(cls, remote.Proxy)
            else model.class_name_of(cls)
        )
        return object_id + name.encode()

    def resolve(self, ref: bytes) -> object:
        """Return the one object of this process that stands for `ref`."""
        object_id = ObjectId(ref[: ids.OBJECT_ID_BYTES])
        for copy in (self.running.loading, self.running.current):
            if copy is not None and copy.object_id == object_id:
                return copy.obj  # `self` is itself, by whatever way it comes.
        known = self._stand_ins.get(object_id)
        if known is not None:
            return known
        class_name = ref[ids.OBJECT_ID_BYTES :].decode()
        cls = self.loader.find_class(class_name)
        if cls is not None:
            made = remote.make_class_stand_in(cls, object_id, self.caller)
        else:
            made = self.caller.make_proxy(object_id, class_name)
        self._stand_ins[object_id] = made
        return made

    # -- readonly guard ----------------------------------------------------------------

    def _guard_fields(self) -> None:
        """Make assigning a field of the object of a readonly call raise, in this process."""
        running = self.running

        def guarded_setattr(obj: Any, name: str, value: Any) -> None:
            if obj is running.readonly_obj and name in model.fields_of(type(obj)):
                raise ReadonlyViolationError(
                    model.class_name_of(type(obj)), running.readonly_method, name
                )
            object.__setattr__(obj, name, value)

        def guarded_delattr(obj: Any, name: str) -> None:
            if obj is running.readonly_obj and name in model.fields_of(type(obj)):
                raise ReadonlyViolationError(
                    model.class_name_of(type(obj)), running.readonly_method, name
                )
            object.__delattr__(obj, name)

        model.ActiveObject.__setattr__ = guarded_setattr  # type: ignore[method-assign]
        model.ActiveObject.__delattr__ = guarded_delattr  # type: ignore[method-assign]


def _text_of(error: BaseException) -> str:
    """Return an error's text, cut to what travels."""
    try:
        return str(error)[:ERROR_TEXT_CHARS_MAX]
    except Exception:  # noqa: BLE001 - a __str__ of the user's
        return "<its text cannot be made>"
