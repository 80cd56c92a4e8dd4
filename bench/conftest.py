"""The fixtures of the benchmarks, and the report at the end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

sys.path.insert(0, str(Path(__file__).parent))

import report
from measure import HERE, RESULTS, running_peer
from rows import ROWS

import activestore

RAW_ROUTER = """
import sys, msgpack, zmq
socket = zmq.Context().socket(zmq.ROUTER)
port = socket.bind_to_random_port("tcp://127.0.0.1")
print(port, flush=True)
while True:
    route, frame = socket.recv_multipart()
    message = msgpack.unpackb(frame)
    socket.send_multipart([route, msgpack.packb([33, message[1], None])])
"""


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
def raw() -> Iterator[Callable[[], None]]:
    """One round trip of a bare DEALER/ROUTER pair with msgpack at both ends."""
    with subprocess.Popen(
        [sys.executable, "-c", RAW_ROUTER], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        socket = zmq.Context.instance().socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"tcp://127.0.0.1:{port}")
        packed = [2, 1, bytes(16), "nothing", 0, 0, 1, 0, None, b"\x92\x90\x80"]

        def round_trip() -> None:
            socket.send(msgpack.packb(packed))
            msgpack.unpackb(socket.recv())

        round_trip()
        yield round_trip
        socket.close()
        process.kill()
