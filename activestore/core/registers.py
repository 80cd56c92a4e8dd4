"""The registers of one peer: what is on disk, what is on the way there.

Rules of this file: it decides nothing and answers nobody. `registers` has what is
durable; `latest` what it will be. Only what is in `registers` may be told.

Source: reliability.md 3.2; decision 11.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

from activestore.core.register import Heard, Register, is_proof
from activestore.core.replication_desk import Desk
from activestore.core.replication_effects import Store
from activestore.core.replication_events import StateLost
from activestore.core.vouches import Vouches
from activestore.ids import ObjectId, PeerId
from activestore.wire.replicas import (
    Accept,
    Ballot,
    Config,
    Drop,
    Forget,
    Point,
    Prepare,
)

Deferrable = Prepare | Accept | Drop | Forget | StateLost
Asked = tuple[PeerId, Prepare | Accept]


class Order(NamedTuple):
    """A Store that is not answered yet.

    `asked`: by whom, and with what; None: one of this peer's own, of which `then` takes
    what the disk says, "" where it has it. `heard`: what is known of the state then.
    """

    object_id: ObjectId
    register: Register
    asked: Asked | None
    heard: Heard | None
    then: Callable[[str], None]


class Unkept(NamedTuple):
    """A register at rest, whose row is to tell what is known of its state."""

    object_id: ObjectId
    register: Register
    heard: Heard


class Busy:
    """An object of which something is being written."""

    __slots__ = ("count", "deferred", "latest", "writes")

    def __init__(self, latest: Register) -> None:
        self.latest = latest
        self.count = 0
        self.writes: dict[int, Register] = {}
        self.deferred: deque[tuple[PeerId, Deferrable]] = deque()


class Registers:
    """The registers of one peer, and the orders about them that are not answered."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.registers: dict[ObjectId, Register] = {}
        # Of these, copies that are history; what is deleted, and votes without a state,
        # of the others.
        self.quarantined: dict[ObjectId, None] = {}
        self.deleted: set[ObjectId] = set()
        self.witnessed: set[ObjectId] = set()
        self._busy: dict[ObjectId, Busy] = {}
        self._orders: dict[int, Order] = {}
        self._pledges: dict[ObjectId, Ballot] = {}
        self._heard: dict[ObjectId, Heard] = {}
        self._vouches = Vouches(desk)
        self._left: OrderedDict[ObjectId, Forget | int] = OrderedDict()
        self._configs: dict[Config, Config] = {}

    # What is here

    def latest(self, object_id: ObjectId) -> Register | None:
        """Return the register as it will be when all that is ordered is written."""
        busy = self._busy.get(object_id)
        register = self.registers.get(object_id) if busy is None else busy.latest
        pledge = self._pledges.get(object_id)
        if register is None or pledge is None:
            return register
        if pledge.counter > register.promised.counter:
            return register._replace(promised=pledge)
        return register

    def is_busy(self, object_id: ObjectId) -> bool:
        """Return whether something of the object is being written."""
        return object_id in self._busy

    def keep(self, object_id: ObjectId, register: Register) -> None:
        """Take a register that is on disk, or that the caller writes at once."""
        config = self._configs.setdefault(register.config, register.config)
        self.registers[object_id] = register._replace(config=config)
        if register.is_quarantined:
            self.quarantined[object_id] = None
        else:
            self.quarantined.pop(object_id, None)
        is_other = register.is_quarantined or register.is_deleted
        _put(
            self.deleted, object_id, register.is_deleted and not register.is_quarantined
        )
        is_witness = config.witness == self._desk.me
        _put(self.witnessed, object_id, is_witness and not is_other)
        if len(self._configs) > 2 * len(self.registers) + 1024:
            self._configs = {r.config: r.config for r in self.registers.values()}

    def drop(self, object_id: ObjectId) -> None:
        """Keep no register of an object any more."""
        self.registers.pop(object_id, None)
        self.quarantined.pop(object_id, None)
        self.deleted.discard(object_id)
        self.witnessed.discard(object_id)

    def pledge(self, object_id: ObjectId, ballot: Ballot) -> None:
        """Promise this peer's own candidate an epoch: in memory only.

        It becomes durable with the state that is accepted under it, and nothing is
        accepted anywhere under it before; lost in a crash, it harmed nobody.
        """
        self._pledges[object_id] = ballot

    def shown_number(self, object_id: ObjectId) -> int | None:
        """Return the number of this disk's state if it is known committed."""
        register = self.registers.get(object_id)
        if register is None or not register.has_state:
            return None
        is_shown = register.number <= self.committed_of(object_id, register.epoch)
        return register.number if is_shown else None

    def committed_of(self, object_id: ObjectId, epoch: Ballot) -> int:
        """Return up to which number of an epoch all is known committed, -1: nothing is."""
        heard = self._heard.get(object_id)
        return heard.committed if heard is not None and heard.epoch == epoch else -1

    def was_heard(self, object_id: ObjectId, heard: Heard) -> None:
        """Note what is committed of what this peer leads, or led."""
        self._heard[object_id] = heard
        register = self.registers.get(object_id)
        if register is not None:
            self._vouches.note(object_id, register, heard)

    def restore(
        self, object_id: ObjectId, register: Register, heard: Heard | None
    ) -> None:
        """Take a register from disk, and what was known of its state."""
        self.keep(object_id, register)
        self._vouches.wrote(object_id, heard)
        if heard is not None:
            self._heard[object_id] = heard

    def take_unkept(self, count: int) -> list[Unkept]:
        """Return what to write beside registers that are at rest; it counts as written."""
        found = []
        for object_id in self._vouches.take(count):
            register = self.registers.get(object_id)
            is_at_rest = register is not None and not self.is_busy(object_id)
            if not is_at_rest or self.shown_number(object_id) is None:
                continue  # Another state comes, of which something else is known.
            heard = self._heard[object_id]
            self._vouches.wrote(object_id, heard)
            found.append(Unkept(object_id, self.registers[object_id], heard))
        return found

    def _learn(self, object_id: ObjectId, heard: Heard | None) -> None:
        """Note what is known of a state that is on disk now."""
        register = self.registers.get(object_id)
        if heard is None or register is None or register.epoch != heard.epoch:
            return
        known = self._heard.get(object_id)
        if known is not None and known.epoch == heard.epoch:
            committed = max(known.committed, heard.committed)
            times_s = [one.at_s for one in (known, heard) if one.at_s is not None]
            heard = Heard(heard.epoch, committed, max(times_s, default=None))
        self.was_heard(object_id, heard)

    def vouched_s(self, object_id: ObjectId) -> float | None:
        """Return when this disk's state was last known to be the newest committed."""
        heard = self._heard.get(object_id)
        return None if heard is None else heard.at_s

    # Writing

    def order(
        self,
        object_id: ObjectId,
        register: Register,
        *,
        base: Point | None = None,
        change: object = None,
        asked: Asked | None = None,
        then: Callable[[str], None] = lambda _problem: None,
    ) -> None:
        """Have a register written; what stands in the orders' answers happens then."""
        token = self._desk.next_token()
        heard = self._heard_with(object_id, register, asked)
        self._orders[token] = Order(object_id, register, asked, heard, then)
        self._begin(object_id, register)
        is_delete = register.is_deleted
        base = None if is_delete else base
        self._desk.emit(
            Store(token, object_id, register, base, change, is_delete, heard)
        )

    def _heard_with(
        self, object_id: ObjectId, register: Register, asked: Asked | None
    ) -> Heard | None:
        """Return what is known of a state once it is written; None: nothing yet."""
        known = self.committed_of(object_id, register.epoch)
        message = None if asked is None else asked[1]
        if not isinstance(message, Accept) or not is_proof(self._desk.me, message):
            return self._heard[object_id] if register.number <= known else None
        committed = max(known, message.committed, register.number)
        is_newest = committed == register.number
        at_s = self._desk.now_s if is_newest else self.vouched_s(object_id)
        return Heard(register.epoch, committed, at_s)

    def begin_write(self, object_id: ObjectId, register: Register) -> None:
        """Note that the caller writes this register with a state of its own."""
        self._begin(object_id, register)
        self._busy[object_id].writes[register.number] = register

    def _begin(self, object_id: ObjectId, register: Register) -> None:
        busy = self._busy.get(object_id)
        if busy is None:
            busy = self._busy[object_id] = Busy(register)
        busy.latest = register
        busy.count += 1

    def on_written(self, object_id: ObjectId, number: int, *, is_refused: bool) -> bool:
        """Take that a write of the caller is on disk; False: it was none of these."""
        busy = self._busy.get(object_id)
        register = None if busy is None else busy.writes.pop(number, None)
        if register is None:
            return False
        if not is_refused:
            self._settle(object_id, register)
            self._vouches.wrote(object_id, None)
        return True

    def _settle(self, object_id: ObjectId, register: Register) -> None:
        old = self.registers.get(object_id)
        if old is not None and _age_of(old) > _age_of(register):
            return  # Answers may come in another order than what they are about.
        self.keep(object_id, register)
        pledge = self._pledges.get(object_id)
        if pledge is not None and pledge.counter <= register.promised.counter:
            del self._pledges[object_id]


def _put(objects: set[ObjectId], object_id: ObjectId, is_one: bool) -> None:
    if is_one:
        objects.add(object_id)
    else:
        objects.discard(object_id)


def _age_of(register: Register) -> tuple[int, int, int, bool]:
    """Return what orders the registers of one peer in time."""
    quarantined = register.is_quarantined
    return (
        register.promised.counter,
        register.epoch.counter,
        register.number,
        quarantined,
    )
