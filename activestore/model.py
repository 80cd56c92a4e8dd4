"""The programming model: ActiveObject, activemethod, and what a class says of itself.

A class declares persistent fields by annotation and remote methods by `@activemethod`.
Here lives what can be read off a class (its fields, its methods, its published
interface) and the hook through which an object finds the store of its process or of the
running call.

Rules of this file: no wire, no socket, no pickle; a local ActiveObject is an ordinary
object at ordinary speed. `inspect` is imported only where an interface is made.

Source: design section 4.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeVar, overload

from activestore.errors import InvalidRequestError, UnavailableError
from activestore.sources import code_digest, file_of, module_of

if TYPE_CHECKING:
    from concurrent.futures import Future
    from types import FrameType
    from typing import Concatenate, Generic, ParamSpec

    from typing_extensions import Self

    P = ParamSpec("P")
    R = TypeVar("R", covariant=True)  # noqa: PLC0105 - it stands in every signature
    T = TypeVar("T")
    S = TypeVar("S")

    class BoundActiveMethod(Generic[P, R]):
        """What a type checker sees of `obj.method`: callable, and the remote forms."""

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...  # noqa: D102 - only a type checker reads it
        def submit(self, *args: P.args, **kwargs: P.kwargs) -> Future[R]: ...  # noqa: D102 - only a type checker reads it
        def stream(  # noqa: D102 - only a type checker reads it
            self: BoundActiveMethod[P, Iterable[T]], *args: P.args, **kwargs: P.kwargs
        ) -> Iterator[T]: ...
        def options(  # noqa: D102 - only a type checker reads it
            self, *, timeout_s: float | None = None, direct: bool = True,
            staleness_s: float | None = None,
        ) -> BoundActiveMethod[P, R]: ...  # fmt: skip
        def with_info(self, *args: P.args, **kwargs: P.kwargs) -> tuple[R, Any]: ...  # noqa: D102 - only a type checker reads it

    class ActiveMethod(Generic[S, P, R]):
        """What a type checker sees of `Class.method`."""

        @overload
        def __get__(self, instance: None, owner: type) -> ActiveMethod[S, P, R]: ...
        @overload
        def __get__(self, instance: S, owner: type) -> BoundActiveMethod[P, R]: ...
        def __get__(self, instance: Any, owner: type) -> Any: ...
        def __call__(self, instance: S, *args: P.args, **kwargs: P.kwargs) -> R: ...  # noqa: D102 - only a type checker reads it


F = TypeVar("F", bound=Callable[..., object])

# Names of an instance's own bookkeeping; never fields, never remote.
ID_SLOT = "_activestore_id"
STORE_SLOT = "_activestore_store"

DURABILITIES = ("commit", "interval", "none")


class MethodOptions(NamedTuple):
    """What `@activemethod` was given."""

    readonly: bool = False
    timeout_s: float = 0.0
    changes: tuple[str, ...] | None = None


@overload
def activemethod(
    function: Callable[Concatenate[S, P], R], /
) -> ActiveMethod[S, P, R]: ...
@overload
def activemethod(
    *,
    readonly: bool = ...,
    timeout_s: float = ...,
    changes: tuple[str, ...] | None = ...,
) -> Callable[[Callable[Concatenate[S, P], R]], ActiveMethod[S, P, R]]: ...
def activemethod(
    function: Any = None,
    /,
    *,
    readonly: bool = False,
    timeout_s: float = 0.0,
    changes: tuple[str, ...] | None = None,
) -> Any:
    """Mark a method as remote: it runs where the object lives.

    Exclusive by default: one at a time per object, and the fields it changes are
    committed before the caller gets the result. The function itself is returned, so a
    local call costs what it always did.

    Args:
        function: The method, when the decorator is used without parentheses.
        readonly: Shared: runs beside other readers; assigning a field raises.
        timeout_s: Deadline of every call in seconds from its arrival; 0 for none.
        changes: The only fields the method may change; only these are compared after
        it.

    Raises:
        InvalidRequestError: readonly together with changes, a negative timeout, or a
        name
            that begins with an underscore.
        TypeError: it is no plain function, such as one that is `async`.
    """

    def mark(method: F) -> F:
        _refuse_what_cannot_run(method)
        if method.__name__.startswith("_"):
            raise InvalidRequestError(
                "names that begin with an underscore are never remote",
                method.__qualname__,
            )
        if readonly and changes is not None:
            raise InvalidRequestError(
                "a readonly method changes nothing: drop `changes`", method.__qualname__
            )
        if timeout_s < 0:
            raise InvalidRequestError(
                f"timeout_s is {timeout_s}, expected 0 or more", method.__qualname__
            )
        names = None if changes is None else tuple(changes)
        method.__activestore__ = MethodOptions(  # type: ignore[attr-defined]  # our mark
            readonly, float(timeout_s), names
        )
        return method

    return mark if function is None else mark(function)


# CO_COROUTINE and CO_ASYNC_GENERATOR, without inspect.
_ASYNC_FLAGS = 0x80 | 0x200


def _refuse_what_cannot_run(method: Any) -> None:
    if isinstance(method, (staticmethod, classmethod, property)):
        raise TypeError(
            f"@activemethod is for methods of an object, not for a "
            f"{type(method).__name__}"
        )
    code = getattr(unwrapped(method), "__code__", None)
    if getattr(code, "co_flags", 0) & _ASYNC_FLAGS:
        raise TypeError(
            f"{method.__qualname__} is async: an active method runs in a thread of its "
            "own; write it with plain `def`, and await it through activestore.aio"
        )


def unwrapped(function: Any) -> Any:
    """Return what decorators that say so have wrapped."""
    for _ in range(64):  # A circle is no decorator's work.
        inner = getattr(function, "__wrapped__", None)
        if inner is None:
            break
        function = inner
    return function


class Store(Protocol):
    """What an ActiveObject needs of the store that it is persisted in or came from."""

    def persist(
        self, obj: Any, /, *, alias: str = "", peer: str = "",
        replicas: int | None = None, witness: bool | None = None,
    ) -> None:  # fmt: skip
        """Keep an object and what it reaches; it becomes remote in place."""

    def get_for_class(self, alias: str, cls: type, /) -> Any:
        """Return the object named `alias` as an instance of `cls`."""


class MethodStore(Store, Protocol):
    """The store of a running method: an executor's."""

    def checkpoint(self) -> None:
        """Commit what the running method has changed so far."""


