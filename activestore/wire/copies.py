"""How many copies of an object are wanted: what may be asked for, and how it travels.

    replicas   1 to 7 peers that keep the state; left out: as the home's profile has it
    witness    with two of these: a third peer that has a vote and no state

Rules of this file: who asks and who answers check alike, by these functions; a count that
nobody gave is never guessed here.

Source: reliability.md 3.8; design section 8; schemas/protocol.md section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from activestore.errors import InvalidRequestError

REPLICAS_MIN = 1
# Four of seven make a majority: three may be lost, and every change waits for four disks.
# What needs to outlive more is a backup.
REPLICAS_MAX = 7
# A vote without a state decides between two; more copies decide by themselves.
WITNESSED = 2


def check_copies(replicas: Any, witness: Any, where: str) -> None:
    """Refuse a number of copies that cannot be.

    Args:
        replicas: Copies that are asked for; None for as the peer's profile has it.
        witness: Whether a witness is; None for as the peer's profile has it.
        where: Who asks, for the error.

    Raises:
        InvalidRequestError: it says what was expected.
    """
    if replicas is not None and (
        type(replicas) is not int or not REPLICAS_MIN <= replicas <= REPLICAS_MAX
    ):
        raise InvalidRequestError(
            f"replicas is {str(replicas)[:40]!r}, expected a whole number from "
            f"{REPLICAS_MIN} to {REPLICAS_MAX}",
            where,
        )
    if witness is not None and type(witness) is not bool:
        raise InvalidRequestError(
            f"witness is {str(witness)[:40]!r}, expected True or False", where
        )
    if witness and replicas != WITNESSED:
        given = "left out" if replicas is None else str(replicas)
        raise InvalidRequestError(
            f"witness=True goes with replicas={WITNESSED}, and replicas is {given}: "
            "a witness has a vote and no state, so that one of two copies can go on "
            "alone; three or more do that by themselves",
            where,
        )


def extra_of(replicas: int | None, witness: bool | None) -> dict[str, Any]:
    """Return the keys of `extra` that ask for this; none where nothing is asked for."""
    told: dict[str, Any] = {}
    if replicas is not None:
        told["replicas"] = replicas
    if witness is not None:
        told["witness"] = witness
    return told


def wanted_of(
    extra: Mapping[str, Any] | None, replicas: int, witness: bool, where: str
) -> tuple[int, bool]:
    """Return how many copies a request asks for, and whether with a witness.

    Args:
        extra: Of the request, or its parameters; may hold anything.
        replicas: As the profile of this peer has it.
        witness: As the profile of this peer has it; counts for two copies only.
        where: What the request is, for the error.

    Raises:
        InvalidRequestError: it asks for what cannot be.
    """
    asked = None if extra is None else extra.get("replicas")
    asked_witness = None if extra is None else extra.get("witness")
    check_copies(asked, asked_witness, where)
    count = replicas if asked is None else int(asked)
    if asked_witness is None:
        return count, witness and count == WITNESSED
    return count, bool(asked_witness)
