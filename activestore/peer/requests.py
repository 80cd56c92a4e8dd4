"""What clients ask of the peer itself: names, listings, code, status, stop.

Each operation is a method `_do_<operation>` that answers at once, or later through a
storage thread. The table of operations and parameters is schemas/protocol.md section 6.

Rules of this file: nothing here touches a call; parameters are checked before use.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from activestore.core import effects, events
from activestore.core.calls import Client, Nested
from activestore.core.peers import PeerRecord, installed_of, load_of
from activestore.errors import (
    ActiveStoreError,
    ClassNotFoundError,
    InternalError,
    InvalidRequestError,
    NoQuorumError,
    ObjectNotFoundError,
    PermissionDeniedError,
    RemoteProtocolError,
    RequirementError,
    UnavailableError,
)
from activestore.ids import OBJECT_ID_BYTES, ObjectId, PeerId
from activestore.peer import publishing
from activestore.peer.loop import PeerLoop
from activestore.storage.engine import ClassRecord, Durability, Engine, Head
from activestore.wire import values
from activestore.wire.messages import Request, whole

# In `locate`: a copy is enough, where nobody leads the object.
OR_COPY = "or_copy"
# Rows of one answer to "objects".
ROWS_MAX = 1000

Origin = Client | Nested


class Requests:
    """The operations of one peer."""

    def __init__(
        self,
        loop: PeerLoop,
        *,
        status: Callable[[], Mapping[str, Any]],
        stop: Callable[[], None],
        damaged: Iterable[str] = (),
    ) -> None:
        """Take the operations of `loop`; `damaged`: classes to be published again."""
        self._loop = loop
        self._damaged = set(damaged)
        self._status = status
        self._stop = stop
        self._publishing: dict[bytes, list[Origin]] = {}
        self._operations: dict[str, Callable[[Origin, dict[str, Any]], None]] = {
            name[4:]: getattr(self, name)
            for name in dir(self)
            if name.startswith("_do_")
        }
        loop.request_handler = self.handle

    @property
    def operations(self) -> tuple[str, ...]:
        """The names of all operations."""
        return tuple(sorted(self._operations))

    def add(
        self, name: str, operation: Callable[[Origin, dict[str, Any]], None]
    ) -> None:
        """Take an operation whose home is elsewhere."""
        self._operations[name] = operation

    def handle(self, origin: Origin, message: Request) -> None:
        """Carry one request out; whatever goes wrong is its answer."""
        if type(origin) is Client:
            self._loop.step(events.ErrandBegan(origin))
        try:
            operation = self._operations.get(message.operation)
            if operation is None:
                raise RemoteProtocolError(
                    f"unknown operation {message.operation[:40]!r}; known: "
                    f"{', '.join(self.operations)}",
                    "Request",
                )
            parameters = values.decode(message.body, list(map(whole, message.buffers)))
            if type(parameters) is not dict:
                raise RemoteProtocolError("parameters must be a map", "Request")
            operation(origin, parameters)
        except ActiveStoreError as error:
            self.refuse(origin, error)

    def answer(self, origin: Origin, value: object) -> None:
        """Answer a request."""
        body, buffers = values.encode(value)
        self._loop.carry_out([effects.Answer(origin, body, buffers)])
        self._end(origin)

    def refuse(self, origin: Origin, error: ActiveStoreError) -> None:
        """Answer a request with an error."""
        self._loop.carry_out([effects.Refuse(origin, error)])
        self._end(origin)

    def _end(self, origin: Origin) -> None:
        if type(origin) is Client:
            self._loop.step(events.ErrandEnded(origin))

    def asker(self, origin: Origin, operation: str) -> PeerId:
        """Return the peer that asks.

        Raises:
            PermissionDeniedError: it is no peer.
        """
        # What a peer asks for itself comes over its own link, in the session of its start.
        asked = origin.session if type(origin) is Client else None
        session = self._loop.sessions.get(asked) if asked is not None else None
        link = None if session is None else self._loop.links.by_route.get(session.route)
        if link is None or link.incarnation != asked:
            raise PermissionDeniedError(operation, "client", "peer")
        return link.peer_id

    def read(
        self,
        origin: Origin,
        function: Callable[[Engine], Any],
        answer: Callable[[Any], object],
        *,
        run: Callable[..., None] | None = None,
    ) -> None:
        """Answer with what a reading function finds, made into an answer in the loop.

        `run`: the storage thread that reads; by default the one for short reads.
        """

        def then(found: Any, error: BaseException | None) -> None:
            if error is not None:
                self.refuse(origin, publishing.as_error(error))
                return
            try:
                self.answer(origin, answer(found))
            except ActiveStoreError as refusal:
                self.refuse(origin, refusal)

        (run or self._loop.storage.read)(function, then)

    # -- names and listings ------------------------------------------------------------

    def _do_locate(self, origin: Origin, parameters: dict[str, Any]) -> None:
        object_id = object_id_of(parameters)
        if not self._is_of_peer(origin):  # Peers need to know who leads, or nothing.
            parameters = {**parameters, OR_COPY: True}
        if self.is_elsewhere(origin, "locate", object_id, parameters):
            return

        def answer(head: Head | None) -> object:
            if head is None:
                raise ObjectNotFoundError(object_id, (self._loop.settings.peer_id,))
            return {**self._here(), **row_of(head)}

        self.read(origin, lambda engine: engine.head(object_id), answer)

    def _here(self) -> dict[str, Any]:
        status = self._status()
        return {
            "peer": status["name"],
            "peer_id": status["peer_id"],
            "endpoint": status["endpoint"],
        }

    def is_elsewhere(
        self,
        origin: Origin,
        operation: str,
        object_id: ObjectId,
        parameters: dict[str, Any],
    ) -> bool:
        """Have a question about an object answered by its peer, where it is not here."""
        loop = self._loop
        if loop.location.is_here(object_id):
            return False

        def answer(value: Any, error: ActiveStoreError | None) -> None:
            if type(error) is NoQuorumError and parameters.get(OR_COPY) is True:
                self._tell_copy(origin, object_id, error)
            elif error is not None:
                self.refuse(origin, error)
            else:
                self.answer(origin, value)

        def again() -> None:
            try:
                self._operations[operation](origin, parameters)
            except ActiveStoreError as error:
                self.refuse(origin, error)

        loop.relays.ask_about(
            object_id, operation, parameters, answer, self._hops(origin), again
        )
        return True

    def _tell_copy(
        self, origin: Origin, object_id: ObjectId, error: ActiveStoreError
    ) -> None:
        """Tell what the copy here knows of an object that nobody leads."""

        def answer(head: Head | None) -> object:
            if head is None:  # A witness, or nothing is here.
                raise error
            return {"peer": "", "peer_id": b"", "endpoint": "", **row_of(head)}

        self.read(origin, lambda engine: engine.head(object_id), answer)

    def _hops(self, origin: Origin) -> bool:
        """Whether a question came by another peer, which then looks further itself."""
        session = self._loop.sessions.get(getattr(origin, "session", b""))  # type: ignore[arg-type]
        return session is not None and session.is_relayed

    def _do_show(self, origin: Origin, parameters: dict[str, Any]) -> None:
        object_id = object_id_of(parameters)
        if self.is_elsewhere(origin, "show", object_id, parameters):
            return

        def answer(head: Head | None) -> object:
            if head is None:
                raise ObjectNotFoundError(object_id, (self._loop.settings.peer_id,))
            return {
                **self._here(),
                **row_of(head),
                "fields": {name: {"bytes": size} for name, size in head.fields.items()},
                "graph_fields": list(head.graph_fields),
                **self._live(object_id),
            }

        self.read(origin, lambda engine: engine.head(object_id), answer)

    def _live(self, object_id: ObjectId) -> dict[str, Any]:
        """What only the core knows of an object now."""
        box = self._loop.core.boxes.boxes.get(object_id)
        if box is None:
            return {"is_active": False, "waiting": 0, "running": []}
        return {
            "is_active": box.main is not None,
            "executor": box.main.executor.executor_id if box.main is not None else None,
            "waiting": len(box.waiting),
            "running": [call.method for call in box.running.values()],
        }

    # -- classes -----------------------------------------------------------------------

    def _do_classes(self, origin: Origin, _parameters: dict[str, Any]) -> None:
        rows = [
            {
                "class_name": record.class_name,
                "revision": record.revision,
                "published_s": record.published_s,
            }
            for record in self._loop.classes.records()
        ]
        self.answer(origin, rows)

    def _do_interface(self, origin: Origin, parameters: dict[str, Any]) -> None:
        if "class_name" in parameters:
            self._tell_interface(origin, text_of(parameters, "class_name"))
            return
        object_id = object_id_of(parameters)
        # A copy tells the class as well as its leader, who may not answer.
        if object_id not in self._loop.location.followed:
            self._tell_interface_of(origin, object_id, parameters)
            return

        def found(head: Head | None, error: BaseException | None) -> None:
            if head is None or error is not None:  # A witness has no state.
                self._tell_interface_of(origin, object_id, parameters)
            else:
                self._tell_interface(origin, head.class_name)

        self._loop.storage.read(lambda engine: engine.head(object_id), found)

    def _tell_interface_of(
        self, origin: Origin, object_id: ObjectId, parameters: dict[str, Any]
    ) -> None:
        if self.is_elsewhere(origin, "interface", object_id, parameters):
            return

        def answer(head: Head | None) -> object:
            if head is None:
                raise ObjectNotFoundError(object_id, (self._loop.settings.peer_id,))
            return self.interface(head.class_name)

        self.read(origin, lambda engine: engine.head(object_id), answer)

    def _tell_interface(self, origin: Origin, class_name: str) -> None:
        """Answer with an interface, fetched from another peer where it is not here."""

        def then(error: ActiveStoreError | None) -> None:
            if error is not None:
                self.refuse(origin, error)
            else:
                self.answer(origin, self.interface(class_name))

        fetching = self._loop.fetching
        if fetching.has(class_name):
            then(None)
        else:
            fetching.bring(class_name, b"", (), then)

    def _do_package(self, origin: Origin, parameters: dict[str, Any]) -> None:
        """Tell another peer the code of a class, with all classes that it defines."""
        if not self._is_of_peer(origin):
            raise PermissionDeniedError("package", "client", "peer")
        classes = self._loop.classes
        class_name = text_of(parameters, "class_name")
        latest = classes.revision_of(class_name)
        revision = parameters.get("revision") or latest
        siblings = classes.records()

        def look(engine: Engine) -> tuple[ClassRecord, bytes] | None:
            record = engine.class_revision(class_name, revision) if revision else None
            archive = None if record is None else engine.code(record.package)
            return None if record is None or archive is None else (record, archive)

        def answer(found: tuple[ClassRecord, bytes] | None) -> object:
            if found is None:
                raise ClassNotFoundError(class_name, classes.names())
            record, archive = found
            records = {
                one.class_name: one
                for one in (record, *siblings)
                if one.package == record.package
            }
            return {
                "digest": record.package, "archive": archive,
                "records": [
                    [one.class_name, one.revision, one.interface, one.published_s]
                    for one in records.values()
                ],
            }  # fmt: skip

        self.read(origin, look, answer)

    def _do_newest(self, origin: Origin, parameters: dict[str, Any]) -> None:
        """Tell another peer which code of each class is the newest, and hear it."""
        if not self._is_of_peer(origin):
            raise PermissionDeniedError("newest", "client", "peer")
        self.answer(origin, self._loop.newest.answer(parameters))

    def _is_of_peer(self, origin: Origin) -> bool:
        """Whether a request is another peer's own: its session is that of its start."""
        if type(origin) is not Client:
            return False
        session = self._loop.sessions.get(origin.session)
        link = self._loop.links.by_route.get(session.route) if session else None
        return link is not None and link.incarnation == origin.session

    def interface(self, class_name: str) -> dict[str, Any]:
        """Return the interface of a class that is here, and its revision."""
        classes = self._loop.classes
        return {
            "interface": dict(classes.interface_of(class_name)),
            "revision": classes.record_of(class_name).revision,
        }

    def _do_publish(self, origin: Origin, parameters: dict[str, Any]) -> None:  # noqa: C901 - one branch per kind
        kind, name, digest, archive = publishing.check_parameters(parameters)
        known = [r for r in self._loop.classes.records() if r.revision == digest]
        if known and not self._damaged:
            self.answer(origin, _published(known))
            return
        waiting = self._publishing.get(digest)
        if waiting is not None:
            waiting.append(
                origin
            )  # Two clients publish the same code at the same time.
            return
        self._publishing[digest] = [origin]

        def look() -> None:
            try:
                found = publishing.describe(kind, name, digest, archive)
            except ActiveStoreError as error:
                told: ActiveStoreError = error
                self._loop.storage.write(lambda _: None, lambda *_: failed(told))
                return
            except Exception as error:  # noqa: BLE001 - a thread's last resort
                bug = InternalError(f"publish: {type(error).__name__}: {error}")
                self._loop.storage.write(lambda _: None, lambda *_: failed(bug))
                return
            self._loop.storage.write(
                lambda engine: publishing.keep(
                    engine, digest, archive, found, self._loop.newest.stamp_after
                ),
                kept,
            )

        def failed(error: ActiveStoreError, *, is_last: bool = False) -> None:
            of_peer = any(map(self._is_of_peer, self._publishing.get(digest, ())))
            if isinstance(error, RequirementError) and not (is_last or of_peer):
                fetching = self._loop.fetching
                fetching.publish_elsewhere(parameters, digest, error, published)
                return
            for asker in self._publishing.pop(digest, ()):
                self.refuse(asker, error)

        def published(error: ActiveStoreError | None) -> None:
            if error is not None:
                failed(error, is_last=True)
                return
            records = [r for r in self._loop.classes.records() if r.revision == digest]
            for asker in self._publishing.pop(digest, ()):
                self.answer(asker, _published(records))

        def kept(records: Any, error: BaseException | None) -> None:
            if error is not None:
                failed(publishing.as_error(error))
                return
            for record in records:
                self._damaged.discard(record.class_name)
                self._loop.step(self._loop.classes.add(record))
                self._loop.note("info", f"class published class={record.class_name}")
            for asker in self._publishing.pop(digest, ()):
                self.answer(asker, _published(records))

        threading.Thread(target=look, name="publish", daemon=True).start()

    # -- the peer ----------------------------------------------------------------------

    def _do_status(self, origin: Origin, _parameters: dict[str, Any]) -> None:
        status = dict(self._status())
        copies_count = self._loop.location.copies_count

        def answer(usage: Any) -> object:
            storage = {n: getattr(usage, n) for n in usage.__slots__}
            # Whoever leads them counts them.
            storage["objects"] = max(0, storage["objects"] - copies_count)
            return {**status, "storage": storage}

        self.read(origin, lambda engine: engine.usage(), answer)

    def _do_peers(self, origin: Origin, _parameters: dict[str, Any]) -> None:
        loop = self._loop
        rows = []
        members = loop.cluster.membership.members.values()
        for member in sorted(members, key=lambda one: one.record.name):
            record = member.record
            is_me = record.peer_id == loop.settings.peer_id
            rows.append({
                "peer": record.name, "peer_id": record.peer_id,
                "endpoint": record.endpoints[0] if record.endpoints else "",
                "state": member.state.name.lower(), "is_me": is_me,
                "zone": record.zone, "profile": record.profile,
                "protocol_version": record.protocol, **_about_machine(record),
                "meta": dict(record.meta),
            })  # fmt: skip
        self.answer(origin, rows)

    def _do_stop(self, origin: Origin, parameters: dict[str, Any]) -> None:
        check_meant(parameters, self._loop.settings.peer_id)
        self.answer(origin, None)
        self._stop()

    def _do_backup(self, origin: Origin, parameters: dict[str, Any]) -> None:
        directory = text_of(parameters, "directory")

        def copy(engine: Engine) -> int:
            done = 0
            for done, _total in engine.backup(directory):
                self._loop_progress(directory, done, _total)
                if self._loop.storage.is_closing:
                    raise UnavailableError("backup", "the peer is stopping")
            return done

        self.read(
            origin, copy, lambda done: {"bytes": done, "directory": directory},
            run=self._loop.storage.maintain,
        )  # fmt: skip

    def _loop_progress(self, directory: str, done: int, total: int) -> None:
        self._loop.backups[directory] = (done, total)


