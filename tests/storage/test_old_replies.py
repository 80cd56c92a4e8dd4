"""How replies grow old on a disk: by the time that peers ran on it, and by no clock.

Source: reliability.md 3.7.
"""

from __future__ import annotations

from collections.abc import Callable

from activestore.ids import SESSION_ID_BYTES, SessionId
from activestore.storage.engine import Change, Engine, ReplyRecord, Swept
from activestore.storage.records import seal
from activestore.storage.upkeep import RAN
from activestore.wire import packing
from tests.storage.changes import SESSION, new, oid, reply
from tests.storage.test_moves import damage

HOUR_S = 3600.0


def ages(engine: Engine, number: int = 1) -> list[float]:
    """Return how old the replies of an object are."""
    return [one.age_s for one in engine.replies_of(oid(number))]


def test_reply_grows_old_by_the_time_that_a_peer_ran_whatever_it_says_itself(
    engine: Engine,
) -> None:
    stamps = (0.0, 1000.0, 1e12)
    told = [ReplyRecord(SESSION, n, "", b"", at) for n, at in enumerate(stamps, 1)]
    engine.commit([new(1, replies=told)])

    assert engine.expire_replies(HOUR_S, HOUR_S) == Swept(0, True)
    assert ages(engine) == [HOUR_S] * 3
    assert engine.expire_replies(1.0, HOUR_S) == Swept(3, True)
    assert engine.replies_of(oid(1)) == []


def test_age_is_kept_over_a_restart_and_time_between_is_not_counted(
    reopen: Callable[..., Engine],
) -> None:
    engine = reopen()
    engine.commit([new(1, replies=[reply(1)])])
    engine.expire_replies(HOUR_S, 2 * HOUR_S)
    engine.commit([new(2, replies=[reply(2)])])

    again = reopen()

    assert ages(again) == [HOUR_S]
    assert ages(again, 2) == [0.0]
    assert again.expire_replies(HOUR_S + 1, 2 * HOUR_S).dropped_count == 1
    assert ages(again, 2) == [HOUR_S + 1]


def test_answer_that_comes_from_another_disk_brings_its_age(engine: Engine) -> None:
    engine.commit([new(9, replies=[reply(9)])])
    engine.expire_replies(HOUR_S, 9 * HOUR_S)
    moved = ReplyRecord(SESSION, 1, "", b"", 0.0, age_s=2 * HOUR_S)
    engine.commit([new(1, replies=[moved])])

    assert ages(engine) == [2 * HOUR_S]
    assert engine.expire_replies(60.0, 2 * HOUR_S).dropped_count == 1
    assert ages(engine, 9) == [HOUR_S + 60.0]


def test_store_without_replies_writes_nothing_as_time_goes(engine: Engine) -> None:
    engine.commit([new(1)])

    assert engine.expire_replies(HOUR_S, HOUR_S) == Swept(0, True)
    assert engine.row(*RAN) is None
    engine.commit([new(2, replies=[reply(1)])])
    assert ages(engine, 2) == [0.0]


def test_reply_of_an_older_program_and_one_after_a_lost_count_are_new(
    engine: Engine,
) -> None:
    """Neither tells how old it is; that it is dropped early would run a call twice."""
    engine.commit([new(1, replies=[reply(1)]), new(2, replies=[reply(2)])])
    key = oid(1) + SESSION + (1).to_bytes(8, "big")
    row = seal(packing.pack(["", b"", 1000.0, []]))
    engine._write(lambda txn: txn.put(key, row, db=engine._tables["replies"]))  # type: ignore[attr-defined]
    engine.expire_replies(5 * HOUR_S, 9 * HOUR_S)
    assert ages(engine, 1) == [0.0]
    assert ages(engine, 2) == [5 * HOUR_S]

    engine.commit([new(3, replies=[reply(3)])])
    engine._ran_s = 0.0  # type: ignore[attr-defined]  # As after damage of its row.
    engine.expire_replies(60.0, HOUR_S)

    assert [ages(engine, n) for n in (1, 2, 3)] == [[0.0], [60.0], [0.0]]
    assert engine.expire_replies(HOUR_S + 1, HOUR_S).dropped_count == 3


def test_damaged_count_begins_anew_and_drops_nothing(
    reopen: Callable[..., Engine],
) -> None:
    engine = reopen()
    engine.commit([new(1, replies=[reply(1)])])
    engine.expire_replies(HOUR_S, 9 * HOUR_S)
    damage(engine, "facts", RAN[0].encode() + b"\x00" + RAN[1])

    again = reopen()

    assert again.expire_replies(60.0, HOUR_S) == Swept(0, True)
    assert [one.sequence for one in again.replies_of(oid(1))] == [1]


def test_table_of_any_size_is_gone_round_in_bounded_looks(engine: Engine) -> None:
    sessions = [SessionId(n.to_bytes(SESSION_ID_BYTES, "big")) for n in range(1000)]
    told = [ReplyRecord(session, 1, "", b"", 0.0) for session in sessions]
    engine.commit([new(1), Change(oid(1), replies=told)])
    engine.expire_replies(HOUR_S, HOUR_S, limit=2000)

    looks = [engine.expire_replies(1.0, HOUR_S, limit=300)]
    while not looks[-1].is_round:
        looks.append(engine.expire_replies(0.0, HOUR_S, limit=300))

    assert [one.dropped_count for one in looks] == [300, 300, 300, 100]
    assert engine.replies_of(oid(1)) == []
