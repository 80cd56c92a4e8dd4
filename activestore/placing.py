"""Where a new object goes: to the peer that was named, or to one that can have it.

Clients and running methods choose alike; for a method the connected peer is its own.

Rules of this file: the id of a new object names its peer, so its request finds the way;
nothing is asked where the connected peer is the one that is meant.

Source: design section 4 (`peer=`, `requires`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from activestore.errors import RequirementError, UnavailableError
from activestore.ids import PeerId

# Peers that are tried for a class that the connected one cannot run.
TRIED_MAX = 3
# Those that answer: a suspect is silent at the moment, and may come back.
_LIVING = ("alive", "suspect")

Made = TypeVar("Made")


class Placing:
    """Chooses the home of new objects."""

    def __init__(
        self,
        connected: Callable[[], PeerId],
        request: Callable[..., Any],
        is_connected: Callable[[str], bool] = lambda peer: False,
    ) -> None:
        """Choose by what `request` is told; `connected` returns the peer that it asks.

        `is_connected` tells whether a name is known, unasked, to be that peer's; it may
        raise where that peer cannot be asked of others.
        """
        self.connected = connected
        self._request = request
        self._is_connected = is_connected

    def home(self, peer: str) -> PeerId:
        """Return the living peer of a name, or of an id in hex; "" for the connected one.

        Raises:
            UnavailableError: it is not known; names those that are.
            RemoteProtocolError: the connected peer is too old to know others.
        """
        connected = self.connected()
        if not peer or peer == connected.hex() or self._is_connected(peer):
            return connected
        rows = self._request("peers")
        living = [row for row in rows if row["state"] in _LIVING]
        found = [row for row in living if peer in {row["peer"], row["peer_id"].hex()}]
        if len(found) > 1:
            raise UnavailableError(
                f"peer {peer!r}",
                "several living peers have that name; give the id of one: "
                + ", ".join(row["peer_id"].hex() for row in found),
            )
        if not found:
            names = ", ".join(sorted(row["peer"] for row in living))
            raise UnavailableError(
                f"peer {peer!r}",
                f"it is not known, or does not answer; known peers: {names}",
            )
        return PeerId(bytes(found[0]["peer_id"]))

    def about_code(self, home: PeerId) -> dict[str, Any] | None:
        """Return what a request tells a peer of who has the code that it needs."""
        connected = self.connected()
        return None if home == connected else {"code_at": bytes(connected)}

    def place(self, peer: str, make: Callable[[PeerId], Made]) -> Made:
        """Make something at a peer; where none is named, at one that has what it needs.

        Raises:
            RequirementError: the peer lacks what the class needs; names those that have
                it.
        """
        try:
            return make(self.home(peer))
        except RequirementError as error:
            if not error.missing:
                raise
            refused = error
        suited = self._request("suited", class_name=refused.class_name)
        names = tuple(str(row["peer"]) for row in suited)
        if not peer:
            connected = self.connected()
            others = [PeerId(bytes(row["peer_id"])) for row in suited]
            for home in [one for one in others if one != connected][:TRIED_MAX]:
                try:
                    return make(home)
                except RequirementError as error:  # noqa: PERF203 - three at most
                    refused = error
        raise RequirementError(refused.class_name, refused.missing, names) from None
