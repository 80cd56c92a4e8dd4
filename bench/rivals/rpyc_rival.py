"""RPyC: the same null call. Prints JSON; started with "serve" it is the server."""

from __future__ import annotations

import sys
from typing import Any

import rpyc
from client import measure
from rpyc.utils.server import ThreadedServer


class Target(rpyc.Service):
    """What is called."""

    def exposed_nothing(self) -> None:
        """Return nothing."""


def serve() -> None:
    """Serve until killed."""
    server = ThreadedServer(Target, hostname="127.0.0.1", port=0)
    print(server.port, flush=True)
    server.start()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        connection: Any = rpyc.connect("127.0.0.1", int(sys.argv[1]))
        measure(connection.root.nothing)
