"""How two peers compare all they know without sending it: push-pull; pure.

    A -> B  Sync    of every peer its incarnation and state (15 B); A's own record
    B -> A  Synced  the records of what is newer at B; the ids of what is newer at A
    A -> B  Synced  the records that B asked for

Each Sync covers a range of ids, `extra["from"]` to `extra["to"]`, so that B can see what A
does not know at all, part by part.

Source: hashicorp/memberlist pushPullNode, which sends whole states: 150 B a peer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

from activestore.core.member_table import Member, MemberTable
from activestore.core.peers import PeerState, start_of
from activestore.wire.gossip import SYNC_PART_BYTES_MAX, Update, encode_body
from activestore.wire.messages import Sync

_LOWEST = b"\x00" * 6
_HIGHEST = b"\xff" * 6


def digest(table: MemberTable) -> Iterator[tuple[dict[str, object], bytes]]:
    """Yield (extra, body) of each Sync that covers the whole table together."""
    rows: list[bytes] = []
    low, size = _LOWEST, 0
    for peer_id in sorted(table.members):
        member = table.members[peer_id]
        if not member.incarnation:  # Only an address: its owner will say more.
            continue
        row = member.full_row() if member is table.me else member.short_row()
        if size + len(row) > SYNC_PART_BYTES_MAX:
            yield {"from": low, "to": _before(peer_id)}, encode_body(rows)
            rows, low, size = [], peer_id, 0
        rows.append(row)
        size += len(row)
    yield {"from": low, "to": _HIGHEST}, encode_body(rows)


def _before(peer_id: bytes) -> bytes:
    return (int.from_bytes(peer_id, "big") - 1).to_bytes(len(peer_id), "big")


def question(table: MemberTable, peer_id: bytes) -> Sync:
    """Return a Sync that covers one peer only: it answers with its own record."""
    extra = {"from": peer_id, "to": peer_id}
    return Sync(table.me.record.peer_id, extra, encode_body([table.me.full_row()]))


def is_to_tell(member: Member, update: Update) -> bool:
    """Whether the sender of an update should hear what is believed here.

    It should where that counts more; and where the sender speaks of itself, and an
    earlier start of it, or a copy, is known here at the same incarnation.
    """
    if not member.incarnation:
        return False
    mine = (member.incarnation, member.state)
    theirs = (update.incarnation, update.state)
    if mine == theirs and update.record is not None:
        return start_of(member.record) != start_of(update.record)
    return mine > theirs


def is_enough(update: Update, member: Member | None) -> bool:
    """Whether a row of a digest can be taken as it is; else its record is wanted."""
    if update.record is not None or update.state >= PeerState.DEAD:
        return True
    return member is not None and (
        update.incarnation < member.incarnation
        or (update.incarnation == member.incarnation)
    )


def rows_untold(
    table: MemberTable, told: Set[bytes], extra: Mapping[str, object] | None
) -> list[bytes]:
    """Return the records of all live peers in a Sync's range that it did not name."""
    low, high = (extra or {}).get("from"), (extra or {}).get("to")
    if type(low) is not bytes or type(high) is not bytes:
        return []
    return [
        member.full_row()
        for peer_id, member in table.members.items()
        if low <= peer_id <= high
        and peer_id not in told
        and member.is_live
        and member.incarnation
    ]


def parts(rows: Sequence[bytes], wants: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bodies of an answer, each within SYNC_PART_BYTES_MAX; at least one.

    The ids that are wanted come with the last: a digest's part has at most 2,000.
    """
    part: list[bytes] = []
    size = 0
    for row in rows:
        if size + len(row) > SYNC_PART_BYTES_MAX:
            yield encode_body(part)
            part, size = [], 0
        part.append(row)
        size += len(row)
    yield encode_body(part, (), wants)
