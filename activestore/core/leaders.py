"""All objects that this peer leads: writes, reads, changes of groups, deletes.

Rules of this file: it never decides who leads; it is told, and it lets go at once when
another was promised a newer epoch. Whatever a majority must answer is bounded in time.

Source: reliability.md 3.4 R4 to R10; decision 11.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from activestore.core import groups, refusals
from activestore.core.acceptor import Acceptor
from activestore.core.groups import Plan
from activestore.core.lead_endings import LeadEndings
from activestore.core.lead_members import NOTHING, Entry, Mode
from activestore.core.leading import Lead
from activestore.core.register import Register, electorate, has_quorum, missing_votes
from activestore.core.replication_desk import Desk, Wake, shown_config
from activestore.core.replication_effects import (
    GroupChanged,
    GroupDone,
    Led,
    ReadDone,
    Unshared,
    WriteDone,
)
from activestore.core.replication_events import GroupWanted
from activestore.ids import ObjectId, PeerId
from activestore.wire.replicas import (
    NOBODY,
    VOTERS_MAX,
    Ballot,
    Config,
    Confirmed,
    Drop,
    Nack,
    Point,
    Reason,
    Told,
)

# Changes of one group that wait for each other; more are refused.
PLANS_MAX = 16
# For these reasons a learner is given up: it would say so again.
FINAL = frozenset({Reason.SPACE, Reason.REQUIREMENT, Reason.LINEAGE, Reason.STRANGER})
# A learner that is out of reach for so long is given up, in seconds.
UNREACHABLE_S = 5.0


class Leaders(LeadEndings):
    """The leads of one peer."""

    def __init__(
        self,
        desk: Desk,
        acceptor: Acceptor,
        on_led: Callable[[ObjectId, Ballot], None],
        on_lost: Callable[[ObjectId, PeerId, bool], None],
    ) -> None:
        super().__init__(desk, acceptor, on_lost)
        self._on_led = on_led

    # Beginning

    def begin(
        self, object_id: ObjectId, register: Register, *, is_growing: bool
    ) -> Lead:
        """Lead an object whose register only this peer has; the caller writes it."""
        lead = self._new(object_id, register)
        lead.floor, lead.acked = register.point, register.number
        lead.committed = register.number
        lead.is_growing = is_growing
        self._be_led(lead)
        return lead

    def recommit(
        self, object_id: ObjectId, register: Register, base: Point, at: set[PeerId]
    ) -> None:
        """Have the newest state accepted again under a new epoch; lead when it is.

        `register`: is on this disk already; `base`: what it was accepted as before;
        `at`: who promised, and has it at that point.

        Source: reliability.md R3.
        """
        lead = self._new(object_id, register)
        entry = Entry(
            register.number,
            register.config,
            None,
            is_deleted=register.is_deleted,
            size=0,
        )
        entry.base = base
        lead.know_members(at)
        lead.add(entry)
        lead.settle(register.number, is_refused=False)
        self._after(lead)

    def _be_led(self, lead: Lead) -> None:
        lead.is_settled = True
        lead.is_closing = self._desk.me not in lead.config.voters
        self._on_led(lead.object_id, lead.ballot)
        if not lead.is_closing:
            self.led.add(lead.object_id)
            self._desk.emit(Led(lead.object_id, lead.ballot.counter, lead.config))
        if lead.is_deleted:
            self._deleted[lead.object_id] = lead.committed
        if lead.config.before:
            self._finish_change(lead, lead.config)
        elif lead.is_deleted:
            self._forget_if_all(lead)
        else:
            self._unshare_if_alone(lead)

    def on_written(self, object_id: ObjectId, number: int, *, is_refused: bool) -> None:
        """Take what this disk did with a write; what it has goes to the members."""
        lead = self.leads.get(object_id)
        if lead is None:
            return
        lead.settle(number, is_refused=is_refused)
        if is_refused and lead.is_deleted:
            lead.is_deleted = any(entry.is_deleted for entry in lead.entries)
        self._after(lead)

    def _on_proposed(
        self, object_id: ObjectId, register: Register, problem: str
    ) -> None:
        """Take that a change of the group is on this disk, or that it failed."""
        lead = self.find(object_id, register.epoch)
        if lead is None:
            return
        # A write that was numbered later may have come to the disk before: then the
        # change has come with it.
        is_carried = any(
            entry.number > register.number and entry.config == register.config
            for entry in lead.entries
        )
        if problem and not is_carried:
            self.depose(object_id)
            return
        lead.settle(register.number, is_refused=bool(problem))
        self._after(lead)

    def undo_begin(self, object_id: ObjectId, number: int) -> None:
        """Make an object plain again whose first register this disk refused."""
        register = self._acceptor.registers.get(object_id)
        if register is None or register.number != number:
            return
        if self._acceptor.is_busy(object_id):
            return
        if object_id in self.leads:
            self._end(object_id)
        counter = register.config.version
        self._acceptor.release(object_id, counter)
        self._desk.emit(Unshared(object_id, counter))

    def _after(self, lead: Lead) -> None:
        """Draw the conclusions of what was acknowledged."""
        object_id = lead.object_id
        done = lead.reach_committed()
        self._note_lagging(lead)
        if done:
            if not lead.is_settled:
                lead.committed_config = done[0].config
                self._be_led(lead)
            else:
                self._desk.emit(WriteDone(object_id, lead.committed))
            for entry in done:
                if self.leads.get(object_id) is lead:
                    self._on_committed_entry(lead, entry)
        if self.leads.get(object_id) is lead:
            lead.trim()
            self._go_on(lead)

    def _on_committed_entry(self, lead: Lead, entry: Entry) -> None:
        if entry.is_deleted and lead.object_id not in self._deleted:
            self._deleted[lead.object_id] = entry.number
            self._end_plans(lead.object_id, "it was deleted")
        if entry.config != lead.committed_config:
            self._finish_change(lead, entry.config)

    # Answers

    def on_accepted(
        self, peer_id: PeerId, object_id: ObjectId, epoch: Ballot, number: int
    ) -> None:
        """Take that a member has a state on disk."""
        lead = self.find(object_id, epoch)
        if lead is not None:
            lead.on_accepted(peer_id, number)
            self._after(lead)

    def on_confirmed(self, peer_id: PeerId, message: Confirmed) -> None:
        """Take that a voter has promised nobody else."""
        lead = self.find(message.object_id, message.epoch)
        done = None if lead is None else lead.on_confirmed(peer_id, message.round)
        if done is not None:
            self._desk.emit(ReadDone(message.object_id, done))

    def on_nack(self, peer_id: PeerId, message: Nack) -> None:
        """Take that a member did not take something; a newer epoch ends this one."""
        lead = self.find(message.object_id, message.epoch)
        if lead is None or peer_id not in lead.members:
            return
        is_over = message.reason in (Reason.PROMISED, Reason.STRANGER)
        if is_over and peer_id in electorate(lead.config):
            self.depose(message.object_id)
            return
        if message.reason in FINAL and self._is_learning(lead, peer_id):
            self._give_up_learner(lead, refusals.text_of(message))
            return
        lead.on_nack(peer_id, message)
        self._note_lagging(lead)
        if message.object_id in self._hands:
            self._hand_over(lead)

    def on_told(self, peer_id: PeerId, message: Told) -> None:
        """Take that a peer dropped its copy, or keeps it as history."""
        object_id = message.object_id
        waiting = self._leaving.get(object_id)
        order = None if waiting is None else waiting.get(peer_id)
        if waiting is None or order is None:
            return
        is_gone = message.config is None
        if isinstance(order, Drop) and message.config is not None:
            is_gone = message.config.lineage != order.config.lineage
        if not is_gone:
            return
        del waiting[peer_id]
        if not waiting:
            del self._leaving[object_id]
        lead = self.leads[object_id]
        if peer_id not in lead.members:
            self._forget_lagging(object_id, peer_id)
        if isinstance(order, Drop):
            self._unshare_if_alone(lead)
        elif object_id not in self._leaving:
            self._forget(lead)

    # Changes of the group

    def want(self, event: GroupWanted) -> None:
        """Begin, or queue, a change of a group."""
        lead = self.leads.get(event.object_id)
        error = ""
        if event.wanted + event.wants_witness > VOTERS_MAX:
            error = f"{event.wanted} copies: a group has {VOTERS_MAX} voters at most"
        elif lead is None or not lead.is_led or self._is_too_late(lead, event):
            error = "it is not led here: ask its leader"
        if error or lead is None:
            self._desk.emit(GroupDone(event.request, event.object_id, error))
            return
        plans = self._plans.setdefault(event.object_id, deque())
        if len(plans) >= PLANS_MAX:
            error = f"{PLANS_MAX} changes of its group wait already: try again later"
            self._desk.emit(GroupDone(event.request, event.object_id, error))
            return
        plans.append(Plan(event))
        self._go_on(lead)

    def _go_on(self, lead: Lead) -> None:
        """Take the next step of whatever is to be done besides calls."""
        if not lead.is_settled:
            return
        config = lead.committed_config
        if self._desk.me not in electorate(config):
            # A witness may have heard of a write whose only state is here.
            if lead.is_quiet and lead.config == config:
                self._leave(lead)
            return
        if lead.object_id in self._deleted:
            self._forget_if_all(lead)
        if lead.object_id in self._plans:
            self._go_on_with_plan(lead)
        elif not lead.is_deleted:
            self._unshare_if_alone(lead)
        if lead.object_id in self._hands:
            self._hand_over(lead)

    def _go_on_with_plan(self, lead: Lead) -> None:
        plan = self._plans[lead.object_id][0]
        if lead.config != lead.committed_config or lead.config.before:
            return  # One change at a time.
        plan.begin(lead.config)
        if plan.learner:
            if self._has_learned(lead, plan.learner):
                config = groups.with_learner(plan, lead.config)
                if self._is_committable(config):
                    lead.learners.pop(plan.learner)
                    plan.learner = NOBODY
                    self._propose(lead, config)
                else:
                    self._give_up_learner(lead, self._why_stopped(config))
            return
        if lead.is_deleted:  # Nobody is to learn of it, nor to leave but who is to.
            plan.wanted = max(plan.wanted, len(groups.stays(plan, lead.config)))
            self._shrink(lead, plan)
            return
        is_short = groups.lacks_member(plan, lead.config)
        if is_short or groups.lacks_witness(plan, lead.config):
            self._teach(lead, plan, is_witness=not is_short)
            return
        self._shrink(lead, plan)

    def _shrink(self, lead: Lead, plan: Plan) -> None:
        """Have the next one go, whoever is of the least use; or end the plan.

        A config that cannot be committed now is not begun: nothing could be written any
        more, nor could another leader undo it.
        """

        def rank(peer: PeerId) -> tuple[bool, bool, int]:
            is_witness = peer == lead.config.witness
            return self._desk.is_reachable(peer), not is_witness, lead.reached(peer)

        going = groups.victims(plan, lead.config, self._desk.me, rank)
        configs = [groups.without(plan, lead.config, one) for one in going]
        if not configs:
            config = groups.noted(plan, lead.config)
            if config is None:
                self._end_plan(lead, plan)
            else:
                self._propose(lead, config)
            return
        config = next(filter(self._is_committable, configs), None)
        if config is None:
            plan.stopped = self._why_stopped(configs[0])
            self._end_plan(lead, plan)
        elif self._desk.me in config.voters or self._close(lead):
            self._propose(lead, config)

    def _is_committable(self, config: Config) -> bool:
        reachable = self._desk.reachable(electorate(config)) | {self._desk.me}
        return has_quorum(config, reachable)

    def _why_stopped(self, config: Config) -> str:
        reachable = self._desk.reachable(electorate(config)) | {self._desk.me}
        present, needed = missing_votes(config, reachable)
        shown = shown_config(config)
        return f"a group of {shown}: {present} voters answer, {needed} must"

    @staticmethod
    def _has_learned(lead: Lead, learner: PeerId) -> bool:
        """Return whether a new member has all that is committed."""
        member = lead.members.get(learner)
        if member is None or member.mode is not Mode.LIVE:
            return False
        return member.acked >= lead.committed > NOTHING

    def _teach(self, lead: Lead, plan: Plan, *, is_witness: bool) -> None:
        """Send the state to the next candidate, or say that there is none."""
        candidate = groups.next_candidate(plan, lead.config)
        while candidate and not self._desk.is_reachable(candidate):
            plan.refused.append(f"{candidate.hex()[:8]} is out of reach")
            candidate = groups.next_candidate(plan, lead.config)
        if not candidate:
            changed = groups.changing_roles(plan, lead.config, self._desk.me)
            if changed is not None and self._may_change_roles(*changed):
                plan.candidates.append(changed[0])
                self._propose(lead, changed[1])
                return
            config = groups.noted(plan, lead.config)
            if config is not None:  # The goal stays: repair grows again.
                self._propose(lead, config)
            else:
                self._end_plan(lead, plan)
            return
        if lead.dropped.get(candidate) == lead.config.version:
            # That it is to drop its copy may come late: a newer version tells the two
            # copies from each other.
            plan.candidates.appendleft(candidate)
            config = lead.config
            members, witness = config.members, config.witness
            self._propose(lead, groups.changed(plan, config, members, witness))
            return
        plan.learner, plan.is_witness = candidate, is_witness
        plan.deadline_s = self._desk.now_s + self._desk.config.learner_wait_s
        lead.learners[candidate] = is_witness
        waiting = self._leaving.get(lead.object_id)
        if waiting is not None:
            waiting.pop(candidate, None)
        lead.know_members(set())
        lead.offer(candidate)
        self._note_lagging(lead)
        self._desk.wake(UNREACHABLE_S, Wake.PLAN, lead.object_id)

    def _may_change_roles(self, peer_id: PeerId, config: Config) -> bool:
        return self._desk.is_reachable(peer_id) and self._is_committable(config)

    def on_plan_late(self, object_id: ObjectId) -> None:
        """Give up a learner that takes too long, or is out of reach."""
        lead, plans = self.leads.get(object_id), self._plans.get(object_id)
        if lead is None or not plans or not plans[0].learner:
            return
        if not self._desk.is_reachable(plans[0].learner):
            self._give_up_learner(lead, "out of reach")
        elif self._desk.now_s >= plans[0].deadline_s:
            self._give_up_learner(lead, "too slow")
        else:
            self._desk.wake(UNREACHABLE_S, Wake.PLAN, object_id)

    def _is_learning(self, lead: Lead, peer_id: PeerId) -> bool:
        """Return whether a peer is being taught now, by a plan that goes on."""
        plans = self._plans.get(lead.object_id)
        is_taught = plans is not None and plans[0].learner == peer_id
        return is_taught and peer_id in lead.learners

    def _give_up_learner(self, lead: Lead, why: str) -> None:
        plan = self._plans[lead.object_id][0]
        learner, plan.learner = plan.learner, NOBODY
        plan.refused.append(f"{learner.hex()[:8]}: {why}")
        del lead.learners[learner]
        lead.know_members(set())
        self._forget_lagging(lead.object_id, learner)
        self._drop(lead, learner, lead.committed_config)
        self._go_on(lead)

    def _propose(self, lead: Lead, config: Config) -> None:
        """Write a config as the next state; nothing else of the state changes."""
        lead.config = config
        lead.know_members(set())
        before = self._acceptor.latest(lead.object_id)
        assert before is not None
        register = self._numbered(lead, config, None, size=0)
        then = partial(self._on_proposed, lead.object_id, register)
        self._acceptor.order(lead.object_id, register, base=before.point, then=then)

    def _finish_change(self, lead: Lead, config: Config) -> None:
        """A config is committed: by both majorities first, then on its own."""
        before, lead.committed_config = lead.committed_config, config
        if config.before:
            self._propose(lead, config._replace(before=()))
            return
        self._desk.emit(GroupChanged(lead.object_id, config))
        for peer_id in before.before:
            if peer_id not in config.voters and peer_id != self._desk.me:
                self._forget_lagging(lead.object_id, peer_id)
                self._drop(lead, peer_id, config)
        if self._desk.me in config.voters:
            self._unshare_if_alone(lead)
        # Else it goes when nothing is under way: see _go_on.

    def _leave(self, lead: Lead) -> None:
        """This peer is no member any more: the best that stays leads next."""
        object_id, config = lead.object_id, lead.committed_config
        plans = self._plans.get(object_id)
        if plans:
            plan = plans.popleft()
            self._desk.emit(GroupDone(plan.request, object_id))
            if not plans:
                del self._plans[object_id]
        ranked = sorted(config.members, key=lambda peer: -lead.reached(peer))
        lead.tell_committed()
        self._tell_handed(lead, ranked[0])
        self.depose(object_id, ranked[0])

    def _end_plan(self, lead: Lead, plan: Plan) -> None:
        object_id, config = lead.object_id, lead.committed_config
        plans = self._plans[object_id]
        plans.popleft()
        if not plans:
            del self._plans[object_id]
        error = plan.stopped
        is_short = groups.lacks_member(plan, config)
        if not (error or lead.is_deleted) and (
            is_short or groups.lacks_witness(plan, config)
        ):
            copies = len(groups.stays(plan, config))
            why = "; ".join(plan.refused) or "there is no other peer that may take one"
            error = f"{copies} of {plan.wanted} copies"
            if plan.wants_witness:
                error += " and a witness" if config.witness else ", no witness"
            error += f": {why}"
        self._desk.emit(GroupDone(plan.request, object_id, error))
        lead.is_growing = False
        if plan.stopped and lead.is_closing:
            self.depose(
                object_id
            )  # It takes no calls any more: whoever can, leads next.
            return
        self._unshare_if_alone(lead)
        if self.leads.get(object_id) is lead:
            self._go_on(lead)

    def _unshare_if_alone(self, lead: Lead) -> None:
        """Make an object plain again once nobody else has, or is to have, a copy."""
        object_id, config = lead.object_id, lead.committed_config
        is_wanted = config.wanted > 1 or config.wants_witness or config.lineage
        is_alone = config.voters == (self._desk.me,) and not config.before
        is_open = object_id in self._plans or object_id in self._leaving
        is_open = is_open or lead.is_growing
        if not lead.is_settled or not is_alone or is_wanted or is_open:
            return
        if not lead.is_quiet or self._acceptor.is_busy(object_id) or lead.is_deleted:
            return
        # Versions go on from there: see begin.
        counter = max(lead.ballot.counter, config.version)
        self._end(object_id)
        self._acceptor.release(object_id, config.version)
        self._desk.emit(Unshared(object_id, counter))

    # Those who are to hear that they are out

    def _drop(self, lead: Lead, peer_id: PeerId, config: Config) -> None:
        lead.dropped[peer_id] = config.version
        if config.lineage:  # Another part of the group may not know who was forced.
            config = config._replace(before=(peer_id,))
        order = Drop(lead.object_id, lead.ballot, config)
        self._tell_leaving(lead.object_id, peer_id, order)

    def tell_forced(self, lead: Lead, before: Config) -> None:
        """Tell the members of the lineage before that it is history."""
        for peer_id in electorate(before):
            if peer_id != self._desk.me:
                self._drop(lead, peer_id, lead.config)

    # Time, and peers that come back

    def on_wake(self, what: Wake, object_id: ObjectId) -> None:
        """Do what is due for an object, if it is led still."""
        lead = self.leads.get(object_id)
        if what is Wake.CATCH_UP:
            self._catch_up()
        elif lead is None:
            return
        elif what is Wake.RESEND:
            lead.on_resend()
            self._retell(object_id)
            self._go_on(lead)
        elif what is Wake.QUORUM_WAIT:
            if lead.is_in_doubt():
                self.depose(object_id, is_unanswered=True)
        elif what is Wake.COMMITTED:
            self._tell_committed(lead)
        elif what is Wake.RETRY_SPACE:
            lead.retry_full()
        elif what is Wake.PLAN:
            self.on_plan_late(object_id)
        elif what is Wake.HAND_OVER:
            self.on_hand_late(object_id)

    def check(self) -> None:
        """Make sure that what is led is what is promised here."""
        for object_id, lead in self.leads.items():
            lead.check()
            register = self._acceptor.latest(object_id)
            assert register is not None
            assert register.promised == register.epoch == lead.ballot
            assert lead.ballot.leader == self._desk.me
            if self._acceptor.is_busy(object_id):
                continue
            assert register.number == lead.acked
        assert self.led == {one for one, lead in self.leads.items() if lead.is_led}
        for tables in (self._plans, self._hands, self._leaving, self._deleted):
            assert tables.keys() <= self.leads.keys()
