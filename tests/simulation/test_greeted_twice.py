"""A peer that greets twice over one connection: its Welcome took longer than it waits.

Source: schemas/protocol.md sections 10 and 13.
"""

from __future__ import annotations

from activestore import remote
from activestore.testing import Simulation
from tests.simulation.clusters import join
from tests.simulation.models import Letterbox

LETTERBOX = "tests.simulation.models.Letterbox"
LARGE, SILENCE_S, DELAY_S = bytes(2_000_000), 5.0, 0.2


def test_what_is_on_its_way_when_a_peer_greets_again_arrives() -> None:
    """Of a large message the rest was forgotten with the first greeting."""
    with Simulation(1, peers=2, classes=[Letterbox]) as sim:
        join(sim)
        asked, dialler = sim.peers["peer-1"], sim.peers["peer-2"]
        sim.run(1.0)  # Both have dialled by now.
        for link in list(asked.loop.links.by_route.values()):
            if link.is_dialled:
                asked.loop.links.close(link)  # The other one's is left.
        sim.run(1.0)
        (dialled,) = (
            one for one in dialler.loop.links.by_route.values() if one.is_dialled
        )
        accepted = asked.loop.cluster.reach(dialler.peer_id)
        assert accepted is not None
        assert not accepted.is_dialled
        box = sim.client("peer-2").create(LETTERBOX)
        client = sim.client("peer-1", timeout_s=SILENCE_S)
        put = client.get(remote.id_of(box)).put.options(direct=False)
        put(b"1")
        sim.set_link("peer-1", "peer-2", min_s=DELAY_S, mean_s=DELAY_S)

        task = sim.spawn(lambda: put(LARGE))
        sim.run(DELAY_S)
        assert asked.loop.lanes.waiting_bytes(accepted.route)
        dialler.loop.links._greet(dialled)
        dialler.loop.transport.flush()

        assert sim.run_until(lambda: task.is_over, timeout_s=60.0)
        assert box.last == LARGE
        assert box.numbers() == [b"1"[0], 0]
