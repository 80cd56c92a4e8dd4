"""What a copy knows of what is committed, and what of that outlives its peer's start.

Source: reliability.md 3.8 (a minority answers old reads); decision 11 (the leader's disk
first).
"""

from __future__ import annotations

from typing import Any

import pytest

from activestore.core.kept_time import STEP_S, Dates, KeptTime
from activestore.core.lead_members import Entry
from activestore.core.leading import Lead
from activestore.core.register import (
    Heard,
    Register,
    Vouch,
    pack_register,
    unpack_register,
    unpack_vouch,
    vouch_of,
)
from activestore.core.replication import Replication
from activestore.core.replication_desk import Desk, ReplicationConfig, Wake
from activestore.core.replication_effects import Send, Store
from activestore.core.replication_events import MessageCame, PeerSeen, Stored
from activestore.core.vouches import SETTLE_S
from activestore.ids import ObjectId, PeerId
from activestore.wire import packing
from activestore.wire.replicas import (
    Accept,
    Ballot,
    Committed,
    Config,
    Point,
    Prepare,
)

A, B, C, D, E = (PeerId(name * 6) for name in (b"a", b"b", b"c", b"d", b"e"))
OBJECT = ObjectId(b"o" * 16)
EPOCH = Ballot(3, B)
THREE = Config(4, (A, B, C))
FIVE = Config(4, (A, B, C, D, E))
WALL_S = 1_735_689_600.0


class Follower:
    """A copy at peer A with number 7, led by B; 100 s by its clock."""

    def __init__(
        self, config: Config = THREE, heard: Heard | None = None, number: int = 7
    ) -> None:
        self.now_s = 100.0
        self.config = config
        self.core = Replication(A, None, lambda: 0.5)
        self.core.restore(OBJECT, Register(EPOCH, EPOCH, number, config), heard)
        self.core.take_effects()

    def hear(self, message: Any, sender: PeerId = B) -> list[Store]:
        """Take a message; return what it has written, which is not on disk yet."""
        effects = self.core.step(MessageCame(sender, message), self.now_s)
        return [effect for effect in effects if isinstance(effect, Store)]

    def accept(self, number: int, committed: int = 7) -> Store:
        """Take the next state."""
        base = Point(EPOCH.counter, number - 1)
        message = Accept(
            OBJECT, EPOCH, number, base, self.config, False, committed, change="delta"
        )
        (store,) = self.hear(message)
        return store

    def written(self, store: Store, problem: str = "") -> None:
        """Tell that a Store is on disk, or why not."""
        self.core.step(Stored(store.token, problem), self.now_s)

    def shown(self) -> tuple[bool, float | None]:
        """Return whether the copy is shown, and its age."""
        return self.core.is_shown(OBJECT), self.core.age_s(OBJECT, self.now_s)


# -- on disk here and at the leader --------------------------------------------------------


def test_state_that_two_of_three_have_is_committed_and_that_is_written_with_it() -> (
    None
):
    follower = Follower(THREE)
    store = follower.accept(8)
    assert follower.shown() == (False, None), "it is not on this disk"

    follower.now_s = 103.0
    follower.written(store)

    assert store.heard == Heard(EPOCH, 8, 100.0)
    assert follower.shown() == (True, 3.0), "since it came"


def test_state_that_two_of_five_have_is_shown_once_its_leader_says_so() -> None:
    follower = Follower(FIVE)
    store = follower.accept(8)
    follower.written(store)

    assert store.heard is None
    assert follower.shown()[0] is False
    follower.hear(Committed(OBJECT, EPOCH, 8))
    assert follower.shown() == (True, 0.0)


@pytest.mark.parametrize(
    ("members", "before", "is_shown"),
    [
        ((A, B, C), (A, B), True),
        ((A, B, C), (A, C, B, D), False),
        ((A, B, C, D), (A, B, C), False),
        ((A, B), (B,), True),
        ((A,), (A, B), True),
    ],
)
def test_both_majorities_are_needed_while_a_group_changes(
    members: tuple[PeerId, ...], before: tuple[PeerId, ...], is_shown: bool
) -> None:
    follower = Follower(THREE)
    follower.config = Config(5, members, before=before)

    follower.written(follower.accept(8))

    assert follower.shown()[0] is is_shown


