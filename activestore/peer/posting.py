"""What goes to the members of replica groups: gathered by peer, sent once a turn.

Rules of this file: what has no way to its peer is dropped, for it will be said again; a
whole state is read from disk when it is sent, never kept. What is small never waits for
what is large of another object; of one object all stays in order.

Source: reliability.md 3.3 ("batched per peer pair"); schemas/protocol.md section 14.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from activestore.core.register import Register
from activestore.errors import ActiveStoreError, RemoteProtocolError
from activestore.ids import ObjectId, PeerId
from activestore.peer import shipping
from activestore.peer.cluster import Cluster
from activestore.peer.relays import Relays
from activestore.peer.shipping import contents_from
from activestore.peer.table import Table
from activestore.storage.engine import Change
from activestore.wire.chunks import WHOLE_BYTES_MAX
from activestore.wire.limits import REPLICAS_SINCE
from activestore.wire.messages import Replicate, bytes_count
from activestore.wire.replicas import (
    ENTRIES_BYTES_MAX,
    ENTRIES_MAX,
    Accept,
    ReplicaMessage,
    Shipment,
    State,
    encode_entries,
)

# What of one turn may pass what waits, in bytes: 1 s at 1 Mbit/s, and probes are given 3 s.
# More waits in line, where no more is on its way than the line carries.
PASSING_BYTES_MAX = 2 * WHOLE_BYTES_MAX
# An entry without its change, but for a Nack's text: two configs of 16 peers are the most.
_ENTRY_BYTES = 512


class Outbox:
    """Messages to members that have not left yet."""

    def __init__(
        self, table: Table, cluster: Cluster, relays: Relays,
        met: Callable[[ActiveStoreError], ActiveStoreError],
    ) -> None:  # fmt: skip
        """Begin empty; `met` is told of errors of this disk."""
        self._table = table
        self._met = met
        self._relays = relays
        self._cluster = cluster
        self._waiting: dict[PeerId, list[ReplicaMessage]] = {}
        # Wholes that are being read, with what they are to be sent with.
        self._wholes: dict[tuple[PeerId, ObjectId], Accept | State] = {}

    def add(self, peer_id: PeerId, message: ReplicaMessage) -> None:
        """Have a message sent with this turn."""
        self._waiting.setdefault(peer_id, []).append(message)

    def add_whole(self, peer_id: PeerId, message: Accept | State) -> None:
        """Read the state of an object, and send it with this message.

        Of large buffers only that is sent which the peer does not have: it is asked.
        What is wanted again before it has left is sent once: what of it still waits for its
        turn is behind it, or it is lost with its connection, and is wanted again then.
        """
        key = (peer_id, message.object_id)
        if self._is_under_way(*key):
            return
        is_open = key in self._wholes
        self._wholes[key] = message
        if not is_open:
            self._read_whole(*key)

    def _read_whole(self, peer_id: PeerId, object_id: ObjectId) -> None:
        key = (peer_id, object_id)

        def read(
            contents: Sequence[shipping.Content],
            then: Callable[[Register, Change], None],
            *,
            is_sent: bool,
        ) -> None:
            def done(found: Any, error: BaseException | None) -> None:
                if error is not None or found is None:
                    del self._wholes[key]
                    self._complain(peer_id, object_id, error)
                else:
                    then(*found)

            self._table.storage.read(
                lambda engine: shipping.read_whole(
                    engine, object_id, contents, is_sent=is_sent
                ),
                done,
            )

        def send(register: Register, change: Change) -> None:
            self._add_read(peer_id, self._wholes.pop(key), register, change)

        def look(register: Register, change: Change) -> None:
            if not shipping.has_files(change):
                send(register, change)
                return

            def told(rows: Any, error: ActiveStoreError | None) -> None:
                try:
                    contents = [] if error is not None else contents_from(rows)
                except RemoteProtocolError:
                    contents = []
                read(contents, send, is_sent=True)

            self._relays.ask(peer_id, "contents", {"object_id": object_id}, told)

        read((), look, is_sent=False)

    def _is_under_way(self, peer_id: PeerId, object_id: ObjectId) -> bool:
        """Whether something of an object has not left for a peer because it is large."""
        link = self._cluster.reach(peer_id)
        held = None if link is None else self._table.lanes.held(link.route)
        return held is not None and object_id in held

    def _add_read(
        self, peer_id: PeerId, message: Accept | State, register: Register,
        change: Change,
    ) -> None:  # fmt: skip
        found = _as_read(message, register, change)
        if found is not None:
            self.add(peer_id, found)

    def _complain(
        self, peer_id: PeerId, object_id: ObjectId, error: BaseException | None
    ) -> None:
        reason = error if error is not None else "no state of it is here"
        self._table.note(
            "warning", f"a copy was not sent object={object_id.hex()} "
            f"peer={self._cluster.name_of(peer_id)} reason={reason}",
        )  # fmt: skip
        if isinstance(error, ActiveStoreError):
            self._met(error)

    def flush(self) -> None:
        """Send what has gathered, in as few messages as they fit in."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, {}
        for peer_id, messages in waiting.items():
            record = self._cluster.membership.record_of(peer_id)
            if record is not None and record.protocol < REPLICAS_SINCE:
                continue  # It would take this for garbage.
            link = self._cluster.reach(peer_id)
            if link is None:
                continue
            held = self._table.lanes.held(link.route)
            if held is None:
                for batch in _batches(messages, ENTRIES_BYTES_MAX):
                    body, buffers = encode_entries(batch)
                    self._cluster.send(link, Replicate(None, body, buffers))
                continue
            passing, others = _parted(messages, held)
            for batch in (
                *_batches(passing, WHOLE_BYTES_MAX),
                *_batches(others, ENTRIES_BYTES_MAX),
            ):
                body, buffers = encode_entries(batch)
                lines = {message.object_id for message in batch}
                self._cluster.send(link, Replicate(None, body, buffers), lines)


