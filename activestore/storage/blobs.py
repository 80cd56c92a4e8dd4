"""Large buffers as files named by their content: written once, then only referenced.

A file is written to `tmp/`, synced, renamed to its address, and its directory is
synced; only then may a record name it. The address is the BLAKE2b of the BLAKE2b
digests of its pieces, so that two threads can hash one file while a third writes it.

A file is checked when it is first opened, when it is sent to another peer, and when all
that is kept is looked through.

Rules of this file: a file at an address is never changed; who references it, and when
it may go, is the engine's business.

Source: design section 6; reliability.md 4.2.
"""

from __future__ import annotations

import concurrent.futures
import errno
import hashlib
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from activestore.errors import CorruptRecordError
from activestore.storage.records import DIGEST_BYTES
from activestore.wire.messages import PartedBuffer, whole
from activestore.wire.state import AnyBuffer, FileBuffer

PIECE_BYTES = 4 * 1024 * 1024
HASH_THREADS = 2
# Files whose content was checked since the engine was opened.
VERIFIED_MAX = 65_536

# What the operating system says when there is no room.
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

FILE_MISSING = "the file is missing"
FILE_WRONG = "its content is not what its name says"


def view_of(buffer: AnyBuffer) -> memoryview:
    """Return the bytes of a buffer; a file is mapped, its descriptor stays open."""
    if not isinstance(buffer, FileBuffer):
        return memoryview(whole(buffer)).cast("B")
    start = buffer.offset - buffer.offset % mmap.ALLOCATIONGRANULARITY
    skipped = buffer.offset - start
    memory = mmap.mmap(
        buffer.fd, buffer.nbytes + skipped, access=mmap.ACCESS_READ, offset=start
    )
    return memoryview(memory)[skipped:]


def pieces_of(buffer: AnyBuffer) -> Iterator[memoryview]:
    """Yield a buffer piece by piece: all but the last have PIECE_BYTES."""
    # A frame holds whole pieces, so that parts need not be joined.
    parts = buffer.parts if isinstance(buffer, PartedBuffer) else [view_of(buffer)]
    for part in parts:
        view = memoryview(part).cast("B")
        for start in range(0, view.nbytes, PIECE_BYTES):
            yield view[start : start + PIECE_BYTES]


