"""Taking a copy of a replica group off this peer: a move of its object, and a drain.

    move to a member          that one leads; the copies stay where they are
    move to another peer      a copy is made there, ours goes, and that one leads
    drain                     a copy is made elsewhere, ours goes; with nobody left to take
                              one the group has a copy fewer, and what was wanted is kept

Rules of this file: a copy goes only by a change of its group, which most of the others
have on disk; so nothing is lost by it whoever dies.

Source: design section 8; reliability.md 3.4 R8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from activestore.core import replication_events as happened
from activestore.core.register import Register
from activestore.errors import (
    ActiveStoreError,
    InvalidRequestError,
    NoQuorumError,
    ObjectNotFoundError,
    UnavailableError,
)
from activestore.ids import ObjectId, PeerId
from activestore.peer.grouping import Grouping
from activestore.peer.loop import PeerLoop

Then = Callable[[ActiveStoreError | None], None]


class Rehousing:
    """What one peer does to be rid of copies."""

    def __init__(self, loop: PeerLoop, grouping: Grouping) -> None:
        self._loop = loop
        self._grouping = grouping
        self._replicating = loop.replicating
        self._me = PeerId(loop.settings.peer_id)
        self.fewer: set[ObjectId] = set()

    def is_shared(self, object_id: ObjectId) -> bool:
        """Whether this peer has a vote on an object that others have a vote on too."""
        return self._register(object_id) is not None

    def copies(self) -> list[ObjectId]:
        """Return the objects of whose groups this peer is."""
        return list(self._replicating.core.registers)

    def _register(self, object_id: ObjectId) -> Register | None:
        return self._replicating.core.register_of(object_id)

    # -- move --------------------------------------------------------------------------

    def bring(self, object_id: ObjectId, target: PeerId, then: Then) -> None:
        """Have a peer lead an object that is led here, with a copy in place of ours."""
        register = self._register(object_id)
        if register is None or target in register.config.members:
            self._hand_over(object_id, target, then)
            return
        if target == register.config.witness:
            then(InvalidRequestError(
                f"{self._loop.cluster.name_of(target)} is the witness of its group and shall "
                "hold no copy: name another, or replicate it with leaving= first", "peer",
            ))  # fmt: skip
            return

        def left(error: ActiveStoreError | None) -> None:
            if error is not None:
                then(error)
            else:
                self._ask_to_lead(object_id, target, then)

        # No other peer instead: it is this one that was asked for.
        self._regroup(object_id, [target], is_smaller=False, then=left)

    def _hand_over(self, object_id: ObjectId, target: PeerId, then: Then) -> None:
        def make(request: int) -> happened.LeadHandedOver:
            return happened.LeadHandedOver(request, object_id, target)

        def done(why: str) -> None:
            then(UnavailableError(_named(object_id), why) if why else None)

        self._replicating.regroup(make, done)

    def _ask_to_lead(self, object_id: ObjectId, target: PeerId, then: Then) -> None:
        """Ask whoever leads it now to let the target lead, unless it does."""
        parameters = {"object_id": object_id, "peer": target.hex()}
        self._loop.relays.ask_about(
            object_id, "move", parameters, lambda _, error: then(error), False
        )

    # -- drain -------------------------------------------------------------------------

    def leave(self, object_id: ObjectId, then: Then) -> None:
        """Have others hold an object instead of this peer; `then(error)` once they do.

        ObjectNotFoundError: it is deleted, so that nothing keeps this peer.
        """
        register = self._register(object_id)
        if register is None:
            then(None)
            return

        if register.is_deleted:
            self._give_up(object_id, register, then)
            return

        def shrunk(error: ActiveStoreError | None) -> None:
            if error is not None:
                then(error)
                return
            self.fewer.add(object_id)
            why = "no peer takes the copy of the one that leaves"
            self._loop.note(
                "warning", f"a copy fewer object={object_id.hex()} reason={why}"
            )
            then(None)

        def left(error: ActiveStoreError | None) -> None:
            if isinstance(error, ObjectNotFoundError):
                then(error)  # It was deleted meanwhile.
            elif isinstance(error, NoQuorumError) and self._has_others(object_id):
                self._leave(object_id, is_smaller=True, then=shrunk)
            else:
                then(error)

        self._leave(object_id, is_smaller=False, then=left)

    def _give_up(self, object_id: ObjectId, register: Register, then: Then) -> None:
        """Have what is deleted do without the vote of this peer, if that can be.

        Who does not answer goes with it: nobody else might be left to forget it.
        """
        leaving = [self._me, *self._grouping.repairing.gone(register.config.voters)]
        gone = ObjectNotFoundError(object_id, (self._me,))
        if self._loop.location.is_here(object_id):
            self._grouping.set_group(
                object_id, happened.AS_BEFORE, False, (), leaving, lambda _: then(gone)
            )
            return
        leader = self._replicating.core.leader_of(object_id)
        if leader is None or leader.leader in leaving:
            then(gone)
            return
        # By its place nobody finds what is deleted.
        names = [one.hex() for one in leaving]
        self._loop.relays.ask(
            leader.leader, "replicate", {"object_id": object_id, "leaving": names},
            lambda *_: then(gone),
        )  # fmt: skip

    def _has_others(self, object_id: ObjectId) -> bool:
        """Whether others hold the state of an object too, as far as is known here."""
        register = self._register(object_id)
        members = () if register is None else register.config.members
        return any(one != self._me for one in members)

    def _leave(self, object_id: ObjectId, *, is_smaller: bool, then: Then) -> None:
        if self._loop.location.is_here(object_id):
            self._regroup(object_id, (), is_smaller=is_smaller, then=then)
            return
        parameters = {
            "object_id": object_id, "leaving": [self._me.hex()],
            "is_fewer": is_smaller,
        }  # fmt: skip
        self._loop.relays.ask_about(
            object_id, "replicate", parameters, lambda _, error: then(error), False
        )

    def _regroup(
        self, object_id: ObjectId, first: Sequence[PeerId], *, is_smaller: bool,
        then: Then,
    ) -> None:  # fmt: skip
        """Have the group of an object that is led here go on without this peer."""
        wanted = happened.FEWER if is_smaller else happened.AS_BEFORE

        def done(why: str) -> None:
            error = NoQuorumError(_named(object_id), why) if why else None
            # In a later turn: now the object is here still.
            self._loop.storage.read(lambda _: None, lambda *_: then(error))

        self._grouping.set_group(object_id, wanted, False, first, (self._me,), done)


def _named(object_id: ObjectId) -> str:
    return f"object {object_id.hex()}"
