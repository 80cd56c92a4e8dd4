"""What a leader keeps of one state that it wrote, and of one member of the group.

Rules of this file: data, and what is read off it; see `leading`.

Source: reliability.md 3.4 R4, R5.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any

from activestore.wire.replicas import Config, Point

# Nothing was acknowledged under this epoch; numbers begin with 1.
NOTHING = 0
# What an entry takes besides its change, about.
ENTRY_BYTES = 256


class Entry:
    """A state that this leader has under its epoch: one number, one value for ever."""

    __slots__ = (
        "base",
        "begun_s",
        "change",
        "config",
        "is_deleted",
        "number",
        "outcome",
        "size",
    )

    def __init__(
        self, number: int, config: Config, change: Any, *, is_deleted: bool, size: int
    ) -> None:
        self.number = number
        self.config = config
        self.change = change
        self.is_deleted = is_deleted
        self.size = size + ENTRY_BYTES
        self.base = Point()
        self.begun_s = 0.0  # when it was on this disk
        self.outcome: bool | None = None  # on this disk? None: not known yet


def config_at(entries: Iterable[Entry], number: int, committed: Config) -> Config:
    """Return the config of the state of a number; `committed`: where no entry tells."""
    for entry in entries:
        if entry.number <= number:
            committed = entry.config
    return committed


def is_deleted_at(entries: Iterable[Entry], number: int) -> bool:
    """Return whether what is deleted in the end was so at a number already."""
    return not any(one.is_deleted and one.number > number for one in entries)


class Mode(enum.Enum):
    """What a member is sent."""

    LIVE = 0  # what follows on what it has
    BEHIND = 1  # the whole is to be sent
    WHOLE = 2  # the whole was sent, and is not acknowledged
    FULL = 3  # its disk is full: nothing, for a while


class Member:
    """How far a member is."""

    __slots__ = ("acked", "confirmed", "mode", "sent", "sent_s", "told")

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.acked = NOTHING
        self.sent = NOTHING
        self.sent_s = 0.0
        self.told = NOTHING
        self.confirmed = 0
