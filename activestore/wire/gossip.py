"""What peers tell each other of peers and objects: the bodies of gossip and of syncs.

A body is a msgpack list `[updates, hints, wants, classes]`; an empty body is an empty
list, and a reader ignores elements behind those it knows, in the list and in every row.

    update   [peer_id, incarnation, state, record or nil, accuser or nil]
    record   [name, endpoints, zone, profile, protocol, meta]
    hint     [object_id, peer_id, epoch, others, group_version]; the last two only where
             the object has replicas
    want     peer_id: "send me what you know of it"
    class    [class name, revision, stamp, peer_id]

Rows are encoded once, by `encode_update` and `encode_hint`, and put into many bodies.

Rules of this file: whatever the bytes, the outcome is a body or RemoteProtocolError; a
record that was decoded can be encoded again; a state that a newer version may have added
is skipped with its row.

Source: reliability.md 1.2 and 1.3; SWIM section 4; schemas/protocol.md section 11.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgpack

from activestore.errors import RemoteProtocolError, TooLargeError
from activestore.ids import OBJECT_ID_BYTES, PEER_ID_BYTES
from activestore.wire.limits import NAME_CHARS_MAX
from activestore.wire.messages import Buffer

# Updates in one gossip: it fits an Ethernet frame, as memberlist's UDP messages do, so
# that gossip never holds up a call on a slow link: 1 ms at 10 Mbit/s.
GOSSIP_BYTES_MAX = 1400
# One record and its row: two fit into one gossip. Source: reliability.md 2.2.
RECORD_BYTES_MAX = 512
# One part of a sync: 30 ms at 10 Mbit/s, and calls go between two parts.
SYNC_PART_BYTES_MAX = 32 * 1024
# What is decoded at all: msgpack can take 72 times its bytes in memory, here 5 MB.
GOSSIP_BODY_BYTES_MAX = 64 * 1024
# An incarnation grows by one at a refutation; whoever claims more than this lies.
INCARNATION_MAX = 2**62
# A class with a longer name is not told of: its code is fetched when it is needed.
CLASS_NAME_CHARS_MAX = 200
REVISION_BYTES = 16
# Seconds of the year 33,000: a stamp beyond is no time.
STAMP_MAX = 1e12
# Where a peer can be reached: a few interfaces, two protocols.
ENDPOINTS_MAX = 8
# Copies of an object beside its leader's that a hint names: a row of 100 bytes.
OTHERS_MAX = 7
# Names of DNS may have 253 signs; a record of 512 bytes has no room for those.
ENDPOINT_CHARS_MAX = 200
ZONE_CHARS_MAX = 64
PROFILE_CHARS_MAX = 16
# The optional part of a record: about twenty numbers and forty requirements.
META_ELEMENTS_MAX = 256
META_DEPTH_MAX = 4

_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack
_header = msgpack.Packer(autoreset=True).pack_array_header
_NONE = b"\x90"  # an empty list


class PeerState(enum.IntEnum):
    """What is believed of a peer; at the same incarnation the higher one counts."""

    ALIVE = 0
    SUSPECT = 1  # it did not answer, and may still refute that
    DEAD = 2
    LEFT = 3  # it said goodbye


class PeerRecord(NamedTuple):
    """What a peer says of itself; only it writes a new one, with a new incarnation.

    `incarnation` 0 is nobody's: it stands in a record that was made of an address.
    `meta`: cores, memory_mb, accelerators, installed, load, stable, host, start.
    """

    peer_id: bytes
    incarnation: int
    name: str
    endpoints: tuple[str, ...]
    zone: str
    profile: str
    protocol: int
    meta: Mapping[str, object]


class Update(NamedTuple):
    """One belief about one peer. `accuser`: who made it a suspect, b"" for unsaid."""

    peer_id: bytes
    incarnation: int
    state: PeerState
    record: PeerRecord | None = None
    accuser: bytes = b""


class Hint(NamedTuple):
    """Where an object was seen; of two the one with the higher epoch is newer.

    `others`: that hold a copy too; of one epoch the higher `group_version` is newer.
    """

    object_id: bytes
    peer_id: bytes
    epoch: int
    others: tuple[bytes, ...] = ()
    group_version: int = 0


class ClassHint(NamedTuple):
    """The newest revision of a class that its teller knows, and where it was published.

    Of two the one with the higher stamp is newer; at the same one that with the higher
    revision.
    """

    class_name: str
    revision: bytes
    stamp: float
    peer_id: bytes

    def is_newer(self, other: ClassHint | None) -> bool:
        """Whether this is newer than another; than none it always is."""
        if other is None:
            return True
        return (self.stamp, self.revision) > (other.stamp, other.revision)


class GossipBody(NamedTuple):
    """A decoded body; `hints` of objects and of classes."""

    updates: Sequence[Update] = ()
    hints: Sequence[Hint | ClassHint] = ()
    wants: Sequence[bytes] = ()


EMPTY = GossipBody()
_STATES = tuple(PeerState)


def encode_update(update: Update) -> bytes:
    """Return the row of an update.

    Raises:
        TooLargeError: its record is over RECORD_BYTES_MAX.
    """
    record = update.record
    row: bytes = _pack((
        update.peer_id, update.incarnation, int(update.state),
        None if record is None else record[2:], update.accuser or None,
    ))  # fmt: skip
    if len(row) > RECORD_BYTES_MAX:
        raise TooLargeError(
            f"record of peer {update.peer_id.hex()}", len(row), RECORD_BYTES_MAX
        )
    return row


def encode_hint(hint: Hint | ClassHint) -> bytes:
    """Return the row of a hint."""
    fields = tuple(hint)
    if type(hint) is Hint and not (hint.others or hint.group_version):
        fields = fields[:3]
    row: bytes = _pack(fields)
    return row


def encode_body(
    updates: Sequence[bytes],
    hints: Sequence[bytes] = (),
    wants: Iterable[bytes] = (),
    classes: Sequence[bytes] = (),
) -> bytes:
    """Return a body of encoded rows; b"" where there is nothing to tell."""
    wanted = list(wants)
    if not updates and not hints and not wanted and not classes:
        return b""
    lists = [updates, hints]
    if wanted or classes:
        lists.append([_pack(one) for one in wanted])
    if classes:
        lists.append(classes)
    parts = [_header(len(lists))]
    for rows in lists:
        parts.append(_header(len(rows)) if rows else _NONE)
        parts.extend(rows)
    return b"".join(parts)


def encode_records(updates: Iterable[Update]) -> bytes:
    """Return a body of these updates alone.

    Raises:
        TooLargeError: a record is over RECORD_BYTES_MAX.
    """
    return encode_body([encode_update(update) for update in updates])


def decode_records(body: Buffer) -> Sequence[Update]:
    """Return the updates of a body.

    Raises:
        RemoteProtocolError: whatever is wrong with the bytes.
    """
    return decode_body(body).updates


def decode_body(body: Buffer) -> GossipBody:
    """Return what a body tells.

    Raises:
        RemoteProtocolError: whatever is wrong with the bytes.
    """
    if not body:
        return EMPTY
    if len(body) > GOSSIP_BODY_BYTES_MAX:
        raise RemoteProtocolError(
            f"gossip of {len(body)} bytes, over {GOSSIP_BODY_BYTES_MAX}"
        )
    try:
        lists = msgpack.unpackb(body, use_list=True, raw=False)
    except Exception as error:  # noqa: BLE001 - msgpack raises ValueError, RecursionError, its own
        raise RemoteProtocolError(
            f"gossip is not msgpack: {type(error).__name__}"
        ) from None
    if type(lists) is not list or any(type(rows) is not list for rows in lists[:4]):
        raise RemoteProtocolError("gossip is not a list of lists")
    count = len(lists)
    updates = [_update_of(row) for row in lists[0]] if count else []
    hints: list[Hint | ClassHint] = []
    if count > 1:
        hints += [_hint_of(row) for row in lists[1]]
    if count > 3:
        hints += [class_hint_of(row) for row in lists[3]]
    return GossipBody(
        [update for update in updates if update is not None],
        hints,
        [_id_of(row, PEER_ID_BYTES) for row in lists[2]] if count > 2 else (),
    )


def _id_of(value: Any, size: int) -> bytes:
    if type(value) is not bytes or len(value) != size:
        raise RemoteProtocolError(f"gossip: an id of {size} bytes expected, got "
                                  f"{str(value)[:40]!r}")  # fmt: skip
    return value


def _number_of(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value <= INCARNATION_MAX:
        raise RemoteProtocolError(f"gossip: {what} {str(value)[:40]!r} is no number "
                                  f"from 0 to {INCARNATION_MAX}")  # fmt: skip
    return value


def _text_of(value: Any, chars_max: int, what: str) -> str:
    if type(value) is not str or len(value) > chars_max:
        raise RemoteProtocolError(f"gossip: {what} must be a text of at most "
                                  f"{chars_max} characters")  # fmt: skip
    return value


def _hint_of(row: Any) -> Hint:
    if type(row) is not list or len(row) < 3:
        raise RemoteProtocolError("gossip: a hint is [object_id, peer_id, epoch]")
    others = row[3] if len(row) > 3 else ()
    if type(others) not in {list, tuple} or len(others) > OTHERS_MAX:
        raise RemoteProtocolError(
            f"gossip: others of a hint must be a list of at most {OTHERS_MAX} peers"
        )
    return Hint(
        _id_of(row[0], OBJECT_ID_BYTES),
        _id_of(row[1], PEER_ID_BYTES),
        _number_of(row[2], "epoch"),
        tuple([_id_of(one, PEER_ID_BYTES) for one in others]),
        _number_of(row[4], "group version") if len(row) > 4 else 0,
    )


def class_hint_of(row: Any) -> ClassHint:
    """Return what a row tells of a class.

    Raises:
        RemoteProtocolError: it is malformed.
    """
    if type(row) is not list or len(row) < 4:
        raise RemoteProtocolError(
            "gossip: a class is [class name, revision, stamp, peer_id]"
        )
    stamp = row[2]
    if type(stamp) is not float or not 0.0 <= stamp <= STAMP_MAX:
        raise RemoteProtocolError(f"gossip: stamp {str(stamp)[:40]!r} is no number from "
                                  f"0 to {STAMP_MAX:g}")  # fmt: skip
    return ClassHint(
        _text_of(row[0], CLASS_NAME_CHARS_MAX, "class name"),
        _id_of(row[1], REVISION_BYTES),
        stamp,
        _id_of(row[3], PEER_ID_BYTES),
    )


def _update_of(row: Any) -> Update | None:
    if type(row) is not list or len(row) < 3:
        raise RemoteProtocolError("gossip: an update is [peer_id, incarnation, state]")
    peer_id = _id_of(row[0], PEER_ID_BYTES)
    incarnation = _number_of(row[1], "incarnation")
    state = _number_of(row[2], "state")
    fields = row[3] if len(row) > 3 else None
    accuser = row[4] if len(row) > 4 else None
    if accuser is not None:
        _id_of(accuser, PEER_ID_BYTES)
    record = None if fields is None else _record_of(peer_id, incarnation, fields)
    if state >= len(_STATES):
        return None
    return Update(peer_id, incarnation, _STATES[state], record, accuser or b"")


def _record_of(peer_id: bytes, incarnation: int, fields: Any) -> PeerRecord:
    if type(fields) is not list or len(fields) < 6:
        raise RemoteProtocolError(
            "gossip: a record is [name, endpoints, zone, profile, protocol, meta]"
        )
    name, endpoints, zone, profile, protocol, meta = fields[:6]
    if type(endpoints) is not list or len(endpoints) > ENDPOINTS_MAX:
        raise RemoteProtocolError(
            f"gossip: endpoints must be a list of at most {ENDPOINTS_MAX} texts"
        )
    if type(meta) is not dict:
        raise RemoteProtocolError("gossip: meta must be a map")
    record = PeerRecord(
        peer_id, incarnation,
        _text_of(name, NAME_CHARS_MAX, "name"),
        tuple([_text_of(e, ENDPOINT_CHARS_MAX, "endpoint") for e in endpoints]),
        _text_of(zone, ZONE_CHARS_MAX, "zone"),
        _text_of(profile, PROFILE_CHARS_MAX, "profile"),
        _number_of(protocol, "protocol"),
        meta,
    )  # fmt: skip
    _check_meta(meta)
    # It will be told on: what came must also go, in one gossip.
    size = len(_pack(fields[:6]))
    if size > RECORD_BYTES_MAX - _ROW_BYTES_MAX:
        raise RemoteProtocolError(
            f"gossip: record of {size} bytes, over {RECORD_BYTES_MAX - _ROW_BYTES_MAX}"
        )
    return record


# A row without its record: two ids of 8 bytes, an incarnation of 9, a state, the list.
_ROW_BYTES_MAX = 27


def _check_meta(meta: dict[Any, Any]) -> None:
    """Refuse what is too deep or too much, or could not be encoded again."""
    elements = 0
    level: list[Any] = [meta]
    for _ in range(META_DEPTH_MAX):
        inner: list[Any] = []
        for container in level:
            if type(container) is dict:
                if not all(type(key) is str for key in container):
                    raise RemoteProtocolError("gossip: the keys of meta must be texts")
                children: Iterable[Any] = container.values()
                elements += 2 * len(container)
            else:
                children = container
                elements += len(container)
            for child in children:
                kind = type(child)
                if kind is list or kind is dict:
                    inner.append(child)
                elif kind not in _PLAIN:
                    raise RemoteProtocolError(f"gossip: meta holds a {kind.__name__}")
        if elements > META_ELEMENTS_MAX:
            raise RemoteProtocolError(
                f"gossip: meta of more than {META_ELEMENTS_MAX} elements"
            )
        if not inner:
            return
        level = inner
    raise RemoteProtocolError(f"gossip: meta of more than {META_DEPTH_MAX} levels")


_PLAIN = frozenset({type(None), bool, int, float, str, bytes})
