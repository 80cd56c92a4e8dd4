"""Large values between simulated peers and clients, in chunks, while connections break.

Source: schemas/protocol.md section 13; design section 5 (exactly once).
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from activestore import remote
from activestore.errors import ActiveStoreError
from activestore.testing import Faults, Simulation, seeds
from activestore.wire import chunks
from activestore.wire.messages import Chunk
from tests.simulation.clusters import CASES, join, settle
from tests.simulation.models import Letterbox

LETTERBOX = "tests.simulation.models.Letterbox"
HISTORIES = int(os.environ.get("ACTIVESTORE_SEEDS", "10"))
pytestmark = pytest.mark.scaled
PEERS = ["peer-1", "peer-2", "peer-3"]
CALLS, PAUSE_S, FAULTY_S = 12, 0.4, 6.0
BYTES = 300_000
# At a window of 64 KiB and 0.2 s each way 2 MB are 12 s on their way.
LARGE_BYTES, DELAY_S, SILENCE_S = 2_000_000, 0.2, 5.0


def letter(number: int) -> bytes:
    return bytes([number]) * BYTES


class Writer:
    """A client that puts letters one after the other, directly or through another."""

    def __init__(self, sim: Simulation, names: list[str], object_id: Any) -> None:
        self._sim = sim
        self._put = sim.client(*names).get(object_id).put.options(direct=False)
        self.acknowledged: list[int] = []
        self.unsure: list[int] = []

    def write(self) -> None:
        for number in range(1, CALLS + 1):
            self._sim.sleep(self._sim.rng.expovariate(1.0 / PAUSE_S))
            try:
                before = self._put(letter(number))
            except ActiveStoreError:
                self.unsure.append(number)
                continue
            self.acknowledged.append(number)
            assert before == letter(before[0])[: len(before)] if before else True


@pytest.mark.parametrize("seed", seeds(HISTORIES))
@pytest.mark.parametrize("case", ["calm", "connecting", "everything"])
def test_every_acknowledged_letter_is_there_once_and_whole(
    case: str, seed: int
) -> None:
    with Simulation(seed, peers=3, classes=[Letterbox]) as sim:
        join(sim)
        box = sim.client(PEERS[0]).create(LETTERBOX)
        object_id = remote.id_of(box)
        writer = Writer(sim, [PEERS[1], PEERS[2]], object_id)
        task = sim.spawn(writer.write)
        sim.inject(CASES[case], for_s=FAULTY_S)
        assert sim.run_until(lambda: task.is_over, timeout_s=600.0)
        join(sim)
        settle(sim)

        reader = sim.client(PEERS[2]).get(object_id)
        numbers = reader.numbers()
        last = reader.last

    assert len(set(numbers)) == len(numbers), "a letter came twice"
    assert set(writer.acknowledged) <= set(numbers)
    assert set(numbers) <= {*writer.acknowledged, *writer.unsure}
    assert last == (letter(numbers[-1]) if numbers else b"")
    if case == "calm":
        assert numbers == list(range(1, CALLS + 1))


def test_object_that_is_large_moves_in_chunks() -> None:
    with Simulation(1, peers=2, classes=[Letterbox]) as sim:
        join(sim)
        client = sim.client(PEERS[0])
        box = client.create(LETTERBOX)
        box.put(letter(1))
        sent: list[Any] = []
        transport = sim.peers[PEERS[0]].transport
        send = transport.send

        def sending(route: bytes, message: Any) -> None:
            sent.append(message)
            send(route, message)

        transport.send = sending  # type: ignore[method-assign]
        client.move(box, PEERS[1])
        settle(sim)

        assert box.last == letter(1)
        chunks = [message for message in sent if type(message) is Chunk]
        assert sum(len(chunk.buffers[0]) for chunk in chunks) > BYTES


def test_a_transfer_that_its_connection_cuts_off_begins_again() -> None:
    with Simulation(2, peers=2, classes=[Letterbox]) as sim:
        join(sim)
        box = sim.client(PEERS[0]).create(LETTERBOX)
        put = sim.client(PEERS[1]).get(remote.id_of(box)).put.options(direct=False)

        sim.inject(Faults(breaks_per_s=20.0), for_s=3.0)
        befores = [put(letter(number)) for number in (1, 2, 3)]

        assert befores == [b"", letter(1), letter(2)]
        assert box.numbers() == [1, 2, 3]


def test_what_gets_on_between_peers_is_no_silence_for_the_client_behind_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its peer does not have the request yet, or has answered it: who else would tell?"""
    monkeypatch.setattr(chunks, "WINDOW_BYTES_MAX", chunks.WINDOW_BYTES_FIRST)
    with Simulation(3, peers=2, classes=[Letterbox]) as sim:
        join(sim)
        box = sim.client(PEERS[0]).create(LETTERBOX)
        client = sim.client(PEERS[1], timeout_s=SILENCE_S)
        put = client.get(remote.id_of(box)).put.options(direct=False)
        put(letter(1))
        sim.set_link(PEERS[0], PEERS[1], min_s=DELAY_S, mean_s=DELAY_S)
        large = b"\2" * LARGE_BYTES

        began_s = sim.now_s
        put(large)
        up_s = sim.now_s - began_s
        before = put(letter(3))
        down_s = sim.now_s - began_s - up_s

    assert before == large
    assert min(up_s, down_s) > 2 * SILENCE_S, "the test is to last longer than silence"
