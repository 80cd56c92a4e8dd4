"""Scrubbing: all is read in time, at a bounded rate; damage is told, and its end too."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from activestore.ids import ObjectId, PeerId
from activestore.peer import scrubbing
from activestore.peer.scrubbing import BYTES_PER_S, SLICE_BYTES_MAX, Scrubbing
from activestore.storage.blobs import PIECE_BYTES, address_of
from activestore.storage.engine import Change, Damage
from activestore.storage.memory_engine import MemoryDisk, MemoryEngine
from activestore.wire.state import ObjectState

HOUR_S, WEEK_S = 3600.0, 7 * 86_400.0
LARGE = os.urandom(2_000_000)
A, B = ObjectId(b"peer66\x00" + b"a" * 9), ObjectId(b"peer66\x00" + b"b" * 9)


def kept(object_id: ObjectId, content: bytes = LARGE, version: int = 1) -> Change:
    state = ObjectState("m.C", b"r" * 16, 0, {}, b"g", ("g",), [content])
    return Change(object_id, version, state)


class Peer:
    """As much of a peer as scrubbing sees: its clock, and a keeper that runs on demand."""

    def __init__(self, interval_s: float = WEEK_S) -> None:
        self.now_s = 100.0
        self.is_closing = False
        self.notes: list[tuple[str, str]] = []
        self.ordered: deque[tuple[Any, Any]] = deque()
        self.damaged: list[tuple[ObjectId, Damage]] = []
        self.is_repairable = False
        self.disk = MemoryDisk(PeerId(b"peer66"))
        self.settings = SimpleNamespace(scrub_interval_s=interval_s)
        self.storage: Any = self
        self.start()

    def start(self) -> None:
        self.engine = MemoryEngine(
            self.disk, disk_budget_bytes=1 << 30, wall_clock=self.wall_clock
        )
        self.scrubbing = Scrubbing(self)  # type: ignore[arg-type]
        self.scrubbing.on_damage = self._on_damage
        self.scrubbing.restore(self.engine)

    def _on_damage(self, object_id: ObjectId, damage: Damage) -> bool:
        self.damaged.append((object_id, damage))
        return self.is_repairable

    def clock(self) -> float:
        return self.now_s

    def wall_clock(self) -> float:
        return 1e9 + self.now_s

    def random(self) -> float:
        return 0.25

    def note(self, level: str, text: str) -> None:
        self.notes.append((level, text))

    def maintain(self, function: Callable[..., Any], then: Callable[..., None]) -> None:
        self.ordered.append((function, then))

    write = maintain

    def look(self, after_s: float = 0.5) -> None:
        """Let time pass, look, and carry out what that ordered."""
        self.now_s += after_s
        self.scrubbing.look(self.now_s)
        while self.ordered:
            function, then = self.ordered.popleft()
            try:
                value, error = function(self.engine), None
            except Exception as failure:
                value, error = None, failure
            then(value, error)

    def walk(self) -> dict[str, Any]:
        """Have a walk from its beginning to its end."""
        self.scrubbing.begin()
        while self.scrubbing.status()["is_running"]:
            self.look()
        return self.scrubbing.status()

    def spoil(self, content: bytes = LARGE) -> None:
        """Change a bit of a file."""
        spoilt = bytearray(content)
        spoilt[len(content) // 2] ^= 1
        self.disk.files[address_of(content)] = (bytes(spoilt), 0.0)


@pytest.fixture
def peer() -> Peer:
    made = Peer()
    assert made.engine.commit([kept(A), kept(B, LARGE[1:])]) == [None, None]
    return made


# -- when, and how fast ----------------------------------------------------------------


def test_walk_begins_when_it_is_due_and_then_rests(peer: Peer) -> None:
    peer.look(WEEK_S / 4 - 1)
    assert not peer.scrubbing.status()["is_running"]

    peer.look(1.0)
    peer.look()
    told = peer.scrubbing.status()

    assert not told["is_running"]
    assert told["last_s"] == peer.wall_clock()
    assert told["last_bytes"] >= 2 * len(LARGE) - 1
    assert told["next_s"] == told["last_s"] + WEEK_S
    peer.look(WEEK_S - 10)
    assert peer.scrubbing.status() == told


def test_restart_begins_no_walk(peer: Peer) -> None:
    ended_s = peer.walk()["last_s"]
    peer.now_s += WEEK_S / 2

    peer.start()
    peer.look()

    told = peer.scrubbing.status()
    assert not told["is_running"]
    assert (told["last_s"], told["next_s"]) == (ended_s, ended_s + WEEK_S)


def test_damaged_row_of_the_last_walk_keeps_no_peer_from_starting(peer: Peer) -> None:
    peer.walk()
    key = b"cluster\x00scrub"
    peer.disk.tables["facts"][key] = b"\x00" * 20

    peer.start()

    assert peer.scrubbing.status()["last_s"] == 0.0


def test_peer_that_is_to_read_nothing_reads_nothing() -> None:
    peer = Peer(interval_s=0.0)

    peer.look(10 * WEEK_S)

    assert peer.scrubbing.status()["last_s"] == 0.0
    assert peer.scrubbing.status()["next_s"] == 0.0


def test_rate_is_bounded_and_a_late_look_makes_no_burst(peer: Peer) -> None:
    blocks = [os.urandom(1 << 20) + bytes([n]) for n in range(32)]
    changes = [
        kept(ObjectId(b"peer66\x00" + bytes(8) + bytes([n])), block)
        for n, block in enumerate(blocks)
    ]
    peer.engine.commit(changes)
    peer.scrubbing.begin()
    seen, before = [], 0.0

    for after_s in (0.5, 0.5, 60.0):
        peer.look(after_s)
        told = peer.scrubbing.status()["progress"] * peer.engine.usage().used_bytes
        seen.append(told - before)
        before = told

    for size, bound in zip(
        seen, (BYTES_PER_S // 2, BYTES_PER_S // 2, SLICE_BYTES_MAX), strict=True
    ):
        # A piece of a file, and a page of records, are read whole.
        assert bound / 2 <= size <= bound + PIECE_BYTES + 100_000


def test_only_one_slice_is_under_way(peer: Peer) -> None:
    peer.scrubbing.begin()
    for _ in range(3):
        peer.now_s += 1.0
        peer.scrubbing.look(peer.now_s)

    assert len(peer.ordered) == 1


def test_peer_that_ends_begins_no_slice(peer: Peer) -> None:
    peer.scrubbing.begin()
    peer.is_closing = True

    peer.look()

    assert peer.scrubbing.status()["progress"] == 0.0


def test_walk_that_fails_begins_again_later(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(peer.engine, "verify", lambda: (_ for _ in ()).throw(OSError(5)))
        peer.scrubbing.begin()
        peer.look()
    assert "warning" in dict(peer.notes)
    assert not peer.scrubbing.status()["is_running"]

    peer.look(scrubbing.AGAIN_S)
    peer.look()

    assert peer.scrubbing.status()["last_bytes"] > len(LARGE)


# -- damage ----------------------------------------------------------------------------


def test_damage_is_told_and_listed(peer: Peer) -> None:
    peer.spoil()

    told = peer.walk()

    assert [object_id for object_id, _ in peer.damaged] == [A]
    assert told["damaged_count"] == 1
    (row,) = told["damaged"]
    assert row["object_id"] == bytes(A)
    assert row["where"] == f"blob {address_of(LARGE).hex()}"
    (text,) = [text for level, text in peer.notes if level == "error"]
    assert A.hex() in text
    assert "restore it from a backup" in text


def test_damage_that_stays_is_told_once_in_the_log(peer: Peer) -> None:
    peer.spoil()

    peer.walk()
    told = peer.walk()

    assert (told["damaged_count"], len(told["damaged"])) == (1, 1)
    assert [level for level, _ in peer.notes].count("error") == 1


def test_object_that_is_brought_back_counts_as_repaired(peer: Peer) -> None:
    peer.spoil()
    peer.is_repairable = True
    peer.walk()
    assert "bringing it back" in dict(peer.notes)["error"]

    peer.engine.commit([kept(A, version=2)])
    peer.look(scrubbing.LOOK_S)

    told = peer.scrubbing.status()
    assert (told["damaged"], told["repaired_count"]) == ([], 1)


def test_repair_that_takes_long_is_asked_for_again(peer: Peer) -> None:
    """The others may have been away."""
    peer.spoil()
    peer.is_repairable = True
    peer.walk()

    for _ in range(40):
        peer.look(scrubbing.LOOK_S)

    # After 5 s, and then twice as long each time.
    assert len(peer.damaged) == 1 + 5
    assert peer.scrubbing.status()["repaired_count"] == 0


def test_damaged_object_that_is_deleted_is_not_repaired(peer: Peer) -> None:
    peer.spoil()
    peer.is_repairable = True
    peer.walk()

    peer.engine.commit([Change(A, is_delete=True)])
    peer.look(scrubbing.LOOK_S)

    told = peer.scrubbing.status()
    assert (told["damaged"], told["repaired_count"]) == ([], 0)


def test_damage_without_a_way_back_is_dropped_when_a_walk_sees_it_no_more(
    peer: Peer,
) -> None:
    peer.spoil()
    peer.walk()
    peer.engine.commit([kept(A, version=2)])

    told = peer.walk()

    assert (told["damaged"], told["repaired_count"]) == ([], 0)


def test_damages_that_are_kept_in_mind_are_bounded(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrubbing, "DAMAGES_MAX", 1)
    peer.spoil()
    peer.spoil(LARGE[1:])

    told = peer.walk()

    assert (told["damaged_count"], len(told["damaged"])) == (2, 1)
    assert [object_id for object_id, _ in peer.damaged] == [A, B]
