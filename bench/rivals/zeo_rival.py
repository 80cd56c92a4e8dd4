"""ZEO: a commit of one small change. Prints JSON; started with "serve" it is the server."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from client import measure


def serve() -> None:
    """Serve a file storage until killed."""
    import ZEO

    with tempfile.TemporaryDirectory() as directory:
        address, stop = ZEO.server(str(Path(directory) / "data.fs"))
        print(address[1], flush=True)
        try:
            sys.stdin.read()
        finally:
            stop()


def main() -> None:
    """Measure commits."""
    import transaction
    import ZEO

    database = ZEO.DB(("127.0.0.1", int(sys.argv[1])))
    root = database.open().root()
    root["value"] = 0

    def add() -> None:
        root["value"] += 1
        transaction.commit()

    measure(add, row="durable", count=300)
    database.close()


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else main()
