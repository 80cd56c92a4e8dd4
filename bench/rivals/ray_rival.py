"""Ray: a null call of an actor. Ray opens every interface: run it in a namespace only."""

from __future__ import annotations

import sys

from client import measure


def main() -> None:
    """Start Ray and measure."""
    import ray

    ray.init(
        num_cpus=1, include_dashboard=False, _node_ip_address="127.0.0.1",
        log_to_driver=False, configure_logging=False,
    )  # fmt: skip

    @ray.remote
    class Target:
        def nothing(self) -> None:
            """Return nothing."""

    target = Target.remote()
    measure(lambda: ray.get(target.nothing.remote()), count=500)
    ray.shutdown()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        print("none", flush=True)
        sys.stdin.read()
    else:
        main()
