"""The client's session by itself: greeting, requests, retries, reconnects.

Time is a number that the test hands in, chance a constant; nothing sleeps.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from activestore.client.requests import ATTEMPTS_MAX, OF_ONE_PEER
from activestore.client.session import BACKOFF_S, PING_S
from activestore.errors import (
    ActiveStoreError,
    BusyError,
    CancelledError,
    ExecutorCrashedError,
    MethodError,
    NoQuorumError,
    ObjectNotFoundError,
    RemoteProtocolError,
    UnavailableError,
)
from activestore.wire import messages, values
from activestore.wire.limits import PROTOCOL_VERSION, PROTOCOL_VERSION_MIN
from activestore.wire.messages import Failure, Hello, Pong, Refused, Reply
from tests.client.sessions import (
    ENDPOINT,
    OBJECT,
    PEER,
    SESSION,
    failure,
    greeted,
    new_session,
    open_call,
    open_question,
    open_stream,
    welcome,
)

ROOT = Path(__file__).resolve().parents[2]

# -- greeting --------------------------------------------------------------------------


def test_hello_names_session_client_and_the_versions_spoken() -> None:
    assert new_session().hello() == Hello(
        PROTOCOL_VERSION_MIN,
        PROTOCOL_VERSION,
        SESSION,
        "tester",
        ["call", "stream", "follow"],
    )


def test_welcome_tells_who_answers_and_what_it_takes() -> None:
    session = new_session()

    session.take(welcome(), 0.0)

    assert session.peer == (PEER, "edge-1", b"i" * 16, 1, 1 << 20)


def test_welcome_without_a_limit_allows_messages_of_a_gibibyte() -> None:
    session = new_session()

    session.take(welcome()._replace(limits={}), 0.0)

    assert session.peer is not None
    assert session.peer.message_bytes_max == 1 << 30


def test_what_was_asked_before_the_first_welcome_is_sent_then_for_the_first_time() -> (
    None
):
    session = new_session()
    request = open_call(session)

    assert not request.is_sent
    assert session.take(welcome(), 0.0) == ([], [request.message])
    assert session.take(welcome(), 0.0)[1][0].attempt == 1


@pytest.mark.parametrize("version", [0, PROTOCOL_VERSION + 1])
def test_welcome_in_a_version_that_was_not_offered_breaks_the_protocol(
    version: int,
) -> None:
    session = new_session()

    with pytest.raises(RemoteProtocolError) as caught:
        session.take(welcome(version=version), 0.0)

    assert caught.value.where == ENDPOINT
    assert str(version) in caught.value.reason
    assert session.peer is None


def test_refusal_fails_all_that_waits_and_is_remembered() -> None:
    session = new_session()
    request = open_call(session)

    ended, out = session.take(Refused("version", "this peer speaks 7"), 0.0)

    assert (ended, out) == ([request], [])
    assert session.refusal is request.error
    assert str(session.refusal) == f"{ENDPOINT}: this peer speaks 7"
    assert not session.requests


def test_peer_that_asks_for_hello_gets_it_and_nothing_fails() -> None:
    session = greeted()
    request = open_call(session)

    ended, out = session.take(Refused("hello_needed", "Call before Hello"), 0.0)

    assert (ended, out) == ([], [session.hello()])
    assert session.refusal is None
    assert not request.is_done


def test_one_hello_answers_many_calls_that_came_before_it() -> None:
    """A restarted peer refuses each call of a frame; one Hello is enough for all."""
    session = greeted()
    requests = [open_call(session) for _ in range(3)]
    needed = Refused("hello_needed", "Call before Hello")

    out = [message for _ in requests for message in session.take(needed, 0.1)[1]]
    again = session.take(welcome(b"j" * 16), 0.1)[1]

    assert out == [session.hello()]
    assert [message.sequence for message in again] == [1, 2, 3]


def test_hello_that_got_lost_is_said_again_after_a_while() -> None:
    session = greeted()
    open_call(session)
    needed = Refused("hello_needed", "Call before Hello")
    session.take(needed, 0.1)

    early = session.take(needed, 0.1 + PING_S / 2)[1]
    later = session.take(needed, 0.1 + PING_S)[1]

    assert (early, later) == ([], [session.hello()])


def test_peer_that_restarts_twice_in_a_moment_is_greeted_twice() -> None:
    session = greeted()
    open_call(session)
    needed = Refused("hello_needed", "Call before Hello")
    session.take(needed, 0.1)
    session.take(welcome(b"j" * 16), 0.1)

    assert session.take(needed, 0.2)[1] == [session.hello()]


# -- requests and replies --------------------------------------------------------------


def test_requests_are_numbered_upwards_from_one() -> None:
    session = greeted()

    sequences = [open_call(session).message.sequence for _ in range(3)]

    assert sequences == [1, 2, 3]


def test_first_unacked_is_the_lowest_request_without_an_answer() -> None:
    """The peer may drop the records of all lower ones, so it must never run ahead."""
    session = greeted()
    seen = [open_call(session).message.first_unacked for _ in range(3)]
    session.take(Reply(2), 0.0)
    while_one_is_open = open_call(session).message.first_unacked
    session.take(Reply(1), 0.0)
    when_one_and_two_are_answered = session.first_unacked
    session.take(Reply(3), 0.0)
    session.take(Reply(4), 0.0)

    assert seen == [1, 1, 1]
    assert while_one_is_open == 1
    assert when_one_and_two_are_answered == 3
    assert open_call(session).message.first_unacked == session.first_unacked == 5


def test_reply_ends_its_request_and_no_other() -> None:
    session = greeted()
    first, second = open_call(session), open_call(session)

    ended, out = session.take(Reply(2, None, b"result"), 0.0)

    assert (ended, out) == ([second], [])
    assert second.outcome().body == b"result"
    assert not first.is_done


def test_second_reply_to_a_request_is_ignored() -> None:
    session = greeted()
    request = open_call(session)
    session.take(Reply(1, None, b"first"), 0.0)

    assert session.take(Reply(1, None, b"second"), 0.0) == ([], [])
    assert request.outcome().body == b"first"


@pytest.mark.parametrize(
    "message",
    [Reply(9), failure(9, CancelledError("x")), messages.Item(9, 0), Pong(9, b"i" * 16, True)],
    ids=lambda message: type(message).__name__,
)  # fmt: skip
def test_answer_to_nothing_that_is_open_is_ignored(message: messages.Message) -> None:
    session = greeted()
    request = open_call(session)

    assert session.take(message, 0.0) == ([], [])
    assert not request.is_done


def test_failure_raises_the_error_with_its_fields() -> None:
    session = greeted()
    request = open_call(session)

    ended, out = session.take(failure(1, ObjectNotFoundError(OBJECT)), 0.0)

    assert (ended, out) == ([request], [])
    with pytest.raises(ObjectNotFoundError) as caught:
        request.outcome()
    assert caught.value.object_id == OBJECT


def test_failure_of_a_code_from_the_future_is_named() -> None:
    session = greeted()
    request = open_call(session)
    body, _ = values.encode(["moon", "full"])

    session.take(Failure(1, "tide_too_high", None, body), 0.0)

    with pytest.raises(ActiveStoreError, match="tide_too_high: moon, full"):
        request.outcome()


def test_failure_after_a_reply_is_ignored() -> None:
    session = greeted()
    request = open_call(session)
    session.take(Reply(1), 0.0)

    assert session.take(failure(1, CancelledError("add")), 0.0) == ([], [])
    assert request.error is None


def body_of(value: object) -> bytes:
    """Return the encoded value."""
    return values.encode(value)[0]


@pytest.mark.parametrize(
    ("code", "body"),
    [
        ("cancelled", b""),
        ("cancelled", b"\xc1"),
        ("cancelled", body_of(5)),
        ("cancelled", body_of({"where": "add"})),
        ("cancelled", body_of("add")),
        ("busy", body_of(["peer", "full", "soon"])),
        ("busy", body_of(["peer", "full", None])),
        ("executor_crashed", body_of(["add", "signal 9", "long"])),
    ],
)
def test_malformed_failure_is_a_protocol_error_and_nothing_else(
    code: str, body: bytes
) -> None:
    """Any other exception would end the thread that reads for all the others."""
    session = greeted()
    open_call(session)

    with pytest.raises(RemoteProtocolError):
        session.take(Failure(1, code, None, body), 0.0)

    assert list(session.requests) == [1], "who took the message fails what is open"


@pytest.mark.parametrize(
    ("code", "fields", "text"),
    [
        ("method", [], "method: "),
        ("method", ["ValueError"], "method: ValueError"),
        ("method", ["E", "no", "add", "", ["x"]], "method: E, no, add, , ['x']"),
        ("method", ["E", "no", "add", "", 7], "method: E, no, add, , 7"),
        ("cancelled", [], "cancelled: "),
    ],
)
def test_failure_whose_fields_do_not_fit_fails_its_request_alone(
    code: str, fields: list[object], text: str
) -> None:
    session = greeted()
    request, other = open_call(session), open_call(session)

    ended, _ = session.take(Failure(1, code, None, body_of(fields)), 0.0)

    assert ended == [request]
    assert str(request.error) == text
    assert not other.is_done


@pytest.mark.parametrize(
    "message",
    [
        Hello(1, 1, SESSION, "", []),
        messages.Call(1, OBJECT, "add", 0, 0, 1, 0),
        messages.Bye(),
        messages.Ping(1),
    ],
    ids=lambda message: type(message).__name__,
)
def test_message_that_only_a_client_sends_is_a_protocol_error(
    message: messages.Message,
) -> None:
    session = greeted()

    with pytest.raises(RemoteProtocolError) as caught:
        session.take(message, 0.0)

    assert type(message).__name__ in str(caught.value)


# -- retries after a failure -----------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        UnavailableError("peer", "stopping"),
        NoQuorumError("object", "1 of 3"),
        ExecutorCrashedError("add", "signal 9"),
    ],
    ids=lambda error: error.code,
)
def test_failure_of_the_kind_retry_is_sent_again_with_the_same_number(
    error: ActiveStoreError,
) -> None:
    session = greeted()
    request = open_call(session, extra={"trace": "t"})

    ended, out = session.take(failure(1, error), 0.25)
    waiting = session.tick(0.25)
    due_s = session.next_tick_s()
    again = session.tick(due_s)

    assert (ended, out) == ([], [])
    assert waiting == ([], [])
    assert due_s == pytest.approx(0.25 + BACKOFF_S)
    expected = request.message._replace(
        attempt=1, extra={"trace": "t", "age_ms": int(due_s * 1000)}
    )
    assert again == ([], [expected])
    assert request.message.attempt == 0, "the first attempt is kept as it was"


def test_retry_that_was_sent_waits_for_its_answer() -> None:
    session = greeted()
    open_call(session)
    session.take(failure(1, UnavailableError("peer")), 0.0)
    session.tick(BACKOFF_S)

    assert session.tick(BACKOFF_S + 0.1) == ([], [])


def test_retry_waits_as_chance_says_within_the_back_off() -> None:
    session = greeted(chance=0.5)
    open_call(session)
    session.tick(0.0)

    session.take(failure(1, UnavailableError("peer")), 0.0)

    assert session.next_tick_s() == pytest.approx(BACKOFF_S / 2)


def test_second_retry_backs_off_twice_as_long() -> None:
    session = greeted()
    open_call(session)
    session.take(failure(1, UnavailableError("peer")), 0.0)
    session.tick(BACKOFF_S)

    session.take(failure(1, UnavailableError("peer")), 1.0)

    assert session.tick(1.0 + 1.99 * BACKOFF_S) == ([], [])
    (again,) = session.tick(1.0 + 2 * BACKOFF_S)[1]
    assert again.attempt == 2


def test_too_many_in_flight_waits_as_long_as_the_peer_asks() -> None:
    session = greeted(chance=0.0)
    open_call(session)

    session.take(failure(1, BusyError("mailbox", "128 wait", 0.7)), 0.0)

    assert not any(
        isinstance(message, messages.Call) for message in session.tick(0.69)[1]
    )
    (again,) = session.tick(0.7)[1]
    assert (again.sequence, again.attempt) == (1, 1)


def test_last_attempt_that_fails_is_final() -> None:
    session = greeted()
    request = open_call(session)
    busy = failure(1, BusyError("mailbox", "128 wait", 0.1))
    now_s = 0.0
    for _ in range(ATTEMPTS_MAX - 1):
        assert session.take(busy, now_s) == ([], [])
        now_s += 1.0
        assert len(session.tick(now_s)[1]) >= 1

    ended, _ = session.take(busy, now_s)

    assert ended == [request]
    with pytest.raises(BusyError):
        request.outcome()
    assert request.attempt == ATTEMPTS_MAX - 1


@pytest.mark.parametrize(
    "error",
    [
        MethodError("ValueError", "no"),
        CancelledError("add"),
        ObjectNotFoundError(OBJECT),
        ExecutorCrashedError("add", "signal 9", 600.0),
    ],
    ids=lambda error: error.code,
)
def test_failure_that_would_come_again_is_not_retried(error: ActiveStoreError) -> None:
    """A quarantined call has killed two executors: it is refused, not sent again."""
    session = greeted()
    request = open_call(session)

    assert session.take(failure(1, error), 0.0) == ([request], [])
    assert type(request.error) is type(error)


@pytest.mark.parametrize("operation", ["drain", "stop", "force", "export", "discard"])
def test_what_one_peer_refuses_of_itself_is_asked_of_no_other(operation: str) -> None:
    session = greeted()
    request = session.open(
        lambda sequence, _: messages.Request(sequence, operation), 0.0, 0.0, operation
    )
    refused = UnavailableError(operation, "2 objects could not be moved")

    ended, sent = session.take(failure(1, refused), 1.0)

    assert (ended, sent) == ([request], [])
    assert str(request.error) == str(refused)


def test_operations_about_one_peer_are_those_that_the_protocol_names() -> None:
    text = (ROOT / "schemas/protocol.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in text.splitlines() if line[:3] == "| `"]
    meant = ("peer_id (may be absent)", "as for `drain`")

    named = {
        operation.strip(" `")
        for operation, parameters in rows
        if any(one in parameters for one in meant)
    }

    assert named == OF_ONE_PEER


def test_stream_that_failed_is_not_sent_again() -> None:
    session = greeted()
    request = open_stream(session)

    ended, _ = session.take(failure(1, UnavailableError("peer")), 0.0)

    assert ended == [request]
    with pytest.raises(UnavailableError):
        request.outcome()


def test_late_reply_to_the_first_attempt_stops_the_retry() -> None:
    session = greeted()
    request = open_call(session)
    session.take(failure(1, UnavailableError("peer")), 0.0)

    ended, _ = session.take(Reply(1, None, b"late"), 0.01)

    assert ended == [request]
    assert request.outcome().body == b"late"
    assert session.tick(10.0) == ([], [])


def test_two_failures_of_one_attempt_are_one_retry() -> None:
    session = greeted()
    request = open_call(session)
    unavailable = failure(1, UnavailableError("peer"))
    session.take(unavailable, 0.0)
    session.take(unavailable, 0.0)

    _, out = session.tick(BACKOFF_S)

    assert [message.attempt for message in out] == [1]
    assert request.attempt == 1


# -- a connection that was lost --------------------------------------------------------


@pytest.mark.parametrize("incarnation", [b"i" * 16, b"j" * 16])
def test_after_a_reconnect_all_is_sent_again_with_the_same_numbers(
    incarnation: bytes,
) -> None:
    session = greeted()
    first = open_call(session)
    answered = open_call(session)
    question = open_question(session)
    session.take(Reply(answered.sequence), 0.0)

    ended, out = session.take(welcome(incarnation), 2.0)

    assert ended == []
    assert out == [
        first.message._replace(attempt=1, extra={"age_ms": 2000}),
        question.message,
    ]
    assert session.peer is not None
    assert session.peer.incarnation == incarnation


def test_every_reconnect_is_another_attempt() -> None:
    session = greeted()
    open_call(session)

    attempts = [
        session.take(welcome(bytes([n]) * 16), 0.0)[1][0].attempt for n in (1, 2, 3, 4)
    ]

    assert attempts == [1, 2, 3, 4]


def test_stream_fails_when_the_connection_breaks() -> None:
    session = greeted()
    request = open_stream(session)
    session.take(messages.Item(1, 0, None, b"zero"), 0.0)

    ended, out = session.take(welcome(b"j" * 16), 1.0)

    assert (ended, out) == ([request], [messages.Cancel(1)])
    assert [item.body for item in request.items] == [b"zero"], "what came stays"
    with pytest.raises(UnavailableError, match="stream is not resumed"):
        request.outcome()


def test_request_that_waits_for_its_retry_is_not_sent_by_the_reconnect_too() -> None:
    session = greeted()
    open_call(session)
    session.take(failure(1, BusyError("mailbox", "full", 0.3)), 0.0)

    assert session.take(welcome(b"j" * 16), 0.1) == ([], [])
    (again,) = session.tick(0.3)[1]
    assert again.attempt == 1


@pytest.mark.parametrize(
    ("incarnation", "is_known"), [(b"i" * 16, False), (b"j" * 16, True)]
)
def test_pong_of_a_peer_that_does_not_know_us_is_answered_by_hello(
    incarnation: bytes, is_known: bool
) -> None:
    session = greeted()
    open_call(session)

    assert session.take(Pong(1, incarnation, is_known), 1.0) == ([], [session.hello()])


def test_pong_of_the_same_peer_changes_nothing() -> None:
    session = greeted()
    open_call(session)

    assert session.take(Pong(1, b"i" * 16, True), 1.0) == ([], [])


def test_pong_before_the_first_welcome_needs_no_hello() -> None:
    session = new_session()

    assert session.take(Pong(1, b"i" * 16, True), 0.0) == ([], [])
