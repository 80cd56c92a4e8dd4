"""Dask: an actor in a cluster of one worker process."""
# ruff: noqa: D102 - Rival says what each method is

from __future__ import annotations

import time
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness import Rival, announce, main


class Target:
    """What is called."""

    def nothing(self) -> None:
        """Return nothing."""

    def total(self, array: Any) -> float:
        """Take an array."""
        return float(array.sum())

    def make(self, count: int) -> Any:
        """Return an array."""
        import numpy as np

        return np.ones(count)


class DaskRival(Rival):
    """A scheduler and a worker process."""

    package = "distributed"
    statement = "from distributed import Client"
    notes = MappingProxyType({
        "persist_small": "actors in the worker's memory",
        "persist_large": "into the worker's memory",
    })  # fmt: skip

    def serve(self, directory: Path) -> None:
        from distributed import LocalCluster

        with LocalCluster(
            n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None,
            local_directory=str(directory),
        ) as cluster:  # fmt: skip
            announce(cluster.scheduler_address)
            while True:
                time.sleep(3600)

    def connect(self, address: str) -> None:
        from distributed import Client

        self.client = Client(address)
        self.target = self.client.submit(Target, actor=True, pure=False).result()

    def null(self) -> Any:
        return self.target.nothing().result()

    def submit(self) -> Any:
        return self.target.nothing()

    def finish(self, call: Any) -> None:
        call.result()

    def total(self, array: Any) -> float:
        return float(self.target.total(array).result())

    def make(self, count: int) -> Any:
        return self.target.make(count).result()

    def persist_small(self, count: int) -> int:
        made = [
            self.client.submit(Target, actor=True, pure=False) for _ in range(count)
        ]
        self.client.gather(made)
        return count

    def persist_large(self, array: Any) -> None:
        self.client.scatter(array, hash=False)


if __name__ == "__main__":
    main(DaskRival())
