"""The fixtures of the benchmarks, and the report at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import psutil
import pytest
import zmq

sys.path.insert(0, str(Path(__file__).parent))

import report
from measure import HERE, RESULTS, running_peer
from rows import ROWS

import activestore

TOUCHED_BYTES_MAX = 16_000_000_000
CHUNK_BYTES = 64 * 1024 * 1024

RAW_ROUTER = """
import array, sys, msgpack, zmq
socket = zmq.Context().socket(zmq.ROUTER)
port = socket.bind_to_random_port("tcp://127.0.0.1")
print(port, flush=True)
large = None
while True:
    route, frame, *buffers = socket.recv_multipart(copy=False)
    message = msgpack.unpackb(frame.buffer)
    if buffers:
        value = float(sum(memoryview(buffers[0].buffer).cast("d")[:1]))
    else:
        value = None
    reply = [route, msgpack.packb([33, message[1], value])]
    if message[3] == "make":
        if large is None or len(large) != message[4]:
            large = bytes(message[4])
        reply.append(large)
    socket.send_multipart(reply, copy=False)
"""


class Raw:
    """A bare DEALER/ROUTER pair with msgpack at both ends."""

    def __init__(self, port: int) -> None:
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(f"tcp://127.0.0.1:{port}")
        self._call = [2, 1, bytes(16), "nothing", 0, 0, 1, 0, None, b"\x92\x90\x80"]

    def nothing(self) -> None:
        """Make one round trip."""
        self._socket.send(msgpack.packb(self._call))
        msgpack.unpackb(self._socket.recv())

    def pipelined(self, count: int) -> float:
        """Return round trips per second with 100 in flight."""
        start_s = time.perf_counter()
        for i in range(count + 100):
            if i < count:
                self._socket.send(msgpack.packb(self._call))
            if i >= 100:
                msgpack.unpackb(self._socket.recv())
        return count / (time.perf_counter() - start_s)

    def total(self, array: Any) -> None:
        """Send an array, wait for a number."""
        head = msgpack.packb([2, 1, bytes(16), "total"])
        self._socket.send_multipart([head, memoryview(array).cast("B")], copy=False)
        msgpack.unpackb(self._socket.recv())

    def make(self, nbytes: int) -> Any:
        """Have an array sent."""
        self._socket.send(msgpack.packb([2, 1, bytes(16), "make", nbytes]))
        _, content = self._socket.recv_multipart(copy=False)
        return np.frombuffer(content.buffer)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def pytest_sessionstart() -> None:
    """Have the machine's memory at hand: a virtual one may get it page by page.

    Where that was measured, memory that had never been used came at 0.4 GB/s and memory
    that had been at 2.5 GB/s: that would be most of what the rows with large data show.
    """
    # Users have compiled modules; some environments forbid to keep them.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    free = psutil.virtual_memory().available
    touched = min(int(0.8 * free), TOUCHED_BYTES_MAX)
    print(f"touching {touched / 1e9:.1f} GB of memory")
    held = [b"x" * CHUNK_BYTES for _ in range(touched // CHUNK_BYTES)]
    del held


def pytest_sessionfinish() -> None:
    """Print, save and plot what was measured."""
    if RESULTS:
        report.write(ROWS, RESULTS, HERE / "results")


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A peer with one executor."""
    with running_peer(tmp_path_factory.mktemp("peer"), "--executors", "1") as ready:
        yield ready


@pytest.fixture(scope="session")
def store(ready: dict[str, Any]) -> Iterator[Any]:
    """A client of it, with the class published."""
    with activestore.connect(ready["endpoint"]) as store:
        store.publish(str(HERE / "models.py"))
        yield store


@pytest.fixture(scope="session")
def raw() -> Iterator[Raw]:
    """A bare pair of sockets, the other end in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", RAW_ROUTER], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        made = Raw(int(process.stdout.readline()))
        made.nothing()
        yield made
        made.close()
        process.kill()
