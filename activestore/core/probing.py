"""Is that peer there? Probes of one's own, probes for others, and one's own health.

One probe after the other on each lane. A target that does not answer in time is probed
through others; a helper that gets no answer says so (Nack), and whoever hears from its
helpers neither target nor Nack must doubt itself: its *health score* rises, and with it
the time that it gives to others.

    Probe ------------ timeout: ProbeFor to three ------- interval x (health + 1): silent
      '--Ack: well          '--Ack: well; Nack: we are well ourselves

Rules of this file: what silence means is decided by membership.

Source: SWIM section 3.1; Lifeguard (arXiv:1707.00788); hashicorp/memberlist state.go.
"""

from __future__ import annotations

from collections.abc import Callable

from activestore.core.cluster_desk import ClusterDesk, Wake
from activestore.core.cluster_events import PeerMessage
from activestore.core.member_table import Lane, Member
from activestore.core.peers import PeerState
from activestore.core.profiles import MembershipConfig, Profile, profile_between
from activestore.wire.messages import Ack, Nack, Probe, ProbeFor

# memberlist: awareness max 8.
HEALTH_MAX = 7
# A helper says "no answer" after this part of the timeout, so that it is heard in time.
# Source: Lifeguard, section III: 80 %.
NACK_SHARE = 0.8
# Probes for others at once, and extra ones of one's own: 100 B each.
RELAYS_MAX = 256
EXTRA_PROBES_MAX = 64


class _Flight:
    """One probe that is under way."""

    __slots__ = ("end_s", "helpers", "lane", "nacks", "profile", "start_s", "target")

    def __init__(
        self, target: bytes, lane: Lane | None, profile: Profile, now_s: float
    ) -> None:
        self.target = target
        self.lane = lane  # None for an extra probe, outside of the round
        self.profile = profile
        self.start_s = now_s
        self.end_s = 0.0
        self.helpers: set[bytes] = set()
        self.nacks: set[bytes] = set()


class _Relay:
    """A probe for another."""

    __slots__ = ("requester", "target", "token")

    def __init__(self, requester: bytes, token: int, target: bytes) -> None:
        self.requester = requester
        self.token = token
        self.target = target


