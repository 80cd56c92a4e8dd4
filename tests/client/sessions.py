"""What the tests of the client's session share: a session, and messages to feed it."""

from __future__ import annotations

from typing import Any

from activestore.client.session import Request, Session
from activestore.errors import ActiveStoreError
from activestore.ids import SessionId
from activestore.wire import messages, values

SESSION = SessionId(b"s" * 16)
ENDPOINT = "tcp://127.0.0.1:7400"
OBJECT = b"o" * 16
PEER = b"peer06"
SILENCE_S = 30.0


def new_session(chance: float = 1.0, silence_s: float = SILENCE_S) -> Session:
    """Return a session whose every draw from [0, 1] is `chance`."""
    return Session(SESSION, "tester", ENDPOINT, silence_s, lambda: chance)


def welcome(incarnation: bytes = b"i" * 16, version: int = 1) -> messages.Welcome:
    """Return a peer's Welcome."""
    limits = {"message_bytes_max": 1 << 20}
    return messages.Welcome(version, PEER, incarnation, "edge-1", limits, ["call"])


def greeted(chance: float = 1.0, silence_s: float = SILENCE_S) -> Session:
    """Return a session that has its Welcome."""
    session = new_session(chance, silence_s)
    session.take(welcome(), 0.0)
    return session


def open_call(
    session: Session,
    now_s: float = 0.0,
    *,
    timeout_s: float = 0.0,
    extra: dict[str, Any] | None = None,
) -> Request:
    """Open a request that carries a Call."""
    return session.open(
        lambda sequence, first_unacked: messages.Call(
            sequence, OBJECT, "add", 0, 0, first_unacked, int(timeout_s * 1000), extra,
            b"arguments",
        ),
        now_s, timeout_s, "add",
    )  # fmt: skip


def open_stream(session: Session, now_s: float = 0.0) -> Request:
    """Open a request whose result comes as items."""
    request = open_call(session, now_s, extra={"stream": 16})
    request.is_stream = True
    return request


def open_question(session: Session, now_s: float = 0.0) -> Request:
    """Open a request to the peer itself, which has no attempts."""
    return session.open(
        lambda sequence, _: messages.Request(sequence, "status"), now_s, 0.0, "status"
    )


def failure(sequence: int, error: ActiveStoreError) -> messages.Failure:
    """Return the Failure that a peer sends for an error."""
    body, _ = values.encode(list(error.args))
    return messages.Failure(sequence, error.code, None, body)
