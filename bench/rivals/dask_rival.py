"""Dask: a null call of an actor. One process starts the cluster; run it in a namespace."""

from __future__ import annotations

import sys

from client import measure


class Target:
    """What is called."""

    def nothing(self) -> None:
        """Return nothing."""


def main() -> None:
    """Start a cluster of one worker process and measure."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        target = client.submit(Target, actor=True).result()
        measure(lambda: target.nothing().result(), count=500)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        print("none", flush=True)
        sys.stdin.read()
    else:
        main()
