"""Two objects with one alias: the younger claim's object takes another name.

It comes to this when two sides of a partition both gave a name away. The peer that holds
the younger object is told; it makes sure that the older one is there and has the name,
and renames its own to `name~<its peer's name>`. That is logged and shown by `status`.
Of an object with copies whoever leads it does so, and all copies get the new name.

Rules of this file: no object is ever lost or deleted; nothing is renamed for the sake of
an object that was not seen to have the name, nor where it is not led.

Source: design section 7; reliability.md 2.4.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from activestore.core.names import Claim
from activestore.errors import (
    ActiveStoreError,
    AliasExistsError,
    CorruptRecordError,
    ObjectNotFoundError,
)
from activestore.ids import ALIAS_BYTES_MAX, ALIAS_CHARS_MAX, ObjectId, PeerId
from activestore.peer.cluster import Cluster
from activestore.peer.relays import Relays
from activestore.peer.shipping import claim_name
from activestore.peer.table import Table
from activestore.storage.engine import Change, Engine, Head, Row
from activestore.wire import packing

# Open disputes; those beyond are told again when peers change.
DISPUTES_MAX = 65_536
# Of these so many are looked at in one turn.
DISPUTES_PER_TURN = 100
# Until one that could not be decided is looked at again, in seconds.
AGAIN_S = 5.0
# Renamed objects that `status` shows, the latest.
RENAMED_MAX = 100
# Objects named `name~peer`, `name~peer~2` ... that a renamed one gives way to.
TRIES_MAX = 100

_ROW_PREFIX = b"renamed/"
_NEVER = float("inf")


class Disputes:
    """The names that objects of this peer must give up, and those that they gave up."""

    def __init__(
        self,
        table: Table,
        cluster: Cluster,
        relays: Relays,
        tell_held: Callable[[str, Claim], None],
        free: Callable[[str, ObjectId], None],
    ) -> None:
        self._table = table
        self._cluster = cluster
        self._relays = relays
        self._tell_held = tell_held
        self._free = free
        self._me = PeerId(table.settings.peer_id)
        self._open: dict[str, tuple[Claim, Claim]] = {}
        self._busy: set[str] = set()
        self.due_s = _NEVER
        # Has a change of an object of this peer committed, by its group too.
        self.write: Callable[[Change, Callable[[ActiveStoreError | None], None]], None]
        # Old name, new name, object, when (wall clock), the latest last.
        self.renamed: deque[tuple[str, str, ObjectId, float]] = deque(
            maxlen=RENAMED_MAX
        )

    def restore(self, engine: Engine) -> None:
        """Read which objects were renamed before this start; forget the oldest."""
        found = []
        for key, value in engine.rows("cluster"):
            if not key.startswith(_ROW_PREFIX):
                continue
            try:
                old, new, object_id, when_s = packing.unpack(value)[:4]
            except packing.UNPACK_ERRORS:
                continue
            found.append((float(when_s), key, str(old), str(new), ObjectId(object_id)))
        found.sort()
        gone = [Row("cluster", one[1], None) for one in found[:-RENAMED_MAX]]
        if gone:
            engine.commit([Change(ObjectId(bytes(16)), rows=gone[:RENAMED_MAX])])
        for when_s, _, old, new, object_id in found[-RENAMED_MAX:]:
            self.renamed.append((old, new, object_id, when_s))

    def rows(self) -> list[dict[str, Any]]:
        """Return the renamed objects, for `status`."""
        return [
            {"alias": old, "renamed": new, "object_id": object_id, "renamed_s": when_s}
            for old, new, object_id, when_s in self.renamed
        ]

    # -- beginning ---------------------------------------------------------------------

    def begin(self, alias: str, claim: Claim, winner: Claim) -> None:
        """An object, perhaps of this peer, must give its alias up for an older claim."""
        if alias not in self._open and len(self._open) >= DISPUTES_MAX:
            return
        self._open[alias] = (claim, winner)
        self.due_s = 0.0

    def tell(self, alias: str, loser: Claim, winner: Claim) -> None:
        """Tell the peer of an object that it must give its alias up."""
        if self._cluster.location.is_here(loser.object_id):
            self.begin(alias, loser, winner)
            return
        parameters = {
            "alias": alias, "object_id": loser.object_id,
            "claimed_s": loser.claimed_s, "winner": winner.object_id,
            "winner_peer": winner.holder, "winner_claimed_s": winner.claimed_s,
        }  # fmt: skip
        # Where it is not heard, the other hears of it when it tells its claim again.
        self._relays.ask_about(
            loser.object_id, "rename", parameters, lambda *_: None, False
        )

    def turn(self, now_s: float) -> None:
        """Look at what is open."""
        waiting = [alias for alias in self._open if alias not in self._busy]
        self.due_s = now_s + AGAIN_S if self._open else _NEVER
        for alias in waiting[:DISPUTES_PER_TURN]:
            self._busy.add(alias)
            self._look(alias, *self._open[alias])

    # -- deciding ----------------------------------------------------------------------

    def _close(self, alias: str) -> None:
        self._busy.discard(alias)
        self._open.pop(alias, None)

    def _look(self, alias: str, claim: Claim, winner: Claim) -> None:
        """See whether our object has the alias at all, and since when."""
        if not self._cluster.location.is_here(claim.object_id):
            self._close(alias)
            self.tell(alias, claim, winner)  # It is led elsewhere, or has moved.
            return

        def read(engine: Engine) -> float | None:
            head = _named_head(engine, claim.object_id, alias)
            return head.created_s if head is not None else None

        def then(created_s: Any, error: BaseException | None) -> None:
            if error is not None or created_s is None:
                self._close(alias)
                return
            mine = Claim(claim.object_id, self._me, created_s, True)
            self._ask_winner(alias, mine, winner)

        self._table.storage.read(read, then)

    def _ask_winner(self, alias: str, mine: Claim, winner: Claim) -> None:
        """See whether the older object is there and has the name."""

        def then(answer: Any, error: ActiveStoreError | None) -> None:
            if type(error) is ObjectNotFoundError:
                self._keep_ours(alias, mine, winner)
            elif error is not None:
                self._busy.discard(alias)  # Later: it cannot be reached now.
            else:
                found = answer if type(answer) is dict else {}
                made_s = found.get("created_s")
                theirs = winner
                if type(made_s) is float:
                    theirs = winner._replace(claimed_s=made_s)
                if found.get("alias") != alias or mine.age < theirs.age:
                    self._keep_ours(alias, mine, winner)
                else:
                    self._rename(alias, mine, winner.object_id)

        if self._cluster.location.is_here(winner.object_id):
            # Both are here: two that were led elsewhere, or the other gave it up before.
            self._table.storage.read(
                lambda engine: _named_head(engine, winner.object_id, alias),
                lambda head, _: then(
                    {"alias": head.alias, "created_s": head.created_s}
                    if head is not None else None,
                    None,
                ),
            )  # fmt: skip
            return
        parameters = {"object_id": winner.object_id}
        self._relays.ask_about(winner.object_id, "locate", parameters, then, False)

    def _keep_ours(self, alias: str, mine: Claim, winner: Claim) -> None:
        self._close(alias)
        self._free(alias, winner.object_id)
        self._tell_held(alias, mine)

    # -- renaming ----------------------------------------------------------------------

    def _rename(self, alias: str, mine: Claim, winner_id: ObjectId) -> None:
        object_id = mine.object_id
        peer_name = self._table.settings.peer_name

        def find(engine: Engine) -> str:
            if _named_head(engine, object_id, alias) is None:
                return ""
            for number in range(1, TRIES_MAX + 1):
                renamed = new_name(alias, peer_name, number)
                if engine.resolve(renamed) is None:
                    return renamed
            raise AliasExistsError(alias, object_id)

        def then(renamed: Any, error: BaseException | None) -> None:
            if error is not None:
                self._not_renamed(alias, error)
            elif not renamed:
                self._close(alias)
            else:
                self._order(alias, str(renamed), mine, winner_id)

        # In the writer thread: what was ordered before has its name by then.
        self._table.storage.write(find, then)

    def _order(
        self, alias: str, renamed: str, mine: Claim, winner_id: ObjectId
    ) -> None:
        """Have the object called by another name, here and wherever it has copies."""
        object_id = mine.object_id
        wall_s = self._table.wall_clock()
        value = packing.pack([alias, renamed, object_id, wall_s])
        row = Row("cluster", _ROW_PREFIX + object_id, bytes(value))

        def then(error: ActiveStoreError | None) -> None:
            if error is not None:
                self._not_renamed(alias, error)
                return
            self._close(alias)
            self.renamed.append((alias, renamed, object_id, wall_s))
            self._table.note(
                "warning",
                "alias was given twice while peers did not reach each other; the older "
                f"claim keeps it alias={alias!r} object={object_id.hex()} "
                f"renamed={renamed!r}",
            )
            self._tell_held(renamed, mine)
            # Where the older one is here too, the name is its own from now on.
            self._table.storage.write(
                lambda engine: _claim_name(engine, winner_id), lambda *_: None
            )

        self.write(Change(object_id, alias=renamed, is_rename=True, rows=[row]), then)

    def _not_renamed(self, alias: str, error: BaseException) -> None:
        """Look again later."""
        self._busy.discard(alias)
        self._table.note("warning", f"not renamed alias={alias!r} error={error}")


def _claim_name(engine: Engine, object_id: ObjectId) -> None:
    try:
        claim_name(engine, object_id)
    except CorruptRecordError:
        pass  # The others tell its name.


def _named_head(engine: Engine, object_id: ObjectId, alias: str) -> Head | None:
    """Return the head of an object that is called so, whatever the index here says.

    Of two objects with copies here only one has the name in the index.
    """
    try:
        head = engine.head(object_id)
    except CorruptRecordError:
        return None  # It cannot be renamed; its peer finds it all the same.
    return head if head is not None and head.alias == alias else None


def new_name(alias: str, peer_name: str, number: int) -> str:
    """Return what an object is called that gave `alias` up at a peer, cut to fit."""
    tail = f"~{peer_name}" if number == 1 else f"~{peer_name}~{number}"
    tail = tail[: ALIAS_CHARS_MAX // 2]
    base = alias[: ALIAS_CHARS_MAX - len(tail)]
    while len((base + tail).encode()) > ALIAS_BYTES_MAX:
        base = base[:-1]
    return base + tail
