"""Large objects with replicas: of a change only what changed crosses the network.

Source: reliability.md 3.3 (big states); schemas/protocol.md section 14 (patches).
"""

from __future__ import annotations

from typing import Any

import pytest

from activestore.errors import CorruptRecordError, NoQuorumError
from activestore.storage.blobs import view_of
from activestore.storage.patches import CHUNK_BYTES
from activestore.testing import Simulation
from tests.simulation.clusters import COUNTER, join
from tests.simulation.large_models import Album
from tests.simulation.models import Counter, Letterbox
from tests.simulation.test_replicas import id_of, leaders

LETTERBOX = "tests.simulation.models.Letterbox"
ALBUM = "tests.simulation.large_models.Album"
MIB = 1 << 20
SIZE = 8 * MIB
ALL = ("peer-1", "peer-2", "peer-3")
# Beside the content: calls, probes and gossip of some seconds.
REST_BYTES = 100_000
# A line on which what is large takes long, and a chunk a tenth of a second.
BYTES_PER_S = 100_000.0


def sent(sim: Simulation) -> int:
    """Return what all peers have sent so far, in bytes."""
    return sum(peer.transport.bytes_out for peer in sim.peers.values())


def content_at(sim: Simulation, name: str, object_id: Any) -> bytes:
    found = sim.peers[name].engine.load(object_id)
    assert found is not None
    (buffer,) = found[1].buffers
    return bytes(view_of(buffer))


@pytest.fixture
def album() -> Any:
    with Simulation(5, peers=3, classes=[Album]) as sim:
        join(sim)
        made = sim.client("peer-1").create(ALBUM, SIZE, replicas=3)
        made.poke(0, 1)
        sim.run(2.0)
        assert leaders(sim, id_of(made)) == ["peer-1"]
        yield sim, made


def test_change_in_place_sends_one_chunk_to_each_member(album: Any) -> None:
    sim, made = album
    before = sent(sim)

    made.poke(5 * MIB, 7)
    sim.run(1.0)

    assert 2 * CHUNK_BYTES < sent(sim) - before < 2 * CHUNK_BYTES + REST_BYTES
    contents = {content_at(sim, name, id_of(made)) for name in ALL}
    assert len(contents) == 1
    assert contents.pop()[5 * MIB] == 7


def test_member_that_was_away_gets_what_it_missed_and_no_more(album: Any) -> None:
    """Also where nobody remembers the steps between: its chunks are compared."""
    sim, made = album
    sim.crash("peer-3")
    for n in range(5):
        made.poke(n * MIB + 3, 9)
    sim.crash("peer-1")
    sim.run(1.0)
    sim.restart("peer-1")
    sim.run_until(lambda: len(leaders(sim, id_of(made))) == 1, timeout_s=60.0)
    made.peek(3)
    before = sent(sim)

    sim.restart("peer-3")
    sim.run_until(lambda: len(_contents(sim, made)) == 1, timeout_s=60.0)

    assert _contents(sim, made).pop()[4 * MIB + 3] == 9
    assert sent(sim) - before < 6 * CHUNK_BYTES + 4 * REST_BYTES


def _contents(sim: Simulation, made: Any) -> set[bytes]:
    return {content_at(sim, name, id_of(made)) for name in ALL}


def test_new_leader_goes_on_with_what_was_patched(album: Any) -> None:
    sim, made = album
    for n in range(3):
        made.poke(n * MIB, 5)
    client = sim.client("peer-2", "peer-3")
    again = client.get(id_of(made))

    sim.crash("peer-1", disk=False)

    assert [again.peek(n * MIB) for n in range(3)] == [5, 5, 5]
    assert again.poke(MIB, 6) == 5
    assert again.peek(MIB) == 6


@pytest.fixture
def two() -> Any:
    """Two peers with a slow line between them."""
    with Simulation(5, peers=2, classes=[Album, Counter, Letterbox]) as sim:
        join(sim)
        sim.set_link("peer-1", "peer-2", bytes_per_s=BYTES_PER_S)
        yield sim