def test_copy_that_is_to_become_a_member_proves_nothing() -> None:
    """Nor does it matter: who has no vote answers no old read."""
    follower = Follower(THREE)
    follower.config = Config(5, (B, C))

    store = follower.accept(8)

    assert store.heard is None


def test_state_that_this_disk_refused_proves_nothing() -> None:
    follower = Follower(THREE)
    store = follower.accept(8)

    follower.written(store, "space")

    assert follower.shown() == (False, None)


def test_states_that_came_one_behind_the_other_are_each_as_old_as_they_came() -> None:
    follower = Follower(THREE)
    first = follower.accept(8)
    follower.now_s = 101.0
    second = follower.accept(9)
    follower.now_s = 102.0
    follower.written(first)
    assert follower.shown() == (True, 2.0)

    follower.written(second)

    assert follower.shown() == (True, 1.0)


def test_word_of_a_leader_is_as_old_as_it_says() -> None:
    follower = Follower(FIVE, Heard(EPOCH, 7, 60.0))

    follower.hear(Committed(OBJECT, EPOCH, 7, age_ms=15_000))
    assert follower.shown() == (True, 15.0)

    follower.hear(Committed(OBJECT, EPOCH, 7, age_ms=70_000))
    assert follower.shown() == (True, 15.0), "something better is known"


def test_leader_that_heard_from_no_majority_lately_says_since_when() -> None:
    """It may be cut off, and another lead; who comes back to it learns from it."""
    desk = Desk(A, ReplicationConfig(), lambda: 0.5)
    lead = Lead(desk, OBJECT, Ballot(4, A), 7, FIVE, is_deleted=False)
    lead.know_members(set())
    lead.add(Entry(7, FIVE, "delta", is_deleted=False, size=0))
    desk.now_s = 1.0
    lead.settle(7, is_refused=False)
    for peer_id in (B, C):
        lead.on_accepted(peer_id, 7)
    lead.reach_committed()
    desk.now_s = 1.05
    lead.tell_committed()
    desk.take()

    desk.now_s = 60.0
    lead.restart(E)
    lead.on_accepted(E, 7)
    lead.tell_committed()

    whole, told = desk.take()
    assert whole.message.committed == 7, "which says nothing of when"
    assert told == Send(E, Committed(OBJECT, Ballot(4, A), 7, False, 59_000))
    wakes = iter(desk.pop_due, None)
    desk.now_s = 60.05
    assert [what for what, _ in wakes].count(Wake.COMMITTED) == 2, "it is told of soon"


def test_state_that_was_known_to_be_behind_as_it_came_is_not_vouched_for() -> None:
    follower = Follower(THREE, Heard(EPOCH, 7, 90.0))
    follower.hear(Committed(OBJECT, EPOCH, 9))

    follower.written(follower.accept(8))

    assert follower.shown() == (True, 10.0), "it is committed, and was not the newest"


def test_state_that_comes_late_is_as_old_as_the_one_before() -> None:
    """Its leader sends in order what this copy missed; others have the rest already."""
    follower = Follower(THREE, Heard(EPOCH, 7, 90.0))

    follower.written(follower.accept(8, committed=9))
    assert follower.shown() == (True, 10.0)
    follower.written(follower.accept(9, committed=9))

    assert follower.shown() == (True, 0.0)


# -- over a start --------------------------------------------------------------------------


def test_promise_keeps_what_was_known_of_the_state() -> None:
    """Another candidate asks for it just when the leader is gone."""
    follower = Follower(THREE, Heard(EPOCH, 7, 60.0))

    (store,) = follower.hear(Prepare(OBJECT, Ballot(4, C), THREE), C)

    assert store.heard == Heard(EPOCH, 7, 60.0)
    follower.written(store)
    assert follower.shown() == (True, 40.0)


def test_copy_answers_after_a_start_as_old_as_it_was_and_the_time_in_between() -> None:
    vouch = vouch_of(Heard(EPOCH, 7, 95.0), now_s=100.0, wall_s=WALL_S)
    assert vouch is not None

    # Its clock began anew: it was started 2 s ago.
    age_s = kept_time(WALL_S + 60.0, vouch.at_ms).age_s(vouch.at_ms, WALL_S + 60.0)
    assert age_s is not None
    follower = Follower(THREE, Heard(EPOCH, vouch.committed, 2.0 - age_s))
    follower.now_s = 2.0

    assert follower.shown() == (True, pytest.approx(65.0))


