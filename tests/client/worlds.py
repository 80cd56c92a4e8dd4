"""A session with several peers, without sockets: what comes is said by the test."""

from __future__ import annotations

from typing import Any

from activestore.client.links import Link
from activestore.client.requests import Request
from activestore.client.session import (
    PING_S,
    Session,
)
from activestore.errors import (
    MovedError,
    RemoteProtocolError,
)
from activestore.wire.messages import (
    Call,
)
from tests.client.sessions import (
    OBJECT,
    SESSION,
    failure,
    open_call,
    welcome,
)

A, B, C, D = (f"tcp://127.0.0.1:{port}" for port in (7401, 7402, 7403, 7404))
ID_A, ID_B, ID_C, ID_D = b"peer-a", b"peer-b", b"peer-c", b"peer-d"
IDS = {A: ID_A, B: ID_B, C: ID_C, D: ID_D}
OTHER_OBJECT = b"p" * 16


class World:
    """A session, and all that it sends, by the address that it goes to."""

    def __init__(self, *endpoints: str, silence_s: float = 30.0) -> None:
        self.session = Session(SESSION, "tester", endpoints, silence_s, lambda: 1.0)
        self.now_s = 0.0
        self.ended: list[Request] = []
        self.sent: dict[str, list[Any]] = {}
        self.session.begin(0.0)
        self._carry([], [])

    def _carry(self, ended: list[Request], out: list[tuple[Link, Any]]) -> None:
        links = self.session.links
        for link in links.opened:
            self.sent.setdefault(link.endpoint, []).append(link.first)
        links.opened.clear()
        for link, message in out:
            assert link.is_open
            assert link in links.by_route.values()
            self.sent.setdefault(link.endpoint, []).append(message)
        links.ended.clear()
        self.ended += ended

    def link(self, endpoint: str, *, is_probe: bool = False) -> Link:
        """The open link to an address."""
        (found,) = (
            link
            for link in self.session.links.by_route.values()
            if link.endpoint == endpoint and bool(link.probed) == is_probe
        )
        return found

    def come(self, endpoint: str, message: Any, *, is_probe: bool = False) -> None:
        """Have a message come from an address."""
        link = self.link(endpoint, is_probe=is_probe)
        self._carry(*self.session.take(message, self.now_s, link))

    def greet(self, endpoint: str, **extra: Any) -> None:
        """Have the peer at an address welcome the client."""
        hello = welcome()._replace(peer_id=IDS[endpoint], extra=extra or None)
        self.come(endpoint, hello)

    def call(self, object_id: bytes = OBJECT, **extra: Any) -> Request:
        """Open a call, and send it where the session says."""
        request = open_call(self.session, self.now_s, extra=extra or None)
        return self.begun(request, object_id)

    def begun(self, request: Request, object_id: bytes = OBJECT) -> Request:
        """Send what was opened."""
        assert object_id == OBJECT
        out = [(request.link, request.message)] if request.is_sent else []
        self._carry([], out)
        return request

    def give_up(self, endpoint: str) -> None:
        """Have what answers there be no peer."""
        error = RemoteProtocolError("nonsense", endpoint)
        link = self.link(endpoint)
        self._carry(*self.session.give_up(link, error, self.now_s))

    def moved(self, asked: str, request: Request, to: str, epoch: int = 1) -> None:
        """Have a peer say that the object is at another."""
        error = MovedError(OBJECT, IDS.get(to, ID_D), to, epoch)
        self.come(asked, failure(request.sequence, error))

    def pass_time(self, seconds: float) -> None:
        """Let time pass, in the steps of a client that waits."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s = min(self.now_s + PING_S / 2, until_s)
            self._carry(*self.session.tick(self.now_s))

    def calls(self, endpoint: str) -> list[tuple[int, int, bool]]:
        """What calls went there, as sequence, attempt, and whether to forward them."""
        return [
            (m.sequence, m.attempt, (m.extra or {}).get("direct") is False)
            for m in self.sent.get(endpoint, [])
            if type(m) is Call
        ]

    def kinds(self, endpoint: str) -> list[type]:
        """What kinds of messages went there."""
        return [type(message) for message in self.sent.get(endpoint, [])]


def world_of(*endpoints: str) -> World:
    """Return a session that the first of these peers has welcomed."""
    world = World(*endpoints)
    world.greet(endpoints[0])
    return world
