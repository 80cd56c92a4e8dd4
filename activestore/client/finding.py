"""Finding a peer that answers: the endpoints to try, and which of them is first.

Rules of this file: it opens connections and closes all but the one it returns.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from activestore.client.connection import Connection
from activestore.errors import (
    ConfigurationError,
    RemoteProtocolError,
    UnavailableError,
)

ENDPOINT_VARIABLE = "ACTIVESTORE_ENDPOINT"
# With several endpoints: how long each is waited for before the next, in seconds; then
# again and again until one has answered.
FIRST_WAIT_S, NEXT_WAIT_S = 1.0, 0.1
_EXAMPLE = "expected one like tcp://127.0.0.1:7400"


def open_connection(
    endpoint: str | Sequence[str] | None, timeout_s: float, name: str
) -> Connection:
    """Return a connection to the first peer that answers.

    Raises:
        ConfigurationError: no endpoint is known, or an argument is not what it should
            be.
        UnavailableError: nobody answered within `timeout_s`.
        RemoteProtocolError: what answered is no peer, or of another version.
    """
    _check(timeout_s, name)
    endpoints = _endpoints_of(endpoint)
    opened: list[Connection] = []
    try:
        while len(opened) < len(endpoints):
            one = endpoints[len(opened)]
            opened.append(Connection(one, timeout_s, name or f"python-{os.getpid()}"))
        found = _first_to_answer(opened, timeout_s)
        opened.remove(found)
    finally:
        for other in opened:
            other.close()
    return found


def _check(timeout_s: Any, name: Any) -> None:
    if not isinstance(timeout_s, (int, float)) or not timeout_s > 0:
        raise ConfigurationError("timeout_s", f"is {timeout_s!r}, expected above 0")
    try:
        is_text = isinstance(name, str) and name.encode() is not None
    except UnicodeEncodeError:
        is_text = False
    if not is_text:
        raise ConfigurationError("name", f"is {name!r}, expected a text")


def _endpoints_of(endpoint: str | Sequence[str] | None) -> list[str]:
    if endpoint is None or endpoint == "":
        endpoint = os.environ.get(ENDPOINT_VARIABLE, "")
        if not endpoint:
            raise ConfigurationError(
                "endpoint",
                f"none was given and ${ENDPOINT_VARIABLE} is not set; {_EXAMPLE}",
            )
    found = [endpoint] if isinstance(endpoint, str) else endpoint
    if not isinstance(found, (list, tuple)) or not all(
        isinstance(one, str) and one for one in found
    ):
        raise ConfigurationError("endpoint", f"is {endpoint!r}, {_EXAMPLE}")
    if not found:
        raise ConfigurationError("endpoint", "the list of endpoints is empty")
    return list(found)


def _first_to_answer(connections: Sequence[Connection], timeout_s: float) -> Connection:
    """Return the connection whose peer answers first; each is waited for in turn."""
    if len(connections) == 1:
        connections[0].shake_hands()
        return connections[0]
    end_s = time.monotonic() + timeout_s
    refusal: RemoteProtocolError | None = None
    waiting, wait_s = list(connections), FIRST_WAIT_S
    while waiting and time.monotonic() < end_s:
        for connection in list(waiting):
            left_s = max(0.0, end_s - time.monotonic())
            try:
                connection.shake_hands(min(wait_s, left_s))
            except UnavailableError:
                continue
            except RemoteProtocolError as error:
                refusal = error
                waiting.remove(connection)
            else:
                return connection
        wait_s = NEXT_WAIT_S
    if refusal is not None:
        raise refusal
    raise UnavailableError(
        ", ".join(connection.endpoint for connection in connections),
        f"no peer answered within {timeout_s:g} s",
    )
