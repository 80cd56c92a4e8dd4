"""Copies that nobody counts any more: found, and let go.

Who leaves a group is told so by its leader. Where that one is deposed, or dies, before it
was heard, nobody else knows of the copy, which follows a peer that is there and does not
ask. So each copy is looked after now and then: whoever has the object is asked who is in
its group.

    a copy here -> where the object was heard to be, else its home -> (moved ...) -> group
                   nobody leads it, nor has it there -> its keepers -> it was deleted

Rules of this file: a copy goes by the core's word only, which compares epochs and lineages,
and never for want of an answer; a few are asked after at a time, each once in a long
while.

Source: reliability.md 3.4 R8, R10; decision 11.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from activestore.core.register import Register
from activestore.core.replication_events import DeletedFound, GroupFound
from activestore.errors import ActiveStoreError, MovedError
from activestore.ids import ObjectId, PeerId, home_of
from activestore.peer.loop import PeerLoop
from activestore.wire.replicas import NOBODY, Ballot, Config, Point, Told

# Each copy is asked after once in so many times `repair_after_s`: an hour.
REPAIRS_APART = 6
# Questions that are open at once, and peers that one is sent on to.
OPEN_MAX = 64
REDIRECTS_MAX = 3


class Rollcall:
    """What one peer does to know that its copies are still wanted."""

    def __init__(self, loop: PeerLoop) -> None:
        self._loop = loop
        self._core = loop.replicating.core
        self._me = PeerId(loop.settings.peer_id)
        self._ids: Iterator[ObjectId] = iter(())
        self._owed = 0.0
        self._looked_s = loop.clock()
        self._open_count = 0

    def look(self, now_s: float) -> None:
        """Ask after the next copies."""
        every_s = self._loop.settings.repair_after_s * REPAIRS_APART
        part = min(1.0, (now_s - self._looked_s) / every_s)
        self._looked_s = now_s
        self._owed = min(self._owed + part * len(self._core.registers), OPEN_MAX)
        while self._owed >= 1 and self._open_count < OPEN_MAX:
            self._owed -= 1
            object_id = next(self._ids, None)
            if object_id is None:
                self._ids = iter(list(self._core.registers))
                return
            register = self._core.register_of(object_id)
            if register is not None and not self._core.is_led(object_id):
                self._ask_after(object_id, register)

    def _ask_after(self, object_id: ObjectId, register: Register) -> None:
        if register.is_quarantined:
            return
        place = self._loop.location.place_of(object_id)
        target = home_of(object_id) if place is None else place.peer_id
        self._ask(object_id, target, REDIRECTS_MAX)

    def _ask(self, object_id: ObjectId, target: PeerId, redirects: int) -> None:
        if target in {self._me, NOBODY}:
            self._ask_keepers(object_id)
            return
        self._open_count += 1

        def then(answer: Any, error: ActiveStoreError | None) -> None:
            self._open_count -= 1
            if error is None:
                self._judge(object_id, target, answer)
            elif isinstance(error, MovedError) and redirects:
                self._ask(object_id, PeerId(bytes(error.peer_id)), redirects - 1)
            else:
                self._ask_keepers(object_id)

        self._loop.relays.ask(target, "group", {"object_id": object_id}, then)

    def _ask_keepers(self, object_id: ObjectId) -> None:
        """Ask who would know whether an object was deleted that nobody seems to lead."""
        if self._core.leader_of(object_id) is not None:
            return
        keepers = set(self._loop.cluster.keepers(home_of(object_id)))
        if self._me in keepers:
            self._learn_deleted(
                object_id, self._loop.places.graves.lineage_of(object_id)
            )

        def then(answer: Any, error: ActiveStoreError | None) -> None:
            self._open_count -= 1
            if error is None and type(answer) is dict:
                self._learn_deleted(object_id, answer.get("deleted"))

        parameters = {"object_id": object_id, "epoch": 0}
        for keeper in sorted(keepers - {self._me}):
            self._open_count += 1
            self._loop.relays.ask(keeper, "keeps", parameters, then)

    def _learn_deleted(self, object_id: ObjectId, lineage: object) -> None:
        if type(lineage) is int and self._core.leader_of(object_id) is None:
            self._loop.replicating.step(DeletedFound(object_id, lineage))

    def _judge(self, object_id: ObjectId, target: PeerId, answer: Any) -> None:
        """Have the core know a group in which this peer is not."""
        roles = {PeerId(bytes(r["peer_id"])): r["role"] for r in answer["members"]}
        is_told = roles.get(target) == "primary" and not answer["is_quarantined"]
        is_led = self._core.is_led(object_id)  # since it was asked
        if self._me in roles or answer["is_joint"] or not is_told or is_led:
            return
        epoch = int(answer["epoch"])
        members = [one for one, role in roles.items() if role in {"primary", "replica"}]
        witness = [one for one, role in roles.items() if role == "witness"]
        config = Config(
            # An object that is alone has no group; its epoch is above all that it had.
            int(answer["config_version"]) or epoch,
            tuple(members), witness[0] if witness else NOBODY, (),
            int(answer["wanted"]), bool(answer["wants_witness"]), int(answer["lineage"]),
        )  # fmt: skip
        told = Told(object_id, Ballot(epoch, target), Point(epoch), config, True)
        self._loop.replicating.step(GroupFound(target, told))
