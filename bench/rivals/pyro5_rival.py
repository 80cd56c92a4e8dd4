"""Pyro5: an object of a daemon; a proxy per thread, arrays as bytes."""
# ruff: noqa: D102 - Rival says what each method is

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness import CLIENTS, IN_FLIGHT, Rival, announce, main


class Target:
    """What is called."""

    def nothing(self) -> None:
        """Return nothing."""

    def total(self, data: bytes) -> float:
        """Take an array."""
        import numpy as np

        return float(np.frombuffer(data).sum())

    def make(self, count: int) -> bytes:
        """Return an array."""
        import numpy as np

        return np.ones(count).tobytes()


class Pyro5Rival(Rival):
    """One daemon with threads."""

    package = "Pyro5"
    statement = "import Pyro5.api"
    notes = MappingProxyType({
        "null": "by marshal, its fastest serializer",
        "pipelined": "100 threads with a proxy each: a proxy has one call in flight",
        "array_out": "as bytes, by marshal",
    })  # fmt: skip

    def serve(self, directory: Path) -> None:
        import Pyro5.api

        Pyro5.api.config.THREADPOOL_SIZE = (CLIENTS + 1) * IN_FLIGHT + 1
        with Pyro5.api.Daemon(host="127.0.0.1") as daemon:
            target = Pyro5.api.expose(Target)
            announce(daemon.register(target(), "target"))
            daemon.requestLoop()

    def connect(self, address: str) -> None:
        import Pyro5.api

        self.target = Pyro5.api.Proxy(address)
        self.target._pyroSerializer = "marshal"  # noqa: SLF001 - documented
        self.address = address

    def null(self) -> Any:
        return self.target.nothing()

    def pipelined(self, seconds: float) -> float:
        with ThreadPoolExecutor(IN_FLIGHT) as threads:
            start_s = time.perf_counter()
            end_s = start_s + seconds
            done = sum(threads.map(self.call_until, [end_s] * IN_FLIGHT))
            return done / (time.perf_counter() - start_s)

    def call_until(self, end_s: float) -> int:
        """Call with a proxy of this thread; return how often."""
        import Pyro5.api

        done = 0
        with Pyro5.api.Proxy(self.address) as target:
            target._pyroSerializer = "marshal"  # noqa: SLF001 - documented
            while time.perf_counter() < end_s:
                target.nothing()
                done += 1
        return done

    def total(self, array: Any) -> float:
        return float(self.target.total(array.tobytes()))

    def make(self, count: int) -> Any:
        import numpy as np

        return np.frombuffer(self.target.make(count))


if __name__ == "__main__":
    main(Pyro5Rival())
