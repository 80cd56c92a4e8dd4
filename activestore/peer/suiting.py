"""Which peers have what a class needs: asked of them, for only they know.

    suited    client: the peers that can run a class, the freest first
    missing   peer to peer: what of these needs is lacking there, and how free it is

Rules of this file: a peer that does not answer in time is left out; nothing is promised,
for what is free now may be taken when the object comes.

Source: design section 4 ("which peers have it"); schemas/protocol.md section 6.
"""

from __future__ import annotations

from typing import Any

from activestore.errors import ActiveStoreError, RemoteProtocolError
from activestore.ids import PeerId
from activestore.peer.loop import PeerLoop
from activestore.peer.requests import Origin, Requests, text_of

# Peers that are asked at once for one class.
ASKED_MAX = 8
# What has not answered by then is too busy anyway, in seconds.
ANSWER_S = 3.0


class Suiting:
    """The operations `suited` and `missing`."""

    def __init__(self, loop: PeerLoop, requests: Requests) -> None:
        self._loop = loop
        self._requests = requests
        requests.add("suited", self._do_suited)
        requests.add("missing", self._do_missing)

    def _do_suited(self, origin: Origin, parameters: dict[str, Any]) -> None:
        class_name = text_of(parameters, "class_name")

        def then(error: ActiveStoreError | None) -> None:
            if error is not None:
                self._requests.refuse(origin, error)
            else:
                self._ask_all(origin, class_name)

        if self._loop.fetching.has(class_name):
            then(None)
        else:
            self._loop.fetching.bring(class_name, b"", (), then)

    def _ask_all(self, origin: Origin, class_name: str) -> None:
        interface = self._loop.classes.interface_of(class_name)
        needs = {name: interface[name] for name in ("requires", "resources")}
        found: list[tuple[float, str, PeerId]] = []
        asked = self._strongest()
        if self._loop.classes.missing_for(class_name) is None:
            me = PeerId(self._loop.settings.peer_id)
            found.append((self._free(), self._loop.settings.peer_name, me))
        open_count = len(asked)

        def answer() -> None:
            found.sort(key=lambda one: (-one[0], one[1]))
            rows = [{"peer": name, "peer_id": peer_id} for _, name, peer_id in found]
            self._requests.answer(origin, rows)

        def heard(peer_id: PeerId, told: Any) -> None:
            nonlocal open_count
            open_count -= 1
            if type(told) is dict and told.get("missing") == []:
                free = told.get("free")
                name = self._loop.cluster.name_of(peer_id)
                found.append((free if type(free) is float else 0.0, name, peer_id))
            if not open_count:
                answer()

        if not asked:
            answer()
        for peer_id in asked:
            self._loop.relays.ask(
                peer_id, "missing", needs,
                lambda told, _, peer_id=peer_id: heard(peer_id, told),  # type: ignore[misc]
                wait_s=ANSWER_S,
            )  # fmt: skip

    def _strongest(self) -> list[PeerId]:
        """Return the other peers that live, those with the most cores first."""
        me = self._loop.settings.peer_id
        records = [r for r in self._loop.cluster.membership.live() if r.peer_id != me]

        def strength(record: Any) -> tuple[bool, float]:
            meta = record.meta
            cores = meta.get("cores", 0)
            return bool(meta.get("accelerators")), cores if type(cores) is int else 0

        records.sort(key=strength, reverse=True)
        return [PeerId(record.peer_id) for record in records[:ASKED_MAX]]

    def _free(self) -> float:
        """Return how many of its calls this peer could take now, roughly: free cores."""
        record = self._loop.settings.record
        cores = record.meta.get("cores", 1) if record is not None else 1
        running = sum(call.slot is not None for call in self._loop.core.calls.values())
        return float(cores if type(cores) is int else 1) - running

    def _do_missing(self, origin: Origin, parameters: dict[str, Any]) -> None:
        requires, resources = parameters.get("requires"), parameters.get("resources")
        is_good = (
            type(requires) in {list, tuple}
            and all(type(one) is str for one in requires or ())
            and type(resources) is dict
            and all(type(amount) in {int, float} for amount in resources.values())
        )
        if not is_good:
            raise RemoteProtocolError("requires or resources are malformed", "missing")
        missing = self._loop.classes.lacking(requires or (), resources or {})
        told = {"missing": list(missing), "free": self._free()}
        self._requests.answer(origin, told)
