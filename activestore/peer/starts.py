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

from activestore.storage.engine import ZERO_ID, Change, Engine, Row

_log = logging.getLogger(__name__)

_KEY = b"starts"
_BYTES = 8
# Suspicions that one start may contradict before its number reaches the next one's.
REFUTATIONS_MAX = 1 << 20


def count_start(engine: Engine) -> int:
    """Return which start of this data directory this is, and write it down."""
    starts = int.from_bytes(engine.row("cluster", _KEY) or b"", "big") + 1
    row = Row("cluster", _KEY, starts.to_bytes(_BYTES, "big"))
    (refused,) = engine.commit([Change(ZERO_ID, rows=[row])])
    if refused is not None:  # A full disk must not keep it from serving reads.
        # If it restarts before there is room, its copies have no vote until it starts anew.
        _log.warning("this start was not counted error=%s", refused)
    return starts


def incarnation_of(starts: int) -> int:
    """Return the incarnation with which a start begins."""
    return starts * REFUTATIONS_MAX


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
