"""Activestore itself, by the same harness."""
# ruff: noqa: D102 - Rival says what each method is

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness import Rival, main, size_mb

MODELS = Path(__file__).resolve().parents[1] / "models.py"


class Ours(Rival):
    """A peer with one executor."""

    package = "activestore"
    # The client comes with the first use of its names: use them.
    statement = "import activestore; activestore.connect; activestore.Ref"

    def version(self) -> str:
        import activestore

        return activestore.__version__

    def size_mb(self) -> float:
        import activestore

        folder = Path(activestore.__file__).parent
        files = (path for path in folder.rglob("*") if path.is_file())
        own = sum(path.stat().st_size for path in files if path.suffix != ".pyc")
        return own / 1e6 + size_mb("pyzmq") + size_mb("msgpack")

    def start(self, directory: Path) -> str:
        command = [sys.executable, "-m", "activestore.cli.main", "start", "--json"]
        command += ["--data-dir", str(directory), "--listen", "tcp://127.0.0.1:0"]
        command += ["--executors", "1", "--log-level", "error"]
        peer = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        assert peer.stdout is not None
        return str(json.loads(peer.stdout.readline())["endpoint"])

    def prepare(self, address: str) -> None:
        import activestore

        with activestore.connect(address) as store:
            store.publish(str(MODELS))
            store.create("models.Bench", alias="bench")

    def connect(self, address: str) -> None:
        import activestore

        self.store = activestore.connect(address)
        self.bench = self.store.get("bench")

    def null(self) -> Any:
        return self.bench.nothing()

    def submit(self) -> Any:
        return self.bench.nothing.submit()

    def finish(self, call: Any) -> None:
        call.result()

    def durable(self) -> Any:
        return self.bench.add(1)

    def total(self, array: Any) -> float:
        return float(self.bench.total(array))

    def make(self, count: int) -> Any:
        return self.bench.make(count)

    def persist_small(self, count: int) -> int:
        models = self.models()
        self.store.persist([models.Bench(i) for i in range(count)])
        return count

    def persist_large(self, array: Any) -> None:
        self.store.persist(self.models().Bench(0, array))

    def models(self) -> Any:
        """Return the module that was published."""
        sys.path.insert(0, str(MODELS.parent))
        import models

        return models


if __name__ == "__main__":
    main(Ours())
