"""Stand-ins: what stands in a process for an object that lives in a peer.

Two kinds share the same parts. A *class stand-in* is an instance of the user's own
class whose fields and active methods are remote; its other methods run here. A *proxy*
is made from a published interface, where there is no class code. Both hold an object id
and a caller, and nothing else.

Rules of this file: it does not know how a call travels; whoever makes a stand-in hands
it a Caller. `inspect` is imported only for help().
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from activestore.errors import InvalidRequestError
from activestore.ids import ObjectId
from activestore.model import (
    ID_SLOT,
    STORE_SLOT,
    ActiveObject,
    MethodOptions,
    class_name_of,
    fields_of,
    methods_of,
    unwrapped,
)

if TYPE_CHECKING:
    import inspect


# Thirty years: what is beyond is a slip, and does not fit the wire in milliseconds.
TIMEOUT_S_MAX = 1e9


class CallOptions(NamedTuple):
    """Options of one call, set by `p.method.options(...)`.

    `timeout_s`: deadline in seconds, None for the method's own. `direct`: False to have
    the connected peer forward the call. `staleness_s`: how old the state that is read may
    be in seconds, None for the newest. `with_info`: the result is a pair, its second part
    says of which state it is.
    """

    timeout_s: float | None = None
    direct: bool = True
    staleness_s: float | None = None
    with_info: bool = False


DEFAULT_OPTIONS = CallOptions()


class Caller(Protocol):
    """How a stand-in's calls leave the process."""

    def invoke(
        self,
        object_id: ObjectId,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CallOptions,
    ) -> Any:
        """Run a method and return its result, a pair with `options.with_info`."""

    def submit(
        self,
        object_id: ObjectId,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CallOptions,
    ) -> Any:
        """Start a method and return a future of its result."""

    def stream(
        self,
        object_id: ObjectId,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CallOptions,
    ) -> Any:
        """Start a generator method and return an iterator of its items."""

    def get_field(self, object_id: ObjectId, field: str) -> Any:
        """Read a field."""

    def set_field(self, object_id: ObjectId, field: str, value: Any) -> None:
        """Assign a field."""