_thread = threading.local()
_default_store: list[Store] = []


def push_default_store(store: Store) -> None:
    """Make `store` the one that `make_persistent` and `get_by_alias` use."""
    _default_store.append(store)


def drop_default_store(store: Store) -> None:
    """Forget `store`; the one before it is the default again."""
    if store in _default_store:
        _default_store.remove(store)


def set_thread_store(store: MethodStore | None) -> None:
    """Make `store` the current one of this thread: an executor's running call."""
    _thread.store = store


def current_store() -> Store:
    """Return the store of the running call, else of the last `connect`.

    Raises:
        UnavailableError: this process is connected to no peer.
    """
    store: Store | None = getattr(_thread, "store", None)
    if store is not None:
        return store
    if not _default_store:
        raise UnavailableError(
            "no store", "connect first: activestore.connect('tcp://127.0.0.1:7400')"
        )
    return _default_store[-1]


def checkpoint() -> None:
    """Commit what the running method has changed so far; in a local run, do nothing.

    A long training that calls it once an epoch loses one epoch at most in a crash.

    Raises:
        ReadonlyViolationError: called from a readonly method.
    """
    store: MethodStore | None = getattr(_thread, "store", None)
    if store is not None:
        store.checkpoint()


class ActiveObject:
    """Base of all classes whose instances can live in the store.

    Class attributes that a peer reads:
        class_version: The author's integer for `__migrate__`.
        requires: PEP 508 requirements, for example ("torch>=2.4",).
        resources: What the machine must have: "cpus", "memory_mb", "gpu" (devices), for
            example {"gpu": 1, "memory_mb": 4000}.
        durability: "commit" (default), "interval" (answered at once, on disk within 1
        s)
            or "none" (within 60 s): the price is what a crash loses.
    """

    class_version: ClassVar[int] = 0
    requires: ClassVar[tuple[str, ...]] = ()
    resources: ClassVar[Mapping[str, float]] = {}
    durability: ClassVar[str] = "commit"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _refuse_slots(cls)

    if not TYPE_CHECKING:  # Checkers take the arguments from `__init__`.

        def __new__(cls, *args: Any, **kwargs: Any) -> Self:
            """Make a bare instance with copies of its mutable defaults."""
            make = super().__new__
            if make is object.__new__:
                if (args or kwargs) and cls.__init__ is object.__init__:
                    raise TypeError(f"{cls.__name__}() takes no arguments")
                obj = make(cls)
            else:
                obj = make(cls, *args, **kwargs)
            for name in copied_defaults(cls):
                obj.__dict__[name] = _copy_of(getattr(cls, name))
            return obj

    def make_persistent(
        self, alias: str = "", *, peer: str = "", replicas: int | None = None,
        witness: bool | None = None, store: Any = None,
    ) -> Self:  # fmt: skip
        """Put this object and what it reaches into the store; it becomes remote in place.

        Publishes the classes if needed. On return the object is durable. Returns
        itself.

        Args:
            alias: A name unique in the cluster, "" for none; at most 256 characters.
            peer: Name of the peer that shall keep it; "" for the connected one.
            replicas: How many peers keep it, 1 to 7; None for what the profile of its
                peer says. Each change is acknowledged by a majority of them.
            witness: With two: a third peer has a vote and no state, so that one of the
                two can go on alone.
            store: The store, where the process has several; the last connected one
            else.

        Raises:
            AliasExistsError: the alias names another object.
            UnsupportedValueError: a field cannot be kept; names its path.
            UnavailableError: no connection, the peer is silent, or there are too few
                peers for the copies.
        """
        target: Store = current_store() if store is None else store
        target.persist(self, alias=alias, peer=peer, replicas=replicas, witness=witness)
        return self

    @classmethod
    def get_by_alias(cls, alias: str) -> Self:
        """Return the object that `alias` names, as an instance of this class.

        Raises:
            AliasNotFoundError: no object has that alias.
            InvalidRequestError: it is of another class.
        """
        found: Self = current_store().get_for_class(alias, cls)
        return found


