"""Records what a client and a peer of an earlier version say to each other.

    git worktree add /tmp/before COMMIT
    PYTHONPATH=/tmp/before python tests/integration/previous/record.py OUT.json

Needs nothing of this repository: the client and the peer are those on PYTHONPATH. Between
them a relay writes down each ZeroMQ message. Afterwards a bare socket asks the peer what
a later client and a later peer ask, which is in part what it does not know.

    {"peer_id": hex, "talk": [row ...], "asked": [[row, answer] ...]}
    row: {"by": "client" or "peer", "frames": [hex ...]}
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import msgpack
import zmq

GAUGE = '''
from activestore import ActiveObject, activemethod


class Gauge(ActiveObject):
    value: int

    def __init__(self, value: int = 0) -> None:
        self.value = value

    @activemethod
    def add(self, n: int) -> int:
        """Add to the value."""
        self.value += n
        return self.value

    @activemethod
    def fail(self) -> None:
        raise ValueError("as it should")

    @activemethod
    def count(self, n: int):
        for number in range(n):
            yield number * 10
'''
SESSION = bytes(range(16))
WAIT_MS = 10_000
# What a later client asks: an operation that it needs first, and those of version 2.
OPERATIONS: dict[str, dict[str, Any]] = {
    "interface": {"class_name": "gauge.Gauge"},
    "move": {"object_id": bytes(16), "peer": "other"},
    "refs": {"object_id": bytes(16)},
    "suited": {"class_name": "gauge.Gauge"},
}


class Relay:
    """Carries messages between one client and a peer, and writes them down."""

    def __init__(self, endpoint: str) -> None:
        self.rows: list[dict[str, Any]] = []
        context = zmq.Context.instance()
        self._front = context.socket(zmq.ROUTER)
        port = self._front.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self._back = context.socket(zmq.DEALER)
        self._back.connect(endpoint)
        self._is_over = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._front, zmq.POLLIN)
        poller.register(self._back, zmq.POLLIN)
        route = b""
        while not self._is_over:
            ready = dict(poller.poll(50))
            if self._front in ready:
                route, *frames = self._front.recv_multipart()
                self._note("client", frames)
                self._back.send_multipart(frames)
            if self._back in ready:
                frames = self._back.recv_multipart()
                self._note("peer", frames)
                self._front.send_multipart([route, *frames])
        self._front.close(0)
        self._back.close(0)

    def _note(self, by: str, frames: list[bytes]) -> None:
        self.rows.append({"by": by, "frames": [frame.hex() for frame in frames]})

    def close(self) -> None:
        """End the thread."""
        self._is_over = True
        self._thread.join()


def talk(endpoint: str, directory: Path) -> None:
    """Do once what clients do: publish, persist, create, call, stream, fail, list."""
    import activestore

    sys.path.insert(0, str(directory))
    import gauge  # type: ignore[import-not-found]  # written by `main`

    with activestore.connect(endpoint, name="recorded") as store:
        mine = gauge.Gauge(5)
        mine.make_persistent(alias="mine")
        assert mine.add(2) == 7
        made = store.create("gauge.Gauge", 1, alias="made")
        assert made.value == 1
        made.value = 20
        assert made.add(1) == 21
        assert list(made.count.stream(3)) == [0, 10, 20]
        try:
            made.fail()
        except ValueError:
            pass
        assert store.get("made").add(0) == 21
        assert len(list(store.objects())) == 2
        assert store.locate(made)["peer"] == "before"
        assert [row["peer"] for row in store.peers()] == ["before"]
        store.delete(made)


def asked(endpoint: str) -> list[list[dict[str, Any]]]:
    """Ask a peer what later ones ask; return questions and answers."""
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.connect(endpoint)
    pairs = []
    questions = [
        # Hello of a client that speaks both versions, and of a peer that speaks one.
        _record([1, 2, 2, SESSION, "later", ["call", "peer"]]),
        _record([1, 1, 2, SESSION, "later", ["call", "stream"]]),
        *(
            _record([10, number, operation, None], msgpack.packb(parameters))
            for number, (operation, parameters) in enumerate(OPERATIONS.items(), 1)
        ),
        # Kinds that it does not know: Gossip and Probe.
        _record([13, b"peer-2", None]),
        _record([11, 7, b"peer-1", b"peer-2", None]),
    ]
    for frame in questions:
        socket.send(frame)
        assert socket.poll(WAIT_MS), f"no answer to {frame!r}"
        answer = socket.recv_multipart()
        pairs.append([
            {"by": "client", "frames": [frame.hex()]},
            {"by": "peer", "frames": [one.hex() for one in answer]},
        ])  # fmt: skip
    socket.close(0)
    return pairs


def _record(header: list[Any], body: bytes = b"") -> bytes:
    packed = msgpack.packb(header)
    sizes = (len(packed).to_bytes(4, "little"), len(body).to_bytes(4, "little"))
    return b"".join((*sizes, packed, body))


def main() -> None:
    """Start a peer, record, end it."""
    (out,) = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "gauge.py").write_text(GAUGE)
        environment = {
            **os.environ,
            "ACTIVESTORE_LISTEN": "tcp://127.0.0.1:0",
            "ACTIVESTORE_DATA_DIR": str(directory / "data"),
            "ACTIVESTORE_NAME": "before",
            "ACTIVESTORE_EXECUTORS": "1",
        }
        command = [sys.executable, "-m", "activestore.cli.main", "start", "--json"]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True
        ) as peer:
            assert peer.stdout is not None
            try:
                endpoint = json.loads(peer.stdout.readline())["endpoint"]
                relay = Relay(endpoint)
                talk(relay.endpoint, directory)
                relay.close()
                answers = asked(endpoint)
            finally:
                peer.send_signal(signal.SIGTERM)
    peer_id = _peer_id(relay.rows)
    parts = [f'{{"peer_id": "{peer_id.hex()}",']
    for name, rows in (("talk", relay.rows), ("asked", answers)):
        lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        parts.append(f' "{name}": [\n{lines}\n ]' + ("," if name == "talk" else "}"))
    Path(out).write_text("\n".join(parts) + "\n")


def _peer_id(rows: list[dict[str, Any]]) -> bytes:
    """Return the id that Welcome tells."""
    (frame,) = next(row["frames"] for row in rows if row["by"] == "peer")
    data = bytes.fromhex(frame)
    size = int.from_bytes(data[:4], "little")
    return bytes(msgpack.unpackb(data[8 : 8 + size])[2])


if __name__ == "__main__":
    main()
