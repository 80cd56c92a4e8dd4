"""Where one client's messages can go: its links, who is behind them, objects' places.

    main       the connected peer: for all that is not known to be elsewhere
    direct     to a peer that `moved` named; given up without a Welcome in REACH_S
    candidate  while the connected peer is lost: the first that answers takes its place
    probe      a second connection to a peer that fell silent: is only the first one full?

Rules of this file: pure tables. Whoever does the I/O connects the links in `opened` and
sends `first` on each, before anything else; it disconnects those in `ended`.

Source: reliability.md section 2.2; design sections 5 and 7.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from activestore.errors import UnavailableError
from activestore.wire.chunks import CHUNKS, is_local

# A peer that `moved` named must welcome us within this, or it is not reachable from here.
REACH_S = 1.0
# For this long after that, the connected peer is asked to forward.
UNREACHABLE_S = 30.0
# Peers that a Welcome may name, kept for the day when the connected one dies.
LEARNED_MAX = 8
ENDPOINT_CHARS_MAX = 256
# Direct links at once; the idle one that was silent longest makes room.
DIRECT_LINKS_MAX = 64
# Objects whose place is remembered; the one that was called longest ago makes room.
PLACES_MAX = 256
UNREACHABLE_MAX = 256
# What a call carries that any copy may answer, as old as its caller allows.
STALENESS = "staleness_ms"
# A connected peer that sent such a call on is asked again after this: its copy was behind
# for a moment, or it has one by now.
COPIES_S = 10.0


class Peer(NamedTuple):
    """Who answered Hello, and its limits."""

    peer_id: bytes
    name: str
    incarnation: bytes
    version: int
    message_bytes_max: int


class Link:
    """One connection of a session."""

    __slots__ = (
        "asked_s", "endpoint", "expected_id", "first", "greeted_s", "heard_s", "hello",
        "is_open", "is_passed",
        "is_up", "number", "oldest_s", "opened_s", "patience_s", "peer", "probe",
        "probed", "route", "unanswered_s",
    )  # fmt: skip

    def __init__(
        self, number: int, endpoint: str, expected_id: bytes, hello: Any, now_s: float
    ) -> None:
        self.number = number
        self.route = b"L%d" % number
        self.endpoint = endpoint
        self.expected_id = expected_id  # of a direct link: who shall be there
        self.hello = hello
        self.first: Any = hello  # what is sent before all else
        self.peer: Peer | None = None
        self.is_open = True
        self.is_up = False  # welcomed, and not lost since
        # Another was asked for what was sent here and not answered: what is sent now may stand
        # still behind that, and come when others have answered it. So it is never a first
        # attempt.
        self.is_passed = False
        self.opened_s = now_s
        self.heard_s = now_s
        self.asked_s = 0.0
        self.unanswered_s = -math.inf  # when it was asked first since it was heard
        self.greeted_s = float("-inf")
        self.oldest_s = now_s  # when the oldest request that waits here was sent
        self.patience_s = math.inf  # silence that the most urgent of them can bear
        self.probe: Link | None = None
        self.probed: Link | None = None  # of a probe: whose it is

    def is_same_incarnation(self, pong: Any) -> bool:
        """Return whether a Pong comes from the peer that welcomed us, not restarted."""
        return self.peer is None or bool(pong.incarnation == self.peer.incarnation)

    def is_known_by(self, pong: Any) -> bool:
        """Return whether a Pong says that the peer there is the same and knows us."""
        return bool(pong.is_known) and self.is_same_incarnation(pong)

    def __repr__(self) -> str:
        state = "up" if self.is_up else "open" if self.is_open else "ended"
        return f"<Link {self.number} to {self.endpoint}, {state}>"


class Place:
    """Where an object was last known to be."""

    __slots__ = ("endpoint", "epoch", "link", "peer_id", "told_s")

    def __init__(self, peer_id: bytes, endpoint: str, epoch: int) -> None:
        self.peer_id = peer_id
        self.endpoint = endpoint
        self.epoch = epoch
        self.link: Link | None = None
        self.told_s = 0.0  # when, of one where a copy may be read


class Links:
    """All links of one session, the peers it could go to, and the places it knows."""

    def __init__(self, endpoints: Sequence[str], hello: Any) -> None:
        self.given = tuple(endpoints)
        self.learned: tuple[str, ...] = ()
        self.by_route: dict[bytes, Link] = {}
        self.opened: list[Link] = []
        self.ended: list[Link] = []
        # That were asked for a sign of life at the last tick.
        self.silent: list[Link] = []
        self.places: dict[bytes, Place] = {}
        # Where objects may be read that the connected peer has no copy of.
        self.copies: dict[bytes, Place] = {}
        self._hello = hello
        self._unreachable: dict[str, float] = {}
        self._next_number = 1
        self.main = self.open(self.given[0], 0.0)
        # Until the first Welcome, and after the connected peer was lost.
        self.candidates: list[Link] = [self.main]
        self.is_looking = True
        self.look_s = 0.0

    def open(
        self,
        endpoint: str,
        now_s: float,
        *,
        expected_id: bytes = b"",
        first: Any = None,
    ) -> Link:
        """Open a link; `first` is sent on it before all else, Hello by default."""
        number, self._next_number = self._next_number, self._next_number + 1
        hello = self._hello
        if not is_local(endpoint):
            hello = hello._replace(capabilities=[*hello.capabilities, CHUNKS])
        link = Link(number, endpoint, expected_id, hello, now_s)
        link.first = first or hello
        self.by_route[link.route] = link
        self.opened.append(link)
        return link

    def end(self, link: Link | None) -> None:
        """End a link and its probe; places that led through it are forgotten."""
        if link is None or not link.is_open:
            return
        link.is_open = link.is_up = False
        del self.by_route[link.route]
        self.ended.append(link)
        self.end_probe(link)
        for known in (self.places, self.copies):
            for object_id in [o for o, place in known.items() if place.link is link]:
                del known[object_id]

    def end_probe(self, link: Link) -> None:
        """End the probe of a link, if it has one."""
        probe, link.probe = link.probe, None
        self.end(probe)

    def is_direct(self, link: Link) -> bool:
        """Return whether a link leads to one peer that is not the connected one."""
        is_other = link is not self.main and link.probed is None
        return is_other and link not in self.candidates

    # -- the connected peer ------------------------------------------------------------

    def open_spare(self, now_s: float) -> Link | None:
        """Open a link to a peer that there is none to yet; None where none is known."""
        in_use = {one.endpoint for one in self.by_route.values()}
        free = [one for one in (*self.given, *self.learned) if one not in in_use]
        if not free:
            return None
        # One that was not reached lately is better than none.
        reached = [one for one in free if not self.is_unreachable(one, now_s)]
        return self.open((reached or free)[0], now_s)

    def prefer(self, link: Link) -> None:
        """Take another peer for the connected one; the link to that one stays."""
        before = self.main
        if self.is_looking or before.peer is None or not link.is_up:
            return
        before.expected_id = before.peer.peer_id
        link.expected_id = b""  # Whoever answers there may be the connected peer.
        self.main = link
        self.copies.clear()  # The new one may have other copies.

    def learn(self, endpoints: object) -> None:
        """Keep the addresses of other peers that a Welcome names, as far as they are any."""
        if isinstance(endpoints, (list, tuple)):
            self.learned = tuple(
                one
                for one in endpoints
                if isinstance(one, str) and 0 < len(one) <= ENDPOINT_CHARS_MAX
            )[:LEARNED_MAX]

    def next_candidate(self, now_s: float) -> str:
        """Return the next address to try for a connected peer, "" for none."""
        tried = {link.endpoint for link in self.candidates}
        tried.add(self.main.endpoint if self.main.is_open else "")
        for endpoint in (*self.given, *self.learned):
            if endpoint not in tried and not self.is_unreachable(endpoint, now_s):
                return endpoint
        return ""

    def settle(self, link: Link) -> list[Link]:
        """Take `link` for the connected peer; return links that end or are one with it."""
        others = [one for one in self.candidates if one is not link]
        if self.main not in (link, *others) and self.main.is_open:
            others.append(self.main)
        if link.peer is not None and link is not self.main:
            others += [
                one
                for one in self.by_route.values()
                if one is not link and one.expected_id == link.peer.peer_id
            ]
        self.main = link
        self.copies.clear()  # The new one may have other copies.
        self.candidates = []
        self.is_looking = False
        for object_id in [o for o, p in self.places.items() if p.link in others]:
            place = self.places[object_id]
            assert place.link is not None
            if link.peer is not None and place.peer_id == link.peer.peer_id:
                place.link = link
        for one in others:
            self.end(one)
        return others

    def name_of(self, peer_id: bytes) -> str:
        """Return the name of a peer that there is a link to; else its id in hex."""
        for link in self.by_route.values():
            if link.peer is not None and link.peer.peer_id == peer_id:
                return link.peer.name
        return peer_id.hex()

    # -- peers that hold objects -------------------------------------------------------

    def why_nobody(self, wait_s: float, *, is_silent: bool) -> UnavailableError:
        """Return the error that says that no peer answered, and what to do.

        `is_silent`: something listens at the first address, and says nothing.
        """
        what = f"no peer answered within {wait_s:g} s"
        if len(self.given) == 1 and is_local(self.given[0]):
            advice = f"start one with `activestore-node start --listen {self.given[0]}`"
            if is_silent:
                advice = (
                    "something listens there: it hangs, was stopped by a signal, or is no "
                    "peer; continue or end that process"
                )
        else:
            advice = "is the peer running and reachable?"
        return UnavailableError(", ".join(self.given), f"{what}; {advice}")

    def note_unreachable(self, endpoint: str, now_s: float) -> None:
        """Do not go there for a while."""
        while len(self._unreachable) >= UNREACHABLE_MAX:
            del self._unreachable[next(iter(self._unreachable))]
        self._unreachable[endpoint] = now_s + UNREACHABLE_S

    def is_unreachable(self, endpoint: str, now_s: float) -> bool:
        """Return whether that address did not answer lately."""
        until_s = self._unreachable.get(endpoint)
        if until_s is None:
            return False
        if now_s < until_s:
            return True
        del self._unreachable[endpoint]
        return False

    def note_reachable(self, endpoint: str) -> None:
        """Somebody answered there."""
        self._unreachable.pop(endpoint, None)

    def remember(
        self, message: Any, object_id: bytes, place: Place, now_s: float
    ) -> bool:
        """Remember where an object is, that a message was sent on to.

        Returns False where something newer is known.
        """
        places = self._places_for(message)
        known = places.pop(object_id, None)
        is_news = known is None or known.epoch <= place.epoch
        kept = place if is_news or known is None else known
        places[object_id] = kept
        kept.told_s = now_s
        if len(places) > PLACES_MAX:
            del places[next(iter(places))]
        return is_news

    def forget(self, object_id: bytes) -> None:
        """Forget where an object was: it is not there."""
        self.places.pop(object_id, None)
        self.copies.pop(object_id, None)

    def place_of(self, message: Any, now_s: float) -> Place | None:
        """Return where a message's object was last known to be; it was asked for.

        For one that any copy may answer None means the connected peer, unless that one
        has just sent one on.
        """
        places = self._places_for(message)
        place = places.pop(message.object_id, None)
        if place is None:
            return None
        if places is self.copies and now_s - place.told_s > COPIES_S:
            return None
        places[message.object_id] = place
        return place

    def _places_for(self, message: Any) -> dict[bytes, Place]:
        extra = message.extra
        return self.copies if extra and STALENESS in extra else self.places

    def link_to(self, place: Place, now_s: float, busy: Iterable[Link]) -> Link | None:
        """Return a link to the peer of a place, None where there can be none now.

        Args:
            place: Where to.
            now_s: The time.
            busy: Links that requests wait for; asked only where there are too many.
        """
        link = place.link
        if link is not None and link.is_open:
            return link
        main = self.main
        if main.peer is not None and main.peer.peer_id == place.peer_id:
            place.link = main
            return main
        direct = [one for one in self.by_route.values() if self.is_direct(one)]
        for one in direct:
            if one.expected_id == place.peer_id:
                place.link = one
                return one
        if not place.endpoint or self.is_unreachable(place.endpoint, now_s):
            return None
        if len(direct) >= DIRECT_LINKS_MAX:
            waited_for = set(busy)
            idle = [one for one in direct if one not in waited_for]
            if not idle:
                return None
            self.end(min(idle, key=lambda one: one.heard_s))
        place.link = self.open(place.endpoint, now_s, expected_id=place.peer_id)
        return place.link
