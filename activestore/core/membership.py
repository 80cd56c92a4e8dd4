"""Which peers there are, as this peer believes it: SWIM with Lifeguard, pure.

Every peer probes one other at a time; whom it cannot reach it calls a suspect, and tells
that on; a suspect that is alive contradicts with a higher incarnation; one that stays
silent is dead. News ride on probes and their answers, and go out by gossip while there
is any. Now and then two peers compare all they know (push-pull).

Whose word counts: the higher incarnation, at the same one the worse state. Only a peer
itself makes a new incarnation. In a push-pull a dead peer counts as a suspect: after a
partition each side believes the other dead.

Rules of this file: it decides and never sends; it reads no clock; the work for a message
does not grow with the number of peers, except for push-pulls.

Source: SWIM (DSN 2002); Lifeguard (arXiv:1707.00788); hashicorp/memberlist state.go;
reliability.md 1.2, 1.3, 1.5.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from activestore.core import syncing
from activestore.core.cluster_desk import ClusterDesk, Wake
from activestore.core.cluster_effects import (
    HintsHeard,
    MemberChanged,
    MemberForgotten,
    MembershipEffect,
    SeedWanted,
)
from activestore.core.cluster_events import (
    Joined,
    Lagged,
    LeaveOrdered,
    LinkLost,
    MembershipEvent,
    MessageArrived,
    RecordChanged,
    TimerFired,
)
from activestore.core.lost_peers import LostPeers
from activestore.core.member_table import Lane, Member, MemberTable
from activestore.core.own_record import OwnRecord
from activestore.core.peers import PeerRecord, PeerState
from activestore.core.probing import Prober
from activestore.core.profiles import (
    MembershipConfig,
    Profile,
    push_pull_interval_s,
    slowest_push_pull_s,
    suspicion_bounds,
)
from activestore.core.suspicion import Suspicion
from activestore.core.troubles import TroubleKind
from activestore.errors import RemoteProtocolError
from activestore.wire.gossip import (
    EMPTY,
    ClassHint,
    GossipBody,
    Hint,
    Update,
    decode_body,
)
from activestore.wire.messages import Ack, Gossip, Nack, Probe, Sync, Synced

__all__ = ["Membership", "MembershipConfig"]

# How often what is gone is looked through.
TIDY_INTERVAL_S = 5.0
# At first push-pulls are frequent, and each waits twice as long as the one before: many
# peers that start together have more news than gossip can carry.
FIRST_SYNC_INTERVAL_S = 1.0
# A tombstone outlives two push-pulls, so that nobody brings the dead back.
TOMBSTONE_PUSH_PULLS = 2
# Strangers and the dead that speak are told so once in this time, as many at once.
TOLD_INTERVAL_S = 1.0
TOLD_MAX = 256


class Membership:
    """The members of the cluster as one peer sees them.

    The first step, whatever its event, starts the timers.
    """

    def __init__(
        self, me: PeerRecord, config: MembershipConfig, rng: Callable[[], float]
    ) -> None:
        """Begin with this peer alone.

        Args:
            me: What this peer says of itself; its incarnation is raised where others
                know a higher one. `meta["start"]` tells one start from another.
            config: Rhythms and bounds.
            rng: Returns numbers from 0 to below 1.

        Raises:
            TooLargeError: the record is over RECORD_BYTES_MAX.
        """
        self._config = config
        self._rng = rng
        me = me._replace(incarnation=max(1, me.incarnation))
        self._table = MemberTable(me, config, rng)
        self._table.me.full_row()
        self._desk = ClusterDesk(self._table, rng)
        self._prober = Prober(self._desk, config, self._on_silent)
        self._id = me.peer_id
        self._is_started = False
        self._own = OwnRecord(self._desk, self._prober)
        self._accounted_s = 0.0  # lateness before this moment is dealt with
        self._suspects: set[bytes] = set()
        self._lost = LostPeers(config.lost_max, config.lost_s)
        self._told: OrderedDict[bytes, float] = OrderedDict()
        self._seed_interval_s = config.seed_interval_s_min
        self._sync_interval_s = FIRST_SYNC_INTERVAL_S

    @property
    def me(self) -> PeerRecord:
        """What this peer says of itself now."""
        return self._table.me.record

    @property
    def members(self) -> Mapping[bytes, Member]:
        """All that are known, this peer and those that are gone among them."""
        return self._table.members

    @property
    def version(self) -> int:
        """Moves with every change of who is live, and of their records but for load."""
        return self._table.version

    @property
    def health(self) -> int:
        """How sick this peer believes itself to be: 0 well, 7 very sick."""
        return self._prober.health

    @property
    def has_told_leave(self) -> bool:
        """Whether the leave was told as often as news are; then it is time to stop."""
        return self._own.is_leaving and not any(
            len(lane.updates) for lane in self._table.lanes
        )

    def live(self) -> Sequence[PeerRecord]:
        """Return the records of all that are alive or suspect, this peer's among them."""
        return self._table.live()

    def shared_names(self) -> Mapping[str, Sequence[bytes]]:
        """Return the names that several live peers have, with their ids; costs O(N)."""
        return self._table.shared_names()

    def record_of(self, peer_id: bytes) -> PeerRecord | None:
        """Return what is known of a peer, None where it is unknown."""
        member = self._table.members.get(peer_id)
        return None if member is None else member.record

    def state_of(self, peer_id: bytes) -> PeerState | None:
        """Return what is believed of a peer, None where it is unknown."""
        member = self._table.members.get(peer_id)
        return None if member is None else member.state

    def buddies_of(self, home: bytes) -> list[bytes]:
        """Return who stands in for `home`; see peers.buddies_of."""
        return self._table.buddies_of(home)

    def tell_hint(self, hint: Hint | ClassHint, now_s: float) -> None:
        """Let gossip spread a hint; a newer one of the same replaces it."""
        for lane in self._table.lanes:
            if len(lane.roster):
                lane.put_hint(hint)
                self._desk.arm_gossip(lane, now_s)

    def deadline_s(self) -> float | None:
        """Return when TimerFired is wanted; 0.0 before the first step: at once."""
        return self._desk.next_s() if self._is_started else 0.0

    def step(self, event: MembershipEvent, now_s: float) -> list[MembershipEffect]:
        """Take one event; return what it calls for, in order."""
        effects: list[MembershipEffect] = []
        self._desk.effects = effects
        if not self._is_started:
            self._start(now_s)
        next_s = self._desk.next_s()
        if next_s is not None and now_s - next_s > self._config.lag_s:
            self._was_away_since(next_s, now_s)
        if type(event) is MessageArrived:
            self._on_message(event, now_s)
        elif type(event) is TimerFired:
            self._on_timers(now_s)
        else:
            self._on_rare(event, now_s)
        return effects

    def _on_rare(self, event: MembershipEvent, now_s: float) -> None:
        if type(event) is Joined:
            self._on_joined(event.records, now_s)
        elif type(event) is Lagged:
            self._was_away_since(now_s - event.lag_s, now_s)
        elif type(event) is LinkLost:
            member = self._table.members.get(event.peer_id)
            if member is not None:
                self._prober.probe_now(member, now_s)
        elif type(event) is LeaveOrdered:
            self._own.leave(now_s)
        elif type(event) is RecordChanged:
            self._own.change(event.record, now_s)

    # -- time ------------------------------------------------------------------------

    def _start(self, now_s: float) -> None:
        """Begin all rhythms at random moments: many peers may start together."""
        self._is_started = True
        self._accounted_s = now_s
        self._table.me.since_s = now_s
        config, desk, rng = self._config, self._desk, self._rng
        desk.wake(now_s + self._sync_interval_s * (0.5 + rng()), Wake.PUSH_PULL)
        desk.wake(now_s + rng() * config.reconnect_interval_s, Wake.RECONNECT)
        desk.wake(now_s + config.seed_interval_s_min * (0.5 + rng()), Wake.SEED)
        desk.wake(now_s + TIDY_INTERVAL_S, Wake.TIDY)

    def _profile(self) -> Profile:
        config = self._config
        return {"lan": config.lan, "edge": config.edge}.get(self.me.profile, config.wan)

    def _was_away_since(self, since_s: float, now_s: float) -> None:
        """Give everybody the time back in which this peer heard nothing.

        Source: Lifeguard's local health; reliability.md 1.3, the event loop's lag.
        """
        away_s = now_s - max(since_s, self._accounted_s)
        if away_s <= self._config.lag_s:
            return
        self._accounted_s = now_s
        self._prober.worsen(1)
        self._prober.postpone(away_s)
        for peer_id in self._suspects:
            suspicion = self._table.members[peer_id].suspicion
            if suspicion is not None:
                suspicion.postpone(away_s)

    def _on_timers(self, now_s: float) -> None:
        desk, prober, lanes = self._desk, self._prober, self._table.lanes
        while True:
            due = desk.pop_due(now_s)
            if due is None:
                return
            what, key = due
            if type(key) is bytes:
                self._on_suspicion_over(key, now_s)
            elif what is Wake.PROBE_LATE:
                prober.on_late(int(key))
            elif what is Wake.PROBE_OVER:
                prober.on_over(int(key), now_s)
            elif what is Wake.PROBE:
                prober.probe_next(lanes[int(key)], now_s)
            elif what is Wake.GOSSIP:
                self._gossip(lanes[int(key)], now_s)
            elif what is Wake.RELAY_LATE:
                prober.on_relay_late(int(key))
            elif what is Wake.RELAY_OVER:
                prober.on_relay_over(int(key))
            else:
                self._on_rhythm(what, now_s)

    def _on_rhythm(self, what: Wake, now_s: float) -> None:
        if what is Wake.PUSH_PULL:
            self._push_pull(now_s)
        elif what is Wake.TIDY:
            self._tidy(now_s)
        elif what is Wake.RECONNECT:
            self._reconnect(now_s)
        elif what is Wake.SEED:
            self._ask_for_seeds(now_s)
        elif what is Wake.RECORD:
            self._own.tell(now_s)
        elif what is Wake.REFUTE:
            self._own.outbid(now_s)

    def _gossip(self, lane: Lane, now_s: float) -> None:
        lane.is_gossip_due = False
        targets = lane.roster.pick(lane.profile.gossip_fanout, self._rng)
        if not targets or not lane.has_news:
            return
        lane.gossip_s = now_s
        message = Gossip(self._id, None, self._desk.news(lane, len(targets)))
        for target in targets:
            self._desk.send(target, message)
        if lane.has_news:
            self._desk.arm_gossip(lane, now_s)

    def _push_pull(self, now_s: float) -> None:
        usual_s = push_pull_interval_s(self._profile(), self._table.live_count)
        interval_s = min(self._sync_interval_s, usual_s)
        self._sync_interval_s = min(2 * interval_s, usual_s)
        self._desk.wake(now_s + interval_s * (0.5 + self._rng()), Wake.PUSH_PULL)
        if not self._own.is_leaving:
            for target in self._table.others.pick(1, self._rng):
                self._sync_with(target)

    def _sync_with(
        self, target: bytes, endpoints: tuple[str, ...] | None = None
    ) -> None:
        for extra, body in syncing.digest(self._table):
            self._desk.send(target, Sync(self._id, extra, body), endpoints)

    def _tidy(self, now_s: float) -> None:
        self._desk.wake(now_s + TIDY_INTERVAL_S, Wake.TIDY)
        slowest_s = slowest_push_pull_s(self._config, self._table.live_count)
        before_s = now_s - TOMBSTONE_PUSH_PULLS * slowest_s
        for peer_id in self._table.expired(before_s):
            self._table.forget(peer_id)
            self._desk.effects.append(MemberForgotten(peer_id))
        self._lost.expire(now_s)

    def _reconnect(self, now_s: float) -> None:
        interval_s = self._config.reconnect_interval_s
        self._desk.wake(now_s + interval_s, Wake.RECONNECT)
        if not self._own.is_leaving:
            record = self._lost.pick(self._table.live_count, self._rng)
            if record is not None:
                self._sync_with(record.peer_id, record.endpoints)

    def _ask_for_seeds(self, now_s: float) -> None:
        config, is_alone = self._config, self._table.live_count == 1
        interval_s = config.seed_check_interval_s
        if is_alone:
            interval_s = self._seed_interval_s
            self._seed_interval_s = min(2 * interval_s, config.seed_interval_s_max)
        else:
            self._seed_interval_s = config.seed_interval_s_min
        self._desk.wake(now_s + interval_s * (0.5 + self._rng()), Wake.SEED)
        if not self._own.is_leaving:
            self._desk.effects.append(SeedWanted(is_alone))

    # -- what others say ---------------------------------------------------------------

    def _on_message(self, event: MessageArrived, now_s: float) -> None:
        sender, message = event
        if sender == self._id:
            reason = "it answers with this peer's own id: its data directory was copied"
            self._desk.trouble(TroubleKind.IDENTITY, sender, reason)
            return
        member = self._table.members.get(sender)
        if member is not None:
            member.heard_s = now_s
        body = self._body_of(sender, message.body)
        if type(message) is Sync:
            self._on_sync(sender, message, body, now_s)
            return
        is_synced = type(message) is Synced
        for update in body.updates:
            self._hear(update, sender, now_s, is_synced=is_synced)
        if body.hints:
            self._desk.effects.append(HintsHeard(sender, body.hints))
        if is_synced:
            self._answer_wants(sender, body.wants)
        else:
            self._prober.on_message(sender, message, now_s)
        if type(message) in _ANSWERS:
            self._prober.on_answer(sender, now_s)
        if member is None or member.state is not PeerState.ALIVE:
            self._tell_off(sender, type(message) is Probe, now_s)

    def _body_of(self, sender: bytes, body: Any) -> GossipBody:
        """Decode a body; one that cannot be read says nothing, but its sender lives."""
        if not body:
            return EMPTY
        try:
            return decode_body(body)
        except RemoteProtocolError as error:
            reason = f"gossip is malformed: {error}"
            self._desk.trouble(TroubleKind.GARBAGE, sender, reason)
            return EMPTY

    def _tell_off(self, sender: bytes, is_answered: bool, now_s: float) -> None:
        """Let one that is unknown, suspect or dead, and yet speaks, hear of that."""
        told_s = self._told.get(sender)
        if told_s is not None and now_s - told_s < TOLD_INTERVAL_S:
            return
        member = self._table.members.get(sender)
        if member is None:
            self._desk.answer(sender, syncing.question(self._table, sender))
        elif member.state is not PeerState.ALIVE and not is_answered:
            body = self._desk.body_for(sender)
            self._desk.answer(sender, Gossip(self._id, None, body))
        else:
            return
        self._told.pop(sender, None)
        self._told[sender] = now_s
        if len(self._told) > TOLD_MAX:
            self._told.popitem(last=False)

    def _on_sync(
        self, sender: bytes, message: Sync, body: GossipBody, now_s: float
    ) -> None:
        members, rows, wants = self._table.members, [], []
        for update in body.updates:
            member = members.get(update.peer_id)
            if member is self._table.me or syncing.is_enough(update, member):
                self._hear(update, sender, now_s, is_synced=True)
            elif self._table.has_room:
                wants.append(update.peer_id)
            member = members.get(update.peer_id)
            if member is not None and syncing.is_to_tell(member, update):
                rows.append(member.full_row())
        told = {update.peer_id for update in body.updates}
        rows += syncing.rows_untold(self._table, told, message.extra)
        for part in syncing.parts(rows, wants):
            self._desk.answer(sender, Synced(self._id, None, part))
        if body.hints:
            self._desk.effects.append(HintsHeard(sender, body.hints))

    def _answer_wants(self, sender: bytes, wants: Sequence[bytes]) -> None:
        members = self._table.members
        rows = [members[w].full_row() for w in wants if w in members]
        if rows:
            for part in syncing.parts(rows, ()):
                self._desk.answer(sender, Synced(self._id, None, part))

    def _on_joined(self, records: Iterable[PeerRecord], now_s: float) -> None:
        for record in records:
            if record.peer_id == self._id:
                continue
            member = self._table.members.get(record.peer_id)
            if member is None:
                self._meet(record, now_s)
                if not record.endpoints:
                    # It found us, and asks for what it lacks. To compare everything
                    # with each of a thousand that come would cost a million rows.
                    question = syncing.question(self._table, record.peer_id)
                    self._desk.answer(record.peer_id, question)
                    continue
            elif member.state is PeerState.ALIVE:
                continue
            self._sync_interval_s = FIRST_SYNC_INTERVAL_S
            self._sync_with(record.peer_id, record.endpoints)

    def _hear(
        self, update: Update, sender: bytes, now_s: float, *, is_synced: bool
    ) -> None:  # fmt: skip
        """Take what somebody believes of a peer; older news change nothing."""
        peer_id, incarnation, state, record, accuser = update
        if peer_id == self._id:
            self._own.hear(update, now_s)
            return
        member = self._table.members.get(peer_id)
        if member is None:
            if record is None or state >= PeerState.DEAD:
                return
            member = self._meet(record, now_s)
            if member is None:
                return
        elif incarnation < member.incarnation:
            return
        elif incarnation > member.incarnation and record is not None:
            self._renew(member, record, state, now_s)
        accuser = accuser or sender
        if state is PeerState.SUSPECT:
            self._accuse(member, accuser, now_s, incarnation)
        elif state is PeerState.DEAD and is_synced:
            self._doubt(member, sender, now_s, incarnation)
        elif state >= PeerState.DEAD:
            self._bury(member, state, now_s, incarnation)

    # -- states ------------------------------------------------------------------------

    def _meet(self, record: PeerRecord, now_s: float) -> Member | None:
        member = self._table.add(record, PeerState.ALIVE, now_s)
        if member is None:
            count = len(self._table.members)
            reason = f"{count} are known, others are not taken"
            self._desk.trouble(TroubleKind.FULL, "members_max", reason)
            return None
        self._changed(member, None)
        self._lost.discard(record.peer_id)
        self._desk.spread(member, member.full_row(), now_s)
        self._arm_lanes(now_s)
        self._desk.look_at_name(record)
        return member

    def _doubt(
        self, member: Member, sender: bytes, now_s: float, incarnation: int
    ) -> None:
        """Take a death that another believes in for a suspicion; let the dead speak."""
        if not member.is_live:
            self._bury(member, PeerState.DEAD, now_s, incarnation)
        elif self._accuse(member, sender, now_s, incarnation):
            # It lives at least for us: let it contradict before others bury it.
            peer_id = member.record.peer_id
            message = Gossip(self._id, None, self._desk.body_for(peer_id))
            self._desk.send(peer_id, message)

    def _arm_lanes(self, now_s: float) -> None:
        for lane in self._table.lanes:
            self._prober.arm(lane, now_s)
            if len(lane.updates):
                self._desk.arm_gossip(lane, now_s)

    def _renew(
        self, member: Member, record: PeerRecord, state: PeerState, now_s: float
    ) -> None:
        """Take a newer record of a peer: it was alive then, whatever was believed."""
        if state >= PeerState.DEAD:
            if not member.is_live:
                self._table.set_record(member, record)
            return
        old_state, peer_id = member.state, record.peer_id
        self._suspects.discard(peer_id)
        self._lost.discard(peer_id)
        has_new_name = member.record.name != record.name or not member.is_live
        self._table.set_record(member, record)
        if old_state is not PeerState.ALIVE:
            self._table.set_state(member, PeerState.ALIVE, now_s)
        self._changed(member, old_state)
        self._desk.spread(member, member.full_row(), now_s)
        self._arm_lanes(now_s)
        if has_new_name:
            self._desk.look_at_name(record)

    def _on_silent(self, member: Member, now_s: float) -> None:
        """Accuse a peer that answered no probe."""
        if not self._own.is_leaving:
            self._accuse(member, self._id, now_s, member.incarnation)

    def _accuse(
        self, member: Member, accuser: bytes, now_s: float, incarnation: int
    ) -> bool:
        """Take somebody's suspicion; return whether it is the first."""
        peer_id = member.record.peer_id
        if not member.is_live:
            return False
        member.raise_to(incarnation)
        suspicion = member.suspicion
        if suspicion is not None:
            if suspicion.confirm(accuser):
                self._desk.spread(member, member.short_row(accuser), now_s)
                self._desk.wake(suspicion.deadline_s, Wake.SUSPICION, peer_id)
            return False
        assert member.lane is not None
        bounds = suspicion_bounds(member.lane.profile, self._table.live_count)
        self._table.set_state(member, PeerState.SUSPECT, now_s)
        member.suspicion = Suspicion(accuser, now_s, bounds)
        self._suspects.add(peer_id)
        self._desk.wake(member.suspicion.deadline_s, Wake.SUSPICION, peer_id)
        self._changed(member, PeerState.ALIVE)
        self._desk.spread(member, member.short_row(accuser), now_s)
        return True

    def _on_suspicion_over(self, peer_id: bytes, now_s: float) -> None:
        member = self._table.members.get(peer_id)
        suspicion = None if member is None else member.suspicion
        if member is None or suspicion is None or self._own.is_leaving:
            return
        if now_s < suspicion.deadline_s:
            # Confirmed since, then another wake-up is set; or given more time.
            self._desk.wake(suspicion.deadline_s, Wake.SUSPICION, peer_id)
            return
        self._bury(member, PeerState.DEAD, now_s, member.incarnation)

    def _bury(
        self, member: Member, state: PeerState, now_s: float, incarnation: int
    ) -> None:
        member.raise_to(incarnation)
        if not member.is_live:
            return
        old_state, peer_id = member.state, member.record.peer_id
        self._suspects.discard(peer_id)
        self._table.set_state(member, state, now_s)
        if state is PeerState.DEAD:
            self._lost.add(member.record, now_s)
        self._changed(member, old_state)
        self._desk.spread(member, member.short_row(self._id), now_s)

    def _changed(self, member: Member, old_state: PeerState | None) -> None:
        record = member.record
        effect = MemberChanged(record.peer_id, old_state, member.state, record)
        self._desk.effects.append(effect)

    def check(self) -> None:
        """Make sure that every invariant holds; costs O(N)."""
        table = self._table
        table.check()
        self._prober.check()
        suspects = {i for i, m in table.members.items() if m.suspicion is not None}
        assert suspects == self._suspects
        self._lost.check(set(table.others.ids))
        assert len(self._told) <= TOLD_MAX
        self._desk.check()
        assert table.me.is_live != self._own.is_leaving
        assert self._id not in table.others


_ANSWERS = frozenset({Ack, Nack, Synced})