class Prober:
    """Probes one peer after the other."""

    def __init__(
        self,
        desk: ClusterDesk,
        config: MembershipConfig,
        on_silent: Callable[[Member, float], None],
    ) -> None:
        self._desk = desk
        self._config = config
        self._on_silent = on_silent
        self._me = desk.table.me.record.peer_id
        self._token = 0
        self._flights: dict[int, _Flight] = {}
        self._relays: dict[int, _Relay] = {}
        self._extra: set[bytes] = set()
        self._is_stopped = False
        self.health = 0

    def worsen(self, by: int) -> None:
        """Change the health score; 0 is well, HEALTH_MAX very sick."""
        self.health = max(0, min(HEALTH_MAX, self.health + by))

    def stop(self) -> None:
        """Probe nobody any more; answer others."""
        self._is_stopped = True

    def arm(self, lane: Lane, now_s: float) -> None:
        """Let a lane that has peers be probed, from a random moment on."""
        if not lane.is_probing and len(lane.roster) and not self._is_stopped:
            lane.is_probing = True
            delay_s = self._desk.rng() * lane.profile.probe_interval_s
            self._desk.wake(now_s + delay_s, Wake.PROBE, lane.number)

    def probe_next(self, lane: Lane, now_s: float) -> None:
        """Probe the next peer of a lane."""
        target = lane.next_target(self._desk.rng)
        if target is None or self._is_stopped:
            lane.is_probing = False
            return
        self._launch(_Flight(target, lane, lane.profile, now_s), now_s)

    def probe_now(self, member: Member, now_s: float) -> None:
        """Probe a peer outside of the round: its link broke."""
        peer_id = member.record.peer_id
        is_known = member.lane is None or peer_id in self._extra
        if is_known or len(self._extra) >= EXTRA_PROBES_MAX or self._is_stopped:
            return
        self._extra.add(peer_id)
        assert member.lane is not None
        self._launch(_Flight(peer_id, None, member.lane.profile, now_s), now_s)

    def _next_token(self) -> int:
        self._token += 1
        return self._token

    def _launch(self, flight: _Flight, now_s: float) -> None:
        desk, profile = self._desk, flight.profile
        token = self._next_token()
        self._flights[token] = flight
        flight.end_s = now_s + profile.probe_interval_s * (self.health + 1)
        body = desk.body_for(flight.target)
        desk.send(flight.target, Probe(token, flight.target, self._me, None, body))
        desk.wake(now_s + profile.probe_timeout_s, Wake.PROBE_LATE, token)
        desk.wake(flight.end_s, Wake.PROBE_OVER, token)

    def on_late(self, token: int) -> None:
        """Ask others to probe a target that has not answered."""
        flight = self._flights.get(token)
        if flight is None:
            return
        desk, table = self._desk, self._desk.table
        count = flight.profile.indirect_count
        member = table.members.get(flight.target)
        lane = None if member is None else member.lane
        avoid = {flight.target}
        helpers = [] if lane is None else lane.roster.pick(count, desk.rng, avoid)
        if len(helpers) < count:
            avoid.update(helpers)
            helpers += table.others.pick(count - len(helpers), desk.rng, avoid)
        for helper in helpers:
            if table.members[helper].state is PeerState.ALIVE:
                flight.helpers.add(helper)
                body = desk.body_for(helper)
                message = ProbeFor(token, flight.target, self._me, None, body)
                desk.send(helper, message)

    def on_over(self, token: int, now_s: float) -> None:
        """Give a probe up: the target is silent, or this peer is deaf."""
        flight = self._flights.get(token)
        if flight is None:
            return
        if now_s < flight.end_s:  # It was given more time.
            self._desk.wake(flight.end_s, Wake.PROBE_OVER, token)
            return
        if not flight.helpers:
            self.worsen(1)
        elif len(flight.nacks) < len(flight.helpers):
            self.worsen(len(flight.helpers) - len(flight.nacks))
        self._conclude(token, flight, now_s)
        member = self._desk.table.members.get(flight.target)
        if member is not None:
            self._on_silent(member, now_s)

    def _conclude(self, token: int, flight: _Flight, now_s: float) -> None:
        del self._flights[token]
        if flight.lane is None:
            self._extra.discard(flight.target)
            return
        # A sick peer probes less often: Lifeguard, LHA-Probe.
        interval_s = flight.profile.probe_interval_s * (self.health + 1)
        next_s = max(now_s, flight.start_s + interval_s)
        self._desk.wake(next_s, Wake.PROBE, flight.lane.number)

    def on_message(self, sender: bytes, message: PeerMessage, now_s: float) -> None:
        """Take a message that asks or answers; others are not for this part."""
        if type(message) is Probe:
            self.on_probe(sender, message)
        elif type(message) is Ack:
            self.on_ack(sender, message.token, now_s)
        elif type(message) is ProbeFor:
            self.on_probe_for(sender, message, now_s)
        elif type(message) is Nack:
            self.on_nack(sender, message.token)

    def on_ack(self, sender: bytes, token: int, now_s: float) -> None:
        """Take the answer to a probe, of one's own or for another."""
        flight = self._flights.get(token)
        if flight is not None:
            if sender == flight.target or sender in flight.helpers:
                self.worsen(-1)
                self._conclude(token, flight, now_s)
            return
        relay = self._relays.get(token)
        if relay is not None and relay.target == sender:
            del self._relays[token]
            body = self._desk.body_for(relay.requester)
            message = Ack(relay.token, self._me, None, body)
            self._desk.answer(relay.requester, message)

    def on_answer(self, sender: bytes, now_s: float) -> None:
        """Take any answer of a target for a sign of life: what was sent to it arrived.

        What a peer sends unasked proves nothing: it may be deaf.
        """
        for token, flight in list(self._flights.items()):
            if flight.target == sender:
                self._conclude(token, flight, now_s)

    def on_nack(self, sender: bytes, token: int) -> None:
        """Note that a helper is well, though it could not reach the target either."""
        flight = self._flights.get(token)
        if flight is not None and sender in flight.helpers:
            flight.nacks.add(sender)

    def on_probe(self, sender: bytes, message: Probe) -> None:
        """Answer a probe; where another was meant, say that this peer is not it."""
        if message.target != self._me:
            self._desk.answer(sender, Nack(message.token, self._me))
            return
        body = self._desk.body_for(sender)
        self._desk.answer(sender, Ack(message.token, self._me, None, body))

    def on_probe_for(self, sender: bytes, message: ProbeFor, now_s: float) -> None:
        """Probe a target for another, and say in time if it does not answer."""
        desk = self._desk
        member = desk.table.members.get(message.target)
        if message.target == self._me:
            desk.answer(sender, Ack(message.token, self._me))
            return
        if member is None:
            desk.answer(sender, Nack(message.token, self._me))
            return
        if len(self._relays) >= RELAYS_MAX:
            return
        mine = desk.table.me.record
        profile = profile_between(mine, member.record, self._config)
        token = self._next_token()
        self._relays[token] = _Relay(sender, message.token, message.target)
        body = desk.body_for(message.target)
        desk.send(message.target, Probe(token, message.target, self._me, None, body))
        late_s = now_s + NACK_SHARE * profile.probe_timeout_s
        desk.wake(late_s, Wake.RELAY_LATE, token)
        desk.wake(now_s + profile.probe_interval_s, Wake.RELAY_OVER, token)

    def on_relay_late(self, token: int) -> None:
        """Tell whoever asked that the target has not answered yet."""
        relay = self._relays.get(token)
        if relay is not None:
            self._desk.answer(relay.requester, Nack(relay.token, self._me))

    def on_relay_over(self, token: int) -> None:
        """Forget a probe for another."""
        self._relays.pop(token, None)

    def postpone(self, by_s: float) -> None:
        """Give all probes more time: their answers may lie unread."""
        for flight in self._flights.values():
            flight.end_s += by_s

    def check(self) -> None:
        """Make sure that everything is within its bounds."""
        assert 0 <= self.health <= HEALTH_MAX
        assert len(self._relays) <= RELAYS_MAX
        assert len(self._extra) <= EXTRA_PROBES_MAX
        assert len(self._flights) <= EXTRA_PROBES_MAX + len(self._desk.table.lanes)
        lanes = [f.lane for f in self._flights.values() if f.lane is not None]
        assert len(lanes) == len(set(lanes))
