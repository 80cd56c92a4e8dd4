"""Groups that lack copies get them again.

A member that does not answer for `repair_after_s` is replaced, where there is a peer that
can take its place; a group that was made smaller than what was asked for grows as soon as
there is one. `replicate` does the same at once.

Rules of this file: only groups that are led here are looked at, few at a time; nothing is
taken away before its replacement is there.

Source: design section 8; reliability.md 3.4 R8.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from activestore.core.register import Register
from activestore.ids import ObjectId, PeerId
from activestore.peer.grouping import Grouping
from activestore.peer.loop import PeerLoop

# Registers that are looked at in one look, and groups that are mended at once.
LOOKED_MAX = 1000
OPEN_MAX = 16
# One that could not be mended is looked at again after this, in seconds.
AGAIN_S = 10.0


class Repairing:
    """What one peer does about groups that lack copies."""

    def __init__(self, loop: PeerLoop, grouping: Grouping) -> None:
        self._loop = loop
        self._grouping = grouping
        self._core = loop.replicating.core
        self._ids: Iterator[ObjectId] = iter(())
        # Since when a peer is not reachable.
        self._gone_s: dict[PeerId, float] = {}
        self._open: set[ObjectId] = set()
        self._failed_s: dict[ObjectId, float] = {}
        self._under: set[ObjectId] = set()
        self.repaired_count = 0

    def look(self, now_s: float) -> None:
        """Look at some groups, and mend those that need it."""
        if not self._core.registers:
            return
        self._look_at_peers(now_s)
        for _ in range(LOOKED_MAX):
            object_id = next(self._ids, None)
            if object_id is None:
                self._ids = iter(list(self._core.registers))
                self._under = {one for one in self._under if self._core.is_led(one)}
                return
            register = self._core.register_of(object_id)
            if register is not None and self._core.is_led(object_id):
                self._look_at(object_id, register, now_s)

    def _look_at_peers(self, now_s: float) -> None:
        cluster = self._loop.cluster
        for peer_id in list(cluster.membership.members):
            if cluster.is_reachable(PeerId(peer_id)):
                self._gone_s.pop(PeerId(peer_id), None)
            else:
                self._gone_s.setdefault(PeerId(peer_id), now_s)

    def _look_at(self, object_id: ObjectId, register: Register, now_s: float) -> None:
        config = register.config
        me = self._loop.settings.peer_id
        gone = [
            one
            for one in config.voters
            if one != me and not self._loop.cluster.is_reachable(one)
        ]
        lacks = len(config.members) < config.wanted or (
            config.wants_witness and not config.witness
        )
        if not (lacks or gone):
            self._under.discard(object_id)
            return
        self._under.add(object_id)
        after_s = self._loop.settings.repair_after_s
        leaving = [
            one for one in gone if now_s - self._gone_s.get(one, now_s) >= after_s
        ]
        is_due = now_s - self._failed_s.get(object_id, -AGAIN_S) >= AGAIN_S
        if (lacks or leaving) and is_due and object_id not in self._open:
            self._mend(object_id, register, leaving)

    def _mend(
        self, object_id: ObjectId, register: Register, leaving: list[PeerId]
    ) -> None:
        if len(self._open) >= OPEN_MAX:
            return
        self._open.add(object_id)
        config = register.config

        def then(why: str) -> None:
            self._open.discard(object_id)
            if why:
                self._failed_s[object_id] = self._loop.clock()
                return
            self._failed_s.pop(object_id, None)
            self.repaired_count += 1
            names = ", ".join(map(self._loop.cluster.name_of, leaving)) or "none"
            self._loop.note(
                "info", f"group mended object={object_id.hex()} replaced={names}"
            )

        self._grouping.set_group(
            object_id, config.wanted, config.wants_witness, (), leaving, then
        )

    @property
    def under(self) -> list[ObjectId]:
        """Objects led here that lack a copy, or one of whose members does not answer."""
        return sorted(self._under)

    def rows(self) -> dict[str, Any]:
        """Return what `status` shows of the groups that this peer is in."""
        registers = self._core.registers
        led = sum(map(self._core.is_led, registers))
        return {
            "led": led,
            "followed": len(registers) - led,
            "under_replicated": len(self._under),
            "quarantined": sum(r.is_quarantined for r in registers.values()),
            "mending": len(self._open),
            "mended": self.repaired_count,
        }
