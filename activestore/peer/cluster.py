"""The peer among others: joins them, follows who is there, and finds whom to ask.

The core of membership decides; this carries out what it wants over links, gives it what
arrives, and answers for the rest of the loop which peer may hold an object.

Rules of this file: no decision about who is alive, and nothing about requests.

Source: design section 7; reliability.md 1 and 2.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from activestore.core import cluster_effects, cluster_events
from activestore.core.effects import Note
from activestore.core.location import Location, Place
from activestore.core.membership import Membership
from activestore.core.peers import PeerRecord, PeerState
from activestore.core.troubles import TroubleKind
from activestore.errors import CorruptRecordError, UnavailableError
from activestore.ids import ObjectId, PeerId, home_of
from activestore.peer.links import Link, Links
from activestore.peer.starts import OtherStarts
from activestore.peer.table import Table
from activestore.storage.engine import (
    CHANGE_ROWS_MAX,
    ZERO_ID,
    Change,
    Engine,
    Row,
)
from activestore.wire import packing
from activestore.wire.gossip import ClassHint, Hint
from activestore.wire.limits import PROTOCOL_VERSION
from activestore.wire.messages import Message

# States of a peer that can be asked: a suspect may answer, a dead one does not.
_REACHABLE = frozenset({PeerState.ALIVE, PeerState.SUSPECT})
# Addresses of others that a client is told.
TOLD_MAX = 8
# Addresses that are kept for the next start.
KNOWN_MAX = 32
# They are written down so long after they changed, and again not before so long: while a
# thousand peers join, each would write a thousand times. They are a hint for the next
# start; one that crashes earlier than that has the addresses that it was told to join.
REMEMBER_SOON_S = 0.5
REMEMBER_INTERVAL_S = 5.0
_PEERS_KEY = b"peers"
# A loop that is later than this tells membership so.
LAG_S = 0.25


class Cluster:
    """One peer's view of the others."""

    def __init__(
        self,
        table: Table,
        links: Links,
        membership: Membership,
        location: Location,
        seeds: Sequence[str],
    ) -> None:
        self._table = table
        self._links = links
        self.membership = membership
        self.location = location
        self._seeds = tuple(seeds)
        self._known: list[str] = []
        self._starts = OtherStarts()
        self._remember_due_s = float("inf")
        self._remembered_s = float("-inf")
        self._due_s = 0.0
        # Called when a peer is dead or has left.
        self.on_gone: Callable[[PeerId], None] = lambda peer_id: None
        # Called when a peer begins to answer, or is suspected; with whether it answers.
        self.on_seen: list[Callable[[PeerId, bool], None]] = []
        # Called with an object of which it was heard where it is.
        self.on_heard: Callable[[ObjectId], None] = lambda object_id: None
        # Called when the set of peers that live has changed.
        self.on_changed: Callable[[], None] = lambda: None
        # Called where a link to a peer is there anew.
        self.on_link: Callable[[PeerId], None] = lambda peer_id: None
        # Called with what a peer says to be the newest code of a class.
        self.on_class_hint: Callable[[ClassHint], None] = lambda hint: None
        self._effects: dict[type, Callable[[Any], None]] = {
            cluster_effects.SendTo: self._do_send_to,
            cluster_effects.MemberChanged: self._do_member_changed,
            cluster_effects.MemberForgotten: lambda e: None,
            cluster_effects.HintsHeard: self._do_hints_heard,
            cluster_effects.SeedWanted: lambda _: self._dial_seeds(),
            cluster_effects.Troubled: lambda e: table.trouble(
                e.kind,
                e.about if type(e.about) is str else self.title_of(e.about),
                e.reason,
            ),
            Note: lambda e: table.note(e.level, e.text),
        }

    # -- time --------------------------------------------------------------------------

    def start(self) -> None:
        """Begin: dial those who are to be joined, and let membership set its timers."""
        self._dial_seeds()
        self.step(cluster_events.TimerFired())

    def restore(self, engine: Engine) -> None:
        """Remember who was there when this peer ended: they are joined again."""
        try:
            known = packing.unpack(engine.row("cluster", _PEERS_KEY) or b"\x90")
        except (CorruptRecordError, *packing.UNPACK_ERRORS):
            known = []
        self._starts.restore(engine)
        self._known = [one for one in known if type(one) is str][:KNOWN_MAX]
        own = {*self._seeds, self._table.settings.endpoint}
        self._seeds += tuple(one for one in self._known if one not in own)

    def _remember_soon(self) -> None:
        """Have the addresses written down: others are there than before."""
        if self._remember_due_s == float("inf"):
            soon_s = self._table.clock() + REMEMBER_SOON_S
            next_s = self._remembered_s + REMEMBER_INTERVAL_S
            self._remember_due_s = max(soon_s, next_s)

    def _remember(self, now_s: float) -> None:
        """Keep addresses of peers that live, for the next start, and which start theirs is."""
        self._remember_due_s = float("inf")
        self._remembered_s = now_s
        rows = self._starts.rows()
        known = self.endpoints(KNOWN_MAX)
        if (
            known and known != self._known
        ):  # Of one that nobody is left of the last stay.
            self._known = known
            rows.append(Row("cluster", _PEERS_KEY, bytes(packing.pack(known))))
        for start in range(0, len(rows), CHANGE_ROWS_MAX):
            self._write(rows[start : start + CHANGE_ROWS_MAX])

    def _write(self, rows: Sequence[Row]) -> None:
        change = Change(ZERO_ID, rows=rows)
        self._table.storage.write(
            lambda engine: engine.commit([change]), lambda *_: None
        )

    def _dial_seeds(self) -> None:
        for endpoint in self._seeds:
            self._links.dial(endpoint)

    def send(self, link: Link, message: Message, lines: Collection[bytes] = ()) -> None:
        """Send a message over a link; `lines`: the objects that a Replicate is about."""
        self._links.send(link, message, lines)

    def found(self, endpoint: str) -> None:
        """Join a peer that was discovered."""
        self._links.dial(endpoint)

    def step(self, event: cluster_events.MembershipEvent) -> None:
        """Step the core and carry its effects out."""
        ordered = self.membership.step(event, self._table.clock())
        for effect in ordered:
            self._effects[type(effect)](effect)
        deadline_s = self.membership.deadline_s()
        self._due_s = float("inf") if deadline_s is None else deadline_s

    def next_s(self) -> float:
        """Return when `turn` is due."""
        return min(self._due_s, self._remember_due_s)

    def turn(self, now_s: float) -> None:
        """Let time pass."""
        if now_s >= self._remember_due_s:
            self._remember(now_s)
        if now_s < self._due_s:
            return
        if now_s - self._due_s > LAG_S:
            self.step(cluster_events.Lagged(now_s - self._due_s))
        self.step(cluster_events.TimerFired())

    def leave(self) -> None:
        """Tell the others that this peer stops on purpose."""
        if self._remember_due_s < float("inf"):
            self._remember(self._table.clock())
        self.step(cluster_events.LeaveOrdered())

    # -- links and messages ------------------------------------------------------------

    def take(self, link: Link, message: Any) -> None:
        """Take a message of membership."""
        self.step(cluster_events.MessageArrived(link.peer_id, message))

    def link_up(self, link: Link) -> None:
        """A peer said who it is: it is there, whatever gossip says."""
        self.on_link(link.peer_id)
        if self.state_of(link.peer_id) is PeerState.ALIVE:
            return
        endpoints = (link.endpoint,) if link.endpoint else ()
        record = self.membership.record_of(link.peer_id) or PeerRecord(
            link.peer_id, 0, link.name, endpoints, "", "lan", PROTOCOL_VERSION, {}
        )
        self.step(cluster_events.Joined([record]))

    def link_lost(self, link: Link) -> None:
        """A link broke, or is silent."""
        if link.peer_id:
            self.look_at(link.peer_id)

    def look_at(self, peer_id: PeerId) -> None:
        """Probe a peer now, and not only in its turn."""
        self.step(cluster_events.LinkLost(peer_id))

    def _do_send_to(self, effect: cluster_effects.SendTo) -> None:
        link = self._links.reach(PeerId(effect.peer_id), effect.endpoints)
        if link is not None:
            self._links.send(link, effect.message)

    def _do_member_changed(self, effect: cluster_effects.MemberChanged) -> None:
        peer_id = PeerId(effect.peer_id)
        if effect.old_state is not effect.new_state:
            name = effect.record.name or peer_id.hex()
            self._table.note(
                "info", f"peer {effect.new_state.name.lower()} name={name} "
                f"peer={peer_id.hex()}",
            )  # fmt: skip
        if effect.new_state in _REACHABLE:
            self._starts.note(effect.record)
            self._remember_soon()
            if effect.old_state not in _REACHABLE:
                self.on_changed()
            self._tell_seen(peer_id, effect)
            return
        self._table.troubles.end(TroubleKind.CLOCK, self.title_of(peer_id))
        self.location.doubt_peer(peer_id)
        # First what waits for it ends: else it would wait on a link that is dialled anew, and
        # run when the peer comes back, although whoever asked was told that it failed.
        self.on_gone(peer_id)
        self._links.close_all_to(peer_id)
        self.on_changed()
        self._tell_seen(peer_id, effect)

    def _tell_seen(
        self, peer_id: PeerId, effect: cluster_effects.MemberChanged
    ) -> None:
        is_answering = effect.new_state is PeerState.ALIVE
        if is_answering != (effect.old_state is PeerState.ALIVE):
            for seen in self.on_seen:
                seen(peer_id, is_answering)

    def _do_hints_heard(self, effect: cluster_effects.HintsHeard) -> None:
        for hint in effect.hints:
            if isinstance(hint, ClassHint):
                self.on_class_hint(hint)
                continue
            object_id = ObjectId(hint.object_id)
            others = tuple(map(PeerId, hint.others))
            place = Place(PeerId(hint.peer_id), hint.epoch, others, hint.group_version)
            if self.location.hear(object_id, place):
                self.membership.tell_hint(hint, self._table.clock())
                self.on_heard(object_id)

    def tell(self, object_id: ObjectId, place: Place) -> None:
        """Gossip where an object is that is not at home, or has replicas."""
        hint = Hint(object_id, *place)
        self.membership.tell_hint(hint, self._table.clock())

    def tell_class(self, hint: ClassHint) -> None:
        """Gossip which code of a class is the newest."""
        self.membership.tell_hint(hint, self._table.clock())

    # -- questions ---------------------------------------------------------------------

    def state_of(self, peer_id: PeerId) -> PeerState | None:
        """Return what is believed of a peer, None where it is unknown."""
        return self.membership.state_of(peer_id)

    def alive(self) -> list[PeerId]:
        """Return the other peers that can be asked."""
        me = self._table.settings.peer_id
        return [
            PeerId(record.peer_id)
            for record in self.membership.live()
            if record.peer_id != me
        ]

    @property
    def is_alone(self) -> bool:
        """Whether this peer was told of no other, and has heard of none."""
        return not self._seeds and len(self.membership.members) <= 1

    def is_reachable(self, peer_id: PeerId) -> bool:
        """Whether a peer may answer."""
        return self.state_of(peer_id) in _REACHABLE

    def endpoints(self, count_max: int = TOLD_MAX) -> list[str]:
        """Return addresses of some other peers, for clients whose peer dies."""
        found: list[str] = []
        me = self._table.settings.peer_id
        # Not `live()`: it is made anew for every peer that comes, and a few are enough.
        for member in self.membership.members.values():
            endpoints = member.record.endpoints
            if member.is_live and endpoints and member.record.peer_id != me:
                found.append(endpoints[0])
            if len(found) == count_max:
                break
        return found

    def known_of(self, peer_id: PeerId) -> list[Any]:
        """Return the highest incarnation that is known of a peer, and its start's mark.

        With its id: by now another peer may be where it was.
        """
        record = self.membership.record_of(peer_id)
        if record is not None and record.incarnation:
            self._starts.note(record)
        return [*self._starts.of(peer_id), peer_id]

    def endpoint_of(self, peer_id: PeerId) -> str:
        """Return the first address of a peer, "" where none is known."""
        if peer_id == self._table.settings.peer_id:
            return self._table.settings.endpoint
        record = self.membership.record_of(peer_id)
        return record.endpoints[0] if record is not None and record.endpoints else ""

    def name_of(self, peer_id: PeerId) -> str:
        """Return how a peer is called in texts."""
        record = self.membership.record_of(peer_id)
        return record.name if record is not None and record.name else peer_id.hex()

    def namesake_of(self, peer_id: PeerId) -> PeerId | None:
        """Return another peer of the same name that answers, None where none does."""
        name = self.name_of(peer_id)
        for other, member in self.membership.members.items():
            if member.record.name == name and member.is_live and other != peer_id:
                return PeerId(other)
        return None

    def title_of(self, peer_id: bytes) -> str:
        """Return how a peer is called where an operator has to find it."""
        record = self.membership.record_of(peer_id)
        name = record.name if record is not None else ""
        return " ".join(filter(None, ("peer", name, peer_id.hex())))

    def named(self, name: str) -> PeerId | None:
        """Return the living peer of a name, or whose id in hex it is.

        Raises:
            UnavailableError: several have that name; names their ids.
        """
        live = self.membership.live()
        found = [r.peer_id for r in live if name in (r.name, r.peer_id.hex())]
        if len(found) > 1:
            raise UnavailableError(
                f"peer {name!r}",
                "several living peers have that name; give the id of one: "
                + ", ".join(sorted(peer_id.hex() for peer_id in found)),
            )
        return PeerId(found[0]) if found else None

    def troubles(self) -> list[dict[str, Any]]:
        """Return what is wrong around this peer, for `status`."""
        troubles, now_s = self._table.troubles, self._table.clock()
        names = {
            name: "peers " + ", ".join(one.hex() for one in ids[:8]) + " have this name"
            for name, ids in self.membership.shared_names().items()
        }
        troubles.settle(TroubleKind.NAME, names, now_s)
        return troubles.rows(now_s)

    def names(self) -> list[str]:
        """Return the names of the peers that live, this one included."""
        return [record.name for record in self.membership.live()]

    def reach(self, peer_id: PeerId) -> Link | None:
        """Return a link to a peer, None where it has no address and made no link."""
        record = self.membership.record_of(peer_id)
        return self._links.reach(peer_id, record.endpoints if record else ())

    def buddies(self, home: PeerId) -> list[PeerId]:
        """Return the two peers that stand in for a home."""
        return [PeerId(one) for one in self.membership.buddies_of(home)]

    def keepers(self, home: PeerId) -> list[PeerId]:
        """Return who keeps where the objects of a home went: it, and its buddies."""
        return [home, *self.buddies(home)]

    def route(self, object_id: ObjectId) -> list[PeerId]:
        """Return whom to ask for an object that is not here, in order."""
        home = home_of(object_id)
        buddies = self.buddies(home)
        place = self.location.place_of(object_id)
        members = () if place is None else place.members
        states = {one: self.state_of(one) for one in (home, *buddies, *members)}
        reachable = [one for one, state in states.items() if state in _REACHABLE]
        doubted = [one for one in members if states[one] is PeerState.SUSPECT]
        return self.location.route(object_id, reachable, buddies, doubted)

    def is_answering(self, peer_id: PeerId) -> bool:
        """Whether a peer is believed to be there, and not even suspected."""
        return self.state_of(peer_id) is PeerState.ALIVE
