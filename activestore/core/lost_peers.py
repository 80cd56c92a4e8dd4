"""Addresses of peers that fell silent, to be tried again for a day; pure.

A partition that heals has to be noticed by somebody: the dead are not probed.

Source: hashicorp/serf, reconnect; reliability.md 1.3.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from activestore.core.peers import PeerRecord


class LostPeers:
    """A bounded number of them, the oldest first."""

    def __init__(self, count_max: int, kept_s: float) -> None:
        self._count_max = count_max
        self._kept_s = kept_s
        self._lost: OrderedDict[bytes, tuple[PeerRecord, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._lost)

    def __contains__(self, peer_id: bytes) -> bool:
        return peer_id in self._lost

    def add(self, record: PeerRecord, now_s: float) -> None:
        """Remember a peer that has died; of too many the oldest is given up."""
        self._lost[record.peer_id] = (record, now_s)
        if len(self._lost) > self._count_max:
            self._lost.popitem(last=False)

    def discard(self, peer_id: bytes) -> None:
        """Forget one that is back."""
        self._lost.pop(peer_id, None)

    def expire(self, now_s: float) -> None:
        """Forget those that have been away for too long."""
        while self._lost:
            peer_id, (_, since_s) = next(iter(self._lost.items()))
            if now_s - since_s < self._kept_s:
                return
            del self._lost[peer_id]

    def pick(self, live_count: int, rng: Callable[[], float]) -> PeerRecord | None:
        """Return one to be tried now, if it is this peer's turn.

        All live peers together try each of the lost about once.
        """
        if not self._lost or rng() >= len(self._lost) / live_count:
            return None
        return list(self._lost.values())[int(rng() * len(self._lost))][0]

    def check(self, live: set[bytes]) -> None:
        """Make sure that it is bounded, and that none of them lives."""
        assert len(self._lost) <= self._count_max
        assert not self._lost.keys() & live
