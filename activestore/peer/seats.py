"""Who leaves a group so that peers which are named can be of it.

    replicate N, P named    {A, B, C}, N = 3: P gets a copy, then C gives its up

Rules of this file: pure; it decides and changes nothing. Nobody leaves before who is named
has the state: see `core.groups`.

Source: schemas/protocol.md section 6 (`replicate`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from activestore.errors import InvalidRequestError
from activestore.ids import PeerId
from activestore.wire.replicas import NOBODY, Config


def freed(
    goal: Config,
    leader: PeerId,
    named: Sequence[PeerId],
    leaving: Sequence[PeerId],
    name_of: Callable[[PeerId], str],
) -> list[PeerId]:
    """Return who else leaves, beside `leaving`: who came last first, the leader last.

    Args:
        goal: The group as it is, of a plain object that peer alone, with what is wanted.
        leader: Who leads it.
        named: Who shall have a copy; where a witness is wanted and lacks, one may be that.
        leaving: Who shall have none any more.
        name_of: What a peer is called in texts.

    Raises:
        InvalidRequestError: they cannot all be of it.
    """
    is_witnessed = goal.witness not in (NOBODY, *leaving)
    if goal.wants_witness and is_witnessed and goal.witness in named:
        raise InvalidRequestError(
            f"{name_of(goal.witness)} is the witness of its group, and holds no copy: "
            "have another peer be it first (leaving), or ask for none (no witness)",
            "peers",
        )
    places = goal.wanted + (goal.wants_witness and not is_witnessed)
    if len({*named}) > places:
        reason = f"{len({*named})} peers are named for {goal.wanted} copies"
        raise InvalidRequestError(reason, "peers")
    if goal.voters == (leader,) and goal.wanted == 1 and leader not in named:
        raise InvalidRequestError(
            f"one copy is wanted, and {name_of(leader)} has it: say replicas=2 for one "
            "more, or `move` it",
            "peers",
        )
    staying = [one for one in goal.members if one not in leaving]
    others = [one for one in reversed(staying) if one not in named]
    others.sort(key=lambda one: one == leader)
    return others[: max(0, len({*staying, *named}) - places)]
