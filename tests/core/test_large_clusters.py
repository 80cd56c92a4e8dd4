"""A thousand members, and how soon two halves are one again.

The core of membership runs, one for each peer, and the encoding of what they tell; there
is no loop, link or disk. Whole peers are in tests/simulation/test_joining.py.
"""

from __future__ import annotations

import pytest

from tests.core.cluster_world import ClusterWorld
from tests.core.test_clusters import settled

THOUSAND = 1000
# Measured: 12.2 s of virtual time after the last of them was started.
CONVERGED_S_MAX = 25.0


def is_whole(world: ClusterWorld, count: int) -> bool:
    """Whether everybody knows so many; cheaper than to compare the sets."""
    return all(len(node.core.live()) == count for node in world.nodes.values())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_peers_find_each_other_and_nobody_is_suspected() -> None:
    world = ClusterWorld(3, does_check=False)
    world.grow(THOUSAND, start_s=10.0)

    took_s = world.run_until(lambda: is_whole(world, THOUSAND), within_s=60)

    assert took_s <= CONVERGED_S_MAX
    assert world.is_converged()
    assert world.suspicions == 0
    assert world.deaths == []
    for node in world.nodes.values():
        node.core.check()


@pytest.mark.soak
@pytest.mark.parametrize("count", [50, 100])
def test_halves_cut_for_a_minute_are_one_within_a_minute(count: int) -> None:
    world = ClusterWorld(count, does_check=False)
    nodes = settled(world, count)
    world.split(nodes[: count // 2], nodes[count // 2 :])
    world.run(60)
    assert all(len(node.live) == count // 2 for node in nodes)

    world.heal()
    took_s = world.run_until(lambda: is_whole(world, count), within_s=60)
    print(f"{count} peers: one cluster {took_s:.1f} s after the cut was mended")

    deaths = len(world.deaths)
    world.run(60)
    assert world.is_converged()
    assert len(world.deaths) == deaths
