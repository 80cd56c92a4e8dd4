"""Our own rows of the same table, in the same namespace and the same run."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from client import measure


def serve() -> None:
    """Run a peer until standard input ends."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "activestore.cli.main", "start", "--json"]
        command += ["--data-dir", directory, "--listen", "tcp://127.0.0.1:0"]
        command += ["--executors", "1", "--log-level", "error"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as peer:
            assert peer.stdout is not None
            print(json.loads(peer.stdout.readline())["endpoint"], flush=True)
            sys.stdin.read()
            peer.terminate()


def main() -> None:
    """Measure a null call and a durable one."""
    import activestore

    with activestore.connect(sys.argv[1]) as store:
        store.publish(str(Path(__file__).parents[1] / "models.py"))
        bench = store.create("models.Bench")
        measure(bench.nothing)
        measure(lambda: bench.add(1), row="durable", count=300)


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else main()
