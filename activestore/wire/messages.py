"""The messages: one frozen class per kind, with the type of each header field.

A message is a header (a msgpack array: kind, then the fields in this order), a body
(bytes that only the final receiver decodes) and buffers (large blocks beside it).
NamedTuple, not dataclass: it is immutable, three times cheaper to make, and does not
pull `inspect` into the thin client.

Rules of this file: fields are only ever appended, with a default; a kind number is
never reused; trailing fields that this version does not know are ignored. `extra` is a
map for optional additions (trace, token, priority, compression): unknown keys are
ignored.

Source: schemas/protocol.md section 4; schemas/messages.cddl.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview
Extra: TypeAlias = "Mapping[str, object] | None"


class PartedBuffer:
    """A buffer in the parts that it came in; whoever can work on parts saves a copy.

    All parts but the last have FRAME_BYTES_MAX bytes.
    """

    __slots__ = ("nbytes", "parts")

    def __init__(self, parts: Sequence[Buffer], nbytes: int) -> None:
        self.parts = parts
        self.nbytes = nbytes


def bytes_count(buffer: Buffer | PartedBuffer) -> int:
    """Return the size of a buffer in bytes."""
    if isinstance(buffer, PartedBuffer):
        return buffer.nbytes
    return memoryview(buffer).nbytes


def whole(buffer: Buffer | PartedBuffer) -> Buffer:
    """Return a buffer as one piece of memory; a copy where it has parts."""
    return b"".join(buffer.parts) if isinstance(buffer, PartedBuffer) else buffer


class Operation(enum.IntEnum):
    """What a Call does to its object."""

    CALL = 0  # run the method
    GET = 1  # read the field
    SET = 2  # assign the field


class Hello(NamedTuple):
    """Client to peer, first on every connection: who speaks, and which versions."""

    version_min: int
    version_max: int
    session: bytes
    client_name: str
    capabilities: Sequence[str]
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Call(NamedTuple):
    """Run a method, or read or assign a field, of one object. Body: arguments.

    `first_unacked`: the client has the replies of all lower sequences, their records
    may go. `deadline_ms`: remaining milliseconds, 0 for none. `attempt`: 0 the first
    time. `extra["age_ms"]`: with attempt > 0, the time since the first attempt.
    `extra["stream"]`: initial credit in items; the method's result is sent as Items.
    """

    sequence: int
    object_id: bytes
    method: str
    operation: int
    attempt: int
    first_unacked: int
    deadline_ms: int
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Cancel(NamedTuple):
    """Stop the call if it has not committed."""

    sequence: int
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Credit(NamedTuple):
    """The client can take `items` more Items of a stream."""

    sequence: int
    items: int
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Ping(NamedTuple):
    """Ask for a Pong: is the peer there, and does it know this session?"""

    token: int
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Bye(NamedTuple):
    """The client ends its session; its running calls are cancelled."""

    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Create(NamedTuple):
    """Make an object of a published class. Body: arguments of `__init__`.

    `class_name`: "module.Class". `alias`: "" for none. Answered by the object id.
    """

    sequence: int
    object_id: bytes
    class_name: str
    alias: str
    attempt: int
    first_unacked: int
    deadline_ms: int
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Persist(NamedTuple):
    """Keep the objects whose states are in the body, in one commit: all or none."""

    sequence: int
    attempt: int
    first_unacked: int
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Delete(NamedTuple):
    """Delete one object and its alias."""

    sequence: int
    object_id: bytes
    attempt: int
    first_unacked: int
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Request(NamedTuple):
    """Ask the peer itself: `operation` names what, the body holds a dict of parameters.

    The operations and their parameters are listed in schemas/protocol.md section 6.
    """

    sequence: int
    operation: str
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Probe(NamedTuple):
    """Peer to peer: are you there? Answered by Ack. Body: gossip.

    `target`: whom the sender believes to reach; another peer at that address says so.
    """

    token: int
    target: bytes
    sender: bytes
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class ProbeFor(NamedTuple):
    """Peer to peer: probe `target` for me; answered by Ack or Nack. Body: gossip."""

    token: int
    target: bytes
    sender: bytes
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Gossip(NamedTuple):
    """Peer to peer: news of peers and objects, in the body; not answered."""

    sender: bytes
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Sync(NamedTuple):
    """Peer to peer: a part of all records, in the body; answered by Synced."""

    sender: bytes
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Relay(NamedTuple):
    """Peer to peer: a message of another's session. Body: its record.

    `hops`: how often it was relayed before. The buffers are those of the message.
    """

    session: bytes
    hops: int
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class AskOn(NamedTuple):
    """Peer to peer: whom does this call of mine wait for? It may be for the one who asks.

    `sequence`: of a call that a method of the sender made. `began_ms`, `mark`, `waiter`:
    the call that has waited for long, and by which of two is seen who gives way.
    `number`: of its questions. `hops`: how often this one was passed on.
    """

    sequence: int
    began_ms: int
    mark: bytes
    waiter: int
    number: int
    hops: int
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Chunk(NamedTuple):
    """Either way: a part of a message that is too large for a slow line.

    `transfer`: of which message, counted from 1 by the sender; `number`: which part, from
    0. Its one buffer is the part; the body of the first lists the sizes of all frames.
    """

    transfer: int
    number: int
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Taken(NamedTuple):
    """Either way: the first `chunks` chunks of a transfer have arrived."""

    transfer: int
    chunks: int
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Replicate(NamedTuple):
    """Peer to peer: what the members of replica groups say; see `wire.replicas`."""

    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Welcome(NamedTuple):
    """Peer to client, the answer to Hello: the version spoken, who answers, its limits."""

    version: int
    peer_id: bytes
    incarnation: bytes
    peer_name: str
    limits: Mapping[str, int]
    capabilities: Sequence[str]
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Reply(NamedTuple):
    """The call ended well. Body: the result. Also ends a stream."""

    sequence: int
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Failure(NamedTuple):
    """The call failed. Body: the list of the error's fields; `code`: see errors.toml."""

    sequence: int
    code: str
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Item(NamedTuple):
    """One item of a stream, numbered from 0. Body: the value."""

    sequence: int
    number: int
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Beat(NamedTuple):
    """The peer still has these calls queued or running."""

    sequences: Sequence[int]
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Pong(NamedTuple):
    """The answer to Ping. `is_known` is false where a Hello is needed first."""

    token: int
    incarnation: bytes
    is_known: bool
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Refused(NamedTuple):
    """A frame could not be served at all: malformed, unknown kind, no Hello before it."""

    code: str
    reason: str
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Ack(NamedTuple):
    """The answer to Probe, also through a third peer. Body: gossip."""

    token: int
    sender: bytes
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Nack(NamedTuple):
    """The answer to ProbeFor where the target did not answer: the prober is well."""

    token: int
    sender: bytes
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Relayed(NamedTuple):
    """An answer for a session whose message came by Relay. Body: its record."""

    session: bytes
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


