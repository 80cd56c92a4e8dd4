"""Finding peers on other hosts of one network by mDNS."""

from __future__ import annotations

import importlib.util
import subprocess

import hosts
import pytest

pytestmark = [
    pytest.mark.net,
    pytest.mark.slow,
    pytest.mark.serial,
    pytest.mark.skipif(
        importlib.util.find_spec("zeroconf") is None,
        reason="activestore[discover] is not installed",
    ),
]

SEEK = """
import logging, sys, time
logging.basicConfig(level=logging.WARNING)
from activestore.peer import discovery
from activestore.peer.discovery import Announcement, Discovery
discovery.RETRY_S = discovery.LOOK_S = 0.2
number, endpoint = sys.argv[1:]
me = Announcement(bytes([int(number)]) * 6, "p" + number, "plant", endpoint, 1)
seeking = Discovery(me, lambda found: print(repr(found).replace("'", '"'), flush=True))
seeking.start()
time.sleep(60)
"""


def seek(host: hosts.Host, endpoint: str, number: int = 0) -> subprocess.Popen[str]:
    """Start a program that announces itself and prints whom it finds."""
    return host.start_python(["-c", SEEK, str(number or host.number + 1), endpoint])


@pytest.mark.parametrize("listen", ["10.77.0.1", "0.0.0.0"])
def test_peers_on_two_hosts_find_each_other(
    network: hosts.Network, listen: str
) -> None:
    """Also where one listens at all interfaces: its addresses come with the service."""
    a, b = network.host("a"), network.host("b")
    network.delay("a", "b", 0.02)

    one, two = seek(a, f"tcp://{listen}:7400"), seek(b, f"tcp://{b.address}:7401")

    assert hosts.json_line(one) == f"tcp://{b.address}:7401"
    assert hosts.json_line(two) == f"tcp://{a.address}:7400"


def test_peer_that_was_killed_is_found_when_it_starts_again(
    network: hosts.Network,
) -> None:
    """It said no goodbye, and its id is not taken for somebody else's."""
    a, b = network.host("a"), network.host("b")
    one, two = seek(a, f"tcp://{a.address}:7400"), seek(b, f"tcp://{b.address}:7401")
    assert hosts.json_line(one) == f"tcp://{b.address}:7401"
    two.kill()

    again = seek(b, f"tcp://{b.address}:7402")

    assert hosts.json_line(again) == f"tcp://{a.address}:7400"
    assert hosts.json_line(one) == f"tcp://{b.address}:7402"


def test_peer_at_loopback_is_not_announced_to_other_hosts(
    network: hosts.Network,
) -> None:
    """Else others would look for it at a loopback of their own."""
    a, b = network.host("a"), network.host("b")
    for host in (a, b):
        seek(host, "tcp://127.0.0.1:7400")
    watcher = seek(b, f"tcp://{b.address}:7401", number=3)

    found = hosts.json_line(watcher)

    assert found == "tcp://127.0.0.1:7400", "of its own host"
    network.wait_s(2.0)
    # Only the other's own announcement would come this way.
    assert network.traffic("a", "b").frames == 0


def test_host_whose_network_comes_late_says_so_and_is_found_then(
    network: hosts.Network,
) -> None:
    """Boards start before their network does."""
    a, b = network.host("a"), network.host("b")
    one = seek(a, f"tcp://{a.address}:7400")
    b.run(["ip", "link", "set", "eth0", "down"])
    two = seek(b, f"tcp://{b.address}:7401")
    assert two.stdout is not None
    said = two.stdout.readline()

    b.run(["ip", "link", "set", "eth0", "up"])
    b.run(["ip", "route", "add", "default", "dev", "eth0"])

    assert "reason=no interface but loopback is up" in said
    assert hosts.json_line(one) == f"tcp://{b.address}:7401"
    assert hosts.json_line(two) == f"tcp://{a.address}:7400"
