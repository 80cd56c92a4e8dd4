"""What is told of a request whose peer was lost on the way: what may have been done.

Rules of this file: pure; a request that never left is in no doubt.

Source: design section 5, "Exactly once".
"""

from __future__ import annotations

from typing import Any

from activestore.errors import ActiveStoreError, UnavailableError
from activestore.wire.messages import Create, Persist


def in_doubt(
    message: Any, error: ActiveStoreError, *, was_sent: bool
) -> ActiveStoreError:
    """Return the error of a request that made an object, if that is not known now.

    Only the home of the object has the answer; another peer must not make it again.
    """
    if not was_sent or type(error) is not UnavailableError:
        return error
    if type(message) is not Create and type(message) is not Persist:
        return error
    what, reason, *rest = error.args
    told = "whether it has made the object is known once it is back; do not count on either"
    return UnavailableError(what, f"{reason}; {told}", *rest)
