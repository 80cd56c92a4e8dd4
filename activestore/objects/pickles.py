"""Graphs to bytes and back: pickle protocol 5 with large buffers beside the stream.

Active objects become refs; torch storages become buffers, so tensors that share memory
still do after a load; classes that no import can find travel by value (cloudpickle), or
by name where their package is loaded. The same unchanged graph gives the same bytes
each time within one process; another process may give others, since pickle records
which equal strings are one object.

What torch itself leaves out of a pickle stays out: `.grad` and hooks. Views of one
numpy array become arrays of their own; only the same array object in two places stays
one.

Rules of this file: `unpickle` is the only function of the package that unpickles. torch
is used where it is loaded, never imported. A dump's buffers are the live memory of the
graph: copy or send them before the next method runs.

Source: PEP 574; design section 4, "Fields that share objects stay shared".
"""

from __future__ import annotations

import ctypes
import io
import pickle
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import cloudpickle

from activestore.errors import UnsupportedValueError
from activestore.model import ActiveObject
from activestore.objects import rebuild
from activestore.remote import Proxy
from activestore.sources import MAIN_NAMES, module_of
from activestore.wire.values import loaded_library

# Smaller blocks stay in the stream: a descriptor, a digest and a frame cost more.
OUT_OF_BAND_BYTES_MIN = 4096

# What pickle and the reduce functions of users raise for what they cannot do.
PICKLE_ERRORS = (
    pickle.PicklingError, TypeError, AttributeError, ValueError, RecursionError,
    NotImplementedError, RuntimeError, ImportError, KeyError, OSError,
)  # fmt: skip

_MAIN = frozenset(MAIN_NAMES)

RefOf: TypeAlias = Callable[[object], "bytes | None"]
Reduced: TypeAlias = "tuple[Any, ...]"


class Dump(NamedTuple):
    """A pickled graph: the stream and its out-of-band buffers, live memory as bytes."""

    stream: bytes
    buffers: list[memoryview]


class NeedsValueError(pickle.PicklingError):
    """Something can only travel by value; the plain pickler gives up."""


class LargeBytes:
    """Wraps a large bytes field, which pickle alone would copy into the stream."""

    __slots__ = ("value",)

    def __init__(self, value: bytes) -> None:
        self.value = value


class _Reducers:
    """What both picklers do with each kind of object; chosen once per kind and dump."""

    _ref_of: RefOf
    _skipped: Mapping[int, str]
    _reducers: dict[type, Callable[[Any], Any] | None]

    def _prepare(self, ref_of: RefOf, skipped: Mapping[int, str]) -> None:
        self._ref_of = ref_of
        self._skipped = skipped
        self._reducers = {LargeBytes: _reduce_large_bytes}
        torch = loaded_library("torch")
        if torch is not None:
            self._reducers[torch.UntypedStorage] = _reduce_storage
            self._reducers[torch.storage.TypedStorage] = _reduce_typed_storage
            self._reducers[torch.Generator] = _reduce_generator

    def _reduce(self, obj: Any) -> Any:
        if self._skipped and id(obj) in self._skipped:
            return str, (self._skipped[id(obj)],)
        kind = type(obj)
        try:
            reducer = self._reducers[kind]
        except KeyError:
            reducer = self._reducers[kind] = self._reducer_for(kind)
        return NotImplemented if reducer is None else reducer(obj)

    def _reducer_for(self, kind: type) -> Callable[[Any], Any] | None:
        if issubclass(kind, (ActiveObject, Proxy)):
            return self._reduce_active
        if issubclass(kind, type):
            return self._reduce_class
        if kind is types.FunctionType:
            return self._reduce_function
        if issubclass(kind, io.TextIOWrapper):
            return _refuse_file
        return None

    def _reduce_active(self, obj: Any) -> Reduced:
        ref = self._ref_of(obj)
        if ref is None:
            raise UnsupportedValueError(
                type(obj).__qualname__,
                "ref",
                "it is in no store; make_persistent it first",
            )
        return rebuild.ref, (ref,)

    def _reduce_class(self, cls: type) -> Any:
        name = rebuild.name_of(cls)
        if name is not None:
            return rebuild.named, name
        return self._reduce_function(cls)

    def _reduce_function(self, obj: Any) -> Any:
        """Refuse what is only importable where it was written."""
        if obj.__module__ in _MAIN:
            raise NeedsValueError(obj.__qualname__)
        return NotImplemented


