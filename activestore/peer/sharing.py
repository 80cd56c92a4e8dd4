"""How many copies a request asks for, and whether there can be so many.

Rules of this file: it decides, and knows nothing of how copies are made.

Source: design section 4 (`replicas=`), section 8.
"""

from __future__ import annotations

from typing import Any

from activestore.errors import (
    ActiveStoreError,
    InvalidRequestError,
    NoQuorumError,
)

# Copies of one object.
REPLICAS_MAX = 7


def asked(extra: Any, replicas: int, witness: bool) -> tuple[int, bool]:
    """Return how many copies what a request makes shall have, and whether a witness.

    Args:
        extra: What the request says.
        replicas: The peer's default.
        witness: The peer's default, where the request says nothing of copies.

    Raises:
        InvalidRequestError: there cannot be so many.
    """
    wanted = extra.get("replicas") if extra else None
    wants_witness = extra.get("witness") if extra else None
    if wanted is None:
        wanted = replicas
        wants_witness = witness if wants_witness is None else wants_witness
    check_wanted(wanted, wants_witness or False)
    return wanted, bool(wants_witness)


def check_wanted(wanted: object, wants_witness: object) -> None:
    """Make sure that a group may be so.

    Raises:
        InvalidRequestError: it may not.
    """
    if type(wanted) is not int or not 1 <= wanted <= REPLICAS_MAX:
        raise InvalidRequestError(
            f"replicas is {wanted!r}, it must be 1 to {REPLICAS_MAX}", "replicas"
        )
    if type(wants_witness) is not bool or (wants_witness and wanted != 2):
        raise InvalidRequestError(
            "a witness is the third vote of two copies: use it with replicas=2",
            "witness",
        )


def why_too_few(
    wanted: int, wants_witness: bool, living: int
) -> ActiveStoreError | None:
    """Return why copies cannot be made now, None where they can.

    Args:
        wanted: Copies of the state.
        wants_witness: And a witness.
        living: Peers that can be reached, this one included.
    """
    needed = wanted + wants_witness
    if living >= needed:
        return None
    return NoQuorumError(
        f"replicas={wanted}" + (" and a witness" if wants_witness else ""),
        f"that takes {needed} peers, {living} can be reached; start more, or ask for fewer",
    )
