"""Pyro5: the same null call and array. Prints JSON; started with "serve" it is the server."""

from __future__ import annotations

import sys

import Pyro5.api
from client import measure


@Pyro5.api.expose
class Target:
    """What is called."""

    def nothing(self) -> None:
        """Return nothing."""


def serve() -> None:
    """Serve until killed."""
    with Pyro5.api.Daemon(host="127.0.0.1") as daemon:
        print(daemon.register(Target(), "target"), flush=True)
        daemon.requestLoop()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        with Pyro5.api.Proxy(sys.argv[1]) as target:
            measure(target.nothing)
