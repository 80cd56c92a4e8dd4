"""The list of what is wrong: bounded, whoever tells, and over when it is over."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest

from activestore.core.troubles import (
    ABOUT_CHARS_MAX,
    ADVICE,
    CLOCK_OFF_S,
    KIND_MAX,
    LOG_AGAIN_S,
    TITLES,
    TOLD_AGAIN_S,
    TroubleKind,
    Troubles,
    clock_off_s,
    clock_reason,
)

JOIN, GARBAGE, CLOCK = TroubleKind.JOIN, TroubleKind.GARBAGE, TroubleKind.CLOCK


def test_trouble_is_news_once_and_counted_always() -> None:
    troubles = Troubles()

    first = troubles.tell(JOIN, "tcp://a:1", "refused", 10.0)
    again = troubles.tell(JOIN, "tcp://a:1", "refused", 20.0)

    assert "tcp://a:1" in first
    assert "refused" in first
    assert not again
    (row,) = troubles.rows(30.0)
    assert (row["kind"], row["about"], row["reason"]) == (
        "join",
        "tcp://a:1",
        "refused",
    )
    assert (row["times"], row["first_ago_s"], row["last_ago_s"]) == (2, 20.0, 10.0)
    assert row["advice"]


def test_another_reason_is_news_but_the_sender_of_garbage_makes_none() -> None:
    troubles = Troubles()

    joins = [troubles.tell(JOIN, "tcp://a:1", why, 1.0) for why in ("x", "y", "y")]
    garbage = [troubles.tell(GARBAGE, "client a", f"kind {n}", 1.0) for n in range(9)]

    assert [bool(text) for text in joins] == [True, True, False]
    assert [bool(text) for text in garbage] == [True] + [False] * 8
    assert troubles.tell(GARBAGE, "client a", "kind 9", 1.0 + LOG_AGAIN_S)


def test_trouble_ends_when_it_is_said_and_when_nobody_says_it_any_more() -> None:
    troubles = Troubles()
    troubles.tell(JOIN, "tcp://a:1", "refused", 0.0)
    troubles.tell(JOIN, "tcp://b:1", "refused", 1.0)

    assert troubles.end(JOIN, "tcp://a:1")
    assert not troubles.end(JOIN, "tcp://a:1")

    assert [row["about"] for row in troubles.rows(TOLD_AGAIN_S)] == ["tcp://b:1"]
    assert troubles.rows(1.0 + TOLD_AGAIN_S) == []


def test_whatever_is_told_the_list_stays_short_and_plain() -> None:
    """Names and reasons come from strangers: of any length, with any sign."""
    troubles, random = Troubles(), Random(5)

    for number in range(2_000):
        kind = random.choice(list(TroubleKind))
        about = "".join(
            chr(code) for code in random.choices(range(1, 0x300), k=number % 400)
        )
        text = troubles.tell(kind, about, "\x1b[2J\n" * (number % 300), number / 10)
        assert text.isprintable()
    troubles.check()

    rows = troubles.rows(200.0)
    assert len(rows) == len(troubles) <= KIND_MAX * len(TroubleKind)
    assert all(row["about"].isprintable() for row in rows)
    assert all(row["reason"].isprintable() for row in rows)


def test_a_flood_of_one_kind_hides_no_other() -> None:
    troubles = Troubles()
    troubles.tell(JOIN, "tcp://a:1", "refused", 0.0)

    for number in range(10 * KIND_MAX):
        troubles.tell(GARBAGE, f"client {number}", "no message", 1.0)

    assert troubles.reasons(JOIN) == {"tcp://a:1": "refused"}
    assert len(troubles.reasons(GARBAGE)) == KIND_MAX


def test_name_longer_than_is_kept_ends_by_its_whole_text() -> None:
    troubles, about = Troubles(), "tcp://" + "a" * ABOUT_CHARS_MAX
    troubles.tell(JOIN, about, "refused", 0.0)

    assert troubles.has(JOIN, about)
    assert troubles.end(JOIN, about)


def test_what_is_settled_keeps_its_beginning_and_drops_the_rest() -> None:
    troubles = Troubles()
    troubles.settle(TroubleKind.NAME, {"edge": "a, b", "far": "c, d"}, 0.0)
    troubles.settle(TroubleKind.NAME, {"edge": "a, b, e"}, 5.0)

    (row,) = troubles.rows(6.0)

    assert (row["about"], row["reason"], row["first_ago_s"]) == ("edge", "a, b, e", 6.0)


@pytest.mark.parametrize(
    ("theirs_s", "off_s"),
    [(100.0, 0.0), (104.0, 0.0), (110.0, 0.0), (3710.0, 3600.0), (-3500.0, -3600.0)],
)
def test_time_on_the_way_is_no_difference_of_clocks(
    theirs_s: float, off_s: float
) -> None:
    assert clock_off_s(100.0, 110.0, theirs_s) == off_s


def test_clock_that_is_an_hour_off_is_told_with_its_peer_and_the_seconds() -> None:
    assert "edge-2 differs by 3,600 s: it is behind" in clock_reason("edge-2", -3600.0)
    assert "ahead of" in clock_reason("edge-2", CLOCK_OFF_S)
    assert not clock_reason("edge-2", -CLOCK_OFF_S + 0.1)


def test_every_kind_is_on_the_page_for_operators() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "cluster.md").read_text()

    rows = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))

    assert rows == {kind.value for kind in TroubleKind}
    assert set(ADVICE) == set(TITLES) == set(TroubleKind)
