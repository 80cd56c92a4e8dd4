"""Who has an object, and of which state an answer is; imported where somebody asks.

Rules of this file: data only; what a peer of a later version tells beyond is left out,
and what one does not tell is an error that says so.

Source: schemas/protocol.md sections 4 and 6.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from activestore.errors import RemoteProtocolError

PRIMARY, REPLICA, WITNESS, LEARNER = "primary", "replica", "witness", "learner"
ALIVE = "alive"
# Whose members keep the state.
KEEPERS = (PRIMARY, REPLICA)


class Member(NamedTuple):
    """One peer of a group.

    `role`: "primary", "replica", "witness", or "learner" for one that is to become a
    member. `state`: "alive", "suspect", "dead", "left" or "unknown", as the peer that was
    asked believes. `number`: of the newest state that it is known to have. `lag`: how
    many changes that is behind. Both are None where nothing was heard of it. `reason`:
    why it takes no changes although it answers, such as a full disk; "" where it does.
    """

    peer_id: bytes
    peer: str
    role: str
    state: str
    number: int | None = None
    lag: int | None = None
    reason: str = ""


class Group(NamedTuple):
    """Who has an object.

    `epoch`: grows with every leader. `number`: of the newest committed state; grows by
    one with every change. `version`: the object's own. `wanted`: copies that were asked
    for, `wants_witness`: and a witness. `config_version`: grows with every change of the
    group. `lineage`: 0, or another number since an operator forced it.
    `is_quarantined`: the copy at the peer that was asked is of a lineage that was
    replaced. `is_joint`: the group is changing at the moment.
    """

    members: tuple[Member, ...]
    epoch: int = 0
    number: int = 0
    version: int = 0
    wanted: int = 1
    wants_witness: bool = False
    config_version: int = 0
    lineage: int = 0
    is_quarantined: bool = False
    is_joint: bool = False

    @property
    def primary(self) -> str:
        """The name of the peer that leads; "" where none is known to."""
        return next((one.peer for one in self.members if one.role == PRIMARY), "")

    @property
    def copies(self) -> int:
        """How many members keep the state; a witness does not, a learner is none yet."""
        return sum(one.role in KEEPERS for one in self.members)

    @property
    def is_whole(self) -> bool:
        """Whether as many copies as are wanted are at peers that answer and keep up.

        Never where the copy at the peer that was asked is quarantined.
        """
        if self.is_quarantined:
            return False
        is_witnessed = any(one.role == WITNESS for one in self._living)
        is_all = self.copies_living >= self.wanted
        return is_all and (is_witnessed or not self.wants_witness)

    @property
    def copies_living(self) -> int:
        """How many of the copies are at peers that answer and keep up."""
        return sum(one.role in KEEPERS for one in self._living)

    @property
    def _living(self) -> list[Member]:
        return [one for one in self.members if one.state == ALIVE and not one.reason]


class Info(NamedTuple):
    """Of which state an answer is.

    `version`: the object's own number of changes. `epoch`, `number`: who led then, and
    which of its states it is. `age_s`: how long ago the copy that answered was last known
    to be the newest, in seconds; 0 where it is. `peer`: who answered, by name where that
    is known here, else the id in hex.
    """

    version: int
    epoch: int
    number: int
    age_s: float
    peer: str


def group_of(told: Any, where: str) -> Group:
    """Return a group as a peer tells it.

    Raises:
        RemoteProtocolError: it is no group.
    """
    try:
        members = tuple(
            Member(
                bytes(one["peer_id"]), str(one["peer"]), str(one["role"]),
                str(one["state"]), _optional(one.get("number")), _optional(one.get("lag")),
                str(one.get("reason", "")),
            )
            for one in told["members"]
        )  # fmt: skip
        known = {name: told[name] for name in Group._fields[1:] if name in told}
        return Group(members, **known)
    except (KeyError, TypeError, AttributeError) as error:
        raise RemoteProtocolError(f"the answer is no group: {error!r}", where) from None


def _optional(value: Any) -> int | None:
    return None if value is None else int(value)


def info_of(
    told: Mapping[str, Any] | None, name_of: Callable[[bytes], str], where: str
) -> Info:
    """Return what an answer tells of its state.

    Raises:
        RemoteProtocolError: it does not tell, as peers of earlier versions do not.
    """
    told = told or {}
    numbers = [told.get(key) for key in ("version", "epoch", "number", "age_ms")]
    peer_id = told.get("peer_id")
    if type(peer_id) is not bytes or any(type(one) is not int for one in numbers):
        raise RemoteProtocolError(
            "the answer does not tell of which state it is; install a newer activestore "
            "on the peer that has the object",
            where,
        )
    version, epoch, number, age_ms = numbers
    return Info(version, epoch, number, age_ms / 1000, name_of(peer_id))  # type: ignore[arg-type, operator]  # checked above
