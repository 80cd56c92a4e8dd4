"""Disks that forget a little, or go back in time, under simulated clusters.

Rules of this file: it damages no more than the copies of a group can make good: one copy
of an object at a time, where each majority has another one.

Source: reliability.md 3.7, 4.2; 3.4 R9.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

from activestore.errors import ActiveStoreError
from activestore.ids import ObjectId
from activestore.storage.engine import Damage
from activestore.testing import Simulation
from activestore.testing.peers import SimPeer
from tests.simulation.replica_clusters import WHOLE_S, Weather, register_at

# A key on a disk: of a table, or of a file ("" for its table).
Spot = tuple[str, bytes]


def damages_of(peer: SimPeer, object_id: ObjectId) -> list[Damage]:
    """Return what is damaged of an object on a peer's disk, and not brought back yet."""
    return peer.engine.verify_object(object_id)


def spots_of(peer: SimPeer, object_id: ObjectId) -> dict[str, list[Spot]]:
    """Return where an object lies on a peer's disk, by what lies there."""
    tables = peer.disk.tables
    found = {
        "heads": [("heads", bytes(object_id))],
        "facts": [("facts", b"register\x00" + object_id)],
    }
    for table in ("parts", "replies"):
        found[table] = [
            (table, key) for key in tables[table] if key.startswith(object_id)
        ]
    try:
        addresses = peer.engine.snapshot(object_id, "register").addresses
    except Exception:  # It is damaged already.
        addresses = ()
    found["files"] = [("", address) for address in addresses if address]
    return {
        what: kept
        for what, spots in found.items()
        if (kept := [one for one in spots if one[0] == "" or one[1] in tables[one[0]]])
    }


def spoil(sim: Simulation, name: str, spot: Spot) -> None:
    """Flip a bit on a disk, behind the peer's back."""
    peer, (table, key) = sim.peers[name], spot
    value = peer.disk.tables[table][key] if table else peer.disk.files[key][0]
    at = sim.rng.randrange(8 * len(value))
    spoilt = bytearray(value)
    spoilt[at // 8] ^= 1 << at % 8
    if table:
        peer.disk.tables[table][key] = bytes(spoilt)
    else:
        peer.disk.files[key] = (bytes(spoilt), peer.disk.files[key][1])
    peer.engine._documents.clear()


# By then the others have on disk which start of a peer was the last: they write that at
# most once in 5 s. Who has forgotten it with its power cannot tell; see
# docs/explanation/consistency.md, "Not promised".
REMEMBERED_S = 6.0


class Decay(Weather):
    """Weather in which disks forget too.

    "rot": a bit of a copy, "rot_register": of its register; "scrub": a peer reads all that
    it has. "set_back": the disk of a peer goes back to what it was a while ago, once, where
    there are `losers`.
    """

    rot_count = 0
    _backup_of = ""

    def _rot(self, name: str) -> None:
        self._spoil(name, ("heads", "parts", "replies", "files"))

    def _rot_register(self, name: str) -> None:
        self._spoil(name, ("facts",))

    def _spoil(self, name: str, kinds: tuple[str, ...]) -> None:
        peer, rng = self.sim.peers[name], self.sim.rng
        spots = [
            spot
            for object_id in self._bearing(peer, is_register="facts" in kinds)
            for what, found in spots_of(peer, object_id).items()
            if what in kinds
            for spot in [rng.choice(found)]
        ]
        if spots:
            spoil(self.sim, name, rng.choice(spots))
            self.rot_count += 1

    def _bearing(self, peer: SimPeer, *, is_register: bool) -> Iterator[ObjectId]:
        """Yield objects of which a peer's copy may be damaged, and nothing be lost."""
        for object_id in sorted(peer.loop.replicating.core.registers):
            register = register_at(peer, object_id)
            if register is None or register.is_stateless or register.is_deleted:
                continue
            voters = register.config.voters
            others = len(voters) // 2 + 1 - bool(register.config.witness)
            if is_register and len(voters) < 3:
                continue  # Without its vote there is no majority, should it restart.
            everyone = self.sim.peers.values()
            if others >= 2 and not any(damages_of(one, object_id) for one in everyone):
                yield object_id

    def _scrub(self, name: str) -> None:
        if self.sim.peers[name].is_up:
            self.sim.peers[name].loop.scrubbing.begin()

    def _set_back(self, _name: str) -> None:
        """Have a disk go back, when the others that had the same are away."""
        if not self.losers:
            return
        sim, rng = self.sim, self.sim.rng
        name, behind, away = rng.sample(list(sim.peers), 3)
        self.losers = []
        backup = copy.deepcopy(sim.peers[name].disk)
        sim.restart(name)  # So that there is a later start than the backup's.
        sim.sleep(REMEMBERED_S)
        others = [one for one in sim.peers if one != behind]
        is_cut = rng.random() < 0.5
        if is_cut:
            sim.partition([behind], others)
        else:
            sim.crash(behind)
        self._lasting(6.0)
        sim.pause(away)
        sim.crash(name)
        sim.peers[name].disk = backup
        self._backup_of = name
        if is_cut:
            sim.heal([behind], others)
        else:
            sim.restart(behind)
        sim.restart(name)
        if rng.random() < 0.5:
            sim.sleep(2.0)
            sim.restart(name)  # What it was told then it must remember.
        sim.sleep(8.0)
        sim.resume(away)

    def end(self) -> None:
        """Have all be well again: an operator gives who was set back an empty disk."""
        super().end()
        if self._backup_of:
            self.sim.run(20.0)
            self.sim.crash(self._backup_of, disk=False)
            self.sim.restart(self._backup_of)


def check_disk(peer: SimPeer) -> None:
    """Assert that a disk is not behind what its peer says; for `Simulation.checks`."""
    for object_id, register in peer.loop.replicating.core.registers.items():
        on_disk = register_at(peer, object_id)
        if on_disk is not None:
            is_there = on_disk.point >= register.point
            is_promised = on_disk.promised.counter >= register.promised.counter
            told = f"the disk of {peer.name} is behind: {on_disk}, known {register}"
            assert is_there, told
            assert is_promised, told


def check_undamaged(sim: Simulation) -> None:
    """Have all peers read all they have, and assert that soon nothing is damaged."""
    end_s = sim.now_s + WHOLE_S
    while sim.now_s < end_s:
        for peer in sim.peers.values():
            peer.loop.scrubbing.begin()
        sim.run(10.0)
        left = {
            name: [one for one in peer.engine.verify() if isinstance(one, Damage)]
            for name, peer in sim.peers.items()
        }
        if not any(left.values()):
            return
        for name, found in left.items():
            for damage in found:
                _make_anew(sim, name, damage)
    raise AssertionError(f"damaged: {left}")


def _make_anew(sim: Simulation, name: str, damage: Damage) -> None:
    """Have a copy whose register was damaged as its peer started replaced by a new one.

    An operator does it: what it promised is forgotten, and it has no vote.
    """
    object_id, core = damage.object_id, sim.peers[name].loop.replicating.core
    if object_id is None or core.register_of(object_id) is not None:
        return
    client = sim.client(*sim.peers)
    try:
        wanted = client.group(object_id).wanted
        client.replicate(object_id, wanted - 1, leaving=[name])
        client.replicate(object_id, wanted)
    except ActiveStoreError:
        pass  # The operator looks again.
