"""What the leader of one object knows: writes in flight, how far each member is.

    WriteStored -> Accept to each member -> Accepted by a majority (or both) -> committed

Rules of this file: one instance for one object under one epoch; it knows no other object.
The leader's disk is first: what is not on it leaves it not. One value for one number: what
is sent again is the same. What a member misses is sent in order, or else the whole state.

Source: reliability.md 3.4 R2 to R6; decision 11.
"""

from __future__ import annotations

import math

from activestore.core import lead_members
from activestore.core.lead_members import NOTHING, Entry, Member, Mode
from activestore.core.register import electorate, has_quorum, reach
from activestore.core.replication_desk import Desk, Wake
from activestore.core.replication_effects import SendWhole, Unanswered
from activestore.ids import ObjectId, PeerId
from activestore.wire.replicas import (
    Accept,
    Ballot,
    Committed,
    Config,
    Confirm,
    Nack,
    Point,
    Reason,
)


class Lead:
    """One object that this peer leads, or whose newest state it has accepted again."""

    __slots__ = (
        "_desk",
        "acked",
        "ballot",
        "close_s",
        "committed",
        "committed_config",
        "config",
        "dropped",
        "entries",
        "floor",
        "is_closing",
        "is_deleted",
        "is_growing",
        "is_resending",
        "is_settled",
        "is_telling",
        "is_touched",
        "is_waiting",
        "kept_bytes",
        "learners",
        "members",
        "newest_s",
        "number",
        "object_id",
        "resend_s",
        "round",
        "round_done",
        "rounds",
        "vouched_s",
    )

    def __init__(
        self,
        desk: Desk,
        object_id: ObjectId,
        ballot: Ballot,
        number: int,
        config: Config,
        *,
        is_deleted: bool,
    ) -> None:
        self._desk = desk
        self.object_id = object_id
        self.ballot = ballot
        self.config = config
        self.committed_config = config
        self.is_deleted = is_deleted
        self.number = number  # the newest that has been given
        self.floor = Point()  # the newest on this disk, under this epoch
        self.committed = NOTHING
        self.is_settled = False  # its first state is committed under this epoch
        self.is_closing = False  # it is to leave, and takes no calls any more
        self.close_s: float | None = None  # at the latest
        self.is_touched = False  # somebody wanted it meanwhile
        self.is_growing = False  # it was plain, and its first change is under way
        self.members: dict[PeerId, Member] = {}
        self.entries: list[Entry] = []
        self.kept_bytes = 0
        self.acked = NOTHING  # by this disk
        self.round = 0
        self.round_done = 0
        self.rounds: list[tuple[int, float]] = []
        self.resend_s = desk.config.resend_s
        self.is_resending = self.is_waiting = self.is_telling = False
        self.vouched_s = 0.0
        # When the committed state was the newest for sure: a majority answered later.
        self.newest_s: float | None = None
        self.learners: dict[PeerId, bool] = {}  # value: is to become the witness
        self.dropped: dict[PeerId, int] = {}  # value: the version that was without it

    # Numbers

    def add(self, entry: Entry) -> None:
        """Give an entry its place; it is not sent before it is on this disk."""
        assert entry.number >= self.number
        self.number = entry.number
        self.entries.append(entry)
        self._keep(entry.size)

    def settle(self, number: int, *, is_refused: bool) -> None:
        """Take what this disk did with an entry, and send what is next."""
        for entry in self.entries:
            if entry.number == number and entry.outcome is None:
                entry.outcome = not is_refused
                entry.begun_s = self._desk.now_s
                self.arm_wait()
        self._advance()

    def _advance(self) -> None:
        refused = []
        for entry in self.entries:
            if entry.number <= self.acked:
                continue
            if entry.outcome is None:
                break
            if not entry.outcome:
                refused.append(entry)
                continue
            if self.floor.counter:
                entry.base = self.floor
            self.floor = Point(self.ballot.counter, entry.number)
            self.acked = entry.number
        for entry in refused:
            self.entries.remove(entry)
            self._keep(-entry.size)
        for peer_id in self.members:
            self.offer(peer_id)
        self.trim()

    @property
    def is_led(self) -> bool:
        """Whether calls may run here."""
        return self.is_settled and not self.is_closing

    def reached(self, peer_id: PeerId) -> int:
        """Return the number up to which a peer has everything on disk."""
        if peer_id == self._desk.me:
            return self.acked
        member = self.members.get(peer_id)
        return NOTHING if member is None else member.acked

    def reach_committed(self) -> list[Entry]:
        """Return the entries that are committed now and were not, in order."""
        done = []
        for entry in self.entries:
            if entry.number <= self.committed:
                continue
            if entry.number > self.acked:
                break
            if reach(entry.config, self.reached) < entry.number:
                break
            self.committed = entry.number
            self.newest_s = entry.begun_s
            done.append(entry)
        if done:
            self.resend_s = self._desk.config.resend_s
            self.arm_committed()
        return done

    @property
    def is_quiet(self) -> bool:
        """Whether everything that was given a number is committed."""
        return self.committed == self.acked and all(
            entry.outcome is not None for entry in self.entries
        )

    @property
    def oldest_s(self) -> float | None:
        """Since when somebody waits for a majority; None where nobody does."""
        waits = [
            entry.begun_s
            for entry in self.entries
            if entry.number > self.committed and entry.outcome
        ][:1]
        waits += [begun_s for _, begun_s in self.rounds][:1]
        return min(waits, default=None)

    # Members

    def know_members(self, at_base: frozenset[PeerId] | set[PeerId]) -> None:
        """Keep a record of each that is to be sent something.

        `at_base`: known to have what the first entry follows on.
        """
        wanted = dict.fromkeys((*electorate(self.config), *self.learners))
        wanted.pop(self._desk.me, None)
        for peer_id in [p for p in self.members if p not in wanted]:
            del self.members[peer_id]
        for peer_id in sorted(wanted):
            if peer_id not in self.members:
                is_at = peer_id in at_base
                self.members[peer_id] = Member(Mode.LIVE if is_at else Mode.BEHIND)

    def is_witness(self, peer_id: PeerId) -> bool:
        """Return whether a member gets no state."""
        witnesses = (self.config.witness, self.committed_config.witness)
        return peer_id in witnesses or self.learners.get(peer_id, False)

    def lagging(self) -> list[PeerId]:
        """Return the members that have not acknowledged everything on this disk."""
        return [peer for peer, m in self.members.items() if m.acked < self.acked]

    def offer(self, peer_id: PeerId) -> None:
        """Send a member what it has not been sent, and may know."""
        member = self.members[peer_id]
        top = self._held_by_a_copy() if self.is_witness(peer_id) else self.acked
        if top == NOTHING:
            return
        if member.mode is Mode.BEHIND:
            self._send_whole(peer_id, member, top)
        if member.mode is not Mode.LIVE:
            return
        for entry in self.entries:
            if member.sent < entry.number <= top:
                self._send_entry(peer_id, member, entry)

    def _held_by_a_copy(self) -> int:
        """Return up to which number a witness may be told that there is a state.

        What it knows and no copy has keeps all others from leading when this peer is
        lost. So a copy that follows has it first, where there is one that takes it in
        time; else the witness has to do. What is committed a majority has.
        """
        copies = [
            member.acked
            for peer_id, member in self.members.items()
            if member.mode is Mode.LIVE and self._is_copy(peer_id)
        ]
        held = max(copies, default=self.acked)
        waits = [e.begun_s for e in self.entries if held < e.number <= self.acked]
        is_late = bool(waits) and self._left_s(min(waits), held) <= 0.0
        return self.acked if is_late else min(max(held, self.committed), self.acked)

    def _is_copy(self, peer_id: PeerId) -> bool:
        is_voter = peer_id not in self.learners and not self.is_witness(peer_id)
        return is_voter and self._desk.is_reachable(peer_id)

    def _send_entry(self, peer_id: PeerId, member: Member, entry: Entry) -> None:
        change = None if self.is_witness(peer_id) else entry.change
        self._desk.send(
            peer_id,
            Accept(
                self.object_id,
                self.ballot,
                entry.number,
                entry.base,
                entry.config,
                entry.is_deleted,
                max(self.committed, 0),
                peer_id in self.learners,
                change,
            ),
        )
        member.sent = entry.number
        member.told = self.committed
        self._note_sent(member)

    def _send_whole(self, peer_id: PeerId, member: Member, number: int) -> None:
        """Send everything; the shell fills in what its disk has by then."""
        message = Accept(
            self.object_id,
            self.ballot,
            number,
            None,
            lead_members.config_at(self.entries, number, self.committed_config),
            self.is_deleted and lead_members.is_deleted_at(self.entries, number),
            max(self.committed, 0),
            peer_id in self.learners,
        )
        if self.is_witness(peer_id):
            self._desk.send(peer_id, message)
        else:
            self._desk.emit(SendWhole(peer_id, message))
        member.mode = Mode.WHOLE
        member.sent = number
        member.told = self.committed
        self._note_sent(member)

    def _note_sent(self, member: Member) -> None:
        member.sent_s = self._desk.now_s
        if not self.is_resending:
            self.is_resending = True
            self._desk.wake(self.resend_s, Wake.RESEND, self.object_id)

    def on_accepted(self, peer_id: PeerId, number: int) -> bool:
        """Take what a member has on disk; return whether that is new."""
        member = self.members.get(peer_id)
        # The whole may have been read before this core knew that its disk had it.
        if member is None or number > self.number:
            return False
        is_new = number > member.acked
        member.acked = max(member.acked, number)
        if member.mode is not Mode.LIVE:
            # What follows on the whole was not sent with it.
            member.mode = Mode.LIVE
            member.sent = member.acked
        member.sent = max(member.sent, member.acked)
        if is_new and member.acked <= self.committed:
            member.told = NOTHING  # Since when was not said with it.
            self.arm_committed()
        self._mind_gap(member)
        self.offer(peer_id)
        for other in self.members if is_new else ():
            if self.is_witness(other):
                self.offer(other)  # A copy has what it waits for.
        self.trim()
        return is_new

    def _mind_gap(self, member: Member) -> None:
        """A member to which nothing that is kept here follows on needs the whole."""
        if member.acked >= self.acked:
            return
        follows = any(
            entry.base.number <= member.acked < entry.number
            for entry in self.entries
            if entry.base.counter == self.ballot.counter
        )
        if not follows and member.mode is Mode.LIVE:
            member.mode = Mode.BEHIND

    def on_nack(self, peer_id: PeerId, message: Nack) -> None:
        """Take that a member did not take something, for want of its base, or of room."""
        member = self.members.get(peer_id)
        if member is None:
            return
        if message.reason is Reason.BASE:
            self._on_base(peer_id, member, message.number)
        elif message.reason is Reason.LOST and member.mode is not Mode.WHOLE:
            member.mode = Mode.BEHIND
            self.offer(peer_id)
        elif message.reason is Reason.UNKNOWN and peer_id in self.learners:
            member.mode = Mode.BEHIND
            self.arm_resend()
        elif message.reason in (Reason.SPACE, Reason.REQUIREMENT):
            member.mode = Mode.FULL
            member.sent = member.acked
            self._desk.wake(
                self._desk.config.space_pause_s, Wake.RETRY_SPACE, self.object_id
            )

    def _on_base(self, peer_id: PeerId, member: Member, number: int) -> None:
        """Send in order what came out of order, and the whole where nothing helps."""
        if member.mode is not Mode.LIVE or number <= member.acked:
            return
        if not number:  # A question came before the state that it is about.
            self.arm_resend()
            return
        refused = [entry for entry in self.entries if entry.number == number]
        is_ours = refused and refused[0].base.counter == self.ballot.counter
        if is_ours and refused[0].base.number > member.acked > NOTHING:
            self.arm_resend()
            return
        member.mode = Mode.BEHIND
        self.offer(peer_id)

    def retry_full(self) -> None:
        """Ask members again whose disks were full."""
        for peer_id, member in self.members.items():
            if member.mode is Mode.FULL:
                self.restart(peer_id)

    def restart(self, peer_id: PeerId) -> None:
        """Send a member again what it has not acknowledged: it may be lost."""
        member = self.members.get(peer_id)
        if member is None or member.acked >= self.acked:
            return
        if member.mode is not Mode.LIVE:
            member.mode = Mode.BEHIND
        if member.acked != NOTHING:
            member.mode = Mode.LIVE
            self._mind_gap(member)
        member.sent = member.acked
        self.offer(peer_id)

    def refresh(self, peer_id: PeerId) -> None:
        """Send a member again what it has had time to acknowledge."""
        member = self.members.get(peer_id)
        if member is None:
            return
        config = self._desk.config
        is_whole = member.mode is Mode.WHOLE
        patience_s = config.whole_s if is_whole else self.resend_s
        patience_s += self._slow_s(member.acked, member.sent)
        if self._desk.now_s - member.sent_s >= patience_s * 0.99:
            self.restart(peer_id)

    def on_resend(self) -> None:
        """Send again what reachable members did not answer."""
        self.is_resending = False
        desk, config = self._desk, self._desk.config
        patience_s = self._patience_s()
        if patience_s <= 0.0:
            desk.emit(Unanswered(self.object_id, self.ballot.counter))
        waiting = [p for p in self.lagging() if desk.is_reachable(p)]
        waiting = [p for p in waiting if self.members[p].mode is not Mode.FULL]
        for peer_id in waiting:
            self.refresh(peer_id)
            self.offer(peer_id)
        if self.rounds:
            self._ask_round(self.rounds[-1][0])
        if waiting or self.rounds:
            if not 0.0 < patience_s < self.resend_s:
                self.resend_s = min(2 * self.resend_s, config.resend_s_max)
                patience_s = self.resend_s
            self.arm_resend(patience_s)
        else:
            self.resend_s = config.resend_s

    def _patience_s(self) -> float:
        """Return for how long who waits for a majority is told nothing, 0 for no more."""
        desk, oldest_s = self._desk, self.oldest_s
        if oldest_s is None:
            return desk.config.resend_s_max
        reachable = desk.reachable(electorate(self.config)) | {desk.me}
        if not has_quorum(self.config, reachable):
            return 0.0
        return self._left_s(oldest_s, self.committed)

    def _left_s(self, since_s: float, after: int) -> float:
        """Return how long members may still take for what came after a number."""
        patience_s = self._desk.config.unanswered_s + self._slow_s(after, self.number)
        left_s = since_s + patience_s - self._desk.now_s
        return left_s if left_s > 1e-6 else 0.0

    def arm_resend(self, in_s: float = math.inf) -> None:
        """Look after a while, or in so many seconds, whether members answered."""
        if not self.is_resending:
            self.is_resending = True
            in_s = min(in_s, self.resend_s)
            self._desk.wake(in_s, Wake.RESEND, self.object_id)

    def arm_wait(self) -> None:
        """Look in time whether the oldest write is committed."""
        if not self.is_waiting:
            self.is_waiting = True
            wait_s = self._desk.config.quorum_wait_s
            self._desk.wake(wait_s, Wake.QUORUM_WAIT, self.object_id)

    def is_in_doubt(self) -> bool:
        """Return whether somebody waited too long; else look again in time."""
        self.is_waiting = False
        oldest_s = self.oldest_s
        if oldest_s is None:
            return False
        slow_s = self._slow_s(self.committed, self.number)
        wait_s = self._desk.config.quorum_wait_s + slow_s
        left_s = oldest_s + wait_s - self._desk.now_s
        if left_s <= 1e-6:
            return True
        self.is_waiting = True
        self._desk.wake(left_s, Wake.QUORUM_WAIT, self.object_id)
        return False

    def _slow_s(self, after: int, number: int) -> float:
        """Return what the writes after one, up to another, may take a slow member."""
        sizes = (one.size for one in self.entries if after < one.number <= number)
        return sum(sizes) / self._desk.config.slow_bytes_per_s

    # What is kept to be sent again

    def trim(self) -> None:
        """Let go of entries that nobody needs; who needs too many gets the whole."""
        while True:
            live = [m.acked for m in self.members.values() if m.mode is not Mode.BEHIND]
            least = min([*live, self.acked, self.committed])
            while self.entries and self.entries[0].number <= least:
                self._keep(-self.entries.pop(0).size)
            late = self._too_late()
            if not late:
                return
            min(late, key=lambda member: member.acked).mode = Mode.BEHIND
            self.arm_resend()

    def _too_late(self) -> list[Member]:
        """Return the members for which no more entries can be kept.

        What is not committed is not bounded here, but by the calls that wait for it.
        """
        config, members = self._desk.config, self.members
        entries_max, bytes_max = config.entries_max, config.entries_bytes_max
        if any(m.mode is Mode.WHOLE for m in members.values()):
            entries_max = config.catching_entries_max
            bytes_max = config.catching_bytes_max
        is_over = len(self.entries) > entries_max or self.kept_bytes > bytes_max
        is_crowded = self._desk.kept_bytes > config.kept_bytes_max
        if not self.entries or not (is_over or is_crowded):
            return []
        return [
            member
            for peer_id, member in members.items()
            if member.acked < self.committed
            and member.mode is not Mode.BEHIND
            and (is_over or not self._desk.is_reachable(peer_id))
        ]

    def _keep(self, count: int) -> None:
        self.kept_bytes += count
        self._desk.kept_bytes += count

    def let_go(self) -> None:
        """Keep nothing any more: the lead is over."""
        self._keep(-self.kept_bytes)
        self.entries.clear()

    # Reads, and what followers are told

    def ask_round(self) -> int:
        """Ask all voters whether this epoch still holds; return the question's number."""
        self.round += 1
        self.rounds.append((self.round, self._desk.now_s))
        self._ask_round(self.round)
        self.arm_wait()
        self.arm_resend()
        return self.round

    def _ask_round(self, number: int) -> None:
        message = Confirm(self.object_id, self.ballot, number, max(self.committed, 0))
        for peer_id in electorate(self.config):
            if peer_id != self._desk.me:
                member = self.members[peer_id]
                if member.confirmed < number:
                    self._desk.send(peer_id, message)

    def on_confirmed(self, peer_id: PeerId, number: int) -> int | None:
        """Take a voter's word; return up to which question a majority agreed, if new."""
        member = self.members.get(peer_id)
        if member is None or number > self.round:
            return None
        member.confirmed = max(member.confirmed, number)
        done = reach(self.config, self._confirmed)
        if done <= self.round_done:
            return None
        self.round_done = done
        while self.rounds and self.rounds[0][0] <= done:
            _, self.newest_s = self.rounds.pop(0)
        if self._desk.now_s - self.vouched_s >= self._desk.config.vouch_s:
            self.vouched_s = self._desk.now_s
            self.arm_committed()
            for told in self.members.values():
                told.told = NOTHING
        return done

    def _confirmed(self, peer_id: PeerId) -> int:
        if peer_id == self._desk.me:
            return self.round
        member = self.members.get(peer_id)
        return 0 if member is None else member.confirmed

    def arm_committed(self) -> None:
        """Tell soon what is committed, if no write tells it sooner."""
        if not self.is_telling and self.members:
            self.is_telling = True
            self._desk.wake(
                self._desk.config.committed_s, Wake.COMMITTED, self.object_id
            )

    def told(self, *, is_handed: bool) -> Committed:
        """Return what members are told of what is committed, and since when."""
        newest_s = self._desk.now_s if self.newest_s is None else self.newest_s
        age_ms = math.ceil((self._desk.now_s - newest_s) * 1000)
        number = self.committed
        return Committed(self.object_id, self.ballot, number, is_handed, age_ms)

    def tell_committed(self) -> None:
        """Tell members what is committed that have not heard of it."""
        self.is_telling = False
        message = self.told(is_handed=False)
        for peer_id, member in self.members.items():
            if member.told < self.committed and member.acked > NOTHING:
                member.told = self.committed
                self._desk.send(peer_id, message)

    def check(self) -> None:
        """Make sure that numbers are in order."""
        assert self.committed <= self.acked <= self.number
        numbers = [entry.number for entry in self.entries]
        assert numbers == sorted(set(numbers))
        assert self.kept_bytes == sum(entry.size for entry in self.entries)
        for member in self.members.values():
            assert member.acked <= self.number
            assert member.confirmed <= self.round
