"""How often an object is looked for among all peers, and among whom.

Source: design section 7 ("a rate-limited scatter"); reliability.md 2.2.
"""

from __future__ import annotations

import pytest

from activestore.core.searches import (
    ASKED_MAX,
    PAUSE_S,
    REMEMBERED_MAX,
    Allowance,
    Searches,
)
from activestore.ids import ObjectId, PeerId

OBJECT = ObjectId(bytes(16))
OTHERS = [PeerId(number.to_bytes(6, "big")) for number in range(3)]


def searches(per_s: float = 20.0) -> Searches:
    return Searches(Allowance(per_s, 0.0))


def objects(count: int) -> list[ObjectId]:
    return [ObjectId(number.to_bytes(16, "big")) for number in range(count)]


def test_small_cluster_is_asked_whole_and_the_object_rests_afterwards():
    found = searches()

    assert found.begin(OBJECT, OTHERS, 0.0) == OTHERS
    assert found.begin(OBJECT, OTHERS, PAUSE_S - 0.1) == []
    assert found.begin(OBJECT, OTHERS, PAUSE_S) == OTHERS


def test_large_cluster_is_asked_piece_by_piece_and_then_from_its_beginning():
    found = searches()
    others = [PeerId(number.to_bytes(6, "big")) for number in range(2 * ASKED_MAX + 1)]

    asked = [found.begin(OBJECT, others, turn * PAUSE_S) for turn in range(4)]

    assert asked[0] + asked[1] + asked[2] == others
    assert asked[3] == asked[0]


def test_many_objects_at_once_are_looked_for_at_the_allowed_rate():
    found = searches(per_s=20.0)

    at_once = [one for one in objects(1000) if found.begin(one, OTHERS, 0.0)]
    later = [one for one in objects(1000) if found.begin(one, OTHERS, 0.5)]

    assert len(at_once) == 20
    assert len(later) == 10
    assert not set(at_once) & set(later)


def test_rate_of_zero_means_never():
    assert searches(per_s=0.0).begin(OBJECT, OTHERS, 1e6) == []


def test_nobody_to_ask_takes_nothing_from_the_allowance():
    found = searches(per_s=1.0)

    assert found.begin(OBJECT, [], 0.0) == []
    assert found.begin(OBJECT, OTHERS, 0.0) == OTHERS


def test_who_was_looked_for_long_ago_is_forgotten():
    found = searches(per_s=1e9)
    for one in objects(REMEMBERED_MAX + 10):
        assert found.begin(one, OTHERS, 0.0)

    assert found.begin(objects(1)[0], OTHERS, 0.0), "forgotten: as if never looked for"
    assert not found.begin(objects(REMEMBERED_MAX)[-1], OTHERS, 0.0)


@pytest.mark.parametrize("others_count", [1, 2])
def test_others_that_went_meanwhile_do_not_end_the_search(others_count):
    found = searches()
    found.begin(OBJECT, OTHERS, 0.0)

    assert found.begin(OBJECT, OTHERS[:others_count], PAUSE_S) == OTHERS[:others_count]
