"""The rules of an acceptor hold for any order of messages, leaders and answers of a disk.

Source: reliability.md 3.4 R1, R2, R8; decision 11.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from activestore.core.register import (
    Register,
    electorate,
    has_quorum,
    missing_votes,
    pack_register,
    reach,
    unpack_register,
)
from activestore.core.replication import Replication
from activestore.core.replication_effects import Send, Store
from activestore.core.replication_events import MessageCame, Stored
from activestore.ids import ObjectId, PeerId
from activestore.wire.replicas import (
    Accept,
    Accepted,
    Ballot,
    Config,
    Nack,
    Point,
    Prepare,
    Promise,
    Reason,
)

PEERS = tuple(PeerId(bytes([97 + n]) * 6) for n in range(6))
ME, LEADERS = PEERS[0], PEERS[1:4]
OBJECT = ObjectId(b"o" * 16)
CONFIG = Config(1, (ME, *LEADERS), wanted=4)

peers = st.lists(st.sampled_from(PEERS), min_size=1, max_size=6, unique=True)
ballots = st.builds(Ballot, st.integers(1, 4), st.sampled_from(LEADERS))


class Asked(NamedTuple):
    """A message, and whether the disk does what comes of it."""

    message: Prepare | Accept
    is_stored: bool


prepares = st.builds(Prepare, st.just(OBJECT), ballots, st.just(CONFIG))
points = st.builds(Point, st.integers(0, 4), st.integers(1, 4))
accepts = st.builds(
    lambda epoch, number, base, is_whole: Accept(
        OBJECT, epoch, number, None if is_whole else base, CONFIG, False, 0,
        change="whole" if is_whole else "delta",
    ),
    ballots, st.integers(1, 5), points, st.booleans(),
)  # fmt: skip
asked = st.builds(Asked, prepares | accepts, st.booleans())


@settings(max_examples=300, deadline=None)
@given(st.lists(asked, max_size=30))
def test_an_acceptor_never_goes_back_on_its_word(history: list[Asked]) -> None:
    core = Replication(ME, None, lambda: 0.5)
    start = Register(Ballot(1, LEADERS[0]), Ballot(1, LEADERS[0]), 1, CONFIG)
    core.restore(OBJECT, start)
    disk, promised, leaders = start, 1, {1: LEADERS[0]}

    for now_s, (message, is_stored) in enumerate(history):
        sender = message.epoch.leader
        effects = list(core.step(MessageCame(sender, message), float(now_s)))
        while effects:
            effect = effects.pop(0)
            if isinstance(effect, Store):
                fits = effect.base in {None, disk.point}
                if is_stored and fits:
                    assert effect.register.promised.counter >= disk.promised.counter
                    assert effect.register.point >= disk.point
                    disk = effect.register
                problem = "" if is_stored and fits else "space" if fits else "base"
                effects += core.step(Stored(effect.token, problem), float(now_s))
            if not isinstance(effect, Send):
                continue
            if isinstance(effect.message, Promise | Accepted):
                epoch = effect.message.epoch
                assert disk.promised == epoch, "said before it was on disk"
                assert epoch.counter >= promised
                promised = epoch.counter
                assert leaders.setdefault(promised, epoch.leader) == epoch.leader
            if isinstance(effect.message, Promise):
                assert effect.message.accepted == disk.point
        core.check()
        assert core.register_of(OBJECT) == disk


@given(st.integers(2, 5))
def test_a_delta_is_taken_only_where_its_base_is(at: int) -> None:
    core = Replication(ME, None, lambda: 0.5)
    leader = LEADERS[0]
    core.restore(OBJECT, Register(Ballot(9, leader), Ballot(9, leader), at, CONFIG))
    core.take_effects()

    for number, base in itertools.product(range(at + 1, 7), range(1, 7)):
        message = Accept(
            OBJECT,
            Ballot(9, leader),
            number,
            Point(9, base),
            CONFIG,
            False,
            0,
            False,
            "d",
        )
        effects = core.step(MessageCame(leader, message), 0.0)
        if base != at:
            assert isinstance(effects[0], Send)
            assert isinstance(effects[0].message, Nack)
            assert effects[0].message.reason is Reason.BASE
        else:
            assert isinstance(effects[0], Store)
            core.step(Stored(effects[0].token, "space"), 0.0)


@given(peers, st.dictionaries(st.sampled_from(PEERS), st.integers(0, 9)), st.data())
def test_reached_is_what_a_majority_of_both_groups_has(
    members: list[PeerId], reached: dict[PeerId, int], data: st.DataObject
) -> None:
    before = data.draw(st.one_of(st.just([]), peers))
    config = Config(2, tuple(members), before=tuple(before))

    number = reach(config, lambda peer: reached.get(peer, 0))

    for group in filter(None, (members, before)):
        have = [peer for peer in group if reached.get(peer, 0) >= number]
        assert 2 * len(have) > len(group)
    more = [
        group
        for group in filter(None, (members, before))
        if 2 * sum(reached.get(peer, 0) > number for peer in group) <= len(group)
    ]
    assert more, "a majority of both has more"


@given(peers, peers, st.sets(st.sampled_from(PEERS)), st.sets(st.sampled_from(PEERS)))
def test_majorities_of_a_change_meet_those_before_and_after(
    old: list[PeerId], new: list[PeerId], some: set[PeerId], others: set[PeerId]
) -> None:
    joint = Config(2, tuple(new), before=tuple(old))
    if not has_quorum(joint, some):
        present, needed = missing_votes(joint, some)
        assert present < needed
        return

    for config in (Config(1, tuple(old)), Config(2, tuple(new)), joint):
        if has_quorum(config, others):
            assert some & others & set(electorate(config))


@given(
    ballots, ballots, st.integers(0, 2**63), peers, st.lists(st.booleans(), min_size=5)
)
def test_a_register_comes_back_from_disk_as_it_was(
    promised: Ballot,
    epoch: Ballot,
    number: int,
    members: list[PeerId],
    flags: list[bool],
) -> None:
    config = Config(3, tuple(members), members[0], (), 3, flags[0], 2**62)
    register = Register(
        promised, epoch, number, config, flags[0], flags[1], flags[2], 1.5, flags[3],
        flags[4],
    )  # fmt: skip

    assert unpack_register(pack_register(register)) == register
