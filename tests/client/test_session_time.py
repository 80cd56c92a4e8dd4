"""The client's session over time: pings, silence, deadlines, cancels, streams."""

from __future__ import annotations

import math

import pytest

from activestore.client.requests import DEADLINE_GRACE_S, STREAM_CREDIT
from activestore.client.session import (
    PING_S,
    Request,
    Session,
)
from activestore.errors import (
    BusyError,
    CancelledError,
    DeadlineExceededError,
    MethodError,
    NoQuorumError,
    RemoteProtocolError,
    UnavailableError,
)
from activestore.wire import messages
from activestore.wire.messages import Beat, Cancel, Credit, Item, Ping, Pong, Reply
from tests.client.sessions import (
    ENDPOINT,
    SILENCE_S,
    failure,
    greeted,
    open_call,
    open_question,
    open_stream,
)


def run_until(
    session: Session, start_s: float, end_s: float
) -> tuple[list[Request], list[messages.Message]]:
    """Tick whenever the session asks for it; return all that ended and was sent."""
    ended, out, now_s = [], [], start_s
    while now_s < end_s:
        now_s = min(max(session.next_tick_s(), now_s + 0.001), end_s)
        more, messages_out = session.tick(now_s)
        ended += more
        out += messages_out
    return ended, out


# -- is the peer there? ----------------------------------------------------------------


def test_silence_with_a_request_open_makes_the_session_ask() -> None:
    session = greeted()
    open_call(session)

    early = session.tick(PING_S - 0.01)
    due = session.tick(PING_S)

    assert (early, due) == (([], []), ([], [Ping(1)]))


def test_session_asks_again_with_another_token_while_nothing_comes() -> None:
    session = greeted()
    open_call(session)

    _, out = run_until(session, 0.0, 4 * PING_S)

    assert out[:2] == [Ping(1), Ping(2)]
    assert len(out) <= 4, "one question per PING_S, no more"


def test_nothing_is_asked_while_nothing_is_open() -> None:
    session = greeted()

    assert run_until(session, 0.0, 60.0) == ([], [])


def test_nothing_is_asked_while_the_peer_talks() -> None:
    session = greeted()
    open_call(session)
    other = open_call(session, 0.4)
    session.take(Reply(other.sequence), 0.4)

    assert session.tick(PING_S) == ([], [])


def test_request_that_was_just_sent_is_no_reason_to_ask() -> None:
    """After an idle hour the last thing heard is old, but nothing was asked yet."""
    session = greeted()
    open_call(session, 3600.0)

    assert session.tick(3600.1) == ([], [])


def test_beat_keeps_a_request_alive_for_hours() -> None:
    session = greeted()
    request = open_call(session)

    for now_s in range(2, 7200, 2):
        assert session.take(Beat([1]), now_s) == ([], [])
        assert session.tick(now_s + 1.0)[0] == []

    assert not request.is_done


def test_request_that_the_peer_does_not_name_any_more_fails_after_the_silence() -> None:
    session = greeted()
    kept, lost = open_call(session), open_call(session)
    for now_s in range(0, int(SILENCE_S), 2):
        session.take(Beat([kept.sequence, 99]), now_s)
        session.take(Pong(1, b"i" * 16, True), now_s)

    ended, out = session.tick(SILENCE_S)

    assert (ended, out) == ([lost], [Ping(1)])
    with pytest.raises(UnavailableError) as caught:
        lost.outcome()
    assert caught.value.where == ENDPOINT
    assert "nothing was heard for 30.0 s" in caught.value.reason
    assert not kept.is_done


def test_pongs_alone_do_not_stretch_the_silence() -> None:
    session = greeted()
    request = open_call(session)
    ended: list[Request] = []
    for step in range(int(SILENCE_S) * 2 + 1):
        ended += session.tick(step / 2)[0]
        session.take(Pong(step, b"i" * 16, True), step / 2)

    assert ended == [request]


def test_reply_after_the_silence_was_reported_is_ignored() -> None:
    session = greeted()
    request = open_call(session)
    session.tick(SILENCE_S)

    assert session.take(Reply(1), SILENCE_S + 1) == ([], [])
    assert isinstance(request.error, UnavailableError)


