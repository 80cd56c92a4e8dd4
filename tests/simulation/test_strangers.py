"""A peer that is in no group speaks for all of them: what its members do goes on unhurt.

The stranger knows what it could overhear: objects, epochs and configs. It asks to lead,
brings states, tells members to drop their copies, and says that it leads.

Source: reliability.md 3.4, 3.5; decision 11.
"""

from __future__ import annotations

from typing import Any

import pytest

from activestore.core.replication import Replication
from activestore.core.replication_events import MessageCame
from activestore.ids import ObjectId, PeerId
from activestore.wire.replicas import (
    Accept,
    Ballot,
    Committed,
    Config,
    Drop,
    Forget,
    Nack,
    Point,
    Prepare,
    Promise,
    Reason,
    Told,
)
from tests.simulation.register_histories import CASES, History
from tests.simulation.register_world import Node

STRANGER = PeerId(b"nobody")
# Far above what any history counts to.
HIGH = 10_000
SEEDS = range(6)
pytestmark = pytest.mark.slow


class StrangeHistory(History):
    """A history into which a stranger speaks with every fault step."""

    lies = 0

    def _fault(self) -> None:
        super()._fault()
        for node in self.world.nodes.values():
            for object_id in self.world.objects:
                if node.core is not None and object_id in node.disk.rows:
                    message = self._lie(node, node.core, object_id)
                    self.lies += 1
                    node.step(MessageCame(STRANGER, message))

    def _lie(self, node: Node, core: Replication, object_id: ObjectId) -> Any:
        register = core.register_of(object_id) or node.disk.rows[object_id].register
        rng, promised = self.world.rng, register.promised
        high = Ballot(promised.counter + rng.choice((1, HIGH)), STRANGER)
        config = rng.choice(
            (
                register.config,
                Config(register.config.version + HIGH, (STRANGER,)),
                register.config._replace(lineage=1 << 60),
            )
        )
        at = Point(high.counter, register.number + 1)
        whole = Accept(
            object_id, high, at.number, None, config, False, 0, False, ("whole", ())
        )
        return rng.choice(
            (
                Prepare(object_id, high, config),
                whole,
                whole._replace(is_deleted=True, change=None),
                Promise(object_id, promised, at, config, False, True),
                Nack(object_id, promised, at.number, Reason.PROMISED, high, config),
                Nack(object_id, promised, 0, Reason.LINEAGE, high, config),
                Committed(object_id, promised, register.number, True),
                Drop(object_id, high, config),
                Forget(object_id, high, at.number),
                Told(object_id, high, at, config, True),
            )
        )


@pytest.mark.parametrize("name", ["calm", "crashes", "cuts", "groups", "deletes"])
def test_group_goes_on_while_a_stranger_speaks_for_it(name: str) -> None:
    case = CASES[name]._replace(faults=25)
    for seed in SEEDS:
        history = StrangeHistory(seed, case, Replication)
        world = history.play()

        assert history.lies
        for node in world.nodes.values():
            assert node.core is not None
            for register in node.core.registers.values():
                assert STRANGER not in (register.promised.leader, register.epoch.leader)
                assert not register.is_quarantined
