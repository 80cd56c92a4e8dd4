"""What the core wants done: effects to orders of storage and executors, and to messages.

Rules of this file: it decides nothing; an answer to a session that is gone is dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from activestore.core import effects, events
from activestore.core.calls import Client
from activestore.core.fences import FENCES_SEQUENCE
from activestore.core.location import Location
from activestore.errors import UnavailableError
from activestore.ids import ObjectId, SessionId
from activestore.objects import orders
from activestore.peer.naming import Naming
from activestore.peer.places import Places
from activestore.peer.reading import Reading
from activestore.peer.relays import Relays
from activestore.peer.replicating import Replicating
from activestore.peer.table import Table
from activestore.storage.engine import Change, Durability, ReplyRecord
from activestore.wire import values
from activestore.wire.messages import (
    Failure,
    Item,
    Reply,
)
from activestore.wire.state import NamedState

# A recorded reply: larger results are not kept, a retry is told so.
REPLY_BYTES_MAX = 1024 * 1024

_NIL = b"\xc0"


class Outgoing(Table):
    """Carries the core's effects out."""

    location: Location
    places: Places
    relays: Relays
    naming: Naming
    replicating: Replicating
    reading: Reading

    def _do_load(self, effect: effects.LoadObject) -> None:
        object_id = effect.object_id
        is_copy = object_id not in self.core.replicated and (
            self.replicating.is_shared(object_id)
        )
        self.storage.load(object_id, is_reader=effect.is_reader, is_copy=is_copy)

    def _do_look_up(self, effect: effects.LookUpReply) -> None:
        def found(record: ReplyRecord | None, error: BaseException | None) -> None:
            if error is not None:
                body, _ = values.encode(["storage", str(error)])
                self.step(events.ReplyLookedUp(effect.call_id, "unavailable", body))
            elif record is None:
                self.step(events.ReplyLookedUp(effect.call_id, None))
            else:
                self.step(
                    events.ReplyLookedUp(
                        effect.call_id, record.code, record.body, record.buffers
                    )
                )

        self.storage.read(
            lambda engine: engine.reply(
                effect.object_id, effect.session, effect.sequence
            ),
            found,
        )

    def _do_look_up_fences(self, effect: effects.LookUpFences) -> None:
        object_id = effect.object_id

        def found(record: ReplyRecord | None, error: BaseException | None) -> None:
            kept = b"" if record is None else bytes(record.body)
            known = None if error is None else UnavailableError("storage", str(error))
            self.step(events.FencesLookedUp(object_id, effect.token, kept, known))

        self.storage.read(
            lambda engine: engine.reply(
                object_id, SessionId(object_id), FENCES_SEQUENCE
            ),
            found,
        )

    def _do_activate(self, effect: effects.Activate) -> None:
        record = self.classes.record_of(effect.class_name)
        stored = None
        if not effect.is_new:
            stored = (effect.loaded.head, effect.loaded.state)
        self.executors.activate(effect, stored, record)

    def _do_commit(self, effect: effects.Commit) -> None:
        reply = None
        if effect.client is not None:
            reply = self._record(
                effect.client, effect.code, effect.body, effect.buffers,
                effect.first_unacked, effect.still_open,
            )  # fmt: skip
        durability = Durability(effect.durability)
        change = Change(
            effect.object_id, effect.version, effect.state, effect.delta,
            effect.is_delete, effect.state is not None, effect.alias, durability, reply,
            effect.acknowledged, replies=self._fences(effect),
            created_s=self.naming.claimed_s(effect.object_id) if effect.alias else 0.0,
        )  # fmt: skip
        if not effect.created and effect.outermost is None:
            self.replicating.order(effect.token, (change,))
            is_known = effect.object_id in self.location.guests or self.places.tells_of(
                effect.object_id
            )
            if (
                effect.is_delete
                and is_known
                and not self.replicating.is_shared(effect.object_id)
            ):
                self.places.note_delete(effect.object_id)
            return
        made = [self._new(named, effect.token) for named in effect.created]
        changes = (*made, *self._promised(effect.outermost), change)
        self.replicating.order(
            effect.token,
            [_grouped(one, effect.token) for one in changes],
            [change.object_id for change in made],
        )

    def _fences(self, effect: effects.Commit) -> tuple[ReplyRecord, ...]:
        """Return what is kept of the epochs of an object's callers, where it is new."""
        if not effect.fences:
            return ()
        mine = Client(SessionId(effect.object_id), FENCES_SEQUENCE)
        return (self._record(mine, "", effect.fences, (), 0),)

    def _do_commit_states(self, effect: effects.CommitStates) -> None:
        reply = None
        if effect.client is not None:
            reply = self._record(effect.client, "", _NIL, (), effect.first_unacked)
        made = [self._new(named, effect.token, reply) for named in effect.states]
        changes = (*self._promised(effect.outermost), *made)
        self.replicating.order(
            effect.token, [_grouped(one, effect.token) for one in changes]
        )

    def _promised(self, outermost: effects.Provisional | None) -> tuple[Change, ...]:
        """Return the change that keeps what a retry of the outermost call is told."""
        if outermost is None:
            return ()
        reply = self._record(
            outermost.client,
            outermost.code,
            outermost.body,
            (),
            outermost.first_unacked,
        )
        return (Change(outermost.object_id, 0, reply=reply),)

    def _new(
        self, named: NamedState, group: int, reply: ReplyRecord | None = None
    ) -> Change:
        # A new object, and its name, are there for everybody once they are told.
        return Change(
            ObjectId(named.object_id), 1, named.state, None, False, True, named.alias,
            Durability.COMMIT, reply, (), group,
            created_s=self.naming.claimed_s(named.object_id) if named.alias else 0.0,  # type: ignore[arg-type]
        )  # fmt: skip

    def _record(
        self, client: Client, code: str, body: bytes, buffers: Any,
        first_unacked: int, still_open: Sequence[int] = (),
    ) -> ReplyRecord:  # fmt: skip
        size = len(body) + sum(memoryview(b).nbytes for b in buffers)
        kept = tuple(map(bytes, buffers)) if size <= REPLY_BYTES_MAX else ()
        if size > REPLY_BYTES_MAX:
            code = "invalid_request"
            body, _ = values.encode([
                f"the call ran and was committed; its result of {size} bytes is over "
                f"{REPLY_BYTES_MAX} and was not kept for a retry", "reply",
            ])  # fmt: skip
        return ReplyRecord(
            client.session, client.sequence, code, body, self.wall_clock(), kept,
            first_unacked, tuple(still_open),
        )  # fmt: skip

    def _do_answer(self, effect: effects.Answer) -> None:
        origin = effect.origin
        if self.growing and origin in self.growing:
            self.grow(self.growing.pop(origin), effect)
            return
        if origin in self.naming.open:
            self.naming.ended(origin, is_done=True)
        if type(origin) is Client:
            session = self.sessions.get(origin.session)
            if session is not None:
                told = None if effect.saw is None else self.reading.told(effect.saw)
                self.tell(
                    session,
                    Reply(origin.sequence, told, effect.body, effect.buffers),  # type: ignore[arg-type]
                )
            return
        self._to_parent(
            origin, (orders.RESULT, origin.request, "", effect.body), effect.buffers
        )

    def _do_refuse(self, effect: effects.Refuse) -> None:
        origin = effect.origin
        self.growing.pop(origin, None)
        if origin in self.naming.open:
            self.naming.ended(origin, is_done=False)
        if effect.error is None:
            code, body = effect.code, effect.body
        else:
            code = effect.error.code
            body = values.encode_error(effect.error)
        if type(origin) is Client:
            session = self.sessions.get(origin.session)
            if session is not None:
                failure = Failure(origin.sequence, code, None, body)
                self.tell(session, failure)
            return
        self._to_parent(origin, (orders.RESULT, origin.request, code, body), ())

    def _to_parent(self, origin: Any, message: tuple[Any, ...], buffers: Any) -> None:
        parent = self.core.calls.get(origin.parent)
        if parent is not None and parent.slot is not None:
            slot = parent.slot
            self.executors.to_slot(
                slot.executor.executor_id, slot.index, message, buffers
            )

    def _do_send_item(self, effect: effects.SendItem) -> None:
        origin = effect.origin
        if type(origin) is Client:
            session = self.sessions.get(origin.session)
            if session is not None:
                item = Item(
                    origin.sequence,
                    effect.number,
                    None,
                    effect.body,
                    effect.buffers,  # type: ignore[arg-type]
                )
                self.tell(session, item)
            return
        self._to_parent(
            origin, (orders.ITEM_IN, origin.request, effect.number, effect.body),
            effect.buffers,
        )  # fmt: skip

    def _do_send_beat(self, effect: effects.SendBeat) -> None:
        session = self.sessions.get(effect.session)
        if session is not None:
            self.beat(
                session, list(effect.sequences),
                is_unheard=effect.is_unheard, unled=effect.unled,
            )  # fmt: skip

    def _do_send_away(self, effect: effects.SendAway) -> None:
        self.relays.depart(effect)

    def _do_ask_on(self, effect: effects.AskOn) -> None:
        self.relays.ask_on(effect)

    def _do_stop_away(self, effect: effects.StopAway) -> None:
        self.relays.stop(effect.call_id)

    def _do_grant_away(self, effect: effects.GrantAway) -> None:
        self.relays.grant(effect)

    def _do_interrupt(self, effect: effects.InterruptCall) -> None:
        self.executors.control(
            effect.executor,
            (orders.INTERRUPT, effect.slot, effect.call_id, effect.reason),
        )
        self.executors.to_slot(
            effect.executor,
            effect.slot,
            (orders.STOP, effect.call_id, effect.reason),
            None,
        )


def _grouped(change: Change, group: int) -> Change:
    return dataclasses.replace(change, group=group)
