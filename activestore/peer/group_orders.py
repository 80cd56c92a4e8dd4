"""Commits of this peer that groups must have too, while they are under way.

Rules of this file: data only; see `replicating`.
"""

from __future__ import annotations

from collections.abc import Sequence

from activestore.ids import ObjectId


class GroupOrder:
    """One commit of this peer's disk that has writes of groups.

    `writes`: objects and numbers; `open`: those that no majority has yet, and that are led
    here still. `children`: made with them; they have their copies before the others hear
    of who refers to them. `is_stored`: the commit has ended; `is_on_disk`: the core of
    replication knows, which waits for that whoever leads.
    """

    __slots__ = (
        "children", "is_on_disk", "is_refused", "is_stored", "open", "token", "writes",
    )  # fmt: skip

    def __init__(
        self,
        token: int,
        writes: dict[ObjectId, list[int]],
        children: Sequence[ObjectId],
    ) -> None:
        self.token = token
        self.writes = writes
        self.open = set(writes)
        self.children = children
        self.is_stored = self.is_on_disk = self.is_refused = False
