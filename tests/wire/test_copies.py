"""How many copies may be asked for, and what a peer makes of it. Source: reliability.md 3.8."""

from __future__ import annotations

from typing import Any

import pytest

from activestore.errors import InvalidRequestError
from activestore.wire.copies import check_copies, extra_of, wanted_of


@pytest.mark.parametrize("replicas", [None, 1, 2, 3, 7])
def test_counts_that_can_be_are_let_pass(replicas: int | None) -> None:
    check_copies(replicas, None, "Counter")
    check_copies(replicas, False, "Counter")


@pytest.mark.parametrize("replicas", [0, -1, 8, 2.0, "3", True, [3], float("nan")])
def test_count_that_cannot_be_is_refused_with_the_range(replicas: Any) -> None:
    with pytest.raises(
        InvalidRequestError, match="expected a whole number from 1 to 7"
    ):
        check_copies(replicas, None, "Counter")


@pytest.mark.parametrize("replicas", [None, 1, 3, 5])
def test_witness_goes_with_two_copies_and_no_other_number(replicas: int | None) -> None:
    with pytest.raises(InvalidRequestError, match="goes with replicas=2") as caught:
        check_copies(replicas, True, "Counter")

    assert caught.value.where == "Counter"
    check_copies(2, True, "Counter")


@pytest.mark.parametrize("witness", [1, 0, "yes"])
def test_witness_is_true_or_false(witness: Any) -> None:
    with pytest.raises(InvalidRequestError, match="expected True or False"):
        check_copies(2, witness, "Counter")


@pytest.mark.parametrize(
    ("extra", "wanted"),
    [
        (None, (2, True)),
        ({}, (2, True)),
        ({"code_at": b"p"}, (2, True)),
        ({"replicas": 2}, (2, True)),
        ({"replicas": 3}, (3, False)),  # The profile's witness is for two copies.
        ({"replicas": 1}, (1, False)),
        ({"witness": False}, (2, False)),
        ({"replicas": 2, "witness": True}, (2, True)),
    ],
)
def test_profile_says_what_a_request_leaves_out(
    extra: dict[str, Any] | None, wanted: tuple[int, bool]
) -> None:
    assert wanted_of(extra, 2, True, "Persist") == wanted


@pytest.mark.parametrize(
    "extra", [{"replicas": 0}, {"replicas": b"3"}, {"replicas": 3, "witness": True}]
)
def test_peer_refuses_what_a_client_should_not_have_sent(extra: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="Persist"):
        wanted_of(extra, 1, False, "Persist")


def test_nothing_travels_of_what_nobody_asked_for() -> None:
    assert extra_of(None, None) == {}
    assert extra_of(3, None) == {"replicas": 3}
    assert extra_of(2, True) == {"replicas": 2, "witness": True}
    assert extra_of(None, False) == {"witness": False}
