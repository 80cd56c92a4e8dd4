"""Start one peer for a test: `run_peer.py SETTING=VALUE...`, ready is told as JSON.

Rules of this file: what the command line's `start --json` does, and nothing else, so
that tests of the daemon do not wait for tests of the command line.
"""

from __future__ import annotations

import json
import logging
import os
import sys

from activestore.peer.config import load_config
from activestore.peer.daemon import Daemon


def main() -> int:
    """Serve until a signal."""
    flags = dict(argument.split("=", 1) for argument in sys.argv[1:])
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    daemon = Daemon(load_config(None, {}, flags), version="test")

    def ready() -> None:
        line = {"event": "ready", "endpoint": daemon.endpoint, "pid": os.getpid()}
        print(json.dumps(line), flush=True)

    return daemon.run(ready)


if __name__ == "__main__":
    sys.exit(main())
