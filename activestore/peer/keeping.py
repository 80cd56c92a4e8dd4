"""Claims of aliases on the disk of a keeper, and as peers tell them.

    row "name"   alias -> [object_id, holder, claimed_s, is_confirmed, lapses_s]
    on the wire  [alias, object_id, holder or nil, claimed_s, is_confirmed]; nil: freed

What the keeper itself holds under an alias counts as a confirmed claim, row or no row:
the alias index of the peer that has the object is the authority.

Rules of this file: `keep` runs in the writer thread, so that between its look and its
write nobody else writes; what a peer sent is checked before use. It writes rows of this
keeper and nothing of an object, so no group's register is passed by.

Source: design section 7; schemas/protocol.md section 6.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from activestore.core.names import TELL_MAX, Claim, Free, judge
from activestore.errors import (
    ActiveStoreError,
    CorruptRecordError,
    RemoteProtocolError,
)
from activestore.ids import (
    OBJECT_ID_BYTES,
    PEER_ID_BYTES,
    ObjectId,
    PeerId,
    check_alias,
)
from activestore.storage.engine import ZERO_ID, Change, Engine, Row
from activestore.wire import packing

Item = Claim | Free


class Kept(NamedTuple):
    """What a keeper has after it was asked: of each alias that is claimed its claim.

    `losers`: alias, the claim that had to give way, and the one that it gave way to.
    """

    votes: Mapping[str, Claim]
    losers: Sequence[tuple[str, Claim, Claim]]


def keep(
    engine: Engine, me: PeerId, items: Sequence[tuple[str, Item]], wall_s: float,
    followed: Container[ObjectId] = (),
) -> Kept:  # fmt: skip
    """Take claims and freed names, in order; durable on return.

    `followed`: objects of which copies are here, and that other peers lead.

    Raises:
        ActiveStoreError: the disk is full; nothing was kept.
    """
    rows: dict[str, Claim | None] = {}
    found: dict[str, Claim | None] = {}
    changed: dict[str, Claim | None] = {}
    losers = []
    for alias, item in items:
        if alias not in found:
            rows[alias] = found[alias] = claim_of(engine, alias)
            own = own_claim(engine, me, alias, followed)
            if own is not None and found[alias] != own:
                verdict = judge(found[alias], own, wall_s)
                found[alias] = verdict.kept
        known = found[alias]
        if type(item) is Free:
            if known is not None and known.object_id == item.object_id:
                found[alias] = changed[alias] = None
            continue
        verdict = judge(known, item, wall_s)  # type: ignore[arg-type]  # no Free
        found[alias] = verdict.kept
        if verdict.kept.object_id == item.object_id and verdict.kept != rows[alias]:
            changed[alias] = verdict.kept
        if verdict.lost is not None:
            losers.append((alias, verdict.lost, verdict.kept))
    written = [
        Row("name", alias.encode(), None if claim is None else pack(claim))
        for alias, claim in changed.items()
    ]
    if written:
        (refused,) = engine.commit([Change(ZERO_ID, rows=written)])
        if refused is not None:
            raise refused
    votes = {alias: claim for alias, claim in found.items() if claim is not None}
    return Kept(votes, losers)


def is_held(engine: Engine, object_id: ObjectId, followed: Container[ObjectId]) -> bool:
    """Return whether what is on this disk is the object, and no copy of it."""
    return object_id not in followed and engine.row("staged", object_id) is None


def own_claim(
    engine: Engine, me: PeerId, alias: str, followed: Container[ObjectId] = ()
) -> Claim | None:
    """Return the claim of an object that this peer holds; None where it holds none."""
    object_id = engine.resolve(alias)
    if object_id is None or not is_held(engine, object_id, followed):
        return None
    try:
        head = engine.head(object_id)
    except CorruptRecordError:
        # When it was made cannot be read; it has the name all the same.
        return Claim(object_id, me, 0.0, True)
    return None if head is None else Claim(object_id, me, head.created_s, True)


def claim_of(engine: Engine, alias: str) -> Claim | None:
    """Return what this peer keeps of an alias."""
    try:
        value = engine.row("name", alias.encode())
        return None if value is None else unpack(value)
    except (CorruptRecordError, *packing.UNPACK_ERRORS):
        return None  # Whoever holds the object tells it again.


def claims_of(engine: Engine) -> Iterator[tuple[str, Claim]]:
    """Yield every claim that this peer keeps and that can be read."""
    for key, value in engine.rows("name"):
        try:
            yield key.decode(), unpack(value)
        except packing.UNPACK_ERRORS:  # noqa: PERF203 - one bad row costs itself only
            continue


def pack(claim: Claim) -> bytes:
    """Return the value of a claim's row."""
    return bytes(packing.pack(list(claim)))


def unpack(value: bytes) -> Claim:
    """Return the claim in the value of a row."""
    object_id, holder, claimed_s, is_confirmed, lapses_s = packing.unpack(value)[:5]
    return Claim(
        ObjectId(bytes(object_id)), PeerId(bytes(holder)), float(claimed_s),
        bool(is_confirmed), float(lapses_s),
    )  # fmt: skip


# -- on the wire ---------------------------------------------------------------------------


def told(items: Sequence[tuple[str, Item]]) -> list[list[Any]]:
    """Return claims and freed names as they travel."""
    return [
        [alias, item.object_id, item.holder, item.claimed_s, item.is_confirmed]
        if type(item) is Claim
        else [alias, item.object_id, None, 0.0, True]
        for alias, item in items
    ]


def heard(rows: object) -> list[tuple[str, Item]]:
    """Return claims and freed names that a peer told.

    Raises:
        RemoteProtocolError: they are not what they must be.
        InvalidRequestError: an alias cannot be one.
    """
    if type(rows) is not list or len(rows) > TELL_MAX:
        raise RemoteProtocolError(f"claims must be a list of up to {TELL_MAX}", "claim")
    return [_heard(row) for row in rows]


def votes_heard(answer: object) -> dict[str, Claim] | None:
    """Return the claims that a keeper answered with; None where it makes no sense."""
    rows = answer.get("votes") if type(answer) is dict else None
    if type(rows) is not list:
        return None
    try:
        items = [_heard(row) for row in rows]
    except ActiveStoreError:
        return None
    return {alias: item for alias, item in items if type(item) is Claim}


def _heard(row: object) -> tuple[str, Item]:
    if type(row) is not list or len(row) < 5:
        raise RemoteProtocolError("a claim must be a list of five", "claim")
    alias, object_id, holder, claimed_s, is_confirmed = row[:5]
    is_good = (
        type(object_id) is bytes
        and len(object_id) == OBJECT_ID_BYTES
        and (holder is None or type(holder) is bytes)
        and len(holder or bytes(PEER_ID_BYTES)) == PEER_ID_BYTES
        and type(claimed_s) is float
        and math.isfinite(claimed_s)
        and type(is_confirmed) is bool
    )
    if type(alias) is not str or not is_good:
        raise RemoteProtocolError("a claim has fields of other kinds", "claim")
    check_alias(alias)
    who = ObjectId(object_id)
    if holder is None:
        return alias, Free(who)
    return alias, Claim(who, PeerId(holder), claimed_s, is_confirmed)