def class_name_of(cls: type) -> str:
    """Return the name under which a class is published: "module.Class".

    A class of a script is named after the script: see activestore.sources.
    """
    return f"{module_of(cls)}.{cls.__qualname__}"


class Field(NamedTuple):
    """One persistent field: its annotation as text, and whether it is Final."""

    name: str
    annotation: str
    is_final: bool


def fields_of(cls: type) -> dict[str, Field]:
    """Return the persistent fields of a class, inherited ones first, by name.

    A field is an annotated name whose annotation is not ClassVar and that does not
    begin with two underscores. The result is cached on the class.
    """
    cached: dict[str, Field] | None = cls.__dict__.get("_activestore_fields")
    if cached is not None:
        return cached
    found: dict[str, Field] = {}
    for base in reversed(cls.__mro__):
        if base in (object, ActiveObject) or base.__dict__.get(
            "_activestore_is_remote"
        ):
            continue
        for name, annotation in _annotations_of(base).items():
            text = (
                annotation
                if isinstance(annotation, str)
                else _annotation_text(annotation)
            )
            if name.startswith("__") or text.startswith(
                ("ClassVar", "typing.ClassVar")
            ):
                continue
            is_final = text.startswith(("Final", "typing.Final"))
            found[name] = Field(name, text, is_final)
    cls._activestore_fields = found  # type: ignore[attr-defined]  # our cache
    return found


