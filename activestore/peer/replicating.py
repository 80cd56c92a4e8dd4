"""Replica groups: what the core of replication wants, carried out at disk and links.

    a write here   numbered -> on this disk, with its register -> Accept to the others
                   -> a majority has it -> Committed to the invocation core
    at a member    Accept -> on its disk -> Accepted
    leader gone    a request that waits here, or membership's word -> the core takes over
                   -> Led: what waited goes on

Rules of this file: it decides nothing about epochs and majorities. Nothing is said to
another peer before the row that it relies on is on disk; a request that waits here hears
an end of it, always.

Source: design section 8; reliability.md section 3; schemas/protocol.md section 14.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from activestore.core import events
from activestore.core import replication_effects as wanted
from activestore.core import replication_events as happened
from activestore.core.effects import Note
from activestore.core.location import Place
from activestore.core.register import Register
from activestore.core.replication import Replication
from activestore.errors import (
    ActiveStoreError,
    BusyError,
    NoQuorumError,
    UnavailableError,
)
from activestore.ids import ObjectId, PeerId
from activestore.peer import group_orders, shipping
from activestore.peer.cluster import Cluster
from activestore.peer.copying import TEXT_CHARS_MAX, Copying
from activestore.peer.dating import Dating
from activestore.peer.fetching import Fetching
from activestore.peer.greeting import spoke_for_others
from activestore.peer.group_orders import Decided, GroupOrder, OwnWrites, size_of
from activestore.peer.links import Link
from activestore.peer.mending import Mending
from activestore.peer.places import Places
from activestore.peer.posting import Outbox
from activestore.peer.relays import Relays
from activestore.peer.table import Table
from activestore.storage.engine import Change, Engine
from activestore.wire.messages import Replicate
from activestore.wire.replicas import (
    NOBODY,
    Accept,
    Config,
    Nack,
    Reason,
    decode_entries,
)
from activestore.wire.state import ObjectState

# Requests that wait for one object to be led.
PARKED_MAX = 1024
# When one that found no room there may come again, in seconds.
AGAIN_S = 1.0

# A round that is not confirmed before the lead is known to be over.
NEVER = 1 << 62

Then = Callable[[str], None]


class Replicating:
    """All replica groups that one peer is in."""

    def __init__(
        self,
        table: Table,
        cluster: Cluster,
        relays: Relays,
        places: Places,
        fetching: Fetching,
        core: Replication,
    ) -> None:
        self._table = table
        self._fetching = fetching
        self._cluster = cluster
        self._places = places
        self._location = cluster.location
        self._me = PeerId(table.settings.peer_id)
        self.core = core
        self._due_s = float("inf")
        self._to_do: deque[Any] = deque()
        self._is_carrying = self._is_distrusted = False
        self.mending = Mending(table, self)
        self._outbox = Outbox(table, cluster, relays, self.mending.met)
        # Commits whose writes a majority must have, by token; and by object, in order.
        self._orders: dict[int, GroupOrder] = {}
        # those that are not on this disk yet, and those that no majority has.
        self._lines: dict[ObjectId, deque[GroupOrder]] = {}
        self._waiting: dict[ObjectId, deque[tuple[int, GroupOrder]]] = {}
        self.dating = Dating(table)
        self.copying = Copying(table, self.dating, self.step, core.take_unkept)
        self._has_rounds = False
        # Of which somebody has refused something; `repairing` looks for whom, and why.
        self.refused: set[ObjectId] = set()
        # Objects that are deleted, and whose registers are kept until all know it.
        self._deleted: set[ObjectId] = set()
        # Requests that wait for an object to be led, here or elsewhere.
        self._parked: dict[ObjectId, list[Decided]] = {}
        self._regroupings = group_orders.Regroupings()
        self._own = OwnWrites()
        # Whether an object is about to be given to another peer.
        self.is_moving: Callable[[ObjectId], bool] = lambda object_id: False
        # Called with an object that this peer leads now.
        self.on_led: Callable[[ObjectId], None] = lambda object_id: None
        # Has what was made with a write of an object get copies where that has them.
        self.share_children: Callable[
            [Sequence[ObjectId], ObjectId | None, Callable[[], None]], None
        ] = lambda children, parent, then: then()
        self._effects: dict[type, Callable[[Any], None]] = {
            wanted.Send: lambda e: self._outbox.add(e.peer_id, e.message),
            wanted.SendWhole: lambda e: self._outbox.add_whole(e.peer_id, e.message),
            wanted.Store: self._do_store,
            wanted.Remove: self._do_remove,
            wanted.Led: self._do_led,
            wanted.Deposed: self._do_deposed,
            wanted.Followed: self._do_followed,
            wanted.StateReplaced: self._do_state_replaced,
            wanted.WriteDone: self._do_write_done,
            wanted.ReadDone: self._do_read_done,
            wanted.NoQuorum: self._do_no_quorum,
            wanted.Unanswered: lambda e: table.step(events.ObjectUnanswered(*e)),
            wanted.GroupDone: self._do_group_done,
            wanted.GroupChanged: self._do_group_changed,
            wanted.Refused: lambda e: spoke_for_others(table, cluster, e),
            wanted.Unshared: self._do_unshared,
            Note: lambda e: table.note(e.level, e.text),
        }

    # -- at start, and time ------------------------------------------------------------

    def restore(self, engine: Engine) -> None:
        """Read from disk which groups this peer is in; it leads none of them yet."""
        found = list(shipping.registers_of(engine))
        self.dating.restore(engine, [vouch for *_, vouch in found])
        for object_id, register, vouch in found:
            if register is None:
                self._distrust(object_id)
                continue
            self.core.restore(object_id, register, self.dating.heard(register, vouch))
            self._location.guests.discard(object_id)
            self._follow(object_id, self._nobodys_place(register), register.config)
            if register.is_deleted:
                self._deleted.add(object_id)
        self.carry_out(self.core.take_effects())

    def _distrust(self, object_id: ObjectId) -> None:
        """Neither promise nor lead an object whose register cannot be read (R9)."""
        self.core.restore(object_id, None)
        self._location.guests.discard(object_id)
        self._location.follow(object_id, Place(NOBODY, 0))
        text = f"register damaged, this copy has no vote object={object_id.hex()}"
        self._table.note("error", text)

    def distrust(self) -> None:
        """Neither vote nor lead any more: what was promised here may be forgotten (R9)."""
        self._is_distrusted = True
        self.core.distrust()
        self.carry_out(self.core.take_effects())

    def next_s(self) -> float:
        """Return when `turn` is due."""
        return self._due_s

    def turn(self, now_s: float) -> None:
        """Let time pass, and send what has gathered."""
        if now_s >= self._due_s:
            self.step(happened.TimerFired())
        if self._has_rounds:
            # One question for all reads that came with this turn.
            self._has_rounds = False
            self.carry_out(self.core.take_effects(self._table.clock()))
        self._outbox.flush()

    def step(self, event: happened.ReplicationEvent) -> None:
        """Step the core and carry its effects out."""
        self.carry_out(self.core.step(event, self._table.clock()))

    def carry_out(self, ordered: Sequence[Any]) -> None:
        """Carry effects out in order; those of a step that one of them leads to, behind."""
        self._to_do.extend(ordered)
        if self._is_carrying:
            return
        self._is_carrying = True
        try:
            while self._to_do:
                effect = self._to_do.popleft()
                self._effects[type(effect)](effect)
        finally:
            self._is_carrying = False
        self._set_due()

    def _set_due(self) -> None:
        deadline_s = self.core.deadline_s()
        self._due_s = float("inf") if deadline_s is None else deadline_s

    # -- other peers -------------------------------------------------------------------

    def peer_seen(self, peer_id: PeerId, is_reachable: bool) -> None:
        """Membership's word on a peer is another one."""
        self.step(happened.PeerSeen(peer_id, is_reachable))

    def link_ready(self, peer_id: PeerId) -> None:
        """What was sent to a peer before may be lost."""
        self.step(happened.LinkReady(peer_id))

    def take(self, link: Link, message: Replicate) -> None:
        """Take what a member of our groups says."""
        for entry in decode_entries(message.body, message.buffers):
            change = getattr(entry, "change", None)
            if type(entry) is Accept and entry.is_learner and self._table.is_emptying:
                self._refuse(link.peer_id, entry, "it is being drained")
                continue
            if change is None:
                if type(entry) is Nack:
                    self.refused.add(entry.object_id)
                self.step(happened.MessageCame(link.peer_id, entry))
                continue
            unpacked = shipping.unpack_change(entry.object_id, *change)
            whole = entry._replace(change=unpacked)  # type: ignore[call-arg]
            came = happened.MessageCame(link.peer_id, whole)
            if type(entry) is Accept and unpacked.state is not None:
                self._with_class(came, entry, unpacked.state)
            else:
                self.step(came)

    def _with_class(
        self, came: happened.MessageCame, message: Accept, state: ObjectState
    ) -> None:
        """Take a whole state once its code is here: its leader may be gone later."""
        if self._fetching.has(state.class_name, state.revision):
            self.step(came)
            return

        def then(error: ActiveStoreError | None) -> None:
            lacking = error or self._table.classes.missing_for(state.class_name)
            if lacking is None:
                self.step(came)
            else:
                self._refuse(came.sender, message, str(lacking))

        self._fetching.bring(state.class_name, state.revision, [came.sender], then)

    def _refuse(self, sender: PeerId, message: Accept, why: str) -> None:
        """Tell a leader that no copy of its object can be here."""
        refused = Nack(
            message.object_id, message.epoch, message.number, Reason.REQUIREMENT,
            message.epoch, None, why[:TEXT_CHARS_MAX],
        )  # fmt: skip
        self._outbox.add(sender, refused)

    # -- writes of what is led here ----------------------------------------------------

    def is_writing(self, object_id: ObjectId) -> bool:
        """Whether writes of an object are on their way to this disk."""
        return object_id in self._lines

    def is_shared(self, object_id: ObjectId) -> bool:
        """Whether others have a vote on what becomes of an object."""
        return self.core.register_of(object_id) is not None

    def order(
        self, token: int, changes: Sequence[Change], made: Sequence[ObjectId] = ()
    ) -> None:
        """Have changes committed: on this disk, and by the groups of their objects.

        `made`: by the method whose changes these are; they get copies as its object has
        them, or as this peer's settings say, before it is answered.
        """
        if self._table.core.replicated:
            if self._is_overtaken(changes[-1]):
                return  # Whoever waits for it is sent on.
            # What was to be kept for the outermost call is of no use any more.
            changes = [one for one in changes if not self._is_overtaken(one)]
        writes: dict[ObjectId, list[int]] = {}
        ordered = [self._numbered(change, writes) for change in changes]
        if writes or (made and self._table.settings.replicas > 1):
            children = [one for one in made if one not in writes]
            # The last one is what a method of it did; others keep what a retry is told.
            parent = changes[-1].object_id
            order = self._orders[token] = GroupOrder(token, writes, children, parent)
            for object_id, numbers in writes.items():
                self._lines.setdefault(object_id, deque()).append(order)
                waiting = self._waiting.setdefault(object_id, deque())
                waiting.append((numbers[-1], order))
        self._table.storage.commit(token, ordered)
        if self._regroupings.has_any(writes):
            self._table.hurry_commits()

    def write(self, change: Change, then: Decided) -> None:
        """Have a change that no call makes committed as `order` does; `then(why not)`.

        Where the lead of its object ends before a majority has it, it may be kept or not,
        and `then` gets an error.
        """
        object_id = change.object_id
        if self.is_shared(object_id) and not self.core.is_led(object_id):
            then(group_orders.not_led(object_id))
        else:
            self.order(self._own.add(then), (change,))

    def _is_lost(self, object_id: ObjectId) -> bool:
        """Whether the lead of an object is over, and the core of calls is to hear of it.

        It hears in turn: what was ordered before is told first, and calls go on by that.
        """
        is_ours = object_id in self._table.core.replicated and self.is_shared(object_id)
        return is_ours and not self.core.is_led(object_id)

    def _is_overtaken(self, change: Change) -> bool:
        """Whether a change is of no use any more; this disk answers what makes objects."""
        return not change.is_new and self._is_lost(change.object_id)

    def _numbered(self, change: Change, writes: dict[ObjectId, list[int]]) -> Change:
        object_id = change.object_id
        if change.is_new or not self.core.is_led(object_id):
            # One with a register is there already: what makes it is asked again, and the
            # disk tells whether it was done. It is no write of the group.
            return change
        change, shipment = shipping.outgoing(change)
        register = self.core.begin_write(
            object_id, shipment, is_delete=change.is_delete, size=size_of(change)
        )
        writes.setdefault(object_id, []).append(register.number)
        row = shipping.register_row(object_id, register)
        return dataclasses.replace(change, rows=(*change.rows, row))

    def stored(self, token: int, error: ActiveStoreError | None) -> bool:
        """Take the end of a commit on this disk; False where it is no group's affair."""
        order = self._orders.get(token)
        if order is None:
            return self._own.ended(token, error)
        order.is_stored = True
        if error is not None:
            self._refused(order)
            told = self.mending.met(error)
            if not self._own.ended(token, told):
                self._table.step(events.CommitRefused(token, told))
        elif order.children and (order.open or not order.writes):
            parent = order.parent if order.parent in order.writes else None
            self.share_children(order.children, parent, lambda: self._on_disk(order))
        else:
            self._on_disk(order)
        return True

    def _refused(self, order: GroupOrder) -> None:
        """Have the core know that a commit is not on this disk."""
        del self._orders[order.token]
        order.is_refused = True
        for object_id in order.writes:
            waiting = self._waiting.get(object_id, deque())
            kept = deque(one for one in waiting if one[1] is not order)
            if kept:
                self._waiting[object_id] = kept
            else:
                self._waiting.pop(object_id, None)
        self._on_disk(order)

    def _on_disk(self, order: GroupOrder) -> None:
        """Have the others get what is on this disk, each object's writes in order."""
        if order.is_on_disk:
            return
        order.is_on_disk = True
        for object_id in order.writes:
            line = self._lines.get(object_id)
            while line and line[0].is_on_disk:
                first = line.popleft()
                for number in first.writes[object_id]:
                    self.step(happened.WriteStored(object_id, number, first.is_refused))
            if line is not None and not line:
                self._lines.pop(object_id, None)
        self._end(order)

    def _end(self, order: GroupOrder) -> None:
        """Tell of a commit that is on this disk and waits for no majority any more."""
        if order.open or not order.is_on_disk:
            return
        is_known = self._orders.pop(order.token, None) is not None
        if is_known and not self._own.ended(order.token, None):
            self._table.step(events.Committed(order.token))

    def _do_write_done(self, effect: wanted.WriteDone) -> None:
        object_id, number = effect.object_id, effect.number
        waiting = self._waiting.get(object_id)
        while waiting and waiting[0][0] <= number:
            _, order = waiting.popleft()
            order.open.discard(object_id)
            self._end(order)
        if waiting is not None and not waiting:
            self._waiting.pop(object_id, None)
        register = self.core.register_of(object_id)
        if register is not None and register.is_deleted and register.number <= number:
            self._deleted.add(object_id)
            self._places.note_delete(object_id, register.config.lineage)

    # -- this disk as a member's -------------------------------------------------------

    def _do_store(self, effect: wanted.Store) -> None:
        self._deleted.discard(effect.object_id)  # One without a majority is given up.
        if effect.register.is_deleted:
            self._deleted.add(effect.object_id)
        self.copying.add(effect)

    def _do_remove(self, effect: wanted.Remove) -> None:
        object_id = effect.object_id
        is_gone = effect.is_deleted or object_id in self._deleted
        self._deleted.discard(object_id)
        rows = self._places.rows_after(object_id, is_gone=is_gone)
        self._location.unfollow(object_id, is_gone=is_gone)
        self.copying.remove(object_id, rows)
        self._table.step(events.StateReplaced(object_id, is_gone=True))
        self._release(object_id)

    # -- who leads ---------------------------------------------------------------------

    def _place(self, leader: PeerId, counter: int, config: Config) -> Place:
        ours = (self._me, leader)
        others = tuple(one for one in config.members if one not in ours)
        return Place(leader, counter, others, config.version)

    def _nobodys_place(self, register: Register) -> Place:
        return self._place(NOBODY, register.promised.counter, register.config)

    def _do_led(self, effect: wanted.Led) -> None:
        object_id, config = effect.object_id, effect.config
        self._location.hold(object_id)
        self._tell_place(object_id, effect.counter, config)
        self._table.step(events.ObjectLed(object_id, config.lineage, effect.counter))
        self.on_led(object_id)
        self._table.doubt_sessions()
        self._release(object_id)

    def _tell_place(self, object_id: ObjectId, counter: int, config: Config) -> None:
        if object_id in self._deleted:  # Who led it may not have told its keepers.
            self._places.note_delete(object_id, config.lineage)
        else:
            place = self._place(self._me, counter, config)
            self._places.came(object_id, place)

    def _do_deposed(self, effect: wanted.Deposed) -> None:
        object_id = effect.object_id
        register = self.core.register_of(object_id)
        if register is not None:
            self._follow(object_id, self._nobodys_place(register), register.config)
        self._table.step(events.ObjectDeposed(object_id, effect.is_unanswered))
        # The core is told of every write that it has begun, whoever leads: until then
        # nothing else is written of the object. What other objects wait for goes on.
        for order in [o for o in self._lines.get(object_id, ()) if o.is_stored]:
            self._on_disk(order)
        for _, order in self._waiting.pop(object_id, ()):
            self._own.ended(order.token, group_orders.not_led(object_id))
            order.open.discard(object_id)
            self._end(order)

    def _do_followed(self, effect: wanted.Followed) -> None:
        place = self._place(effect.leader, effect.counter, effect.config)
        self._follow(effect.object_id, place, effect.config)
        if effect.leader and effect.leader != self._me:
            self._release(effect.object_id)

    def _follow(self, object_id: ObjectId, place: Place, config: Config) -> None:
        is_witness = config.witness == self._me
        self._places.followed(object_id, place, is_witness=is_witness)

    def _do_state_replaced(self, effect: wanted.StateReplaced) -> None:
        self._table.step(events.StateReplaced(effect.object_id))

    def _do_unshared(self, effect: wanted.Unshared) -> None:
        object_id = effect.object_id
        self.copying.make_plain(object_id, effect.counter)
        self._places.came(object_id, Place(self._me, effect.counter))
        self._table.step(events.ObjectUnshared(object_id))
        self._release(object_id)

    # -- reads -------------------------------------------------------------------------

    def begin_round(self, object_id: ObjectId) -> int | None:
        """Begin to make sure that an object is still led here; None: nobody else could."""
        if not self.core.is_led(object_id):
            return NEVER if self._is_lost(object_id) else None
        number = self.core.confirm(object_id)
        self._has_rounds |= number is not None
        return number

    def _do_read_done(self, effect: wanted.ReadDone) -> None:
        self._table.step(events.LeadConfirmed(effect.object_id, effect.round))

    # -- requests that wait ------------------------------------------------------------

    def want(self, object_id: ObjectId, decided: Decided) -> bool:
        """Have an object led that nobody seems to lead, and `decided(why not)` called then.

        Returns False where no copy is here that could be led.
        """
        if self.core.register_of(object_id) is None:
            return False
        if self._is_distrusted:
            self.step(happened.Touched(object_id))  # So that the others look who leads.
            return False
        parked = self._parked.setdefault(object_id, [])
        if len(parked) >= PARKED_MAX:
            reason = f"{PARKED_MAX} requests wait for it to be led again"
            decided(BusyError(group_orders.named(object_id), reason, AGAIN_S))
            return True
        parked.append(decided)
        self.step(happened.Touched(object_id))
        return True

    def _release(
        self, object_id: ObjectId, error: ActiveStoreError | None = None
    ) -> None:
        for decided in self._parked.pop(object_id, ()):
            decided(error)

    def _do_no_quorum(self, effect: wanted.NoQuorum) -> None:
        object_id = effect.object_id
        text = effect.text + self.why_each(object_id)
        where = group_orders.named(object_id)
        error = NoQuorumError(where, text, effect.reachable, effect.needed)
        self._release(object_id, error)
        self._table.step(events.ObjectUnavailable(object_id, error))

    def why_each(self, object_id: ObjectId) -> str:
        """Return which voters do not take part, and why, to be put behind a text."""
        return group_orders.why_each(self.core, object_id, self._cluster.name_of)

    # -- groups ------------------------------------------------------------------------

    def share(self, object_id: ObjectId, then: Callable[[Any], None]) -> None:
        """Have an object that is here get a register; `then(error)` once it is on disk."""
        if self.is_shared(object_id):
            then(None)
            return

        # What was told may not be on disk yet: see `Copying.make_plain`.
        told = self._places.epoch_alone(object_id) or 0

        def read(engine: Engine) -> int:
            head = engine.head(object_id)
            return 0 if head is None else max(head.epoch, told)

        def begin(epoch: Any, error: BaseException | None) -> None:
            if error is not None or not epoch or self.is_moving(object_id):
                why = "it is moving" if epoch else "it is not here"
                then(error or UnavailableError(group_orders.named(object_id), why))
            elif self.is_shared(object_id):
                then(None)
            else:
                self._begin(object_id, epoch, then)

        # In the writer: what was ordered before is on disk when the register begins.
        self._table.storage.write(read, begin)

    def _begin(
        self, object_id: ObjectId, epoch: int, then: Callable[[Any], None]
    ) -> None:
        now_s = self._table.clock()
        register, ordered = self.core.begin(object_id, epoch, now_s)
        row = shipping.register_row(object_id, register)
        change = Change(object_id, epoch=register.epoch.counter, rows=[row])

        def done(results: Any, error: BaseException | None) -> None:
            refused = error if error is not None else results[0]
            is_refused = refused is not None
            self.step(happened.WriteStored(object_id, register.number, is_refused))
            then(refused)

        self._table.storage.write(lambda engine: engine.commit([change]), done)
        epoch = register.epoch.counter
        self._table.step(events.ObjectLed(object_id, register.config.lineage, epoch))
        self.carry_out(ordered)

    def regroup(
        self, make: Callable[[int], group_orders.Regrouping], then: Then
    ) -> None:
        """Have the core change a group; `then(why not)` once that is done, "" for done."""
        self._table.hurry_commits()  # It waits for what is not on this disk yet.
        self.step(self._regroupings.add(make, then))

    def _do_group_done(self, effect: wanted.GroupDone) -> None:
        self._regroupings.ended(effect.request, effect.error)

    def _do_group_changed(self, effect: wanted.GroupChanged) -> None:
        object_id = effect.object_id
        register = self.core.register_of(object_id)
        if register is not None and self.core.is_led(object_id):
            self._tell_place(object_id, register.epoch.counter, effect.config)
