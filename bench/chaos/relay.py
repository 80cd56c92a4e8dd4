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
import socket
import threading
from collections.abc import Iterable

import psutil

CHUNK_BYTES = 256 * 1024
LOOPBACK = "127.0.0.1"
# A peer that is not there refuses at once; one whose backlog is full does not.
CONNECT_S_MAX = 5.0


def free_port() -> int:
    """Return a port that nothing listens at now."""
    with socket.create_server((LOOPBACK, 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


class Relay:
    """All relays of a run, in one thread."""

    def __init__(self) -> None:
        self._pids: dict[int, str] = {}
        self._gates: dict[tuple[str, str], asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def serve(self, name: str, port: int) -> str:
        """Relay to a peer that listens at a port; return the address to be told."""
        listener = socket.create_server((LOOPBACK, 0), backlog=128)
        listener.setblocking(False)
        address = f"tcp://{LOOPBACK}:{listener.getsockname()[1]}"
        self._loop.call_soon_threadsafe(self._start, self._accept(name, listener, port))
        return address

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
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)
        self._loop.close()

    def _set(self, source: str, target: str, *, is_open: bool) -> None:
        async def change() -> None:
            gate = self._gate(source, target)
            gate.set() if is_open else gate.clear()

        asyncio.run_coroutine_threadsafe(change(), self._loop).result(CONNECT_S_MAX)

    # -- in the thread -----------------------------------------------------------------

    def _start(self, coroutine: object) -> None:
        task = self._loop.create_task(coroutine)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _gate(self, source: str, target: str) -> asyncio.Event:
        found = self._gates.get((source, target))
        if found is None:
            found = self._gates[source, target] = asyncio.Event()
            found.set()
        return found

    async def _accept(self, name: str, listener: socket.socket, port: int) -> None:
        with listener:
            while True:
                dialled, address = await self._loop.sock_accept(listener)
                dialled.setblocking(False)
                self._start(self._serve_one(name, dialled, address[1], port))

    async def _serve_one(
        self, name: str, dialled: socket.socket, dialler_port: int, port: int
    ) -> None:
        with dialled, socket.socket() as onward:
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
        for pid, name in list(self._pids.items()):
            try:
                found = psutil.Process(pid).net_connections("tcp4")
            except psutil.Error:
                self._pids.pop(pid, None)
                continue
            if any(one.laddr and one.laddr.port == port for one in found):
                return name
        return ""
