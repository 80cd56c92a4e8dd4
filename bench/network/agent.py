"""A program on one host of the network table: told what to do, it says how long it took.

A line of JSON on its input is a command: `{"do": NAME, ...}` runs the function of that
name in `Agent`; a line of JSON on its output is what that returned.

Rules of this file: what is measured is measured here, beside the client, and never
includes an import or the way of a command; it runs without the project's test folders.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

import activestore
import activestore.client.client  # Else the first `connect` would import it.
from activestore.errors import ActiveStoreError

ECHO_PORT, BULK_PORT = 7001, 7002
DATAGRAM_BYTES_MAX = 2048
LOST_S = 2.0
# The default of `connect`.
SILENCE_S = 30.0
CHUNK_BYTES = 256 * 1024

_now = time.perf_counter


def _exactly(connection: socket.socket, size: int) -> None:
    left = size
    while left:
        got = len(connection.recv(min(left, CHUNK_BYTES)))
        if not got:
            raise ConnectionError(f"the line ended {left} bytes early")
        left -= got


class Agent:
    """The commands."""

    def __init__(self) -> None:
        self._store: Any = None
        self._grid: Any = None

    # -- the line itself ---------------------------------------------------------------

    def serve(self, address: str) -> None:
        """Send datagrams back, and as many bytes as one asks for."""
        echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        echo.bind((address, ECHO_PORT))
        bulk = socket.create_server((address, BULK_PORT))
        threading.Thread(target=self._echo, args=(echo,), daemon=True).start()
        threading.Thread(target=self._bulk, args=(bulk,), daemon=True).start()

    @staticmethod
    def _echo(echo: socket.socket) -> None:
        while True:
            data, sender = echo.recvfrom(DATAGRAM_BYTES_MAX)
            (size,) = struct.unpack_from("!H", data)
            echo.sendto(data[:4].ljust(size, b"x"), sender)

    @staticmethod
    def _bulk(bulk: socket.socket) -> None:
        while True:
            connection, _ = bulk.accept()
            with connection:
                (size,) = struct.unpack("!Q", connection.recv(8, socket.MSG_WAITALL))
                connection.sendall(os.urandom(size))
                connection.recv(1)

    def echoes(self, address: str, sizes: list[int], count: int) -> list[float]:
        """Return the round trips of datagrams of these sizes, there and back."""
        there, back = sizes
        times = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
            line.settimeout(LOST_S)
            line.connect((address, ECHO_PORT))
            for number in range(count):
                head = struct.pack("!HH", back, number)
                start_s = _now()
                line.send(head.ljust(there, b"x"))
                while line.recv(DATAGRAM_BYTES_MAX)[2:4] != head[2:]:
                    pass
                times.append(_now() - start_s)
        return times

    def plain(self, address: str, size: int) -> float:
        """Return the seconds that a bare connection takes to ask for and get bytes.

        Connecting is not counted, as it is not for the store.
        """
        with socket.create_connection((address, BULK_PORT)) as line:
            start_s = _now()
            line.sendall(struct.pack("!Q", size))
            _exactly(line, size)
            return _now() - start_s

    def handshake(self, endpoint: str) -> list[float]:
        """Return when a bare ZeroMQ socket is connected, and when ZMTP is agreed on."""
        context = zmq.Context()
        line = context.socket(zmq.DEALER)
        line.setsockopt(zmq.LINGER, 0)
        events = line.get_monitor_socket(
            zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED
        )
        start_s = _now()
        line.connect(endpoint)
        times = []
        for _ in range(2):
            if not events.poll(SILENCE_S * 1000):
                raise ConnectionError(f"nothing of {endpoint} in {SILENCE_S:g} s")
            recv_monitor_message(events)
            times.append(_now() - start_s)
        line.disable_monitor()
        context.destroy(0)
        return times

    # -- the store ---------------------------------------------------------------------

    def connect(self, endpoint: str) -> None:
        """Connect."""
        self._store = activestore.connect(endpoint, timeout_s=SILENCE_S)

    def get(self, alias: str) -> None:
        """Find an object."""
        self._grid = self._store.get(alias)

    def first(self, endpoint: str, alias: str, is_with_class: bool) -> list[float]:
        """Return the seconds of connecting, of finding an object, and of one call."""
        sys.path.insert(0, str(Path(__file__).parent))
        from grid import Grid

        marks_s = [_now()]
        self.connect(endpoint)
        marks_s.append(_now())
        if is_with_class:
            self._grid = Grid.get_by_alias(alias)
        else:
            self.get(alias)
        marks_s.append(_now())
        self._grid.nothing()
        marks_s.append(_now())
        return [after - before for before, after in pairwise(marks_s)]

    def _method(self, name: str, is_direct: bool) -> Any:
        method = getattr(self._grid, name)
        return method if is_direct else method.options(direct=False)

    def call(self, is_direct: bool = True) -> float:
        """Call once."""
        nothing = self._method("nothing", is_direct)
        start_s = _now()
        nothing()
        return _now() - start_s

    def calls(self, count: int, is_direct: bool = True) -> list[float]:
        """Call one after the other."""
        return [self.call(is_direct) for _ in range(count)]

    def compute(self, is_direct: bool = True) -> list[float]:
        """Have the mean computed there; return the seconds, and the mean."""
        mean = self._method("mean", is_direct)
        start_s = _now()
        value = mean()
        return [_now() - start_s, value]

    def fetch(self, is_direct: bool = True) -> list[float]:
        """Fetch the numbers and compute the mean here."""
        import numpy as np

        start_s = _now()
        cells = self._grid.cells if is_direct else self._method("all_cells", False)()
        value = float(np.asarray(cells).mean())
        return [_now() - start_s, value]

    def make(self, size_bytes: dict[str, int], source: str) -> None:
        """Publish the class, and make an object of it for each alias."""
        self._store.publish(source)
        for alias, size in size_bytes.items():
            self._store.create("grid.Grid", size, alias=alias).nothing()

    def close(self) -> None:
        """Say goodbye."""
        if self._store is not None:
            self._store.close()


def main() -> None:
    """Do as told until the input ends."""
    agent = Agent()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(agent, command.pop("do"))(**command)
        except ActiveStoreError as error:
            # A figure too: that is what a user gets over such a line.
            answer = {"failed": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
