"""The store as a client sees it: names, objects, classes, calls.

Rules of this file: zmq and msgpack only. What needs the classes' code (publish,
persist, pickles) is in `client.publish`, imported when it is first used.

Source: design section 4.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from activestore import ids, model, remote
from activestore.client import codewatch, finding, naming, versions
from activestore.client.connection import Connection
from activestore.client.listing import rows_of
from activestore.client.persisting import Persisting, batches_of
from activestore.client.proxy import RemoteClass, StandIns
from activestore.client.replicating import BringingBack, asked_copies, call_extra
from activestore.client.requests import STREAM_CREDIT, Request
from activestore.errors import (
    ConfigurationError,
    InvalidRequestError,
    NoSuchMethodError,
    UnsupportedValueError,
)
from activestore.ids import ObjectId
from activestore.placing import Placing
from activestore.remote import CallOptions
from activestore.wire import messages, values
from activestore.wire.messages import Operation

if TYPE_CHECKING:
    from activestore.client.streams import Items


def connect(
    endpoint: str | Sequence[str] | None = None,
    *,
    timeout_s: float = 30.0,
    name: str = "",
    unpickle: bool = False,
) -> Store:
    """Connect to a peer.

    Args:
        endpoint: An address such as "tcp://127.0.0.1:7400", or several of which the
            first that answers is taken, and another when that one dies; None for
            `$ACTIVESTORE_ENDPOINT`.
        timeout_s: How long a call may go without a sign of life from the peer, in
            seconds, above 0. Not a bound on how long a method runs.
        name: What the peer's log calls this client; the program's name by default.
        unpickle: Load values without a wire form, such as enums, dataclasses and
            models, instead of keeping them as `Opaque`. It needs their classes here and
            the `node` extra. A pickle runs code: whoever may publish code to the peers,
            or write to them, can then run it in this process. Leave it off unless you
            trust them as you trust your own disk.

    Raises:
        ConfigurationError: no endpoint is known, or it is no address.
        UnavailableError: nobody answered within `timeout_s`.
        RemoteProtocolError: what answered is no peer, or of another version.
    """
    connection = finding.open_connection(endpoint, timeout_s, name)
    return Store(connection, unpickle=unpickle)


class Store(BringingBack):
    """A connection to the cluster through one peer. Use it from any number of threads.

    Calls go straight to the peer that has the object, where it can be reached. When the
    connected peer dies, the store goes on with another that it knows.
    """

    def __init__(self, connection: Connection, *, unpickle: bool = False) -> None:
        self._connection: Connection = connection
        self._unpickle = self._load_pickle if unpickle else None
        self._stand_ins = StandIns(self, self._interface)
        self._items_class: Any = None
        # Makes a stand-in of a ref; AsyncStore puts its own kind in its place.
        self.resolve: Callable[[bytes], Any] = self._stand_ins.resolve
        self._revisions: dict[type, bytes] = {}
        self._compared: set[type] = set()
        self._placing = Placing(
            connection.connected_peer, self.request,
            lambda peer: versions.is_connected(peer, connection.session),
        )  # fmt: skip
        self._persisting = Persisting(
            connection, self._states_of, self._adopt, self._placing.about_code
        )
        self._publish: Any = None
        self._future_class: Any = None
        model.push_default_store(self)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Store at {self.endpoint}>"

    def close(self) -> None:
        """Close the connection; open calls fail, the objects stay where they are."""
        model.drop_default_store(self)
        self._connection.close()

    @property
    def endpoint(self) -> str:
        """The address of the connected peer; another one after that peer has died."""
        return self._connection.endpoint

    # -- values ------------------------------------------------------------------------

    def _code(self) -> Any:
        """Return the module that works with classes' code."""
        if self._publish is None:
            try:
                self._publish = importlib.import_module("activestore.client.publish")
            except ImportError as error:
                raise ConfigurationError(
                    "installation",
                    f"this needs the module {error.name!r}: pip install 'activestore[node]'",
                ) from None
        return self._publish

    def _ref_of(self, obj: object) -> bytes | None:
        if not isinstance(obj, (model.ActiveObject, remote.Proxy)):
            return None
        if remote.id_of(obj) is None:
            try:
                self.persist(obj)
            except InvalidRequestError:
                if remote.id_of(obj) is None:  # Else another thread was first.
                    raise
        object_id = remote.id_of(obj)
        cls = remote.original_class(type(obj))
        interface = getattr(cls, "_activestore_interface", None)
        name = interface["class_name"] if interface else model.class_name_of(cls)
        return bytes(object_id or b"") + str(name).encode()

    def _pickle(self, value: object) -> tuple[str, bytes]:
        try:
            code = self._code()
        except ConfigurationError:
            raise UnsupportedValueError(type(value).__name__, "argument") from None
        pickled: tuple[str, bytes] = code.dump_value(
            value, self._ref_of, self._stand_ins.local_classes()
        )
        return pickled

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return values.encode_arguments(
            args, kwargs, ref_of=self._ref_of, pickle=self._pickle
        )

    def _decode(self, reply: Any) -> Any:
        return values.decode(
            reply.body,
            reply.buffers,
            resolve=self.resolve,
            unpickle=self._unpickle,
        )

    def _info(self, reply: Any) -> Any:
        """Return of which state an answer is."""
        groups = importlib.import_module("activestore.client.groups")
        return groups.info_of(
            reply.extra, self._connection.session.links.name_of, "info"
        )

    def _decode_with_info(self, reply: Any) -> Any:
        return self._decode(reply), self._info(reply)

    def _load_pickle(self, name: str, data: bytes) -> Any:
        return self._code().load_value(name, data, self._stand_ins.resolve)

    def _result(self, request: Request) -> Any:
        try:
            return self._decode(request.outcome())
        except NoSuchMethodError as error:
            self._explain(error)
            raise

    def _explain(self, error: BaseException) -> None:
        """Add what can be done here to an error that a class's code may cause."""
        if isinstance(error, NoSuchMethodError):
            codewatch.explain(error, self._stand_ins.local_class(error.class_name))

    # -- calls: the Caller of all stand-ins --------------------------------------------

    def invoke(
        self, object_id: ObjectId, method: str, args: tuple[Any, ...],
        kwargs: dict[str, Any], options: CallOptions,
    ) -> Any:  # fmt: skip
        """Run a method of an object; return its result, a pair where info is wanted."""
        make, timeout_s = self._call_maker(
            object_id, method, Operation.CALL, args, kwargs, options, None
        )
        request = self._connection.call(make, timeout_s=timeout_s, where=method)
        if options.with_info:
            return self._result(request), self._info(request.reply)
        return self._result(request)

    def submit(
        self, object_id: ObjectId, method: str, args: tuple[Any, ...],
        kwargs: dict[str, Any], options: CallOptions,
    ) -> Any:  # fmt: skip
        """Start a method of an object and return a concurrent.futures.Future."""
        if self._future_class is None:
            self._future_class = importlib.import_module(
                "activestore.client.futures"
            ).CallFuture
        decode = self._decode_with_info if options.with_info else self._decode
        future = self._future_class(self._connection, decode, self._explain)
        future.request = self._start_call(
            object_id,
            method,
            Operation.CALL,
            args,
            kwargs,
            options,
            on_done=future.settle,
        )
        return future

    def stream(
        self, object_id: ObjectId, method: str, args: tuple[Any, ...],
        kwargs: dict[str, Any], options: CallOptions,
    ) -> Items:  # fmt: skip
        """Start a generator method of an object and return an iterator of its items."""
        request = self._start_call(
            object_id, method, Operation.CALL, args, kwargs, options,
            extra={"stream": STREAM_CREDIT}, is_stream=True,
        )  # fmt: skip
        if self._items_class is None:
            self._items_class = importlib.import_module(
                "activestore.client.streams"
            ).Items
        items: Items = self._items_class(
            self._connection, request, self._decode, self._result
        )
        return items

    def get_field(self, object_id: ObjectId, field: str) -> Any:
        """Read a field of an object."""
        request = self._start_call(
            object_id, field, Operation.GET, (), {}, remote.DEFAULT_OPTIONS
        )
        self._connection.wait(request)
        return self._result(request)

    def set_field(self, object_id: ObjectId, field: str, value: Any) -> None:
        """Assign a field of an object; durable on return."""
        request = self._start_call(
            object_id, field, Operation.SET, (value,), {}, remote.DEFAULT_OPTIONS
        )
        self._connection.wait(request)
        self._result(request)

    def _start_call(  # noqa: PLR0913 - a call has that many parts
        self, object_id: ObjectId, method: str, operation: int, args: tuple[Any, ...],
        kwargs: dict[str, Any], options: CallOptions, *,
        extra: dict[str, Any] | None = None, is_stream: bool = False,
        on_done: Callable[[Request], None] | None = None,
    ) -> Request:  # fmt: skip
        make, timeout_s = self._call_maker(
            object_id, method, operation, args, kwargs, options, extra
        )
        return self._connection.start(
            make,
            timeout_s=timeout_s,
            where=method,
            on_done=on_done,
            is_stream=is_stream,
        )

    def _call_maker(  # noqa: PLR0913, PLR0917 - a call has that many parts
        self, object_id: ObjectId, method: str, operation: int, args: tuple[Any, ...],
        kwargs: dict[str, Any], options: CallOptions, extra: dict[str, Any] | None,
    ) -> tuple[Callable[[int, int], messages.Call], float]:  # fmt: skip
        """Return what makes the message once its sequence is known, and the deadline."""
        body, buffers = self._arguments(args, kwargs)
        if options is not remote.DEFAULT_OPTIONS:
            sightings = self._connection.session.sightings
            extra = call_extra(sightings, object_id, options, extra)
        timeout_s = options.timeout_s or 0.0
        deadline_ms = max(1, int(timeout_s * 1000)) if timeout_s else 0

        def make(sequence: int, first_unacked: int) -> messages.Call:
            return messages.Call(
                sequence, object_id, method, operation, 0, first_unacked, deadline_ms,
                extra, body, buffers,
            )  # fmt: skip

        return make, timeout_s

    def _send(
        self, make: Callable[[int, int], Any], where: str, timeout_s: float = 0.0
    ) -> Any:
        request = self._connection.start(make, timeout_s=timeout_s, where=where)
        self._connection.wait(request)
        return self._result(request)

    def request(self, operation: str, /, **parameters: Any) -> Any:
        """Ask the peer itself; the operations are listed in schemas/protocol.md.

        Raises:
            RemoteProtocolError: the peer's version has no such operation.
        """
        versions.check_operation(operation, self._connection.session)
        body, buffers = values.encode(parameters, path="parameters")
        return self._send(
            lambda sequence, _: messages.Request(
                sequence, operation, None, body, buffers
            ),
            operation,
        )

    # -- objects -----------------------------------------------------------------------

    def get(self, name: str | values.Ref | Any) -> Any:
        """Return the object with this alias, 32-digit id or ref.

        Raises:
            AliasNotFoundError: no object has that alias.
            ObjectNotFoundError: no object has that id.
        """
        stand_ins = self._stand_ins
        found = naming.identify(self.request, name, stand_ins.class_names())
        if found.interface is not None:
            stand_ins.learn(found.class_name, found.interface)
        return stand_ins.get(found.object_id, found.class_name)

    def identify(self, name: Any) -> tuple[ObjectId, str]:
        """Return id and class name of what names an object; asks the peer where needed."""
        return naming.identify(self.request, name)[:2]

    def get_for_class(self, alias: str, cls: type, /) -> Any:
        """Return the object named `alias` as an instance of `cls`."""
        original = remote.original_class(cls)
        expected = model.class_name_of(original)
        is_new = original not in self._compared and original not in self._revisions
        found = naming.identify(self.request, alias, () if is_new else None)
        if found.class_name and found.class_name != expected:
            raise InvalidRequestError(
                f"{alias!r} is a {found.class_name}, not a {expected}",
                f"{cls.__name__}.get_by_alias",
            )
        self._stand_ins.use_class(original)
        if is_new:
            self._compared.add(original)
            codewatch.compare(self.request, original, found.interface)
        return self._stand_ins.get(found.object_id, expected)

    def cls(self, class_name: str) -> RemoteClass:
        """Return a stand-in of a published class: call it to create objects.

        Raises:
            ClassNotFoundError: it was never published.
        """
        interface = self._stand_ins.interface_class(class_name)
        return RemoteClass(self, class_name, interface)

    def create(
        self,
        class_name: str, /, *args: Any, alias: str = "", peer: str = "",
        replicas: int | None = None, witness: bool | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Make an object of a published class where the peer is; durable on return.

        Args:
            class_name: "module.Class".
            *args: Arguments of `__init__`.
            alias: A name unique in the cluster, "" for none.
            peer: Name or id of the peer that shall keep it; "" for the connected one,
                or another one that has what the class needs if that one lacks it.
            replicas: How many peers keep it, 1 to 7; None for what that peer's profile
                says. On return the copies are there.
            witness: With two: a third peer that has a vote and no state.
            **kwargs: Arguments of `__init__` by name.

        Raises:
            ClassNotFoundError: the class was never published.
            RequirementError: the peer lacks what the class needs; names those that have
                it.
            UnavailableError: no living peer has that name.
            AliasExistsError: the alias names another object.
            MethodError: `__init__` raised.
        """
        _check_new_alias(alias)
        asked = asked_copies(replicas, witness, class_name, self._connection.session)
        body, buffers = self._arguments(args, kwargs)

        def make(home: ids.PeerId) -> ObjectId:
            object_id = ids.new_object_id(home)
            extra = {**(self._placing.about_code(home) or {}), **asked} or None
            self._send(
                lambda sequence, first_unacked: messages.Create(
                    sequence, object_id, class_name, alias, 0, first_unacked, 0, extra,
                    body, buffers,
                ),
                class_name,
            )  # fmt: skip
            return object_id

        return self._stand_ins.get(self._placing.place(peer, make), class_name)

    def persist(
        self,
        objects: Any, /, *, alias: str = "", peer: str = "",
        replicas: int | None = None, witness: bool | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:  # fmt: skip
        """Keep objects and all they reach; each becomes remote in place.

        One object and what it reaches are kept in one commit. An iterable of objects is
        kept in batches, many at a time; `progress` is told the number kept so far.
        `replicas`, `witness`: as for `create`, of each of them.

        Raises:
            AliasExistsError: the alias names another object.
            UnsupportedValueError: a field cannot be kept; names its path.
            InvalidRequestError: an object is persistent already.
        """
        asked = asked_copies(replicas, witness, "persist", self._connection.session)
        _check_new_alias(alias)
        if isinstance(objects, model.ActiveObject):
            root = objects
            self._placing.place(
                peer,
                lambda home: self._persisting.keep(
                    [[(root, alias)]], home, asked=asked
                ),
            )
            return
        if alias:
            raise InvalidRequestError("an alias names one object, not many", "persist")
        if not isinstance(objects, Iterable):
            raise InvalidRequestError(
                "expected an ActiveObject or an iterable of them, got "
                f"{type(objects).__name__}",
                "persist",
            )
        home = self._placing.home(peer)
        self._persisting.keep(
            batches_of(objects), home, progress,
            place=lambda make: self._placing.place(peer, make), asked=asked,
        )  # fmt: skip

    def _states_of(self, roots: list[tuple[Any, str]], home: ids.PeerId) -> list[Any]:
        states: list[Any] = self._code().snapshots(roots, home, self._revision_of)
        return states

    def _adopt(self, obj: Any, object_id: ObjectId) -> None:
        remote.become_stand_in(obj, object_id, self)
        self._stand_ins.adopt(obj, object_id)

    def locate(self, obj: Any) -> dict[str, Any]:
        """Return where an object lives: peer ("" while none leads), epoch, version, bytes."""
        object_id, _ = self.identify(obj)
        found: dict[str, Any] = self.request("locate", object_id=object_id)
        return found

    def move(self, obj: Any, peer: str, *, recursive: bool = False) -> list[bytes]:
        """Bring an object, given as stand-in, alias or id, to another peer.

        Calls in flight finish first, calls that come meanwhile wait; none is lost, none
        runs twice. Returns the ids of what was moved, once the other peer has it; what
        was there already is not among them.

        Args:
            obj: What to move.
            peer: The name of a living peer, or its id in hex.
            recursive: Also what it reaches by refs in its fields, cycles included; one
                object after another, and those that were moved stay moved if a later
                one cannot be.

        Raises:
            UnavailableError: no such peer can be reached; the object stays where it is.
            RequirementError: the peer lacks what its class needs.
        """
        object_id, _ = self.identify(obj)
        seen: set[bytes] = set()
        moved: list[bytes] = []
        waiting = [bytes(object_id)]
        while waiting:
            one = waiting.pop()
            if one in seen:
                continue
            seen.add(one)
            refs = self.request("refs", object_id=one) if recursive else ()
            if self.request("move", object_id=one, peer=peer) is not False:
                moved.append(one)
            waiting.extend(refs)
        return moved

    def delete(self, obj: Any) -> None:
        """Delete an object, given as stand-in, alias or id; durable on return.

        Raises:
            ObjectNotFoundError: it does not exist.
        """
        object_id, _ = self.identify(obj)
        self._send(
            lambda sequence, first_unacked: messages.Delete(
                sequence, object_id, 0, first_unacked
            ),
            "delete",
        )

    def objects(
        self,
        alias_prefix: str = "",
        *,
        here: bool = False,
        unreachable: list[str] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Iterate over what is stored, as dicts: object_id, alias, class_name, peer, ...

        In the whole cluster, or `here`, at the connected peer. `unreachable` gets the
        names of peers that could not be asked, by the time all is listed.
        """
        return rows_of(self.request, alias_prefix, here, unreachable)

    # -- classes -----------------------------------------------------------------------

    def publish(self, what: Any, *, data_files: Sequence[str] = ()) -> list[str]:
        """Publish a class, a module, a module's name, a .py file or a package directory.

        Ships code, which peers will run. Publishing what is there already costs one
        question; changed code becomes a new revision, to which objects move at their
        next activation. Returns the names of the classes it defines.

        Raises:
            InvalidRequestError: no such module, or it does not load; names file and
            line.
            RequirementError: the peer lacks a module that the code imports.
            TooLargeError: it is over 16 MiB.
        """
        return [name for name, _ in self._publish_package(what, data_files)]

    def _publish_package(
        self, what: Any, data_files: Sequence[str] = ()
    ) -> list[tuple[str, bytes]]:
        package = self._code().package_of(what, data_files)
        prefix = package.name
        if package.kind == "value":
            prefix = model.class_name_of(what)
        before = codewatch.published_before(self.request, prefix, package.digest)
        found = self.request(
            "publish", kind=package.kind, name=package.name, digest=package.digest,
            archive=package.archive,
        )  # fmt: skip
        for name, _ in found["classes"]:
            self._stand_ins.refresh(name)
        codewatch.tell_replaced(self.request, before)
        return [(str(name), bytes(revision)) for name, revision in found["classes"]]

    def _revision_of(self, cls: type) -> bytes:
        """Return the published revision of a local class, publishing it if needed."""
        known = self._revisions.get(cls)
        if known is not None:
            return known
        wanted = model.class_name_of(cls)
        for name, revision in self._publish_package(cls):
            if name == wanted:
                self._revisions[cls] = revision
                return revision
        raise InvalidRequestError(
            "its module was published, but does not define it at its top level", wanted
        )

    def _interface(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.request("interface", **parameters)["interface"]
        return found

    # -- peers -------------------------------------------------------------------------

    def peers(self) -> list[dict[str, Any]]:
        """Return the peers that the connected peer knows, itself first."""
        found: list[dict[str, Any]] = self.request("peers")
        return found

    def status(self) -> dict[str, Any]:
        """Return what the connected peer says of itself."""
        found: dict[str, Any] = self.request("status")
        return found


def _check_new_alias(alias: str) -> None:
    if alias != "":  # No alias.
        ids.check_alias(alias)


__all__ = ["Iterable", "RemoteClass", "Store", "connect"]
