"""Which requests of a session may have been answered elsewhere, and what that costs."""

from __future__ import annotations

from typing import Any

import pytest

from activestore.ids import SessionId
from activestore.peer.table import Parts, Session, Table
from activestore.wire.messages import Call

DOUBTS = 10_000


def table_of() -> Table:
    """Return a table of which only the sessions are looked at."""
    nothing: Any = None
    return Table(
        Parts(
            nothing, nothing, nothing, nothing, nothing, nothing, lambda: 100.0,
            lambda: 100.0, lambda _level, _text: None,
        )
    )  # fmt: skip


def session_of(table: Table, number: int) -> Session:
    return table.add_session(SessionId(number.to_bytes(16, "big")), b"", "")


def call(sequence: int, first_unacked: int = 0) -> Call:
    return Call(sequence, b"o" * 16, "add", 0, 0, first_unacked, 0, None, b"", ())


@pytest.mark.parametrize("sessions_count", [100, 1000])
def test_many_objects_that_come_doubt_each_session_once(
    sessions_count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer takes over thousands in one turn, with a thousand clients that are silent."""
    table = table_of()
    sessions = [session_of(table, number) for number in range(sessions_count)]
    for session in sessions:
        session.numbered(call(1))
    doubts: list[Session] = []

    def doubt(session: Session) -> None:
        doubts.append(session)

    monkeypatch.setattr(Session, "doubt", doubt)

    for _ in range(DOUBTS):
        table.doubt_sessions()

    assert len(doubts) == sessions_count
    assert set(doubts) == set(sessions)


def test_request_after_a_doubt_is_looked_up_though_others_were_trusted() -> None:
    """Also of one that was in doubt itself: what it asked meanwhile counts anew."""
    table = table_of()
    trusted, doubted = session_of(table, 1), session_of(table, 2)
    for session in (trusted, doubted):
        assert session.numbered(call(1)).attempt == 1
    assert trusted.numbered(call(2, first_unacked=2)).attempt == 0

    table.doubt_sessions()

    assert trusted.numbered(call(3, first_unacked=2)).attempt == 1
    assert doubted.numbered(call(2, first_unacked=2)).attempt == 1
    # Both have heard of an answer that was given after it.
    assert trusted.numbered(call(4, first_unacked=4)).attempt == 0
    assert doubted.numbered(call(3, first_unacked=3)).attempt == 0


def test_later_attempt_is_no_proof_that_a_request_was_answered_here() -> None:
    """Its client asks several peers: what stood still here, others have answered."""
    session = session_of(table_of(), 1)
    assert session.numbered(call(4, first_unacked=4)).attempt == 1

    later = session.numbered(call(6, first_unacked=6)._replace(attempt=2))

    assert later.attempt == 2
    assert session.numbered(call(7, first_unacked=4)).attempt == 1
    assert session.numbered(call(8, first_unacked=8)).attempt == 0


def test_session_that_has_ended_is_kept_nowhere() -> None:
    table = table_of()
    session = session_of(table, 1)
    session.numbered(call(1))

    table.remove_session(session)

    assert not table.sessions
    assert not session.asking
