"""dataClay: Redis, a metadata service and one backend, started by its documented settings."""
# ruff: noqa: D102 - Rival says what each method is

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness import IN_FLIGHT, LacksError, Rival, main

READY_S_MAX = 30.0
PORTS = (16587, 6867)  # of the metadata service and the backend
SETTINGS = {
    "DATACLAY_KV_HOST": "127.0.0.1",
    "DATACLAY_METADATA_HOST": "127.0.0.1",
    "DATACLAY_METADATA_LISTEN_ADDRESS": "127.0.0.1",
    "DATACLAY_BACKEND_HOST": "127.0.0.1",
    "DATACLAY_BACKEND_LISTEN_ADDRESS": "127.0.0.1",
    "DATACLAY_LOGLEVEL": "warning",
    "DC_HOST": "127.0.0.1",
    "PYTHONPATH": str(Path(__file__).resolve().parent),
}
REDIS = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]


class DataClayRival(Rival):
    """One backend."""

    package = "dataclay"
    statement = "from dataclay import Client, DataClayObject"
    notes = MappingProxyType({
        "pipelined": "asynchronous method, awaited 100 at a time",
        "persist_small": "in memory, 100 at a time",
        "persist_large": "in memory",
    })  # fmt: skip

    def __init__(self) -> None:
        # dataClay reads its settings when it is imported.
        os.environ.update(SETTINGS)
        self.model: Any = None

    def start(self, directory: Path) -> str:
        redis = shutil.which("redis-server")
        if redis is None:
            raise LacksError(
                "needs redis-server (Debian: apt-get install redis-server)"
            )
        os.environ["DATACLAY_STORAGE_PATH"] = str(directory)
        commands = [[redis, "--dir", str(directory), *REDIS]]
        commands += [
            [sys.executable, "-m", f"dataclay.{part}"]
            for part in ("metadata", "backend")
        ]
        parts = [
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                cwd=directory,
            )
            for command in commands
        ]  # fmt: skip
        end_s = time.perf_counter() + READY_S_MAX
        while not all(takes_connections(port) for port in PORTS):
            if time.perf_counter() > end_s or any(p.poll() is not None for p in parts):
                raise LacksError("its services did not start")
            time.sleep(0.05)
        self.join("127.0.0.1")  # it serves when its backend is registered
        return "127.0.0.1"

    def prepare(self, address: str) -> None:
        self.join(address)
        self.model().make_persistent(alias="target")

    def connect(self, address: str) -> None:
        self.join(address)
        self.target = self.model.get_by_alias("target")

    def join(self, address: str) -> None:
        """Start the client's runtime, once."""
        if self.model is not None:
            return
        from dataclay import Client

        self.client = Client(host=address)
        self.client.start()
        end_s = time.perf_counter() + READY_S_MAX
        while not self.client.get_backends():
            if time.perf_counter() > end_s:
                raise LacksError("its backend did not register")
            time.sleep(0.05)
        import dataclay_model

        self.model = dataclay_model.Target

    def null(self) -> Any:
        return self.target.nothing()

    def pipelined(self, seconds: float) -> float:
        async def call() -> int:
            done = 0
            while time.perf_counter() < end_s:
                await self.target.nothing_async()
                done += 1
            return done

        async def call_all() -> int:
            return sum(await asyncio.gather(*[call() for _ in range(IN_FLIGHT)]))

        start_s = time.perf_counter()
        end_s = start_s + seconds
        return asyncio.run(call_all()) / (time.perf_counter() - start_s)

    def total(self, array: Any) -> float:
        return float(self.target.total(array))

    def make(self, count: int) -> Any:
        return self.target.make(count)

    def persist_small(self, count: int) -> int:
        async def persist_all() -> None:
            made = [self.model(i) for i in range(count)]
            for first in range(0, count, IN_FLIGHT):
                part = made[first : first + IN_FLIGHT]
                await asyncio.gather(*[one.a_make_persistent() for one in part])

        asyncio.run(persist_all())
        return count

    def persist_large(self, array: Any) -> None:
        self.model(0, array).make_persistent()


def takes_connections(port: int) -> bool:
    """Return whether something listens."""
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(DataClayRival())
