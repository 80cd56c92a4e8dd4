r"""One copy of an object as a file, and back as a new object; imported on demand.

    activestore export 1\n | BLAKE2b-256 of the rest | a map, msgpack:
    object_id, alias, class_name, epoch, number, version, lineage, peer,
    is_quarantined, states (the body of a Persist of one state), buffers

Rules of this file: bytes in, bytes out; a file is believed as far as its checksum goes,
and decodes no value and no pickle here.

Source: schemas/protocol.md sections 6 and 7.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

from activestore.errors import InvalidRequestError, RemoteProtocolError
from activestore.ids import ObjectId
from activestore.wire import packing
from activestore.wire.state import NamedState, decode_states, encode_states

MAGIC = b"activestore export 1\n"
DIGEST_BYTES = 32
# What is told of the copy beside its state, for people and programs.
ABOUT = (
    "alias", "class_name", "epoch", "number", "version", "lineage", "peer",
    "is_quarantined",
)  # fmt: skip


class Exported(NamedTuple):
    """What a file holds: the state, and of what and where it was."""

    named: NamedState
    about: dict[str, Any]


def packed(told: Any, object_id: ObjectId) -> bytes:
    """Return the file of what a peer answered to `export`.

    Raises:
        RemoteProtocolError: the answer is no copy.
    """
    try:
        body = bytes(told["states"])
        buffers = [bytes(one) for one in told["buffers"]]
        about = {name: told[name] for name in ABOUT if name in told}
        states = decode_states(body, buffers)
    except (KeyError, TypeError) as error:
        raise RemoteProtocolError(f"no copy came: {error!r}", "export") from None
    if len(states) != 1:
        raise RemoteProtocolError(f"{len(states)} states came, expected 1", "export")
    rest = {
        "object_id": bytes(object_id), **about, "states": body, "buffers": buffers
    }  # fmt: skip
    content = packing.pack(rest)
    return MAGIC + _digest(content) + bytes(content)


def unpacked(data: bytes) -> Exported:
    """Return what a file holds.

    Raises:
        InvalidRequestError: it is no export, of another version, or damaged.
    """
    head = len(MAGIC) + DIGEST_BYTES
    if data[: len(MAGIC)] != MAGIC:
        seen = data[: len(MAGIC)]
        raise InvalidRequestError(
            f"it is no export: it begins with {seen!r}, expected {MAGIC!r}", "import"
        )
    content = data[head:]
    if _digest(content) != data[len(MAGIC) : head]:
        raise InvalidRequestError(
            f"the file is damaged: the checksum of its {len(data):,} bytes is not the one "
            "that it says; export it again, or take another copy of the file",
            "import",
        )
    try:
        rest = packing.unpack(content)
        (named,) = decode_states(rest["states"], rest["buffers"])
        about = {"object_id": rest["object_id"]}
        about.update((name, rest[name]) for name in ABOUT if name in rest)
    except (KeyError, RemoteProtocolError, *packing.UNPACK_ERRORS) as error:
        raise InvalidRequestError(
            f"the file is malformed: {error!r}", "import"
        ) from None
    return Exported(named, about)


def states_of(
    exported: Exported, object_id: ObjectId, alias: str
) -> tuple[bytes, list[Any]]:
    """Return body and buffers of the Persist that makes it a new object."""
    named = NamedState(object_id, alias, exported.named.state)
    body, buffers = encode_states([named])
    return body, list(buffers)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
