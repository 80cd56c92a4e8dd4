"""A TCP relay before every peer: connections that can be cut, in one direction or both.

Each peer tells the others the address of its relay (`advertise`), so that all traffic
between peers, and that of clients, passes here. Who dials is found by the process that
has the other end of the connection. What is cut is held, not refused, as by a network
that loses packets: bytes wait in the kernel, and travel on when the cut is healed, unless
somebody has given the connection up.

    peer-1 --> relay of peer-2 --> peer-2        cut("peer-1", "peer-2"): nothing arrives
           <--                 <--               and nothing is answered
                                                 one_way=True: answers still arrive

Rules of this file: it needs no root and no other program; it never looks into bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Coroutine, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import psutil

CHUNK_BYTES = 256 * 1024
SOCKETS = Path("/proc/net/tcp")
LOOPBACK = "127.0.0.1"
# A peer that is not there refuses at once; one whose backlog is full does not.
CONNECT_S_MAX = 5.0
# What the relays' thread is told to do is done soon; a loaded machine takes a moment.
DONE_S_MAX = 30.0


def free_port() -> int:
    """Return a port that nothing listens at now."""
    with socket.create_server((LOOPBACK, 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


class _Way:
    """To one peer: the port that others dial, and the peer's own."""

    def __init__(self, own_port: int, port: int) -> None:
        self.own_port = own_port
        self.port = port
        self.listener: socket.socket | None = None


class Relay:
    """All relays of a run, in one thread."""

    def __init__(self) -> None:
        self._pids: dict[int, str] = {}
        self._ways: dict[str, _Way] = {}
        self._gates: dict[tuple[str, str], asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def serve(self, name: str, port: int) -> str:
        """Relay to a peer that listens at a port; return the address to be told.

        Nobody is let in before `open`.
        """
        self._ways[name] = _Way(free_port(), port)
        return f"tcp://{LOOPBACK}:{self._ways[name].own_port}"

    def open(self, name: str) -> None:
        """Let others dial a peer: its daemon is about to start."""
        self._do(self._open(name))

    def shut(self, name: str) -> None:
        """Refuse who dials a peer, as its machine does when its daemon is gone.

        Else each of those who dial again and again is let in, and then let down.
        """
        self._do(self._shut(name))

    def know(self, pid: int, name: str) -> None:
        """Say who a process is; before it dials."""
        self._pids[pid] = name

    def cut(self, source: str, target: str) -> None:
        """Let nothing get from one to the other that is sent from now on."""
        self._set(source, target, is_open=False)

    def heal(self, source: str, target: str) -> None:
        """Let it through again, what waits first."""
        self._set(source, target, is_open=True)

    def heal_all(self, names: Iterable[str]) -> None:
        """Heal every cut between these."""
        known = list(names)
        for source in known:
            for target in known:
                self.heal(source, target)

    def close(self) -> None:
        """End all connections and the thread."""

        async def end() -> None:
            for name in self._ways:
                await self._shut(name)
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._do(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DONE_S_MAX)
        self._loop.close()

    def _set(self, source: str, target: str, *, is_open: bool) -> None:
        async def change() -> None:
            gate = self._gate(source, target)
            gate.set() if is_open else gate.clear()

        self._do(change())

    def _do(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(DONE_S_MAX)

    # -- in the thread -----------------------------------------------------------------

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _open(self, name: str) -> None:
        way = self._ways[name]
        if way.listener is None:
            way.listener = socket.create_server((LOOPBACK, way.own_port), backlog=128)
            way.listener.setblocking(False)
            self._loop.add_reader(way.listener, self._accept, name, way)

    async def _shut(self, name: str) -> None:
        way = self._ways[name]
        if way.listener is not None:
            self._loop.remove_reader(way.listener)
            way.listener.close()
            way.listener = None

    def _gate(self, source: str, target: str) -> asyncio.Event:
        found = self._gates.get((source, target))
        if found is None:
            found = self._gates[source, target] = asyncio.Event()
            found.set()
        return found

    def _accept(self, name: str, way: _Way) -> None:
        assert way.listener is not None
        try:
            dialled, address = way.listener.accept()
        except OSError:  # Who dialled is gone again.
            return
        dialled.setblocking(False)
        serving = self._start(self._serve_one(name, dialled, address[1], way.port))
        # Also where it is ended before it began.
        serving.add_done_callback(partial(_close, dialled))

    async def _serve_one(
        self, name: str, dialled: socket.socket, dialler_port: int, port: int
    ) -> None:
        with socket.socket() as onward:
            onward.setblocking(False)
            source = await asyncio.to_thread(self._who, dialler_port)
            await self._gate(source, name).wait()
            try:
                await asyncio.wait_for(
                    self._loop.sock_connect(onward, (LOOPBACK, port)), CONNECT_S_MAX
                )
            except (OSError, asyncio.TimeoutError):
                return
            for end in (dialled, onward):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pumps = [
                asyncio.ensure_future(self._pump(dialled, onward, source, name)),
                asyncio.ensure_future(self._pump(onward, dialled, name, source)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(
        self, source: socket.socket, target: socket.socket, one: str, other: str
    ) -> None:
        """Carry bytes one way until either end is gone; an end is not seen over a cut."""
        gate = self._gate(one, other)
        with contextlib.suppress(OSError):
            while True:
                data = await self._loop.sock_recv(source, CHUNK_BYTES)
                await gate.wait()
                if not data:
                    return
                await self._loop.sock_sendall(target, data)

    def _who(self, port: int) -> str:
        """Return the name of the process that dialled from a port, "" for a stranger."""
        inode = _inode_of(port) if SOCKETS.exists() else ""
        for pid, name in list(self._pids.items()):
            if _has_socket(pid, inode) if inode else _dialled_from(pid, port):
                return name
        return ""


def _close(end: socket.socket, _: object) -> None:
    end.close()


def _inode_of(port: int) -> str:
    """Return the number of the socket that is bound to a port, as Linux tells it."""
    own = f":{port:04X}"
    for line in SOCKETS.read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(own):
            return fields[9]
    return ""


def _has_socket(pid: int, inode: str) -> bool:
    wanted = f"socket:[{inode}]"
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):  # The process has ended.
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):  # Closed meanwhile.
                if os.readlink(f"{folder}/{name}") == wanted:
                    return True
    return False


def _dialled_from(pid: int, port: int) -> bool:
    """Look the slow way, which other systems have too."""
    found: list[Any] = []
    with contextlib.suppress(psutil.Error):
        found = psutil.Process(pid).net_connections("tcp4")
    return any(one.laddr and one.laddr.port == port for one in found)
