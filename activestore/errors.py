"""Every error a caller can meet, split by whose fault it is and what to do about it.

Rules of this file: each class has a stable `code`, listed in `schemas/errors.toml`; its
constructor arguments are its fields, in wire order, and `args` rebuilds it after a
pickle or a journey; the text is made from the fields. Fields are only ever appended.

    ActiveStoreError
      InvalidRequestError          the caller's mistake: change the call
        UnsupportedValueError      NoSuchMethodError      NotActiveMethodError
        ReadonlyViolationError     TooLargeError          ConfigurationError
      ObjectNotFoundError   AliasExistsError   AliasNotFoundError   ClassNotFoundError
      RequirementError      PermissionDeniedError         StorageFullError
      CorruptRecordError    SessionExpiredError           DirectoryLockedError
      RemoteProtocolError          the other side broke the protocol
      UnavailableError             try again
        NoQuorumError   BusyError   ExecutorCrashedError   MovedError
      DeadlineExceededError (also TimeoutError)           CancelledError
      MethodError                  the method itself raised (also its built-in type)
      InternalError                our bug
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any, ClassVar


class ActiveStoreError(Exception):
    """The root of all errors of activestore; also an error whose code is unknown here."""

    code: ClassVar[str] = "error"
    FIELDS: ClassVar[tuple[str, ...]] = ("reason",)

    def __init__(self, reason: str = "", *details: object) -> None:
        super().__init__(reason, *details)
        self.reason = reason

    @property
    def fields(self) -> dict[str, object]:
        """The fields by name, in wire order."""
        return dict(zip(self.FIELDS, self.args, strict=False))

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else self.code


class InvalidRequestError(ActiveStoreError):
    """The request cannot be served as it is. Change it; retrying will not help."""

    code = "invalid_request"
    FIELDS: ClassVar[tuple[str, ...]] = ("reason", "where")

    def __init__(self, reason: str, where: str = "") -> None:
        Exception.__init__(self, reason, where)
        self.reason, self.where = reason, where

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" if self.where else self.reason


class UnsupportedValueError(InvalidRequestError):
    """A value cannot travel. Convert it, or keep it in a field and return a part."""

    code = "unsupported_value"
    FIELDS: ClassVar[tuple[str, ...]] = ("type_name", "path", "reason")

    def __init__(self, type_name: str, path: str, reason: str = "") -> None:
        Exception.__init__(self, type_name, path, reason)
        self.type_name, self.path, self.reason = type_name, path, reason

    def __str__(self) -> str:
        why = self.reason or "no wire form for this type; convert it first"
        return f"{self.path}: a value of type {self.type_name} cannot travel: {why}"


class TooLargeError(InvalidRequestError):
    """Something is over its limit. Make it smaller, or raise the named limit."""

    code = "too_large"
    FIELDS: ClassVar[tuple[str, ...]] = ("what", "size", "limit", "setting")

    def __init__(self, what: str, size: int, limit: int, setting: str = "") -> None:
        Exception.__init__(self, what, size, limit, setting)
        self.what, self.size, self.limit, self.setting = what, size, limit, setting

    def __str__(self) -> str:
        where = f" (setting {self.setting})" if self.setting else ""
        return f"{self.what} is {self.size:,}, over the limit of {self.limit:,}{where}"


class NoSuchMethodError(InvalidRequestError):
    """The class has no such method or field."""

    code = "no_such_method"
    FIELDS: ClassVar[tuple[str, ...]] = ("class_name", "method", "available")
    hint = ""  # What to do about it here; no field, for it does not travel.

    def __init__(
        self, class_name: str, method: str, available: tuple[str, ...] = ()
    ) -> None:
        Exception.__init__(self, class_name, method, tuple(available))
        self.class_name, self.method, self.available = class_name, method, self.args[2]

    def __str__(self) -> str:
        if self.method in self.available:
            return f"{self.class_name}.{self.method} is a field, no method: read it"
        has = (", ".join(self.available) or "none") + self.hint
        return f"{self.class_name} has no active method or field {self.method!r}; it has: {has}"


class NotActiveMethodError(InvalidRequestError):
    """The method exists but is not remote. Mark it with @activemethod."""

    code = "not_active_method"
    FIELDS: ClassVar[tuple[str, ...]] = ("class_name", "method")

    def __init__(self, class_name: str, method: str) -> None:
        Exception.__init__(self, class_name, method)
        self.class_name, self.method = class_name, method

    def __str__(self) -> str:
        return (
            f"{self.class_name}.{self.method} is not an active method; "
            "mark it with @activemethod and publish the class again"
        )


class ReadonlyViolationError(InvalidRequestError):
    """A readonly method changed a field. Drop readonly=True or the change."""

    code = "readonly_violation"
    FIELDS: ClassVar[tuple[str, ...]] = ("class_name", "method", "field")

    def __init__(self, class_name: str, method: str, field: str) -> None:
        Exception.__init__(self, class_name, method, field)
        self.class_name, self.method, self.field = class_name, method, field

    def __str__(self) -> str:
        return (
            f"{self.class_name}.{self.method} is readonly but changed the field "
            f"{self.field!r}; nothing was kept"
        )


class ConfigurationError(InvalidRequestError):
    """A setting is wrong, or forbids what was asked."""

    code = "configuration"
    FIELDS: ClassVar[tuple[str, ...]] = ("setting", "reason")

    def __init__(self, setting: str, reason: str) -> None:
        Exception.__init__(self, setting, reason)
        self.setting, self.reason = setting, reason

    def __str__(self) -> str:
        return f"{self.setting}: {self.reason}"


class ObjectNotFoundError(ActiveStoreError):
    """No live replica holds the object. Create it; retrying will not help."""

    code = "object_not_found"
    FIELDS: ClassVar[tuple[str, ...]] = ("object_id", "peers_asked")

    def __init__(self, object_id: bytes, peers_asked: tuple[bytes, ...] = ()) -> None:
        Exception.__init__(self, object_id, tuple(peers_asked))
        self.object_id, self.peers_asked = object_id, tuple(peers_asked)

    def __str__(self) -> str:
        asked = ", ".join(peer.hex()[:8] for peer in self.peers_asked) or "this peer"
        return f"object {self.object_id.hex()} not found: no replica on {asked}"


class AliasExistsError(ActiveStoreError):
    """The alias names another object. Choose another, or delete that object."""

    code = "alias_exists"
    FIELDS: ClassVar[tuple[str, ...]] = ("alias", "object_id")

    def __init__(self, alias: str, object_id: bytes = b"") -> None:
        Exception.__init__(self, alias, object_id)
        self.alias, self.object_id = alias, object_id

    def __str__(self) -> str:
        named = f"alias {self.alias!r} already names object {self.object_id.hex()}"
        return f"{named}; choose another, or delete that object"


class AliasNotFoundError(ActiveStoreError):
    """No object has this alias."""

    code = "alias_not_found"
    FIELDS: ClassVar[tuple[str, ...]] = ("alias",)

    def __init__(self, alias: str) -> None:
        Exception.__init__(self, alias)
        self.alias = alias

    def __str__(self) -> str:
        return f"no object has the alias {self.alias!r}; `activestore-node objects` lists them"


class ClassNotFoundError(ActiveStoreError):
    """The class was never published here."""

    code = "class_not_found"
    FIELDS: ClassVar[tuple[str, ...]] = ("class_name", "known")

    def __init__(self, class_name: str, known: tuple[str, ...] = ()) -> None:
        Exception.__init__(self, class_name, tuple(known))
        self.class_name, self.known = class_name, tuple(known)

    def __str__(self) -> str:
        known = ", ".join(self.known) or "none"
        return f"class {self.class_name!r} is not published; published classes: {known}"


class RequirementError(ActiveStoreError):
    """The peer lacks what the class needs. Install it there, or use a peer that has it."""

    code = "requirement"
    FIELDS: ClassVar[tuple[str, ...]] = ("class_name", "missing", "peers_with")

    def __init__(
        self,
        class_name: str,
        missing: tuple[str, ...],
        peers_with: tuple[str, ...] = (),
    ) -> None:
        Exception.__init__(self, class_name, tuple(missing), tuple(peers_with))
        self.class_name, self.missing, self.peers_with = self.args

    def __str__(self) -> str:
        others = ", ".join(self.peers_with) or "no known peer"
        return (
            f"{self.class_name} needs {', '.join(self.missing)}, which this peer lacks; "
            f"peers that have it: {others}"
        )


class PermissionDeniedError(ActiveStoreError):
    """The caller's role does not allow this."""

    code = "permission_denied"
    FIELDS: ClassVar[tuple[str, ...]] = ("action", "role", "needed")

    def __init__(self, action: str, role: str, needed: str) -> None:
        Exception.__init__(self, action, role, needed)
        self.action, self.role, self.needed = action, role, needed

    def __str__(self) -> str:
        needed = f"{self.action} needs the role {self.needed}"
        return f"{needed}; this client has {self.role}"


