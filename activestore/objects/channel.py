"""The channel between the daemon and a slot of an executor: messages and large buffers.

A Unix stream socket carries msgpack arrays, many per write. A buffer of
BUFFER_BYTES_MIN or more crosses in shared memory: a region that its owner writes once
and the other side maps; the descriptor of a region crosses once, after that its number
does. Regions are reused, for fresh pages cost more than the copy into them. A file
crosses as its descriptor.

    buffer on the channel:  bytes | [SHARED, region, size] | [FRESH, region, size] + fd
                            | [FILE, offset, size] + fd

Rules of this file: descriptors arrive no later than the bytes that name them, so they
are taken in order; nothing has a name in the file system, so nothing is left behind by
a kill.

Source: design sections 3 and 5 (shared memory).
"""

from __future__ import annotations

import array
import mmap
import os
import socket
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from activestore.wire import packing
from activestore.wire.limits import BUFFER_BYTES_MIN
from activestore.wire.messages import Buffer, PartedBuffer, whole
from activestore.wire.state import AnyBuffer, FileBuffer, buffer_bytes_count

SHARED, FRESH, FILE = 0, 1, 2

# Bytes asked of the socket at once; 64 small calls fit.
RECEIVE_BYTES = 64 * 1024
# Descriptors that one write may carry; Linux allows 253.
DESCRIPTORS_MAX = 64
# Free regions that an owner keeps for reuse, in bytes.
FREE_BYTES_MAX = 256 * 1024 * 1024
# One message, inline part: states of small fields, never large buffers.
MESSAGE_BYTES_MAX = 1 << 30

_ANCILLARY_BYTES = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)
_pack = packing.pack


def make_region_fd(size: int) -> int:
    """Return a descriptor of `size` bytes of memory without a name."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("activestore", os.MFD_CLOEXEC)
    else:  # macOS: a file that is unlinked at once.
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd


class _Region:
    __slots__ = ("fd", "is_known", "memory", "number", "size")

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.size = size
        self.fd = make_region_fd(size)
        self.memory = mmap.mmap(self.fd, size)
        self.is_known = False  # Whether the other side has the descriptor.


class RegionPool:
    """The regions that one side owns towards one other process.

    Not thread-safe; `release` alone may be called from any thread.
    """

    def __init__(self) -> None:
        self._regions: dict[int, _Region] = {}
        self._free: dict[int, list[_Region]] = {}  # by size
        self._free_bytes = 0
        self._released: deque[int] = deque()
        self._next = 1
        self.gone: list[int] = []  # numbers whose descriptors the other side may close

    def put(self, buffer: Buffer | PartedBuffer) -> tuple[list[int], int | None]:
        """Copy a buffer into a region; return its form on the channel, and a new fd.

        The copy is the only one on the way: the other side maps the region.
        """
        parts = buffer.parts if isinstance(buffer, PartedBuffer) else (buffer,)
        nbytes = buffer_bytes_count(buffer)
        region = self._take(nbytes)
        start = 0
        for part in parts:
            view = memoryview(part).cast("B")
            region.memory[start : start + view.nbytes] = view
            start += view.nbytes
        if region.is_known:
            return [SHARED, region.number, nbytes], None
        region.is_known = True
        return [FRESH, region.number, nbytes], region.fd

    def release(self, number: int) -> None:
        """Note that the other side has let go of a region."""
        self._released.append(number)

    def _take(self, nbytes: int) -> _Region:
        while self._released:
            self._recycle(self._released.popleft())
        # Powers of two and their three-quarter steps: at most a third is wasted.
        size = max(BUFFER_BYTES_MIN, 1 << (nbytes - 1).bit_length())
        if nbytes <= size * 3 // 4:
            size = size * 3 // 4
        free = self._free.get(size)
        if free:
            region = free.pop()
            self._free_bytes -= size
            return region
        region = _Region(self._next, size)
        self._next += 1
        self._regions[region.number] = region
        return region

    def _recycle(self, number: int) -> None:
        region = self._regions.get(number)
        if region is None:
            return
        if self._free_bytes + region.size > FREE_BYTES_MAX:
            del self._regions[number]
            region.memory.close()
            os.close(region.fd)
            self.gone.append(number)
            return
        self._free_bytes += region.size
        self._free.setdefault(region.size, []).append(region)

    def close(self) -> None:
        """Give all memory back."""
        for region in self._regions.values():
            region.memory.close()
            os.close(region.fd)
        self._regions.clear()
        self._free.clear()


class MappedRegions:
    """The other side's regions, as this process maps them."""

    def __init__(self, released: Callable[[int], None]) -> None:
        self._released = released
        self._fds: dict[int, int] = {}

    def open(self, described: Sequence[int], fds: deque[int]) -> AnyBuffer:
        """Return the buffer that a channel form names, mapped writable.

        A shared region is given back when the last view of it is gone.
        """
        form, number, size = described
        if form == FILE:
            return FileBuffer(fds.popleft(), number, size)
        if form == FRESH:
            self._fds[number] = fds.popleft()
        populate = getattr(mmap, "MAP_POPULATE", 0)
        memory = mmap.mmap(self._fds[number], size, flags=mmap.MAP_SHARED | populate)
        # The finalizer hangs on the map, not on a view: views of views keep only the
        # map.
        weakref.finalize(memory, self._released, number).atexit = False
        return memoryview(memory)

    def forget(self, numbers: Sequence[int]) -> None:
        """Close the descriptors of regions that their owner has dropped."""
        for number in numbers:
            fd = self._fds.pop(number, None)
            if fd is not None:
                os.close(fd)

    def close(self) -> None:
        """Close all descriptors."""
        self.forget(list(self._fds))


