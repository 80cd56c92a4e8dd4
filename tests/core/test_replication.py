"""What the core of replication does in situations that have a name.

Random histories are in tests/simulation/test_registers.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from activestore.core.register import Register
from activestore.core.replication import Replication
from activestore.core.replication_effects import (
    Deposed,
    Followed,
    GroupDone,
    Led,
    NoQuorum,
    ReadDone,
    Remove,
    Send,
    SendWhole,
    Store,
    Unanswered,
    Unshared,
    WriteDone,
)
from activestore.core.replication_events import (
    AS_BEFORE,
    ForceOrdered,
    GroupWanted,
    LinkReady,
    MessageCame,
    PeerSeen,
    Stored,
    TimerFired,
    Touched,
    WriteStored,
)
from activestore.ids import ObjectId, PeerId
from activestore.wire.replicas import (
    NOBODY,
    Accept,
    Accepted,
    Ask,
    Ballot,
    Config,
    Confirm,
    Confirmed,
    Forget,
    Nack,
    Point,
    Prepare,
    Promise,
    Reason,
    Told,
)

A, B, C = (PeerId(letter * 6) for letter in (b"a", b"b", b"c"))
OBJECT = ObjectId(b"o" * 16)
THREE = Config(1, (A, B, C), wanted=3)
PAIR = Config(1, (A, B), wanted=2)
WITNESSED = Config(1, (A, B), C, wanted=2, wants_witness=True)


def sent(effects: list[Any], kind: type) -> list[tuple[PeerId, Any]]:
    """Return the messages of a kind among effects, with their receivers."""
    sends = [effect for effect in effects if isinstance(effect, Send)]
    return [(e.peer_id, e.message) for e in sends if isinstance(e.message, kind)]


def of(effects: list[Any], kind: type) -> list[Any]:
    """Return the effects of a kind."""
    return [effect for effect in effects if isinstance(effect, kind)]


def follower(config: Config = THREE, number: int = 7) -> Replication:
    """Return a core that starts with a register on its disk."""
    core = Replication(A, None, lambda: 0.5)
    core.restore(OBJECT, Register(Ballot(3, B), Ballot(3, B), number, config))
    core.take_effects()
    return core


def pass_time(core: Replication, until_s: float) -> list[Any]:
    """Fire timers up to a time; return what was ordered."""
    effects = []
    while (at_s := core.deadline_s()) is not None and at_s <= until_s:
        effects += core.step(TimerFired(), at_s)
    return effects


def leader(config: Config = THREE) -> tuple[Replication, Ballot]:
    """Return a core that leads an object of which the others have everything."""
    core = follower(config)
    core.step(PeerSeen(B, False), 0.0)
    core.step(Touched(OBJECT), 0.0)
    core.step(PeerSeen(B, True), 0.0)
    (_, prepare), *_ = sent(pass_time(core, 1.0), Prepare)
    others = [peer for peer in config.members if peer != A]
    effects: list[Any] = []
    for peer in others:
        promise = Promise(OBJECT, prepare.epoch, Point(3, 7), config, False, True)
        effects += core.step(MessageCame(peer, promise), 1.0)
    (store,) = of(effects, Store)
    core.step(Stored(store.token), 1.0)
    effects = []
    for peer in others:
        effects += core.step(MessageCame(peer, Accepted(OBJECT, prepare.epoch, 7)), 1.0)
    assert len(of(effects, Led)) == 1
    assert core.is_led(OBJECT)
    return core, prepare.epoch


def test_a_restarted_leader_does_not_lead() -> None:
    core = Replication(A, None, lambda: 0.5)
    core.restore(OBJECT, Register(Ballot(3, A), Ballot(3, A), 7, THREE))

    effects = core.take_effects()

    assert effects == [Followed(OBJECT, NOBODY, 3, THREE)]
    assert not core.is_led(OBJECT)
    with pytest.raises(LookupError, match="is_led"):
        core.begin_write(OBJECT, "delta")


def test_nobody_leads_before_a_majority_has_accepted_again() -> None:
    core = follower()
    core.step(PeerSeen(B, False), 0.0)
    core.step(Touched(OBJECT), 0.0)
    prepares = sent(pass_time(core, 1.0), Prepare)
    epoch = prepares[0][1].epoch
    promise = Promise(OBJECT, epoch, Point(3, 7), THREE, False, True)

    (store,) = of(core.step(MessageCame(C, promise), 1.0), Store)
    effects = core.step(Stored(store.token), 1.0)

    assert store.register == Register(epoch, epoch, 7, THREE)
    assert (store.base, store.change) == (Point(3, 7), None)
    assert epoch == Ballot(4, A)
    assert not core.is_led(OBJECT)
    (accept,) = [m for peer, m in sent(effects, Accept) if peer == C]
    assert (accept.number, accept.base, accept.change) == (7, Point(3, 7), None)
    assert of(core.step(MessageCame(C, Accepted(OBJECT, epoch, 7)), 1.0), Led)


def test_a_write_leaves_only_when_it_is_on_the_leaders_disk() -> None:
    core, epoch = leader()

    register = core.begin_write(OBJECT, "delta", size=5)
    before = core.take_effects()
    after = core.step(WriteStored(OBJECT, register.number), 1.0)
    done = core.step(MessageCame(C, Accepted(OBJECT, epoch, register.number)), 1.0)

    assert register == Register(epoch, epoch, 8, THREE)
    assert before == []
    accepts = sent(after, Accept)
    assert [peer for peer, _ in accepts] == [B, C]
    assert {(m.number, m.base, m.change) for _, m in accepts} == {
        (8, Point(epoch.counter, 7), "delta")
    }
    assert of(done, WriteDone) == [WriteDone(OBJECT, 8)]


def test_a_write_that_the_leaders_disk_refuses_never_leaves_it() -> None:
    core, epoch = leader()
    refused = core.begin_write(OBJECT, "large")
    taken = core.begin_write(OBJECT, "small")

    core.step(WriteStored(OBJECT, refused.number, True), 1.0)
    effects = core.step(WriteStored(OBJECT, taken.number), 1.0)

    (_, accept), *_ = sent(effects, Accept)
    assert (accept.number, accept.base) == (9, Point(epoch.counter, 7))


def test_calls_after_an_idle_hour_are_waited_for_from_then_on() -> None:
    """Nothing tells the core the time while nothing happens."""
    core, _ = leader()
    now_s = 3600.0

    register = core.begin_write(OBJECT, "delta")
    core.confirm(OBJECT)
    core.take_effects(now_s)
    core.step(WriteStored(OBJECT, register.number), now_s)
    effects = core.step(TimerFired(), now_s + 4.9) + pass_time(core, now_s + 4.9)

    assert of(effects, Deposed) == []
    assert of(pass_time(core, now_s + 5.1), Deposed) == [
        Deposed(OBJECT, is_unanswered=True)
    ]


@pytest.mark.parametrize(
    ("is_reached", "not_before_s", "told_s"), [(False, 0.0, 0.5), (True, 1.0, 1.05)]
)
def test_who_waits_for_a_majority_is_told_that_none_answers(
    is_reached: bool, not_before_s: float, told_s: float
) -> None:
    """At once where too few are in reach; a slow disk gets a second."""
    core, epoch = leader()
    core.begin_write(OBJECT, "delta")
    for peer in () if is_reached else (B, C):
        core.step(PeerSeen(peer, False), 1.0)

    core.step(WriteStored(OBJECT, 8), 1.0)

    assert of(pass_time(core, 1.0 + not_before_s - 0.01), Unanswered) == []
    assert of(pass_time(core, 1.0 + told_s + 0.01), Unanswered) == [
        Unanswered(OBJECT, epoch.counter)
    ]
    core.step(MessageCame(B, Accepted(OBJECT, epoch, 8)), 3.0)
    assert of(pass_time(core, 9.0), Unanswered) == []


def test_a_pair_needs_both() -> None:
    core, epoch = leader(PAIR)
    register = core.begin_write(OBJECT, "delta")

    effects = core.step(WriteStored(OBJECT, register.number), 1.0)
    waited = pass_time(core, 1.0 + 5.1)

    assert of(effects, WriteDone) == []
    assert of(waited, Deposed) == [Deposed(OBJECT, is_unanswered=True)]
    assert epoch.leader == A


def test_reads_of_one_turn_share_a_round() -> None:
    core, epoch = leader()

    rounds = {core.confirm(OBJECT), core.confirm(OBJECT)}
    questions = sent(core.take_effects(), Confirm)
    done = core.step(MessageCame(C, Confirmed(OBJECT, epoch, 1)), 1.0)

    assert rounds == {1}
    assert [peer for peer, _ in questions] == [B, C]
    assert of(done, ReadDone) == [ReadDone(OBJECT, 1)]
    assert core.confirm(OBJECT) == 2, "one that arrives later asks anew"


def test_an_older_round_does_not_answer_a_later_read() -> None:
    core, epoch = leader()
    core.confirm(OBJECT)
    core.take_effects()
    assert core.confirm(OBJECT) == 2
    core.take_effects()

    done = core.step(MessageCame(C, Confirmed(OBJECT, epoch, 1)), 1.0)

    assert of(done, ReadDone) == [ReadDone(OBJECT, 1)]


def test_a_newer_epoch_ends_the_lead_at_once() -> None:
    core, epoch = leader()
    refusal = Nack(OBJECT, epoch, 8, Reason.PROMISED, Ballot(9, C))

    effects = core.step(MessageCame(C, refusal), 1.0)

    assert of(effects, Deposed) == [Deposed(OBJECT)]
    assert not core.is_led(OBJECT)


def test_a_deposed_leader_promises_only_when_its_disk_has_told_of_its_writes() -> None:
    core, _ = leader()
    register = core.begin_write(OBJECT, "delta")

    deposed = core.step(MessageCame(C, Prepare(OBJECT, Ballot(9, C), THREE)), 1.0)
    later = core.step(WriteStored(OBJECT, register.number), 1.0)

    assert of(deposed, Deposed)
    assert of(deposed, Store) == []
    (store,) = of(later, Store)
    assert store.register.promised == Ballot(9, C)
    assert store.register.number == register.number
    promises = sent(core.step(Stored(store.token), 1.0), Promise)
    assert promises[0][1].accepted == register.point


def test_a_plain_object_grows_by_one_member_and_both_majorities() -> None:
    core = Replication(A, None, lambda: 0.5)
    register, effects = core.begin(OBJECT, 4, 0.0)
    assert of(effects, Led)[0].counter == 5
    assert core.confirm(OBJECT) is None

    taught = core.step(GroupWanted(1, OBJECT, 2, False, (B,)), 0.0)
    learned = core.step(MessageCame(B, Accepted(OBJECT, register.epoch, 1)), 0.0)

    (whole,) = of(taught, SendWhole)
    assert whole.message.is_learner
    (store,) = of(learned, Store)
    assert store.register.config == Config(6, (A, B), before=(A,), wanted=2)
    accepts = sent(core.step(Stored(store.token), 0.0), Accept)
    assert accepts[0][1].config == store.register.config
    joined = core.step(MessageCame(B, Accepted(OBJECT, register.epoch, 2)), 0.0)
    (final,) = of(joined, Store)
    assert final.register.config == Config(6, (A, B), wanted=2)
    core.step(Stored(final.token), 0.0)
    done = core.step(MessageCame(B, Accepted(OBJECT, register.epoch, 3)), 0.0)
    assert of(done, GroupDone) == [GroupDone(1, OBJECT)]


def test_a_change_of_members_alone_keeps_what_was_asked_for_before_its_turn() -> None:
    """A repair that was ordered when fewer were wanted undoes no `replicate`."""
    core = Replication(A, None, lambda: 0.5)
    register, _ = core.begin(OBJECT, 4, 0.0)
    core.step(GroupWanted(1, OBJECT, 2, False, (B,)), 0.0)

    core.step(GroupWanted(2, OBJECT, AS_BEFORE, False, (B,)), 0.0)
    effects, number = [], 1
    while len(of(effects, GroupDone)) < 2:
        effects += core.step(
            MessageCame(B, Accepted(OBJECT, register.epoch, number)), 0.0
        )
        for store in of(effects, Store)[number - 1 :]:
            effects += core.step(Stored(store.token), 0.0)
        number += 1
        assert number < 10

    assert of(effects, GroupDone) == [GroupDone(1, OBJECT), GroupDone(2, OBJECT)]
    grown = core.register_of(OBJECT)
    assert grown is not None
    assert grown.config == Config(6, (A, B), wanted=2)


def test_who_is_lost_before_it_is_told_to_forget_keeps_nobody() -> None:
    """It had on disk that the object is deleted: its vote is not needed any more."""
    core, epoch = leader()
    core.begin_write(OBJECT, "answer", is_delete=True)
    core.step(WriteStored(OBJECT, 8), 1.0)
    core.step(MessageCame(B, Accepted(OBJECT, epoch, 8)), 1.0)
    told = core.step(MessageCame(C, Accepted(OBJECT, epoch, 8)), 1.0)
    assert {peer for peer, _ in sent(told, Forget)} == {B, C}
    core.step(MessageCame(B, Told(OBJECT, Ballot(), Point(), None, False)), 1.0)
    core.step(PeerSeen(C, False), 2.0)
    assert core.register_of(OBJECT) is not None

    effects = core.step(GroupWanted(1, OBJECT, AS_BEFORE, False, (), (C,)), 600.0)

    assert of(effects, GroupDone) == [GroupDone(1, OBJECT)]
    assert of(effects, Remove) == [Remove(OBJECT)]
    assert core.register_of(OBJECT) is None
    core.check()


def test_an_object_that_nobody_else_takes_is_plain_again() -> None:
    core = Replication(A, None, lambda: 0.5)
    core.begin(OBJECT, 4, 0.0)
    core.step(PeerSeen(B, False), 0.0)

    first = core.step(GroupWanted(1, OBJECT, 1, False, (B,)), 0.0)

    assert of(first, GroupDone) == [GroupDone(1, OBJECT)]
    assert of(first, Unshared)[0].counter >= 5
    assert core.register_of(OBJECT) is None


def test_a_leader_that_others_have_outvoted_hears_so_before_its_next_write() -> None:
    """A candidate was promised an epoch, and found the leader that it had not heard."""
    core = Replication(A, None, lambda: 0.5)
    core.restore(OBJECT, Register(Ballot(5, A), Ballot(3, B), 7, THREE))
    told = Told(OBJECT, Ballot(3, B), Point(3, 7), THREE, True)

    (peer, nack), *others = sent(core.step(MessageCame(B, told), 1.0), Nack)

    assert (peer, others) == (B, [])
    assert nack.epoch == Ballot(3, B)
    assert (nack.reason, nack.promised) == (Reason.PROMISED, Ballot(5, A))
    core, epoch = leader()
    effects = core.step(MessageCame(B, nack._replace(epoch=epoch)), 1.0)
    assert of(effects, Deposed) == [Deposed(OBJECT)]


def test_where_too_few_answer_whoever_waits_is_told_at_once() -> None:
    core = follower()
    core.step(PeerSeen(B, False), 0.0)
    core.step(PeerSeen(C, False), 0.0)

    core.step(Touched(OBJECT), 0.0)
    (refusal,) = of(pass_time(core, 1.0), NoQuorum)

    assert (refusal.reachable, refusal.needed) == (1, 2)
    assert refusal.text == "1 of 3 voters answer, 2 must"
    assert core.deadline_s() is None or core.deadline_s() > 1.0


def led_with_a_witness() -> tuple[Replication, Ballot]:
    """Return a core whose copy and whose witness have everything so far."""
    core, epoch = leader(WITNESSED)
    core.step(MessageCame(C, Accepted(OBJECT, epoch, 7)), 1.0)
    core.begin_write(OBJECT, "delta")
    return core, epoch


def told(effects: list[Any]) -> list[tuple[PeerId, int]]:
    """Return who was sent which state."""
    return [(peer, accept.number) for peer, accept in sent(effects, Accept)]


def test_a_witness_hears_of_a_state_when_a_copy_has_it() -> None:
    core, epoch = led_with_a_witness()

    assert told(core.step(WriteStored(OBJECT, 8), 1.0)) == [(B, 8)]
    effects = core.step(MessageCame(B, Accepted(OBJECT, epoch, 8)), 1.1)

    assert told(effects) == [(C, 8)]
    assert [one.number for one in of(effects, WriteDone)] == [8]


@pytest.mark.parametrize("why", ["away", "full", "slow"])
def test_a_witness_has_to_do_where_the_copy_does_not_take_it(why: str) -> None:
    core, epoch = led_with_a_witness()
    if why == "away":
        core.step(PeerSeen(B, False), 1.0)
    effects = core.step(WriteStored(OBJECT, 8), 1.0)
    if why == "full":
        nack = Nack(OBJECT, epoch, 8, Reason.SPACE, Ballot(), None)
        effects = core.step(MessageCame(B, nack), 1.0)
    if why == "slow":
        assert C not in dict(told(effects + pass_time(core, 1.98)))
        effects = pass_time(core, 2.01)

    assert (C, 8) in told(effects + pass_time(core, 2.01))
    done = core.step(MessageCame(C, Accepted(OBJECT, epoch, 8)), 2.1)
    assert [one.number for one in of(done, WriteDone)] == [8]


def test_a_newest_state_that_only_a_witness_knows_is_not_made_up() -> None:
    config = Config(1, (A, B), C, wanted=2, wants_witness=True)
    core = follower(config)
    core.step(PeerSeen(B, False), 0.0)
    core.step(Touched(OBJECT), 0.0)
    (prepare,) = [m for p, m in sent(pass_time(core, 1.0), Prepare) if p == C]
    promise = Promise(OBJECT, prepare.epoch, Point(3, 8), config, False, False)

    effects = core.step(MessageCame(C, promise), 1.0)

    assert of(effects, Store) == []
    (refusal,) = of(effects, NoQuorum)
    assert "known here to the witness" in refusal.text


def test_the_side_that_was_not_forced_is_kept_aside() -> None:
    core = follower(PAIR)
    forced = Replication(B, None, lambda: 0.5)
    forced.restore(OBJECT, Register(Ballot(3, B), Ballot(3, B), 7, PAIR))
    forced.take_effects()

    (store,) = of(forced.step(ForceOrdered(1, OBJECT), 0.0), Store)
    effects = forced.step(Stored(store.token), 0.0)
    (_, drop), *_ = [s for s in sent(effects, object) if s[0] == A]
    (aside,) = of(core.step(MessageCame(B, drop), 0.0), Store)
    core.step(Stored(aside.token), 0.0)

    assert of(effects, Led)
    assert of(effects, GroupDone) == [GroupDone(1, OBJECT)]
    assert aside.register.is_quarantined
    assert aside.change is None
    refused = core.step(MessageCame(B, Prepare(OBJECT, Ballot(99, B), PAIR)), 0.0)
    assert sent(refused, Nack)[0][1].reason is Reason.LINEAGE
    core.discard(OBJECT)
    assert of(core.take_effects(), Remove) == [Remove(OBJECT)]


def test_a_peer_whose_disk_is_not_its_own_neither_votes_nor_leads() -> None:
    core, epoch = leader()

    core.distrust()
    asked = core.step(MessageCame(C, Prepare(OBJECT, Ballot(9, C), THREE)), 1.0)
    kept = core.step(
        MessageCame(
            C, Accept(OBJECT, Ballot(9, C), 8, None, THREE, False, 0, True, "x")
        ),
        1.0,
    )

    assert not core.is_led(OBJECT)
    assert epoch.leader == A
    for effects in (asked, kept):
        assert of(effects, Store) == []
        assert sent(effects, Nack)[0][1].reason is Reason.UNKNOWN


def test_followed_objects_cost_nothing_until_somebody_wants_them() -> None:
    core = Replication(A, None, lambda: 0.5)
    objects = [ObjectId(n.to_bytes(16, "big")) for n in range(2_000)]
    for object_id in objects:
        core.restore(object_id, Register(Ballot(3, B), Ballot(3, B), 7, THREE))
    core.take_effects()
    while (at_s := core.deadline_s()) is not None:
        for peer, ask in sent(core.step(TimerFired(), at_s), Ask):
            if peer == B:
                told = Told(ask.object_id, Ballot(3, B), Point(3, 7), THREE, True)
                core.step(MessageCame(B, told), at_s)

    effects = core.step(PeerSeen(C, False), 10.0) + core.step(LinkReady(B), 10.0)

    assert effects == []
    assert core.deadline_s() is None, "no timer for any of them"
    assert all(core.leader_of(object_id) == Ballot(3, B) for object_id in objects)
    lost = core.step(PeerSeen(B, False), 10.0)
    assert lost == [], "they are taken over at a pace, not at once"