class RemoteMethod:
    """One method of one remote object; call it, or use submit, stream or options."""

    __slots__ = ("_caller", "_object_id", "_options", "_spec")

    def __init__(
        self,
        spec: MethodSpec,
        object_id: ObjectId,
        caller: Caller,
        options: CallOptions = DEFAULT_OPTIONS,
    ) -> None:
        self._spec = spec
        self._object_id = object_id
        self._caller = caller
        self._options = options

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the method where its object lives and return the result.

        A generator method returns the iterator of its items, as it does locally.
        """
        call = self._caller.stream if self._spec.is_stream else self._caller.invoke
        return call(self._object_id, self._spec.name, args, kwargs, self._options)

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        """Start the call and return a concurrent.futures.Future of its result."""
        return self._caller.submit(
            self._object_id, self._spec.name, args, kwargs, self._options
        )

    def stream(self, *args: Any, **kwargs: Any) -> Any:
        """Start a generator method; iterate its items. Closing the iterator cancels it.

        Raises:
            InvalidRequestError: it is no generator method; nothing was run.
        """
        if not self._spec.is_stream:
            raise InvalidRequestError(
                "it is no generator method, so it has nothing to stream; call it",
                f"{self._spec.owner}.{self._spec.name}",
            )
        return self._caller.stream(
            self._object_id, self._spec.name, args, kwargs, self._options
        )

    def with_info(self, *args: Any, **kwargs: Any) -> Any:
        """Run the method; return its result and of which state that is, as a pair.

        The second has `version`, `epoch`, `number`, `age_s` and `peer`.

        Raises:
            InvalidRequestError: it is a generator method, or called inside a method.
            RemoteProtocolError: the peer's version does not tell.
        """
        if self._spec.is_stream:
            raise self._refusal(
                "it is a generator method: its items are of no one state"
            )
        return self._caller.invoke(
            self._object_id, self._spec.name, args, kwargs,
            self._options._replace(with_info=True),
        )  # fmt: skip

    def options(
        self, *, timeout_s: float | None = None, direct: bool = True,
        staleness_s: float | None = None,
    ) -> RemoteMethod:  # fmt: skip
        """Return the same method with other options.

        Args:
            timeout_s: Deadline of the call in seconds from now, above 0.
            direct: False to have the connected peer forward the call.
            staleness_s: How old the state that is read may be, in seconds above 0: then
                any peer with a copy may run it, and none needs to ask the others. What
                this client has seen is never undone. Only of readonly methods.

        Raises:
            InvalidRequestError: one is out of its range, or the method is not readonly.
        """
        for name, seconds in (("timeout_s", timeout_s), ("staleness_s", staleness_s)):
            if seconds is not None and not _is_duration(seconds):
                raise self._refusal(
                    f"{name} is {str(seconds)[:40]!r}, expected above 0 and at most "
                    f"{TIMEOUT_S_MAX:g}"
                )
        if direct not in (True, False):
            raise self._refusal(f"direct is {direct!r}, expected True or False")
        if staleness_s is not None and not self._spec.is_readonly:
            raise self._refusal(
                "staleness_s is for methods that only read, and it is not "
                "@activemethod(readonly=True)"
            )
        if staleness_s is not None and self._spec.is_stream:
            raise self._refusal(
                "staleness_s is not for generator methods; call another"
            )
        options = CallOptions(timeout_s, direct, staleness_s)
        return RemoteMethod(self._spec, self._object_id, self._caller, options)

    def _refusal(self, reason: str) -> InvalidRequestError:
        return InvalidRequestError(reason, f"{self._spec.owner}.{self._spec.name}")

    def __get__(self, instance: object, owner: type | None = None) -> RemoteMethod:
        """Return itself; a method descriptor in name, so that help() shows a routine."""
        return self

    @property
    def __name__(self) -> str:
        return self._spec.name

    @property
    def __doc__(self) -> str:  # type: ignore[override]  # the method's, not the class's
        return self._spec.doc

    @property
    def __signature__(self) -> inspect.Signature:
        return self._spec.signature()

    def __repr__(self) -> str:
        name = f"{self._spec.owner}.{self._spec.name}"
        return f"<remote method {name} of {self._object_id.hex()}>"


def _is_duration(seconds: Any) -> bool:
    if type(seconds) is bool or not isinstance(seconds, (int, float)):
        return False
    return 0 < seconds <= TIMEOUT_S_MAX


class MethodSpec:
    """What a stand-in knows of a method: name, owner, kind, help; a data-less descriptor.

    To help() and inspect it is the user's method: `type(p).method` shows its words.
    """

    __slots__ = ("_signature", "doc", "is_readonly", "is_stream", "name", "owner")

    def __init__(
        self,
        name: str,
        owner: str,
        *,
        is_readonly: bool = False,
        is_stream: bool,
        doc: str,
        signature: Callable[[], inspect.Signature],
    ) -> None:
        self.name = name
        self.owner = owner
        self.is_readonly = is_readonly
        self.is_stream = is_stream
        self.doc = doc
        self._signature = signature

    def signature(self) -> inspect.Signature:
        """Return the signature without `self`."""
        return self._signature()

    @property
    def __name__(self) -> str:
        return self.name

    @property
    def __doc__(self) -> str:  # type: ignore[override]  # the method's, not the class's
        return self.doc

    @property
    def __signature__(self) -> inspect.Signature:
        import inspect

        own = self._signature()
        first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return own.replace(parameters=[first, *own.parameters.values()])

    def __call__(self, instance: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the method on an object: `type(p).method(p, ...)`."""
        return self.__get__(instance, type(instance))(*args, **kwargs)

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        state = instance.__dict__
        return RemoteMethod(self, state[ID_SLOT], state[STORE_SLOT])


