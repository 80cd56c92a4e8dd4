"""What the connected peer is too old for: refused here, naming both versions.

Rules of this file: no I/O; nothing is asked of a call, whose version is always old enough.

Source: schemas/protocol.md sections 2 and 8.
"""

from __future__ import annotations

from activestore.client.links import Peer
from activestore.client.session import Session
from activestore.errors import RemoteProtocolError
from activestore.wire.limits import (
    OPERATIONS_SINCE,
    PROTOCOL_VERSION,
    PROTOCOL_VERSION_MIN,
)

# The version from which on peers know others.
CLUSTERS_SINCE = 2


def check_operation(operation: str, session: Session) -> None:
    """Make sure that the connected peer knows an operation of Request.

    Raises:
        RemoteProtocolError: it came with a later version than the peer's.
    """
    since = OPERATIONS_SINCE.get(operation, 0)
    peer = session.peer
    if peer is not None and peer.version < since:
        raise too_old(f"`{operation}`", since, peer, session.endpoint)


def is_connected(name: str, session: Session) -> bool:
    """Whether a name is the connected peer's, where that one knows no others.

    Raises:
        RemoteProtocolError: it is another's, and the connected peer is too old to know it.
    """
    peer = session.peer
    if peer is None or peer.version >= CLUSTERS_SINCE:
        return False
    if name == peer.name:
        return True
    raise too_old(f"peer={name!r}", CLUSTERS_SINCE, peer, session.endpoint)


def too_old(what: str, since: int, peer: Peer, endpoint: str) -> RemoteProtocolError:
    """Return the error for `what`, which needs version `since` of the protocol."""
    return RemoteProtocolError(
        f"{what} needs version {since} of the protocol: peer {peer.name} speaks version "
        f"{peer.version}, this client {PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}; "
        "install a newer activestore on that peer",
        endpoint,
    )