def test_small_changes_do_not_wait_for_a_large_state_of_another_object(
    two: Any,
) -> None:
    client = two.client("peer-1")
    counter = client.create(COUNTER, replicas=2)
    far = two.client("peer-2").create(COUNTER)
    album = client.create(ALBUM, 4 * MIB)
    before, began_s = sent(two), two.now_s
    task = two.spawn(lambda: client.replicate(album, 2))
    waits = []
    while not task.is_over:
        two.run(1.0)
        for add in (counter.add, client.get(id_of(far)).add.options(direct=False)):
            called_s = two.now_s
            add.options(timeout_s=2.0)()
            waits.append(two.now_s - called_s)

    assert len(waits) > 2 * 20
    assert max(waits) < 0.5
    line_s = 4 * MIB / BYTES_PER_S
    assert two.now_s - began_s < 1.1 * line_s + 2.0
    # It is sent once, though its leader wonders every 15 s where it is.
    assert sent(two) - before < 4 * MIB + 2 * REST_BYTES


def spoil(sim: Simulation, name: str, object_id: Any) -> None:
    """Flip a bit of a file that was read before."""
    peer = sim.peers[name]
    (address,) = peer.engine.snapshot(object_id, "register").addresses
    content, written_s = peer.disk.files[address]
    spoilt = bytearray(content)
    spoilt[2 * MIB] ^= 1
    peer.disk.files[address] = (bytes(spoilt), written_s)


def check_alike(sim: Simulation, made: Any, content: bytes) -> None:
    """Give repair its time: all have the content, under the name that it has."""
    sim.run(40.0)
    assert _contents(sim, made) == {content}
    for name in ALL:
        assert sim.peers[name].engine.verify_object(id_of(made)) == []


def test_new_copy_is_not_made_of_a_damaged_file(album: Any) -> None:
    """Another member leads then, and the one with the damage gets its file back."""
    sim, made = album
    client = sim.client("peer-1")
    client.replicate(id_of(made), 2, peers=["peer-1", "peer-2"])
    sim.run_until(
        lambda: sim.peers["peer-3"].engine.head(id_of(made)) is None, timeout_s=60.0
    )
    before = content_at(sim, "peer-2", id_of(made))
    spoil(sim, leaders(sim, id_of(made))[0], id_of(made))

    client.replicate(id_of(made), 3)

    check_alike(sim, made, before)
    assert sim.client("peer-3").get(id_of(made)).peek(0) == 1


def test_who_takes_over_does_not_take_a_damaged_file_for_the_newest_state(
    album: Any,
) -> None:
    """It waits for somebody who has that, instead of committing what nobody wrote."""
    sim, made = album
    sim.crash("peer-3")
    made.poke(6, 8)
    sim.run(1.0)
    before = content_at(sim, "peer-1", id_of(made))
    spoil(sim, "peer-2", id_of(made))
    sim.crash("peer-1")
    sim.restart("peer-3")
    with pytest.raises(NoQuorumError, match="damaged"):
        sim.client("peer-3").get(id_of(made)).peek.options(timeout_s=20.0)(6)

    sim.restart("peer-1")

    check_alike(sim, made, before)


def test_object_with_a_damaged_file_does_not_move() -> None:
    """Where it is going its file would be named by its content, damage and all."""
    with Simulation(5, peers=2, classes=[Album]) as sim:
        join(sim)
        made = sim.client("peer-1").create(ALBUM, SIZE)
        made.poke(0, 1)
        sim.run(1.0)
        spoil(sim, "peer-1", id_of(made))

        with pytest.raises(CorruptRecordError, match="its content is not"):
            sim.client("peer-1").move(id_of(made), "peer-2")
        with pytest.raises(CorruptRecordError, match="its content is not"):
            sim.client("peer-1").export(id_of(made))

        assert sim.peers["peer-2"].engine.head(id_of(made)) is None
        assert made.poke(1, 1) == 0
