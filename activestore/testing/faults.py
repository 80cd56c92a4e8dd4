"""Faults by chance: how often each happens, and the plan that a seed makes of it.

Each kind comes as a Poisson process. The plan is drawn before it begins, so that what
the system does cannot change which faults it meets.

Rules of this file: it plans; what a fault does is `simulation`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple


class Faults(NamedTuple):
    """How often what goes wrong, per simulated second and for the whole simulation.

    Durations are means in seconds; what began ends within the time that the faults are
    injected for, so that afterwards all is well again.
    """

    crashes_per_s: float = 0.0
    down_s: float = 0.5
    pauses_per_s: float = 0.0
    pause_s: float = 0.3
    breaks_per_s: float = 0.0
    partitions_per_s: float = 0.0
    partition_s: float = 1.0
    one_way: float = 0.3  # part of the partitions that cut one direction only
    executor_crashes_per_s: float = 0.0
    refused_commits_per_s: float = 0.0


class Planned(NamedTuple):
    """One fault of a plan; `names`: of the nodes that it hits."""

    at_s: float
    kind: str
    names: Sequence[str]
    lasts_s: float = 0.0


def plan(
    faults: Faults,
    for_s: float,
    peers: Sequence[str],
    clients: Sequence[str],
    rng: Random,
) -> list[Planned]:
    """Return the faults of the next `for_s` seconds, in order of time.

    Args:
        faults: How often each kind happens.
        for_s: For how long, in seconds.
        peers: Names of the peers.
        clients: Names of the clients, which can be cut off and lose connections.
        rng: Where chance comes from.
    """
    found: list[Planned] = []
    nodes = [*peers, *clients]
    kinds = (
        ("crash", faults.crashes_per_s, faults.down_s),
        ("pause", faults.pauses_per_s, faults.pause_s),
        ("break", faults.breaks_per_s, 0.0),
        ("partition", faults.partitions_per_s, faults.partition_s),
        ("executor", faults.executor_crashes_per_s, 0.0),
        ("refuse", faults.refused_commits_per_s, 0.0),
    )
    for kind, per_s, mean_s in kinds:
        at_s = 0.0
        while per_s > 0.0:
            at_s += rng.expovariate(per_s)
            if at_s >= for_s:
                break
            lasts_s = rng.expovariate(1.0 / mean_s) if mean_s else 0.0
            lasts_s = min(lasts_s, for_s - at_s)
            if kind != "partition":
                names = [rng.choice(nodes if kind == "break" else peers)]
            elif len(nodes) < 2:
                continue
            else:
                names = rng.sample(nodes, 2)
                if rng.random() < faults.one_way:
                    kind_here = "cut"
                else:
                    kind_here = "partition"
                found.append(Planned(at_s, kind_here, names, lasts_s))
                continue
            found.append(Planned(at_s, kind, names, lasts_s))
    found.sort(key=lambda planned: planned.at_s)
    return found