def copied_defaults(cls: type) -> tuple[str, ...]:
    """Return the fields whose default on the class can change in place.

    Each object gets a copy of them when it is made: one list shared by all objects of a
    class would be the state of none. A Final default is a constant and stays shared.
    The result is cached on the class.
    """
    cached: tuple[str, ...] | None = cls.__dict__.get("_activestore_defaults")
    if cached is None:
        cached = tuple(
            name
            for name, field in fields_of(cls).items()
            if not field.is_final and _can_change(getattr(cls, name, None))
        )
        cls._activestore_defaults = cached  # type: ignore[attr-defined]  # our cache
    return cached


# What a glance at the type tells to be unchangeable; of others a copy tells.
_UNCHANGEABLE = frozenset({
    type(None), bool, int, float, complex, str, bytes, range, type, type(Ellipsis),
})  # fmt: skip


def _can_change(value: object) -> bool:
    kind = type(value)
    if kind in _UNCHANGEABLE or isinstance(value, ActiveObject):
        return False
    if hasattr(kind, "__get__") or hasattr(kind, "__set__"):
        return False  # A property, a slot, a function.
    return _copy_of(value) is not value


def _copy_of(value: Any) -> Any:
    """Return a deep copy, or the value itself where it cannot be copied."""
    import copy

    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - whatever a user's __deepcopy__ raises
        return value  # A module or a lock: no state that could be kept.


def _refuse_slots(cls: type) -> None:
    """Raise for slots: what they hold is outside of what is stored and compared."""
    slots = cls.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    own = [name for name in names if not name.startswith("__")]
    if own:
        raise TypeError(
            f"{cls.__qualname__}: an ActiveObject keeps its fields in __dict__, not in "
            f"__slots__; annotate {own[0]!r} in the class and drop the slots"
        )


def check_attributes(cls: type, attributes: Mapping[str, Any]) -> None:
    """Refuse, or warn of, public attributes that look like fields and are none.

    Attributes without an annotation are transient. A class that annotates nothing was
    not meant so; one that does may be, above all if its `on_activate` rebuilds them.

    Raises:
        InvalidRequestError: the class has no fields, but its object has attributes.
    """
    if hasattr(cls, "on_activate"):
        return
    fields = fields_of(cls)
    for name in [n for n in attributes if n not in fields and not n.startswith("_")]:
        advice = (
            f"annotate it in the class ({name}: {type(attributes[name]).__name__}) to "
            "keep it, or begin its name with an underscore"
        )
        where = f"{class_name_of(cls)}.{name}"
        if not fields:
            reason = "it is not annotated, so it is no field and would be lost"
            raise InvalidRequestError(f"{reason}: {advice}", where)
        warn(f"{where} is not annotated, so it is no field and is not stored; {advice}")


def warn(text: str) -> None:
    """Warn the user, at the line outside this package that led here."""
    import sys
    import warnings

    level = 1
    frame: FrameType | None = sys._getframe(0)  # noqa: SLF001 - warnings uses it too
    while frame and frame.f_globals.get("__name__", "").startswith("activestore."):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, UserWarning, stacklevel=level)


def _annotations_of(cls: type) -> Mapping[str, object]:
    annotations: Mapping[str, object] = cls.__dict__.get(  # noqa: RUF063 - inspect costs the thin client 3 ms
        "__annotations__", {}
    )
    return annotations


def _annotation_text(annotation: object) -> str:
    if isinstance(annotation, type) and not getattr(annotation, "__args__", None):
        return annotation.__qualname__
    return str(annotation).replace("typing.", "")


