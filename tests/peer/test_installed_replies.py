"""Recorded replies that come with an object, from peers of this version and others."""

from __future__ import annotations

from typing import Any

import pytest

from activestore.ids import SessionId
from activestore.peer.answers import answers_in, reply_of, told_answers
from activestore.storage.engine import ReplyRecord
from activestore.wire import packing, values

SESSION = SessionId(b"s" * 16)
ROW: tuple[Any, ...] = (SESSION, 4, "method", b"body", 9.5, [b"buffer"])


@pytest.mark.parametrize(
    ("more", "first_unacked", "still_open", "age_s"),
    [
        ((), 0, (), 0.0),
        ((3,), 3, (), 0.0),
        ((3, [1, 2]), 3, (1, 2), 0.0),
        ((3, [1], 60.0), 3, (1,), 60.0),
        ((3, [1], 60.0, "new"), 3, (1,), 60.0),
    ],
)
def test_row_of_older_and_newer_peers(
    more: tuple[Any, ...], first_unacked: int, still_open: tuple[int, ...], age_s: float
) -> None:
    found = reply_of([*ROW, *more])

    assert found == ReplyRecord(
        SESSION, 4, "method", b"body", 9.5, (b"buffer",), first_unacked, still_open
    )
    assert found.age_s == age_s


@pytest.mark.parametrize("count", [0, 3, 1000, 1001, 100_000])
def test_any_number_of_answers_fits_what_a_request_may_say(count: int) -> None:
    replies = [
        ReplyRecord(
            SESSION, number, "", b"\x01", 9.5, (b"buffer",), 1, (2, 3), float(number)
        )
        for number in range(count)
    ]
    body, buffers = values.encode(told_answers(replies))

    found = answers_in(values.decode(body, [bytes(one) for one in buffers]))

    assert found == tuple(replies)
    assert [one.age_s for one in found] == [one.age_s for one in replies]


def test_few_answers_are_told_so_that_peers_of_version_2_understand_them() -> None:
    reply = ReplyRecord(SESSION, 4, "", b"\x01", 9.5, (b"buffer",), 1, (2,), 7.0)

    assert told_answers([reply]) == {
        "replies": [[SESSION, 4, "", b"\x01", 9.5, [b"buffer"], 1, [2], 7.0]]
    }


@pytest.mark.parametrize(
    "packs",
    [[b"\xc1"], [packing.pack([[1, 2]])], [packing.pack(7)], [7], 7,
     [packing.pack([[*ROW[:4], "no time", []]])], [b"\xdd\xff\xff\xff\xff"]],
)  # fmt: skip
def test_packs_that_are_none_are_refused_as_what_is_malformed(packs: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        answers_in({"answers": packs})
