"""Which copy may answer a read that can do with an older state, and what is told of it.

Source: reliability.md 3.8; schemas/protocol.md section 4.
"""

from __future__ import annotations

from typing import Any

import pytest

from activestore.core.effects import Saw
from activestore.core.register import Register, pack_register
from activestore.core.replication import Replication
from activestore.core.replication_effects import Store
from activestore.core.replication_events import MessageCame, Stored
from activestore.ids import ObjectId, PeerId
from activestore.peer.reading import Reading
from activestore.wire.messages import Call
from activestore.wire.replicas import Accept, Ballot, Committed, Config, Point

ME, LEADER, OTHER, *REST = (PeerId(name * 6) for name in (b"a", b"b", b"c", b"d", b"e"))
OBJECT = ObjectId(b"o" * 16)
EPOCH = Ballot(3, LEADER)
# Of five voters a leader and one copy are no majority.
CONFIG = Config(4, (ME, LEADER, OTHER, *REST))
# The follower's copy has this number as a test begins.
NUMBER = 7


class Follower:
    """One peer that follows an object, at 100 s by its clock."""

    def __init__(self, register: Register | None = None) -> None:
        self.now_s = 100.0
        self.core = Replication(ME, None, lambda: 0.5)
        begun = register or Register(EPOCH, EPOCH, NUMBER, CONFIG, changed_s=5_000.0)
        self.core.restore(OBJECT, begun)
        self.reading = Reading(ME, self.core, lambda: self.now_s, lambda: 5_040.0)

    def hear(self, message: Any) -> None:
        """Take what the leader says; what is to be written is on disk at once."""
        out = self.core.step(MessageCame(LEADER, message), self.now_s)
        for effect in out:
            if type(effect) is Store:
                self.core.step(Stored(effect.token), self.now_s)

    def accept(self, number: int, *, committed: int) -> None:
        """Take the state that follows on the one that is here."""
        base = Point(EPOCH.counter, number - 1)
        self.hear(Accept(OBJECT, EPOCH, number, base, CONFIG, False, committed))

    def may(self, **extra: Any) -> bool:
        """Whether a call with this `extra` is answered here."""
        call = Call(1, OBJECT, "peek", 0, 0, 0, 0, extra, b"", ())
        return self.reading.may_serve(call)

    def row(self, **changed: Any) -> bytes:
        """Return the row of the register on disk, or of one like it."""
        register = self.core.register_of(OBJECT)
        assert register is not None
        return pack_register(register._replace(**changed))


@pytest.fixture
def follower() -> Follower:
    """Return a follower that knows its copy to be the newest committed state."""
    made = Follower()
    made.hear(Committed(OBJECT, EPOCH, NUMBER))
    return made


def test_committed_copy_is_read_by_who_says_how_old_it_may_be(
    follower: Follower,
) -> None:
    assert follower.may(staleness_ms=1)
    assert not follower.may()
    assert not follower.may(staleness_ms=0)
    assert not follower.may(info=True)


def test_copy_is_not_read_once_nobody_has_vouched_for_it_for_so_long(
    follower: Follower,
) -> None:
    follower.now_s += 2.0

    assert follower.may(staleness_ms=2_000)
    assert not follower.may(staleness_ms=1_999)


def test_copy_that_nobody_has_vouched_for_is_not_read() -> None:
    follower = Follower()

    assert not follower.may(staleness_ms=3_600_000)
    # Its leader told it with the state, which says that it is committed, not since when.
    follower.accept(NUMBER + 1, committed=NUMBER)
    assert not follower.may(staleness_ms=3_600_000)


def test_committed_copy_that_is_known_to_be_behind_has_no_age(
    follower: Follower,
) -> None:
    behind = Follower()
    behind.hear(Committed(OBJECT, EPOCH, NUMBER + 2))

    assert behind.core.is_shown(OBJECT)
    assert not behind.may(staleness_ms=3_600_000)
    # One that was the newest is as old as that is long ago.
    follower.hear(Committed(OBJECT, EPOCH, NUMBER + 2))
    assert follower.may(staleness_ms=1)