class Blobs:
    """The files of one data directory."""

    def __init__(self, directory: Path, temporary: Path) -> None:
        self._directory = directory
        self._temporary = temporary
        self._next = 0
        self._verified: OrderedDict[bytes, None] = OrderedDict()
        self._verified_lock = threading.Lock()  # Writer and readers note what they saw.
        self._hashers = concurrent.futures.ThreadPoolExecutor(
            HASH_THREADS, thread_name_prefix="hash"
        )
        directory.mkdir(exist_ok=True)
        temporary.mkdir(exist_ok=True)
        for left in temporary.iterdir():
            left.unlink()  # Of a write that a crash cut short; nothing names it.

    def path_of(self, digest: bytes) -> Path:
        """Return where the file with this address is."""
        text = digest.hex()
        return self._directory / text[:2] / text[2:4] / text

    def write(self, buffer: AnyBuffer) -> bytes:
        """Keep a buffer and return its address; durable on return.

        Raises:
            OSError: the disk is full or failed; nothing is left behind.
        """
        self._next += 1
        path = self._temporary / f"{os.getpid()}-{self._next}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                hashes = []
                for piece in pieces_of(buffer):
                    hashes.append(self._hashers.submit(_hash, piece))
                    _write(fd, piece)
                os.fsync(fd)
            finally:
                os.close(fd)
            digest = _join([future.result() for future in hashes])
            target = self.path_of(digest)
            self._make_directories(target.parent)
            path.rename(target)
            sync_directory(target.parent)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        self._remember(digest)
        return digest

    def _make_directories(self, directory: Path) -> None:
        for parent in (directory.parent, directory):
            if not parent.exists():
                parent.mkdir(exist_ok=True)
                sync_directory(parent.parent)

    def open(
        self, digest: bytes, size: int, object_id: bytes, *, is_afresh: bool = False
    ) -> FileBuffer:
        """Open a file for reading; its content is checked the first time.

        `is_afresh`: and now, whatever was seen of it before.

        Raises:
            CorruptRecordError: it is not there, or not what its name says.
        """
        fd = self._open(digest, size, object_id)
        if is_afresh:
            self._forget(digest)
        if digest not in self._verified:
            try:
                if self._digest_of(fd, size, object_id, digest) != digest:
                    raise _damaged(object_id, digest, FILE_WRONG)
            except BaseException:
                os.close(fd)
                raise
            self._remember(digest)
        return FileBuffer(fd, 0, size)

    def check(self, digest: bytes, size: int) -> Iterator[int]:
        """Read a file whole; yield the bytes of each piece.

        From the disk, where the system lets go of what it remembers of the file.

        Raises:
            CorruptRecordError: it is not there, cannot be read, or is not what its name
                says.
        """
        self._forget(digest)
        hashes = []
        fd = self._open(digest, size, b"")
        try:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            for start in range(0, size, PIECE_BYTES):
                hashes.append(_hash_at(fd, start, b"", digest))
                yield min(PIECE_BYTES, size - start)
        finally:
            os.close(fd)
        if _join(hashes) != digest:
            raise _damaged(b"", digest, FILE_WRONG)
        self._remember(digest)

    def _open(self, digest: bytes, size: int, object_id: bytes) -> int:
        try:
            fd = os.open(self.path_of(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _damaged(object_id, digest, FILE_MISSING) from None
        if os.fstat(fd).st_size != size:
            os.close(fd)
            raise _damaged(object_id, digest, FILE_WRONG)
        return fd

    def _digest_of(self, fd: int, size: int, object_id: bytes, digest: bytes) -> bytes:
        def hash_at(start: int) -> bytes:
            return _hash_at(fd, start, object_id, digest)

        return _join(list(self._hashers.map(hash_at, range(0, size, PIECE_BYTES))))

    def _remember(self, digest: bytes) -> None:
        with self._verified_lock:
            self._verified[digest] = None
            self._verified.move_to_end(digest)
            if len(self._verified) > VERIFIED_MAX:
                self._verified.popitem(last=False)

    def _forget(self, digest: bytes) -> None:
        with self._verified_lock:
            self._verified.pop(digest, None)

    def remove(self, digest: bytes) -> None:
        """Remove a file that nothing references."""
        self._forget(digest)
        self.path_of(digest).unlink(missing_ok=True)

    def files(self) -> Iterator[tuple[bytes, os.stat_result]]:
        """Yield address and status of every file."""
        for first in self._directory.iterdir():
            for second in first.iterdir():
                for path in second.iterdir():
                    name = path.name
                    if len(name) == 2 * DIGEST_BYTES:
                        yield bytes.fromhex(name), path.stat()

    def unnamed_before(self, before_s: float) -> Iterator[tuple[bytes, int]]:
        """Yield address and size of files that were written before a wall-clock time."""
        for digest, about in self.files():
            if about.st_mtime <= before_s:
                yield digest, about.st_size

    def close(self) -> None:
        """Stop the hashing threads."""
        self._hashers.shutdown()


def _write(fd: int, piece: memoryview) -> None:
    while piece.nbytes:
        piece = piece[os.write(fd, piece) :]


def _hash(piece: memoryview) -> bytes:
    return hashlib.blake2b(piece, digest_size=DIGEST_BYTES).digest()


def _hash_at(fd: int, start: int, object_id: bytes, digest: bytes) -> bytes:
    """Return the digest of a piece, read and not mapped.

    A map of what the disk cannot give back would end the process with SIGBUS.
    """
    try:
        return _hash(memoryview(os.pread(fd, PIECE_BYTES, start)))
    except OSError as error:
        reason = f"it cannot be read at {start}: {error.strerror}"
        raise _damaged(object_id, digest, reason) from None


def _damaged(object_id: bytes, digest: bytes, reason: str) -> CorruptRecordError:
    return CorruptRecordError(object_id, f"blob {digest.hex()[:16]}", reason)


def _join(digests: list[bytes]) -> bytes:
    return hashlib.blake2b(b"".join(digests), digest_size=DIGEST_BYTES).digest()


def address_of(content: bytes) -> bytes:
    """Return the address that a file with this content has."""
    return _join([_hash(piece) for piece in pieces_of(content)])


def sync_directory(path: Path) -> None:
    """Make renames and new names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
