"""The objects that one peer leads: their numbers, their reads, who misses what.

Rules of this file: it decides nothing about groups; see `leaders`.

Source: reliability.md 3.4 R5, R6; decision 11.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from activestore.core.acceptor import Acceptor
from activestore.core.lead_members import Entry
from activestore.core.leading import Lead
from activestore.core.register import Heard, Register, electorate
from activestore.core.replication_desk import Desk, Wake
from activestore.ids import ObjectId, PeerId
from activestore.wire.replicas import Ballot, Config, Drop, Forget

# Objects of which a peer that came back gets the rest at once, then every step so many.
CATCH_UP_COUNT = 20
CATCH_UP_STEP_S = 0.02


class LedObjects:
    """The leads of one peer, as far as they are alike."""

    def __init__(self, desk: Desk, acceptor: Acceptor) -> None:
        self._desk = desk
        self._acceptor = acceptor
        self.leads: dict[ObjectId, Lead] = {}
        self.led: set[ObjectId] = set()  # calls of these may run here
        self._asking: dict[ObjectId, Lead] = {}
        # Who must hear that it is no member any more, or that nothing is to be kept.
        self._leaving: dict[ObjectId, dict[PeerId, Drop | Forget]] = {}
        self._lagging: dict[PeerId, dict[ObjectId, None]] = {}
        self._catching: OrderedDict[tuple[PeerId, ObjectId], bool] = OrderedDict()

    def find(self, object_id: ObjectId, ballot: Ballot) -> Lead | None:
        """Return the lead under this epoch, None where it is over."""
        lead = self.leads.get(object_id)
        return lead if lead is not None and lead.ballot == ballot else None

    def _new(self, object_id: ObjectId, register: Register) -> Lead:
        lead = self.leads[object_id] = Lead(
            self._desk,
            object_id,
            register.epoch,
            register.number,
            register.config,
            is_deleted=register.is_deleted,
        )
        return lead

    # Writing

    def begin_write(
        self, object_id: ObjectId, change: Any, *, is_delete: bool, size: int
    ) -> Register:
        """Give a write its number; see Replication.begin_write."""
        lead = self.leads.get(object_id)
        if lead is None or not lead.is_led or lead.is_deleted:
            text = (
                f"object {object_id.hex()} is not led here: ask is_led before a write"
            )
            raise LookupError(text)
        lead.is_deleted = is_delete
        register = self._numbered(lead, lead.config, change, size=size)
        self._acceptor.begin_write(object_id, register)
        return register

    def _numbered(
        self, lead: Lead, config: Config, change: Any, *, size: int
    ) -> Register:
        number = lead.number + 1
        lead.add(Entry(number, config, change, is_deleted=lead.is_deleted, size=size))
        return Register(
            promised=lead.ballot,
            epoch=lead.ballot,
            number=number,
            config=config,
            is_deleted=lead.is_deleted,
            is_voter=self._desk.me in electorate(config),
        )

    # Reads

    def confirm(self, object_id: ObjectId) -> int | None:
        """Begin or join a round of confirmations; see Replication.confirm."""
        lead = self.leads.get(object_id)
        if lead is None or not lead.is_led:
            text = f"object {object_id.hex()} is not led here: ask is_led before a read"
            raise LookupError(text)
        if set(electorate(lead.config)) == {self._desk.me}:
            return None
        self._asking[object_id] = lead
        return lead.round + 1

    def newest_s(self, object_id: ObjectId) -> float | None:
        """Return when what is committed of a led object was the newest for sure."""
        lead = self.leads[object_id]
        is_alone = set(electorate(lead.config)) == {self._desk.me}
        return self._desk.now_s if is_alone else lead.newest_s

    def flush_rounds(self) -> None:
        """Send the questions of all reads that came since the last time."""
        if self._asking:
            asking, self._asking = self._asking, {}
            for object_id, lead in asking.items():
                if self.leads.get(object_id) is lead:
                    lead.ask_round()

    def _tell_committed(self, lead: Lead) -> None:
        """Tell what is committed, this peer's own acceptor too: it may restart."""
        lead.tell_committed()
        if lead.is_settled:
            heard = Heard(lead.ballot, lead.committed, lead.newest_s)
            self._acceptor.was_heard(lead.object_id, heard)

    # Those who are to hear that they are out, or that nothing is to be kept

    def _tell_leaving(
        self, object_id: ObjectId, peer_id: PeerId, order: Drop | Forget
    ) -> None:
        self._leaving.setdefault(object_id, {})[peer_id] = order
        self._lagging.setdefault(peer_id, {})[object_id] = None
        self._desk.send(peer_id, order)
        lead = self.leads[object_id]
        lead.arm_resend()

    def _retell(self, object_id: ObjectId) -> None:
        for peer_id, order in self._leaving.get(object_id, {}).items():
            if self._desk.is_reachable(peer_id):
                self._desk.send(peer_id, order)
                self.leads[object_id].arm_resend()

    # Members that miss something

    def _note_lagging(self, lead: Lead) -> None:
        """Keep for each member what it misses, for the time when it comes back."""
        for peer_id, member in lead.members.items():
            objects = self._lagging.get(peer_id)
            if member.acked < lead.acked:
                if objects is None:
                    objects = self._lagging[peer_id] = {}
                objects[lead.object_id] = None
            elif objects is not None and lead.object_id in objects:
                del objects[lead.object_id]

    def _forget_lagging(self, object_id: ObjectId, peer_id: PeerId) -> None:
        objects = self._lagging.get(peer_id)
        if objects is not None:
            objects.pop(object_id, None)
            if not objects:
                del self._lagging[peer_id]

    def has_told(self, peer_id: PeerId, object_id: ObjectId) -> bool:
        """Return whether a peer is to answer that it is out of the group."""
        return peer_id in self._leaving.get(object_id, {})

    def on_peer_back(self, peer_id: PeerId, *, is_lost: bool) -> None:
        """Send a peer that came back what it missed, not all at once.

        `is_lost`: what was sent before may be lost; else it was slow perhaps.
        """
        is_idle = not self._catching
        for object_id in self._lagging.get(peer_id, ()):
            key = (peer_id, object_id)
            self._catching[key] = is_lost or self._catching.get(key, False)
        if is_idle and self._catching:
            self._catch_up()

    def _catch_up(self) -> None:
        for _ in range(min(CATCH_UP_COUNT, len(self._catching))):
            (peer_id, object_id), is_lost = self._catching.popitem(last=False)
            lead = self.leads.get(object_id)
            if lead is None:
                continue
            if is_lost:
                lead.restart(peer_id)
            else:
                lead.refresh(peer_id)
                lead.arm_resend()
            order = self._leaving.get(object_id, {}).get(peer_id)
            if order is not None:
                self._desk.send(peer_id, order)
        if self._catching:
            self._desk.wake(CATCH_UP_STEP_S, Wake.CATCH_UP)
