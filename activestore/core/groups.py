"""How a group becomes the one that is wanted: the next single change, as functions.

Growing first, one new member at a time, then the witness, then shrinking: so there are
never fewer copies than before and than wanted. Who does not answer goes first, a leader
that is to leave goes last.

    {A} --grow--> {A, B} --grow--> {A, B, C} --shrink--> {B, C}

Rules of this file: it decides and holds no object; each change is committed by the
majorities of both configs before the next is asked for.

Source: reliability.md R8; decision 11.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from activestore.core.replication_events import FEWER, GroupWanted
from activestore.ids import PeerId
from activestore.wire.replicas import NOBODY, Config


class Plan:
    """A wanted group on its way."""

    __slots__ = (
        "candidates",
        "deadline_s",
        "is_begun",
        "is_fewer",
        "is_witness",
        "learner",
        "leaving",
        "refused",
        "request",
        "stopped",
        "wanted",
        "wants_witness",
    )

    def __init__(self, event: GroupWanted) -> None:
        self.request = event.request
        self.is_begun = event.wanted > 0
        self.is_fewer = event.wanted == FEWER  # nobody comes for those that leave
        self.wanted = max(1, event.wanted)
        self.wants_witness = event.wants_witness
        self.candidates = deque(event.candidates)
        self.leaving = frozenset(event.leaving)
        self.learner = NOBODY  # who is being sent the state
        self.is_witness = False  # is it to become the witness?
        self.deadline_s = 0.0
        self.refused: list[str] = []
        self.stopped = ""  # why the next change cannot be made

    def begin(self, config: Config) -> None:
        """Want what is wanted now, where nothing else was asked for."""
        if not self.is_begun:
            self.is_begun = True
            self.wanted, self.wants_witness = config.wanted, config.wants_witness

    def goal_of(self, config: Config) -> Config:
        """Return a config with what is wanted noted in it."""
        return config._replace(wanted=self.wanted, wants_witness=self.wants_witness)


def stays(plan: Plan, config: Config) -> list[PeerId]:
    """Return the members that are not to leave."""
    return [member for member in config.members if member not in plan.leaving]


def lacks_member(plan: Plan, config: Config) -> bool:
    """Return whether one more must hold the state."""
    return not plan.is_fewer and len(stays(plan, config)) < plan.wanted


def lacks_witness(plan: Plan, config: Config) -> bool:
    """Return whether a witness is wanted, and there is none that stays."""
    has_one = bool(config.witness) and config.witness not in plan.leaving
    return plan.wants_witness and not has_one and not plan.is_fewer


def changing_roles(
    plan: Plan, config: Config, me: PeerId
) -> tuple[PeerId, Config] | None:
    """Return who leaves to come back in the other role, as nobody else can take it.

    The witness, to hold a copy, or a member that is one too many, to be the witness; and
    the config without it.
    """
    witness = config.witness
    if lacks_member(plan, config):
        if not witness or plan.wants_witness or witness in plan.leaving:
            return None
        return witness, changed(plan, config, config.members, NOBODY)
    free = [one for one in stays(plan, config) if one != me]
    if witness or len(stays(plan, config)) <= plan.wanted or not free:
        return None
    rest = tuple(one for one in config.members if one != free[-1])
    return free[-1], changed(plan, config, rest, NOBODY)


def next_candidate(plan: Plan, config: Config) -> PeerId:
    """Return who is asked next, NOBODY where all were; it is asked once."""
    while plan.candidates:
        candidate = plan.candidates.popleft()
        if candidate not in config.voters and candidate not in plan.leaving:
            return candidate
    return NOBODY


def with_learner(plan: Plan, config: Config) -> Config:
    """Return the config in which the new one has a vote."""
    if plan.is_witness:
        return changed(plan, config, config.members, plan.learner)
    return changed(plan, config, (*config.members, plan.learner), config.witness)


def victims(
    plan: Plan, config: Config, me: PeerId, rank: Callable[[PeerId], Any]
) -> list[PeerId]:
    """Return who may go now, in the order in which they had better go.

    `rank`: orders others, the least useful one first. The leader counts votes until the
    end, and goes only where nobody else is to leave.
    """
    staying = stays(plan, config)
    going = [one for one in config.members if one in plan.leaving]
    if len(staying) > plan.wanted:
        going += [one for one in staying if one != me]
    if len(config.members) == 1:
        going = []
    if len(going) > 1:
        going = [one for one in going if one != me]
    # One copy is better off without a witness: neither could be spared.
    is_alone = plan.is_fewer and len(staying) == 1
    is_over = is_alone or not plan.wants_witness or config.witness in plan.leaving
    if config.witness and is_over:
        going.append(config.witness)
    going.reverse()  # Who came last goes first, where all else is the same.
    return sorted(going, key=rank)


def without(plan: Plan, config: Config, victim: PeerId) -> Config:
    """Return the config with one fewer."""
    rest = tuple(peer for peer in config.members if peer != victim)
    return changed(
        plan, config, rest, NOBODY if victim == config.witness else config.witness
    )


def noted(plan: Plan, config: Config) -> Config | None:
    """Return the config with only the goal changed, None where it is the same."""
    if plan.goal_of(config) == config:
        return None
    return changed(plan, config, config.members, config.witness)


def changed(
    plan: Plan, config: Config, members: tuple[PeerId, ...], witness: PeerId
) -> Config:
    """Return the next version of a config, which both majorities must commit."""
    return plan.goal_of(config)._replace(
        version=config.version + 1,
        members=members,
        witness=witness,
        before=config.voters,
    )
