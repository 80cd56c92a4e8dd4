"""The refs in a state are found without running what it names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from activestore.errors import CorruptRecordError
from activestore.model import ActiveObject
from activestore.objects.references import refs_of
from activestore.objects.snapshot import Snapshotter
from activestore.wire.state import ObjectState


class Leaf(ActiveObject):
    n: int


class Trap:
    """What must not run when a state is only looked at."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("it was run",)


class Tree(ActiveObject):
    left: Any
    right: Any
    rows: Any


def state_of(**fields: Any) -> ObjectState:
    tree = Tree()
    tree.__dict__.update(fields)

    def ref_of(obj: Any) -> bytes | None:
        return IDS.get(id(obj))

    taker = Snapshotter(
        Tree, class_name="m.Tree", revision=b"r" * 16, class_version=1, ref_of=ref_of,
        resolve=lambda ref: ref,
    )  # fmt: skip
    return taker.take(tree)[0]


IDS: dict[int, bytes] = {}


@pytest.fixture
def leaves() -> list[Leaf]:
    made = [Leaf() for _ in range(3)]
    IDS.update({id(leaf): bytes([n]) * 16 + b"m.Leaf" for n, leaf in enumerate(made)})
    return made


def test_refs_of_plain_fields_and_of_graphs_are_found_each_once(leaves) -> None:
    state = state_of(
        left=leaves[0],
        right={"a": [leaves[1], leaves[0]], "b": (leaves[2], np.zeros(3))},
        rows=np.zeros(100_000),
    )

    assert set(refs_of(state)) == {bytes([n]) * 16 for n in range(3)}
    assert len(refs_of(state)) == 3


def test_what_a_state_names_is_not_run(leaves) -> None:
    state = state_of(left=[Trap(), leaves[1]], right=None, rows=None)

    assert refs_of(state) == [bytes([1]) * 16]


def test_graph_that_is_no_pickle_is_damage() -> None:
    state = state_of(left=[object()], right=None, rows=None)._replace(
        graph=b"\x80\x05]"
    )

    with pytest.raises(CorruptRecordError):
        refs_of(state)
