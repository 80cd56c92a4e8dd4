"""Objects move under load while peers die: every counter stays exact.

Rules of this file: as in test_kills; `ACTIVESTORE_MOVES` chooses the length.

Source: issue 3, "A thousand moves under load"; design section 7.
"""

from __future__ import annotations

import os
import random
import time

import pytest

import activestore
from activestore.errors import UnavailableError
from tests.integration.test_kills import SEED, Writer

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.serial]

MOVES = int(os.environ.get("ACTIVESTORE_MOVES", "40"))
PEERS = 3
COUNTERS = 4
WRITERS = 8
# One kill of a random peer after so many moves.
MOVES_PER_KILL = 8
# How long an object may be out of reach: a peer restarts, and its death is noticed.
REACH_S = 40.0


def patiently(action):
    """Do it, again while it says that it may work later; return what it returned."""
    end_s = time.monotonic() + REACH_S
    while True:
        try:
            return action()
        except UnavailableError:
            if time.monotonic() > end_s:
                raise
            time.sleep(0.05)


@pytest.mark.scaled
@pytest.mark.timeout(180 + 2 * MOVES)
def test_counters_stay_exact_while_they_move_and_peers_die(cluster, models_file):
    print(f"seed={SEED} moves={MOVES}")
    chance = random.Random(SEED)
    peers, stores = cluster(PEERS)
    for store in stores:
        store.publish(models_file)
    endpoints = [peer.endpoint for peer in peers]
    made = [stores[n % PEERS].create("models.Counter") for n in range(COUNTERS)]
    ids = [repr(counter).split()[-1].rstrip(">") for counter in made]
    writers = [
        Writer(n, endpoints[n % PEERS :] + endpoints[: n % PEERS], ids[n % COUNTERS])
        for n in range(WRITERS)
    ]
    for writer in writers:
        writer.start()

    with activestore.connect(endpoints, timeout_s=20.0) as mover:
        for number in range(1, MOVES + 1):
            object_id, peer = chance.choice(ids), f"peer-{chance.randrange(PEERS)}"
            patiently(lambda o=object_id, p=peer: mover.move(o, p))
            if number % MOVES_PER_KILL == 0:
                chance.choice(peers).restart()
        for writer in writers:
            writer.is_over.set()
        for writer in writers:
            writer.join(timeout=REACH_S)
            assert not writer.is_alive(), f"{writer.name} hangs"
            assert writer.failure is None, writer.name
        seen = [patiently(lambda o=o: mover.get(o).seen) for o in ids]

    for number, found in enumerate(seen):
        mine = [w for w in writers if w.alias == ids[number]]
        acknowledged = {m: p for w in mine for m, p in w.acknowledged.items()}
        unknown = {m for w in mine for m in w.unknown}
        print(
            f"counter={number} acknowledged={len(acknowledged)} unknown={len(unknown)}"
        )
        assert len(found) == len(set(found)), "a call ran twice"
        lost = {m for m, p in acknowledged.items() if found[p - 1 : p] != [m]}
        assert not lost, (
            f"acknowledged at a position where it is not: {sorted(lost)[:10]}"
        )
        assert set(found) - set(acknowledged) <= unknown
        assert acknowledged
