"""Whether there can be as many copies as a request asks for.

Rules of this file: it decides, and knows nothing of how copies are made; what may be asked
for at all is in `wire.copies`.

Source: design section 4 (`replicas=`), section 8.
"""

from __future__ import annotations

from collections.abc import Sequence

from activestore.errors import ActiveStoreError, NoQuorumError
from activestore.wire.limits import REPLICAS_SINCE


def why_too_few(
    wanted: int, wants_witness: bool, spoken: Sequence[int]
) -> ActiveStoreError | None:
    """Return why copies cannot be made now, None where they can.

    Args:
        wanted: Copies of the state.
        wants_witness: And a witness.
        spoken: Versions of the protocol, of each peer that can be reached, this one too.
    """
    needed = wanted + wants_witness
    able = sum(version >= REPLICAS_SINCE for version in spoken)
    if able >= needed:
        return None
    found = f"{able} can be reached"
    if able < len(spoken):
        found += f" that speak version {REPLICAS_SINCE} of the protocol, and "
        found += f"{len(spoken) - able} of an earlier one, which takes no copies"
    return NoQuorumError(
        f"replicas={wanted}" + (" and a witness" if wants_witness else ""),
        f"that takes {needed} peers, {found}; start more, or ask for fewer",
    )
