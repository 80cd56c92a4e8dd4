"""Which start of its data directory this is, and what others remember of it.

The number is counted on disk, and a peer's incarnation begins with it. So a peer whose
disk was restored from a backup, or of whose directory a copy runs elsewhere, hears of a
later start than its own as soon as it meets somebody: it may have promised what its disk
has forgotten, and must not vote any more.

Rules of this file: no clock, for one that was set back would make a later start look
older.

Source: reliability.md 3.4 R9; schemas/protocol.md sections 10 and 14.
"""

from __future__ import annotations

import logging
from typing import Any

from activestore.core.peers import PeerRecord
from activestore.ids import PEER_ID_BYTES, PeerId
from activestore.storage.engine import ZERO_ID, Change, Engine, Row
from activestore.wire import packing

_log = logging.getLogger(__name__)

_KEY = b"starts"
_BYTES = 8
# Suspicions that one start may contradict before its number reaches the next one's.
REFUTATIONS_MAX = 1 << 20
_UNCOUNTED = REFUTATIONS_MAX // 2
_DISTRUSTED = b"distrusted"
# What is said of a peer where an earlier start found that its disk is too old.
WHY_MARKED = (
    "an earlier start found that its data directory is older than what others remember: it "
    "was restored from a backup with its identity, or copied. Its copies of objects have no "
    "vote; stop it, and start it with an empty directory, or with a backup restored under a "
    "new identity"
)


def count_start(engine: Engine) -> int:
    """Return the incarnation with which this start begins; write down that it was one.

    A start that a full disk could not count goes under the number of the one before, and
    has no vote: nothing that it promised could be kept.
    """
    counted = int.from_bytes(engine.row("cluster", _KEY) or b"", "big")
    row = Row("cluster", _KEY, (counted + 1).to_bytes(_BYTES, "big"))
    (refused,) = engine.commit([Change(ZERO_ID, rows=[row])])
    if refused is not None:  # It must not keep it from serving reads.
        _log.warning("this start was not counted error=%s", refused)
        return max(counted, 1) * REFUTATIONS_MAX + _UNCOUNTED
    return (counted + 1) * REFUTATIONS_MAX


def is_counted(incarnation: int) -> bool:
    """Whether a start that began with this incarnation is on its disk."""
    return incarnation % REFUTATIONS_MAX < _UNCOUNTED


def is_marked(engine: Engine) -> bool:
    """Whether an earlier start found that this disk is older than what others remember."""
    return engine.row("cluster", _DISTRUSTED) is not None


def mark(engine: Engine) -> None:
    """Remember that this disk is older than what others do: the next start counts on."""
    engine.commit([Change(ZERO_ID, rows=[Row("cluster", _DISTRUSTED, b"1")])])


def why_distrusted(
    incarnation: int, mark: object, known: int, known_mark: object
) -> str:
    """Return why a disk must not be trusted with votes, "" where it may.

    Args:
        incarnation: With which this start began.
        mark: Of this start: another one has another.
        known: The highest incarnation of this peer that another one remembers.
        known_mark: The mark that it had.
    """
    mine, theirs = incarnation // REFUTATIONS_MAX, known // REFUTATIONS_MAX
    is_another = known_mark is not None and known_mark != mark
    if theirs < mine or (theirs == mine and not is_another):
        return ""
    return (
        f"this is start {mine} of its data directory, others remember another start "
        f"{theirs}: it was restored from a backup with its identity, or a copy of it runs "
        "elsewhere. Its copies of objects have no vote; stop it, and start it with an empty "
        "directory, or with a backup restored under a new identity"
    )


# -- of others -------------------------------------------------------------------------

_PREFIX = b"start/"
# Peers whose last start is remembered; beyond it the one heard of first is forgotten.
OTHERS_MAX = 4096


class OtherStarts:
    """The last start of each other peer, on disk: to tell it, should its disk go back."""

    def __init__(self) -> None:
        self._known: dict[PeerId, tuple[int, object]] = {}
        self._unwritten: set[PeerId] = set()

    def restore(self, engine: Engine) -> None:
        """Read what was remembered."""
        for key, value in engine.rows("cluster"):
            peer_id = PeerId(key[len(_PREFIX) :])
            if not key.startswith(_PREFIX) or len(peer_id) != PEER_ID_BYTES:
                continue
            try:
                incarnation, mark = packing.unpack(value)[:2]
                self._known[peer_id] = (int(incarnation), mark)
            except packing.UNPACK_ERRORS:
                continue

    def note(self, record: PeerRecord) -> bool:
        """Remember a start; return whether it is one that is not on disk yet."""
        peer_id, mark = PeerId(record.peer_id), record.meta.get("start")
        known = self._known.get(peer_id, (0, None))
        is_same = record.incarnation // REFUTATIONS_MAX == known[0] // REFUTATIONS_MAX
        # One start has one mark: of two the first one is what the other is told.
        if record.incarnation < known[0] or (is_same and mark != known[1]):
            return False
        self._known[peer_id] = (record.incarnation, mark)
        if is_same:
            return False
        self._unwritten.add(peer_id)
        return True

    def of(self, peer_id: PeerId) -> list[Any]:
        """Return the highest incarnation of a peer, and the mark of its start."""
        return list(self._known.get(peer_id, (0, None)))

    def rows(self) -> list[Row]:
        """Return what is to be written, once."""
        found = []
        while len(self._known) > OTHERS_MAX:
            gone = next(iter(self._known))
            del self._known[gone]
            self._unwritten.discard(gone)
            found.append(Row("cluster", _PREFIX + gone, None))
        for peer_id in sorted(self._unwritten):
            value = bytes(packing.pack(self._known[peer_id]))
            found.append(Row("cluster", _PREFIX + peer_id, value))
        self._unwritten.clear()
        return found