class Synced(NamedTuple):
    """The answer to Sync: a part of all records of the other side, in the body."""

    sender: bytes
    extra: Extra = None
    body: Buffer = b""
    buffers: Sequence[Buffer | PartedBuffer] = ()


Message: TypeAlias = (
    Hello
    | Call
    | Cancel
    | Credit
    | Ping
    | Bye
    | Create
    | Persist
    | Delete
    | Request
    | Probe
    | ProbeFor
    | Gossip
    | Sync
    | Relay
    | AskOn
    | Chunk
    | Taken
    | Replicate
    | Welcome
    | Reply
    | Failure
    | Item
    | Beat
    | Pong
    | Refused
    | Ack
    | Nack
    | Relayed
    | Synced
)
# The types of the header fields: "u64", "id16" and "id6" (bytes of that size), "bytes",
# "text", "bool", "texts", "u64s", "limits" (text to u64), "extra" (text to anything).
HEADERS: dict[type[Message], tuple[int, tuple[str, ...]]] = {
    Hello: (1, ("u64", "u64", "id16", "text", "texts", "extra")),
    Call: (2, ("u64", "id16", "text", "u64", "u64", "u64", "u64", "extra")),
    Cancel: (3, ("u64", "extra")),
    Credit: (4, ("u64", "u64", "extra")),
    Ping: (5, ("u64", "extra")),
    Bye: (6, ("extra",)),
    Create: (7, ("u64", "id16", "text", "text", "u64", "u64", "u64", "extra")),
    Persist: (8, ("u64", "u64", "u64", "extra")),
    Delete: (9, ("u64", "id16", "u64", "u64", "extra")),
    Request: (10, ("u64", "text", "extra")),
    Probe: (11, ("u64", "id6", "id6", "extra")),
    ProbeFor: (12, ("u64", "id6", "id6", "extra")),
    Gossip: (13, ("id6", "extra")),
    Sync: (14, ("id6", "extra")),
    Relay: (15, ("id16", "u64", "extra")),
    AskOn: (16, ("u64", "u64", "bytes", "u64", "u64", "u64", "extra")),
    Chunk: (17, ("u64", "u64", "extra")),
    Taken: (18, ("u64", "u64", "extra")),
    Replicate: (19, ("extra",)),
    Welcome: (32, ("u64", "id6", "id16", "text", "limits", "texts", "extra")),
    Reply: (33, ("u64", "extra")),
    Failure: (34, ("u64", "text", "extra")),
    Item: (35, ("u64", "u64", "extra")),
    Beat: (36, ("u64s", "extra")),
    Pong: (37, ("u64", "id16", "bool", "extra")),
    Refused: (38, ("text", "text", "extra")),
    Ack: (39, ("u64", "id6", "extra")),
    Nack: (40, ("u64", "id6", "extra")),
    Relayed: (41, ("id16", "extra")),
    Synced: (42, ("id6", "extra")),
}
KIND_OF: dict[type[Message], int] = {cls: kind for cls, (kind, _) in HEADERS.items()}
