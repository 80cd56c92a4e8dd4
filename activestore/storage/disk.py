"""The disk below the environment: room is taken before it is needed.

LMDB finds out in the middle of a commit that the disk is full. So the file is given its
blocks ahead: what the next commit may write, and a reserve for deletes, which free pages
only after they wrote some. Where that fails the disk is full, and nothing was begun.

Rules of this file: it never writes content; where the system cannot give blocks ahead, it
compares with what is free.

Source: posix_fallocate(3), statvfs(3); design section 6.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from activestore.storage.blobs import NO_SPACE

# Kept for changes that do not grow: a delete writes about 40 pages before it frees any.
RESERVE_BYTES = 4 * 1024 * 1024
# Left to the system, and to the small files that a start writes.
MARGIN_BYTES = 1024 * 1024
# The file grows by an eighth, within these bounds.
STEP_BYTES_MIN, STEP_BYTES_MAX = 1024 * 1024, 64 * 1024 * 1024
# What is asked for to find out whether a failed write met a full disk: more than one
# write of a commit, which is a chunk or a reply.
PROBE_BYTES = 4 * 1024 * 1024
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS})


class DataFile:
    """The one file of an environment, and how much of it has blocks."""

    def __init__(self, path: Path, needed_bytes: int) -> None:
        """Open the file, and make it as long as the environment believes it is.

        A file that was cut short would end the process with SIGBUS where a page is
        missing; made longer, the missing pages are found damaged.
        """
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        about = os.fstat(self._fd)
        size = max(about.st_size, needed_bytes)
        if about.st_size < needed_bytes:
            os.ftruncate(self._fd, needed_bytes)
        is_whole = about.st_blocks * 512 >= size
        self.allocated_bytes = size if is_whole else 0
        if not self.ensure(size):
            self.allocated_bytes = size  # It has holes, which nobody can fill now.

    def free_bytes(self) -> int:
        """Return what the disk gives to this process, less the margin."""
        about = os.statvfs(self._path)
        return max(0, about.f_bavail * about.f_frsize - MARGIN_BYTES)

    def ensure(self, end_bytes: int) -> bool:
        """Give the file blocks up to `end_bytes`, rather more; False: the disk is full."""
        if end_bytes <= self.allocated_bytes:
            return True
        step = min(max(self.allocated_bytes // 8, STEP_BYTES_MIN), STEP_BYTES_MAX)
        free = self.free_bytes()
        for end in (end_bytes + step, end_bytes):
            start = self.allocated_bytes
            if end - start <= free and self._allocate(start, end):
                self.allocated_bytes = end
                return True
        return False

    def _allocate(self, start: int, end: int) -> bool:
        if not hasattr(os, "posix_fallocate"):
            return True
        try:
            os.posix_fallocate(self._fd, start, end - start)
        except OSError as error:
            if error.errno in NO_SPACE:
                return False
            if error.errno not in _UNSUPPORTED:
                raise
        return True

    def is_full(self) -> bool:
        """Whether a write that just failed may have failed for lack of room.

        LMDB says "input/output error" where only a part of a page fitted.
        """
        if self.free_bytes() < PROBE_BYTES:
            return True
        size = os.fstat(self._fd).st_size
        try:
            return not self._allocate(size, size + PROBE_BYTES)
        except OSError:
            return False

    def close(self) -> None:
        """Close the file; what was given to it stays."""
        os.close(self._fd)
