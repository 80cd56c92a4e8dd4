"""Commits of this peer that groups must have too, while they are under way.

Rules of this file: data only; see `replicating`.
"""

from __future__ import annotations

from collections.abc import Sequence

from activestore.ids import ObjectId


class GroupOrder:
    """One commit of this peer's disk that has writes of groups.

    `writes`: objects and numbers; `open`: those that no majority has yet. `children`: made
    with them; they have their copies before the others hear of who refers to them.
    `is_in_doubt`: one of them is not led here any more; the core of calls knows, and the
    core of replication waits still for what this disk makes of it.
    """

    __slots__ = (
        "children", "is_in_doubt", "is_on_disk", "is_refused", "open", "token", "writes",
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
        self.is_on_disk = self.is_refused = self.is_in_doubt = False
