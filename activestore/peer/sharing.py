"""Whether there can be as many copies as a request asks for.

Rules of this file: it decides, and knows nothing of how copies are made; what may be asked
for at all is in `wire.copies`.

Source: design section 4 (`replicas=`), section 8.
"""

from __future__ import annotations

from activestore.errors import ActiveStoreError, NoQuorumError


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
