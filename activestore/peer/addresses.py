"""Addresses and names of peers as text: what is one, and who can reach it.

Rules of this file: no socket is opened; a name is resolved only to learn whether it is
loopback.
"""

from __future__ import annotations

import ipaddress
import re
import socket

from activestore.errors import ConfigurationError
from activestore.wire.gossip import ENDPOINT_CHARS_MAX

# The kernel's limit for the path of a Unix socket is 107 on Linux and 103 on macOS.
IPC_PATH_BYTES_MAX = 100


def check_endpoint(endpoint: str, setting: str, *, port_min: int) -> None:
    """Check that `endpoint` is an address; `setting` names it in the error.

    Raises:
        ConfigurationError: it is none, its port is out of range, or it is a wildcard
            where others must connect to it.
    """
    if len(endpoint) > ENDPOINT_CHARS_MAX:
        raise ConfigurationError(
            setting,
            f"{endpoint[:40]}...: {len(endpoint)} characters, expected at most "
            f"{ENDPOINT_CHARS_MAX}; give the address instead of a name",
        )
    if endpoint.startswith("ipc://"):
        if not 0 < len(endpoint[6:].encode()) <= IPC_PATH_BYTES_MAX:
            raise ConfigurationError(
                setting,
                f"{endpoint!r}: the path after ipc:// must have 1 to "
                f"{IPC_PATH_BYTES_MAX} bytes",
            )
        return
    host, port = _split_tcp(endpoint, setting)
    if not port_min <= port <= 65_535:
        raise ConfigurationError(
            setting, f"{endpoint}: port {port}, expected {port_min} to 65535"
        )
    if setting != "listen" and host in ("*", "0.0.0.0", "::"):  # noqa: S104 - refused
        raise ConfigurationError(
            setting, f"{endpoint}: nobody can connect to {host}; name one address"
        )


def check_word(word: str, setting: str) -> None:
    """Check a name that becomes part of paths, of alias names, of records of peers.

    Raises:
        ConfigurationError: it is empty, too long, or has other signs.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}", word):
        raise ConfigurationError(
            setting,
            f"is {word!r}, expected 1 to 64 letters, digits, '-', '_' or '.', and no "
            "'.' in front",
        )


def exposure_of(endpoint: str) -> str:
    """Return why strangers may reach `endpoint`, "" where only this machine can.

    A name counts as loopback when every address that it resolves to is.
    """
    if endpoint.startswith("ipc://"):
        return ""
    host = _split_tcp(endpoint, "listen")[0]
    if host == "*":
        return "* is every interface"
    try:
        addresses = [ipaddress.ip_address(host)]
    except ValueError:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return f"{host} is the name of an interface or of an unknown host"
        # A scope ("fe80::1%eth0") is no part of the address.
        texts = [str(entry[4][0]).split("%", 1)[0] for entry in found]
        addresses = [ipaddress.ip_address(text) for text in texts]
    for address in addresses:
        if address.is_unspecified:
            return f"{address} is every interface"
        if not address.is_loopback:
            return f"{host} is reachable from other machines ({address})"
    return ""


def _split_tcp(endpoint: str, setting: str) -> tuple[str, int]:
    """Return host, without brackets, and port of a tcp:// address."""
    match = re.fullmatch(
        r"tcp://(?:\[([^\]\s]+)\]|([^\[\]:;/\s]+)):(\d{1,5})", endpoint
    )
    if match is None:
        raise ConfigurationError(
            setting,
            f"{endpoint!r} is no address; expected tcp://HOST:PORT, "
            "tcp://[IPV6]:PORT or ipc://PATH",
        )
    return match[1] or match[2], int(match[3])
