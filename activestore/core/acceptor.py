"""The acceptor: what this peer has promised and accepted, and what it answers to others.

Every answer that says "promised" or "accepted" leaves only after the disk said so. What
follows on what is being written is ordered at once, so that one commit takes many; what
does not follow waits until nothing of its object is being written.

    Prepare --Store--> Promise        Accept --Store--> Accepted        else Nack

Rules of this file: it knows no leader's business; who must know that an epoch is over, or
that a copy went, is called through the hooks. Who is not of the group changes nothing,
and is told so; see `standing`.

Source: reliability.md 3.4 R1, R2, R9, R10; decision 11.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from activestore.core.effects import Note
from activestore.core.refusals import DAMAGED
from activestore.core.register import (
    Heard,
    Register,
    accepted_by,
    electorate,
    is_mending,
    is_taken,
    is_whole,
    judge_accept,
    judge_prepare,
)
from activestore.core.registers import Deferrable, Order
from activestore.core.replication_desk import Desk
from activestore.core.replication_effects import (
    Followed,
    Remove,
    SendWhole,
    StateReplaced,
)
from activestore.core.replication_events import StateLost, Stored
from activestore.core.standing import Standing
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
    State,
    Told,
)

# Messages about one object that wait for its disk; more are lost, and sent again.
DEFERRED_MAX = 1024
# Objects that were dropped or forgotten here lately: who asks late is told.
REMEMBERED_MAX = 10_000


class Hooks(Protocol):
    """What others of this peer must know."""

    def on_overtaken(self, object_id: ObjectId, epoch: Ballot) -> None:
        """Another was promised, or has, a newer epoch."""

    def on_leaving(self, object_id: ObjectId) -> None:
        """The leader is of the group no more, and will ask one of it to lead."""

    def on_led_by(self, object_id: ObjectId, leader: Ballot) -> None:
        """A leader was heard."""

    def on_gone(self, object_id: ObjectId) -> None:
        """Nothing of the object is here any more."""

    def on_quarantined(self, object_id: ObjectId) -> None:
        """A newer lineage was heard of: the copy here is history."""

    def on_state_lost(self, object_id: ObjectId) -> None:
        """The state on this disk is damaged, and that has been written down or tried."""

    def on_asked(self, object_id: ObjectId, sender: PeerId) -> None:
        """Another peer wants to know who leads the object."""

    def told_config(self, object_id: ObjectId) -> Config | None:
        """Return the committed config where this peer leads; else None."""


class Acceptor(Standing):
    """What others ask of the registers of one peer, and what they are told."""

    def __init__(
        self,
        desk: Desk,
        hooks: Hooks,
        plain: Callable[[ObjectId], int | None],
    ) -> None:
        super().__init__(desk)
        self._hooks = hooks
        self._plain = plain

    # Writing

    def end_write(self, object_id: ObjectId) -> None:
        """Go on with what waited for a write, once everybody knows of it."""
        self._finish(object_id)

    def on_stored(self, event: Stored) -> None:
        """Answer whoever waits for the disk."""
        order = self._orders.pop(event.token, None)
        if order is None:
            return
        object_id, register, asked, heard, then = order
        before = self.registers.get(object_id)
        if not event.problem:
            self._settle(object_id, register)
            self._vouches.wrote(object_id, heard)
            self._learn(object_id, heard)
        if asked is None:
            self._desk.refusals.stored(self._me, object_id, event)
            then(event.problem)
        elif event.problem:
            self._refuse_stored(*asked, order, event)
        elif isinstance(asked[1], Prepare):
            self._promise(asked[0], asked[1], register)
        else:
            self._accepted(asked[0], asked[1], before)
        self._finish(object_id)

    def _finish(self, object_id: ObjectId) -> None:
        busy = self._busy[object_id]
        busy.count -= 1
        if busy.count:
            return
        del self._busy[object_id]
        for sender, message in busy.deferred:
            self.on_message(sender, message)

    def _refuse_stored(
        self, sender: PeerId, message: Prepare | Accept, order: Order, event: Stored
    ) -> None:
        reasons = {"base": Reason.BASE, "requirement": Reason.REQUIREMENT}
        reason = reasons.get(event.problem, Reason.SPACE)
        object_id, epoch = order.object_id, message.epoch
        number = message.number if isinstance(message, Accept) else 0
        promised = order.register.promised
        nack = Nack(object_id, epoch, number, reason, promised, None, event.text)
        self._desk.send(sender, nack)

    # Messages

    def on_message(self, sender: PeerId, message: Deferrable) -> None:
        """Take a message that may change a register, or that its state is damaged."""
        if isinstance(message, StateLost):
            self._on_state_lost(message)
            return
        if self._desk.is_distrusted:
            self._nack(sender, message, Reason.UNKNOWN, None)
            return
        busy = self._busy.get(message.object_id)
        if busy is not None and busy.deferred:
            self._defer(sender, message)  # In the order in which they came.
            return
        if isinstance(message, Prepare):
            self._on_prepare(sender, message)
        elif isinstance(message, Accept):
            self._on_accept(sender, message)
        elif isinstance(message, Drop):
            self._on_drop(sender, message)
        else:
            self._on_forget(sender, message)

    def _defer(self, sender: PeerId, message: Deferrable) -> bool:
        busy = self._busy.get(message.object_id)
        if busy is None:
            return False
        if len(busy.deferred) < DEFERRED_MAX:
            busy.deferred.append((sender, message))
        return True

    def _on_unknown(self, sender: PeerId, message: Prepare | Accept) -> None:
        left = self._left.get(message.object_id)
        if isinstance(left, Forget):
            self._desk.send(sender, left)
        else:
            self._nack(sender, message, Reason.UNKNOWN, None)

    def _on_prepare(self, sender: PeerId, message: Prepare) -> None:
        object_id = message.object_id
        register = self.latest(object_id)
        if sender != message.epoch.leader:
            return
        if register is None:
            self._on_unknown(sender, message)
            return
        if not self._may_ask(sender, message, register):
            self._refuse(sender, message, register)
            return
        reason = judge_prepare(register, message)
        if reason is not None:
            self._nack(sender, message, reason, register)
            if reason is Reason.LINEAGE:
                self.meet_lineage(object_id, message.config.lineage)
            return
        if message.epoch.counter > register.promised.counter:
            self._hooks.on_overtaken(object_id, message.epoch)
        if self._defer(sender, message):
            return
        stored = self.registers[object_id]
        if message.epoch == stored.promised:
            self._promise(sender, message, stored)
            return
        register = stored._replace(promised=message.epoch)
        self.order(object_id, register, asked=(sender, message))

    def _promise(self, sender: PeerId, message: Prepare, register: Register) -> None:
        self._desk.send(
            sender,
            Promise(
                message.object_id,
                message.epoch,
                register.point,
                register.config,
                register.is_deleted,
                register.has_state,
            ),
        )

    def _on_accept(self, sender: PeerId, message: Accept) -> None:
        object_id = message.object_id
        register = self.latest(object_id)
        if sender != message.epoch.leader:
            return
        if register is None:
            self._on_first(sender, message)
            return
        if not self._may_teach(sender, message, register):
            self._refuse(sender, message, register)
            return
        reason = judge_accept(register, message)
        if reason is not None:
            self._nack(sender, message, reason, register)
            if reason is Reason.LINEAGE:
                self.meet_lineage(object_id, message.config.lineage)
            return
        if message.epoch != register.promised:
            self._hooks.on_overtaken(object_id, message.epoch)
        if is_taken(register, message) and not is_mending(register, message):
            self._accept_again(sender, message)
            return
        is_next = message.epoch == register.epoch and message.base == register.point
        must_wait = is_whole(message) or not is_next or register.is_stateless
        if must_wait and self._defer(sender, message):
            return
        self._take(sender, message, register)

    def _accept_again(self, sender: PeerId, message: Accept) -> None:
        stored = self.registers.get(message.object_id)
        if stored is not None and is_taken(stored, message):
            self._answer_accept(sender, message, stored.number)
        # Else it is being written: the answer comes with that.

    def _on_first(self, sender: PeerId, message: Accept) -> None:
        """Take the first state of an object that is not here, as a member to be."""
        left = self._left.get(message.object_id, -1)
        is_late = isinstance(left, Forget) or message.config.version < left
        if not message.is_learner or message.base is not None or is_late:
            self._on_unknown(sender, message)
            return
        self._take(sender, message, None)

    def _take(self, sender: PeerId, message: Accept, register: Register | None) -> None:
        new = accepted_by(self._me, register, message)
        base = None if is_whole(message) or new.is_stateless else message.base
        change = None if new.is_stateless else message.change
        asked = (sender, message)
        self.order(message.object_id, new, base=base, change=change, asked=asked)

    def _accepted(
        self, sender: PeerId, message: Accept, before: Register | None
    ) -> None:
        object_id = message.object_id
        register = self.registers[object_id]
        is_new_state = message.change is not None or message.is_deleted
        if is_new_state and before is not None and not before.is_stateless:
            self._desk.emit(StateReplaced(object_id))
        self._answer_accept(sender, message, message.number)
        if before is None or before.config != register.config:
            # The places of its members are told anew.
            self._desk.emit(
                Followed(object_id, sender, message.epoch.counter, register.config)
            )
            if sender not in electorate(register.config):
                self._hooks.on_leaving(object_id)

    def _answer_accept(self, sender: PeerId, message: Accept, number: int) -> None:
        object_id = message.object_id
        self._desk.send(sender, Accepted(object_id, message.epoch, number))
        self._hooks.on_led_by(object_id, message.epoch)
        self._hear(object_id, message.epoch, message.committed)

    # Reading, and what is committed

    def on_confirm(self, sender: PeerId, message: Confirm) -> None:
        """Say whether a leader's epoch is the newest here. Source: R6."""
        register = self.latest(message.object_id)
        if sender != message.epoch.leader:
            return
        if register is None or self._desk.is_distrusted:
            self._nack(sender, message, Reason.UNKNOWN, None)
        elif register.is_quarantined:
            self._nack(sender, message, Reason.LINEAGE, register)
        elif register.promised == message.epoch:
            object_id, epoch = message.object_id, message.epoch
            self._desk.send(sender, Confirmed(object_id, epoch, message.round))
            self._hear(object_id, epoch, message.committed)
        elif register.promised.counter < message.epoch.counter:
            self._nack(sender, message, Reason.BASE, register)
        else:
            self._nack(sender, message, Reason.PROMISED, register)

    def on_committed(self, sender: PeerId, message: Committed) -> None:
        """Note what a leader says is committed."""
        if sender == message.epoch.leader:
            object_id = message.object_id
            at_s = self._desk.now_s - message.age_ms / 1000
            self._hear(object_id, message.epoch, message.number, vouched_s=at_s)

    def _hear(
        self,
        object_id: ObjectId,
        epoch: Ballot,
        committed: int,
        *,
        vouched_s: float | None = None,
    ) -> None:
        """Note that a majority had this number when its leader said so.

        `vouched_s`: since when, None where it came with something else: then nobody
        knows, as the leader may be cut off and teach those that are with it.
        """
        register = self.registers.get(object_id)
        if register is None or register.epoch != epoch:
            return
        heard = self._heard.get(object_id)
        is_same = heard is not None and heard.epoch == epoch
        known = heard.committed if heard is not None and is_same else 0
        at_s = heard.at_s if heard is not None else None
        if vouched_s is not None and register.number >= committed:
            at_s = vouched_s if at_s is None else max(at_s, vouched_s)
        self.was_heard(object_id, Heard(epoch, max(known, committed), at_s))

    def on_fetch(self, sender: PeerId, message: Fetch) -> None:
        """Send the state to whom it was promised."""
        register = self.latest(message.object_id)
        if sender != message.epoch.leader:
            return
        if register is None or self._desk.is_distrusted or not register.has_state:
            self._nack(sender, message, Reason.UNKNOWN, None)
        elif register.is_quarantined or register.promised != message.epoch:
            self._nack(sender, message, Reason.PROMISED, register)
        else:
            object_id, epoch = message.object_id, message.epoch
            state = State(
                object_id, epoch, register.point, register.config, register.is_deleted
            )
            self._desk.emit(SendWhole(sender, state))

    def on_ask(self, sender: PeerId, message: Ask) -> None:
        """Tell what is known of an object."""
        self._desk.send(sender, self.told(message.object_id))
        self._hooks.on_asked(message.object_id, sender)

    def told(self, object_id: ObjectId) -> Told:
        """Return what is known of an object; a plain one is led by its only holder."""
        register = self.latest(object_id)
        if register is None or self._desk.is_distrusted:
            counter = None if self._desk.is_distrusted else self._plain(object_id)
            if counter is None:
                return Told(object_id, Ballot(), Point(), None, False)
            ballot = Ballot(counter, self._me)
            config = Config(counter, (self._me,))
            return Told(object_id, ballot, Point(counter), config, True)
        led = self._hooks.told_config(object_id)
        config = register.config if led is None else led
        is_led = led is not None
        return Told(object_id, register.promised, register.point, config, is_led)

    # Who does not take part

    def note_refusal(self, sender: PeerId, message: Nack) -> None:
        """Keep a voter's refusal, for what is told people."""
        register = self.registers.get(message.object_id)
        if register is None or sender not in electorate(register.config):
            return
        # Of one lineage by now: what it refused was asked before this peer was forced.
        is_old = message.config and message.config.lineage == register.config.lineage
        if message.reason is not Reason.LINEAGE or not is_old:
            self._desk.refusals.note(sender, message)

    def why_each(self, object_id: ObjectId) -> list[tuple[PeerId, str]]:
        """Return the voters of a group that do not take part, each with why."""
        register = self.latest(object_id)
        if register is None:
            return []
        voters = electorate(register.config)
        reachable = self._desk.reachable(voters) | {self._me}
        mine = [(self._me, DAMAGED)] if register.is_lost else []
        return mine + self._desk.refusals.of(object_id, voters, reachable)

    # Going

    def _on_state_lost(self, event: StateLost) -> None:
        """Vote on as a witness does: what was promised and accepted holds."""
        if self._defer(NOBODY, event):
            return
        register = self.registers.get(event.object_id)
        if register is None or register.is_stateless or register.is_deleted:
            return
        if register.is_lost:
            self._tell_lost(event.object_id, register)
        else:
            lost = register._replace(is_lost=True)
            then = partial(self._on_loss_stored, event.object_id, lost)
            self.order(event.object_id, lost, then=then)

    def _on_loss_stored(
        self, object_id: ObjectId, register: Register, problem: str
    ) -> None:
        # This peer may have become its leader while that was being written.
        self._hooks.on_state_lost(object_id)
        if not problem:
            self._tell_lost(object_id, register)

    def _tell_lost(self, object_id: ObjectId, register: Register) -> None:
        """Ask the leader for the whole; it may be lost, and is said again when told so."""
        epoch, number = register.promised, register.number
        if epoch.leader and epoch.leader != self._me:
            nack = Nack(object_id, epoch, number, Reason.LOST, epoch)
            self._desk.send(epoch.leader, nack)

    def _on_drop(self, sender: PeerId, message: Drop) -> None:
        object_id = message.object_id
        register = self.latest(object_id)
        if not self.believes(sender, message):
            return
        if register is not None:
            # It is committed: who is named in it as one of before is so to believe it.
            epoch, config = message.epoch, message.config._replace(before=())
            self.learn_config(sender, object_id, epoch, config, is_drop=True)
        # A drop that waits for the disk is answered when its leader says it again.
        self._desk.send(sender, self.told(object_id))

    def learn_config(
        self,
        leader: PeerId,
        object_id: ObjectId,
        epoch: Ballot,
        config: Config,
        *,
        is_drop: bool = False,
    ) -> None:
        """Take a committed config from its leader: a copy that is no member goes.

        Who voted for a config without itself knows its version, and goes once that is
        committed without its vote. One who was to become a member knows the same version
        too: it goes by a Drop only.
        """
        register = self.latest(object_id)
        if register is None or leader != epoch.leader:
            return
        if config.lineage != register.config.lineage:
            self.meet_lineage(object_id, config.lineage)
            return
        is_member = self._me in electorate(config)
        if is_member or register.is_quarantined or self.is_busy(object_id):
            return
        # A leader has found all that was committed before its epoch, and whoever is made
        # a member by it, or later, has a state of its epoch, or of a later one, first.
        told = (epoch.counter, config.version)
        known = (register.epoch.counter, register.config.version)
        is_taught = not register.is_voter and register.promised.counter <= told[0]
        is_over = bool(register.config.before) or (is_drop and is_taught)
        if told > known or (told == known and is_over):
            self._hooks.on_overtaken(object_id, epoch)
            self._desk.emit(Followed(object_id, leader, epoch.counter, config))
            self.remove(object_id, config.version)

    def remove(self, object_id: ObjectId, left: Forget | int) -> None:
        """Remove everything of an object; late messages do not bring it back."""
        assert object_id not in self._busy
        self._desk.emit(Remove(object_id, is_deleted=isinstance(left, Forget)))
        self.release(object_id, left)

    def release(self, object_id: ObjectId, left: Forget | int) -> None:
        """Forget a register that somebody else removes."""
        self.drop(object_id)
        self._heard.pop(object_id, None)
        self._vouches.forget(object_id)
        self._pledges.pop(object_id, None)
        self._told.pop(object_id, None)
        self._left[object_id] = left
        if len(self._left) > REMEMBERED_MAX:
            self._left.popitem(last=False)
        self._hooks.on_gone(object_id)

    def _on_forget(self, sender: PeerId, message: Forget) -> None:
        object_id = message.object_id
        register = self.latest(object_id)
        if not self.believes(sender, message):
            return
        if register is not None:
            if self._defer(sender, message):
                return
            # Who was replaced before has a state that is older than the delete.
            is_older = register.point <= Point(message.epoch.counter, message.number)
            is_over = register.is_deleted or is_older
            is_same = message.lineage == register.config.lineage
            if is_over and is_same and not register.is_quarantined:
                self.remove(object_id, message)
        self._desk.send(sender, self.told(object_id))

    def learn_deleted(self, object_id: ObjectId, lineage: int) -> None:
        """Let a copy go whose object was deleted while nobody knew of the copy.

        Of another lineage it is kept: as history, or as what an operator wanted to stay.
        """
        register = self.latest(object_id)
        if register is None or register.is_quarantined or self.is_busy(object_id):
            return
        if lineage != register.config.lineage:
            self.meet_lineage(object_id, lineage)
            return
        self._hooks.on_overtaken(object_id, register.promised)
        left = Forget(object_id, register.promised, register.number, lineage)
        self.remove(object_id, left)

    def meet_lineage(self, object_id: ObjectId, lineage: int) -> None:
        """Take note of a lineage: a higher one is newer, and the copy here history."""
        register = self.latest(object_id)
        if register is None or register.is_quarantined or self.is_busy(object_id):
            return
        if lineage <= register.config.lineage:
            return
        if register.is_stateless:
            self.remove(object_id, 0)  # A vote without a state is no history.
            return
        self._hooks.on_quarantined(object_id)
        text = f"replica quarantined object={object_id.hex()} newer_lineage={lineage}"
        self._desk.emit(Note("WARNING", text))
        self.order(object_id, register._replace(is_quarantined=True))

    def check(self) -> None:
        """Make sure that nothing goes back, and that everything is bounded."""
        for register in self.registers.values():
            assert register.promised.counter >= register.epoch.counter
            assert register.promised.counter > register.epoch.counter or (
                register.promised == register.epoch
            )
            assert register.number >= 0
        registers = self.registers.items()
        quarantined = {one for one, register in registers if register.is_quarantined}
        assert self.quarantined.keys() == quarantined
        witnessed = {one for one, r in registers if r.config.witness == self._me}
        deleted = {one for one, register in registers if register.is_deleted}
        assert self.deleted == deleted - quarantined
        assert self.witnessed == witnessed - quarantined - deleted
        counts: dict[ObjectId, int] = {}
        for order in self._orders.values():
            counts[order.object_id] = counts.get(order.object_id, 0) + 1
        for object_id, busy in self._busy.items():
            assert busy.count == counts.pop(object_id, 0) + len(busy.writes)
            assert len(busy.deferred) <= DEFERRED_MAX
        assert not counts, "orders of objects that are not busy"
        assert len(self._left) <= REMEMBERED_MAX
        assert self._told.keys() <= self.registers.keys() | self._busy.keys()
        self._vouches.check(self.registers)
