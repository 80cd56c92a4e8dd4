"""What peers say of an object in whose group they are not, and what comes of it: nothing.

Who was away while its group was replaced knows none of those who are in it: it believes
whoever has it in a newer group, and what those whom it knows say of the others.

Source: reliability.md 3.4 R8; decision 11.
"""

from __future__ import annotations

from typing import Any

import pytest

from activestore.core.register import Register
from activestore.core.replication import Replication
from activestore.core.replication_effects import (
    Deposed,
    Followed,
    Refused,
    Remove,
    Send,
    SendWhole,
    Store,
)
from activestore.core.replication_events import (
    DeletedFound,
    ForceOrdered,
    GroupFound,
    MessageCame,
    Stored,
)
from activestore.ids import PeerId
from activestore.wire.replicas import (
    Accept,
    Ask,
    Ballot,
    Committed,
    Config,
    Confirm,
    Drop,
    Fetch,
    Forget,
    Nack,
    Point,
    Prepare,
    Promise,
    Reason,
    State,
    Told,
)
from tests.core.test_replication import (
    OBJECT,
    THREE,
    A,
    B,
    C,
    follower,
    leader,
    of,
    pass_time,
    sent,
)

D, E = PeerId(b"d" * 6), PeerId(b"e" * 6)
HIGH = Ballot(99, D)
# A newer group without A, and one that has it still.
WITHOUT_A = Config(9, (B, C, D), wanted=3)
WITH_A = Config(9, (A, D, E), wanted=3)
FORCED = Config(9, (D,), lineage=1 << 50)


def whole(epoch: Ballot, config: Config, *, is_learner: bool = False) -> Accept:
    """Return an Accept that brings a whole state."""
    return Accept(OBJECT, epoch, 8, None, config, False, 0, is_learner, "whole")


