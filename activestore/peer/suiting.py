"""Which peers have what a class needs: guessed from their records, then asked of them.

    suited    client: the peers that can run a class, the freest first
    missing   peer to peer: what of these needs is lacking there, and how free it is

A peer whose record says that it lacks something is not asked; of the others those whose
record says that they have it all come first, and of these the freest.

Rules of this file: a peer that does not answer in time is left out; nothing is promised,
for what is free now may be taken when the object comes.

Source: design section 4 ("which peers have it"); schemas/protocol.md section 6.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from activestore.core.peers import PeerRecord, installed_of, load_of
from activestore.errors import ActiveStoreError, RemoteProtocolError
from activestore.ids import PeerId
from activestore.objects.requirements import are_met_by
from activestore.peer.loop import PeerLoop
from activestore.peer.requests import Origin, Requests, text_of

# Peers that are asked at once for one class.
ASKED_MAX = 8
# What has not answered by then is too busy anyway, in seconds.
ANSWER_S = 3.0


# A record tells MiB, a class asks for MB; and whatever was rounded.
MB_PER_MIB = 1.048576


def whom_to_ask(
    records: Iterable[PeerRecord],
    requires: Sequence[str],
    resources: Mapping[str, float],
) -> list[PeerId]:
    """Return the peers that are worth asking for a class, the likeliest first.

    Args:
        records: Of peers that live.
        requires: What the class requires, as PEP 508 texts.
        resources: What the machine must have.
    """
    ranked: list[tuple[bool, bool, float, float, bytes]] = []
    for record in records:
        is_met = are_met_by(requires, installed_of(record)) if requires else True
        if is_met is False or _is_too_small(record, resources):
            continue
        has_accelerator = bool(record.meta.get("accelerators"))
        ranked.append((
            is_met is None,
            bool(resources.get("gpu")) and not has_accelerator,
            -_free_cores(record), -_number(record, "cores"), record.peer_id,
        ))  # fmt: skip
    ranked.sort()
    return [PeerId(peer_id) for *_, peer_id in ranked[:ASKED_MAX]]


def suits(
    record: PeerRecord, requires: Sequence[str], resources: Mapping[str, float]
) -> bool | None:
    """Return whether a peer has what a class needs, as far as its record says.

    None where it does not say; for `core.spreading.spread`.
    """
    is_met = are_met_by(requires, installed_of(record)) if requires else True
    if is_met is False or _is_too_small(record, resources):
        return False
    if resources.get("gpu") and not record.meta.get("accelerators"):
        return None  # Of classes that bring their own way to it.
    return is_met


def _number(record: PeerRecord, key: str) -> float:
    value = record.meta.get(key)
    return value if type(value) in {int, float} else 0.0  # type: ignore[return-value]


def _is_too_small(record: PeerRecord, resources: Mapping[str, float]) -> bool:
    """Whether a record says that its machine has less than is needed."""
    cores, memory_mb = _number(record, "cores"), _number(record, "memory_mb")
    if cores and resources.get("cpus", 0.0) > cores:
        return True
    needed_mb = resources.get("memory_mb", 0.0)
    return bool(memory_mb) and needed_mb > (memory_mb + 1) * MB_PER_MIB


def _free_cores(record: PeerRecord) -> float:
    """Return how many cores have nothing to do, as far as a record says."""
    cores, load = _number(record, "cores"), load_of(record)
    if load is None:
        return cores
    return cores - max(float(load.busy_slots), cores * load.per_core / 100)


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
        me = self._loop.settings.peer_id
        others = [r for r in self._loop.cluster.membership.live() if r.peer_id != me]
        asked = whom_to_ask(others, needs["requires"], needs["resources"])
        if self._loop.classes.missing_for(class_name) is None:
            name = self._loop.settings.peer_name
            found.append((self._free(), name, PeerId(me)))
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
        if self._loop.reporting is not None:
            self._loop.reporting.required(requires or ())
        missing = self._loop.classes.lacking(requires or (), resources or {})
        told = {"missing": list(missing), "free": self._free()}
        self._requests.answer(origin, told)
