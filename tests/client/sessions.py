"""What the tests of the client's session share: a session, and messages to feed it."""

from __future__ import annotations

from typing import Any

from activestore.client.links import Link
from activestore.client.requests import Request
from activestore.client.session import Session
from activestore.errors import ActiveStoreError
from activestore.ids import SessionId
from activestore.wire import messages, values

SESSION = SessionId(b"s" * 16)
ENDPOINT = "tcp://127.0.0.1:7400"
OBJECT = b"o" * 16
PEER = b"peer06"
SILENCE_S = 30.0


class OneLink:
    """A session with one peer: what comes is from there, and what goes out goes there."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    @property
    def link(self) -> Link:
        """The only link."""
        (link,) = self.session.links.by_route.values()
        return link

    def hello(self) -> Any:
        """Return the first message."""
        return self.link.first

    def take(self, message: Any, now_s: float) -> tuple[list[Request], list[Any]]:
        """Take a message from the peer."""
        return self._stripped(*self.session.take(message, now_s, self.link))

    def tick(self, now_s: float) -> tuple[list[Request], list[Any]]:
        """Let time pass."""
        return self._stripped(*self.session.tick(now_s))

    def give_up(self, error: ActiveStoreError, now_s: float) -> list[Request]:
        """Have the peer be none."""
        ended, out = self.session.give_up(self.link, error, now_s)
        assert out == []
        return ended

    def abandon(self, request: Request, error: ActiveStoreError) -> Any:
        """End a request from this side; return what to tell the peer."""
        out = self.session.abandon(request, error)
        if out is None:
            return None
        ((link, message),) = out
        assert link is self.link
        return message

    def _stripped(self, ended: Any, out: Any) -> tuple[list[Request], list[Any]]:
        assert all(link is self.link for link, _ in out)
        return ended, [message for _, message in out]


def new_session(chance: float = 1.0, silence_s: float = SILENCE_S) -> Any:
    """Return a session with one peer whose every draw from [0, 1] is `chance`."""
    return OneLink(Session(SESSION, "tester", [ENDPOINT], silence_s, lambda: chance))


def welcome(incarnation: bytes = b"i" * 16, version: int = 1) -> messages.Welcome:
    """Return a peer's Welcome."""
    limits = {"message_bytes_max": 1 << 20}
    return messages.Welcome(version, PEER, incarnation, "edge-1", limits, ["call"])


def greeted(chance: float = 1.0, silence_s: float = SILENCE_S) -> Any:
    """Return a session that has its Welcome."""
    session = new_session(chance, silence_s)
    session.take(welcome(), 0.0)
    return session


def open_call(
    session: Any,
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


def open_stream(session: Any, now_s: float = 0.0) -> Request:
    """Open a request whose result comes as items."""
    request = open_call(session, now_s, extra={"stream": 16})
    request.is_stream = True
    return request


def open_question(session: Any, now_s: float = 0.0) -> Request:
    """Open a request to the peer itself, which has no attempts."""
    return session.open(
        lambda sequence, _: messages.Request(sequence, "status"), now_s, 0.0, "status"
    )


def failure(sequence: int, error: ActiveStoreError) -> messages.Failure:
    """Return the Failure that a peer sends for an error."""
    body, _ = values.encode(list(error.args))
    return messages.Failure(sequence, error.code, None, body)
