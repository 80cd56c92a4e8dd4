"""Random histories of the client's session over a connection that breaks and restarts.

The peer here keeps the promises of the protocol: it answers what it has answered before
from its record, and drops records below `first_unacked`. A failing seed replays with
`pytest tests/client/test_session_histories.py -k <seed>`.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

import pytest

from activestore.client.requests import Request
from activestore.client.session import Session
from activestore.errors import ActiveStoreError, BusyError
from activestore.ids import SessionId
from activestore.wire.messages import Beat, Call, Hello, Ping, Pong, Refused, Reply
from tests.client.sessions import ENDPOINT, OneLink, failure, open_call, welcome

CALLS = 40
BEAT_S = 2.0
SILENCE_S = 20.0


class LossyWorld:
    """One session, one peer that counts, and the connection between them."""

    def __init__(
        self, seed: int, *, breaks: float, restarts: float, busy: float
    ) -> None:
        self.rng = random.Random(seed)
        self.breaks, self.restarts, self.busy = breaks, restarts, busy
        self.now_s = 0.0
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.order = 0
        self.connection = 0  # what was under way on an older one never arrives
        self.session = OneLink(
            Session(
                SessionId(b"s" * 16), "tester", [ENDPOINT], SILENCE_S, self.rng.random
            )
        )
        self.ended: list[Request] = []
        # The peer: `count` and `records` outlive a restart, the rest does not.
        self.count = 0
        self.records: dict[int, bytes] = {}
        self.acknowledged_below = 0
        self.incarnation = 1
        self.is_known = False
        self.running: set[int] = set()

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do `action` after a while."""
        self.order += 1
        heapq.heappush(self.agenda, (self.now_s + delay_s, self.order, action))

    # -- the connection ----------------------------------------------------------------

    def to_peer(self, message: Any) -> None:
        """Carry a message; it is lost where the connection breaks before it arrives."""
        self._carry(message, self.peer_takes)

    def to_client(self, message: Any) -> None:
        """Carry a message back."""
        self._carry(message, self.client_takes)

    def _carry(self, message: Any, take: Callable[[Any], None]) -> None:
        connection = self.connection
        if self.rng.random() < self.breaks:
            self.connection += 1
            self.is_known = False  # A new connection has a new route.
            return

        def arrive() -> None:
            if self.connection == connection:
                take(message)

        self.later(0.001, arrive)

    # -- the client --------------------------------------------------------------------

    def client_takes(self, message: Any) -> None:
        """Hand a message to the session and do what it says."""
        ended, out = self.session.take(message, self.now_s)
        self.ended += ended
        for answer in out:
            self.to_peer(answer)

    def tick(self) -> None:
        """Let time pass in the session."""
        ended, out = self.session.tick(self.now_s)
        self.ended += ended
        for message in out:
            self.to_peer(message)

    # -- the peer ----------------------------------------------------------------------

    def peer_takes(self, message: Any) -> None:
        """Serve one message as a peer does."""
        if self.rng.random() < self.restarts:
            self.incarnation += 1
            self.is_known = False
            self.running.clear()
        if type(message) is Hello:
            self.is_known = True
            self.to_client(welcome(self.incarnation.to_bytes(16, "big")))
        elif type(message) is Ping:
            incarnation = self.incarnation.to_bytes(16, "big")
            self.to_client(Pong(message.token, incarnation, self.is_known))
        elif not self.is_known:
            self.to_client(Refused("hello_needed", "Call before Hello"))
        elif type(message) is Call:
            self.serve(message)

    def serve(self, call: Call) -> None:
        """Answer from the record, or run the call once."""
        assert call.sequence >= self.acknowledged_below, "its record may be gone"
        self.acknowledged_below = max(self.acknowledged_below, call.first_unacked)
        for sequence in [s for s in self.records if s < self.acknowledged_below]:
            del self.records[sequence]
        recorded = self.records.get(call.sequence)
        if recorded is not None:
            assert call.attempt > 0, "a first attempt has no record"
            self.to_client(Reply(call.sequence, None, recorded))
        elif call.sequence in self.running:
            pass  # Its answer will come.
        elif self.rng.random() < self.busy:
            self.to_client(failure(call.sequence, BusyError("mailbox", "full", 0.01)))
        else:
            self.running.add(call.sequence)
            incarnation = self.incarnation
            self.later(
                self.rng.uniform(0.0, 0.2), lambda: self.finish(call, incarnation)
            )

    def finish(self, call: Call, incarnation: int) -> None:
        """Commit and reply, unless the peer has restarted."""
        if self.incarnation != incarnation:
            return
        self.running.discard(call.sequence)
        self.count += 1
        self.records[call.sequence] = self.count.to_bytes(4, "big")
        self.to_client(Reply(call.sequence, None, self.records[call.sequence]))

    def beat(self) -> None:
        """Name what is running, now and then."""
        if self.running and self.is_known:
            self.to_client(Beat(sorted(self.running)))
        self.later(BEAT_S, self.beat)

    # -- one history -------------------------------------------------------------------

    def run(self) -> list[Request]:
        """Send all calls at random times; return them when each has ended."""
        requests: list[Request] = []

        def call() -> None:
            request = open_call(self.session, self.now_s)
            requests.append(request)
            self.to_peer(request.message)

        self.to_peer(self.session.hello())
        for _ in range(CALLS):
            self.later(self.rng.uniform(0.0, 2.0), call)
        self.later(BEAT_S, self.beat)
        while len(requests) < CALLS or self.session.requests:
            next_s = self.agenda[0][0]
            if self.session.next_tick_s() <= next_s:
                self.now_s = max(self.now_s, self.session.next_tick_s())
                self.tick()
            else:
                self.now_s, _, action = heapq.heappop(self.agenda)
                action()
            assert self.now_s < 600, "some request never ends"
        return requests


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize(
    ("breaks", "restarts", "busy"),
    [(0.0, 0.0, 0.0), (0.05, 0.0, 0.0), (0.0, 0.05, 0.0), (0.05, 0.02, 0.1)],
    ids=["calm", "breaks", "restarts", "everything"],
)
def test_every_reply_counts_once_however_often_the_connection_breaks(
    breaks: float, restarts: float, busy: float, seed: int
) -> None:
    world = LossyWorld(seed, breaks=breaks, restarts=restarts, busy=busy)

    requests = world.run()

    replies = [request.reply.body for request in requests if request.reply is not None]
    assert len(set(replies)) == len(replies), "two calls were one"
    assert len(world.ended) == len(set(map(id, world.ended))) == CALLS
    assert world.count <= CALLS, "a call ran twice"
    failed = [request for request in requests if request.error is not None]
    assert all(isinstance(request.error, ActiveStoreError) for request in failed)
    if not busy:
        assert len(replies) == world.count == CALLS, "a lost connection loses no call"
