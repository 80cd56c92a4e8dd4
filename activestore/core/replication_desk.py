"""What the parts of replication share: settings, who is reachable, wake-ups, orders.

Rules of this file: it decides nothing; parts know the desk, and not each other.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Callable
from typing import NamedTuple

from activestore.core.refusals import Refusals
from activestore.core.replication_effects import ReplicationEffect, Send
from activestore.ids import ObjectId, PeerId
from activestore.wire.replicas import Config, ReplicaMessage


class ReplicationConfig(NamedTuple):
    """Times and bounds of replication; all times in seconds."""

    # A write or a read that no majority answered is in doubt after this.
    quorum_wait_s: float = 5.0
    # Who asked hears that none does after this, and may ask other peers: it takes no longer
    # in a group that is well, but on the slowest disks.
    unanswered_s: float = 1.0
    # Who is i-th in line to take over waits i times the step, and a part of the jitter:
    # a message is there, promised and answered within a step. Source: reliability.md R12.
    rank_step_s: float = 0.2
    rank_jitter_s: float = 0.15
    # An answer to Ask, to Prepare, to Fetch is waited for so long.
    ask_s: float = 0.3
    prepare_s: float = 1.0
    fetch_s: float = 15.0
    # What was not acknowledged is sent again after this, twice as long each time.
    resend_s: float = 0.5
    resend_s_max: float = 5.0
    # What a slow line or disk takes in a second: both waits above are longer by what is
    # under way. A member writes a change of 100 MB, though only a part of it was sent.
    slow_bytes_per_s: float = 5_000_000.0
    # A whole state may be large: its loss is told by LinkReady, this is for the rest.
    whole_s: float = 15.0
    # A member whose disk is full is asked again after this.
    space_pause_s: float = 2.0
    # What is committed is told with the next message, or after this.
    committed_s: float = 0.05
    # Reads make a leader vouch for its followers' states at most so often.
    vouch_s: float = 1.0
    # A failed take-over is tried again after about this, twice as long each time.
    backoff_s: float = 0.2
    backoff_s_max: float = 5.0
    # Objects that nobody asks for are taken over at this pace. Source: R12.
    background_per_s: float = 1000.0
    background_max: int = 64
    # A member with more entries or bytes unacknowledged gets the whole state; while the
    # whole is under way more may gather: 100 MB take a second on a fast link.
    entries_max: int = 256
    entries_bytes_max: int = 4 << 20
    catching_entries_max: int = 8192
    catching_bytes_max: int = 64 << 20
    # Over all objects: beyond it nothing is kept for members that are out of reach.
    kept_bytes_max: int = 256 << 20
    # A new member must have caught up within this, or another one is chosen.
    learner_wait_s: float = 120.0
    # A target that does not lead after this does not want to.
    hand_over_s: float = 5.0


class Wake(enum.IntEnum):
    """Why replication wanted to be woken."""

    TAKE_OVER = 0  # the next thing of a take-over is due
    NO_QUORUM = 1  # whoever touched the object has waited long enough
    RESEND = 2  # a leader looks whether members answered
    QUORUM_WAIT = 3  # a leader looks whether its oldest write is committed
    COMMITTED = 4  # a leader tells what is committed
    PLAN = 5  # a change of a group takes too long
    PUMP = 6  # the next objects of the background
    RETRY_SPACE = 7  # a member whose disk was full is asked again
    CATCH_UP = 8  # the next objects of which a peer that came back gets the rest
    HAND_OVER = 9  # the lead was to go to another by now


NO_OBJECT = ObjectId(b"")


class Desk:
    """Shared by the parts of one Replication."""

    def __init__(
        self, me: PeerId, config: ReplicationConfig, random: Callable[[], float]
    ) -> None:
        self.me = me
        self.config = config
        self.random = random
        self.now_s = 0.0
        self.effects: list[ReplicationEffect] = []
        self.is_distrusted = False
        self.refusals = Refusals()
        self.kept_bytes = 0  # of entries that members have not acknowledged
        self._unreachable: set[PeerId] = set()
        self._heap: list[tuple[float, int, Wake, ObjectId]] = []
        self._serial = 0
        self._token = 0

    def emit(self, effect: ReplicationEffect) -> None:
        """Order something."""
        self.effects.append(effect)

    def send(self, peer_id: PeerId, message: ReplicaMessage) -> None:
        """Send a message to another peer."""
        assert peer_id != self.me
        self.effects.append(Send(peer_id, message))

    def take(self) -> list[ReplicationEffect]:
        """Return what was ordered since the last time."""
        effects, self.effects = self.effects, []
        return effects

    def next_token(self) -> int:
        """Return a number for an order that is answered."""
        self._token += 1
        return self._token

    def see(self, peer_id: PeerId, *, is_reachable: bool) -> None:
        """Note whether a peer answers; one never heard of is taken to do so."""
        if is_reachable:
            self._unreachable.discard(peer_id)
        else:
            self._unreachable.add(peer_id)

    def is_reachable(self, peer_id: PeerId) -> bool:
        """Return whether a peer answers, as far as membership knows."""
        return peer_id not in self._unreachable

    def reachable(self, peers: tuple[PeerId, ...]) -> set[PeerId]:
        """Return those that answer, this one among them."""
        return {peer for peer in peers if peer not in self._unreachable}

    def wake(self, in_s: float, what: Wake, object_id: ObjectId = NO_OBJECT) -> float:
        """Ask to be woken; what does not matter any more then is looked over.

        Returns:
            When it will be.
        """
        self._serial += 1
        at_s = self.now_s + in_s
        heapq.heappush(self._heap, (at_s, self._serial, what, object_id))
        return at_s

    def next_s(self) -> float | None:
        """Return the earliest wake-up, None where there is none."""
        return self._heap[0][0] if self._heap else None

    def pop_due(self) -> tuple[Wake, ObjectId] | None:
        """Take out one wake-up whose time has come."""
        if self._heap and self._heap[0][0] <= self.now_s:
            entry = heapq.heappop(self._heap)
            return entry[2], entry[3]
        return None


def shown_votes(present: int, total: int, needed: int) -> str:
    """Return how many of the voters answer and must, as texts to an operator tell it."""
    if present >= needed:
        return f"too few of {total} voters take part, {needed} must"
    return f"{present} of {total} voters answer, {needed} must"


def shown_config(config: Config) -> str:
    """Return a config as texts to an operator name it."""
    members = " ".join(peer.hex()[:8] for peer in config.members)
    witness = f" witness {config.witness.hex()[:8]}" if config.witness else ""
    return f"{members}{witness}"
