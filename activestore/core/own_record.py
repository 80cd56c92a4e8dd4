"""What this peer says of itself, and what it contradicts; pure.

Only the peer itself makes a new incarnation: when it has something new to say, when
others suspect it, and when they know one that is higher than its own.

Source: SWIM section 4.2; reliability.md 1.2.
"""

from __future__ import annotations

from activestore.core.cluster_desk import ClusterDesk, Wake
from activestore.core.member_table import is_moving
from activestore.core.peers import PeerRecord, PeerState, start_of
from activestore.core.probing import Prober
from activestore.core.troubles import TroubleKind
from activestore.errors import TooLargeError
from activestore.wire.gossip import INCARNATION_MAX, Update, encode_body
from activestore.wire.messages import Gossip

# Told at once by one that leaves; the others hear it from these.
LEAVE_FANOUT = 16
# A load that changes all the time is told so often that all peers together tell one a
# second: 3 kB/s for each of 1,000. Other changes are told at once, within a second.
LOAD_INTERVAL_S_MIN = 30.0
RECORD_INTERVAL_S = 1.0
# Another start of this peer's id: three times within an hour are no old news; two copies
# may meet at push-pulls alone.
CONTESTS_MAX = 3
CONTEST_WINDOW_S = 3600.0
CONTEST_INTERVAL_S = 30.0


class OwnRecord:
    """This peer's record and incarnation."""

    def __init__(self, desk: ClusterDesk, prober: Prober) -> None:
        self._desk = desk
        self._prober = prober
        self._me = desk.table.me
        self.is_leaving = False
        self._contests: list[float] = []
        self._outbid_incarnation = 0  # 0: no contradiction is held back
        self._wanted: PeerRecord | None = None
        self._told_s = float("-inf")

    def hear(self, update: Update, now_s: float) -> None:
        """Contradict what is wrong; jump over a record of an earlier start.

        Adding one to one's own number is not enough: after a restart it may be far
        behind, and a lower incarnation is ignored by everyone.
        """
        mine = self._me.record
        if self.is_leaving or update.incarnation < mine.incarnation:
            return
        if update.state is not PeerState.ALIVE:
            if update.state is not PeerState.LEFT:
                self._prober.worsen(1)
            self._raise(update.incarnation, now_s)
            return
        record = update.record
        if record is not None and start_of(record) != start_of(mine):
            self._contest(update.incarnation, record, now_s)
        elif update.incarnation > mine.incarnation:
            self._raise(update.incarnation, now_s)

    def _contest(self, incarnation: int, record: PeerRecord, now_s: float) -> None:
        """Outbid another start of this peer: an earlier one, or a copy that runs too."""
        self._contests = [t for t in self._contests if now_s - t < CONTEST_WINDOW_S]
        if len(self._contests) < CONTESTS_MAX:
            self._contests.append(now_s)
            self._raise(incarnation, now_s)
            return
        self._desk.trouble(
            TroubleKind.IDENTITY,
            self._me.record.peer_id,
            f"another one, at {', '.join(record.endpoints)}, has this peer's id: one of "
            "the two data directories is a copy",
        )
        if not self._outbid_incarnation:
            self._desk.wake(now_s + CONTEST_INTERVAL_S, Wake.REFUTE)
        self._outbid_incarnation = max(self._outbid_incarnation, incarnation)

    def outbid(self, now_s: float) -> None:
        """Contradict the other start now, if that is still to be done."""
        if self._outbid_incarnation and not self.is_leaving:
            self._raise(self._outbid_incarnation, now_s)

    def _raise(self, above: int, now_s: float) -> None:
        self._outbid_incarnation = 0
        if above >= INCARNATION_MAX:
            self._desk.note_once(
                "error",
                f"somebody claims incarnation {above} of this peer, the last there is: "
                "find who, and start this peer with another data directory",
                key="last incarnation",
            )
            return
        me = self._me
        incarnation = max(above, me.incarnation) + 1
        record = me.record._replace(incarnation=incarnation)
        self._desk.table.set_record(me, record)
        self._desk.spread(me, me.full_row(), now_s)

    def leave(self, now_s: float) -> None:
        """Say goodbye, and probe nobody any more."""
        if self.is_leaving:
            return
        self.is_leaving = True
        self._prober.stop()
        me, desk = self._me, self._desk
        desk.table.set_state(me, PeerState.LEFT, now_s)
        row = me.short_row()
        desk.spread(me, row, now_s)
        message = Gossip(me.record.peer_id, None, encode_body([row]))
        for target in desk.table.others.pick(LEAVE_FANOUT, desk.rng):
            desk.send(target, message)

    def change(self, record: PeerRecord, now_s: float) -> None:
        """Tell others what this peer says of itself, but not too often."""
        self._wanted = record
        interval_s = RECORD_INTERVAL_S
        if not is_moving(self._me.record, record):
            interval_s = max(LOAD_INTERVAL_S_MIN, float(self._desk.table.live_count))
        at_s = self._told_s + interval_s
        if now_s >= at_s:
            self.tell(now_s)
        else:
            self._desk.wake(at_s, Wake.RECORD)

    def tell(self, now_s: float) -> None:
        """Make the latest record that is wanted the one that counts."""
        wanted, me, desk = self._wanted, self._me, self._desk
        if wanted is None or self.is_leaving:
            return
        self._wanted = None
        old = me.record
        record = wanted._replace(peer_id=old.peer_id, incarnation=old.incarnation + 1)
        desk.table.set_record(me, record)
        try:
            row = me.full_row()
        except TooLargeError as error:
            desk.table.set_record(me, old)
            desk.note_once("error", f"this peer's record cannot be told reason={error}")
            return
        self._told_s = now_s
        if (old.zone, old.profile) != (record.zone, record.profile):
            desk.table.relane()
            for lane in desk.table.lanes:
                self._prober.arm(lane, now_s)
        desk.spread(me, row, now_s)
