"""The register on disk: what was promised comes back, also from another version."""

from __future__ import annotations

import pytest

from activestore.core.register import (
    Register,
    newest_of,
    pack_register,
    unpack_register,
)
from activestore.errors import CorruptRecordError
from activestore.ids import ObjectId, PeerId
from activestore.wire import packing
from activestore.wire.replicas import Ballot, Config, Point, Promise

A, B, C = (PeerId(name * 6) for name in (b"a", b"b", b"c"))
FULL = Register(
    Ballot(9, B), Ballot(7, A), 2**40, Config(3, (A, B), C, (A, C), 2, True, 2**62),
    is_deleted=True, is_voter=False, is_quarantined=True, changed_s=1.5, is_lost=True,
)  # fmt: skip


@pytest.mark.parametrize(
    "register", [FULL, Register(Ballot(), Ballot(), 0, Config(1, (A,)))]
)
def test_register_comes_back_as_it_was(register: Register) -> None:
    found = unpack_register(pack_register(register))

    assert found == register
    assert type(found.promised) is Ballot
    assert type(found.config) is Config
    assert found.point == Point(register.epoch.counter, register.number)


def test_fields_that_a_later_version_appended_are_passed_over() -> None:
    row = [
        [9, B, "new"], [7, A], 5, [3, [A], C, [], 2, True, 0, "new"],
        False, True, False, 1.5, False, False, "new",
    ]  # fmt: skip

    found = unpack_register(packing.pack(row))

    assert found == Register(
        Ballot(9, B), Ballot(7, A), 5, Config(3, (A,), C, (), 2, True, 0),
        changed_s=1.5,
    )  # fmt: skip


def test_fields_that_an_earlier_version_lacked_have_their_defaults() -> None:
    found = unpack_register(packing.pack(FULL[:5]))

    assert found == Register(*FULL[:5])


@pytest.mark.parametrize("row", [None, 7, [], [1, 2, 3, 4], FULL[:3], b"\xc1"])
def test_bytes_that_are_no_register_are_told(row: object) -> None:
    value = row if isinstance(row, bytes) else packing.pack(row)

    with pytest.raises(CorruptRecordError, match="register"):
        unpack_register(value)


# -- which state is the newest, where a disk has lost one --------------------------------

LOST, GROUP = Point(2, 9), Config(1, (A, B, C))


def promise(accepted: Point, config: Config = GROUP, *, has: bool = True) -> Promise:
    return Promise(ObjectId(b"o" * 16), Ballot(5, B), accepted, config, False, has)


@pytest.mark.parametrize(
    ("promises", "newest"),
    [
        # Only one of three had it: it was never committed.
        ({A: promise(LOST, has=False), B: promise(Point(2, 7)), C: promise(Point(2, 6))}, B),
        # Who has not answered may have it too.
        ({A: promise(LOST, has=False), B: promise(Point(2, 7))}, A),
        # Two of three had it.
        ({A: promise(LOST, has=False), B: promise(Point(2, 7)), C: promise(LOST)}, C),
        # Between the two the group changed: of what majority it was nobody can tell.
        (
            {
                A: promise(LOST, has=False),
                B: promise(Point(2, 7), Config(0, (A, B, C))),
                C: promise(Point(2, 6), Config(0, (A, B, C))),
            },
            A,
        ),
        # Nobody has any.
        ({A: promise(LOST, has=False), B: promise(Point(2, 7), has=False)}, A),
    ],
)  # fmt: skip
def test_state_that_nobody_has_counts_where_it_may_be_committed(
    promises: dict[PeerId, Promise], newest: PeerId
) -> None:
    assert newest_of(promises) == promises[newest]
