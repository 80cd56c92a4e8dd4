"""Ray: an actor of a head node. Ray opens every interface: only in a namespace with lo."""
# ruff: noqa: D102 - Rival says what each method is

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness import LacksError, Rival, main

ADDRESS = "127.0.0.1:6379"
START = (
    "start --head --node-ip-address 127.0.0.1 --port 6379 --num-cpus 1 "
    "--include-dashboard false --disable-usage-stats --object-store-memory 1000000000"
)
# An actor is a process: more than this take longer than a row may.
ACTORS = 4


class RayRival(Rival):
    """A head node of one core."""

    package = "ray"
    statement = "import ray"
    notes = MappingProxyType({
        "persist_small": "an actor is a process; in memory",
        "persist_large": "ray.put: in shared memory",
    })  # fmt: skip

    def start(self, directory: Path) -> str:
        command = [str(Path(sys.executable).with_name("ray")), *START.split()]
        command += ["--temp-dir", str(directory)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LacksError((done.stdout + done.stderr).strip().splitlines()[-1])
        return ADDRESS

    def prepare(self, address: str) -> None:
        self.init(address)
        self.actor().options(
            name="target", lifetime="detached", get_if_exists=True
        ).remote()

    def connect(self, address: str) -> None:
        self.init(address)
        self.target = self.ray.get_actor("target")

    def init(self, address: str) -> None:
        """Join the node."""
        import ray

        self.ray = ray
        self.kept: list[Any] = []
        ray.init(
            address=address, namespace="bench", log_to_driver=False,
            configure_logging=False, ignore_reinit_error=True,
        )  # fmt: skip

    def actor(self) -> Any:
        """Return the class of what is called."""

        class Target:
            def nothing(self) -> None:
                """Return nothing."""

            def total(self, array: Any) -> float:
                return float(array.sum())

            def make(self, count: int) -> Any:
                import numpy as np

                return np.ones(count)

        return self.ray.remote(num_cpus=0)(Target)

    def null(self) -> Any:
        return self.ray.get(self.target.nothing.remote())

    def submit(self) -> Any:
        return self.target.nothing.remote()

    def finish(self, call: Any) -> None:
        self.ray.get(call)

    def total(self, array: Any) -> float:
        return float(self.ray.get(self.target.total.remote(array)))

    def make(self, count: int) -> Any:
        return self.ray.get(self.target.make.remote(count))

    def persist_small(self, count: int) -> int:
        made = min(count, ACTORS)
        kind = self.actor()
        kept = [kind.remote() for _ in range(made)]
        self.ray.get([one.nothing.remote() for one in kept])
        return made

    def persist_large(self, array: Any) -> None:
        self.ray.put(array)


if __name__ == "__main__":
    main(RayRival())
