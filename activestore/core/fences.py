"""Fences: which of the calls that other objects make came too late to count.

A leader that was deposed and does not know it, for it is cut off from its own group, may
still reach others. What its run then calls there would mix with what its successor's
runs do. So a nested call of an object with a register says under which epoch its run is
led, and each target keeps the newest epoch of each caller, and refuses older ones.

    nested call with a Fence, the target's fences not known -> LookUpFences
    FencesLookedUp -> admitted: what is newer is kept with the next commit of the target
                   -> refused: its caller was led under a newer epoch already

They are kept as an answer of the target, under a session that is nobody's: its own id.
So they are committed, shipped, moved and backed up with its state, and go when they were
not written anew for as long as answers are kept.

Rules of this file: data; an epoch only goes up; what is damaged is never guessed.

Source: reliability.md 3.4 R7; decision 11.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from activestore.errors import RemoteProtocolError
from activestore.ids import OBJECT_ID_BYTES, ObjectId
from activestore.wire import packing

# Callers of one object whose epochs are kept; beyond it the one goes whose epoch is the
# oldest known. All of them are one record, which a caller's new epoch writes anew: it
# has 10 KiB at most.
FENCES_MAX = 256
# The number of that record in its session; requests count from 1.
FENCES_SEQUENCE = 0


class Fence(NamedTuple):
    """Under which epoch the object is led whose run makes a call.

    `lineage`: that of its group. Of two the higher one counts, whatever the epochs.
    """

    caller: ObjectId
    lineage: int
    epoch: int


class Fences:
    """The newest lineage and epoch of each object that has called one object."""

    __slots__ = ("_newest", "is_unsaved")

    def __init__(self, kept: bytes = b"") -> None:
        """Begin with what is on disk.

        Raises:
            RemoteProtocolError: it is not what `to_save` returns.
        """
        self._newest = _unpacked(kept) if kept else {}
        self.is_unsaved = False

    def admits(self, fence: Fence) -> bool:
        """Note the epoch of a call; False where its caller has called under a newer one."""
        known = self._newest.get(fence.caller, (0, 0))
        mine = (fence.lineage, fence.epoch)
        if mine > known:
            self._newest.pop(fence.caller, None)
            self._newest[fence.caller] = mine
            if len(self._newest) > FENCES_MAX:
                del self._newest[next(iter(self._newest))]
            self.is_unsaved = True
        return mine >= known

    def epoch_of(self, caller: ObjectId) -> int:
        """Return the newest epoch that was seen of an object, 0 for none."""
        return self._newest.get(caller, (0, 0))[1]

    @property
    def callers(self) -> Iterable[ObjectId]:
        """The objects of which an epoch is known."""
        return self._newest.keys()

    def to_save(self) -> bytes:
        """Return what is to be kept of them, for a commit that is ordered now."""
        self.is_unsaved = False
        return bytes(packing.pack([[one, *at] for one, at in self._newest.items()]))

    def was_refused(self) -> None:
        """Note that a commit did not happen, which may have had them."""
        self.is_unsaved = bool(self._newest)


def _unpacked(kept: bytes) -> dict[ObjectId, tuple[int, int]]:
    try:
        newest = {}
        for caller, lineage, epoch in packing.unpack(kept):
            is_id = type(caller) is bytes and len(caller) == OBJECT_ID_BYTES
            if not is_id or not type(lineage) is type(epoch) is int:
                raise ValueError("an object id and two numbers expected")
            newest[ObjectId(caller)] = (lineage, epoch)
    except (ValueError, TypeError, *packing.UNPACK_ERRORS) as error:
        reason = f"{type(error).__name__}: {str(error)[:80]}"
        raise RemoteProtocolError(f"fences are malformed: {reason}") from None
    return newest