def test_failure_that_is_retried_is_a_sign_of_life() -> None:
    session = greeted()
    request = open_call(session)
    session.take(failure(1, UnavailableError("peer")), SILENCE_S - 1)

    session.tick(SILENCE_S)

    assert not request.is_done


def test_session_asks_to_be_woken_when_the_silence_is_over() -> None:
    """A bound shorter than the pause between ticks must not be overslept."""
    session = greeted(silence_s=0.05)
    request = open_call(session)
    session.tick(0.0)

    due_s = session.next_tick_s()
    ended, _ = session.tick(due_s)

    assert due_s == pytest.approx(0.05)
    assert ended == [request]


# -- deadlines -------------------------------------------------------------------------


def test_request_past_its_deadline_and_grace_fails_and_is_cancelled() -> None:
    """The peer says so itself; the session speaks only where the peer does not."""
    session = greeted()
    request = open_call(session, timeout_s=5.0)
    session.take(Beat([1]), 5.0)

    at_the_deadline = session.tick(5.0 + DEADLINE_GRACE_S)
    ended, out = session.tick(5.01 + DEADLINE_GRACE_S)

    assert at_the_deadline[0] == []
    assert (ended, out) == ([request], [Cancel(1)])
    with pytest.raises(DeadlineExceededError) as caught:
        request.outcome()
    assert caught.value.timeout_s == 5.0
    assert caught.value.is_unknown
    assert "nothing was committed" not in str(caught.value)


def test_looks_do_not_come_more_often_with_each_deadline_that_is_open() -> None:
    """Each look is at all of them: one for each deadline were their square."""
    session, requests_count, within_s = greeted(), 5000, 2.0
    for number in range(requests_count):
        open_call(session, number * within_s / requests_count, timeout_s=10.0)
    looks, now_s = 0, within_s
    while now_s < 2 * within_s:
        session.take(Pong(1, b"i" * 16, is_known=True), now_s)
        now_s = max(session.next_tick_s(), now_s + 1e-6)
        session.tick(now_s)
        looks += 1

    assert looks <= within_s / (PING_S / 2) + 2


def test_retry_tells_the_peer_what_is_left_of_the_deadline() -> None:
    session = greeted()
    open_call(session, timeout_s=5.0)

    session.take(failure(1, UnavailableError("peer")), 2.0)
    (again,) = session.tick(2.0 + 0.05)[1]

    assert again.deadline_ms == 2950


def test_retry_past_the_deadline_leaves_a_millisecond_not_for_ever() -> None:
    """0 would mean that there is no deadline."""
    session = greeted()
    open_call(session, timeout_s=1.0)

    session.take(failure(1, UnavailableError("peer")), 1.0)
    (again,) = session.tick(1.2)[1]

    assert again.deadline_ms == 1


def test_question_without_attempts_is_asked_anew_as_it_was() -> None:
    session = greeted()
    question = open_question(session)

    session.take(failure(1, UnavailableError("peer")), 0.0)

    assert session.tick(0.05)[1] == [question.message]


def test_deadline_beats_a_retry_that_is_due_later() -> None:
    session = greeted()
    request = open_call(session, timeout_s=1.0)
    session.take(failure(1, BusyError("mailbox", "full", math.inf)), 0.99)

    ended, out = run_until(session, 0.99, 2.0)

    assert ended == [request]
    assert isinstance(request.error, DeadlineExceededError)
    assert out[-1] == Cancel(1)


# -- cancel and close ------------------------------------------------------------------


def test_abandoned_request_is_cancelled_at_the_peer() -> None:
    session = greeted()
    request = open_call(session)

    told = session.abandon(request, CancelledError("add"))

    assert told == Cancel(1)
    with pytest.raises(CancelledError):
        request.outcome()
    assert session.take(Reply(1), 0.0) == ([], []), "the answer comes too late"


def test_abandoning_what_has_ended_changes_nothing() -> None:
    session = greeted()
    request = open_call(session)
    session.take(Reply(1, None, b"result"), 0.0)

    assert session.abandon(request, CancelledError("add")) is None
    assert request.outcome().body == b"result"


def test_end_of_the_session_fails_everything_once() -> None:
    session = greeted()
    requests = [open_call(session), open_stream(session), open_question(session)]
    error = CancelledError("the client was closed")

    assert session.fail_all(error) == requests
    assert session.fail_all(error) == []
    assert all(request.error is error for request in requests)


