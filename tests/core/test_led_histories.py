"""Random histories of objects that change their leader: nobody is answered twice, or never.

A failing seed replays by its name, as in test_histories; ACTIVESTORE_SEEDS as there.
"""

from __future__ import annotations

import os

import pytest

from activestore.core.calls import Client
from activestore.ids import ObjectId
from tests.core.led_world import LedWorld
from tests.core.world import Chances, object_id_of, session_of

SEEDS = int(os.environ.get("ACTIVESTORE_SEEDS", "20"))
pytestmark = pytest.mark.scaled

CASES = {
    "calm": Chances(),
    "slow": Chances(slow=0.03),
    "impatient": Chances(impatience=0.3, loss=0.1),
    "crashing": Chances(crash=0.01, impatience=0.1),
    "disk_refuses": Chances(refusal=0.05, impatience=0.1),
    "everything": Chances(
        crash=0.005, raises=0.05, refusal=0.02, slow=0.01, silence=0.1, impatience=0.2,
        loss=0.05,
    ),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("name", list(CASES))
def test_every_request_is_answered_once_wherever_its_object_is_led(
    name: str, seed: int
) -> None:
    """The world checks each answer; here: none is lost, and each counts once."""
    world = LedWorld(seed, chances=CASES[name])
    rng = world.rng
    objects = [object_id_of(n) for n in range(3)]
    change_leaders(world, objects)
    adds: list[tuple[int, Client]] = []
    for number in range(200):
        client = Client(session_of(number % 6), number)
        which = rng.randrange(3)
        method = "add" if rng.random() < 0.6 else "peek"
        if method == "add":
            adds.append((which, client))
        world.later(
            rng.uniform(0, 0.2),
            lambda o=objects[which], m=method, c=client: world.call_until_done(o, m, c),
        )

    world.run_until_quiet()

    assert world.open == set()
    assert len(world.answers) == 200
    for which, object_id in enumerate(objects):
        done = [c for w, c in adds if w == which and world.answers[c][0] == ""]
        assert world.chosen[object_id].value == len(done)
    assert world.core.owes_nothing
    assert world.core.sessions == {}


def change_leaders(world: LedWorld, objects: list[ObjectId]) -> None:
    """Make objects that others lead at times."""
    rng = world.rng
    for object_id in objects:
        world.add(object_id)
        for _ in range(rng.randint(2, 12)):
            at_s = rng.uniform(0, 0.2)
            world.later(at_s, lambda o=object_id: world.depose(o))
            again_s = at_s + rng.choice([0.004, rng.uniform(0.004, 0.03)])
            world.later(again_s, lambda o=object_id: world.lead(o))
        for _ in range(rng.choice([0, 3])):
            world.later(rng.uniform(0, 0.2), lambda o=object_id: world.fail(o))


@pytest.mark.parametrize("seed", range(max(1, SEEDS // 4)))
@pytest.mark.parametrize("name", list(CASES))
def test_call_that_changes_another_object_changes_it_once(name: str, seed: int) -> None:
    """Led objects call plain ones and each other: what was answered has happened, once."""
    world = LedWorld(seed, chances=CASES[name]._replace(refusal=0.0))
    rng = world.rng
    led = [object_id_of(n) for n in range(3)]
    plain = [object_id_of(n) for n in range(3, 6)]
    change_leaders(world, led)
    for object_id in plain:
        world.disk[object_id] = (1, 0)
    relays: dict[ObjectId, list[Client]] = {one: [] for one in [*led[:2], *plain[:2]]}
    for number in range(150):
        client = Client(session_of(number % 6), number)
        caller = rng.choice([led[2], plain[2]])
        target = rng.choice(list(relays))
        relays[target].append(client)
        world.later(
            rng.uniform(0, 0.2),
            lambda o=caller, c=client, t=target: world.call_until_done(
                o, "relay", c, bytes(t)
            ),
        )

    world.run_until_quiet()

    assert world.open == set()
    for target, clients in relays.items():
        codes = [world.answers[one][0] for one in clients]
        value = (world.chosen.get(target) or world.disk[target])[1]
        assert codes.count("") <= value <= len(codes)
    assert world.core.owes_nothing
    assert world.core.sessions == {}
    assert world.core._departures == {}
