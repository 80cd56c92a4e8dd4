"""How a lead ends: handed to another member, lost, or with its deleted object.

Rules of this file: what is open when a lead ends is in doubt, and everybody who waits
for it is told.

Source: reliability.md 3.4 R4; decision 11.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

from activestore.core.acceptor import Acceptor
from activestore.core.groups import Plan
from activestore.core.lead_members import Mode
from activestore.core.leading import Lead
from activestore.core.led_objects import LedObjects
from activestore.core.register import Heard, electorate
from activestore.core.replication_desk import Desk, Wake
from activestore.core.replication_effects import (
    Deposed,
    GroupDone,
    Remove,
)
from activestore.core.replication_events import AS_BEFORE, GroupWanted, LeadHandedOver
from activestore.ids import ObjectId, PeerId
from activestore.wire.replicas import NOBODY, Drop, Forget


class _Hand:
    """The lead is to go to another."""

    __slots__ = ("request", "target", "until_s")

    def __init__(self, request: int, target: PeerId, until_s: float) -> None:
        self.request = request
        self.target = target
        self.until_s = until_s


class LeadEndings(LedObjects, ABC):
    """The leads of one peer, and their ends."""

    def __init__(
        self,
        desk: Desk,
        acceptor: Acceptor,
        on_lost: Callable[[ObjectId, PeerId, bool], None],
    ) -> None:
        super().__init__(desk, acceptor)
        self._on_lost = on_lost
        self._plans: dict[ObjectId, deque[Plan]] = {}
        self._hands: dict[ObjectId, _Hand] = {}
        self._deleted: dict[ObjectId, int] = {}

    @abstractmethod
    def _go_on(self, lead: Lead) -> None:
        """Go on with what is planned for a group; see `leaders`."""

    @abstractmethod
    def _give_up_learner(self, lead: Lead, why: str) -> None:
        """Send the state to nobody that is to become a member now; see `leaders`."""

    # Learners

    def on_peer_lost(self, peer_id: PeerId) -> None:
        """Teach another one in the place of a learner that does not answer.

        Where there is no other, it may come back in time: the plan would end without it.
        """
        for object_id, plans in list(self._plans.items()):
            lead, plan = self.leads[object_id], plans[0]
            if plan.learner != peer_id:
                continue
            others = {one for one in plan.candidates if self._desk.is_reachable(one)}
            if others - plan.leaving - set(lead.config.voters):
                self._give_up_learner(lead, "out of reach")

    # Handing over

    def hand_over(self, event: LeadHandedOver) -> None:
        """Let another lead as soon as nothing is under way."""
        lead = self.leads.get(event.object_id)
        error = ""
        if lead is None or not lead.is_led:
            error = "it is not led here: ask its leader"
        elif event.target == self._desk.me:
            self._desk.emit(GroupDone(event.request, event.object_id))
            return
        elif event.target not in lead.committed_config.members:
            error = f"{event.target.hex()} holds no copy: make it a member first"
        elif event.object_id in self._hands:
            error = "its lead is being handed over already"
        if error or lead is None:
            self._desk.emit(GroupDone(event.request, event.object_id, error))
            return
        until_s = self._desk.now_s + self._desk.config.hand_over_s
        self._hands[event.object_id] = _Hand(event.request, event.target, until_s)
        self._desk.wake(self._desk.config.hand_over_s, Wake.HAND_OVER, event.object_id)
        self._go_on(lead)

    def _hand_over(self, lead: Lead) -> None:
        hand = self._hands[lead.object_id]
        target = lead.members.get(hand.target)
        if target is not None and target.mode is Mode.FULL:
            # It lacks something, and says why: waiting does not help.
            del self._hands[lead.object_id]
            told = self._desk.refusals.of(lead.object_id, [hand.target], {hand.target})
            why = "; ".join(text for _, text in told) or "it has no room"
            error = f"the target takes no changes now: {why}"
            self._desk.emit(GroupDone(hand.request, lead.object_id, error))
            return
        is_open = lead.object_id in self._plans or lead.config.before
        if is_open or not lead.is_quiet or lead.reached(hand.target) < lead.acked:
            return
        del self._hands[lead.object_id]
        self._tell_handed(lead, hand.target)
        self.depose(lead.object_id, hand.target)
        self._desk.emit(GroupDone(hand.request, lead.object_id))

    def _close(self, lead: Lead) -> bool:
        """Take no calls any more, at a moment when none is under way, or at last.

        A leader that leaves its group numbers nothing under a config without itself: a
        witness may hear of it whose only state would leave with this peer.

        Returns:
            Whether it is closed.
        """
        if lead.is_closing:
            return True
        desk = self._desk
        if lead.close_s is None:
            wait_s = desk.config.hand_over_s
            lead.close_s = desk.wake(wait_s, Wake.HAND_OVER, lead.object_id)
        if not lead.is_quiet and desk.now_s < lead.close_s - 1e-6:
            return False
        lead.is_closing = True
        self.led.discard(lead.object_id)
        desk.emit(Deposed(lead.object_id))
        return True

    def on_hand_late(self, object_id: ObjectId) -> None:
        """Keep the lead: it was not possible in time."""
        self._go_on(self.leads[object_id])
        hand = self._hands.get(object_id)
        if hand is None or self._desk.now_s < hand.until_s - 1e-6:
            return
        del self._hands[object_id]
        error = "the target has not everything, or calls never paused: try again later"
        self._desk.emit(GroupDone(hand.request, object_id, error))

    def on_state_lost(self, object_id: ObjectId) -> None:
        """Let the member lead that has the most: the state is not on this disk any more."""
        lead = self.leads.get(object_id)
        if lead is None:
            return
        others = [p for p in lead.committed_config.members if p != self._desk.me]
        others = [p for p in others if lead.reached(p) >= lead.committed]
        successor = max(others, key=lead.reached, default=NOBODY)
        if successor:
            self._tell_handed(lead, successor)
        self.depose(object_id, successor)

    def _tell_handed(self, lead: Lead, target: PeerId) -> None:
        self._desk.send(target, lead.told(is_handed=True))

    # Deletes

    def _is_too_late(self, lead: Lead, event: GroupWanted) -> bool:
        """Return whether an object is deleted, so that votes may go, and only that."""
        is_known = lead.object_id in self._deleted
        return lead.is_deleted and not (is_known and event.wanted == AS_BEFORE)

    def _forget_if_all(self, lead: Lead) -> None:
        """Let everything go once all voters have it that the object is deleted."""
        object_id = lead.object_id
        number = self._deleted.get(object_id)
        waiting = self._leaving.get(object_id, {})
        if number is None:
            return
        if any(isinstance(order, Forget) for order in waiting.values()):
            self._forget_without(lead, waiting)
            return
        if lead.config != lead.committed_config or lead.config.before:
            return  # Who is a voter is not settled.
        voters = lead.config.voters
        if any(lead.reached(peer) < number for peer in voters):
            return
        # Who left before, and has not said so, is told when it asks.
        self._leaving.pop(object_id, None)
        order = Forget(object_id, lead.ballot, number, lead.config.lineage)
        for peer_id in sorted({*voters, *lead.learners} - {self._desk.me}):
            self._tell_leaving(object_id, peer_id, order)
        if object_id not in self._leaving:
            self._forget(lead)

    def _forget_without(self, lead: Lead, waiting: dict[PeerId, Drop | Forget]) -> None:
        """Wait no more for those that are to leave, and knew that it is deleted.

        So they can have nobody lead it again, and the keepers of its place tell them the
        rest. Source: decision 11.
        """
        object_id = lead.object_id
        for plan in self._plans.get(object_id, ()):
            for peer_id in plan.leaving & waiting.keys():
                del waiting[peer_id]
                self._forget_lagging(object_id, peer_id)
        self._end_plans(object_id, "")
        if not waiting:
            del self._leaving[object_id]
            self._forget(lead)

    def _forget(self, lead: Lead) -> None:
        object_id = lead.object_id
        if self._acceptor.is_busy(object_id):
            return
        number = self._deleted[object_id]
        self._end_plans(object_id, "")  # Nobody is left of whom they were.
        self._end(object_id)
        self._desk.emit(Remove(object_id))
        left = Forget(object_id, lead.ballot, number, lead.config.lineage)
        self._acceptor.release(object_id, left)

    # Ending

    def depose(
        self,
        object_id: ObjectId,
        successor: PeerId = NOBODY,
        *,
        is_unanswered: bool = False,
    ) -> None:
        """Lead no more; what is open is in doubt."""
        lead = self.leads.get(object_id)
        if lead is None:
            return
        self._end(object_id)
        if lead.is_led:
            self._desk.emit(Deposed(object_id, is_unanswered))
        self._on_lost(object_id, successor, lead.is_touched)
        if self._desk.me not in electorate(lead.committed_config) and successor:
            self._on_left(lead)

    def _on_left(self, lead: Lead) -> None:
        object_id = lead.object_id
        if not self._acceptor.is_busy(object_id):
            self._acceptor.remove(object_id, lead.committed_config.version)

    def _end(self, object_id: ObjectId) -> None:
        lead = self.leads.pop(object_id)
        self.led.discard(object_id)
        if lead.is_settled:
            # Who led knows best what may still be shown, until it hears of another.
            heard = Heard(lead.ballot, lead.committed, lead.newest_s)
            self._acceptor.was_heard(object_id, heard)
        lead.let_go()
        self._deleted.pop(object_id, None)
        self._leaving.pop(object_id, None)
        for peer_id in list(self._lagging):
            self._forget_lagging(object_id, peer_id)
        why = "its leader was deposed meanwhile: look at its group, and ask again"
        self._end_plans(object_id, why)
        hand = self._hands.pop(object_id, None)
        if hand is not None:
            self._desk.emit(GroupDone(hand.request, object_id, why))
        assert lead.object_id == object_id

    def _end_plans(self, object_id: ObjectId, why: str) -> None:
        for plan in self._plans.pop(object_id, ()):
            self._desk.emit(GroupDone(plan.request, object_id, why))