# -- streams ---------------------------------------------------------------------------


def test_items_come_in_order_then_the_reply_ends_the_stream() -> None:
    session = greeted()
    request = open_stream(session)

    for number in range(3):
        item = Item(1, number, None, bytes([number]))
        assert session.take(item, 0.0) == ([request], [])
        assert not request.is_done
    ended, _ = session.take(Reply(1), 0.0)

    assert ended == [request]
    assert request.is_done
    assert [item.body for item in request.items] == [b"\x00", b"\x01", b"\x02"]


@pytest.mark.parametrize("number", [0, 2])
def test_item_that_is_doubled_or_missing_ends_the_stream(number: int) -> None:
    session = greeted()
    request = open_stream(session)
    session.take(Item(1, 0), 0.0)

    ended, out = session.take(Item(1, number), 0.0)

    assert (ended, out) == ([request], [Cancel(1)])
    with pytest.raises(
        RemoteProtocolError, match=f"item {number} came where 1 was due"
    ):
        request.outcome()
    assert len(request.items) == 1


def test_item_for_a_call_that_is_no_stream_is_ignored() -> None:
    session = greeted()
    request = open_call(session)

    assert session.take(Item(1, 0), 0.0) == ([], [])
    assert request.items == []


def test_item_after_the_stream_was_closed_is_ignored() -> None:
    session = greeted()
    request = open_stream(session)
    session.abandon(request, CancelledError("rows"))

    assert session.take(Item(1, 0), 0.0) == ([], [])
    assert request.items == []


def test_items_are_a_sign_of_life() -> None:
    session = greeted()
    request = open_stream(session)
    session.take(Item(1, 0), SILENCE_S - 1)

    session.tick(SILENCE_S)

    assert not request.is_done


def test_stream_that_fails_after_items_keeps_them() -> None:
    session = greeted()
    request = open_stream(session)
    session.take(Item(1, 0), 0.0)

    ended, _ = session.take(
        failure(1, MethodError("ValueError", "row 1", builtin="ValueError")), 0.0
    )

    assert ended == [request]
    assert len(request.items) == 1
    with pytest.raises(ValueError, match="row 1"):
        request.outcome()


def test_reader_of_a_stream_grants_half_a_window_at_a_time() -> None:
    """The peer is never granted more than was taken, and never waits for its reader."""
    session = greeted()
    request = open_stream(session)

    grants = [request.credit_due() for _ in range(STREAM_CREDIT)]

    half = STREAM_CREDIT // 2
    assert grants[half - 1] == grants[-1] == Credit(1, half)
    assert grants.count(None) == STREAM_CREDIT - 2


def test_missing_majority_at_the_deadline_is_told_not_tried_again() -> None:
    session = greeted()
    request = open_call(session, timeout_s=1.0)

    ended, out = session.take(failure(1, NoQuorumError("add", "in doubt")), 0.999)

    assert (ended, out) == ([request], [])
    with pytest.raises(NoQuorumError, match="in doubt"):
        request.outcome()


def test_missing_majority_is_told_in_time_where_nobody_knows_better() -> None:
    """It is asked again until then; of who is silent nothing more is to be expected."""
    session = greeted()
    request = open_call(session, timeout_s=2.0)
    session.take(failure(1, NoQuorumError("add", "nobody leads")), 1.0)
    (again,) = session.tick(1.06)[1]

    before = session.tick(1.94)
    due_s = session.next_tick_s()
    ended, out = session.tick(due_s + 1e-6)

    assert again.attempt == 1
    assert before[0] == []
    assert (ended, out, due_s < 2.0) == ([request], [Cancel(1)], True)
    with pytest.raises(NoQuorumError):
        request.outcome()


def test_peer_that_has_what_another_refused_tells_of_the_deadline_itself() -> None:
    session = greeted()
    request = open_call(session, timeout_s=2.0)
    session.take(failure(1, NoQuorumError("add", "nobody leads")), 1.0)
    session.tick(1.06)
    session.take(Beat([1]), 1.5)

    session.tick(1.99)
    assert not request.is_done
    session.take(failure(1, DeadlineExceededError("add", 2.0)), 2.01)

    with pytest.raises(DeadlineExceededError) as caught:
        request.outcome()
    assert not caught.value.is_unknown