def test_state_newer_than_what_was_known_committed_is_not_shown_after_a_start() -> None:
    follower = Follower(THREE, Heard(EPOCH, 7, 60.0), number=8)

    assert follower.shown()[0] is False


def test_state_of_unknown_age_is_of_no_age_after_a_start() -> None:
    assert Follower(THREE, Heard(EPOCH, 7, None)).shown() == (True, None)


def test_word_of_the_leader_after_a_start_counts_again() -> None:
    follower = Follower(THREE, Heard(EPOCH, 7, None))

    follower.hear(Committed(OBJECT, EPOCH, 7))

    assert follower.shown() == (True, 0.0)


# -- dates on disk -------------------------------------------------------------------------


NONE_SAVED = Dates()


def kept_time(
    wall_s: float, latest_ms: int, dates: Dates | None = NONE_SAVED, now_s: float = 2.0
) -> KeptTime:
    """Return the time of a peer that has just started."""
    time = KeptTime(now_s, wall_s)
    time.restore(dates, latest_ms, wall_s)
    return time


def test_wall_clock_that_goes_back_while_a_peer_runs_makes_nothing_younger() -> None:
    ahead_s = WALL_S + 3600.0
    time = kept_time(ahead_s, 0)
    at_ms = time.at_ms(ahead_s)

    assert not time.look(5.0, ahead_s + 3.0)
    assert time.look(7.0, WALL_S + 5.0), "it was set right: that is to be written"
    assert time.at_ms(WALL_S + 5.0) < at_ms, "nothing is dated by what is not on disk"
    time.saved = time.wanted
    assert not time.look(8.0, WALL_S + 6.0)
    again = kept_time(WALL_S + 60.0, at_ms, time.saved, now_s=0.5)

    assert again.age_s(at_ms, WALL_S + 60.0) == pytest.approx(60.0)


def test_wall_clock_that_goes_forward_while_a_peer_runs_is_believed() -> None:
    time = kept_time(WALL_S, 0)

    assert not time.look(5.0, WALL_S + 3600.0), "the machine may have slept"
    assert time.look(6.0, WALL_S + 3600.5), "half a second back"
    assert time.wanted.added_ms == pytest.approx(500, abs=1)


def test_clocks_that_are_not_read_at_once_are_no_step_back() -> None:
    time = kept_time(WALL_S, 0)

    for turn in range(100):
        now_s = 2.0 + turn
        read_s = WALL_S + turn - STEP_S / 2 * (turn % 2)
        assert not time.look(now_s, read_s)


@pytest.mark.parametrize("since_s", [0.0, 30.0], ids=["this row", "another row"])
def test_wall_clock_that_went_back_leaves_the_age_unknown(since_s: float) -> None:
    at_ms, since_ms = int(WALL_S * 1000), int((WALL_S + since_s) * 1000)
    behind_s = WALL_S + since_s - 1.0

    in_order = kept_time(WALL_S + since_s, since_ms)
    behind = kept_time(behind_s, since_ms)
    behind.saved = behind.wanted
    later_s = behind_s + 7200.0
    later = kept_time(later_s, since_ms, behind.saved)

    assert in_order.age_s(at_ms, WALL_S + since_s) == pytest.approx(since_s)
    assert behind.age_s(at_ms, behind_s) is None
    assert later.age_s(at_ms, later_s) is None, "at later starts nobody knows either"
    new_ms = behind.at_ms(behind_s + 1.0)
    assert later.age_s(new_ms, later_s) == pytest.approx(7199.0)


def test_dates_whose_offset_cannot_be_read_have_no_age() -> None:
    at_ms = int(WALL_S * 1000)

    time = kept_time(WALL_S + 60.0, at_ms, None)
    time.saved = time.wanted

    assert time.age_s(at_ms, WALL_S + 60.0) is None
    assert time.age_s(time.at_ms(WALL_S + 61.0), WALL_S + 62.0) == pytest.approx(1.0)


# -- beside other writes -------------------------------------------------------------------


