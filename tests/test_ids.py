"""What can be an id, and what can be an alias."""

from __future__ import annotations

import pytest

from activestore.errors import InvalidRequestError
from activestore.ids import (
    ALIAS_BYTES_MAX,
    ALIAS_CHARS_MAX,
    check_alias,
    parse_object_id,
)


@pytest.mark.parametrize(
    "alias",
    [
        "a", "hits", "two words", "x" * ALIAS_CHARS_MAX, "é" * (ALIAS_BYTES_MAX // 2),
        "😀" * (ALIAS_BYTES_MAX // 4), "temperature/room-7", "0" * 31, "g" * 32,
    ],
)  # fmt: skip
def test_one_line_of_text_can_be_an_alias(alias: str) -> None:
    check_alias(alias)


@pytest.mark.parametrize(
    ("alias", "seen"),
    [
        ("", "0 characters"),
        ("x" * (ALIAS_CHARS_MAX + 1), "257 characters"),
        ("😀" * 126, "504 bytes"),
        ("two\nlines", "control"),
        ("nul\x00", "control"),
        ("\x85", "control"),
        ("a\u2028b", "control"),
        (" a", "blank"),
        ("a\u00a0", "blank"),
        ("\ud800", "surrogate"),
        ("0123456789abcdef" * 2, "object id"),
        (5, "got int"),
    ],
)
def test_what_cannot_be_an_alias_is_told(alias: str, seen: str) -> None:
    with pytest.raises(InvalidRequestError, match=seen) as refused:
        check_alias(alias)

    assert "at most 500 bytes" in str(refused.value)


def test_text_with_blanks_is_no_object_id() -> None:
    assert parse_object_id("01 " * 10 + "01") is None
    assert parse_object_id("ab" * 16) == b"\xab" * 16
