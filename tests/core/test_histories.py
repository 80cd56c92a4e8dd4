"""Random histories of the invocation core: nothing acknowledged is lost or doubled.

A failing seed replays by its name: `pytest 'tests/core/test_histories.py::<name>[<seed>]'`.
`ACTIVESTORE_SEEDS` sets the number of seeds of each history.
"""

from __future__ import annotations

import os

import pytest

from activestore.core.calls import Client
from activestore.core.executors import PoolConfig
from tests.core.world import Chances, World, object_id_of, session_of

SEEDS = int(os.environ.get("ACTIVESTORE_SEEDS", "20"))
pytestmark = pytest.mark.scaled

CASES = {
    "calm": Chances(),
    "slow": Chances(slow=0.02),
    "raising": Chances(raises=0.1),
    "crashing": Chances(crash=0.01),
    "disk_refuses": Chances(refusal=0.05),
    "silent": Chances(slow=0.03, silence=0.3),
    "everything": Chances(
        crash=0.005, raises=0.05, refusal=0.02, slow=0.01, silence=0.1
    ),
}


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("name", list(CASES))
def test_every_acknowledged_add_counts_once(name: str, seed: int) -> None:
    """The final value is the number of acknowledged adds, whatever happened between."""
    world = World(seed, chances=CASES[name])
    objects = [object_id_of(n) for n in range(3)]
    for object_id in objects:
        world.disk[object_id] = (1, 0)
    adds: list[tuple[int, Client]] = []
    for client_number in range(6):
        for sequence in range(1, 40):
            client = Client(session_of(client_number), sequence)
            which = world.rng.randrange(3)
            is_add = world.rng.random() < 0.7
            start_s = world.rng.uniform(0, 0.3)
            method = "add" if is_add else "peek"
            if is_add:
                adds.append((which, client))
            world.later(
                start_s,
                lambda o=objects[which], m=method, c=client: world.call_until_done(
                    o, m, c
                ),
            )

    world.run_until_quiet()

    for which, object_id in enumerate(objects):
        done = [c for w, c in adds if w == which and world.answers[c][0] == ""]
        assert world.disk[object_id][1] == len(done)
        results = [world.answers[c][1] for c in done]
        assert len(set(results)) == len(results), "two adds returned the same value"


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_call_is_lost_when_copies_do_not_fit(seed: int) -> None:
    """More objects than the memory budget: copies come and go, every add counts."""
    pool = PoolConfig(executors=2, slots=2, activation_bytes_max=16)
    world = World(seed, pool=pool, chances=Chances(slow=0.01))
    objects = [object_id_of(n) for n in range(12)]
    for object_id in objects:
        world.disk[object_id] = (1, 0)
    clients = []
    for number in range(200):
        client = Client(session_of(number % 5), number)
        clients.append(client)
        world.later(
            world.rng.uniform(0, 0.2),
            lambda o=objects[number % 12], c=client: world.call_until_done(o, "add", c),
        )

    world.run_until_quiet()

    assert all(world.answers[client][0] == "" for client in clients)
    assert sum(value for _, value in world.disk.values()) == 200


def play(world: World, count: int, *, relays: float = 0.0) -> list[tuple[int, Client]]:
    """Let six clients add to, and relay between, four objects; return (object, client).

    A relay runs on the fifth to eighth object and adds to one of the four.
    """
    objects = [object_id_of(n) for n in range(8)]
    for object_id in objects:
        world.disk[object_id] = (1, 0)
    adds = []
    for number in range(count):
        client = Client(session_of(number % 6), number)
        which = world.rng.randrange(4)
        adds.append((which, client))
        if world.rng.random() < relays:
            target, method, body = objects[which + 4], "relay", bytes(objects[which])
        else:
            target, method, body = objects[which], "add", b""
        world.later(
            world.rng.uniform(0, 0.2),
            lambda o=target, m=method, c=client, b=body: world.call_until_done(
                o, m, c, b
            ),
        )
    world.run_until_quiet()
    return adds


@pytest.mark.parametrize("durability", [0, 1])
@pytest.mark.parametrize("seed", range(2 * SEEDS))
def test_retries_at_any_moment_run_once(seed: int, durability: int) -> None:
    """Impatient clients and lost answers: what was answered counts once, all the same."""
    chances = Chances(impatience=0.3, loss=0.1, crash=0.01, slow=0.02)
    world = World(seed, chances=chances, durability=durability)

    adds = play(world, 200)

    for which in range(4):
        done = [c for w, c in adds if w == which and world.answers[c][0] == ""]
        value = world.disk[object_id_of(which)][1]
        assert value == len(done)


@pytest.mark.parametrize("seed", range(2 * SEEDS))
def test_calls_that_change_other_objects_run_once(seed: int) -> None:
    """A relay that was answered has added once; one that was lost at most once."""
    chances = Chances(impatience=0.2, loss=0.1, crash=0.02, slow=0.02)
    world = World(seed, chances=chances)

    adds = play(world, 150, relays=0.5)

    for which in range(4):
        codes = [world.answers[c][0] for w, c in adds if w == which]
        value = world.disk[object_id_of(which)][1]
        assert codes.count("") <= value <= len(codes)
        assert set(codes) <= {"", "executor_crashed"}
