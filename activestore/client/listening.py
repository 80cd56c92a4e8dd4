"""Whether anything listens at an address of this machine, for what an error advises.

Rules of this file: it is asked only when nobody answered; it sends nothing.
"""

from __future__ import annotations

import socket

# Within this machine a connection is accepted at once, or refused. In seconds.
LISTENS_S = 0.2


def is_listened_to(endpoint: str) -> bool:
    """Whether a process of this machine has an address open; it may say nothing."""
    scheme, _, address = endpoint.partition("://")
    host, _, port = address.rpartition(":")
    if scheme != "tcp" or not port.isdecimal():
        return False
    try:
        socket.create_connection((host.strip("[]"), int(port)), LISTENS_S).close()
    except (OSError, OverflowError):
        return False
    return True
