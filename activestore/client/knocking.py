"""Whether anything listens where a peer was, or should be, that says nothing.

ZeroMQ connects again and again and says nothing of it. A peer whose process has ended
refuses connections at once, and one that is only busy does not: so a plain connection
tells in a round trip what silence tells in seconds.

Rules of this file: it asks no name server and waits a moment at most; what it cannot see
in that time is not known.

Source: design section 8 (the time from a kill to the next answer).
"""

from __future__ import annotations

import errno
import re
import select

# So long the caller may be held up: a round trip in a building, not one over a WAN.
WAIT_MS = 20
_ADDRESS = re.compile(r"tcp://(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):0*([0-9]{1,5})$")


def is_refused(endpoint: str) -> bool:
    """Return whether connections to an address are refused: nothing listens there."""
    return _connect(endpoint) == errno.ECONNREFUSED


def is_listened_to(endpoint: str) -> bool:
    """Return whether something accepts connections at an address; it may say nothing."""
    # The one name that needs no server; where a client says it, IPv4 is meant.
    return _connect(endpoint.replace("//localhost:", "//127.0.0.1:")) == 0


def _connect(endpoint: str) -> int:
    """Return the number of the error that connecting ends with, 0 for none, -1 if unknown."""
    found = _ADDRESS.match(endpoint)
    if found is None:
        return -1  # A name, or no TCP.
    import socket

    family = socket.AF_INET6 if found[1] else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            code = probe.connect_ex((found[1] or found[2], int(found[3])))
            if code == errno.EINPROGRESS:
                poller = select.poll()
                poller.register(probe.fileno(), select.POLLOUT)
                if not poller.poll(WAIT_MS):
                    return -1
                code = probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    except (OSError, OverflowError):  # No such address, or no descriptor is left.
        return -1
    return code