class RemoteField:
    """A field of a remote object: reading and assigning it are calls."""

    def __init__(self, name: str, annotation: str) -> None:
        self.name = name
        self.__doc__ = annotation

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        state = instance.__dict__
        return state[STORE_SLOT].get_field(state[ID_SLOT], self.name)

    def __set__(self, instance: Any, value: Any) -> None:
        state = instance.__dict__
        state[STORE_SLOT].set_field(state[ID_SLOT], self.name, value)

    def __delete__(self, instance: Any) -> None:
        raise InvalidRequestError(
            "a remote field cannot be deleted; assign None", self.name
        )


class Proxy:
    """Base of the proxies made from published interfaces."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Proxy:
        """Refuse: there is no code here to make an object with."""
        name = getattr(cls, "_activestore_interface", {}).get("class_name", "a class")
        raise InvalidRequestError(
            f"there is no code of {name} here; make a new object with "
            f"store.create({name!r}, ...)",
            cls.__name__,
        )

    def __copy__(self) -> Proxy:
        return self  # The stand-in of an object is one; so is a copy.

    def __deepcopy__(self, _memo: object) -> Proxy:
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.__dict__[ID_SLOT].hex()}>"

    def __setattr__(self, name: str, value: Any) -> None:
        # A typing error in an assignment must not vanish into a local attribute.
        if not isinstance(getattr(type(self), name, None), RemoteField):
            raise _no_such_field(type(self), name)
        object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        return id_of(self) == id_of(other) if is_stand_in(other) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.__dict__[ID_SLOT])


def is_stand_in(obj: object) -> bool:
    """Return whether `obj` stands for an object that lives elsewhere."""
    return getattr(type(obj), "_activestore_is_remote", False)


def id_of(obj: object) -> ObjectId | None:
    """Return the object id of a stand-in or an activated object, None for other things."""
    if isinstance(obj, (Proxy, ActiveObject)):
        return obj.__dict__.get(ID_SLOT)
    return None


def caller_of(obj: object) -> Any:
    """Return the caller that a stand-in was made with, None for other things."""
    return obj.__dict__.get(STORE_SLOT) if is_stand_in(obj) else None


_class_stand_ins: dict[type, type] = {}


def stand_in_class(cls: type) -> type:
    """Return the subclass of `cls` whose fields and active methods are remote.

    It has the memory layout of `cls`, so that an instance becomes remote in place by
    taking it as its class.
    """
    known = _class_stand_ins.get(cls)
    if known is not None:
        return known
    namespace: dict[str, Any] = {
        "__slots__": (),
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "_activestore_is_remote": True,
        "_activestore_class": cls,
    }
    for name, field in fields_of(cls).items():
        namespace[name] = RemoteField(name, field.annotation)
    for name, options in methods_of(cls).items():
        namespace[name] = _spec_of_function(cls, name, options)
    # `type(c)(...)` and a classmethod's `cls(...)` make a new local object. Python
    # calls no __init__ on it, as it is no instance of the stand-in class.
    namespace["__new__"] = lambda _cls, *args, **kwargs: cls(*args, **kwargs)
    namespace["__setattr__"] = _set_attribute
    # The stand-in of an object is one; so is a copy.
    namespace["__copy__"] = lambda self: self
    namespace["__deepcopy__"] = lambda self, _memo: self
    made = type(cls.__name__, (cls,), namespace)
    _class_stand_ins[cls] = made
    return made


def _set_attribute(self: Any, name: str, value: Any) -> None:
    """Set a remote field, or a transient; a typing error is neither."""
    kind = type(self)
    if not name.startswith("_") and name not in self.__dict__:
        known = getattr(kind, name, None)
        if not hasattr(type(known), "__set__") and name not in _set_here(kind):
            raise _no_such_field(kind, name)
    super(kind, self).__setattr__(name, value)


def _set_here(kind: type) -> frozenset[str]:
    """Return the attributes that undecorated methods set, which run in the caller."""
    known: frozenset[str] | None = kind.__dict__.get("_activestore_set_here")
    if known is None:
        import dis

        known = frozenset(
            step.argval
            for base in kind.__mro__
            if base is not ActiveObject
            for name, function in vars(base).items()
            if name != "__init__" and not hasattr(function, "__activestore__")
            for step in dis.get_instructions(getattr(function, "__code__", _NO_CODE))
            if step.opname == "STORE_ATTR"
        )
        type.__setattr__(kind, "_activestore_set_here", known)
    return known


_NO_CODE = (lambda: None).__code__


def _no_such_field(kind: type, name: str) -> InvalidRequestError:
    fields = [
        field
        for base in reversed(kind.__mro__)
        for field, value in vars(base).items()
        if isinstance(value, RemoteField)
    ]
    return InvalidRequestError(
        f"no such field; fields: {', '.join(fields) or 'none'}",
        f"{kind.__name__}.{name}",
    )


def original_class(cls: type) -> type:
    """Return the user's class of a stand-in class, and any other class as it is."""
    original: type = cls.__dict__.get("_activestore_class", cls)
    return original


