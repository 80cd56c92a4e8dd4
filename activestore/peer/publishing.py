"""Publishing code: it is looked at in a process of its own, then kept, then announced.

The daemon never imports a user's module. A short-lived process does, reads the
interfaces off its classes and says what went wrong; an endless loop or a crash at
import costs that process. It ends with the daemon.

Rules of this file: a package that is known is not looked at again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from activestore.errors import (
    ActiveStoreError,
    InvalidRequestError,
    RemoteProtocolError,
    UnavailableError,
    error_from_wire,
)
from activestore.storage.engine import ClassRecord, Engine
from activestore.wire import packing, values

# Importing torch from a cold disk takes 20 s on a board.
DESCRIBE_S_MAX = 120.0
DIGEST_BYTES = 16


def check_parameters(parameters: Mapping[str, Any]) -> tuple[str, str, bytes, bytes]:
    """Return kind, name, digest and archive of a publish request.

    Raises:
        RemoteProtocolError: one is missing or has the wrong type.
    """
    try:
        kind, name = parameters["kind"], parameters["name"]
        digest, archive = bytes(parameters["digest"]), bytes(parameters["archive"])
    except (KeyError, TypeError) as error:
        raise RemoteProtocolError(f"publish lacks {error}", "Request") from None
    if kind not in ("source", "value") or type(name) is not str:
        raise RemoteProtocolError(f"publish of kind {kind!r}", "Request")
    if len(digest) != DIGEST_BYTES:
        raise RemoteProtocolError(f"digest of {len(digest)} bytes, not 16", "Request")
    return kind, name, digest, archive


def describe(
    kind: str, name: str, digest: bytes, archive: bytes
) -> list[dict[str, Any]]:
    """Return the interfaces of the classes that a package defines.

    Raises:
        InvalidRequestError: the code does not load, or defines no ActiveObject.
        RequirementError: a module that it imports is not installed here.
        UnavailableError: the process took too long or died.
    """
    request = packing.pack([kind, name, digest, archive])
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            [
                sys.executable, "-m", "activestore.objects.describe", str(os.getpid()),
                str(int(DESCRIBE_S_MAX)),
            ],
            input=request,
            stdout=subprocess.PIPE,
            timeout=DESCRIBE_S_MAX,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UnavailableError(
            name, f"importing it took more than {DESCRIBE_S_MAX:g} s"
        ) from None
    try:
        code, content = packing.unpack(done.stdout)
    except packing.UNPACK_ERRORS:
        raise InvalidRequestError(
            f"importing it ended the process with status {done.returncode}", name
        ) from None
    if code:
        fields: Any = values.decode(content)
        raise error_from_wire(code, tuple(fields))
    interfaces: Any = values.decode(content)
    if not interfaces:
        raise InvalidRequestError(
            "it defines no subclass of ActiveObject; name the module that does", name
        )
    return list(interfaces)


def keep(
    engine: Engine,
    digest: bytes,
    archive: bytes,
    interfaces: Sequence[Mapping[str, Any]],
    stamp: Callable[[Sequence[str]], float],
) -> list[ClassRecord]:
    """Store a package and the records of its classes; return the records.

    `stamp` tells when classes of these names are published: see `newest`.
    """
    published_s = stamp([interface["class_name"] for interface in interfaces])
    records = [
        ClassRecord(
            interface["class_name"],
            digest,
            digest,
            values.encode(dict(interface))[0],
            published_s,
        )
        for interface in interfaces
    ]
    engine.put_code(digest, archive, records)
    return records


def as_error(error: BaseException) -> ActiveStoreError:
    """Return what a client is told of a failure in a storage thread."""
    if isinstance(error, ActiveStoreError):
        return error
    return UnavailableError("storage", f"{type(error).__name__}: {error}")