def methods_of(cls: type) -> dict[str, MethodOptions]:
    """Return the active methods of a class, inherited ones included, by name."""
    found: dict[str, MethodOptions] = {}
    for base in reversed(cls.__mro__):
        for name, value in base.__dict__.items():
            options = getattr(value, "__activestore__", None)
            if options is not None:
                found[name] = options
            elif (
                name in found
                and not callable(value)
                and not base.__dict__.get("_activestore_is_remote")
            ):
                # A method overridden without the decorator is still the same remote
                # method; one overridden by something else is none.
                del found[name]
    return found


class Interface(NamedTuple):
    """What a published class shows to clients that lack its code.

    `fields`: name to annotation text. `methods`: name to a dict of `readonly`, `stream`
    (a generator), `timeout_s`, `changes`, `doc`, `parameters` (a list of [name, kind,
    default text, annotation text]; kind as inspect.Parameter's integer; default and
    annotation None where there is none) and `returns`. `filled`: the fields that the
    class brings where an older object lacks them. `code`: activestore.sources'
    code_digest. `file`: where a class that came by value was written. `package`: what
    is loaded and replaced as one, "" for the top-level module.
    """

    class_name: str
    class_version: int
    doc: str
    durability: str
    requires: tuple[str, ...]
    resources: Mapping[str, float]
    fields: Mapping[str, str]
    methods: Mapping[str, Mapping[str, Any]]
    filled: tuple[str, ...] = ()
    code: str = ""
    file: str = ""
    package: str = ""


def interface_of(cls: type) -> Interface:
    """Read the interface off a class.

    Raises:
        InvalidRequestError: `durability`, `requires`, `resources` or the `changes` of a
            method are not what they should be.
    """
    name = class_name_of(cls)
    durability = getattr(cls, "durability", "commit")
    if durability not in DURABILITIES:
        raise InvalidRequestError(
            f"durability is {durability!r}, expected one of {', '.join(DURABILITIES)}",
            name,
        )
    requires = getattr(cls, "requires", ())
    if isinstance(requires, str) or not all(isinstance(text, str) for text in requires):
        raise InvalidRequestError("requires must be a tuple of PEP 508 texts", name)
    fields = fields_of(cls)
    methods = {}
    for method, options in methods_of(cls).items():
        unknown = [field for field in options.changes or () if field not in fields]
        if unknown:
            raise InvalidRequestError(
                f"changes names {unknown[0]!r}, which is no field; fields: {list(fields)}",
                f"{name}.{method}",
            )
        methods[method] = _describe(getattr(cls, method), options)
    return Interface(
        class_name=name,
        class_version=int(getattr(cls, "class_version", 0)),
        doc=cls.__doc__ or "",
        durability=durability,
        requires=tuple(requires),
        resources={
            str(k): float(v) for k, v in dict(getattr(cls, "resources", {})).items()
        },
        fields={field.name: field.annotation for field in fields.values()},
        methods=methods,
        filled=tuple(
            field
            for field in fields
            if hasattr(cls, field) or hasattr(cls, "__migrate__")
        ),
        code=code_digest(cls),
        file=file_of(cls),
    )


def _describe(function: Any, options: MethodOptions) -> dict[str, Any]:
    """Return what a client needs to call `function` and to show help for it."""
    import inspect

    signature = inspect.signature(function)
    empty = inspect.Parameter.empty
    parameters = [
        [
            parameter.name,
            int(parameter.kind),
            None if parameter.default is empty else repr(parameter.default)[:200],
            None if parameter.annotation is empty else _text(parameter.annotation),
        ]
        for parameter in list(signature.parameters.values())[1:]
    ]
    returns = signature.return_annotation
    return {
        "readonly": options.readonly,
        "stream": inspect.isgeneratorfunction(unwrapped(function)),
        "timeout_s": options.timeout_s,
        "changes": None if options.changes is None else list(options.changes),
        "doc": inspect.cleandoc(function.__doc__ or ""),
        "parameters": parameters,
        "returns": None if returns is empty else _text(returns),
    }


def _text(annotation: object) -> str:
    return annotation if isinstance(annotation, str) else _annotation_text(annotation)


Stream = Generator[Any, None, None]