class StorageFullError(ActiveStoreError):
    """The disk or the peer's disk budget is full. Delete objects or raise the budget."""

    code = "storage_full"
    FIELDS: ClassVar[tuple[str, ...]] = ("used_bytes", "budget_bytes", "reason")

    def __init__(self, used_bytes: int, budget_bytes: int, reason: str = "") -> None:
        Exception.__init__(self, used_bytes, budget_bytes, reason)
        self.used_bytes, self.budget_bytes = used_bytes, budget_bytes
        self.reason = reason

    def __str__(self) -> str:
        if not self.budget_bytes:  # No store is open yet: only the disk is known.
            return f"storage is full: {self.reason}"
        why = f": {self.reason}" if self.reason else ""
        return (
            f"storage is full: {self.used_bytes:,} of {self.budget_bytes:,} bytes used{why}; "
            "reads and deletes still work; delete objects, or raise disk_budget_mb where "
            "the disk has room"
        )


class CorruptRecordError(ActiveStoreError):
    """A stored record fails its checksum. Restore it from a backup or a replica."""

    code = "corrupt_record"
    FIELDS: ClassVar[tuple[str, ...]] = ("object_id", "where", "reason")

    def __init__(self, object_id: bytes, where: str, reason: str) -> None:
        Exception.__init__(self, object_id, where, reason)
        self.object_id, self.where, self.reason = object_id, where, reason

    def __str__(self) -> str:
        if not self.object_id:  # Of the store itself: the reason says what to do.
            return f"{self.where} is damaged on disk: {self.reason}"
        return (
            f"object {self.object_id.hex()} is damaged on disk ({self.where}): {self.reason}; "
            "run `activestore-node doctor`, restore it from a backup, or delete it"
        )


