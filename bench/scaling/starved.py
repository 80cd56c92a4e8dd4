"""Dead verdicts on live peers that get no processor, against the time to find the dead.

A quarter of the peers stand still for 10 s again and again, as on a machine whose cores
others took; then a while of ordinary life. The pure core of membership runs, on the
network of tests/core/cluster_world.py, 1 % of whose messages are lost.

    python bench/scaling/starved.py [hours]

Source: reliability.md 1.2, the targets.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from activestore.core.membership import MembershipConfig
from activestore.core.profiles import LAN, Profile
from tests.core.cluster_world import ClusterWorld, Node
from tests.core.test_clusters import settled

STARVED_S = 10.0
# What a starved peer has of ordinary life between two stretches.
RESTED_S = (10.0, 50.0)
STARVED_SHARE = 0.25
LOSS = 0.01
# The table of reliability.md 1.2 times two.
DETECTION_S_MAX = {10: 13.2, 100: 21.2}

PROFILES: Mapping[str, Profile] = {
    f"suspicion_mult {mult}": LAN._replace(suspicion_mult=mult) for mult in (4, 5, 6)
}


def starve(world: ClusterWorld, node: Node) -> None:
    """Let a peer stand still now and again and again."""
    world.pause(node, STARVED_S)
    rest_s = world.rng.uniform(*RESTED_S)
    world.later(STARVED_S + rest_s, starve, world, node)


def false_deaths(profile: Profile, count: int, hours: float, seed: int = 1) -> int:
    """Return how many live peers were given up, each counted once a verdict."""
    config = MembershipConfig(lan=profile)
    world = ClusterWorld(seed, loss=LOSS, does_check=False, config=config)
    nodes = settled(world, count)
    for node in nodes[: int(count * STARVED_SHARE)]:
        world.later(world.rng.uniform(0.0, sum(RESTED_S)), starve, world, node)
    world.run(hours * 3600.0)
    # All that hear of one verdict bury the peer within seconds: that is one.
    found, last_s = 0, {}
    for at_s, dead, _by in world.deaths:
        found += at_s - last_s.get(dead, float("-inf")) > STARVED_S
        last_s[dead] = at_s
    return found


def detections_s(profile: Profile, count: int, kills: int) -> list[float]:
    """Return, for each kill, how long it took until all knew."""
    config = MembershipConfig(lan=profile)
    times: list[float] = []
    world = ClusterWorld(kills, does_check=False, config=config)
    nodes = settled(world, count + kills // 10)
    while len(times) < kills:
        if len(nodes) < count:
            world = ClusterWorld(len(times), does_check=False, config=config)
            nodes = settled(world, count + kills // 10)
        victim = nodes.pop(world.rng.randrange(len(nodes)))
        world.run(world.rng.random())
        world.kill(victim)
        world.deaths.clear()
        start_s = world.now_s
        world.run_until(lambda: len(world.deaths) == len(nodes), within_s=120)  # noqa: B023
        times.append(max(at_s for at_s, _, _ in world.deaths) - start_s)
    return sorted(times)


def main() -> None:
    """Print the table."""
    hours = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    print("| profile | N | p50 | p99 | bound | dead verdicts on live, a day |")
    print("|---|---|---|---|---|---|")
    for name, profile in PROFILES.items():
        for count, bound_s in DETECTION_S_MAX.items():
            times = detections_s(profile, count, 50)
            dead = false_deaths(profile, count, hours) * 24 / hours
            p99_s = times[min(len(times) - 1, len(times) * 99 // 100)]
            print(
                f"| {name} | {count} | {statistics.median(times):.1f} s | {p99_s:.1f} s "
                f"| {bound_s} s | {dead:g} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