def test_what_is_heard_later_is_written_once_beside_another_write() -> None:
    follower = Follower(FIVE)
    follower.written(follower.accept(8))
    follower.hear(Committed(OBJECT, EPOCH, 8))
    assert follower.core.take_unkept(16) == [], "another state may come at once"
    follower.now_s += SETTLE_S
    follower.core.step(PeerSeen(C, True), follower.now_s)

    (unkept,) = follower.core.take_unkept(16)

    assert unkept.register == follower.core.register_of(OBJECT)
    assert unkept.heard == Heard(EPOCH, 8, 100.0)
    assert follower.core.take_unkept(16) == []
    follower.core.check()


def test_what_is_heard_all_the_time_is_written_too() -> None:
    follower = Follower(FIVE)
    follower.written(follower.accept(8))
    kept = []
    for _ in range(20):
        follower.hear(Committed(OBJECT, EPOCH, 8))
        follower.now_s += SETTLE_S / 4
        follower.core.step(PeerSeen(C, True), follower.now_s)
        kept += follower.core.take_unkept(16)

    assert [one.heard.committed for one in kept] == [8]


def test_what_came_with_its_state_is_not_written_again() -> None:
    follower = Follower(THREE)
    follower.written(follower.accept(8))
    follower.hear(Committed(OBJECT, EPOCH, 8))
    follower.now_s += SETTLE_S
    follower.core.step(PeerSeen(C, True), follower.now_s)

    assert follower.core.take_unkept(16) == []


def test_age_on_disk_is_renewed_now_and_then() -> None:
    follower = Follower(THREE, Heard(EPOCH, 7, 100.0))
    renewed = []
    for _ in range(200):
        follower.now_s += 1.0
        renewed += follower.core.take_unkept(16)
        follower.hear(Committed(OBJECT, EPOCH, 7))
        renewed += follower.core.take_unkept(16)
        follower.now_s += SETTLE_S  # Nobody reads it for a moment.
        follower.core.step(PeerSeen(C, True), follower.now_s)
        renewed += follower.core.take_unkept(16)

    ages_s = [one.heard.at_s for one in renewed]
    assert ages_s == [161.0, 221.0, 281.0, 341.0, 401.0, 461.0]


def test_nothing_is_written_beside_of_a_register_that_is_being_written() -> None:
    """It would come to the disk behind the newer one."""
    follower = Follower(FIVE)
    follower.hear(Committed(OBJECT, EPOCH, 7))
    follower.now_s += SETTLE_S
    store = follower.accept(8)

    assert follower.core.take_unkept(16) == []
    follower.written(store)
    assert follower.core.take_unkept(16) == [], "nobody said that it is committed"


def test_word_of_a_leader_that_is_older_than_the_last_start_is_written_again() -> None:
    follower = Follower(FIVE, Heard(EPOCH, 7, None))
    follower.hear(Committed(OBJECT, EPOCH, 7))
    follower.now_s += SETTLE_S
    follower.core.step(PeerSeen(C, True), follower.now_s)

    assert [one.heard.at_s for one in follower.core.take_unkept(16)] == [100.0]


# -- as bytes ------------------------------------------------------------------------------


def test_row_brings_register_and_what_was_known_back() -> None:
    register, vouch = Register(EPOCH, EPOCH, 7, FIVE), Vouch(7, 1_735_689_600_123)
    row = pack_register(register, vouch)

    assert unpack_register(row) == register
    assert unpack_vouch(row) == vouch


def test_row_of_an_earlier_version_has_nothing_that_was_known() -> None:
    register = Register(EPOCH, EPOCH, 7, THREE)

    assert unpack_vouch(packing.pack(register)) is None
    assert unpack_vouch(packing.pack(register[:8])) is None
    assert unpack_vouch(pack_register(register)) is None


@pytest.mark.parametrize("row", [b"", b"\xc1", b"\x07"])
def test_bytes_that_are_no_row_tell_nothing(row: bytes) -> None:
    assert unpack_vouch(row) is None


def test_what_was_never_vouched_for_is_not_written() -> None:
    assert vouch_of(None, 5.0, WALL_S) is None
    assert vouch_of(Heard(EPOCH, 7, None), 5.0, WALL_S) is None
