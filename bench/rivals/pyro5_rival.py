"""Pyro5: an object of a daemon; calls in batches, arrays as bytes by marshal."""
# ruff: noqa: D102 - Rival says what each method is

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness import IN_FLIGHT, Rival, announce, main


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
        "pipelined": "one message of 100 calls at a time: a proxy has one call in flight",
        "array_out": "as bytes, by marshal",
    })  # fmt: skip

    def serve(self, directory: Path) -> None:
        import Pyro5.api

        with Pyro5.api.Daemon(host="127.0.0.1") as daemon:
            target = Pyro5.api.expose(Target)
            announce(daemon.register(target(), "target"))
            daemon.requestLoop()

    def connect(self, address: str) -> None:
        import Pyro5.api

        self.target = Pyro5.api.Proxy(address)
        self.target._pyroSerializer = "marshal"  # noqa: SLF001 - documented

    def null(self) -> Any:
        return self.target.nothing()

    def submit(self) -> Any:
        import Pyro5.api

        batch = Pyro5.api.BatchProxy(self.target)
        for _ in range(IN_FLIGHT):
            batch.nothing()
        return batch

    def finish(self, call: Any) -> None:
        for _ in call():
            pass

    def total(self, array: Any) -> float:
        return float(self.target.total(array.tobytes()))

    def make(self, count: int) -> Any:
        import numpy as np

        return np.frombuffer(self.target.make(count))


if __name__ == "__main__":
    main(Pyro5Rival())
