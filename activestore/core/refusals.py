"""Why voters did not take what this peer asked of them, for what people are told.

Rules of this file: nothing is decided by it. What a voter takes ends what it had refused;
nothing is kept of an object that others lead, or that is not here.

Source: schemas/protocol.md section 14, the reasons of a Nack.
"""

from __future__ import annotations

from collections.abc import Container, Sequence, Set

from activestore.core.replication_events import Stored
from activestore.ids import ObjectId, PeerId
from activestore.wire.replicas import Ballot, Nack, Promise, Reason

DAMAGED = "the copy on its disk is damaged"
UNREACHABLE = "it cannot be reached"

# That a state lacks its base refuses nothing: the whole comes next. Nor does a promise of
# a newer epoch: whoever is touched next asks under one that is newer still.
_TEXTS = {
    Reason.SPACE: "its disk is full, or failed",
    Reason.LINEAGE: "a copy of another lineage is there, for the group was forced; "
    "`discard` it there",
    Reason.STRANGER: "it knows a group in which this peer is not",
    Reason.UNKNOWN: "it has no vote: nothing of the object is there, or it is damaged",
    Reason.REQUIREMENT: "it lacks what the class needs",
    Reason.LOST: DAMAGED,
}
# Who only promises has not kept a state yet.
_OF_STATES = (Reason.SPACE, Reason.REQUIREMENT)


def text_of(message: Nack) -> str:
    """Return a refusal in words."""
    default = _TEXTS.get(message.reason, message.reason.name.lower())
    return f"{default}: {message.text}" if message.text else default


class Refusals:
    """The last word of each voter that refused something, by object."""

    def __init__(self) -> None:
        self._words: dict[ObjectId, dict[PeerId, tuple[Reason, str]]] = {}

    def note(self, peer_id: PeerId, message: Nack) -> None:
        """Take a refusal."""
        if message.reason in _TEXTS:
            words = self._words.setdefault(message.object_id, {})
            words[peer_id] = message.reason, text_of(message)

    def stored(self, me: PeerId, object_id: ObjectId, event: Stored) -> None:
        """Take whether this peer's own disk has kept what it ordered itself."""
        if not event.problem:
            self.accepted(me, object_id)
        elif event.problem == "space":
            refused = Nack(
                object_id, Ballot(), 0, Reason.SPACE, Ballot(), None, event.text
            )
            self.note(me, refused)

    def promised(self, peer_id: PeerId, message: Promise) -> None:
        """Take that a voter has promised what was asked."""
        object_id = message.object_id
        words = self._words.get(object_id, {})
        if peer_id in words and words[peer_id][0] not in _OF_STATES:
            self.accepted(peer_id, object_id)
        is_stateless = peer_id == message.config.witness or message.is_deleted
        if not message.has_state and not is_stateless:
            words = self._words.setdefault(object_id, {})
            words.setdefault(peer_id, (Reason.LOST, DAMAGED))

    def accepted(self, peer_id: PeerId, object_id: ObjectId) -> None:
        """Take that a voter has a state on its disk."""
        words = self._words.get(object_id)
        if words is not None:
            words.pop(peer_id, None)
            if not words:
                del self._words[object_id]

    def forget(self, object_id: ObjectId) -> None:
        """Forget an object: others lead it, or it is not here any more."""
        self._words.pop(object_id, None)

    @property
    def objects(self) -> Set[ObjectId]:
        """The objects of which something is kept."""
        return self._words.keys()

    def of(
        self,
        object_id: ObjectId,
        voters: Sequence[PeerId],
        reachable: Container[PeerId],
    ) -> list[tuple[PeerId, str]]:
        """Return the voters that do not take part, each with why, as far as is known."""
        words = self._words.get(object_id, {})
        found = []
        for voter in voters:
            if voter not in reachable:
                found.append((voter, UNREACHABLE))
            elif voter in words:
                found.append((voter, words[voter][1]))
        return found