class _NamePickler(_Reducers, pickle.Pickler):
    """Classes and functions by name: small, and the code comes from the package."""

    def reducer_override(self, obj: Any) -> Any:
        return self._reduce(obj)


class _ValuePickler(_Reducers, cloudpickle.Pickler):  # type: ignore[misc]  # untyped base
    """The same, with classes and functions by value where no import can find them."""

    def reducer_override(self, obj: Any) -> Any:
        reduced = self._reduce(obj)
        if reduced is NotImplemented:
            return cloudpickle.Pickler.reducer_override(self, obj)
        return reduced

    def _reduce_function(self, obj: Any) -> Any:
        return NotImplemented  # cloudpickle decides


def dump(
    graph: Any,
    *,
    ref_of: RefOf,
    by_value: bool = False,
    skipped: Mapping[int, str] | None = None,
) -> Dump:
    """Pickle a graph.

    Args:
        graph: What to pickle.
        ref_of: Gives an active object's ref; may give it an id first.
        by_value: Classes and functions that cannot be imported go along by value.
        skipped: id() of objects to leave out, and a name that takes their place.

    Raises:
        NeedsValueError: something must go by value, and `by_value` is false.
        ActiveStoreError: what `ref_of` raises.
        Exception: one of PICKLE_ERRORS, or what a reduce function of the user's raises.
    """
    file = io.BytesIO()
    buffers: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        """Return whether the buffer shall stay in the stream."""
        view = buffer.raw()
        if view.nbytes < OUT_OF_BAND_BYTES_MIN:
            return True
        buffers.append(view)
        return False

    kind: Any = _ValuePickler if by_value else _NamePickler
    pickler = kind(file, protocol=5, buffer_callback=keep)
    pickler._prepare(ref_of, skipped or {})  # noqa: SLF001 - of this file
    try:
        pickler.dump(graph)
    finally:
        # It knows its own methods and all that it met: in a circle, large arrays would
        # stay until the next garbage collection.
        pickler.__dict__.clear()
        pickler.clear_memo()
    return Dump(file.getvalue(), buffers)


class _Unpickler(pickle.Unpickler):
    """Finds classes in loaded packages first, then where Python does."""

    def __init__(
        self,
        file: io.BytesIO,
        buffers: Iterable[Any],
        resolve: Callable[[bytes], object],
        scope: type | None,
    ) -> None:
        super().__init__(file, buffers=buffers)
        self._resolve = resolve
        self._scope = scope

    def _named(self, module: str, qualname: str) -> type:
        found = rebuild.find_named(module, qualname, self._scope)
        if found is None:
            found = _loaded_here(module, qualname)
        return rebuild.named(module, qualname) if found is None else found

    def find_class(self, module: str, name: str) -> Any:
        if module == rebuild.__name__ and name == rebuild.ref.__name__:
            return self._resolve
        if module == rebuild.__name__ and name == rebuild.named.__name__:
            return self._named
        if module in _MAIN:
            found = rebuild.find_named("__main__", name, self._scope)
            if found is not None:
                return found
        # Published modules are in sys.modules, put there by the package loader, which
        # sees to it that they win against others of the same name.
        return super().find_class(module, name)


def _loaded_here(module: str, qualname: str) -> type | None:
    """Return the class that this very script, or a module it imported, defines."""
    for name in (module, *MAIN_NAMES):
        found: Any = sys.modules.get(name)
        for part in qualname.split("."):
            found = getattr(found, part, None)
        if isinstance(found, type) and module_of(found) == module:
            return found
    return None


def _no_ref(ref: bytes) -> object:
    raise UnsupportedValueError(
        "ref", ref.hex(), "there is nobody to resolve refs here"
    )


def unpickle(
    stream: bytes | bytearray | memoryview,
    *,
    buffers: Iterable[Any] = (),
    resolve: Callable[[bytes], object] = _no_ref,
    scope: type | None = None,
) -> Any:
    """Read a pickle, which runs code that it names: for executors and developers.

    Args:
        stream: The pickle.
        buffers: Its out-of-band buffers, which the result takes over.
        resolve: Makes an object of a ref.
        scope: A class by value, whose package is looked into first for named classes.
    """
    return _Unpickler(io.BytesIO(stream), buffers, resolve, scope).load()