class SessionExpiredError(ActiveStoreError):
    """A retry came so late that its first run can no longer be ruled out."""

    code = "session_expired"
    FIELDS: ClassVar[tuple[str, ...]] = ("sequence", "age_s", "limit_s")

    def __init__(self, sequence: int, age_s: float, limit_s: float) -> None:
        Exception.__init__(self, sequence, age_s, limit_s)
        self.sequence, self.age_s, self.limit_s = sequence, age_s, limit_s

    def __str__(self) -> str:
        return (
            f"request {self.sequence} was first sent {self.age_s:.0f} s ago, replies are kept "
            f"{self.limit_s:.0f} s: it was not run again; look at the object, then call anew"
        )


class DirectoryLockedError(ActiveStoreError):
    """Another daemon uses the data directory."""

    code = "directory_locked"
    FIELDS: ClassVar[tuple[str, ...]] = ("path", "pid")

    def __init__(self, path: str, pid: int = 0) -> None:
        Exception.__init__(self, path, pid)
        self.path, self.pid = path, pid

    def __str__(self) -> str:
        who = f"process {self.pid}" if self.pid else "another process"
        return (
            f"data directory {self.path} is in use by {who}; stop it, or choose "
            "another --data-dir"
        )


class RemoteProtocolError(ActiveStoreError):
    """The other side sent something the protocol forbids; see schemas/protocol.md."""

    code = "remote_protocol"
    FIELDS: ClassVar[tuple[str, ...]] = ("reason", "where")

    def __init__(self, reason: str, where: str = "") -> None:
        Exception.__init__(self, reason, where)
        self.reason, self.where = reason, where

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" if self.where else self.reason


class UnavailableError(ActiveStoreError):
    """Not now: the peer is silent, stopping or broken. The same call may work later."""

    code = "unavailable"
    FIELDS: ClassVar[tuple[str, ...]] = ("where", "reason")

    def __init__(self, where: str, reason: str = "") -> None:
        Exception.__init__(self, where, reason)
        self.where, self.reason = where, reason

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" if self.reason else self.where


