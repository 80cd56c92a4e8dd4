"""Older states are committed ones: what a copy has taken and no majority has is not read.

With five voters a leader and one copy are no majority: what both have may never be
committed, and another leader then makes another state of the same number.

Source: reliability.md 3.8; schemas/protocol.md section 4.
"""

from __future__ import annotations

import functools

from activestore.errors import ActiveStoreError
from activestore.ids import ObjectId
from activestore.testing import Simulation
from tests.simulation.clusters import COUNTER, join
from tests.simulation.models import Counter
from tests.simulation.test_replicas import id_of

NEAR = ["peer-1", "peer-2"]
FAR = ["peer-3", "peer-4", "peer-5"]
# Each object is read once while its copy is cold: so many different moments are met.
OBJECTS = 60


def test_state_that_no_majority_has_is_not_read_while_it_comes_to_the_disk() -> None:
    with Simulation(31, peers=5, classes=[Counter]) as sim:
        join(sim)
        leader, near = sim.client("peer-1"), sim.client("peer-2")
        made = [leader.create(COUNTER, replicas=5) for _ in range(OBJECTS)]
        sim.run(2.0)
        object_ids = [id_of(one) for one in made]
        seen: dict[ObjectId, list[tuple[int, str]]] = {one: [] for one in object_ids}
        sim.partition(NEAR, FAR)

        def add(object_id: ObjectId) -> None:
            try:
                leader.get(object_id).add.options(timeout_s=2.0)(1)
            except ActiveStoreError:
                pass  # It is in doubt: this is what the test is about.

        def read(object_id: ObjectId, after_s: float) -> None:
            peek = near.get(object_id).peek.options(staleness_s=60, timeout_s=2.0)
            sim.sleep(after_s)
            try:
                value, info = peek.with_info()
            except ActiveStoreError:
                return  # Nobody can tell, which is no lie.
            seen[object_id].append((value, info.peer))

        for number, object_id in enumerate(object_ids):
            sim.spawn(functools.partial(add, object_id))
            sim.spawn(functools.partial(read, object_id, 0.000_1 * number))
        sim.run(4.0)
        answered = [one for found in seen.values() for one in found]
        taken = [
            one for one in object_ids
            if (head := sim.peers["peer-2"].engine.head(one)) and head.version == 2
        ]  # fmt: skip

    assert len(taken) == OBJECTS, "the copies have what no majority has"
    assert any(peer == "peer-2" for _, peer in answered), "some read before it came"
    assert [value for value, _ in answered if value] == []