def test_copy_that_is_not_known_committed_is_not_read(follower: Follower) -> None:
    follower.accept(NUMBER + 1, committed=NUMBER)

    assert not follower.may(staleness_ms=60_000)
    follower.hear(Committed(OBJECT, EPOCH, NUMBER + 1))
    assert follower.may(staleness_ms=60_000)


@pytest.mark.parametrize(
    ("seen", "may"),
    [
        ([3, NUMBER], True),
        ([2, NUMBER + 9], True),
        ([3, NUMBER + 1], False),
        ([4, 1], False),
        # What a later version, or nobody, would send: it is no state of this object.
        ([3], True),
        (["3", 9], True),
        (9, True),
    ],
)
def test_copy_behind_what_the_client_has_seen_is_not_read(
    follower: Follower, seen: Any, may: bool
) -> None:
    assert follower.may(staleness_ms=60_000, seen=seen) is may


@pytest.mark.parametrize(
    "changed",
    [{"is_quarantined": True}, {"is_deleted": True}, {"is_voter": False}],
)
def test_copy_that_is_no_members_is_not_read(changed: dict[str, bool]) -> None:
    register = Register(EPOCH, EPOCH, NUMBER, CONFIG)._replace(**changed)
    follower = Follower(register)
    follower.hear(Committed(OBJECT, EPOCH, NUMBER))
    assert follower.core.is_shown(OBJECT), "nothing else speaks against it"

    assert not follower.may(staleness_ms=60_000)


def test_object_without_a_register_is_not_read_here(follower: Follower) -> None:
    call = Call(1, ObjectId(bytes(16)), "peek", 0, 0, 0, 0, {"staleness_ms": 9})

    assert not follower.reading.may_serve(call)


# -- what was read -------------------------------------------------------------------------


def test_state_that_was_read_is_shown_if_its_own_number_is_committed(
    follower: Follower,
) -> None:
    before = follower.row()
    follower.accept(NUMBER + 1, committed=NUMBER)

    assert follower.reading.is_proven(OBJECT, before), "it came a moment earlier"
    assert not follower.reading.is_proven(OBJECT, follower.row())
    follower.hear(Committed(OBJECT, EPOCH, NUMBER + 1))
    assert follower.reading.is_proven(OBJECT, follower.row())


def test_state_of_another_epoch_proves_nothing(follower: Follower) -> None:
    """A leader that was lost may have had it alone, under the same number."""
    earlier = follower.row(epoch=Ballot(2, OTHER))

    assert not follower.reading.is_proven(OBJECT, earlier)


@pytest.mark.parametrize(
    "changed", [{"is_quarantined": True}, {"is_lost": True}, {"is_stateless": True}]
)
def test_state_of_a_copy_that_is_none_proves_nothing(
    follower: Follower, changed: dict[str, bool]
) -> None:
    assert not follower.reading.is_proven(OBJECT, follower.row(**changed))


@pytest.mark.parametrize("row", [None, b"", b"damaged"])
def test_state_whose_register_is_not_known_proves_nothing(
    follower: Follower, row: bytes | None
) -> None:
    assert not follower.reading.is_proven(OBJECT, row)


# -- what is told --------------------------------------------------------------------------


def test_follower_tells_point_and_age_of_its_copy(follower: Follower) -> None:
    follower.now_s += 1.5

    told = follower.reading.told(Saw(OBJECT, 4))

    assert told == {
        "version": 4, "epoch": 3, "number": NUMBER, "age_ms": 1_500, "peer_id": ME,
    }  # fmt: skip


def test_copy_that_nobody_has_vouched_for_tells_since_when_it_is_here() -> None:
    told = Follower().reading.told(Saw(OBJECT, 4))

    assert told["age_ms"] == 40_000


def test_object_without_copies_tells_its_version() -> None:
    told = Follower().reading.told(Saw(ObjectId(bytes(16)), 4))

    assert told == {
        "version": 4, "epoch": 0, "number": 4, "age_ms": 0, "peer_id": ME,
    }  # fmt: skip
