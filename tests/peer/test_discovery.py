"""Finding peers by mDNS: on loopback, and what is believed of what the network says."""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from activestore.errors import ConfigurationError
from activestore.peer import discovery
from activestore.peer.discovery import Announcement, Discovery, endpoints_of

ME = Announcement(b"\x01" * 6, "one", "plant", "tcp://10.0.0.1:7400", 1)
OTHER = {b"cluster": b"plant", b"peer": b"02" * 6}
# Probing takes zeroconf a second; a loaded machine more.
FOUND_S_MAX = 20.0


class Seeker:
    """A peer at loopback that is announced, and what it has found."""

    def __init__(self, number: int, cluster: str) -> None:
        self.endpoint = f"tcp://127.0.0.1:{7000 + number}"
        self.found: queue.Queue[str] = queue.Queue()
        me = Announcement(bytes([number]) * 6, f"p{number}", cluster, self.endpoint, 1)
        self.discovery = Discovery(me, self.found.put)


@pytest.fixture
def seek(multicasts: None) -> Iterator[Callable[..., Seeker]]:
    """Return what starts a peer that seeks; skip where loopback has no multicasts."""
    del multicasts
    seekers: list[Seeker] = []

    def start(number: int, cluster: str = "plant") -> Seeker:
        seekers.append(Seeker(number, cluster))
        seekers[-1].discovery.start()
        return seekers[-1]

    yield start
    for seeker in seekers:
        seeker.discovery.close()


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.serial
def test_peers_of_one_cluster_find_each_other_and_nobody_else(
    seek: Callable[..., Seeker],
) -> None:
    one, two = seek(1), seek(2)
    stranger = seek(3, "other-plant")

    assert one.found.get(timeout=FOUND_S_MAX) == two.endpoint
    assert two.found.get(timeout=FOUND_S_MAX) == one.endpoint
    # A moment more for what should not come.
    time.sleep(1.0)
    assert one.found.empty()
    assert stranger.found.empty()
    assert one.discovery.trouble == ""


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.serial
def test_peer_that_went_and_came_back_is_found_again(
    seek: Callable[..., Seeker],
) -> None:
    one, two = seek(1), seek(2)
    assert one.found.get(timeout=FOUND_S_MAX) == two.endpoint

    two.discovery.close()
    seek(2)

    assert one.found.get(timeout=FOUND_S_MAX) == two.endpoint


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.serial
def test_copy_of_a_peer_is_told_that_it_is_one(seek: Callable[..., Seeker]) -> None:
    first, watcher = seek(1), seek(2)
    assert watcher.found.get(timeout=FOUND_S_MAX) == first.endpoint

    copy = seek(1)

    until_s = time.monotonic() + FOUND_S_MAX
    while not copy.discovery.trouble and time.monotonic() < until_s:
        time.sleep(0.01)
    assert "is its data directory a copy?" in copy.discovery.trouble
    assert first.discovery.trouble == ""


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.serial
def test_start_and_close_do_not_wait_for_the_network(
    seek: Callable[..., Seeker],
) -> None:
    start_s = time.monotonic()
    seek(1)

    assert time.monotonic() - start_s < 0.5


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "zeroconf", None)

    with pytest.raises(ConfigurationError) as caught:
        Discovery(ME, print)

    assert caught.value.setting == "discover"
    assert "pip install 'activestore[discover]'" in caught.value.reason


def test_peer_of_one_machine_only_is_not_announced() -> None:
    pytest.importorskip("zeroconf")

    with pytest.raises(ConfigurationError) as caught:
        Discovery(ME._replace(endpoint="ipc://run/peer"), print)

    assert "listen at a tcp:// address" in caught.value.reason


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.serial
def test_machine_whose_addresses_change_is_announced_anew(
    seek: Callable[..., Seeker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library uses the interfaces that there were when it began."""
    addresses = ["10.0.0.1"]
    monkeypatch.setattr(discovery, "LOOK_S", 0.05)
    monkeypatch.setattr(discovery, "own_addresses", lambda: list(addresses))
    one, two = seek(1), seek(2)
    assert one.found.get(timeout=FOUND_S_MAX) == two.endpoint

    addresses.append("10.0.0.2")

    assert one.found.get(timeout=FOUND_S_MAX) == two.endpoint


def test_network_that_fails_is_told_once_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    zeroconf = pytest.importorskip("zeroconf")
    tries: queue.Queue[int] = queue.Queue()

    def fail(*_: object, **__: object) -> None:
        tries.put(1)
        raise OSError(19, "No such device")

    monkeypatch.setattr(zeroconf, "Zeroconf", fail)
    monkeypatch.setattr(discovery, "own_addresses", lambda: ["10.0.0.1"])
    monkeypatch.setattr(discovery, "RETRY_S", 0.01)
    found = Discovery(ME, print)

    found.start()
    for _ in range(3):
        tries.get(timeout=10.0)
    found.close()

    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "No such device" in warnings[0].getMessage()
    assert "--join" in warnings[0].getMessage()
    assert "No such device" in found.trouble


# What is believed.


def test_address_that_is_given_counts() -> None:
    texts = {**OTHER, b"endpoint": b"tcp://10.0.0.2:7400"}

    assert endpoints_of(texts, ["10.9.9.9"], 1, ME) == ["tcp://10.0.0.2:7400"]


def test_peer_that_listens_everywhere_is_tried_at_each_of_its_addresses() -> None:
    addresses = ["10.0.0.2", "fe80::1", "10.0.0.3", "10.0.0.4", "10.0.0.5"]

    assert endpoints_of(OTHER, addresses, 7400, ME) == [
        "tcp://10.0.0.2:7400",
        "tcp://[fe80::1]:7400",
        "tcp://10.0.0.3:7400",
        "tcp://10.0.0.4:7400",
    ]


@pytest.mark.parametrize(
    "texts",
    [
        {},
        {b"cluster": b"other"},
        {b"cluster": None},
        {b"cluster": b"\xff"},
        {b"cluster": b"plant", b"peer": b"01" * 6},
        {**OTHER, b"endpoint": b""},
        {**OTHER, b"endpoint": b"tcp://0.0.0.0:7400"},
        {**OTHER, b"endpoint": b"tcp://10.0.0.2:0"},
        {**OTHER, b"endpoint": b"tcp://10.0.0.2:99999"},
        {**OTHER, b"endpoint": b"ipc:///run/x"},
        {**OTHER, b"endpoint": b"tcp://10.0.0.2:7400/../x y"},
        {**OTHER, b"endpoint": b"\xff\xfe\x00"},
        {**OTHER, b"endpoint": ME.endpoint.encode()},
    ],
)
def test_announcement_that_is_not_for_us_or_makes_no_sense(
    texts: dict[bytes, bytes | None],
) -> None:
    assert endpoints_of(texts, [], 0, ME) == []