def _about_machine(record: PeerRecord) -> dict[str, Any]:
    """Return what a listing says of a peer's machine, as far as its record tells."""
    load = load_of(record)
    told: dict[str, Any] = {
        name: record.meta[name]
        for name in ("cores", "memory_mb", "accelerators")
        if name in record.meta
    }
    told["installed"] = {k: v for k, v in installed_of(record).items() if v}
    told["load"] = None if load is None else load._asdict()
    return told


def row_of(head: Head) -> dict[str, Any]:
    """Return what a listing says of an object."""
    return {
        "object_id": head.object_id,
        "alias": head.alias,
        "class_name": head.class_name,
        "class_version": head.class_version,
        "revision": head.revision,
        "epoch": head.epoch,
        "version": head.version,
        "durability": Durability(head.durability).name.lower(),
        "bytes": head.state_bytes,
        "created_s": head.created_s,
        "changed_s": head.changed_s,
        **({"damage": head.damage} if head.damage else {}),
    }


def _published(records: Any) -> dict[str, Any]:
    return {"classes": [[record.class_name, record.revision] for record in records]}


def text_of(parameters: dict[str, Any], name: str, default: str | None = None) -> str:
    """Return a parameter that must be text."""
    value = parameters.get(name, default)
    if type(value) is not str:
        raise InvalidRequestError(
            f"{name} must be text, got {type(value).__name__}", name
        )
    return value


def _is_object_id(value: object) -> bool:
    return type(value) is bytes and len(value) == OBJECT_ID_BYTES


def check_meant(parameters: dict[str, Any], me: bytes) -> None:
    """Refuse what is about one peer, or its own copy, where another peer was meant.

    A client whose peer dies before it answered asks the next one.

    Raises:
        InvalidRequestError: `peer_id` is not this peer's.
    """
    meant = parameters.get("peer_id")
    if meant is None or meant == me:
        return
    name = meant.hex() if isinstance(meant, bytes) else repr(meant)
    reason = f"is {name}, which was lost before it answered; this is {me.hex()}"
    advice = "see `activestore-node peers` for whether it is gone"
    raise InvalidRequestError(f"{reason}, where nothing was done: {advice}", "peer_id")


def object_id_of(parameters: dict[str, Any]) -> ObjectId:
    """Return the parameter `object_id`."""
    value = parameters.get("object_id")
    if not _is_object_id(value):
        raise InvalidRequestError("object_id must be 16 bytes", "object_id")
    return ObjectId(bytes(value))  # type: ignore[arg-type]  # checked just above
