"""Replication: one CASPaxos register per object, led by one of those that hold it; pure.

It joins the parts, and knows none of their rules:

    acceptor   what is promised and accepted here, and the answers to others
    takeover   who leads next: ask, prepare, fetch, have it accepted again
    leaders    what is led here: writes, reads, changes of groups, deletes

Rules of this file: nothing is decided here. An object that is not touched costs nothing:
there is no timer and no scan for it.

Source: reliability.md section 3; design section 8.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from activestore.core.acceptor import Acceptor
from activestore.core.leaders import Leaders
from activestore.core.register import (
    Heard,
    Register,
    RegisterCounts,
    next_lineage,
)
from activestore.core.registers import Unkept
from activestore.core.replication_desk import Desk, ReplicationConfig, Wake
from activestore.core.replication_effects import (
    Followed,
    GroupDone,
    ReplicationEffect,
    StateReplaced,
)
from activestore.core.replication_events import (
    DeletedFound,
    ForceOrdered,
    GroupFound,
    GroupWanted,
    LeadHandedOver,
    LinkReady,
    MessageCame,
    PeerSeen,
    RareEvent,
    ReplicationEvent,
    Stored,
    TimerFired,
    Touched,
    WriteStored,
)
from activestore.core.takeover import TakeOvers
from activestore.ids import ObjectId, PeerId
from activestore.wire.replicas import (
    NOBODY,
    Accept,
    Accepted,
    Ask,
    Ballot,
    Committed,
    Config,
    Confirm,
    Confirmed,
    Drop,
    Fetch,
    Forget,
    Nack,
    Point,
    Prepare,
    Promise,
    Reason,
    ReplicaMessage,
    State,
    Told,
)


def _no_plain_object(_object_id: ObjectId) -> int | None:
    return None


class Replication:
    """The replicated objects of one peer.

    Args:
        me: This peer.
        config: Times and bounds; None for those of production.
        random: A number from 0 up to 1, another one each time.
        plain: Tells the epoch of an object that is held here without a register, None
            where there is none: who has an old copy of it learns so that it is alone.
    """

    def __init__(
        self,
        me: PeerId,
        config: ReplicationConfig | None,
        random: Callable[[], float],
        plain: Callable[[ObjectId], int | None] = _no_plain_object,
    ) -> None:
        self._me = me
        self._desk = Desk(me, config or ReplicationConfig(), random)
        self._acceptor = Acceptor(self._desk, self, plain)
        self._leaders = Leaders(self._desk, self._acceptor, self._on_led, self._on_lost)
        self._takeovers = TakeOvers(self._desk, self._acceptor, self._leaders.recommit)

    # What the shell asks

    def restore(
        self, object_id: ObjectId, register: Register | None, heard: Heard | None = None
    ) -> None:
        """Take a register from disk, before any event; nothing is led after it.

        Its `Followed` and its search for a leader come with the first effects. None: it
        cannot be read. `heard`: what was known of its state before this start.
        """
        if register is None:
            self._takeovers.note_unreadable(object_id)
            return
        self._acceptor.restore(object_id, register, heard)
        config, counter = register.config, register.promised.counter
        self._desk.emit(Followed(object_id, NOBODY, counter, config))
        if not register.is_quarantined:
            self._takeovers.queue(object_id)

    def begin(
        self, object_id: ObjectId, counter: int, now_s: float
    ) -> tuple[Register, list[ReplicationEffect]]:
        """Make a plain object that is here a register of this peer alone, led at once.

        The caller writes the register before anything that comes after; where the disk
        refuses it, WriteStored tells so. It is made plain again (`Unshared`) then, and if
        the first change of its group leaves it alone.

        Args:
            object_id: Which object.
            counter: Its epoch so far; what `Unshared` told, if it had a register once.
            now_s: The time.
        """
        self._desk.now_s = now_s
        assert self._acceptor.latest(object_id) is None
        ballot = Ballot(counter + 1, self._me)
        # Versions grow over all registers that the object ever had: so one who was a
        # member long ago knows less than anybody who is one.
        config = Config(counter + 1, (self._me,))
        register = Register(ballot, ballot, 1, config)
        self._acceptor.keep(object_id, register)
        self._leaders.begin(object_id, register, is_growing=True)
        return register, self.take_effects()

    def begin_write(
        self,
        object_id: ObjectId,
        change: Any,
        *,
        is_delete: bool = False,
        size: int = 0,
    ) -> Register:
        """Number a write of an object that is led here.

        The caller commits the register together with the change, in the order of these
        calls, and then reports WriteStored, also where the object is led no more by then:
        until it has, this peer promises and accepts nothing of the object.

        Args:
            object_id: Which object.
            change: What members are sent: what follows on the state before.
            is_delete: The state goes; what `change` brings is the answer.
            size: Bytes of the change, for the bound of what is kept for slow members.

        Raises:
            LookupError: It is not led here.
        """
        return self._leaders.begin_write(
            object_id, change, is_delete=is_delete, size=size
        )

    def confirm(self, object_id: ObjectId) -> int | None:
        """Begin or join a round of confirmations for reads that arrive now.

        The question leaves with the effects of the next `step` or `take_effects`: so all
        reads of one turn share it. `ReadDone` of this round or a later one answers.

        Returns:
            The round; None where no other peer has a vote, so that none is needed.

        Raises:
            LookupError: It is not led here.
        """
        return self._leaders.confirm(object_id)

    def take_unkept(self, count: int) -> list[Unkept]:
        """Return what is to be written with another commit; it counts as written.

        The caller writes it before any `Store` that comes after this call.
        """
        return self._acceptor.take_unkept(count)

    def register_of(self, object_id: ObjectId) -> Register | None:
        """Return the register as it is on disk, None where there is none."""
        return self._acceptor.registers.get(object_id)

    @property
    def registers(self) -> Mapping[ObjectId, Register]:
        """Every register of this peer, as it is on disk."""
        return self._acceptor.registers

    def is_led(self, object_id: ObjectId) -> bool:
        """Return whether this peer leads the object; it may be a deleted one."""
        return object_id in self._leaders.led

    def counts(self) -> RegisterCounts:
        """Return how many registers are of which kind; only deleted ones are sought."""
        deleted = self._acceptor.deleted
        led = len(self._leaders.led) - len(self._leaders.led & deleted)
        total = len(self._acceptor.registers) - len(deleted)
        witnessed, quarantined = len(self._acceptor.witnessed), len(self.quarantined)
        followed = total - led - witnessed - quarantined
        return RegisterCounts(led, followed, witnessed, quarantined)

    @property
    def quarantined(self) -> Collection[ObjectId]:
        """The objects whose copies here are history."""
        return self._acceptor.quarantined

    def leader_of(self, object_id: ObjectId) -> Ballot | None:
        """Return who leads, as far as this peer knows."""
        return self._takeovers.leaders.get(object_id)

    def age_s(self, object_id: ObjectId, now_s: float) -> float | None:
        """Return how old the state on this disk is at most: since when it was vouched for.

        A leader vouches when a majority has answered it, at most `vouch_s` apart while
        there are reads or writes.
        """
        vouched_s = self._acceptor.vouched_s(object_id)
        if self.is_led(object_id):
            vouched_s = self._leaders.newest_s(object_id)
        return None if vouched_s is None else max(0.0, now_s - vouched_s)

    def is_shown(self, object_id: ObjectId) -> bool:
        """Return whether the state on this disk is known to be committed."""
        lead = self._leaders.leads.get(object_id)
        if lead is not None:
            return lead.is_led and lead.is_quiet
        return self._acceptor.shown_number(object_id) is not None

    def is_committed(self, object_id: ObjectId, epoch: Ballot, number: int) -> bool:
        """Return whether a state that was led elsewhere is known to be committed."""
        return number <= self._acceptor.committed_of(object_id, epoch)

    def committed_of(self, object_id: ObjectId) -> int:
        """Return the number that is committed of an object that is led here, else 0."""
        lead = self._leaders.leads.get(object_id)
        return 0 if lead is None else lead.committed

    def acked_of(self, object_id: ObjectId) -> dict[PeerId, int]:
        """Return the number that each member has, where it is led here; 0: not known."""
        lead = self._leaders.leads.get(object_id)
        if lead is None:
            return {}
        acked = {peer: member.acked for peer, member in lead.members.items()}
        return {**acked, self._me: lead.acked}

    def why_each(self, object_id: ObjectId) -> list[tuple[PeerId, str]]:
        """Return the voters of a group that do not take part, each with why, for people."""
        return self._acceptor.why_each(object_id)

    def missing_number(self, object_id: ObjectId) -> int | None:
        """Return the number of the newest state where no copy that answers has it."""
        return self._takeovers.missing.get(object_id)

    def distrust(self) -> None:
        """Neither vote nor lead from now on: this disk is not what others remember.

        Source: reliability.md R9.
        """
        self._desk.is_distrusted = True
        for object_id in list(self._leaders.leads):
            self._leaders.depose(object_id)
        self._takeovers.drop_all()

    def discard(self, object_id: ObjectId) -> None:
        """Remove a quarantined copy, by an operator's order.

        Raises:
            LookupError: There is none.
        """
        register = self._acceptor.latest(object_id)
        if register is None or not register.is_quarantined:
            raise LookupError(f"no quarantined copy of {object_id.hex()} is here")
        self._acceptor.remove(object_id, 0)

    def take_effects(self, now_s: float | None = None) -> list[ReplicationEffect]:
        """Return what is to be done and was not returned yet.

        Args:
            now_s: The time. Only at start it may be left out: what is asked of others
                here is waited for from then on, and the last step may be long ago.
        """
        if now_s is not None:
            self._desk.now_s = now_s
        self._leaders.flush_rounds()
        return self._desk.take()

    # The core

    def step(self, event: ReplicationEvent, now_s: float) -> list[ReplicationEffect]:
        """Take an event; return what is to be done, in order."""
        self._desk.now_s = now_s
        if isinstance(event, MessageCame):
            self._on_message(event.sender, event.message)
        elif isinstance(event, Stored):
            self._acceptor.on_stored(event)
        elif isinstance(event, WriteStored):
            self._on_write_stored(event)
        elif isinstance(event, TimerFired):
            self._on_timer()
        else:
            self._on_rare(event)
        return self.take_effects()

    def deadline_s(self) -> float | None:
        """Return when the next TimerFired is wanted."""
        return self._desk.next_s()

    def _on_rare(self, event: RareEvent) -> None:
        if isinstance(event, PeerSeen):
            self._desk.see(event.peer_id, is_reachable=event.is_reachable)
            if event.is_reachable:
                self._on_peer_back(event.peer_id, is_lost=False)
            else:
                self._leaders.on_peer_lost(event.peer_id)
                self._takeovers.on_peer_lost(event.peer_id)
        elif isinstance(event, LinkReady):
            self._on_peer_back(event.peer_id, is_lost=True)
        elif isinstance(event, Touched):
            self._on_touched(event.object_id)
        elif isinstance(event, GroupWanted):
            self._leaders.want(event)
        elif isinstance(event, ForceOrdered):
            self._force(event)
        elif isinstance(event, LeadHandedOver):
            self._leaders.hand_over(event)
        elif isinstance(event, GroupFound):
            self._takeovers.on_told(event.leader, event.told, is_found=True)
        elif isinstance(event, DeletedFound):
            self._acceptor.learn_deleted(event.object_id, event.lineage)
        else:
            self._leaders.on_state_lost(event.object_id)
            self._acceptor.on_message(self._me, event)

    def _on_touched(self, object_id: ObjectId) -> None:
        lead = self._leaders.leads.get(object_id)
        if self._desk.is_distrusted:
            self._ask_all(object_id)
        elif lead is None or not lead.is_settled:
            self._takeovers.touch(object_id)
        else:
            lead.is_touched = True

    def _ask_all(self, object_id: ObjectId) -> None:
        """Have the others look who leads, where this peer must not even look."""
        register = self._acceptor.latest(object_id)
        for voter in register.config.voters if register is not None else ():
            if voter != self._me:
                self._desk.send(voter, Ask(object_id))

    def _on_peer_back(self, peer_id: PeerId, *, is_lost: bool) -> None:
        self._leaders.on_peer_back(peer_id, is_lost=is_lost)
        self._takeovers.on_peer_back(peer_id)

    def _on_write_stored(self, event: WriteStored) -> None:
        object_id, number, is_refused = event
        if self._acceptor.on_written(object_id, number, is_refused=is_refused):
            self._leaders.on_written(object_id, number, is_refused=is_refused)
            self._acceptor.end_write(object_id)
        elif is_refused:
            self._leaders.undo_begin(object_id, number)

    def _on_timer(self) -> None:
        while (due := self._desk.pop_due()) is not None:
            what, object_id = due
            if what is Wake.TAKE_OVER:
                self._takeovers.on_due(object_id)
            elif what is Wake.NO_QUORUM:
                self._takeovers.on_waited(object_id)
            elif what is Wake.PUMP:
                self._takeovers.pump()
            else:
                self._leaders.on_wake(what, object_id)

    def _on_message(self, sender: PeerId, message: ReplicaMessage) -> None:
        """Give a message to the part that it is for."""
        if isinstance(message, Prepare | Accept | Drop | Forget):
            self._acceptor.on_message(sender, message)
        elif isinstance(message, Accepted):
            self._desk.refusals.accepted(sender, message.object_id)
            self._leaders.on_accepted(
                sender, message.object_id, message.epoch, message.number
            )
        elif isinstance(message, Confirm):
            self._acceptor.on_confirm(sender, message)
        elif isinstance(message, Confirmed):
            self._leaders.on_confirmed(sender, message)
        elif isinstance(message, Promise):
            self._on_promise(sender, message)
        elif isinstance(message, Nack):
            self._on_nack(sender, message)
        else:
            self._on_rare_message(sender, message)

    def _on_rare_message(
        self, sender: PeerId, message: Committed | Fetch | State | Ask | Told
    ) -> None:
        if isinstance(message, Committed):
            self._on_committed(sender, message)
        elif isinstance(message, Fetch):
            self._acceptor.on_fetch(sender, message)
        elif isinstance(message, State):
            self._takeovers.on_state(sender, message)
        elif isinstance(message, Ask):
            self._acceptor.on_ask(sender, message)
        else:
            if self._leaders.has_told(sender, message.object_id):
                self._acceptor.hear_answer(message)
            self._takeovers.on_told(sender, message)
            self._leaders.on_told(sender, message)

    def _on_promise(self, sender: PeerId, message: Promise) -> None:
        register = self._acceptor.latest(message.object_id)
        if register is None:
            return
        if message.object_id in self.registers:
            self._desk.refusals.promised(sender, message)
        if register.config.lineage == message.config.lineage:
            self._takeovers.on_promise(sender, message)
        else:
            self._acceptor.hear_lineage(sender, message)

    def _on_nack(self, sender: PeerId, message: Nack) -> None:
        if message.reason is Reason.LINEAGE:
            self._acceptor.hear_lineage(sender, message)
        else:
            self._acceptor.hear_config(sender, message)
        self._acceptor.note_refusal(sender, message)
        self._leaders.on_nack(sender, message)
        self._takeovers.on_nack(sender, message)

    def _on_committed(self, sender: PeerId, message: Committed) -> None:
        self._acceptor.on_committed(sender, message)
        object_id = message.object_id
        register = self._acceptor.registers.get(object_id)
        if not message.is_handed or register is None:
            return
        if sender != message.epoch.leader:
            return
        is_all = register.epoch == message.epoch and register.number >= message.number
        if is_all and not self._leaders.leads.get(object_id):
            self._takeovers.succeed(object_id)

    # Force

    def _force(self, event: ForceOrdered) -> None:
        """Begin a new lineage of this peer alone. Source: decision 11."""
        object_id, request = event.object_id, event.request
        register = self._acceptor.latest(object_id)
        error = self._why_not_forced(object_id, register)
        if error or register is None:
            self._desk.emit(GroupDone(request, object_id, error))
            return
        self._leaders.depose(object_id)
        config = register.config._replace(
            version=register.config.version + 1,
            members=(self._me,),
            witness=NOBODY,
            before=(),
            lineage=next_lineage(register.config.lineage, self._desk.random()),
        )
        ballot = Ballot(register.promised.counter + 1, self._me)
        new = register._replace(
            promised=ballot, epoch=ballot, config=config, is_voter=True
        )
        self._takeovers.on_gone(object_id)
        then = partial(self._on_forced, request, object_id, new, register.config)
        self._acceptor.order(object_id, new, then=then)

    def _why_not_forced(self, object_id: ObjectId, register: Register | None) -> str:
        if register is None or not register.has_state:
            return "no state of it is here: force it at a peer that has one"
        if register.is_deleted:
            return "it is deleted"
        if register.is_quarantined:
            return (
                "this copy is quarantined: the group was forced elsewhere; `export` it"
            )
        if self._acceptor.is_busy(object_id):
            return "it is being written: try again"
        return ""

    def _on_forced(
        self,
        request: int,
        object_id: ObjectId,
        register: Register,
        before: Config,
        problem: str,
    ) -> None:
        if problem:
            error = f"it could not be written: {problem}"
            self._desk.emit(GroupDone(request, object_id, error))
            self._takeovers.queue(object_id)
            return
        lead = self._leaders.begin(object_id, register, is_growing=False)
        self._leaders.tell_forced(lead, before)
        self._desk.emit(StateReplaced(object_id))
        self._desk.emit(GroupDone(request, object_id))

    # What the parts tell each other

    def on_overtaken(self, object_id: ObjectId, epoch: Ballot) -> None:
        """Another was promised a newer epoch."""
        self._leaders.depose(object_id)
        self._takeovers.on_overtaken(object_id, epoch)

    def on_led_by(self, object_id: ObjectId, leader: Ballot) -> None:
        """A leader was heard."""
        self._takeovers.on_led_by(object_id, leader)

    def on_leaving(self, object_id: ObjectId) -> None:
        """The leader has left its group; its word to a successor may be lost."""
        self._takeovers.on_leaving(object_id)

    def on_gone(self, object_id: ObjectId) -> None:
        """Nothing of the object is here any more."""
        self._desk.refusals.forget(object_id)
        self._leaders.depose(object_id)
        self._takeovers.on_gone(object_id)

    def on_quarantined(self, object_id: ObjectId) -> None:
        """The copy here is history."""
        self._leaders.depose(object_id)
        self._takeovers.on_gone(object_id)

    def on_asked(self, object_id: ObjectId, sender: PeerId) -> None:
        """Another peer wants to know who leads."""
        self._takeovers.on_asked(object_id, sender)

    def on_state_lost(self, object_id: ObjectId) -> None:
        """The state on this disk is damaged: another has to lead."""
        self._leaders.on_state_lost(object_id)

    def told_config(self, object_id: ObjectId) -> Config | None:
        """Return the committed config of an object that is led here."""
        lead = self._leaders.leads.get(object_id)
        return lead.committed_config if lead is not None and lead.is_led else None

    def _on_led(self, object_id: ObjectId, ballot: Ballot) -> None:
        self._takeovers.on_led_by(object_id, ballot)

    def _on_lost(
        self, object_id: ObjectId, successor: PeerId, is_touched: bool
    ) -> None:
        self._takeovers.on_lost(object_id, has_successor=bool(successor))
        if is_touched:
            self._takeovers.touch(object_id)

    def check(self) -> None:
        """Make sure that every part, and what they share, is as it must be."""
        self._acceptor.check()
        self._leaders.check()
        self._takeovers.check()
        assert self._desk.refusals.objects <= self.registers.keys()
        for object_id, register in self._acceptor.registers.items():
            assert register.number >= Point().number
            if self.is_led(object_id):
                ballot = self._leaders.leads[object_id].ballot
                known = self._takeovers.leaders[object_id]
                assert known == ballot, (object_id.hex(), known, ballot)
                assert not register.is_quarantined