@pytest.mark.parametrize(
    "message",
    [
        Prepare(OBJECT, HIGH, THREE),
        Prepare(OBJECT, HIGH, THREE._replace(version=2**60)),
        Prepare(OBJECT, HIGH, WITHOUT_A),
        Prepare(OBJECT, HIGH, WITH_A._replace(members=(A, B, E))),
        Prepare(OBJECT, HIGH, WITH_A._replace(version=1)),
        Prepare(OBJECT, HIGH, FORCED),
        whole(HIGH, THREE),
        whole(HIGH, WITHOUT_A),
        whole(HIGH, WITH_A._replace(version=0)),
        whole(HIGH, FORCED),
        Drop(OBJECT, HIGH, WITHOUT_A),
        Drop(OBJECT, HIGH, FORCED),
        Forget(OBJECT, HIGH, 99),
        Told(OBJECT, HIGH, Point(99, 9), WITHOUT_A, True),
        Told(OBJECT, HIGH, Point(99, 9), FORCED, True),
        Told(OBJECT, HIGH, Point(99, 9), WITH_A, True),
        Nack(OBJECT, HIGH, 8, Reason.LINEAGE, HIGH, FORCED),
        Promise(OBJECT, HIGH, Point(99, 9), FORCED, False, True),
        Committed(OBJECT, Ballot(3, B), 7, True),
        Fetch(OBJECT, Ballot(3, B), Point(3, 7)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_who_is_not_of_the_group_changes_nothing(message: Any) -> None:
    core = follower()
    before = core.register_of(OBJECT)

    effects = core.step(MessageCame(D, message), 1.0)

    assert not of(effects, (Store, Remove, Followed, SendWhole))  # type: ignore[arg-type]
    assert core.register_of(OBJECT) == before
    assert core.leader_of(OBJECT) is None
    if isinstance(message, Prepare | Accept | Drop | Forget):
        ((asker, refusal),) = sent(effects, Nack)
        assert asker == D
        assert "config 1" in refusal.text
        is_forced = isinstance(message, Prepare | Accept) and message.config.lineage
        reason = Reason.LINEAGE if is_forced else Reason.STRANGER
        assert (refusal.reason, refusal.config) == (reason, THREE)


def test_leader_is_not_deposed_by_who_is_not_of_its_group() -> None:
    core, epoch = leader()

    for message in (
        Prepare(OBJECT, HIGH, THREE._replace(version=2**60)),
        whole(HIGH, WITHOUT_A),
        Drop(OBJECT, HIGH, WITHOUT_A),
        Told(OBJECT, HIGH, Point(99, 9), WITHOUT_A, True),
        Nack(OBJECT, epoch, 8, Reason.PROMISED, HIGH),
        Confirm(OBJECT, epoch, 1, 2**40),
    ):
        assert not of(core.step(MessageCame(D, message), 1.0), Deposed)
    assert core.is_led(OBJECT)


def test_operator_is_told_who_speaks_for_a_group_that_it_is_not_in() -> None:
    core = follower()
    prepare = Prepare(OBJECT, HIGH, THREE._replace(version=2**60))

    (refused,) = of(core.step(MessageCame(D, prepare), 1.0), Refused)

    assert (refused.sender, refused.object_id, refused.kind) == (D, OBJECT, "Prepare")
    assert "expected one of the group" in refused.why


def test_who_was_replaced_while_it_was_away_is_no_trouble() -> None:
    """It asks to lead by the older config, and is told of the newer one."""
    core = follower(THREE._replace(version=5))

    effects = core.step(MessageCame(D, Prepare(OBJECT, HIGH, Config(2, (A, D)))), 1.0)

    assert of(effects, Refused) == []
    ((_, refusal),) = sent(effects, Nack)
    assert refusal.reason is Reason.STRANGER


@pytest.mark.parametrize("kind", [Prepare, Accept])
def test_member_that_was_away_while_all_others_were_replaced_votes_for_them(
    kind: type,
) -> None:
    """None of those that it knows is left: the group that has it needs its vote."""
    core = follower()
    message = Prepare(OBJECT, HIGH, WITH_A) if kind is Prepare else whole(HIGH, WITH_A)

    (store,) = of(core.step(MessageCame(D, message), 1.0), Store)
    core.step(Stored(store.token), 1.0)

    register = core.register_of(OBJECT)
    assert register is not None
    assert register.promised == HIGH


def test_copy_that_was_left_over_is_taught_anew_by_who_was_never_heard_of() -> None:
    core = follower()
    message = whole(HIGH, WITHOUT_A, is_learner=True)

    (store,) = of(core.step(MessageCame(D, message), 1.0), Store)

    assert store.register.config == WITHOUT_A
    assert not store.register.is_voter


def test_leader_that_left_the_group_is_known_until_another_leads() -> None:
    """What it sends again, of a group without itself, was taken already."""
    core = follower(Config(2, (A, C), before=(A, B, C)))
    last = Accept(OBJECT, Ballot(3, B), 8, Point(3, 7), Config(2, (A, C)), False, 7)
    (store,) = of(core.step(MessageCame(B, last), 1.0), Store)
    core.step(Stored(store.token), 1.0)

    again = core.step(MessageCame(B, last), 1.0)

    assert sent(again, Nack) == []
    assert core.leader_of(OBJECT) == Ballot(3, B)


def test_drop_of_an_unknown_leader_is_believed_once_a_member_has_told_of_it() -> None:
    core = follower()
    drop = Drop(OBJECT, HIGH, WITHOUT_A)

    refused = core.step(MessageCame(D, drop), 1.0)
    assert {peer for peer, _ in sent(refused, Ask)} == {B, C}
    told = Told(OBJECT, HIGH, Point(99, 9), WITHOUT_A, False)
    core.step(MessageCame(B, told), 1.0)
    effects = core.step(MessageCame(D, drop), 2.0)

    assert of(effects, Remove) == [Remove(OBJECT)]


def test_group_that_was_found_by_its_place_is_believed() -> None:
    core = follower()
    told = Told(OBJECT, HIGH, Point(99, 9), WITHOUT_A, True)

    effects = core.step(GroupFound(D, told), 1.0)

    assert of(effects, Remove) == [Remove(OBJECT)]


def test_former_member_lets_its_copy_go_when_the_others_say_that_it_was_deleted() -> (
    None
):
    """It was replaced before the delete, and nobody waits for its answer."""
    core = follower()

    effects = core.step(MessageCame(B, Forget(OBJECT, Ballot(4, C), 9)), 1.0)

    assert of(effects, Remove) == [Remove(OBJECT, is_deleted=True)]


@pytest.mark.parametrize(
    "forget",
    [
        Forget(OBJECT, Ballot(3, B), 6),
        Forget(OBJECT, Ballot(2, B), 99),
        Forget(OBJECT, Ballot(4, C), 9, 1 << 50),
    ],
    ids=["earlier", "of an earlier epoch", "of another lineage"],
)
def test_copy_that_is_newer_than_a_delete_or_of_another_lineage_stays(
    forget: Forget,
) -> None:
    core = follower()
    before = core.register_of(OBJECT)

    assert of(core.step(MessageCame(B, forget), 1.0), Remove) == []
    assert core.register_of(OBJECT) == before


def test_copy_goes_whose_object_was_deleted() -> None:
    core = follower()

    effects = core.step(DeletedFound(OBJECT, 0), 1.0)

    assert of(effects, Remove) == [Remove(OBJECT, is_deleted=True)]
    assert core.register_of(OBJECT) is None


def test_copy_of_a_later_lineage_than_that_of_the_delete_stays() -> None:
    core = follower(THREE._replace(lineage=1 << 50))
    before = core.register_of(OBJECT)

    assert core.step(DeletedFound(OBJECT, 0), 1.0) == []
    assert core.register_of(OBJECT) == before


def test_copy_of_an_older_lineage_than_that_of_the_delete_is_set_aside() -> None:
    core = follower()

    effects = core.step(DeletedFound(OBJECT, 1 << 50), 1.0)

    assert of(effects, Remove) == []
    (store,) = of(effects, Store)
    assert store.register.is_quarantined


def test_two_forced_parts_of_a_group_meet_though_neither_knows_the_other() -> None:
    """Two operators forced two copies: the config of each has nobody else any more."""
    core = follower(Config(9, (A,), lineage=1 << 49))
    drop = Drop(OBJECT, HIGH, FORCED._replace(before=(A,)))

    (store,) = of(core.step(MessageCame(D, drop), 1.0), Store)

    assert store.register.is_quarantined


def test_member_is_set_aside_by_who_was_forced_and_is_newer_than_its_config() -> None:
    core = follower()
    drop = Drop(OBJECT, HIGH, FORCED._replace(before=(A,)))

    (store,) = of(core.step(MessageCame(D, drop), 1.0), Store)

    assert store.register.is_quarantined


def test_who_is_forced_names_each_member_that_it_tells() -> None:
    core = follower()
    (store,) = of(core.step(ForceOrdered(1, OBJECT), 0.0), Store)

    drops = sent(core.step(Stored(store.token), 0.0), Drop)

    assert [(peer, drop.config.before) for peer, drop in drops] == [
        (B, (B,)),
        (C, (C,)),
    ]


def test_who_was_forced_is_set_aside_by_the_answer_of_a_later_lineage() -> None:
    """It tells a member of its group, which is of another lineage since, and leads."""
    core = follower()
    (store,) = of(core.step(ForceOrdered(1, OBJECT), 0.0), Store)
    core.step(Stored(store.token), 0.0)
    later = Config(9, (B,), lineage=1 << 60)

    told = Told(OBJECT, Ballot(5, B), Point(5, 9), later, True)
    (aside,) = of(core.step(MessageCame(B, told), 1.0), Store)

    assert aside.register.is_quarantined


def candidate() -> tuple[Replication, Ballot]:
    """Return a core that wants to lead, has a promise, and lacks the state."""
    core = Replication(A, None, lambda: 0.5)
    core.restore(OBJECT, Register(Ballot(3, B), Ballot(3, B), 6, THREE))
    effects = core.take_effects() + pass_time(core, 1.0)
    (_, prepare), *_ = sent(effects, Prepare)
    return core, prepare.epoch


def test_candidate_counts_promises_of_those_whom_it_asked_only() -> None:
    core, epoch = candidate()
    lie = Promise(OBJECT, epoch, Point(50, 9), Config(50, (A, D)), False, True)

    effects = core.step(MessageCame(D, lie), 1.0)

    assert of(effects, (Store, Send)) == []  # type: ignore[arg-type]


def test_candidate_takes_the_state_from_those_who_promised_only() -> None:
    core, epoch = candidate()
    promise = Promise(OBJECT, epoch, Point(3, 7), THREE, False, True)
    effects = core.step(MessageCame(B, promise), 1.0)
    assert [peer for peer, _ in sent(effects, Fetch)] == [B]
    state = State(OBJECT, epoch, Point(3, 7), THREE, False, "whole")

    lied = core.step(MessageCame(D, state), 1.0)
    taken = core.step(MessageCame(B, state), 1.0)

    assert of(lied, Store) == []
    assert len(of(taken, Store)) == 1


def test_follower_learns_what_is_committed_from_its_leader_only() -> None:
    core = follower()

    for sender in (D, C):
        core.step(MessageCame(sender, Confirm(OBJECT, Ballot(3, B), 1, 7)), 1.0)
    assert not core.is_shown(OBJECT)
    core.step(MessageCame(B, Confirm(OBJECT, Ballot(3, B), 1, 7)), 1.0)
    assert core.is_shown(OBJECT)
