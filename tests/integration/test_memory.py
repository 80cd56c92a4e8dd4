"""More objects than memory: the least recently used go, and come back whole.

Source: design section 3 ("activate / passivate"), section 6.
"""

from __future__ import annotations

import psutil
import pytest

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(90)]

MIB = 1024 * 1024
OBJECTS = 200
# 4 MB of float64.
COUNT = 500_000


def test_more_objects_than_memory_are_written_and_read_back(make_peer, models_file):
    peer = make_peer(activation_memory_mb=64, executor_memory_mb=1000)
    store = peer.connect()
    store.publish(models_file)

    chunks = [store.create("models.Chunk", n, COUNT) for n in range(OBJECTS)]
    assert chunks[3].shift(0.5) == 3.5
    totals = [chunk.total() for chunk in chunks]

    expected = [float(n) * COUNT for n in range(OBJECTS)]
    expected[3] = 3.5 * COUNT
    assert totals == expected
    resident = [child.memory_info().rss // MIB for child in peer.executors()]
    daemon_mib = psutil.Process(peer.pid).memory_info().rss // MIB
    print(f"executors={resident} MiB daemon={daemon_mib} MiB")
    # 32 MiB of objects each, Python with numpy, and what one call leaves; 800 MB went
    # through.
    assert max(resident) < 120
    peer.restart()
    again = peer.connect().get(repr(chunks[3]).split()[-1].rstrip(">"))
    assert again.total() == 3.5 * COUNT


def test_objects_at_work_are_not_passivated_under_their_calls(make_peer, models_file):
    """Calls in flight on more objects than fit at once."""
    peer = make_peer(activation_memory_mb=16, executor_memory_mb=1000)
    store = peer.connect()
    store.publish(models_file)
    chunks = [store.create("models.Chunk", n, COUNT) for n in range(12)]

    futures = [chunk.shift.submit(1.0) for _ in range(5) for chunk in chunks]
    values = [future.result(timeout=60) for future in futures]

    assert values[-12:] == [n + 5.0 for n in range(12)]
    assert [chunk.total() for chunk in chunks] == [(n + 5.0) * COUNT for n in range(12)]
