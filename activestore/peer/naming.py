"""Aliases over the whole cluster: claims before an object is made, and after it is.

`core.names` decides; this carries out what it wants, at this peer's disk or at other
peers, and says of requests that make or delete named objects when they may begin and
how they ended.

    Create, Persist with an alias:  claimed -> begun -> answered -> confirmed, or freed
    Delete:                         its alias is read -> begun -> answered -> freed

A peer that was never told of another claims nothing: its own index is all there is.

Rules of this file: a request waits here, and nowhere else, for its names; whoever waits
hears an end of it. What two sides of a partition do about one name is `disputes`'.

Source: design section 7; schemas/protocol.md section 6.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from activestore.core import effects, events, names
from activestore.core.calls import Client, Nested
from activestore.core.keepers import Keepers
from activestore.core.names import Claim, Names
from activestore.errors import (
    ActiveStoreError,
    CancelledError,
    CorruptRecordError,
    ObjectNotFoundError,
)
from activestore.ids import ObjectId, PeerId
from activestore.peer import keeping
from activestore.peer.announcing import Announcing
from activestore.peer.cluster import Cluster
from activestore.peer.disputes import Disputes
from activestore.peer.relays import Relays
from activestore.peer.shipping import claim_name
from activestore.peer.table import Table
from activestore.storage.engine import Engine, Head

# How long a keeper may take to answer, in seconds: a commit of its, and a slow line.
ASK_S = 2.0
# How often requests whose end was not heard are looked for.
LOOK_S = 2.0

_NEVER = float("inf")

Origin = Client | Nested


class _Open(NamedTuple):
    """A request that has begun: the names that it makes, or the one that it deletes."""

    names: Mapping[str, ObjectId]
    is_delete: bool


class Naming:
    """What one peer does about aliases."""

    def __init__(self, table: Table, cluster: Cluster, relays: Relays) -> None:
        self._table = table
        self._cluster = cluster
        self._relays = relays
        self.me = PeerId(table.settings.peer_id)
        # Copies whose names are told of by whoever leads them.
        self.followed = cluster.location.followed
        self._keepers: Keepers | None = None
        self.core = Names(self.me, self.keepers_of, cluster.name_of, table.random)
        self.disputes = Disputes(table, cluster, relays, self.tell_held, self.free)
        self._announcing = Announcing(table, self)
        # Requests that wait for their names: what to do then.
        self._pending: dict[Origin, Callable[[], None]] = {}
        self.open: dict[Origin, _Open] = {}
        # Of whom it is read what became of them, and what then begins, asked again.
        self._settling: dict[Origin, Callable[[], None] | None] = {}
        self._times: dict[ObjectId, float] = {}
        self._has_rows = False
        self._deadline_s = _NEVER
        self._look_due_s = 0.0
        self._effects: dict[type, Callable[[Any], None]] = {
            names.AskVotes: self._do_ask_votes,
            names.CheckHolder: self._do_check_holder,
            names.Grant: self._do_grant,
            names.Deny: self._do_deny,
            names.Tell: self._do_tell,
            names.Lost: lambda e: self.disputes.begin(e.alias, e.claim, e.winner),
        }

    # -- time and peers ----------------------------------------------------------------

    def restore(self, engine: Engine) -> None:
        """Read from disk whether names of others are kept, and which were renamed."""
        self._has_rows = next(engine.rows("name"), None) is not None
        self.disputes.restore(engine)

    def peers_changed(self) -> None:
        """The set of peers that live has changed: so have the keepers of names."""
        self._keepers = None
        if (
            self.core.is_watching_peers
        ):  # Else a thousand that join cost a thousand sets.
            self._step(names.PeersChanged(self.keepers().live))
        self._announcing.peers_changed(self._table.clock())

    def next_s(self) -> float:
        """Return when `turn` is due."""
        due_s = min(self._deadline_s, self._announcing.due_s, self.disputes.due_s)
        return min(due_s, self._look_due_s) if self.open else due_s

    def turn(self, now_s: float) -> None:
        """Let time pass."""
        if now_s >= self._deadline_s:
            self._step(names.TimerFired())
        if now_s >= self._announcing.due_s:
            self._announcing.turn(now_s)
        if now_s >= self.disputes.due_s:
            self.disputes.turn(now_s)
        if self.open and now_s >= self._look_due_s:
            self._look_due_s = now_s + LOOK_S
            for origin in [one for one in self.open if not self._is_running(one)]:
                self._settle(origin)

    def keepers(self) -> Keepers:
        """Return who keeps names, among those that live now."""
        found = self._keepers
        if found is None:
            found = self._keepers = Keepers(self._cluster.membership.live())
        return found

    def keepers_of(self, alias: str) -> Sequence[PeerId]:
        """Return the keepers of an alias, its home first."""
        return self.keepers().of(alias)

    @property
    def is_alone(self) -> bool:
        """Whether there is nobody to agree with, and never was."""
        return self._cluster.is_alone and not self._has_rows

    def _step(self, event: names.Event) -> None:
        for effect in self.core.step(event, self._table.clock()):
            self._effects[type(effect)](effect)
        deadline_s = self.core.deadline_s()
        self._deadline_s = _NEVER if deadline_s is None else deadline_s

    # -- requests ----------------------------------------------------------------------

    def claim(
        self, origin: Origin, wants: Mapping[str, ObjectId], begin: Callable[[], None]
    ) -> None:
        """Have a request begin once all aliases that it gives are its own."""
        if not wants or self.is_alone:
            begin()
            return
        if origin in self._settling:
            # Asked again: what its names are is known when the first time has ended.
            self._settling[origin] = lambda: self.claim(origin, wants, begin)
            return
        if origin in self._pending:
            self._pending[origin] = begin  # Of retries the last one counts.
            return
        if origin in self.open:
            begin()  # A retry of what has begun.
            return
        self._pending[origin] = begin
        wall_s = self._table.wall_clock()
        for object_id in wants.values():
            self._times[object_id] = wall_s
        if type(origin) is Client:
            self._table.step(events.ErrandBegan(origin))
        self.open[origin] = _Open(dict(wants), False)
        self._step(names.ClaimWanted(origin, dict(wants), wall_s))

    def before_delete(
        self, origin: Origin, object_id: ObjectId, begin: Callable[[], None]
    ) -> None:
        """Have a delete begin once it is known which alias it frees."""
        if self.is_alone:
            begin()
            return

        def read(engine: Engine) -> str:
            try:
                head = engine.head(object_id)
            except CorruptRecordError:
                return ""
            return head.alias if head is not None else ""

        def then(alias: Any, error: BaseException | None) -> None:
            if alias and error is None and origin not in self.open:
                self.open[origin] = _Open({alias: object_id}, True)
            begin()

        self._table.storage.read(read, then)

    def cancel(self, origin: Origin) -> None:
        """A request is not wanted any more: it does not begin, where it has not."""
        if self._pending.pop(origin, None) is not None:
            self._give_up(origin)
            where = "a request that waited for its alias"
            self._table.carry_out([effects.Refuse(origin, CancelledError(where))])

    def end_session(self, session_id: bytes) -> None:
        """A client is gone, and what it had not begun with it."""
        for origin in [
            one
            for one in self._pending
            if type(one) is Client and one.session == session_id
        ]:
            del self._pending[origin]
            self._give_up(origin)

    def _give_up(self, origin: Origin) -> None:
        self._forget(origin)
        self._step(names.MakingEnded(origin, False))

    def _go_on(self, origin: Origin) -> None:
        begin = self._pending.pop(origin, None)
        if begin is None:
            return
        self._end_errand(origin)
        if type(origin) is Nested and origin.parent not in self._table.core.calls:
            self._give_up(origin)  # Whoever wanted the object is gone.
            return
        begin()

    def _end_errand(self, origin: Origin) -> None:
        if type(origin) is Client:
            self._table.step(events.ErrandEnded(origin))

    def ended(self, origin: Origin, *, is_done: bool) -> None:
        """A request of `open` was answered, or refused."""
        if origin in self._pending:
            return
        found = self.open[origin]
        if is_done and not found.is_delete:
            self._forget(origin)
            self._step(names.MakingEnded(origin, True))
        elif not self._is_running(origin):
            self._settle(origin)

    def claimed_s(self, object_id: ObjectId) -> float:
        """Return when the name of an object that is being made was claimed, else 0.

        The object is stored as made then, so that every keeper, whoever told it of the
        object, knows the same time.
        """
        return self._times.get(object_id, 0.0)

    def _is_running(self, origin: Origin) -> bool:
        if origin in self._pending:
            return True
        core = self._table.core
        if type(origin) is Nested:
            return origin.parent in core.calls
        return origin.sequence in core.sessions.get(
            origin.session, {}
        ) or origin.sequence in core.errands.get(origin.session, ())

    def _forget(self, origin: Origin) -> _Open | None:
        found = self.open.pop(origin, None)
        if found is not None and not found.is_delete:
            for object_id in found.names.values():
                self._times.pop(object_id, None)
        return found

    def _settle(self, origin: Origin) -> None:
        """See what became of a request whose end does not tell: read what is stored."""
        found = self._forget(origin)
        if found is None:
            return
        self._settling[origin] = None

        def read(engine: Engine) -> bool:
            return any(engine.resolve(a) == who for a, who in found.names.items())

        def then(is_kept: Any, error: BaseException | None) -> None:
            if error is not None:
                return  # The disk has failed, and the peer ends.
            if not found.is_delete:
                self._step(names.MakingEnded(origin, bool(is_kept)))
            elif not is_kept:
                for alias, object_id in found.names.items():
                    self._step(names.NameFreed(alias, object_id))
            again = self._settling.pop(origin, None)
            if again is not None:
                again()

        # In the writer thread: behind every commit that was ordered before.
        self._table.storage.write(read, then)

    # -- effects -----------------------------------------------------------------------

    def _do_ask_votes(self, effect: names.AskVotes) -> None:
        aliases = [alias for alias, _ in effect.claims]

        def then(votes: Mapping[str, Claim] | None) -> None:
            self._step(names.Voted(effect.token, effect.peer_id, aliases, votes))

        self._ask(effect.peer_id, effect.claims, then)

    def _do_tell(self, effect: names.Tell) -> None:
        self._ask(
            effect.peer_id, effect.items,
            lambda votes: self._step(names.Told(effect.peer_id, votes)),
        )  # fmt: skip

    def _ask(
        self,
        peer_id: PeerId,
        items: Sequence[tuple[str, keeping.Item]],
        then: Callable[[Mapping[str, Claim] | None], None],
    ) -> None:
        """Have a keeper take claims; `then` gets what it has, None where it is silent."""
        if peer_id == self.me:
            self.keep(items, lambda kept, _: then(kept.votes if kept else None))
            return

        def answered(answer: Any, error: ActiveStoreError | None) -> None:
            then(None if error is not None else keeping.votes_heard(answer))

        parameters = {"claims": keeping.told(items)}
        self._relays.ask(peer_id, "claim", parameters, answered, wait_s=ASK_S)

    def keep(
        self,
        items: Sequence[tuple[str, keeping.Item]],
        then: Callable[[keeping.Kept | None, BaseException | None], None],
    ) -> None:
        """Take claims as their keeper, and tell those that had to give way."""
        self._has_rows = True
        wall_s = self._table.wall_clock()

        def kept(found: Any, error: BaseException | None) -> None:
            for alias, loser, winner in found.losers if found is not None else ():
                self.disputes.tell(alias, loser, winner)
            then(found, error)

        self._table.storage.write(
            lambda engine: keeping.keep(engine, self.me, items, wall_s, self.followed),
            kept,
        )

    def _do_check_holder(self, effect: names.CheckHolder) -> None:
        """Find out whether an object that is said to have a name still has it."""
        alias, claim = effect.alias, effect.claim

        def then(answer: Any, error: ActiveStoreError | None) -> None:
            is_gone = type(error) is ObjectNotFoundError or (
                error is None and answer.get("alias") != alias
            )
            self._step(names.Checked(effect.token, alias, claim, is_gone))

        self.locate(claim.object_id, then)

    def locate(
        self,
        object_id: ObjectId,
        then: Callable[[Any, ActiveStoreError | None], None],
    ) -> None:
        """Ask the peer of an object what is known of it; see `locate` in the protocol."""
        if self._cluster.location.is_here(object_id):

            def found(head: Any, error: BaseException | None) -> None:
                if error is None and head is None:
                    then(None, ObjectNotFoundError(object_id, (self.me,)))
                elif head is None:
                    then({"alias": None}, None)  # Damaged: it may have any.
                else:
                    then({
                        "alias": head.alias, "class_name": head.class_name,
                        "created_s": head.created_s,
                    }, None)  # fmt: skip

            self._table.storage.read(lambda engine: engine.head(object_id), found)
            return
        parameters = {"object_id": object_id}
        self._relays.ask_about(object_id, "locate", parameters, then, False)

    def _do_grant(self, effect: names.Grant) -> None:
        origin: Any = effect.token
        self._go_on(origin)

    def _do_deny(self, effect: names.Deny) -> None:
        origin: Any = effect.token
        self._forget(origin)
        if self._pending.pop(origin, None) is not None:
            self._end_errand(origin)
            self._table.carry_out([effects.Refuse(origin, effect.error)])

    # -- objects that came by another way ----------------------------------------------

    def held(self, object_id: ObjectId) -> None:
        """An object has moved here, or is led here now: its keepers are to know."""
        if self.is_alone:
            return

        def then(head: Any, error: BaseException | None) -> None:
            if error is None and head is not None and head.alias:
                self.tell_held(
                    head.alias, Claim(object_id, self.me, head.created_s, True)
                )

        def read(engine: Engine) -> Head | None:
            # The index here may not have the name of what was a copy. That is this disk's
            # affair alone: the name is in the head, which all copies have.
            claim_name(engine, object_id)
            return engine.head(object_id)

        self._table.storage.write(read, then)

    def tell_held(self, alias: str, claim: Claim) -> None:
        """Tell the keepers of an alias who has it."""
        rows = [(peer_id, alias, claim) for peer_id in self.keepers_of(alias)]
        self._step(names.NamesHeld(rows))

    def tell(self, rows: Sequence[tuple[PeerId, str, Claim]]) -> None:
        """Tell peers claims, each its own."""
        self._step(names.NamesHeld(rows))

    def free(self, alias: str, object_id: ObjectId) -> None:
        """Tell the keepers of an alias that an object does not have it."""
        self._step(names.NameFreed(alias, object_id))

    @property
    def has_room(self) -> bool:
        """Whether more claims may wait to be told."""
        return self.core.waiting_count < names.WAITING_MAX
