"""Commits of this peer that groups must have too, while they are under way.

Rules of this file: it keeps, and carries nothing out; see `replicating`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from activestore.core.replication import Replication
from activestore.core.replication_events import (
    ForceOrdered,
    GroupWanted,
    LeadHandedOver,
)
from activestore.errors import ActiveStoreError, UnavailableError
from activestore.ids import ObjectId, PeerId
from activestore.storage.engine import Change
from activestore.wire.state import buffer_bytes_count

Decided = Callable[[ActiveStoreError | None], None]
Regrouping: TypeAlias = "GroupWanted | ForceOrdered | LeadHandedOver"


class GroupOrder:
    """One commit of this peer's disk that has writes of groups.

    `writes`: objects and numbers; `open`: those that no majority has yet, and that are led
    here still. `children`: made with them, by a method of `parent`; they have their copies
    before the others hear of who refers to them. `is_stored`: the commit has ended;
    `is_on_disk`: the core of replication knows, which waits for that whoever leads.
    """

    __slots__ = (
        "children", "is_on_disk", "is_refused", "is_stored", "open", "parent", "token",
        "writes",
    )  # fmt: skip

    def __init__(
        self,
        token: int,
        writes: dict[ObjectId, list[int]],
        children: Sequence[ObjectId],
        parent: ObjectId,
    ) -> None:
        self.token = token
        self.writes = writes
        self.parent = parent
        self.open = set(writes)
        self.children = children
        self.is_stored = self.is_on_disk = self.is_refused = False


class OwnWrites:
    """Who waits for writes that no call makes; their tokens are below 0, calls' above."""

    def __init__(self) -> None:
        self._waiting: dict[int, Decided] = {}
        self._next_token = -1

    def add(self, then: Decided) -> int:
        """Return the token of a write whose end `then` is told."""
        token, self._next_token = self._next_token, self._next_token - 1
        self._waiting[token] = then
        return token

    def ended(self, token: int, error: ActiveStoreError | None) -> bool:
        """Tell of the end of a commit, once; False where it is that of a call."""
        then = self._waiting.pop(token, None)
        if then is not None:
            then(error)
        return token < 0


class Regroupings:
    """Who waits for changes of groups, and of which: their writes wait for no company."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[ObjectId, Callable[[str], None]]] = {}
        self._next_request = 1

    def add(
        self, make: Callable[[int], Regrouping], then: Callable[[str], None]
    ) -> Regrouping:
        """Return the order of a change; `then(why not)` is told how it ended."""
        request, self._next_request = self._next_request, self._next_request + 1
        order = make(request)
        self._waiting[request] = order.object_id, then
        return order

    def ended(self, request: int, why_not: str) -> None:
        """Tell of the end of a change, once."""
        _, then = self._waiting.pop(request, (None, None))
        if then is not None:
            then(why_not)

    def has_any(self, object_ids: Iterable[ObjectId]) -> bool:
        """Whether the group of one of these is to change."""
        open_ids = [object_id for object_id, _ in self._waiting.values()]
        return bool(open_ids) and any(one in open_ids for one in object_ids)

    def __len__(self) -> int:
        return len(self._waiting)


def size_of(change: Change) -> int:
    """Return about how many bytes a change brings."""
    source = change.delta or change.state
    if source is None:
        return 0
    fields = sum(map(len, source.fields.values())) + len(source.graph or b"")
    return fields + sum(
        buffer_bytes_count(one) for one in source.buffers if not isinstance(one, int)
    )


def why_each(
    core: Replication, object_id: ObjectId, name_of: Callable[[PeerId], str]
) -> str:
    """Return which voters of a group do not take part, and why, behind a text."""
    found = core.why_each(object_id)
    return "".join(f"; {name_of(peer_id)}: {why}" for peer_id, why in found)


def not_led(object_id: ObjectId) -> UnavailableError:
    """Return the error of a write whose object is led elsewhere now."""
    return UnavailableError(named(object_id), "another peer leads it now, or will")


def named(object_id: ObjectId) -> str:
    """Return what an object is called in an error."""
    return f"object {object_id.hex()}"
