"""One client's session with the peers, without I/O: numbers, retries, silence, resends.

    request -> HELD (its link is not welcomed yet) -> SENT -> answered | failed
            SENT -> WAITING (a failure that may be retried) -> SENT
            SENT -> SENT or HELD on another link: `moved`, or its link died
    Welcome from another incarnation, or Pong(is_known=False): all requests of that link
    are sent again with the same number and the next attempt; the peer answers what it
    has answered before.

Rules of this file: time is `now_s`, chance is `rng`; what it returns, pairs of a link and
a message, must be sent in order, after `links.opened` were connected; `links.ended` are
disconnected last. A stream that was sent is never sent again: what was seen of it cannot
be taken back. An answer to a request counts from whichever link it comes.

Source: design sections 5 (two bounds, exactly once) and 7; reliability.md 2.2, 3.7, 7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from activestore.client import passing
from activestore.client.chunking import Chunking
from activestore.client.links import REACH_S, Link, Links, Peer, Place
from activestore.client.requests import ASKED_AGAIN, Request, error_of, with_open
from activestore.client.sightings import Sightings
from activestore.errors import (
    ActiveStoreError,
    DeadlineExceededError,
    MovedError,
    RemoteProtocolError,
    UnavailableError,
)
from activestore.ids import SessionId
from activestore.wire.limits import (
    OPEN_TOLD_FROM,
    PROTOCOL_VERSION,
    PROTOCOL_VERSION_MIN,
)
from activestore.wire.messages import (
    Beat,
    Call,
    Cancel,
    Chunk,
    Failure,
    Hello,
    Item,
    Message,
    Ping,
    Pong,
    Refused,
    Reply,
    Taken,
    Welcome,
)

BACKOFF_S = 0.05
BACKOFF_S_MAX = 2.0
# With requests open and nothing heard for this long, ask whether the peer knows us.
PING_S = 0.5
# No sign of life for this long: ask over a second connection, then go on with another
# peer. A lone peer is waited for as long as a request may be silent.
PROBE_S = 1.0
DEAD_S = 2.0
# How long a candidate for the connected peer is waited for before the next one is asked
# too: the user's first choice gets more, as its handshake may take a second on a WAN.
FIRST_WAIT_S = 1.0
NEXT_WAIT_S = 0.25
# While looking: ask again who has not answered.
ASK_AGAIN_S = 2.0
REDIRECTS_MAX = 3

Ended: TypeAlias = "list[Request]"
Out: TypeAlias = "list[tuple[Link, Message]]"


class Session:
    """All requests of one client."""

    def __init__(
        self,
        session_id: SessionId,
        name: str,
        endpoints: Sequence[str],
        silence_s: float,
        rng: Callable[[], float],
    ) -> None:
        self.session_id, self.silence_s = session_id, silence_s
        self.refusal: ActiveStoreError | None = None
        self.requests: dict[int, Request] = {}
        self._rng = rng
        self._next_sequence = self._next_token = 1
        self._next_tick_s = 0.0
        self._cluster: object = None
        self._last_refusal: ActiveStoreError | None = None
        hello = Hello(
            PROTOCOL_VERSION_MIN, PROTOCOL_VERSION, session_id, name,
            ["call", "stream", "follow"],
        )  # fmt: skip
        self.chunking = Chunking()
        self.sightings = Sightings()
        self.links = Links(endpoints, hello)

    @property
    def peer(self) -> Peer | None:
        """The connected peer; while it is lost, the last one."""
        return self.links.main.peer

    @property
    def endpoint(self) -> str:
        """The address of the connected peer."""
        return self.links.main.endpoint

    def begin(self, now_s: float) -> None:
        """Note that the first address is tried now; further ones follow by `tick`."""
        self.links.main.asked_s = now_s
        self.links.look_s = now_s + FIRST_WAIT_S

    def why_unreached(self) -> ActiveStoreError | None:
        """Return the last refusal of those who might have been the connected peer."""
        return self.refusal or self._last_refusal

    @property
    def first_unacked(self) -> int:
        """The lowest sequence that is not answered; numbers only grow in the table."""
        return next(iter(self.requests), self._next_sequence)

    def open(
        self,
        make: Callable[[int, int], Any],
        now_s: float,
        timeout_s: float,
        where: str,
    ) -> Request:
        """Number a request and remember it; the caller sends `request.message`."""
        sequence = self._next_sequence
        self._next_sequence = sequence + 1
        first_unacked = next(iter(self.requests), sequence)
        message = make(sequence, first_unacked)
        if sequence - first_unacked > OPEN_TOLD_FROM and type(message) is Call:
            message = with_open(message, self.requests)
        links = self.links
        request = Request(sequence, message, links.main, now_s, timeout_s, where)
        if links.places or message.extra:
            request.choose_link(links, now_s, self._busy())
        if request.link.is_passed:
            request.message = request.as_sent(now_s)
        self.requests[sequence] = request
        if request.link is not links.main:
            first_s = passing.first_look_s(request, len(self.requests))
            self._next_tick_s = min(self._next_tick_s, first_s)
        return request

    def _busy(self) -> Iterator[Link]:
        return (request.link for request in self.requests.values())

    # -- what comes in -----------------------------------------------------------------

    def take(self, message: Any, now_s: float, link: Link) -> tuple[Ended, Out]:
        """Take one message; return the requests that it ended or fed, and what to send."""
        link.heard_s = now_s
        if not link.is_up and type(message) is not Welcome:
            return self._take_unproven(message, now_s, link)
        return self._take(message, now_s, link)

    def _take_unproven(
        self, message: Any, now_s: float, link: Link
    ) -> tuple[Ended, Out]:
        """Take a message from a probe, from who has not welcomed us, or who was lost."""
        probed = link.probed
        if probed is not None:
            if type(message) is Pong and probed.is_same_incarnation(message):
                probed.heard_s = now_s
            return [], []
        if link.peer is None or type(message) is Refused or not link.is_open:
            return self._take(message, now_s, link)
        if type(message) is Pong and not link.is_known_by(message):
            return self._take(message, now_s, link)
        # The connected peer that was given up is there after all, and knows us.
        link.is_up = True
        self.links.settle(link)
        ended, out = self._send_all(link, now_s, is_again=False)
        more_ended, more_out = self._take(message, now_s, link)
        return [*ended, *more_ended], [*out, *more_out]

    def _take(  # noqa: C901 - one branch per message kind
        self, message: Any, now_s: float, link: Link
    ) -> tuple[Ended, Out]:
        kind = type(message)
        if kind is Reply:
            request = self.requests.pop(message[0], None)
            if request is None:
                return [], []
            request.reply = message
            request.is_done = True
            if message[1]:
                self.sightings.note(request.message, message[1])
            if request.tried:
                passing.answered(request, self.links, link)
            return [request], []
        if kind is Beat:
            if passing.named(self.requests, message, link, now_s):
                self._next_tick_s = now_s
            return [], []
        if kind is Item:
            return self._take_item(message, now_s, link)
        if kind is Failure:
            return self._take_failure(message, now_s, link)
        if kind is Welcome:
            return self._take_welcome(message, now_s, link)
        if kind is Pong:
            return self._take_pong(message, now_s, link)
        if kind is Refused:
            return self._take_refused(message, now_s, link)
        if kind is Chunk or kind is Taken:
            return self._take_chunked(message, now_s, link)
        raise RemoteProtocolError(f"a client takes no {kind.__name__}", link.endpoint)

    def _take_chunked(
        self, message: Any, now_s: float, link: Link
    ) -> tuple[Ended, Out]:
        """Take a part of a large message, or that a part has arrived: a sign of life."""
        for request in self.requests.values():
            if request.link is link:
                request.heard_s = now_s
        found, sent = self.chunking.take(link, message, now_s)
        ended: Ended = []
        out: Out = [(link, one) for one in sent]
        for one in found:
            more = self._take(one, now_s, link)
            ended += more[0]
            out += more[1]
        return ended, out

    def _take_item(self, message: Any, now_s: float, link: Link) -> tuple[Ended, Out]:
        request = self.requests.get(message.sequence)
        if request is None or not request.is_stream:
            return [], []
        request.heard_s = now_s
        if message.number != request.next_item:
            error = RemoteProtocolError(
                f"item {message.number} came where {request.next_item} was due",
                request.where,
            )
            return [self._fail(request, error)], [(link, Cancel(request.sequence))]
        request.next_item += 1
        request.items.append(message)
        return [request], []

    def _take_failure(
        self, message: Any, now_s: float, link: Link
    ) -> tuple[Ended, Out]:
        request = self.requests.get(message.sequence)
        if request is None:
            return [], []
        error = error_of(message, link.endpoint)
        if not request.is_forwarded and not (request.is_stream and request.next_item):
            if isinstance(error, MovedError):
                return [], self._follow(request, error, now_s, link)
            if message.code in ASKED_AGAIN and self.links.is_direct(link):
                # It was there; the connected peer knows, or reaches, more than that one.
                self.links.forget(getattr(request.message, "object_id", b""))
                return [], self._forward(request, now_s)
        if request.may_retry(message.code, error, now_s):
            request.heard_s = now_s
            backoff_s = min(BACKOFF_S * 2**request.attempt, BACKOFF_S_MAX)
            wait_s = max(self._rng() * backoff_s, getattr(error, "retry_after_s", 0.0))
            request.retry_s = now_s + wait_s
            passing.note_refusal(request, error, link)
            self._next_tick_s = min(self._next_tick_s, request.retry_s)
            return [], []
        return [self._fail(request, error)], []

    def _follow(
        self, request: Request, error: MovedError, now_s: float, link: Link
    ) -> Out:
        """Send a request to where its object has moved."""
        if request.link is not link:
            return []  # It went elsewhere meanwhile.
        request.heard_s = now_s
        request.redirects += 1
        place = Place(error.peer_id, error.endpoint, error.epoch)
        is_news = self.links.remember(request.message, error.object_id, place, now_s)
        target: Link | None = None
        if is_news and request.redirects <= REDIRECTS_MAX:
            target = self.links.link_to(place, now_s, self._busy())
        if target is None or target is link:
            return self._forward(request, now_s, is_again=error.is_doubtful)
        return self._send_to(request, target, now_s, is_again=error.is_doubtful)

    def _forward(
        self, request: Request, now_s: float, *, is_again: bool = False
    ) -> Out:
        """Have the connected peer carry a request to its object."""
        request.ask_to_forward()
        return self._send_to(request, self.links.main, now_s, is_again=is_again)

    def _take_welcome(
        self, message: Any, now_s: float, link: Link
    ) -> tuple[Ended, Out]:
        if not PROTOCOL_VERSION_MIN <= message.version <= PROTOCOL_VERSION:
            raise RemoteProtocolError(
                f"it speaks version {message.version}, this client "
                f"{PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}",
                link.endpoint,
            )
        if link.expected_id and link.expected_id != message.peer_id:
            raise RemoteProtocolError("another peer has that address", link.endpoint)
        links, extra = self.links, message.extra or {}
        if link in (links.main, *links.candidates) or not link.expected_id:
            cluster = extra.get("cluster")
            if None not in (cluster, self._cluster) and cluster != self._cluster:
                raise RemoteProtocolError(
                    f"it belongs to cluster {str(cluster)[:80]!r}, not "
                    f"{str(self._cluster)[:80]!r}",
                    link.endpoint,
                )
            self._cluster = cluster or self._cluster
            links.learn(extra.get("peers"))
        link.peer = Peer(
            message.peer_id, message.peer_name, message.incarnation, message.version,
            message.limits.get("message_bytes_max", 1 << 30),
        )  # fmt: skip
        self.chunking.welcomed(link, message)
        if links.is_direct(link):
            link.expected_id = message.peer_id
        link.is_up = True
        link.asked_s = 0.0
        link.greeted_s = float("-inf")
        links.note_reachable(link.endpoint)
        if links.is_looking and link in (links.main, *links.candidates):
            return self._settle(link, now_s)
        return self._send_all(link, now_s)

    def _settle(self, link: Link, now_s: float) -> tuple[Ended, Out]:
        """Go on with the peer that has just welcomed us."""
        links, before = self.links, self.links.main
        self.refusal = self._last_refusal = None
        merged = links.settle(link)
        if before is link:
            return self._send_all(link, now_s)
        moved = []
        for request in self.requests.values():
            if request.link is before or request.link in merged:
                # The same peer under another address: its answers come here now.
                is_waiting = request.link.expected_id and request.is_sent
                request.link = link
                if not is_waiting:
                    moved.append(request)
        return self._move(moved, link, now_s)

    def _send_all(
        self, link: Link, now_s: float, *, is_again: bool = True
    ) -> tuple[Ended, Out]:
        """Send what was held for a link and, with `is_again`, what was sent before."""
        here = [r for r in self.requests.values() if r.link is link]
        moved = [r for r in here if is_again or not r.is_sent]
        return self._move(moved, link, now_s)

    def _move(
        self, requests: list[Request], link: Link, now_s: float
    ) -> tuple[Ended, Out]:
        """Send requests on a link because the connection that they waited on broke."""
        ended, out = list[Request](), list[tuple[Link, Message]]()
        for request in requests:
            if request.is_stream and request.is_sent:
                error = UnavailableError(
                    request.where, "the connection broke; a stream is not resumed"
                )
                ended.append(self._fail(request, error))
                # It may be the same peer, that we reach another way.
                out += [(link, Cancel(request.sequence))] if link.is_up else []
            else:
                out += self._send_to(request, link, now_s, is_again=True)
        return ended, out

    def _send_to(
        self, request: Request, link: Link, now_s: float, *, is_again: bool
    ) -> Out:
        """Send a request on a link, or hold it until that link is welcomed.

        `is_again`: it may have run where it was sent before.
        """
        request.link = link
        if request.retry_s:
            return []  # Its time will come.
        if is_again and request.is_sent:
            request.attempt += 1
        request.is_sent = link.is_up
        request.sent_s = now_s
        return [(link, request.as_sent(now_s))] if link.is_up else []

    def _take_pong(self, message: Any, now_s: float, link: Link) -> tuple[Ended, Out]:
        link.asked_s = 0.0
        if link.is_known_by(message):
            return [], []
        return [], self._greet_again(now_s, link)

    def _greet_again(self, now_s: float, link: Link) -> Out:
        """Return Hello, once for all messages that a peer refused for the lack of it.

        Each Welcome has all requests sent again, so one per refusal would be square.
        """
        if now_s - link.greeted_s < PING_S:
            return []
        link.greeted_s = now_s
        return [(link, link.hello)]

    def _take_refused(
        self, message: Any, now_s: float, link: Link
    ) -> tuple[Ended, Out]:
        if message.code == "hello_needed":
            return [], self._greet_again(now_s, link)
        error = RemoteProtocolError(message.reason, link.endpoint)
        return self.give_up(link, error, now_s)

    # -- links that end ----------------------------------------------------------------

    def give_up(
        self, link: Link, error: ActiveStoreError, now_s: float
    ) -> tuple[Ended, Out]:
        """End a link whose other side refused us or is no peer; `error` says so."""
        links = self.links
        if link.probed is not None:
            links.end_probe(link.probed)
            return [], []
        if links.is_direct(link):
            return self._lose_direct(link, now_s)
        self._last_refusal = error
        others = [one for one in links.candidates if one is not link]
        if not others and not links.next_candidate(now_s):
            self.refusal = error
            return self.fail_all(error), []
        if not links.is_looking:
            self._lose_main(now_s)
        links.note_unreachable(link.endpoint, now_s)
        links.candidates = others
        links.end(link)
        links.look_s = self._next_tick_s = now_s
        return [], []

    def _lose_direct(self, link: Link, now_s: float) -> tuple[Ended, Out]:
        """Have the connected peer forward what waits for a peer that is not reached."""
        self.links.note_unreachable(link.endpoint, now_s)
        self.links.end(link)
        moved = [r for r in self.requests.values() if r.link is link]
        for request in moved:
            if not (request.is_stream and request.is_sent):
                request.ask_to_forward()
        return self._move(moved, self.links.main, now_s)

    def _lose_main(self, now_s: float) -> None:
        """Look for another connected peer; requests wait until one is found."""
        links = self.links
        links.main.is_up = False
        links.end_probe(links.main)
        links.is_looking = True
        links.candidates = [links.main]
        links.look_s = now_s

    # -- time --------------------------------------------------------------------------

    def next_tick_s(self) -> float:
        """Return when `tick` is due next."""
        return self._next_tick_s

    def tick(  # noqa: C901 - one branch per kind of time that is over
        self, now_s: float
    ) -> tuple[Ended, Out]:
        """Do what time asks for; return the requests that it ended, and what to send."""
        links, self._next_tick_s = self.links, now_s + PING_S / 2
        ended, out = self._tick_links(now_s)
        for request in list(self.requests.values()):
            link = request.link
            if request.deadline_s and now_s > request.given_up_s:
                error: ActiveStoreError = request.refusal or DeadlineExceededError(
                    request.where, request.timeout_s, request.may_have_run
                )
                ended.append(self._fail(request, error))
                if request.is_sent:
                    out.append((link, Cancel(request.sequence)))
            elif now_s - request.heard_s >= self.silence_s:
                error = request.why_silent(now_s, self.silence_s, self._dead_s)
                ended.append(self._fail(request, error))
            elif request.retry_s and now_s >= request.retry_s:
                request.retry_s = 0.0
                found = passing.next_link(request, links, now_s)
                out += self._send_to(request, found or link, now_s, is_again=True)
            elif request.retry_s:
                self._next_tick_s = min(self._next_tick_s, request.retry_s)
            elif passing.is_due(request, links, now_s):
                if request.refusal is not None:
                    ended.append(self._fail(request, request.refusal))
                    continue
                found = passing.next_link(request, links, now_s, is_silent=True)
                if found is not None:
                    request.passes += 1
                    out += self._send_to(request, found, now_s, is_again=True)
        soon_s = now_s + passing.look_gap_s(len(self.requests))
        for request in self.requests.values():
            self._next_tick_s = min(self._next_tick_s, request.heard_s + self.silence_s)
            if request.deadline_s and self._next_tick_s > soon_s:
                due_s = max(passing.next_look_s(request, links, now_s), soon_s)
                self._next_tick_s = min(self._next_tick_s, due_s)
        return ended, out

    def _tick_links(self, now_s: float) -> tuple[Ended, Out]:
        links = self.links
        links.silent = []
        ended: Ended = []
        out: Out = []
        passing.note_waiting(self.requests.values(), links, now_s)
        for link in list(links.by_route.values()):
            more: tuple[Ended, Out] = [], []
            if links.is_direct(link) and not link.is_up:
                if now_s - link.opened_s >= REACH_S:
                    more = self._lose_direct(link, now_s)
            elif link.oldest_s < now_s and link.probed is None:
                more = self._tick_waited_for(link, now_s)
            ended += more[0]
            out += more[1]
        if links.is_looking:
            out += self._look_further(now_s)
        return ended, out

    def _tick_waited_for(self, link: Link, now_s: float) -> tuple[Ended, Out]:
        """Ask for a sign of life where requests wait, and stop waiting without one."""
        links = self.links
        silent_s = now_s - max(link.heard_s, link.oldest_s)
        if link.is_up and (links.is_direct(link) or links.next_candidate(now_s)):
            if silent_s < PROBE_S:
                links.end_probe(link)
            elif silent_s >= self._dead_s and links.is_direct(link):
                return self._lose_direct(link, now_s)
            elif silent_s >= self._dead_s:
                self._lose_main(now_s)
            elif link.probe is None:
                # What is large may hold up a Pong on the link itself for long.
                link.probe = links.open(link.endpoint, now_s, first=self._ping())
                link.probe.probed = link
        if min(silent_s, now_s - link.asked_s) < min(PING_S, link.patience_s):
            return [], []
        passing.note_asked(link, now_s)
        if link.is_up:
            links.silent.append(link)
        return [], [(link, self._ping())]

    def refused(self, link: Link, now_s: float) -> tuple[Ended, Out]:
        """Stop waiting for a peer that has ended: nothing listens where it was."""
        self._next_tick_s = now_s
        if link.is_up and self.links.is_direct(link):
            return self._lose_direct(link, now_s)
        if link is self.links.main and link.is_up and self.links.next_candidate(now_s):
            self._lose_main(now_s)
        return [], []

    @property
    def _dead_s(self) -> float:
        return max(min(DEAD_S, self.silence_s / 2), 2 * PING_S)

    def _ping(self) -> Ping:
        token, self._next_token = self._next_token, self._next_token + 1
        return Ping(token)

    def _look_further(self, now_s: float) -> Out:
        """Ask candidates again, and one more of them."""
        links = self.links
        out: Out = []
        for link in links.candidates:
            if link.is_open and now_s - link.asked_s >= ASK_AGAIN_S:
                link.asked_s = now_s
                out.append((link, self._ping()))
        if now_s >= links.look_s:
            endpoint = links.next_candidate(now_s)
            wait_s = FIRST_WAIT_S if self.peer is None else NEXT_WAIT_S
            links.look_s = now_s + wait_s
            if endpoint:
                link = links.open(endpoint, now_s)
                link.asked_s = now_s
                links.candidates.append(link)
        self._next_tick_s = min(self._next_tick_s, links.look_s)
        return out

    def _fail(self, request: Request, error: ActiveStoreError) -> Request:
        self.requests.pop(request.sequence, None)
        request.error = error
        request.is_done = True
        return request

    def abandon(self, request: Request, error: ActiveStoreError) -> Out | None:
        """End a request from this side; return what to send, None where it has ended."""
        if request.is_done:
            return None
        self._fail(request, error)
        return [(request.link, Cancel(request.sequence))] if request.is_sent else []

    def fail_all(self, error: ActiveStoreError) -> list[Request]:
        """End every request with an error."""
        return [self._fail(request, error) for request in list(self.requests.values())]
