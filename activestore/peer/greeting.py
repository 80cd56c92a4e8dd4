"""Who says Hello, whether a version is common, and who says what it has no say in.

Rules of this file: it answers questions and tells the operator; sessions and links are
made elsewhere.

Source: schemas/protocol.md section 2.
"""

from __future__ import annotations

from activestore.core.replication_effects import Refused
from activestore.core.troubles import TroubleKind
from activestore.ids import PEER_ID_BYTES
from activestore.peer.cluster import Cluster
from activestore.peer.links import Links
from activestore.peer.table import Table
from activestore.wire.limits import (
    PEER_VERSION_MIN,
    PROTOCOL_VERSION,
    PROTOCOL_VERSION_MIN,
)
from activestore.wire.messages import Hello


def is_peer(message: Hello) -> bool:
    """Whether a peer says Hello, and no client."""
    return "peer" in message.capabilities


def version_for(message: Hello) -> tuple[int, str]:
    """Return the highest version that both speak; and why there is none, or ""."""
    version = min(PROTOCOL_VERSION, message.version_max)
    oldest = PEER_VERSION_MIN if is_peer(message) else PROTOCOL_VERSION_MIN
    if version >= max(oldest, message.version_min):
        return version, ""
    who = " with peers, the other peer" if is_peer(message) else ", the client"
    return 0, (
        f"this peer speaks versions {oldest} to {PROTOCOL_VERSION}{who} "
        f"{message.version_min} to {message.version_max}"
    )


def turned_away(table: Table, links: Links, message: Hello, why: str) -> None:
    """Tell the operator of a peer that wanted to join; not of this peer itself."""
    if not is_peer(message) or message.session == links.session_id:
        return
    peer_id = (message.extra or {}).get("peer_id")
    kind = TroubleKind.STRANGER
    if peer_id == table.settings.peer_id:
        kind = TroubleKind.IDENTITY
    about = peer_id[:PEER_ID_BYTES].hex() if type(peer_id) is bytes else ""
    table.trouble(kind, f"peer {message.client_name} {about}".strip(), why)


def sent_garbage(table: Table, links: Links, route: bytes, reason: str) -> None:
    """Tell the operator who sends what means nothing, as far as it has said."""
    link, session = links.by_route.get(route), table.routes.get(route)
    who = "somebody unknown" if session is None else f"client {session.name}"
    if link is not None:
        who = f"peer {link.name or link.endpoint} {link.peer_id.hex()}".strip()
    table.trouble(TroubleKind.GARBAGE, who, reason)


def spoke_for_others(table: Table, cluster: Cluster, refused: Refused) -> None:
    """Tell the operator of a peer that spoke for a group that it is not in."""
    who = f"peer {cluster.name_of(refused.sender)} {refused.sender.hex()}"
    what = f"{refused.kind} of object {refused.object_id.hex()}"
    table.trouble(TroubleKind.OUTSIDER, who, f"{what}: {refused.why}")
