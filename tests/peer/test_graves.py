"""What is remembered of deleted objects is bounded in time and number, and on disk.

Source: reliability.md 3.4 R10.
"""

from __future__ import annotations

import pytest

from activestore.ids import ObjectId, PeerId
from activestore.peer import graves as graves_module
from activestore.peer.graves import KEPT_S, Graves
from activestore.storage.engine import ZERO_ID, Change, Engine, Row
from activestore.storage.memory_engine import MemoryDisk, MemoryEngine


class Keeper:
    """A keeper with a disk and a clock."""

    def __init__(self) -> None:
        self.now_s = 1_735_689_600.0
        self.engine: Engine = MemoryEngine(
            MemoryDisk(PeerId(b"peer-1")),
            disk_budget_bytes=1 << 30,
            wall_clock=lambda: self.now_s,
        )
        self.restart()

    def restart(self) -> None:
        self.graves = Graves(lambda: self.now_s)
        self.graves.restore(self.engine)

    def bury(self, number: int, lineage: int = 0) -> None:
        rows = self.graves.bury(object_id(number), lineage)
        (refused,) = self.engine.commit([Change(ZERO_ID, rows=rows)])
        assert refused is None

    def known(self) -> list[int]:
        on_disk = sorted(key[0] for key, _ in self.engine.rows("grave"))
        in_memory = [n for n in range(256) if self.graves.lineage_of(object_id(n)) == 0]
        assert on_disk == in_memory
        assert len(self.graves) == len(on_disk)
        return on_disk


def object_id(number: int) -> ObjectId:
    return ObjectId(bytes([number]) * 16)


def test_graves_come_back_after_a_restart_the_oldest_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graves_module, "GRAVES_MAX", 3)
    keeper = Keeper()
    for number in (7, 2, 5):
        keeper.bury(number)
        keeper.now_s += 1.0
    keeper.restart()

    assert keeper.known() == [2, 5, 7]
    keeper.bury(1)
    assert keeper.known() == [1, 2, 5]


def test_grave_is_kept_for_its_time_and_no_longer() -> None:
    keeper = Keeper()
    keeper.bury(1)
    keeper.now_s += KEPT_S
    keeper.bury(2)
    assert keeper.known() == [1, 2]
    keeper.now_s += 1.0
    keeper.bury(3)
    assert keeper.known() == [2, 3]


def test_object_deleted_in_two_lineages_is_gone_in_the_later_one() -> None:
    keeper = Keeper()
    for lineage in (0, 1 << 50, 0):
        keeper.bury(1, lineage)
    keeper.restart()

    assert keeper.graves.lineage_of(object_id(1)) == 1 << 50
    assert keeper.graves.lineage_of(object_id(2)) is None


def test_row_that_means_nothing_proves_nothing() -> None:
    keeper = Keeper()
    for number, value in enumerate((b"", b"\xc1", b"\x91\x01", b"\x92\xa1x\xa1y")):
        row = Row("grave", object_id(number), value)
        keeper.engine.commit([Change(ZERO_ID, rows=[row])])
    keeper.restart()

    assert len(keeper.graves) == 0
