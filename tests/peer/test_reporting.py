"""What a peer tells of its machine, and whom another asks because of it.

Source: issue 3, "peer records"; reliability.md 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from activestore.core.peers import Load, fitted, installed_of, is_material, load_of
from activestore.objects.requirements import (
    are_met_by,
    installed_versions,
    names_of,
)
from activestore.peer.reporting import INSTALLED_MAX, WELL_KNOWN, Reporting, told_of
from activestore.peer.suiting import ASKED_MAX, suits, whom_to_ask
from activestore.testing import PeerSettings, Simulation
from activestore.wire.gossip import (
    ENDPOINT_CHARS_MAX,
    INCARNATION_MAX,
    RECORD_BYTES_MAX,
    PeerRecord,
    PeerState,
    Update,
    decode_records,
    encode_records,
    encode_update,
)
from activestore.wire.limits import PROTOCOL_VERSION

IDLE = Load(0, 8, 10, 8000)


def record_of(number: int = 1, **meta: Any) -> PeerRecord:
    peer_id = b"p" + number.to_bytes(5, "big")
    return PeerRecord(
        peer_id, 1, f"peer-{number}", ("tcp://10.0.0.1:7400",), "home", "lan",
        PROTOCOL_VERSION, {"cores": 4, "memory_mb": 8000, **meta},
    )  # fmt: skip


# -- the size of a record ------------------------------------------------------------------


def longest() -> PeerRecord:
    """Return a record whose every part is as long as a configuration may make it."""
    return PeerRecord(
        b"\xff" * 6, INCARNATION_MAX, "n" * 64, ("e" * ENDPOINT_CHARS_MAX,), "z" * 64,
        "edge", PROTOCOL_VERSION,
        {
            "cores": 2**16, "memory_mb": 2**31, "accelerators": ["a" * 64] * 16,
            "stable": False, "host": "h" * 24, "power_source": "battery",
            "start": b"\xff" * 8, "load": [1, 4, 0, 10],
            "installed": {f"{n}".ljust(40, "x"): "1" * 40 for n in range(INSTALLED_MAX)},
        },
    )  # fmt: skip


def test_record_of_512_bytes_has_room_for_the_longest_values() -> None:
    record = fitted(longest())

    row = encode_update(
        Update(record.peer_id, INCARNATION_MAX, PeerState.SUSPECT, record, b"a" * 6)
    )
    assert RECORD_BYTES_MAX == 512
    assert len(row) <= RECORD_BYTES_MAX
    assert record[:7] == longest()[:7], "who it is, and where, is always told"
    kept = {"cores", "memory_mb", "stable", "host", "start", "load"}
    assert kept <= record.meta.keys(), "so is what others decide by"


def test_record_stays_within_its_bytes_however_its_load_grows() -> None:
    told = {f"name-{n}": "1.0" for n in range(100)}
    record = fitted(record_of(installed=told, load=[0, 1, 0, 0]))

    grown = record._replace(
        incarnation=INCARNATION_MAX, meta={**record.meta, "load": [2**32 - 1] * 4}
    )
    update = Update(record.peer_id, INCARNATION_MAX, PeerState.ALIVE, grown)
    (back,) = decode_records(encode_records([update]))

    assert back.record is not None
    assert 10 < len(installed_of(back.record)) < 100
    assert list(installed_of(back.record)) == list(told)[: len(installed_of(record))]


def test_record_of_ordinary_length_is_told_whole() -> None:
    record = record_of(
        installed=dict.fromkeys(WELL_KNOWN, "12.34.56"), load=list(IDLE),
        accelerators=["cuda"], host="board-17", stable=True, power_source="mains",
        start=b"12345678",
    )  # fmt: skip

    assert fitted(record) == record


# -- load ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "is_told"),
    [
        (IDLE, False),
        (IDLE._replace(busy_slots=1), False),
        (IDLE._replace(busy_slots=2), True),
        (IDLE._replace(per_core=59), False),
        (IDLE._replace(per_core=60), True),
        (IDLE._replace(disk_free_mb=7100), False),
        (IDLE._replace(disk_free_mb=6900), True),
        (IDLE._replace(slots=64), False),
    ],
)
def test_load_is_told_once_it_has_changed_much(load: Load, is_told: bool) -> None:
    assert is_material(IDLE, load) is is_told
    assert is_material(None, load)


@pytest.mark.parametrize(
    "told", [None, 0.5, [], [1, 2, 3], ["a", 1, 2, 3], [-1, 1, 1, 1]]
)
def test_load_that_is_none_is_as_untold(told: object) -> None:
    assert load_of(record_of(load=told)) is None


class FakeMachine:
    """A machine whose load a test sets."""

    def __init__(self) -> None:
        self.now = (10, 8000)
        self.asked: list[list[str]] = []

    def installed(self, names: Sequence[str]) -> dict[str, str]:
        self.asked.append(list(names))
        return {name: "2.1" for name in names if name in {"numpy", "board"}}

    def load(self) -> tuple[int, int]:
        return self.now


def test_load_and_installed_reach_the_other_peers_and_idleness_tells_nothing() -> None:
    settings = PeerSettings(disk_budget_bytes=1 << 34)
    with Simulation(1, peers=3, settings=settings) as sim:
        machine = FakeMachine()
        loop = sim.peers["peer-1"].loop
        me = loop.settings.peer_id
        loop.reporting = Reporting(loop, loop.cluster, machine)
        seen = lambda: sim.peers["peer-3"].loop.cluster.membership.record_of(me)  # noqa: E731

        sim.run(35.0)
        assert load_of(seen())[2:] == (10, 8000)  # type: ignore[arg-type,index]
        assert installed_of(seen()) == {"numpy": "2.1"}  # type: ignore[arg-type]
        first = seen()

        machine.now = (30, 7500)
        sim.run(120.0)
        assert seen() == first, "an idle peer has nothing new to say"

        machine.now = (300, 7500)
        loop.reporting.required(
            ["Board>=2", "torch; python_version > '3'", "no such=="]
        )
        sim.run(60.0)
        assert load_of(seen())[2:] == (300, 7500)  # type: ignore[arg-type,index]
        assert installed_of(seen()) == {"torch": "", "board": "2.1", "numpy": "2.1"}  # type: ignore[arg-type]


def test_room_is_that_of_the_budget_where_the_disk_has_more() -> None:
    settings = PeerSettings(disk_budget_bytes=700_000_000)
    with Simulation(1, peers=2, settings=settings) as sim:
        loop = sim.peers["peer-1"].loop
        loop.reporting = Reporting(loop, loop.cluster, FakeMachine())
        sim.run(35.0)
        members = sim.peers["peer-2"].loop.cluster.membership
        told = load_of(members.record_of(loop.settings.peer_id))  # type: ignore[arg-type]
        assert told is not None
        assert told.disk_free_mb in (699, 700)


# -- what is installed -------------------------------------------------------------------------


def test_what_classes_required_last_is_told_first() -> None:
    told = told_of(
        ["newest", "older", "x" * 41], {"older": "1.0", "numpy": "2.0", "torch": "2.4"}
    )

    assert list(told.items()) == [
        ("newest", ""), ("older", "1.0"), ("torch", "2.4"), ("numpy", "2.0"),
    ]  # fmt: skip


def test_installed_versions_are_those_of_the_distributions_here() -> None:
    found = installed_versions(["msgpack", "activestore-no-such-distribution"])

    assert list(found) == ["msgpack"]
    assert names_of(["MsgPack>=1", "Py_ZMQ[x]<30"]) == ["msgpack", "py-zmq"]


@pytest.mark.parametrize(
    ("requires", "is_met"),
    [
        (["torch>=2"], True),
        (["torch>=2", "numpy"], True),
        (["torch>=3"], False),
        (["Torch>=2.4.0"], True),
        (["absent"], False),
        (["unknown"], None),
        (["unknown", "torch>=3"], False),
        (["torch; sys_platform == 'linux'"], None),
        (["torch[extra]"], None),
        (["not a requirement"], None),
        ([], True),
    ],
)
def test_record_answers_for_what_it_tells(requires: list[str], is_met: object) -> None:
    installed = {"torch": "2.4.0", "numpy": "2.0", "absent": ""}

    assert are_met_by(requires, installed) is is_met


# -- whom to ask -------------------------------------------------------------------------------


def test_one_weak_peer_of_many_that_has_it_is_asked_first() -> None:
    """More live than are asked: without the records it would not be found."""
    records = [record_of(n, cores=64, installed={"torch": ""}) for n in range(20)]
    records += [record_of(n, cores=64) for n in range(20, 40)]
    records.append(record_of(99, cores=1, installed={"torch": "2.4"}))

    asked = whom_to_ask(records, ["torch>=2"], {})

    assert len(asked) == ASKED_MAX
    assert asked[0] == record_of(99).peer_id
    assert not {r.peer_id for r in records[:20]} & set(asked), "they said no"


def test_peer_with_free_cores_is_asked_before_a_busy_one() -> None:
    busy = record_of(1, cores=8, load=[8, 8, 100, 1000])
    free = record_of(2, cores=4, load=[0, 8, 0, 1000])
    silent = record_of(3, cores=2)

    assert whom_to_ask([busy, silent, free], [], {}) == [
        free.peer_id, silent.peer_id, busy.peer_id,
    ]  # fmt: skip


def test_peer_that_is_too_small_is_not_asked() -> None:
    small, large = record_of(1), record_of(2, cores=16, memory_mb=64_000)
    untold = record_of(3)._replace(meta={})

    assert whom_to_ask([small, large, untold], [], {"cpus": 8.0}) == [
        large.peer_id, untold.peer_id,
    ]  # fmt: skip
    assert whom_to_ask([small, large], [], {"memory_mb": 8389.0}) == [
        large.peer_id, small.peer_id,
    ]  # fmt: skip
    assert whom_to_ask([small, large], [], {"memory_mb": 8390.0}) == [large.peer_id]


def test_peer_with_an_accelerator_is_asked_first_for_one() -> None:
    plain = record_of(1, cores=64)
    with_gpu = record_of(2, cores=2, accelerators=["cuda"])

    assert whom_to_ask([plain, with_gpu], [], {"gpu": 1.0})[0] == with_gpu.peer_id
    assert whom_to_ask([plain, with_gpu], [], {})[0] == plain.peer_id


@pytest.mark.parametrize(
    ("requires", "resources", "verdict"),
    [
        ((), {}, True),
        (("torch>=2.0",), {}, True),
        (("torch>=3.0",), {}, False),
        (("onnx",), {}, None),
        ((), {"cpus": 8}, False),
        ((), {"memory_mb": 100_000}, False),
        ((), {"gpu": 1}, None),
        (("torch>=3.0",), {"gpu": 1}, False),
    ],
)
def test_record_tells_whether_a_copy_can_be_run_there(
    requires: Sequence[str], resources: dict[str, float], verdict: bool | None
) -> None:
    record = record_of(installed={"torch": "2.4.1"})

    assert suits(record, requires, resources) is verdict
