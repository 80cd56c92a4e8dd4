"""One membership core whose every event a test makes by hand."""

from __future__ import annotations

import random

from activestore.core.cluster_effects import (
    MemberChanged,
    SendTo,
)
from activestore.core.cluster_events import (
    MessageArrived,
    TimerFired,
)
from activestore.core.membership import Membership, MembershipConfig
from activestore.core.peers import PeerState
from activestore.wire.gossip import (
    Update,
    decode_body,
    encode_records,
)
from activestore.wire.messages import Gossip
from tests.core.cluster_world import peer_id_of, record_of

A = peer_id_of(1)


class Alone:
    """One core whose every event a test makes by hand."""

    def __init__(self, *others: int, **changes: object) -> None:
        self.core = Membership(
            record_of(0, **changes), MembershipConfig(), random.Random(1).random
        )
        self.now_s = 0.0
        self.step(TimerFired())
        for number in others:
            self.hear(Update(peer_id_of(number), 1, PeerState.ALIVE, record_of(number)))

    def step(self, event: object, after_s: float = 0.0) -> list:
        self.now_s += after_s
        effects = self.core.step(event, self.now_s)
        self.core.check()
        return effects

    def hear(self, *updates: Update, sender: bytes = A) -> list:
        message = Gossip(sender, None, encode_records(updates))
        return self.step(MessageArrived(sender, message))

    def until(self, kind: type, within_s: float = 60.0) -> list:
        """Fire timers until a message of a kind is sent; return all it sends then."""
        end_s = self.now_s + within_s
        while self.now_s <= end_s:
            self.now_s = max(self.now_s, self.core.deadline_s())
            found = self.step(TimerFired())
            sent = [e for e in found if isinstance(e, SendTo)]
            if any(isinstance(e.message, kind) for e in sent):
                return [e for e in sent if isinstance(e.message, kind)]
        raise AssertionError(f"no {kind.__name__} within {within_s} s")

    def fire_until(self, end_s: float) -> list:
        """Fire all timers up to a moment; return all effects."""
        found = []
        while self.core.deadline_s() <= end_s:
            self.now_s = max(self.now_s, self.core.deadline_s())
            found += self.step(TimerFired())
        self.now_s = end_s
        return found


def told(effects: list) -> list[Update]:
    """Return all updates in what is sent."""
    return [
        update
        for effect in effects
        if isinstance(effect, SendTo)
        for update in decode_body(effect.message.body).updates
    ]


def sent(effects: list, kind: type) -> list[SendTo]:
    return [e for e in effects if isinstance(e, SendTo) and isinstance(e.message, kind)]


def changes(effects: list) -> list[tuple]:
    return [(e.peer_id, e.old_state, e.new_state) for e in effects
            if isinstance(e, MemberChanged)]  # fmt: skip


def troubles(effects: list) -> list[str]:
    return [e.reason for e in effects if type(e).__name__ == "Troubled"]


def notes(effects: list) -> list[str]:
    return [e.text for e in effects if type(e).__name__ == "Note"]
