"""How full the store is, and what may still come: shares of the budget, and the disk.

    used = pages of the tables + large files + what the batch in the making adds

Tables are counted exactly before each batch; within a batch each change is added as it
is taken, so that a bound holds within one change and not within one batch.

Rules of this file: numbers only; who counts them is the engine.

Source: design section 6; reliability.md 4.2.
"""

from __future__ import annotations

import sys

from activestore.errors import StorageFullError

# Shares of the budget at which new objects, then growth, are refused.
NEW_SHARE, GROWTH_SHARE = 0.80, 0.95
# Where an object is must be kept even where no state is taken: it is not found without.
ROWS_SHARE = 1.0
# Unreferenced files are removed early when little room is left and they are more than
# this share of the budget: a round costs a transaction.
GARBAGE_SHARE = 1 / 64
# What a record costs beside its content: key, checksum, node header, half-full pages.
RECORD_BYTES = 512


class Room:
    """How full the store is."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.table_bytes = 0
        self.blob_bytes = 0
        self.dead_bytes = 0  # of blob_bytes, what nothing references any more
        self.pending_bytes = 0
        # What tables, and one file, may take of the disk until it is looked at again.
        self.disk_table_bytes = sys.maxsize
        self.disk_file_bytes = sys.maxsize
        self.has_refused = False

    @property
    def used_bytes(self) -> int:
        """What tables and files take."""
        return self.table_bytes + self.blob_bytes + self.pending_bytes

    def is_over(self, share: float) -> bool:
        """Whether more than this share of the budget is used."""
        return self.used_bytes > share * self.budget_bytes

    @property
    def is_garbage_due(self) -> bool:
        """Whether unreferenced files should go now rather than at their time."""
        if self.has_refused or not self.dead_bytes:
            return self.dead_bytes > 0
        is_short = self.is_over(NEW_SHARE) or self.disk_table_bytes != sys.maxsize
        return is_short and self.dead_bytes > GARBAGE_SHARE * self.budget_bytes

    def why_not_new(self, size: int) -> StorageFullError | None:
        """Return what refuses a new object of this size, tables and files together."""
        after = self.used_bytes + size
        if self.is_over(NEW_SHARE) or after > GROWTH_SHARE * self.budget_bytes:
            return self.full("new objects are refused at 80 %")
        return None

    def why_not_grow(self, size: int) -> StorageFullError | None:
        """Return what refuses an object that would grow by this much."""
        after = self.used_bytes + size
        if size > 0 and after > GROWTH_SHARE * self.budget_bytes:
            return self.full("growth is refused at 95 %")
        return None

    def why_not_rows(self, size: int) -> StorageFullError | None:
        """Return what refuses rows that take this much more."""
        after = self.used_bytes + size
        if size > 0 and after > ROWS_SHARE * self.budget_bytes:
            return self.full("facts about the cluster are refused at 100 %")
        return None

    def why_not_on_disk(
        self, table_bytes: int, file_bytes: int
    ) -> StorageFullError | None:
        """Return what refuses this much more in the tables, and in one file."""
        left = self.disk_table_bytes - self.pending_bytes
        if 0 < table_bytes > left or 0 < file_bytes > self.disk_file_bytes:
            return self.full("the disk is full")
        return None

    def full(self, reason: str) -> StorageFullError:
        """Return the error that names the numbers."""
        self.has_refused = True
        return StorageFullError(self.used_bytes, self.budget_bytes, reason)
