"""Why nobody answers at an address: looked at from outside, for the operator.

ZeroMQ connects again and again and says nothing of it. So a plain connection is made once
in a while to an address that does not answer: is there a host, a port, a peer?

    resolve the name -> connect -> send a greeting of ZMTP -> what comes?

Rules of this file: it looks and never decides; each look has a thread of its own, one at
a time, for a name server may take half a minute. What it reads is shown, never believed.

Source: ZMTP 3.1 (zeromq/rfc 37), the greeting; reliability.md 5.1 and 6.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable

# How long a connection may take, and an answer on it, in seconds.
CONNECT_S = 2.0
ANSWER_S = 1.0
# The beginning of each greeting of ZMTP: a signature, and the version 3.
GREETING = b"\xff" + b"\x00" * 7 + b"\x01\x7f" + b"\x03"
# A server that waits for a line of text gets one.
LINE = b"\r\n\r\n"
# As much is read; more tells a person nothing.
READ_BYTES_MAX = 64


class Knocker:
    """Looks at one address at a time."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake`: called from the thread when an answer can be taken."""
        self._wake = wake
        self._found: deque[tuple[Callable[[str], None], str]] = deque()
        self._thread: threading.Thread | None = None

    def knock(self, endpoint: str, then: Callable[[str], None]) -> bool:
        """Begin to look at an address; False while another look goes on.

        `then` is called by `turn` with the reason, in words.
        """
        if self._thread is not None:
            return False
        self._thread = threading.Thread(
            target=self._run, args=(endpoint, then), name="knocker", daemon=True
        )
        self._thread.start()
        return True

    def turn(self) -> None:
        """Hand over what was found."""
        while self._found:
            then, reason = self._found.popleft()
            self._thread = None
            then(reason)

    def _run(self, endpoint: str, then: Callable[[str], None]) -> None:
        try:
            reason = why_silent(endpoint)
        # The boundary of a thread: whatever a network does, the peer goes on.
        except Exception as error:  # noqa: BLE001
            reason = f"it could not be looked at: {error}"
        self._found.append((then, reason))
        self._wake()


def why_silent(endpoint: str) -> str:
    """Return why no peer answers at an address, as far as can be seen from here."""
    try:
        connection = _connect(endpoint)
    except socket.gaierror as error:
        host = endpoint.removeprefix("tcp://").rpartition(":")[0]
        return f"the name {host!r} cannot be resolved: {error.strerror}"
    except UnicodeError as error:
        return f"that is no name of a machine: {error}"
    except ConnectionRefusedError:
        return "nothing listens there: connection refused"
    except TimeoutError:
        return (
            f"no connection within {CONNECT_S:g} s: the machine is off, or a firewall "
            "drops what is sent"
        )
    except OSError as error:
        return f"no way there: {error.strerror or error}"
    with connection:
        try:
            return _why_no_welcome(connection)
        except OSError as error:
            return (
                f"something listens there and breaks the connection: {error.strerror}"
            )


def _connect(endpoint: str) -> socket.socket:
    if endpoint.startswith("ipc://"):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(CONNECT_S)
        try:
            connection.connect(endpoint[6:])
        except BaseException:
            connection.close()
            raise
        return connection
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), CONNECT_S)


def _why_no_welcome(connection: socket.socket) -> str:
    connection.settimeout(ANSWER_S)
    connection.sendall(GREETING)
    answer = _read(connection)
    if answer is None:
        connection.sendall(LINE)
        answer = _read(connection)
    if answer is None:
        return (
            "something accepts connections there and says nothing: no peer, or one that "
            "is stopped"
        )
    if not answer:
        return "something listens there and hangs up: no peer"
    if answer[:1] == GREETING[:1] and answer[9:10] in (b"", GREETING[9:10]):
        return (
            "it speaks ZeroMQ and does not answer Hello: no peer, or one that is stopped "
            "or has no connection to spare"
        )
    return f"what listens there is no peer: it answers {answer!r}"


def _read(connection: socket.socket) -> bytes | None:
    """Return what comes, b"" where the other side hung up, None where nothing came."""
    try:
        return connection.recv(READ_BYTES_MAX)
    except TimeoutError:
        return None