class NoQuorumError(UnavailableError):
    """Too few replicas answer to decide. A change may still be found kept once they do.

    `reachable` voters answer, `needed` (0: not told) must; `reason` says what others lack.
    """

    code = "no_quorum"
    FIELDS: ClassVar[tuple[str, ...]] = ("where", "reason", "reachable", "needed")

    def __init__(
        self, where: str, reason: str = "", reachable: int = 0, needed: int = 0
    ) -> None:
        Exception.__init__(self, where, reason, reachable, needed)
        self.where, self.reason = where, reason
        self.reachable, self.needed = reachable, needed

    def __str__(self) -> str:
        if not self.needed:
            return super().__str__()
        counts = f"{self.reachable} of its voters answer, {self.needed} must"
        advice = "start the others (see `activestore-node show`), or `force` if lost"
        if self.reachable >= self.needed:
            advice = "mend what keeps them from it"
        return (
            f"{self.where}: {self.reason or counts}; {advice}, or wait; readonly methods "
            "may still run with options(staleness_s=...)"
        )


class MovedError(UnavailableError):
    """The object is at another peer. Ask there; clients and peers do so by themselves.

    `endpoint`: where that is. The word with the highest (epoch, group_version) is newest;
    `others` have a copy. `is_doubtful`: it may have run: a peer asks with its next attempt.
    """

    code = "moved"
    FIELDS: ClassVar[tuple[str, ...]] = (
        "object_id", "peer_id", "endpoint", "epoch", "others", "group_version",
        "is_doubtful",
    )  # fmt: skip

    def __init__(  # noqa: PLR0913, PLR0917 - an error has that many fields
        self, object_id: bytes, peer_id: bytes, endpoint: str = "", epoch: int = 0,
        others: Sequence[bytes] = (), group_version: int = 0, is_doubtful: bool = False,
    ) -> None:  # fmt: skip
        told = (object_id, peer_id, endpoint, epoch, others, group_version, is_doubtful)
        Exception.__init__(self, *told)
        self.object_id, self.peer_id, self.endpoint, self.epoch = told[:4]
        self.others, self.group_version, self.is_doubtful = told[4:]

    def __str__(self) -> str:
        where = self.endpoint or "address unknown"
        return f"object {self.object_id.hex()} is at peer {self.peer_id.hex()}, {where}"


class BusyError(UnavailableError):
    """A queue is full. Wait `retry_after_s` seconds and call again."""

    code = "busy"
    FIELDS: ClassVar[tuple[str, ...]] = ("where", "reason", "retry_after_s")

    def __init__(
        self, where: str, reason: str = "", retry_after_s: float = 0.1
    ) -> None:
        Exception.__init__(self, where, reason, retry_after_s)
        self.where, self.reason = where, reason
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        wait = f"retry after {self.retry_after_s:g} s"
        return f"{self.where} is busy: {self.reason}; {wait}"


class ExecutorCrashedError(UnavailableError):
    """The process that ran the method died. Of the call nothing was committed, or a part.

    Where nothing was, the client tries it again by itself. Where a part was
    (`is_partial`: it had reached a checkpoint, or changed other objects) it does not:
    whether the method goes on from there is for its author to say.
    """

    code = "executor_crashed"
    FIELDS: ClassVar[tuple[str, ...]] = (
        "where", "reason", "quarantined_s", "is_partial",
    )  # fmt: skip

    def __init__(
        self, where: str, reason: str = "", quarantined_s: float = 0.0,
        is_partial: bool = False,
    ) -> None:  # fmt: skip
        Exception.__init__(self, where, reason, quarantined_s, is_partial)
        self.where, self.reason = where, reason
        self.quarantined_s, self.is_partial = quarantined_s, is_partial

    def __str__(self) -> str:
        kept = "nothing was committed"
        if self.is_partial:
            kept = (
                "kept is what it changed up to its last checkpoint, and in other "
                "objects; it was not run again"
            )
        text = f"{self.where}: the executor died: {self.reason}; {kept}"
        if self.quarantined_s > 0:
            text += "; this call has killed two executors and is quarantined for "
            text += f"{self.quarantined_s:.0f} s"
        return text


class DeadlineExceededError(ActiveStoreError, TimeoutError):
    """The call's own deadline passed. Of it nothing is kept, unless `is_unknown`."""

    code = "deadline_exceeded"
    FIELDS: ClassVar[tuple[str, ...]] = ("where", "timeout_s", "is_unknown")

    def __init__(self, where: str, timeout_s: float, is_unknown: bool = False) -> None:
        Exception.__init__(self, where, timeout_s, is_unknown)
        self.where, self.timeout_s, self.is_unknown = where, timeout_s, is_unknown

    def __str__(self) -> str:
        kept = "nothing was committed"
        if self.is_unknown:
            kept = "it is unknown whether what it changed is kept; read before you repeat it"
        return f"{self.where}: deadline of {self.timeout_s:g} s exceeded; {kept}"


