"""Connections between peers: who is reached by which route, and whether they belong.

A peer dials another and says Hello with the capability "peer"; from then on both ends
use the connection alike, so that a peer behind a NAT is reached through the connection
that it made itself. A link carries the peers' own messages and, in Relay and Relayed,
those of sessions.

Rules of this file: it knows peers and routes; what the messages mean is decided by
`cluster` and `relays`. Nothing here waits.

Source: decision 9; reliability.md 1.3 and 6.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from activestore.core.troubles import TroubleKind, clock_off_s, clock_reason
from activestore.errors import ConfigurationError
from activestore.ids import PEER_ID_BYTES, PeerId, SessionId
from activestore.peer.table import Session, Table
from activestore.wire.chunks import CHUNKS, is_local
from activestore.wire.limits import PEER_VERSION_MIN, PROTOCOL_VERSION
from activestore.wire.messages import Hello, Message, Ping, Pong, Refused, Welcome

# Said again where no Welcome came, in seconds: the first may have been lost.
GREET_S = 1.0
# A link that we dialled and that carries nothing is closed after this, in seconds.
IDLE_S = 120.0
# Something is awaited on a link and it is silent for so long: is its end still there?
ASK_S = 0.5
# How often links are looked at, in seconds.
LOOK_S = 0.25
# An address that is to be joined and does not answer for so long is told and looked at; then
# again after the second time. A peer that starts takes a second. In seconds.
JOIN_S = 3.0
KNOCK_AGAIN_S = 30.0
# Clocks are compared when a link comes up and this often; sooner while they differ.
CLOCK_S = 600.0
CLOCK_AGAIN_S = 15.0
# The token of a Ping whose answer is looked at for its sender's clock.
CLOCK_TOKEN = 1
# What is said of an address of this peer itself.
THIS_PEER = "that is this peer itself: leave it out of `join`"
# Links at once; a peer of a cluster of thousands talks to few of them at a time.
LINKS_MAX = 1024


# Who is at an address before it said so.
NOBODY = PeerId(b"")


class Link:
    """One connection to one peer."""

    __slots__ = (
        "asked_s", "asked_wall_s", "clock_due_s", "endpoint", "greeted_s", "heard_s",
        "incarnation", "is_dialled", "is_to_join", "is_up", "knock_due_s", "name",
        "peer_id", "route", "unanswered_s", "used_s", "was_refused",
    )  # fmt: skip

    def __init__(
        self, route: bytes, peer_id: PeerId, endpoint: str, now_s: float, *,
        is_dialled: bool,
    ) -> None:  # fmt: skip
        self.route = route
        self.peer_id = peer_id  # empty until it said who it is
        self.endpoint = endpoint
        self.name = ""
        self.incarnation = b""
        self.is_dialled = is_dialled
        self.is_up = not is_dialled
        self.greeted_s = self.heard_s = self.used_s = now_s
        self.asked_s = 0.0
        self.unanswered_s = 0.0  # when a trip first had it asked since it was heard
        self.is_to_join = is_dialled and not peer_id  # only its address was known
        self.knock_due_s = now_s + JOIN_S
        self.clock_due_s = now_s
        self.asked_wall_s = 0.0  # our wall clock when theirs was asked
        self.was_refused = False  # what was sent came before its Hello, and is lost


class Links:
    """All links of one peer."""

    def __init__(
        self, table: Table, *, session_id: SessionId, about_us: dict[str, Any]
    ) -> None:
        """Begin without links.

        Args:
            table: The loop's.
            session_id: Of this start; calls that methods make travel under it.
            about_us: What Hello says of this peer beside its name.
        """
        self._table = table
        self.session_id = session_id
        self._about_us = about_us
        self.by_route: dict[bytes, Link] = {}
        self._by_peer: dict[PeerId, list[Link]] = {}
        self._dialled: dict[str, Link] = {}  # by address
        # Called with a link that can be used. With True: what was sent over it before
        # may be lost, for its end has restarted.
        self.on_up: Callable[[Link, bool], None] = lambda link, is_again: None
        self.on_lost: Callable[[Link], None] = lambda link: None
        # What is remembered of a peer, its incarnation and the mark of its start; and called
        # with what one remembers of us: that is said before all else goes over a link.
        self.known_of: Callable[[PeerId], list[Any]] = lambda peer_id: [0, None]
        self.on_known: Callable[[int, object], None] = lambda incarnation, mark: None
        # Called with a link by which an answer is awaited, and which is silent.
        self.on_silent: Callable[[Link], None] = lambda link: None

    # -- dialling ----------------------------------------------------------------------

    def dial(self, endpoint: str, peer_id: PeerId = NOBODY) -> Link | None:
        """Begin a connection to an address; None where it is none."""
        known = self._dialled.get(endpoint)
        if known is not None:
            return known
        if len(self.by_route) >= LINKS_MAX and not self._close_idlest():
            return None
        try:
            route = self._table.transport.connect(endpoint)
        except ConfigurationError as error:
            self._complain(endpoint, str(error))
            return None
        now_s = self._table.clock()
        link = Link(route, peer_id, endpoint, now_s, is_dialled=True)
        self.by_route[route] = self._dialled[endpoint] = link
        if peer_id:
            self._by_peer.setdefault(peer_id, []).append(link)
        self._greet(link)
        return link

    def _greet(self, link: Link) -> None:
        link.greeted_s = self._table.clock()
        settings = self._table.settings
        capabilities = ["call", "stream", "peer"]
        if not is_local(link.endpoint):
            capabilities.append(CHUNKS)
        self._table.transport.send(
            link.route,
            Hello(
                PEER_VERSION_MIN, PROTOCOL_VERSION, self.session_id,
                settings.peer_name, capabilities, self._about(link.peer_id),
            ),
        )  # fmt: skip

    def _about(self, peer_id: PeerId) -> dict[str, Any]:
        if not peer_id:
            return self._about_us
        return {**self._about_us, "known": self.known_of(peer_id)}

    def _hear_known(self, extra: Any) -> None:
        known = (extra or {}).get("known")
        if type(known) is not list or len(known) < 3 or type(known[0]) is not int:
            return
        if (
            known[2] == self._table.settings.peer_id
        ):  # Else who had this address before.
            self.on_known(known[0], known[1])

    def accept(self, session: Session, message: Hello) -> str:
        """Take a peer's Hello; return why it does not belong here, "" where it does."""
        about = message.extra or {}
        peer_id, cluster = about.get("peer_id"), about.get("cluster")
        if type(peer_id) is not bytes or len(peer_id) != PEER_ID_BYTES:
            return "a peer must say its id, 6 bytes, in extra['peer_id']"
        if cluster != self._table.settings.cluster:
            return (
                f"this peer belongs to the cluster {self._table.settings.cluster!r}, "
                f"{message.client_name!r} to {cluster!r}; set the same `cluster` on both"
            )
        if peer_id == self._table.settings.peer_id:
            if message.session == self.session_id:
                return THIS_PEER
            return "it has this peer's id: one of the two data directories is a copy"
        self._hear_known(message.extra)
        known = self.by_route.get(session.route)
        if known is not None and not known.is_dialled:
            start = (known.peer_id, known.incarnation)
            if start == (peer_id, message.session):
                session.is_peer = session.is_relayed = True
                return ""  # Its Welcome took long: what is on its way stays so.
        link = Link(
            session.route, PeerId(peer_id), "", self._table.clock(), is_dialled=False
        )
        link.name = message.client_name
        link.incarnation = bytes(message.session)
        session.is_peer = session.is_relayed = True
        self._drop_route(session.route)
        self.by_route[session.route] = link
        self._by_peer.setdefault(link.peer_id, []).append(link)
        return ""

    def welcomed(self, route: bytes) -> None:
        """Use a link whose end has been told that it belongs."""
        link = self.by_route.get(route)
        if link is not None:
            self.on_up(link, False)

    # -- what comes over a link --------------------------------------------------------

    def take(self, link: Link, message: Message) -> None:
        """Take what concerns the link itself: Welcome, Refused, Ping and Pong."""
        if type(message) is Welcome:
            self._on_welcome(link, message)
        elif type(message) is Refused:
            self._on_refused(link, message)
        elif type(message) is Pong:
            if message.token == CLOCK_TOKEN:
                self._compare_clocks(link, message)
                return
            link.asked_s = 0.0
            if not message.is_known and link.is_dialled:
                self._greet(link)

    def _on_welcome(self, link: Link, message: Welcome) -> None:
        cluster = (message.extra or {}).get("cluster")
        settings = self._table.settings
        why = ""
        if message.peer_id == settings.peer_id:
            why = THIS_PEER
        elif not PEER_VERSION_MIN <= message.version <= PROTOCOL_VERSION:
            why = (
                f"it speaks version {message.version} of the protocol, this peer "
                f"{PEER_VERSION_MIN} to {PROTOCOL_VERSION} with peers"
            )
        elif cluster != settings.cluster:
            why = f"it belongs to the cluster {cluster!r}, this peer to {settings.cluster!r}"
        if why:
            self._turned_away(link, why)
            return
        self._hear_known(message.extra)
        if link.peer_id != message.peer_id:
            # Another peer has taken over the address, or it was only an address so far.
            self._leave_peer(link)
            link.peer_id = PeerId(bytes(message.peer_id))
            self._by_peer.setdefault(link.peer_id, []).append(link)
        is_again = link.was_refused or link.incarnation not in (
            b"",
            message.incarnation,
        )
        lanes = self._table.lanes
        if CHUNKS in message.capabilities and (is_again or link.route not in lanes):
            lanes.open(link.route, settings.message_bytes_max)
        link.name = message.peer_name
        link.incarnation = bytes(message.incarnation)
        link.is_up = True
        link.was_refused = False
        link.is_to_join = False
        if self._table.troubles.end(TroubleKind.JOIN, link.endpoint):
            self._table.note("info", f"joined endpoint={link.endpoint}")
        self.on_up(link, is_again)

    def _on_refused(self, link: Link, message: Refused) -> None:
        if message.code == "hello_needed":
            if self._table.clock() - link.greeted_s >= ASK_S or link.is_up:
                link.is_up = False
                link.was_refused = True
                self._greet(link)
            return
        why = message.reason
        if message.code == "version":
            why = f"{why}; install a newer activestore on the older of the two"
        self._turned_away(link, why)

    def _turned_away(self, link: Link, why: str) -> None:
        # Others may have told of who had this address before, as of a lost disk.
        if why != THIS_PEER or link.is_to_join:
            self._complain(link.endpoint, why)
        self.close(link)

    def _complain(self, endpoint: str, why: str) -> None:
        self._table.trouble(TroubleKind.JOIN, endpoint, why)

    def _knock_next(self, now_s: float) -> None:
        """Look why nobody answers at an address that is to be joined."""
        silent = [link for link in self.by_route.values() if link.is_to_join]
        link = min(silent, key=lambda one: one.knock_due_s, default=None)
        if link is None or now_s < link.knock_due_s:
            return

        def then(reason: str) -> None:
            if link.is_to_join and link.route in self.by_route:
                self._complain(link.endpoint, reason)

        if self._table.knock(link.endpoint, then):
            link.knock_due_s = now_s + KNOCK_AGAIN_S

    def _ask_clock(self, link: Link, now_s: float) -> None:
        link.clock_due_s = now_s + CLOCK_S
        link.asked_wall_s = self._table.wall_clock()
        self._table.transport.send(link.route, Ping(CLOCK_TOKEN))

    def _compare_clocks(self, link: Link, message: Pong) -> None:
        theirs_s = (message.extra or {}).get("wall_s")
        if type(theirs_s) is not float or not link.asked_wall_s:
            return
        off_s = clock_off_s(link.asked_wall_s, self._table.wall_clock(), theirs_s)
        reason = clock_reason(link.name, off_s)
        about = f"peer {link.name} {link.peer_id.hex()}"
        if reason:
            link.clock_due_s = self._table.clock() + CLOCK_AGAIN_S
            self._table.trouble(TroubleKind.CLOCK, about, reason)
        elif self._table.troubles.end(TroubleKind.CLOCK, about):
            self._table.note("info", f"the clock of {link.name} agrees again")

    # -- use ---------------------------------------------------------------------------

    def best(self, peer_id: PeerId) -> Link | None:
        """Return the link by which a peer is reached now, None where there is none."""
        found: Link | None = None
        for link in self._by_peer.get(peer_id, ()):
            if link.is_up and (found is None or link.heard_s > found.heard_s):
                found = link
        return found

    def reach(self, peer_id: PeerId, endpoints: Sequence[str]) -> Link | None:
        """Return a link to a peer, dialled now where there was none; None: no address."""
        link = self.best(peer_id)
        if link is not None:
            return link
        for one in self._by_peer.get(peer_id, ()):
            return one  # It is being dialled; what is sent waits behind its Hello.
        for endpoint in endpoints:
            link = self.dial(endpoint, peer_id)
            if link is not None:
                return link
        return None

    def send(self, link: Link, message: Message, lines: Collection[bytes] = ()) -> None:
        """Send a message over a link; `lines`: the objects that a Replicate is about."""
        link.used_s = self._table.clock()
        self._table.send(link.route, message, lines)

    def up(self) -> Iterator[Link]:
        """Yield the links that can be used."""
        for link in self.by_route.values():
            if link.is_up:
                yield link

    # -- time and endings --------------------------------------------------------------

    def look(self, now_s: float, awaited: Collection[Link | None]) -> None:
        """Greet again, ask the silent, close the idle; `awaited`: where answers are due."""
        self._knock_next(now_s)
        for link in list(self.by_route.values()):
            if link.is_up and now_s >= link.clock_due_s:
                self._ask_clock(link, now_s)
            if not link.is_dialled:
                continue
            if not link.is_up:
                if now_s - link.greeted_s >= GREET_S:
                    self._greet(link)
            elif link in awaited:
                quiet_s = now_s - max(link.heard_s, link.asked_s)
                if quiet_s >= ASK_S:
                    link.asked_s = now_s
                    self._table.transport.send(link.route, Ping(0))
                    self.on_silent(link)
            elif now_s - max(link.used_s, link.heard_s) >= IDLE_S:
                self.close(link)

    def _close_idlest(self) -> bool:
        dialled = [link for link in self.by_route.values() if link.is_dialled]
        idlest = min(dialled, key=lambda link: link.used_s, default=None)
        if idlest is not None:
            self.close(idlest)
        return idlest is not None

    def close(self, link: Link) -> None:
        """End a link from this side."""
        if link.is_dialled:
            self._table.transport.disconnect(link.route)
        self.lose(link.route)

    def to(self, peer_id: PeerId) -> list[Link]:
        """Return all links to a peer."""
        return list(self._by_peer.get(peer_id, ()))

    def close_all_to(self, peer_id: PeerId) -> None:
        """End every link to a peer that is gone."""
        for link in self.to(peer_id):
            self.close(link)

    def lose(self, route: bytes) -> None:
        """Note that a route is gone."""
        link = self._drop_route(route)
        if link is not None and link.is_dialled:
            self._table.transport.disconnect(route)
        if link is not None:
            self.on_lost(link)

    def _drop_route(self, route: bytes) -> Link | None:
        link = self.by_route.pop(route, None)
        if link is not None:
            self._table.lanes.close(route)
            self._table.forget_way(route)
            self._leave_peer(link)
            if self._dialled.get(link.endpoint) is link:
                del self._dialled[link.endpoint]
        return link

    def _leave_peer(self, link: Link) -> None:
        others = self._by_peer.get(link.peer_id)
        if others is not None and link in others:
            others.remove(link)
            if not others:
                del self._by_peer[link.peer_id]
