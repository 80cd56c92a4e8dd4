"""What requests and signs of life say besides: anything that is not so counts as left out."""

from __future__ import annotations

from typing import Any

import pytest

from activestore.ids import PeerId
from activestore.peer import extras
from activestore.wire.limits import UNLED
from activestore.wire.replicas import COUNTER_MAX

PEER = PeerId(b"peer-1")


def test_who_leads_in_vain_is_told_with_its_epoch() -> None:
    assert extras.unled({UNLED: [7, PEER]}) == (7, PEER)


@pytest.mark.parametrize(
    "told",
    [
        None, True, 7, [7], [0, PEER], [-1, PEER], [True, PEER], [7.0, PEER], [7, "peer-1"],
        [7, PEER + b"x"], [COUNTER_MAX + 1, PEER], [7, PEER, 1],
    ],
)  # fmt: skip
def test_what_is_no_word_of_who_leads_in_vain_says_nothing(told: Any) -> None:
    assert extras.unled({UNLED: told}) == extras.NOT_SAID
    assert extras.unled({}) == extras.unled(None) == extras.NOT_SAID
