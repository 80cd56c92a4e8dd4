"""A network switch in user space: frames between hosts, delayed, lost, queued, cut.

Every host's device is a tap whose other end is read here, by one thread. A path leads
from one host to another, so each direction of each pair can be bad in its own way, and
chance comes from a seed.

Why not a bridge with `tc netem`: the kernels of containers and small machines are often
built without netem, and a queue at one host's device cannot tell its peers apart.

Rules of this file: a frame is never changed, and never overtakes another one of its
path; address resolution (ARP) is as cut as the rest, but neither late nor lost.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import threading
import time
from typing import NamedTuple

TUN = "/dev/net/tun"
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
FRAME_BYTES_MAX = 2048
# Frames read from one host before the others have their turn.
FRAMES_AT_ONCE = 64
_ARP = b"\x08\x06"


class Path(NamedTuple):
    """How frames travel in one direction between two hosts."""

    delay_s: float = 0.0
    loss: float = 0.0  # The share of frames that are lost, 0 to 1.
    bits_per_s: float = 0.0  # 0: as fast as it goes.
    is_cut: bool = False
    # What may wait at a slow path; the next frame is dropped, as routers do.
    queue_bytes: int = 256 * 1024


class Traffic(NamedTuple):
    """What went in one direction since the start."""

    frames: int = 0
    bytes: int = 0
    lost: int = 0


class Switch:
    """Carries frames between the hosts that are attached to it."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._fds: list[int] = []
        self._ports: dict[int, int] = {}
        self._paths: dict[tuple[int, int], Path] = {}
        self._default = Path()
        self._traffic: dict[tuple[int, int], Traffic] = {}
        self._free_s: dict[tuple[int, int], float] = {}
        self._waiting: list[tuple[float, int, int, int, bytes]] = []
        self._sequence = 0
        self._poll = select.epoll()
        self._wake_fd, self._wake_end_fd = os.pipe()
        self._poll.register(self._wake_fd, select.EPOLLIN)
        self._is_over = False
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="switch", daemon=True)
        self._thread.start()

    def attach(self, device: str) -> int:
        """Make a tap device, here and now; return the host's number from 0."""
        fd = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        flags = _IFF_TAP | _IFF_NO_PI
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH", device.encode(), flags))
        number = len(self._fds)
        self._fds.append(fd)
        self._ports[fd] = number
        self._poll.register(fd, select.EPOLLIN)
        return number

    def path(self, source: int, target: int) -> Path:
        """Return how frames travel from one host to another."""
        return self._paths.get((source, target), self._default)

    def set_path(self, source: int, target: int, path: Path) -> None:
        """Change how frames travel from now on; those under way are cut too."""
        self._paths[source, target] = path

    def set_all(self, path: Path) -> None:
        """Change how frames travel between all hosts, also those to come."""
        self._default = path
        self._paths = {}

    def traffic(self, source: int, target: int) -> Traffic:
        """Return what has gone from one host to another."""
        return self._traffic.get((source, target), Traffic())

    def close(self) -> None:
        """Stop, and take the devices away.

        Raises:
            BaseException: what ended the thread before.
        """
        self._is_over = True
        os.write(self._wake_end_fd, b"x")
        self._thread.join()
        self._poll.close()
        for fd in (*self._fds, self._wake_fd, self._wake_end_fd):
            os.close(fd)
        if self.failure is not None:
            raise self.failure

    # -- the thread --------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._is_over:
                self._turn()
        except BaseException as error:
            self.failure = error

    def _turn(self) -> None:
        timeout_s = None
        if self._waiting:
            timeout_s = max(0.0, self._waiting[0][0] - time.monotonic())
        # select() knows microseconds, where epoll would round up to milliseconds.
        select.select([self._poll], [], [], timeout_s)
        for fd, _ in self._poll.poll(0):
            if fd in self._ports:
                self._receive(fd, self._ports[fd])
        now_s = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now_s:
            _, _, source, target, frame = heapq.heappop(self._waiting)
            self._deliver(source, target, frame)

    def _receive(self, fd: int, source: int) -> None:
        for _ in range(FRAMES_AT_ONCE):
            try:
                frame = os.read(fd, FRAME_BYTES_MAX)
            except OSError:  # Nothing more, or its host is gone.
                return
            self._forward(source, frame)

    def _forward(self, source: int, frame: bytes) -> None:
        # Of an address 02:00:00:00:HH:LL, as hosts have them; anything else is for all.
        if frame[:4] == b"\x02\0\0\0":
            target = int.from_bytes(frame[4:6], "big")
            if target < len(self._fds):
                self._send(source, target, frame)
            return
        for target in range(len(self._fds)):
            if target != source:
                self._send(source, target, frame)

    def _send(self, source: int, target: int, frame: bytes) -> None:
        way = source, target
        path = self.path(source, target)
        if frame[12:14] == _ARP:
            self._deliver(source, target, frame)
            return
        if path.is_cut or (path.loss and self._random.random() < path.loss):
            self._count(way, lost=1)
            return
        due_s = time.monotonic()
        if path.bits_per_s:
            start_s = max(due_s, self._free_s.get(way, 0.0))
            if (start_s - due_s) * path.bits_per_s / 8 > path.queue_bytes:
                self._count(way, lost=1)
                return
            due_s = self._free_s[way] = start_s + len(frame) * 8 / path.bits_per_s
        due_s += path.delay_s
        self._sequence += 1
        heapq.heappush(self._waiting, (due_s, self._sequence, source, target, frame))

    def _deliver(self, source: int, target: int, frame: bytes) -> None:
        way = source, target
        if self.path(source, target).is_cut:
            self._count(way, lost=1)
            return
        try:
            os.write(self._fds[target], frame)
        except OSError:  # Its device is down, or it takes no more.
            self._count(way, lost=1)
            return
        self._count(way, frames=1, size=len(frame))

    def _count(
        self, way: tuple[int, int], *, frames: int = 0, size: int = 0, lost: int = 0
    ) -> None:
        old = self._traffic.get(way, Traffic())
        self._traffic[way] = Traffic(
            old.frames + frames, old.bytes + size, old.lost + lost
        )
