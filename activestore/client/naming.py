"""What names an object: an alias, an id, a ref or a stand-in.

Rules of this file: only an alias is asked about, and in one round trip; what the asker
would ask for next, the interface of the object's class, comes with the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from activestore import ids, remote
from activestore.errors import InvalidRequestError
from activestore.ids import ObjectId
from activestore.model import ActiveObject
from activestore.wire import values

# Named in a question, so that it stays a packet; a client of more classes gets the
# interface of one that it has once more.
CLASSES_NAMED_MAX = 16


class Found(NamedTuple):
    """An object; "" for a class, and None for an interface, that were not told."""

    object_id: ObjectId
    class_name: str = ""
    interface: Mapping[str, Any] | None = None


def identify(
    request: Callable[..., Any], name: Any, known: Iterable[str] | None = None
) -> Found:
    """Return what a name names.

    Args:
        request: How to ask the peer.
        name: What names an object.
        known: Classes whose interface is of no use; None where none is.

    Raises:
        InvalidRequestError: it is nothing that names an object.
        AliasNotFoundError: no object has that alias.
    """
    object_id = remote.id_of(name)
    if object_id is not None:
        return Found(object_id)
    if isinstance(name, values.Ref):
        return Found(ObjectId(bytes(name.object_id)))
    if isinstance(name, bytes) and len(name) == ids.OBJECT_ID_BYTES:
        return Found(ObjectId(name))
    if isinstance(name, ActiveObject):
        kind = type(name).__name__
        raise InvalidRequestError(
            f"this {kind} is not persistent: `make_persistent` keeps it, or give the "
            "alias or id of one that is",
            kind,
        )
    if not isinstance(name, str):
        what = f"{len(name)} bytes" if isinstance(name, bytes) else type(name).__name__
        raise InvalidRequestError(
            f"expected an alias, an id or an object, got {what}", "get"
        )
    object_id = ids.parse_object_id(name)
    if object_id is not None:
        return Found(object_id)
    ids.check_alias(name)
    parameters: dict[str, Any] = {"alias": name}
    if known is not None:
        parameters["interface_unless"] = list(known)[-CLASSES_NAMED_MAX:]
    found = request("resolve", **parameters)
    return Found(
        ObjectId(bytes(found["object_id"])),
        str(found["class_name"]),
        found.get("interface"),
    )