def map_file(buffer: FileBuffer) -> memoryview:
    """Map a file buffer copy-on-write, close its descriptor, return the writable view."""
    start = buffer.offset - buffer.offset % mmap.ALLOCATIONGRANULARITY
    skipped = buffer.offset - start
    try:
        memory = mmap.mmap(
            buffer.fd, buffer.nbytes + skipped, access=mmap.ACCESS_COPY, offset=start
        )
    finally:
        os.close(buffer.fd)
    return memoryview(memory)[skipped:]


class Channel:
    """One end of a channel. The owner decides which thread reads and which writes."""

    def __init__(
        self, sock: socket.socket, pool: RegionPool, mapped: MappedRegions
    ) -> None:
        self.sock = sock
        self.pool = pool
        self._mapped = mapped
        self._unpacker = packing.stream_unpacker(MESSAGE_BYTES_MAX)
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._fds: deque[int] = deque()
        self._out: list[bytes] = []
        self._out_fds: list[int] = []
        self._close_after: list[int] = []
        self._backlog: deque[tuple[memoryview, list[int], list[int]]] = deque()

    def fileno(self) -> int:
        """Return the socket's descriptor, for polling."""
        return self.sock.fileno()

    # -- out ---------------------------------------------------------------------------

    def describe(self, buffers: Sequence[AnyBuffer | int]) -> list[Any]:
        """Return buffers in their channel form; new descriptors go with the next write."""
        described: list[Any] = []
        for buffer in buffers:
            if isinstance(buffer, FileBuffer):
                self._out_fds.append(buffer.fd)
                self._close_after.append(buffer.fd)
                described.append([FILE, buffer.offset, buffer.nbytes])
            elif isinstance(buffer, int):
                described.append(buffer)
            elif buffer_bytes_count(buffer) >= BUFFER_BYTES_MIN:
                form, fd = self.pool.put(buffer)
                if fd is not None:
                    self._out_fds.append(fd)
                described.append(form)
            else:
                described.append(bytes(whole(buffer)))
        return described

    def put(self, message: Sequence[Any]) -> None:
        """Add a message to the next write."""
        self._out.append(_pack(message))
        if len(self._out_fds) > DESCRIPTORS_MAX // 2:
            self._seal()

    def put_descriptor(self, message: Sequence[Any], fd: int) -> None:
        """Add a message that hands a descriptor over; this side closes its own."""
        self._out_fds.append(fd)
        self._close_after.append(fd)
        self.put((*message, [[FILE, 0, 0]]))

    def forget(self, numbers: Sequence[int]) -> None:
        """Close the descriptors of regions that the other side has dropped."""
        self._mapped.forget(numbers)

    @property
    def has_output(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._out or self._backlog)

    def _seal(self) -> None:
        """Close the current write: its descriptors travel with its first byte."""
        if self._out:
            data = b"".join(self._out) if len(self._out) > 1 else self._out[0]
            self._backlog.append((memoryview(data), self._out_fds, self._close_after))
            self._out, self._out_fds, self._close_after = [], [], []

    def flush(self) -> bool:
        """Write what waits; False where the socket takes no more now.

        On a blocking socket it returns when all is written.

        Raises:
            OSError: the other side is gone.
        """
        if self._out and not self._backlog and not self._out_fds:
            data = b"".join(self._out) if len(self._out) > 1 else self._out[0]
            self._out = []
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                sent = 0
            if sent < len(data):
                self._backlog.append((memoryview(data)[sent:], [], []))
            else:
                return True
        self._seal()
        return self._flush_backlog()

    def _flush_backlog(self) -> bool:
        backlog = self._backlog
        while backlog:
            data, fds, close_after = backlog[0]
            try:
                if fds:
                    sent = self._send_with(data, fds)
                    for fd in close_after:
                        os.close(fd)
                else:
                    sent = self.sock.send(data)
            except BlockingIOError:
                return False
            if sent < len(data):
                backlog[0] = (data[sent:], [], [])
            else:
                backlog.popleft()
        return True

    def _send_with(self, data: memoryview, fds: list[int]) -> int:
        first, rest = fds[:DESCRIPTORS_MAX], fds[DESCRIPTORS_MAX:]
        if rest:
            # More descriptors than one write takes: a byte each, ahead of the rest.
            self.sock.sendmsg(
                [data[:1]],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", first))],
            )
            return 1 + self._send_with(data[1:], rest)
        return self.sock.sendmsg(
            [data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", first))]
        )

    # -- in ----------------------------------------------------------------------------

    def receive(self, flags: int = 0) -> Iterator[Any]:
        """Read what is there and yield the complete messages.

        Raises:
            BlockingIOError: nothing is there, on a socket or with a flag that does not
            wait.
            EOFError: the other side is gone.
        """
        count, ancillary, _, _ = self.sock.recvmsg_into(
            [self._buffer], _ANCILLARY_BYTES, flags
        )
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                self._fds.extend(fds)
        if not count:
            raise EOFError("the other end of the channel is closed")
        self._unpacker.feed(self._buffer[:count])
        messages: Iterator[Any] = self._unpacker
        return messages

    def open_buffers(self, described: Sequence[Any]) -> list[Any]:
        """Return the buffers of a message that was just received, in order."""
        return [
            self._mapped.open(form, self._fds) if type(form) is list else form
            for form in described
        ]

    def close(self) -> None:
        """Close the socket and what came over it unread."""
        self.sock.close()
        self._mapped.close()
        unsent = [fd for _, _, fds in self._backlog for fd in fds]
        for fd in (*unsent, *self._close_after, *self._fds):
            os.close(fd)
        self._backlog.clear()
        self._close_after.clear()
        self._fds.clear()
