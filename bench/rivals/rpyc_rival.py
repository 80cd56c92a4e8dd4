"""RPyC: a service; asynchronous calls, arrays as bytes, which travel by value."""
# ruff: noqa: D102 - Rival says what each method is

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness import Rival, announce, main


class RpycRival(Rival):
    """A server with a thread per connection."""

    package = "rpyc"
    statement = "import rpyc"
    notes = MappingProxyType({"array_out": "as bytes"})

    def serve(self, directory: Path) -> None:
        import numpy as np
        import rpyc
        from rpyc.utils.server import ThreadedServer

        class Target(rpyc.Service):  # type: ignore[misc]
            def exposed_nothing(self) -> None:
                """Return nothing."""

            def exposed_total(self, data: bytes) -> float:
                return float(np.frombuffer(data).sum())

            def exposed_make(self, count: int) -> bytes:
                return np.ones(count).tobytes()

        server = ThreadedServer(Target, hostname="127.0.0.1", port=0)
        announce(server.port)
        server.start()

    def connect(self, address: str) -> None:
        import rpyc

        self.target: Any = rpyc.connect("127.0.0.1", int(address)).root
        self.begin = rpyc.async_(self.target.nothing)

    def null(self) -> Any:
        return self.target.nothing()

    def submit(self) -> Any:
        return self.begin()

    def finish(self, call: Any) -> None:
        call.wait()

    def total(self, array: Any) -> float:
        return float(self.target.total(array.tobytes()))

    def make(self, count: int) -> Any:
        import numpy as np

        return np.frombuffer(self.target.make(count))


if __name__ == "__main__":
    main(RpycRival())
