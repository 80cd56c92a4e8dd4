"""What the `extra` map of a request says, as far as it is what it must be.

Rules of this file: what is anything else counts as left out; nothing is refused.

Source: schemas/protocol.md sections 2, 4 and 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from activestore.core.fences import Fence
from activestore.ids import OBJECT_ID_BYTES, PEER_ID_BYTES, ObjectId, PeerId
from activestore.wire.limits import OPEN_TOLD_MAX, UNLED
from activestore.wire.replicas import COUNTER_MAX

# Marks of one chain: it is refused long before.
CHAIN_MAX = 64


def callers(extra: Any) -> tuple[Sequence[tuple[bytes, int]], int, int]:
    """Return a nested call's callers: their marks, how many, when the first began."""
    if not extra:
        return (), 0, 0
    depth, began_ms = int(number(extra, "depth")), int(number(extra, "began_ms"))
    return _chain(extra.get("chain", ())), depth, began_ms


def _chain(found: Any) -> Sequence[tuple[bytes, int]]:
    """Return the marks in a chain, none where it is anything else."""
    if type(found) is not list or len(found) > CHAIN_MAX:
        return ()
    is_good = all(
        type(one) is list
        and len(one) == 2
        and type(one[0]) is bytes
        and type(one[1]) is int
        for one in found
    )
    return [(one[0], one[1]) for one in found] if is_good else ()


def fence(extra: Any) -> Fence | None:
    """Return under which epoch the caller of a nested call is led, None where it is not."""
    found = extra.get("fence")
    if type(found) is not list or len(found) != 3:
        return None
    caller, lineage, epoch = found
    is_good = type(caller) is bytes and len(caller) == OBJECT_ID_BYTES
    is_good = is_good and type(lineage) is type(epoch) is int
    if not is_good or lineage < 0 or not 0 <= epoch <= COUNTER_MAX:
        return None
    return Fence(ObjectId(caller), lineage, epoch)


class Unled(NamedTuple):
    """Who said that it knows of nobody who leads an object, up to which epoch."""

    epoch: int
    peer_id: PeerId


NOT_SAID = Unled(0, PeerId(b""))


def unled(extra: Any) -> Unled:
    """Return who told that it leads in vain, or waits for a leader."""
    found = extra.get(UNLED) if extra else None
    if type(found) is not list or len(found) != 2:
        return NOT_SAID
    epoch, peer_id = found
    if type(epoch) is not int or not 0 < epoch <= COUNTER_MAX:
        return NOT_SAID
    if type(peer_id) is not bytes or len(peer_id) != PEER_ID_BYTES:
        return NOT_SAID
    return Unled(epoch, PeerId(peer_id))


def number(extra: Any, key: str) -> float:
    """Return a number of 0 or more, 0 where it is anything else."""
    value = extra.get(key, 0)
    return value if type(value) is int and value >= 0 else 0


def numbers(extra: Any, key: str) -> Sequence[int]:
    """Return a list of few numbers, none where it is anything else."""
    found = extra.get(key, ())
    is_good = type(found) is list and len(found) <= OPEN_TOLD_MAX
    return found if is_good and all(type(n) is int for n in found) else ()
