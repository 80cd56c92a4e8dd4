"""Who keeps an alias: its home by rendezvous hashing, and the home's two buddies.

Rules of this file: pure; whoever knows the same peers gets the same answer.

Source: design section 7; reliability.md 2.4.
"""

from __future__ import annotations

from collections.abc import Iterable

from activestore.core.peers import PeerRecord, buddies_of, rendezvous
from activestore.ids import PeerId


class Keepers:
    """The keepers of every alias, among one set of peers."""

    def __init__(self, records: Iterable[PeerRecord]) -> None:
        """Begin; `records`: of all that are live, the asking peer's among them."""
        self._records = {record.peer_id: record for record in records}
        self._buddies: dict[bytes, list[bytes]] = {}
        self.live = frozenset(map(PeerId, self._records))

    def of(self, alias: str) -> list[PeerId]:
        """Return the keepers of an alias, its home first; fewer where there are fewer.

        Costs one hash a peer, and as much again for the first alias of a home.
        """
        found = rendezvous(alias.encode(), self._records, 1)
        if not found:
            return []
        home = found[0]
        buddies = self._buddies.get(home)
        if buddies is None:
            records = self._records
            buddies = buddies_of(home, records.values(), records[home])
            self._buddies[home] = buddies
        return [PeerId(home), *map(PeerId, buddies)]
