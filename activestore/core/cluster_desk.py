"""What the parts of membership share: the table, the wake-ups, the orders of one step.

Rules of this file: it decides nothing; parts of membership know the desk, and not each
other.
"""

from __future__ import annotations

import enum
import heapq
from collections import OrderedDict
from collections.abc import Callable

from activestore.core.cluster_effects import MembershipEffect, SendTo, Troubled
from activestore.core.effects import Note
from activestore.core.member_table import Lane, Member, MemberTable
from activestore.core.peers import PeerRecord, PeerState
from activestore.core.profiles import retransmits
from activestore.core.troubles import TroubleKind
from activestore.wire.gossip import GOSSIP_BYTES_MAX, encode_body
from activestore.wire.messages import Message

# The lists of a body themselves, and the row about the receiver that is told first.
BODY_FRAME_BYTES = 60
# While updates wait too, hints get this part of a message: 13 hints.
HINTS_SHARE_BYTES = 400
# A loose bound of the wake-ups, those that do not matter any more among them.
WAKES_MIN = 2048
WAKES_PER_MEMBER = 16
# What was noted once is not noted again; as many things are remembered.
NOTED_MAX = 256


class Wake(enum.IntEnum):
    """Why membership wanted to be woken."""

    PROBE = 0  # the next probe of a lane: key is its number
    PROBE_LATE = 1  # no answer yet: ask others; key is the token
    PROBE_OVER = 2  # no answer at all; key is the token
    RELAY_LATE = 3  # a probe for another has no answer: tell it; key is the token
    RELAY_OVER = 4  # nobody waits for that answer any more; key is the token
    SUSPICION = 5  # a suspect's time may be over; key is the peer
    GOSSIP = 6  # a lane has something to tell: key is its number
    PUSH_PULL = 7
    TIDY = 8  # forget what is long gone
    RECONNECT = 9  # try one that was lost
    SEED = 10
    RECORD = 11  # tell a change of this peer's record that was held back
    REFUTE = 12  # contradict another that uses this peer's id


class ClusterDesk:
    """Shared by the parts of one Membership."""

    def __init__(self, table: MemberTable, rng: Callable[[], float]) -> None:
        self.table = table
        self.rng = rng
        self.effects: list[MembershipEffect] = []
        self._heap: list[tuple[float, int, Wake, int | bytes]] = []
        self._serial = 0
        self._noted: OrderedDict[str, None] = OrderedDict()

    def wake(self, at_s: float, what: Wake, key: int | bytes = 0) -> None:
        """Ask to be woken; an entry that does not matter any more is looked over."""
        self._serial += 1
        heapq.heappush(self._heap, (at_s, self._serial, what, key))

    def next_s(self) -> float | None:
        """Return the earliest wake-up, None where there is none."""
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now_s: float) -> tuple[Wake, int | bytes] | None:
        """Take out one wake-up whose time has come."""
        if self._heap and self._heap[0][0] <= now_s:
            return heapq.heappop(self._heap)[2:]
        return None

    def send(
        self, peer_id: bytes, message: Message, endpoints: tuple[str, ...] | None = None
    ) -> None:
        """Send a message to a peer, at its record's endpoints if no others are given."""
        if endpoints is None:
            member = self.table.members.get(peer_id)
            endpoints = () if member is None else member.record.endpoints
        self.effects.append(SendTo(peer_id, endpoints, message))

    def answer(self, peer_id: bytes, message: Message) -> None:
        """Answer a peer on the link that it was last heard on.

        Its record may have an address of an earlier start.
        """
        self.effects.append(SendTo(peer_id, (), message))

    def note_once(self, level: str, text: str, key: str = "") -> None:
        """Tell the operator something, unless it was told under this key before."""
        key = key or text.partition(" reason=")[0]
        if key in self._noted:
            return
        self._noted[key] = None
        if len(self._noted) > NOTED_MAX:
            self._noted.popitem(last=False)
        self.effects.append(Note(level, text))

    def trouble(self, kind: TroubleKind, about: bytes | str, reason: str) -> None:
        """Show the operator what goes wrong; each time, for what stops is taken off."""
        effect = Troubled(kind, about, reason)
        if not self.effects or self.effects[-1] != effect:  # One body can say it often.
            self.effects.append(effect)

    def look_at_name(self, record: PeerRecord) -> None:
        """Tell the operator where two live peers have one name."""
        peers = self.table.namesakes(record)
        if len(peers) > 1 and record.name:
            ids = ", ".join(sorted(peer.hex() for peer in peers)[:4])
            self.note_once(
                "warning",
                f"two peers have one name name={record.name!r} peers={ids}: give one of "
                "them another with --name",
                key=f"name {record.name}",
            )

    def spread(self, member: Member, row: bytes, now_s: float) -> None:
        """Tell this of a peer on all lanes; not of one that is only an address yet."""
        if not member.incarnation:
            return
        peer_id = member.record.peer_id
        for lane in self.table.lanes:
            if len(lane.roster):
                lane.updates.put(peer_id, row)
                self.arm_gossip(lane, now_s)

    def arm_gossip(self, lane: Lane, now_s: float) -> None:
        """Gossip soon; after a silence at once."""
        if not lane.is_gossip_due:
            lane.is_gossip_due = True
            at_s = max(now_s, lane.gossip_s + lane.profile.gossip_interval_s)
            self.wake(at_s, Wake.GOSSIP, lane.number)

    def body_for(self, peer_id: bytes) -> bytes:
        """Return the news for one peer; first what is believed of itself, if it is bad.

        So a suspect learns of it at once and can refute it.

        Source: Lifeguard (arXiv:1707.00788), buddy system.
        """
        member = self.table.members.get(peer_id)
        if member is None:
            return b""
        first = []
        if member.state is not PeerState.ALIVE:
            first.append(member.short_row(self.table.me.record.peer_id))
        lane = member.lane
        if lane is None or not lane.has_news:
            return encode_body(first)
        return self.news(lane, 1, first)

    def news(
        self, lane: Lane, copies: int, first: list[bytes] | None = None
    ) -> bytes:  # fmt: skip
        """Return the next news of a lane, which is sent to `copies` of its peers."""
        sends_max = retransmits(len(lane.roster) + 1)
        room = GOSSIP_BYTES_MAX - BODY_FRAME_BYTES
        share = HINTS_SHARE_BYTES if len(lane.hints) or len(lane.classes) else 0
        updates = lane.updates.take(room - share, sends_max, copies)
        room -= sum(map(len, updates))
        # A class is published seldom, and its code waited for: it goes first.
        classes = lane.classes.take(room, sends_max, copies)
        room -= sum(map(len, classes))
        hints = lane.hints.take(room, sends_max, copies)
        return encode_body([*(first or ()), *updates], hints, (), classes)

    def check(self) -> None:
        """Make sure that everything is within its bounds."""
        assert len(self._noted) <= NOTED_MAX
        assert len(self._heap) <= WAKES_MIN + WAKES_PER_MEMBER * len(self.table.members)
