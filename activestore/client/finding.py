"""Finding a peer that answers: what the user says of it, checked.

Rules of this file: it opens one connection, and closes it where nobody answers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from activestore.client.connection import Connection
from activestore.errors import ConfigurationError

ENDPOINT_VARIABLE = "ACTIVESTORE_ENDPOINT"
_EXAMPLE = "expected one like tcp://127.0.0.1:7400"


def open_connection(
    endpoint: str | Sequence[str] | None, timeout_s: float, name: str
) -> Connection:
    """Return a connection to the first peer that answers; it knows the others too.

    Raises:
        ConfigurationError: no endpoint is known, or an argument is not what it should
            be.
        UnavailableError: nobody answered within `timeout_s`.
        RemoteProtocolError: what answered is no peer, or of another version.
    """
    _check(timeout_s, name)
    endpoints = _endpoints_of(endpoint)
    connection = Connection(endpoints, timeout_s, name or f"python-{os.getpid()}")
    try:
        connection.shake_hands()
    except BaseException:
        connection.close()
        raise
    return connection


def _check(timeout_s: Any, name: Any) -> None:
    if type(timeout_s) is bool or not (
        isinstance(timeout_s, (int, float)) and timeout_s > 0
    ):
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