def _refuse_file(file: io.TextIOWrapper) -> Reduced:
    """Refuse what cloudpickle would turn into a text in memory; pickle refuses it too."""
    raise TypeError(f"an open file cannot travel; keep its name or content: {file!r}")


def _reduce_large_bytes(obj: LargeBytes) -> Reduced:
    return rebuild.large_bytes, (pickle.PickleBuffer(obj.value),)


def _reduce_typed_storage(storage: Any) -> Reduced:
    # A new TypedStorage is made for each tensor; the untyped one inside keeps its
    # identity while the pickle lives, and through it tensors stay shared.
    return rebuild.typed_storage, (storage._untyped_storage, storage.dtype)  # noqa: SLF001


def _reduce_storage(storage: Any) -> Reduced:
    device = storage.device.type
    if device == "meta":
        return rebuild.meta_storage, (storage.nbytes(),)
    if device == "cpu":
        return rebuild.storage, (_memory_of(storage), "cpu")
    return rebuild.storage, (_memory_of(storage.cpu()), str(storage.device))


def _memory_of(storage: Any) -> pickle.PickleBuffer:
    """Return the memory of a CPU storage, without a copy and without numpy."""
    size = storage.nbytes()
    if size == 0:
        return pickle.PickleBuffer(bytearray())
    memory = (ctypes.c_char * size).from_address(storage.data_ptr())
    memory.owner = storage  # The view keeps the memory alive.
    return pickle.PickleBuffer(memory)


def _reduce_generator(generator: Any) -> Reduced:
    state = generator.get_state()
    return rebuild.generator, (str(generator.device), bytes(state.tolist()))


def culprit_of(
    named: Mapping[str, Any], error: Exception, *, ref_of: RefOf
) -> UnsupportedValueError:
    """Return an error that names the innermost thing that cannot be pickled.

    Slow: it pickles parts again and again, each by value.

    Args:
        named: What was pickled together, by the paths to show.
        error: How that failed.
        ref_of: As for `dump`.
    """
    for path, value in named.items():
        problem = _problem_of(value, ref_of)
        if problem is not None:
            return _culprit(path, value, problem, ref_of)
    kind = type(error).__name__
    return UnsupportedValueError("graph", ", ".join(named), f"{kind}: {error}"[:500])


def _culprit(
    path: str, value: object, error: BaseException, ref_of: RefOf
) -> UnsupportedValueError:
    depth = 0
    is_deeper = True
    seen = {id(value)}
    while is_deeper and depth < 64:
        is_deeper = False
        for step, part in _parts_of(value):
            if id(part) in seen:
                continue
            problem = _problem_of(part, ref_of)
            if problem is not None:
                seen.add(id(part))
                path, value, error = path + step, part, problem
                depth += 1
                is_deeper = True
                break
    kind = type(value)
    text = str(error) if str(error) else type(error).__name__
    return UnsupportedValueError(
        f"{kind.__module__}.{kind.__qualname__}", path, text[:500]
    )


def _problem_of(value: object, ref_of: RefOf) -> BaseException | None:
    try:
        dump(value, ref_of=ref_of, by_value=True)
    except Exception as error:  # noqa: BLE001 - whatever a user's reduce function raises
        return error
    return None


def _parts_of(value: Any) -> Iterable[tuple[str, object]]:
    """Yield the parts of a value, each with its step in a path."""
    if isinstance(value, Mapping):
        for key, part in list(value.items()):
            step = f'["{key}"]' if isinstance(key, str) else f"[{key!r}]"
            yield step, part
            yield f".keys(){step}", key
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{i}]", part) for i, part in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield from (("{...}", part) for part in list(value))
    elif isinstance(value, types.FunctionType):
        names = value.__code__.co_freevars
        for name, cell in zip(names, value.__closure__ or (), strict=True):
            yield f".<closure>.{name}", cell.cell_contents
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    if not isinstance(value, type):
        yield from _attributes_of(value)


def _attributes_of(value: Any) -> Iterable[tuple[str, object]]:
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        yield from ((f".{key}", part) for key, part in list(attributes.items()))
    for slot in _slots_of(type(value)):
        if hasattr(value, slot):
            yield f".{slot}", getattr(value, slot)


def _slots_of(kind: type) -> Sequence[str]:
    found: list[str] = []
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        found.extend([slots] if isinstance(slots, str) else slots)
    return [slot for slot in found if not slot.startswith("__")]
