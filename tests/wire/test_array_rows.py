"""An array without numpy, looked into by its first dimension."""

from __future__ import annotations

import struct

import pytest

from activestore.wire.arrays import Array


@pytest.fixture
def table() -> Array:
    return Array("<i4", (3, 2), struct.pack("<6i", *range(6)))


def test_row_is_an_array_over_the_same_memory(table: Array) -> None:
    row = table[1]

    assert (row.shape, row.tolist()) == ((2,), [2, 3])
    assert row.memoryview.obj is table.memoryview.obj
    assert (row[0], row[-1]) == (2, 3)


def test_array_is_iterated_by_its_first_dimension(table: Array) -> None:
    assert [row.tolist() for row in table] == table.tolist()
    assert list(table[2]) == [4, 5]
    assert [len(part) for part in table] == [2, 2, 2]


@pytest.mark.parametrize(
    "part", [slice(1, None), slice(None, None, 2), slice(None, None, -1), slice(2, 1)]
)
def test_slice_is_an_array(table: Array, part: slice) -> None:
    assert table[part].tolist() == table.tolist()[part]
    assert table[part].shape == (len(table.tolist()[part]), 2)


def test_what_is_not_there_is_said_as_a_list_does(table: Array) -> None:
    with pytest.raises(IndexError):
        table[3]
    with pytest.raises(TypeError):
        table["row"]  # type: ignore[index]
    with pytest.raises(TypeError):
        Array("<i4", (), bytes(4))[0]
    assert list(Array("<i4", (0, 2), b"")) == []
