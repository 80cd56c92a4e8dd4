"""Groups that lack copies get them again.

A member that does not answer for `repair_after_s` is replaced, where there is a peer that
can take its place; a group that was made smaller than what was asked for grows as soon as
there is one. `replicate` does the same at once.

Rules of this file: only groups that are led here are mended; a look takes few of them, and
what is told of them all is what the looks found, so that nothing here grows with their
number. Nothing is taken away before its replacement is there. Copies that nobody counts:
see `rollcall`.

Source: design section 8; reliability.md 3.4 R8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

from activestore.core.peers import PeerState
from activestore.core.refusals import UNREACHABLE
from activestore.core.register import Register, has_quorum
from activestore.core.replication_events import AS_BEFORE
from activestore.ids import ObjectId, PeerId
from activestore.peer.loop import PeerLoop
from activestore.peer.rollcall import Rollcall
from activestore.wire.replicas import Config

# Registers that are looked at in one look, and groups that are mended at once.
LOOKED_MAX = 1000
OPEN_MAX = 16
# A peer of which nobody has heard so long after a start does not answer, in seconds.
UNKNOWN_S = 15.0
# Rows that are told of at once.
ROWS_MAX = 100
# One that could not be mended is tried again after this, in seconds; twice as long each
# time, up to the other, while the same peers are there: who refuses a copy is sent the
# whole state each time, and each time is written to the disks of the group.
AGAIN_S = 10.0
AGAIN_S_MAX = 320.0


SetGroup = Callable[
    [ObjectId, int, bool, Sequence[PeerId], Sequence[PeerId], Callable[[str], None]],
    None,
]


class Repairing:
    """What one peer does about groups that lack copies."""

    def __init__(self, loop: PeerLoop, set_group: SetGroup) -> None:
        self._loop = loop
        self._set_group = set_group
        self._core = loop.replicating.core
        self._refused = loop.replicating.refused
        self._ids: Iterator[ObjectId] = iter(())
        # Since when a peer is not reachable.
        self._gone_s: dict[PeerId, float] = {}
        # Who was told to be gone although nobody has ever heard of it.
        self._told_gone: set[PeerId] = set()
        self._begun_s = loop.clock()
        # Groups that lacked copies when they were looked at last: in the round before, and
        # in this one. None is in both.
        self._under: dict[ObjectId, None] = {}
        self._found: dict[ObjectId, None] = {}
        # Whether groups of a config lack copies now; most objects share theirs with others.
        self._short: dict[int, tuple[Config, bool]] = {}
        self._open: set[ObjectId] = set()
        self._failed_s: dict[ObjectId, float] = {}
        self._why: dict[ObjectId, str] = {}
        self._tries: dict[ObjectId, int] = {}
        self._live: frozenset[bytes] = frozenset()
        self.repaired_count = 0
        self._namesakes: dict[PeerId, PeerId | None] = {}  # of one telling
        self._rollcall = Rollcall(loop)

    def look(self, now_s: float) -> None:
        """Look at some groups, and mend those that need it."""
        self._loop.replicating.copying.remove_again()
        if not self._core.registers:
            return
        self._look_at_peers(now_s)
        self._rollcall.look(now_s)
        self._short.clear()
        is_noted = len(self._core.registers) > LOOKED_MAX
        for _ in range(LOOKED_MAX):
            object_id = next(self._ids, None)
            if object_id is None:
                self._begin_anew()
                return
            register = self._core.register_of(object_id)
            if is_noted:
                self._note(object_id)
            if register is not None and self._core.is_led(object_id):
                self._look_at(object_id, register, now_s)

    def _begin_anew(self) -> None:
        """Begin another round over all registers, and forget what is not here any more."""
        self._ids = iter(list(self._core.registers))
        self._refused.intersection_update(self._core.registers)
        self._under, self._found = self._found, {}
        self._failed_s = {
            one: when_s
            for one, when_s in self._failed_s.items()
            if self._core.is_led(one)
        }
        self._why = {one: self._why[one] for one in self._failed_s}
        self._tries = {one: self._tries.get(one, 0) for one in self._failed_s}

    def _look_at_peers(self, now_s: float) -> None:
        cluster = self._loop.cluster
        if self._failed_s:
            live = frozenset(one.peer_id for one in cluster.membership.live())
            if live != self._live:
                self._live = live
                self._tries.clear()
        for peer_id in list(cluster.membership.members):
            if cluster.is_reachable(PeerId(peer_id)):
                self._gone_s.pop(PeerId(peer_id), None)
                self._told_gone.discard(PeerId(peer_id))
            else:
                self._gone_s.setdefault(PeerId(peer_id), now_s)

    def _look_at(self, object_id: ObjectId, register: Register, now_s: float) -> None:
        config = register.config
        gone = self.gone(config.voters)
        for one in gone:
            # Perhaps it is in no list of members: all who knew it have restarted.
            self._gone_s.setdefault(one, now_s)
            if one not in self._told_gone and now_s - self._begun_s >= UNKNOWN_S:
                self._told_gone.add(one)
                self._loop.replicating.peer_seen(one, is_reachable=False)
        # A change of it was cut short. Of what is deleted votes only go.
        is_wrong = _lacks(register) or _exceeds(register)
        is_wrong &= not register.is_deleted
        if not (is_wrong or gone):
            self._forget_failures(object_id)  # An operator may have mended it.
            return
        after_s = self._loop.settings.repair_after_s
        leaving = [
            one for one in gone if now_s - self._gone_s.get(one, now_s) >= after_s
        ]
        failed_s = self._failed_s.get(object_id)
        again_s = min(AGAIN_S * 2 ** self._tries.get(object_id, 0), AGAIN_S_MAX)
        is_due = failed_s is None or now_s - failed_s >= again_s
        if (is_wrong or leaving) and is_due and object_id not in self._open:
            self._mend(object_id, leaving, is_deleted=register.is_deleted)

    def gone(self, voters: Sequence[PeerId]) -> list[PeerId]:
        """Return those of other peers that do not answer, for all that is known."""
        me, cluster = self._loop.settings.peer_id, self._loop.cluster
        return [one for one in voters if one != me and not cluster.is_reachable(one)]

    def _mend(
        self, object_id: ObjectId, leaving: list[PeerId], *, is_deleted: bool
    ) -> None:
        if len(self._open) >= OPEN_MAX:
            return
        self._open.add(object_id)

        def then(why: str) -> None:
            self._open.discard(object_id)
            if why:
                if object_id in self._failed_s:
                    self._tries[object_id] = self._tries.get(object_id, 0) + 1
                self._failed_s[object_id] = self._loop.clock()
                self._why[object_id] = why
                return
            self._forget_failures(object_id)
            if is_deleted:
                return  # That it is gone was told when it was deleted.
            self.repaired_count += 1
            names = ", ".join(map(self._loop.cluster.name_of, leaving)) or "none"
            self._loop.note(
                "info", f"group mended object={object_id.hex()} replaced={names}"
            )

        self._set_group(object_id, AS_BEFORE, False, (), leaving, then)

    def _forget_failures(self, object_id: ObjectId) -> None:
        if object_id in self._failed_s:
            del self._failed_s[object_id]
            self._why.pop(object_id, None)
            self._tries.pop(object_id, None)

    # -- what is told ------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Return how many objects there are of each kind, for `status`.

        `under` is as the looks found it, where all registers are more than one of them.
        """
        self._note_few()
        counts = self._core.counts()._asdict()
        return {**counts, "under": len(self._under) + len(self._found)}

    def rows(self) -> list[dict[str, Any]]:
        """Return what is wrong with groups that this peer is in, alias left out."""
        self._namesakes.clear()
        self._note_few()
        found = []
        for object_id in islice(self._core.quarantined, ROWS_MAX):
            register = self._core.registers[object_id]
            found.append(self._row(object_id, register, "quarantined", ()))
        for object_id in list(islice(chain(self._found, self._under), LOOKED_MAX)):
            if len(found) >= ROWS_MAX:
                break
            short = self._note(object_id)
            if short is not None:
                missing = self._missing(short)
                found.append(self._row(object_id, short, "under", missing))
        return found

    def _note_few(self) -> None:
        """Look at all groups now, where they are no more than one look takes."""
        self._short.clear()
        if len(self._core.registers) <= LOOKED_MAX:
            self._under.clear()
            self._found.clear()
            for object_id in self._core.registers:
                self._note(object_id)

    def _note(self, object_id: ObjectId) -> Register | None:
        """Note whether a group lacks copies; return its register where it does."""
        register = self._core.register_of(object_id)
        self._under.pop(object_id, None)
        if register is not None and self._is_under(object_id, register):
            self._found[object_id] = None
            return register
        self._found.pop(object_id, None)
        return None

    def _is_under(self, object_id: ObjectId, register: Register) -> bool:
        """Whether a group lacks copies, and it is this peer's to say so."""
        if register.is_quarantined or register.is_deleted:
            return False
        config = register.config
        known = self._short.get(id(config))
        if known is None:
            is_short = _lacks(register) or bool(self._missing(register))
            known = self._short[id(config)] = (config, is_short)
        if self._core.is_led(object_id):
            return known[1] or bool(self._refusing(object_id))
        return known[1] and self._loop.relays.routing.is_leaderless(object_id)

    def _refusing(self, object_id: ObjectId) -> dict[PeerId, str]:
        """Return the voters that answer and keep no change, each with why."""
        if object_id not in self._refused:
            return {}
        found = self._core.why_each(object_id)
        refusing = {peer_id: why for peer_id, why in found if why != UNREACHABLE}
        if not refusing and self._core.is_led(object_id):
            self._refused.discard(object_id)
        return refusing

    def _missing(self, register: Register) -> list[PeerId]:
        me, cluster = self._loop.settings.peer_id, self._loop.cluster
        return [
            one
            for one in register.config.voters
            if one != me and cluster.state_of(one) is not PeerState.ALIVE
        ]

    def _namesake(self, peer_id: PeerId) -> PeerId | None:
        """Return who answers under the name of a peer that does not; looked up once."""
        if peer_id not in self._namesakes:
            self._namesakes[peer_id] = self._loop.cluster.namesake_of(peer_id)
        return self._namesakes[peer_id]

    def _shown(self, peer_id: PeerId) -> str:
        """Return a peer's name, with what tells it from another one of that name."""
        name, other = self._loop.cluster.name_of(peer_id), self._namesake(peer_id)
        if other is None:
            return name
        return (
            f"{name} with the id {peer_id.hex()} (a {name} that runs has the id "
            f"{other.hex()}: the data directory of the first was lost or changed)"
        )

    def _row(
        self, object_id: ObjectId, register: Register, problem: str,
        missing: Sequence[PeerId],
    ) -> dict[str, Any]:  # fmt: skip
        config = register.config
        name_of = self._loop.cluster.name_of
        names = [self._shown(one) for one in missing]
        lost = [one for one in missing if self._namesake(one)]
        refusing = {} if register.is_quarantined else self._refusing(object_id)
        refused = [f"{name_of(one)}: {why}" for one, why in refusing.items()]
        failed = self._why.get(object_id, "")
        without = {*missing, *refusing}
        return {
            "object_id": object_id,
            "problem": problem,
            "copies": sum(one not in without for one in config.members),
            "wanted": config.wanted,
            "wants_witness": config.wants_witness,
            "has_witness": bool(config.witness) and config.witness not in without,
            "missing": names,
            "lost": [self._shown(one) for one in lost],
            "reason": "; ".join(
                [*refused, *self._reasons(object_id, register, missing, failed)]
            ),
            "is_refused": bool(refused or failed),
        }

    def _reasons(
        self,
        object_id: ObjectId,
        register: Register,
        missing: Sequence[PeerId],
        failed: str,
    ) -> list[str]:
        if register.is_quarantined:
            return [
                "its group was forced at another peer: this copy is history; export what "
                "is wanted of it"
            ]
        number = self._core.missing_number(object_id)
        names = ", ".join(map(self._shown, missing))
        if missing and number is not None:
            return [
                f"the newest state, number {number}, is lost or away with "
                f"{names}, which does not answer: wait for it, or `force` "
                "this copy, which gives that state up"
            ]
        if missing:
            after_s = self._loop.settings.repair_after_s
            text = f"{names} does not answer; "
            there = set(register.config.voters).difference(missing)
            if not has_quorum(register.config, there):
                return [text + "there is no majority, so that nobody can replace it"]
            return [
                text + f"it is replaced {after_s:g} s after it went, or at once by "
                "`replicate`, where there is a peer for it"
            ]
        if failed or not _lacks(register):
            return [failed] if failed else []
        return ["a copy is being made"]


def _exceeds(register: Register) -> bool:
    config = register.config
    return len(config.members) > config.wanted or (
        bool(config.witness) and not config.wants_witness
    )


def _lacks(register: Register) -> bool:
    config = register.config
    return len(config.members) < config.wanted or (
        config.wants_witness and not config.witness
    )
