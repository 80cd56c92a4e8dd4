"""The peers that this peer knows, and the lists it draws from them; pure.

    ALIVE --suspect--> SUSPECT --time is over--> DEAD --kept long enough--> (forgotten)
      ^------refuted------'                       |
      ^---------------a higher incarnation--------'      ALIVE --leave--> LEFT --> ...

Live are ALIVE and SUSPECT, and this peer itself. Each other live peer is on one *lane*:
all peers to which the same rhythm is kept (see profiles).

Rules of this file: it keeps books and decides nothing; no operation but `live`, once a
version, and `check` costs more than what it returns.

Source: SWIM section 4.2 and 4.3; reliability.md 1.3.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Sequence

from activestore.core.dissemination import Dissemination
from activestore.core.peers import PeerRecord, PeerState, buddies_of
from activestore.core.profiles import MembershipConfig, Profile, profile_between
from activestore.core.suspicion import Suspicion
from activestore.wire.gossip import ClassHint, Hint, Update, encode_hint, encode_update

# News and hints that wait at once for one lane; 100 B each.
UPDATES_QUEUED_MAX = 4096
# Classes whose new code waits to be told; 300 B each.
CLASSES_QUEUED_MAX = 256
HINTS_QUEUED_MAX = 1024
# Peers that may have left a lane, and are in its round still, before they are taken out.
ROUND_SLACK = 16
# Homes whose buddies are remembered for one version.
BUDDIES_KEPT_MAX = 4096

# Kept in meta, and so lively that it makes no difference to who is where.
_RESTLESS = "load"


class Member:
    """What is believed of one peer."""

    __slots__ = (
        "brief", "heard_s", "incarnation", "lane", "record", "row", "since_s", "state",
        "suspicion",
    )  # fmt: skip

    def __init__(
        self, record: PeerRecord, state: PeerState, lane: Lane | None, now_s: float
    ) -> None:
        self.record = record
        self.state = state
        self.incarnation = record.incarnation
        self.since_s = now_s
        self.heard_s = now_s  # when something last came from it, at first when added
        self.suspicion: Suspicion | None = None
        self.lane = lane  # None for this peer itself
        self.row: bytes | None = None  # the encoded update, while it is true
        self.brief: bytes | None = None  # the same without the record

    @property
    def is_live(self) -> bool:
        """Whether it is counted as there."""
        return self.state <= PeerState.SUSPECT

    def full_row(self) -> bytes:
        """Return its state with its record, encoded."""
        if self.row is None:
            self.row = encode_update(
                Update(self.record.peer_id, self.incarnation, self.state, self.record)
            )
        return self.row

    def short_row(self, accuser: bytes = b"") -> bytes:
        """Return its state without its record, encoded."""
        if not accuser:
            if self.brief is None:
                self.brief = self._short_row(b"")
            return self.brief
        return self._short_row(accuser)

    def raise_to(self, incarnation: int) -> None:
        """Note that somebody knows it under this incarnation, if it is a higher one."""
        if incarnation > self.incarnation:
            self.incarnation = incarnation
            self.changed()

    def changed(self) -> None:
        """Encode it anew when it is next told."""
        self.row = self.brief = None

    def _short_row(self, accuser: bytes) -> bytes:
        peer_id = self.record.peer_id
        return encode_update(
            Update(peer_id, self.incarnation, self.state, None, accuser)
        )


class Roster:
    """Ids in a list, to add, remove and draw from at a fixed cost."""

    __slots__ = ("_place", "ids")

    def __init__(self) -> None:
        self.ids: list[bytes] = []
        self._place: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, peer_id: bytes) -> bool:
        return peer_id in self._place

    def add(self, peer_id: bytes) -> None:
        """Put an id in; it is not there yet."""
        self._place[peer_id] = len(self.ids)
        self.ids.append(peer_id)

    def remove(self, peer_id: bytes) -> None:
        """Take an id out."""
        place = self._place.pop(peer_id)
        last = self.ids.pop()
        if last != peer_id:
            self.ids[place] = last
            self._place[last] = place

    def pick(
        self, count: int, rng: Callable[[], float], avoid: Container[bytes] = ()
    ) -> list[bytes]:
        """Return up to `count` different ids, drawn at random."""
        ids = self.ids
        size = len(ids)
        found: list[bytes] = []
        if size <= 3 * count:
            rest = [peer_id for peer_id in ids if peer_id not in avoid]
            while rest and len(found) < count:
                place = int(rng() * len(rest))
                found.append(rest[place])
                rest[place] = rest[-1]
                rest.pop()
            return found
        for _ in range(3 * count):
            peer_id = ids[int(rng() * size)]
            if peer_id not in avoid and peer_id not in found:
                found.append(peer_id)
                if len(found) == count:
                    break
        return found


class Lane:
    """The live peers to which one rhythm is kept, and what is to be told to them."""

    __slots__ = (
        "_round", "classes", "gossip_s", "hints", "is_gossip_due", "is_probing", "number",
        "profile", "roster", "updates",
    )  # fmt: skip

    def __init__(self, number: int, profile: Profile) -> None:
        self.number = number
        self.profile = profile
        self.roster = Roster()
        self._round: list[bytes] = []
        self.updates = Dissemination(UPDATES_QUEUED_MAX)
        self.hints = Dissemination(HINTS_QUEUED_MAX)
        self.classes = Dissemination(CLASSES_QUEUED_MAX)
        self.is_probing = False  # a wake-up for the next probe is set, or one is out
        self.is_gossip_due = False  # a wake-up for gossip is set
        self.gossip_s = 0.0  # when there was gossip last

    @property
    def has_news(self) -> bool:
        """Whether there is something to tell."""
        return bool(len(self.updates) or len(self.hints) or len(self.classes))

    def put_hint(self, hint: Hint | ClassHint) -> None:
        """Have this told of an object or a class, instead of what was to be told of it."""
        if isinstance(hint, ClassHint):
            self.classes.put(hint.class_name.encode(), encode_hint(hint))
        else:
            self.hints.put(hint.object_id, encode_hint(hint))

    def add(self, peer_id: bytes, rng: Callable[[], float]) -> None:
        """Put a peer in, at a random place of this round of probes."""
        self.roster.add(peer_id)
        if len(self._round) <= 2 * len(self.roster):
            self._round.insert(int(rng() * (len(self._round) + 1)), peer_id)

    def remove(self, peer_id: bytes) -> None:
        """Take a peer out; without anybody in it there is nothing to tell."""
        self.roster.remove(peer_id)
        if not len(self.roster):
            self.updates.clear()
            self.hints.clear()
            self.classes.clear()
        if len(self._round) > 2 * len(self.roster) + ROUND_SLACK:
            self._round = [one for one in self._round if one in self.roster]

    def next_target(self, rng: Callable[[], float]) -> bytes | None:
        """Return the next peer to probe: each once in a round, rounds shuffled.

        Source: SWIM section 4.3: so every peer is probed within 2 N - 1 intervals.
        """
        while self._round:
            peer_id = self._round.pop()
            if peer_id in self.roster:
                return peer_id
        ids = self._round = list(self.roster.ids)
        for place in range(len(ids) - 1, 0, -1):
            other = int(rng() * (place + 1))
            ids[place], ids[other] = ids[other], ids[place]
        return ids.pop() if ids else None

    def check(self) -> None:
        """Make sure that everything is within its bounds."""
        assert len(self._round) <= 2 * len(self.roster) + ROUND_SLACK + 1
        self.updates.check()
        self.hints.check()
        self.classes.check()


class MemberTable:
    """All members by id, this peer among them."""

    def __init__(
        self, me: PeerRecord, config: MembershipConfig, rng: Callable[[], float]
    ) -> None:
        self._config = config
        self._rng = rng
        self.lanes = tuple(
            Lane(n, profile)
            for n, profile in enumerate((config.lan, config.wan, config.edge))
        )
        self._lane_of = {lane.profile: lane for lane in self.lanes}
        self.me = Member(me, PeerState.ALIVE, None, 0.0)
        self.members: dict[bytes, Member] = {me.peer_id: self.me}
        self.others = Roster()  # the live ones but this peer
        self.version = 1
        self._gone: OrderedDict[bytes, None] = OrderedDict()  # oldest first
        self._names: dict[str, set[bytes]] = {me.name: {me.peer_id}}
        self._live: tuple[PeerRecord, ...] | None = None
        self._buddies: dict[bytes, list[bytes]] = {}

    @property
    def live_count(self) -> int:
        """How many peers live, this one among them."""
        return len(self.others) + 1

    @property
    def has_room(self) -> bool:
        """Whether another peer could be taken."""
        return len(self.members) < self._config.members_max or bool(self._gone)

    def live(self) -> Sequence[PeerRecord]:
        """Return the records of all that live; the same tuple until the version moves."""
        if self._live is None:
            members = self.members
            mine = (self.me.record,) if self.me.is_live else ()
            self._live = (
                *mine, *(members[peer_id].record for peer_id in self.others.ids)
            )  # fmt: skip
        return self._live

    def buddies_of(self, home: bytes) -> list[bytes]:
        """Return who stands in for `home`; computed once a version."""
        found = self._buddies.get(home)
        if found is None:
            member = self.members.get(home)
            record = None if member is None else member.record
            found = buddies_of(home, self.live(), record)
            if len(self._buddies) >= BUDDIES_KEPT_MAX:
                self._buddies.clear()
            self._buddies[home] = found
        return found

    def add(
        self, record: PeerRecord, state: PeerState, now_s: float
    ) -> Member | None:  # fmt: skip
        """Put a live peer in; return None where the table is full of live ones.

        In a full table those that are gone make room, the oldest first.
        """
        if len(self.members) >= self._config.members_max:
            if not self._gone:
                return None
            self.forget(next(iter(self._gone)))
        member = Member(record, state, None, now_s)
        self.members[record.peer_id] = member
        self._enter(member)
        return member

    def set_state(self, member: Member, state: PeerState, now_s: float) -> None:
        """Write down another state of a member."""
        was_live, peer_id = member.is_live, member.record.peer_id
        member.state = state
        member.since_s = now_s
        member.changed()
        if state is not PeerState.SUSPECT:
            member.suspicion = None
        if member is self.me:
            self._moved()
        elif was_live and not member.is_live:
            self.others.remove(peer_id)
            if member.lane is not None:
                member.lane.remove(peer_id)
            member.lane = None
            self._gone[peer_id] = None
            self._unname(member.record)
            self._moved()
        elif member.is_live and not was_live:
            self._gone.pop(peer_id, None)
            self._enter(member)

    def set_record(self, member: Member, record: PeerRecord) -> None:
        """Write down a newer record of a member, and its incarnation."""
        old = member.record
        member.record = record
        member.incarnation = record.incarnation
        member.changed()
        if not member.is_live:
            return
        if old.name != record.name:
            self._unname(old)
            self._names.setdefault(record.name, set()).add(record.peer_id)
        if member is not self.me:
            lane = self._lane_for(record)
            if lane is not member.lane and member.lane is not None:
                member.lane.remove(record.peer_id)
                member.lane = lane
                self._board(lane, record.peer_id)
        self._live = None
        if is_moving(old, record):
            self._moved()

    def relane(self) -> None:
        """Sort all members into lanes anew: this peer's own zone or profile changed."""
        for peer_id in self.others.ids:
            member = self.members[peer_id]
            lane = self._lane_for(member.record)
            if member.lane is not None and lane is not member.lane:
                member.lane.remove(peer_id)
                member.lane = lane
                self._board(lane, peer_id)

    def forget(self, peer_id: bytes) -> None:
        """Drop a member that is gone."""
        del self._gone[peer_id]
        del self.members[peer_id]

    def expired(self, before_s: float) -> list[bytes]:
        """Return those that are gone since before `before_s`."""
        found = []
        for peer_id in self._gone:
            if self.members[peer_id].since_s >= before_s:
                break
            found.append(peer_id)
        return found

    def namesakes(self, record: PeerRecord) -> set[bytes]:
        """Return all live peers with this record's name."""
        return self._names.get(record.name, set())

    def shared_names(self) -> dict[str, list[bytes]]:
        """Return the names that several live peers have, with their ids."""
        return {
            name: sorted(ids)
            for name, ids in self._names.items()
            if name and len(ids) > 1
        }

    def _lane_for(self, record: PeerRecord) -> Lane:
        return self._lane_of[profile_between(self.me.record, record, self._config)]

    def _enter(self, member: Member) -> None:
        record = member.record
        self.others.add(record.peer_id)
        member.lane = self._lane_for(record)
        self._board(member.lane, record.peer_id)
        self._names.setdefault(record.name, set()).add(record.peer_id)
        self._moved()

    def _board(self, lane: Lane, peer_id: bytes) -> None:
        """Put a peer on a lane; the first one there hears of this peer."""
        lane.add(peer_id, self._rng)
        if len(lane.roster) == 1:
            lane.updates.put(self.me.record.peer_id, self.me.full_row())

    def _unname(self, record: PeerRecord) -> None:
        names = self._names.get(record.name)
        if names is not None:
            names.discard(record.peer_id)
            if not names:
                del self._names[record.name]

    def _moved(self) -> None:
        self.version += 1
        self._live = None
        self._buddies.clear()

    def check(self) -> None:
        """Make sure that every list agrees with the table; costs O(N)."""
        me = self.me.record.peer_id
        live = {i for i, m in self.members.items() if m.is_live and i != me}
        assert live == set(self.others.ids)
        assert len(self.others.ids) == len(live)
        assert set(self._gone) == {i for i, m in self.members.items() if not m.is_live
                                   and i != me}  # fmt: skip
        assert len(self.members) <= self._config.members_max
        assert sum(len(lane.roster) for lane in self.lanes) == len(live)
        for lane in self.lanes:
            assert all(self.members[i].lane is lane for i in lane.roster.ids)
            lane.check()
        for peer_id, member in self.members.items():
            assert member.record.peer_id == peer_id
            is_suspect = member.state is PeerState.SUSPECT
            assert (member.suspicion is not None) == is_suspect
        named = {i for ids in self._names.values() for i in ids}
        assert named == live | {me}


def is_moving(old: PeerRecord, new: PeerRecord) -> bool:
    """Whether two records of a peer differ in more than its load."""
    if old[2:7] != new[2:7]:
        return True
    keys = old.meta.keys() | new.meta.keys()
    return any(old.meta.get(k) != new.meta.get(k) for k in keys if k != _RESTLESS)