def _spec_of_function(cls: type, name: str, options: MethodOptions) -> MethodSpec:
    function = getattr(cls, name)

    def signature() -> inspect.Signature:
        import inspect

        full = inspect.signature(function)
        return full.replace(parameters=list(full.parameters.values())[1:])

    code = getattr(unwrapped(function), "__code__", None)
    is_stream = bool(getattr(code, "co_flags", 0) & 0x20)  # CO_GENERATOR
    return MethodSpec(
        name,
        class_name_of(cls),
        is_readonly=options.readonly,
        is_stream=is_stream,
        doc=function.__doc__ or "",
        signature=signature,
    )


def become_stand_in(obj: ActiveObject, object_id: ObjectId, caller: Caller) -> None:
    """Turn a local object into a class stand-in, in place; field values are dropped."""
    cls = type(obj)
    for name in fields_of(cls):
        obj.__dict__.pop(name, None)
    obj.__dict__[ID_SLOT] = object_id
    obj.__dict__[STORE_SLOT] = caller
    obj.__class__ = stand_in_class(cls)


def make_class_stand_in(cls: type, object_id: ObjectId, caller: Caller) -> Any:
    """Return a new stand-in of the user's class `cls`; no user code runs."""
    obj: Any = object.__new__(stand_in_class(cls))
    obj.__dict__[ID_SLOT] = object_id
    obj.__dict__[STORE_SLOT] = caller
    return obj


def proxy_class(interface: Mapping[str, Any]) -> type[Proxy]:
    """Return a Proxy class made from a published interface, given as a map."""
    class_name: str = interface["class_name"]
    module, _, name = class_name.rpartition(".")
    namespace: dict[str, Any] = {
        "__module__": module,
        "__doc__": interface.get("doc") or None,
        "_activestore_is_remote": True,
        "_activestore_interface": interface,
    }
    for field, annotation in interface["fields"].items():
        namespace[field] = RemoteField(field, annotation)
    for method, described in interface["methods"].items():
        namespace[method] = MethodSpec(
            method,
            class_name,
            is_readonly=bool(described.get("readonly")),
            is_stream=bool(described.get("stream")),
            doc=described.get("doc") or "",
            signature=_signature_maker(described),
        )
    return type(name, (Proxy,), namespace)


def make_proxy(cls: type[Proxy], object_id: ObjectId, caller: Caller) -> Any:
    """Return a proxy of the given generated class."""
    obj = object.__new__(cls)
    obj.__dict__[ID_SLOT] = object_id
    obj.__dict__[STORE_SLOT] = caller
    return obj


class _Text:
    """A default value or annotation that is shown as its source text."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _signature_maker(described: Mapping[str, Any]) -> Callable[[], inspect.Signature]:
    def signature() -> inspect.Signature:
        import inspect

        empty = inspect.Parameter.empty
        parameters = [
            inspect.Parameter(
                name,
                inspect._ParameterKind(kind),  # noqa: SLF001 - no public way from int
                default=empty if default is None else _Text(default),
                annotation=empty if annotation is None else _Text(annotation),
            )
            for name, kind, default, annotation in described["parameters"]
        ]
        returns = described.get("returns")
        return inspect.Signature(
            parameters, return_annotation=empty if returns is None else _Text(returns)
        )

    return signature
