"""Random histories of one client and three peers: the object moves, peers stop and die.

The peers here keep the promises of the protocol between them: whoever has the object has
its records, others name that peer or, when asked, carry the call there. A failing seed
replays with `pytest tests/client/test_cluster_histories.py -k <seed>`.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

import pytest

from activestore.client.links import Link
from activestore.client.requests import Request
from activestore.client.session import Session
from activestore.errors import MovedError
from activestore.wire.messages import Beat, Call, Hello, Ping, Pong, Refused, Reply
from tests.client.sessions import OBJECT, SESSION, failure, open_call, welcome

CALLS = 60
PEERS = 3
HOP_S = 0.001
BEAT_S = 2.0
SILENCE_S = 60.0


class Peer:
    """One peer: what of it outlives a restart is in the cluster."""

    def __init__(self, number: int) -> None:
        self.peer_id = b"peer-%d" % number
        self.endpoint = f"tcp://127.0.0.1:{7401 + number}"
        self.incarnation = 1
        self.routes: set[tuple[bytes, int]] = set()
        self.route: tuple[bytes, int] | None = None  # where the session is heard from
        self.wakes_s = 0.0  # stopped until then; what comes waits


class Cluster:
    """A client's session, peers, and links that break."""

    def __init__(self, seed: int, **rates: float) -> None:
        self.rng = random.Random(seed)
        self.rates = rates
        self.now_s = 0.0
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.order = 0
        self.peers = [Peer(number) for number in range(PEERS)]
        endpoints = [peer.endpoint for peer in self.peers]
        self.session = Session(SESSION, "tester", endpoints, SILENCE_S, self.rng.random)
        self.connections: dict[
            bytes, int
        ] = {}  # by route; what was on an older is lost
        self.ended: list[Request] = []
        self.results: list[bytes] = []
        self.owner, self.epoch = self.peers[0], 1
        self.count = 0
        self.records: dict[int, bytes] = {}
        self.acknowledged_below = 0
        self.is_calm = False
        self.session.begin(0.0)
        self.do([], [])

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do `action` after a while."""
        self.order += 1
        heapq.heappush(self.agenda, (self.now_s + delay_s, self.order, action))

    def happens(self, what: str) -> bool:
        """Return whether something that happens now and then happens now."""
        return not self.is_calm and self.rng.random() < self.rates.get(what, 0.0)

    # -- the client --------------------------------------------------------------------

    def do(self, ended: list[Request], out: list[tuple[Link, Any]]) -> None:
        """Do what the session says."""
        links = self.session.links
        for link in links.opened:
            self.connections[link.route] = 0
            self.carry(link, link.first)
        links.opened.clear()
        for link, message in out:
            self.carry(link, message)
        for link in links.ended:
            del self.connections[link.route]
        links.ended.clear()
        self.ended += ended

    def call(self) -> None:
        """Start a call."""
        request = open_call(self.session, self.now_s)
        out = [(request.link, request.message)] if request.is_sent else []
        self.do([], out)

    def tick(self) -> None:
        """Let time pass in the session, and again soon."""
        self.do(*self.session.tick(self.now_s))
        self.later(0.1, self.tick)

    def carry(self, link: Link, message: Any) -> None:
        """Carry a message to the peer at the link's address, or lose the connection."""
        if self.happens("breaks"):
            self.connections[link.route] += 1
            return
        route = (link.route, self.connections[link.route])
        (peer,) = (peer for peer in self.peers if peer.endpoint == link.endpoint)
        self.later(HOP_S, lambda: self.arrive(peer, route, message))

    def answer(self, peer: Peer, route: tuple[bytes, int], message: Any) -> None:
        """Carry a message to the client, unless its connection broke meanwhile."""
        if self.happens("breaks") and route[0] in self.connections:
            self.connections[route[0]] += 1

        def take() -> None:
            link = self.session.links.by_route.get(route[0])
            if link is not None and self.connections.get(route[0]) == route[1]:
                self.do(*self.session.take(message, self.now_s, link))

        self.later(HOP_S, take)

    # -- the peers ---------------------------------------------------------------------

    def arrive(self, peer: Peer, route: tuple[bytes, int], message: Any) -> None:
        """Have a peer take a message, when it runs."""
        if peer.wakes_s > self.now_s:
            self.later(
                peer.wakes_s - self.now_s, lambda: self.arrive(peer, route, message)
            )
            return
        if self.connections.get(route[0]) != route[1]:
            return
        if self.happens("stops"):
            peer.wakes_s = self.now_s + self.rng.uniform(0.5, 6.0)
        if self.happens("restarts"):
            peer.incarnation += 1
            peer.routes.clear()
        if self.happens("moves"):
            self.owner, self.epoch = self.rng.choice(self.peers), self.epoch + 1
        incarnation = peer.incarnation.to_bytes(16, "big")
        if type(message) is Hello:
            peer.routes.add(route)
            peer.route = route
            hello = welcome(incarnation)._replace(peer_id=peer.peer_id)
            self.answer(peer, route, hello)
        elif type(message) is Ping:
            pong = Pong(message.token, incarnation, route in peer.routes)
            self.answer(peer, route, pong)
        elif route not in peer.routes:
            self.answer(peer, route, Refused("hello_needed", "Call before Hello"))
        elif type(message) is Call:
            peer.route = route
            self.serve(peer, route, message)

    def serve(self, peer: Peer, route: tuple[bytes, int], call: Call) -> None:
        """Run a call once where the object is, name that peer, or carry the call there."""
        owner = self.owner
        if owner is peer:
            self.run_once(peer, call)
        elif (call.extra or {}).get("direct") is False:
            if owner.wakes_s > self.now_s:  # It waits there, and the peer says so.
                self.answer(peer, route, Beat([call.sequence]))
                wait_s = owner.wakes_s - self.now_s + HOP_S
                self.later(wait_s, lambda: self.serve(peer, route, call))
            else:
                self.run_once(peer, call)
        else:
            error = MovedError(OBJECT, owner.peer_id, owner.endpoint, self.epoch)
            self.answer(peer, route, failure(call.sequence, error))

    def run_once(self, peer: Peer, call: Call) -> None:
        """Answer from the record, or add one; the answer leaves by `peer`."""
        if call.sequence < self.acknowledged_below:
            return  # It was answered, and the client said so.
        self.acknowledged_below = max(self.acknowledged_below, call.first_unacked)
        for sequence in [s for s in self.records if s < self.acknowledged_below]:
            del self.records[sequence]
        if call.sequence not in self.records:
            self.count += 1
            self.records[call.sequence] = b"%d" % self.count
        reply = Reply(call.sequence, None, self.records[call.sequence])
        if peer.route is not None:
            self.answer(peer, peer.route, reply)

    # -- all of it ---------------------------------------------------------------------

    def run(self) -> None:
        """Make the calls; after the last one, trouble ends."""
        at_s = 0.0
        for _ in range(CALLS):
            at_s += self.rng.expovariate(5.0)
            self.later(at_s, self.call)
        self.later(at_s + 1.0, lambda: setattr(self, "is_calm", True))
        self.later(0.1, self.tick)
        end_s = at_s + 2 * SILENCE_S
        while self.agenda and self.now_s < end_s and len(self.ended) < CALLS:
            self.now_s, _, action = heapq.heappop(self.agenda)
            action()


TROUBLES = [
    {"breaks": 0.05},
    {"moves": 0.2},
    {"stops": 0.03},
    {"restarts": 0.05},
    {"breaks": 0.02, "moves": 0.1, "stops": 0.02, "restarts": 0.02},
]


@pytest.mark.parametrize("trouble", TROUBLES, ids="+".join)
@pytest.mark.parametrize("seed", range(20))
def test_every_call_ends_and_none_runs_twice(seed: int, trouble: dict[str, float]):
    cluster = Cluster(seed, **trouble)

    cluster.run()

    assert len(cluster.ended) == CALLS
    assert not cluster.session.requests
    answers = [int(r.reply.body) for r in cluster.ended if r.reply is not None]
    assert len(set(answers)) == len(answers), "two calls got the answer of one run"
    assert len(answers) <= cluster.count <= CALLS
    assert len(answers) >= CALLS * 0.95, [r.error for r in cluster.ended if r.error]
