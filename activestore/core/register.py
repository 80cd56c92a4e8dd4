"""The register of one object at one peer, and the rules of an acceptor, as functions.

Rules of this file: pure data and pure functions; every change of a register is on disk
before anybody is told of it, which is the acceptor's business.

Source: reliability.md 3.2, 3.4 R1, R2 and R8.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any, NamedTuple

from activestore.errors import CorruptRecordError
from activestore.ids import PeerId
from activestore.wire import packing
from activestore.wire.replicas import (
    Accept,
    Ballot,
    Config,
    Point,
    Prepare,
    Promise,
    Reason,
)

# A lineage: how often the group was forced, and chance below it. Source: decision 11.
LINEAGE_CHANCE_BITS = 48


class Register(NamedTuple):
    """What one peer has on disk of the register of one object.

    `promised`: no older epoch is taken. `epoch`, `number`: of the state that is kept, or,
    at a witness, that was accepted. `is_deleted`: that state is that it is deleted.
    `is_voter`: False for a copy that is to become a member. `changed_s`: when, wall clock.
    `is_lost`: the state cannot be read any more; what was promised and accepted holds all
    the same, so it votes as a witness does, and takes no delta, until a whole state came.
    `is_stateless`: a witness, or one that is to become it.
    """

    promised: Ballot
    epoch: Ballot
    number: int
    config: Config
    is_deleted: bool = False
    is_voter: bool = True
    is_quarantined: bool = False
    changed_s: float = 0.0
    is_lost: bool = False
    is_stateless: bool = False

    @property
    def point(self) -> Point:
        """Which state is kept."""
        return Point(self.epoch.counter, self.number)

    @property
    def has_state(self) -> bool:
        """Whether the state, or that it is deleted, can be read here."""
        return not self.is_stateless and not self.is_lost


class Heard(NamedTuple):
    """What a peer knows of what is committed; `at_s`: when its state was vouched for.

    `committed`: the number up to which all of the epoch is. `at_s`: on the clock of the
    core, when the state on this disk was last known to be the newest; None: never.
    """

    epoch: Ballot
    committed: int
    at_s: float | None


class Vouch(NamedTuple):
    """The same beside a register on disk, for the next start of its peer.

    `at_ms`: milliseconds since 1970, by the wall clock of this machine as `kept_time` has
    it, which does not go back.
    """

    committed: int
    at_ms: int


class RegisterCounts(NamedTuple):
    """How many registers of one peer are of which kind.

    Each is of one; those of deleted objects, which wait for all to know, are of none.
    """

    led: int
    followed: int
    witnessed: int
    quarantined: int


def electorate(config: Config) -> tuple[PeerId, ...]:
    """Return all whose vote counts, in this config or in the one before, once each."""
    if not config.before:
        return config.voters
    return tuple(dict.fromkeys((*config.voters, *config.before)))


def next_lineage(lineage: int, chance: float) -> int:
    """Return the lineage that begins where a group is forced; `chance`: from 0 up to 1."""
    generation = (lineage >> LINEAGE_CHANCE_BITS) + 1
    return (generation << LINEAGE_CHANCE_BITS) + int(chance * 2**LINEAGE_CHANCE_BITS)


def _reach_of(voters: tuple[PeerId, ...], reached: Callable[[PeerId], int]) -> int:
    """Return the highest number that a majority of the voters has reached."""
    return sorted(map(reached, voters))[(len(voters) - 1) // 2]


def reach(config: Config, reached: Callable[[PeerId], int]) -> int:
    """Return the highest number that is reached by a majority, or by both.

    `reached`: tells how far a peer got. Where `before` is not empty, majorities of the
    config before and of this one are needed. Source: reliability.md R8.
    """
    number = _reach_of(config.voters, reached)
    if config.before:
        number = min(number, _reach_of(config.before, reached))
    return number


def has_quorum(config: Config, peers: Container[PeerId]) -> bool:
    """Return whether these peers are a majority, or both majorities."""
    return reach(config, lambda peer: int(peer in peers)) == 1


def missing_votes(config: Config, peers: Container[PeerId]) -> tuple[int, int]:
    """Return how many of these peers have a vote, and how many votes are needed."""
    for voters in (config.before, config.voters):
        present, needed = sum(p in peers for p in voters), len(voters) // 2 + 1
        if voters and present < needed:
            return present, needed
    return sum(p in peers for p in config.voters), len(config.voters) // 2 + 1


def newest_of(promises: Mapping[PeerId, Promise]) -> Promise:
    """Return the promise of the newest state that may be committed.

    One that nobody has any more who promised, as its disk was damaged, is left out where
    those who had it and those who have not answered are no majority: then it was never
    committed, and who promised takes it no more.
    """
    ranked = sorted(
        promises.values(), key=lambda p: (p.accepted, p.has_state), reverse=True
    )
    best = ranked[0]
    if best.has_state or best.is_deleted:
        return best
    known = next((one for one in ranked if one.has_state), None)
    if known is None or known.config != best.config:
        return best
    unheard = set(electorate(best.config)) - promises.keys()
    newer = {p for p, one in promises.items() if one.accepted > known.accepted}
    return best if has_quorum(best.config, newer | unheard) else known


def judge_prepare(register: Register, message: Prepare) -> Reason | None:
    """Return why an epoch is not promised; None where it is.

    Whether its sender has a say is another question; see `standing`.

    Source: reliability.md R1; decision 11: a counter is promised to one leader only.
    """
    if register.is_quarantined or message.config.lineage != register.config.lineage:
        return Reason.LINEAGE
    if message.epoch == register.promised:
        return None
    if message.epoch.counter <= register.promised.counter:
        return Reason.PROMISED
    return None


def judge_accept(register: Register, message: Accept) -> Reason | None:
    """Return why a state is not taken; None where it is, or was.

    Source: reliability.md R2.
    """
    if register.is_quarantined or message.config.lineage != register.config.lineage:
        return Reason.LINEAGE
    epoch, promised = message.epoch, register.promised
    if epoch != promised and epoch.counter <= promised.counter:
        return Reason.PROMISED
    if is_taken(register, message) or is_whole(message):
        return None
    if register.is_stateless:
        return None  # It follows on anything, as long as no state is to be kept.
    is_next = message.base == register.point
    if register.is_lost and message.change is not None:
        is_next = False
    return None if is_next else Reason.BASE


def is_taken(register: Register, message: Accept) -> bool:
    """Return whether what a leader asks to keep is kept, or something after it."""
    return message.epoch == register.epoch and message.number <= register.number


def is_mending(register: Register, message: Accept) -> bool:
    """Return whether an accept brings the very state that is damaged here."""
    is_same = message.number == register.number and message.base is None
    return register.is_lost and is_same and message.change is not None


def is_whole(message: Accept) -> bool:
    """Return whether an accept can be kept whatever was there before."""
    return message.base is None or message.is_deleted


def accepted_by(me: PeerId, register: Register | None, message: Accept) -> Register:
    """Return the register of a peer that takes this state.

    A witness, and who is to become one, are sent no state.
    """
    config, is_lost = message.config, False
    if message.base is None and not message.is_deleted:
        is_stateless = message.change is None
    else:
        is_stateless = register is not None and register.is_stateless
        is_lost = register is not None and register.is_lost and not message.is_deleted
    return Register(
        promised=message.epoch,
        epoch=message.epoch,
        number=message.number,
        config=config,
        is_deleted=message.is_deleted,
        is_voter=me in electorate(config),
        is_lost=is_lost,
        is_stateless=is_stateless or config.witness == me,
    )


# -- what is committed -----------------------------------------------------------------


def is_proof(me: PeerId, message: Accept) -> bool:
    """Return whether a state is committed by being on the disk of this peer too.

    What a leader sends is on its own disk, so these two are often a majority: with three
    voters always. Source: decision 11, "the leader's disk first".
    """
    is_voter = me in electorate(message.config)
    return is_voter and has_quorum(message.config, {me, message.epoch.leader})


def vouch_of(heard: Heard | None, now_s: float, wall_s: float) -> Vouch | None:
    """Return what is kept on disk of what is known; None where that is nothing.

    `wall_s`: the time by which it is dated.
    """
    if heard is None or heard.at_s is None:
        return None
    at_ms = int((wall_s - max(0.0, now_s - heard.at_s)) * 1000)
    return Vouch(heard.committed, at_ms) if at_ms > 0 else None


# -- as bytes --------------------------------------------------------------------------


def pack_register(register: Register, vouch: Vouch | None = None) -> bytes:
    """Return a register as it lies on disk, and what was known of it."""
    return bytes(packing.pack(register if vouch is None else (*register, *vouch)))


def unpack_register(value: bytes) -> Register:
    """Return the register of bytes that `pack_register` made, also by a later version.

    Raises:
        CorruptRecordError: they are no register.
    """
    try:
        promised, epoch, number, config, *more = packing.unpack(value, use_list=False)
        flags = tuple(map(bool, more[:3]))
        return Register(
            _ballot(promised),
            _ballot(epoch),
            int(number),
            _config(config),
            *flags,
            *map(float, more[3:4]),
            *map(bool, more[4:6]),
        )
    except packing.UNPACK_ERRORS as error:
        reason = f"it is none: {str(error)[:80]}"
        raise CorruptRecordError(b"", "row register", reason) from None


def unpack_vouch(value: bytes) -> Vouch | None:
    """Return what was known of a register of these bytes; None where nothing was."""
    try:
        row = packing.unpack(value, use_list=False)
        committed, at_ms = row[len(Register._fields) :][: len(Vouch._fields)]
        return Vouch(int(committed), int(at_ms))
    except packing.UNPACK_ERRORS:
        return None  # An earlier version kept none.


def _ballot(row: Any) -> Ballot:
    counter, leader, *_later = row
    return Ballot(int(counter), PeerId(bytes(leader)))


def _config(row: Any) -> Config:
    version, members, witness, before, wanted, wants_witness, lineage, *_later = row
    return Config(
        int(version), tuple(map(PeerId, members)), PeerId(witness),
        tuple(map(PeerId, before)), int(wanted), bool(wants_witness), int(lineage),
    )  # fmt: skip
