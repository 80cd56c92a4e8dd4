"""What a loop needs beside its ports: operations, what was halfway, classes.

The daemon and the simulator both join a peer here, so that a simulated one does all that
a real one does.

Rules of this file: order only; it is called once, before the loop's first turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from activestore.peer import starts
from activestore.peer.between import Between
from activestore.peer.exporting import Exporting
from activestore.peer.grouping import Grouping
from activestore.peer.listing import Listing
from activestore.peer.loop import PeerLoop
from activestore.peer.rehousing import Rehousing
from activestore.peer.requests import Requests
from activestore.peer.suiting import Suiting
from activestore.storage.engine import Engine


def wire(
    loop: PeerLoop,
    engine: Engine,
    *,
    status: Callable[[], Mapping[str, Any]],
    stop: Callable[[], None],
    damaged: Iterable[str] = (),
) -> Requests:
    """Join operations and what the disk holds to a loop that has not turned yet.

    Args:
        loop: The peer's.
        engine: Its store, open.
        status: What `status` answers.
        stop: Has the peer end.
        damaged: Classes to be published again.
    """
    requests = Requests(loop, status=status, stop=stop, damaged=damaged)
    Between(loop, requests, stop)
    loop.moving.shared = Rehousing(loop, Grouping(loop, requests))
    Suiting(loop, requests)
    Exporting(loop, requests)
    Listing(loop, requests)
    loop.cluster.restore(engine)
    loop.moving.restore(engine)
    loop.replicating.restore(engine)
    if starts.is_marked(engine):
        loop.distrust(starts.WHY_MARKED)
    loop.naming.restore(engine)
    loop.scrubbing.restore(engine)
    for record in engine.classes():
        loop.step(loop.classes.add(record))
    return requests
