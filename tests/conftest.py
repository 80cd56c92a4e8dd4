"""What all tests share: hypothesis profiles, Ctrl-C, multicasts, soak tests if asked for."""

from __future__ import annotations

import os
import signal
import socket
import struct

import pytest
from hypothesis import settings

# No deadline: the machines are shared, and a slow example is no wrong one.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_configure() -> None:
    """Let Ctrl-C be what it is, also where the tests run in the background.

    A shell has its background jobs ignore SIGINT, and their children inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --rewrite: expectations that are files are rewritten instead of compared."""
    parser.addoption(
        "--rewrite",
        action="store_true",
        help="rewrite generated pages and golden files; read the diff like code",
    )


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Leave soak tests out unless the marker expression names them."""
    if "soak" in (config.option.markexpr or ""):
        return
    soak = [item for item in items if item.get_closest_marker("soak")]
    if soak:
        config.hook.pytest_deselected(items=soak)
        items[:] = [item for item in items if not item.get_closest_marker("soak")]


@pytest.fixture
def rewrite(request: pytest.FixtureRequest) -> bool:
    """Whether files with expectations shall be rewritten."""
    return bool(request.config.getoption("--rewrite"))


@pytest.fixture
def multicasts() -> None:
    """Skip where peers cannot find each other by mDNS at loopback."""
    pytest.importorskip("zeroconf", reason="activestore[discover] is not installed")
    group, port = "224.0.0.251", 5399
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as heard,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as said,
    ):
        loopback = socket.inet_aton("127.0.0.1")
        try:
            heard.bind(("", port))
            heard.settimeout(2.0)
            joined = struct.pack("4s4s", socket.inet_aton(group), loopback)
            heard.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
            said.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, loopback)
            said.sendto(b"?", (group, port))
            heard.recv(1)
        except OSError as error:
            pytest.skip(f"no multicasts at loopback here: {error}")
