"""Recorded replies that come with an object, from peers of this version and others."""

from __future__ import annotations

from typing import Any

import pytest

from activestore.ids import SessionId
from activestore.peer.moving import reply_of
from activestore.storage.engine import ReplyRecord

SESSION = SessionId(b"s" * 16)
ROW: tuple[Any, ...] = (SESSION, 4, "method", b"body", 9.5, [b"buffer"])


@pytest.mark.parametrize(
    ("more", "first_unacked", "still_open"),
    [((), 0, ()), ((3,), 3, ()), ((3, [1, 2]), 3, (1, 2)), ((3, [1], "new"), 3, (1,))],
)
def test_row_of_older_and_newer_peers(
    more: tuple[Any, ...], first_unacked: int, still_open: tuple[int, ...]
) -> None:
    assert reply_of(*ROW, *more) == ReplyRecord(
        SESSION, 4, "method", b"body", 9.5, (b"buffer",), first_unacked, still_open
    )