class CancelledError(ActiveStoreError):
    """The caller cancelled. Nothing of the call was committed."""

    code = "cancelled"
    FIELDS: ClassVar[tuple[str, ...]] = ("where",)

    def __init__(self, where: str) -> None:
        Exception.__init__(self, where)
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: cancelled"


class MethodError(ActiveStoreError):
    """The method itself raised; also an instance of the built-in type where it is one.

    `except ValueError` catches a remote ValueError. `remote_traceback` is the text of
    the traceback at the peer; `type_name` is the original type, `message` its text.
    """

    code = "method"
    FIELDS: ClassVar[tuple[str, ...]] = (
        "type_name", "message", "where", "remote_traceback", "builtin",
    )  # fmt: skip

    def __init__(
        self, type_name: str, message: str, where: str = "", remote_traceback: str = "",
        builtin: str = "",
    ) -> None:  # fmt: skip
        Exception.__init__(self, type_name, message, where, remote_traceback, builtin)
        self.type_name, self.message, self.where = type_name, message, where
        self.remote_traceback, self.builtin = remote_traceback, builtin

    def __str__(self) -> str:
        text = f"{self.where}: " if self.where else ""
        text += f"{self.type_name}: {self.message}" if self.message else self.type_name
        if self.remote_traceback:
            text += f"\n\nat the peer:\n{self.remote_traceback.rstrip()}"
        return text

    def __reduce__(self) -> tuple[Any, ...]:
        return (method_error, self.args)


class InternalError(ActiveStoreError):
    """A bug of activestore. Report it with this text."""

    code = "internal"


_METHOD_ERRORS: dict[str, type[MethodError]] = {"": MethodError}


def method_error(
    type_name: str, message: str, where: str = "", remote_traceback: str = "",
    builtin: str = "",
) -> MethodError:  # fmt: skip
    """Return a MethodError that is also an instance of the built-in type `builtin`.

    `builtin` is the nearest built-in base of the type that was raised, so that `except
    KeyError` catches a user's own subclass of KeyError too; an unknown name, or one
    with another memory layout or arguments of its own, gives a plain MethodError.
    """
    cls = _METHOD_ERRORS.get(builtin)
    if cls is None:
        base: Any = getattr(builtins, builtin, None)
        cls = MethodError
        is_error = isinstance(base, type) and issubclass(base, Exception)
        if is_error and base is not Exception:
            bases = (MethodError, base)
            try:
                cls = type(f"{builtin}MethodError", bases, {"__module__": __name__})
                cls("", "")  # Some, as ExceptionGroup, need arguments of their own.
            except (TypeError, ValueError):
                cls = MethodError
        if len(_METHOD_ERRORS) < 256:  # The built-ins are about 60.
            _METHOD_ERRORS[builtin] = cls
    return cls(type_name, message, where, remote_traceback, builtin)


def _all_errors(root: type[ActiveStoreError]) -> dict[str, type[ActiveStoreError]]:
    found = {root.code: root}
    for cls in root.__subclasses__():
        found.update(_all_errors(cls))
    return found


BY_CODE: dict[str, type[ActiveStoreError]] = _all_errors(ActiveStoreError)


# It is an InvalidRequestError that `except TypeError` catches too.
_WRONG_ARGUMENTS: dict[str, Any] = {
    "__reduce__": lambda self: (error_from_wire, (self.code, self.args))
}


def error_from_wire(code: str, args: tuple[Any, ...]) -> ActiveStoreError:
    """Rebuild an error from its code and fields, as they travelled.

    A code this version does not know gives an ActiveStoreError that names it; fields
    that a newer version appended are dropped.
    """
    cls = BY_CODE.get(code)
    if cls is None:
        return ActiveStoreError(f"{code}: {', '.join(map(str, args))}")
    try:
        if cls is MethodError:
            return method_error(*args[: len(MethodError.FIELDS)])
        if cls is InvalidRequestError and args[1:2] == ("arguments",):
            cls = type("WrongArgumentsError", (cls, TypeError), _WRONG_ARGUMENTS)
        return cls(*args[: len(cls.FIELDS)])
    except (TypeError, ValueError):
        return ActiveStoreError(f"{code}: {', '.join(map(str, args))}")