def _as_read(
    message: Accept | State, register: Register, change: Change | None
) -> ReplicaMessage | None:
    """Return a message with the state that was read for it.

    None for an Accept where the state on disk is of another epoch: it is nothing that
    this one's leader proposed. Whoever leads says again what is still wanted.
    """
    if type(message) is Accept and message.epoch != register.epoch:
        return None
    shipment = None
    if change is not None:
        shipment = Shipment(*shipping.pack_change(change))  # type: ignore[arg-type]  # no files
    if type(message) is Accept:
        return message._replace(
            number=register.number, config=register.config,
            is_deleted=register.is_deleted, change=shipment,
        )  # fmt: skip
    return message._replace(  # type: ignore[call-arg]
        at=register.point, config=register.config, is_deleted=register.is_deleted,
        change=shipment,
    )  # fmt: skip


def _parted(
    messages: Sequence[ReplicaMessage], held: Collection[bytes]
) -> tuple[list[ReplicaMessage], list[ReplicaMessage]]:
    """Return the entries that may pass what waits, and those that go in their turn.

    `held`: the objects of which something waits; what is behind it waits too.
    """
    passing: list[ReplicaMessage] = []
    others: list[ReplicaMessage] = []
    behind: set[ObjectId] = set()
    room = PASSING_BYTES_MAX
    for message in messages:
        object_id, size = message.object_id, _bytes_count_of(message)
        is_behind = object_id in held or object_id in behind
        if is_behind or size > min(room, WHOLE_BYTES_MAX):
            behind.add(object_id)
            others.append(message)
        else:
            room -= size
            passing.append(message)
    return passing, others


def _batches(
    messages: Sequence[ReplicaMessage], bytes_max: int
) -> list[list[ReplicaMessage]]:
    """Return entries in batches that one message may have.

    What is larger than that alone has a message of its own.
    """
    batches: list[list[ReplicaMessage]] = [[]]
    size = 0
    for message in messages:
        added = _bytes_count_of(message)
        if len(batches[-1]) >= ENTRIES_MAX or size + added > bytes_max:
            batches.append([])
            size = 0
        size += added
        batches[-1].append(message)
    return [one for one in batches if one]


def _bytes_count_of(message: ReplicaMessage) -> int:
    """Return about the size of an entry, with the change that it carries and its buffers."""
    size = _ENTRY_BYTES + 4 * len(getattr(message, "text", ""))
    change = getattr(message, "change", None)
    if change is None:
        return size
    return size + bytes_count(change.body) + sum(map(bytes_count, change.buffers))
