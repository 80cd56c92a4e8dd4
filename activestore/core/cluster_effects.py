"""What the cluster's cores want done: orders, immutable, carried out in their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from activestore.core.effects import Note
from activestore.core.peers import PeerState
from activestore.core.troubles import TroubleKind
from activestore.wire.gossip import ClassHint, Hint, PeerRecord
from activestore.wire.messages import Message


class SendTo(NamedTuple):
    """Send a message to a peer; it may be lost, and is never waited for.

    `endpoints`: where it can be reached; empty for an answer: that goes over the link on
    which the peer was last heard, and nowhere if there is none.
    """

    peer_id: bytes
    endpoints: tuple[str, ...]
    message: Message


class MemberChanged(NamedTuple):
    """Something else is believed of a peer.

    `old_state` is None for one that was unknown. Both states are the same where only its
    record is new. SUSPECT is told at once: whoever can act safely may act on it.
    """

    peer_id: bytes
    old_state: PeerState | None
    new_state: PeerState
    record: PeerRecord


class MemberForgotten(NamedTuple):
    """A peer that was dead or had left is known no more: let go of what is kept of it."""

    peer_id: bytes


class HintsHeard(NamedTuple):
    """A peer gossips where objects are, and which code is new.

    Tell those that are news on by `tell_hint`.
    """

    sender: bytes
    hints: Sequence[Hint | ClassHint]


class Troubled(NamedTuple):
    """Somebody does what is wrong; its operator should see it as long as it goes on.

    `about`: the id of a peer, or a text.
    """

    kind: TroubleKind
    about: bytes | str
    reason: str


class SeedWanted(NamedTuple):
    """Ask the first addresses again, those that are no live member's; then Joined.

    `is_alone`: this peer knows nobody else that lives.
    """

    is_alone: bool


MembershipEffect: TypeAlias = (
    SendTo | MemberChanged | MemberForgotten | HintsHeard | SeedWanted | Troubled | Note
)
