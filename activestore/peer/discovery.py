"""Peers of the same cluster on the local network, found by mDNS (DNS-SD).

    _activestore._tcp.local.   one service per peer, named after its id, with the texts
                               cluster, name, peer, protocol and, where it has an
                               address that others can use, endpoint

A peer that serves at loopback announces itself there only: peers on the same machine
find it, others are not sent to a loopback of their own.

Rules of this file: it starts at once and works in a thread of its own, for probing the
network takes a second; what comes from the network is checked before it is believed;
trouble is told once in the log and tried again, because boards start before their
network does. It finds addresses and decides nothing: who is told joins or not.

Source: RFC 6762, RFC 6763.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import psutil

from activestore.errors import ConfigurationError
from activestore.peer.addresses import check_endpoint, exposure_of

_log = logging.getLogger(__name__)

SERVICE = "_activestore._tcp.local."
LOOPBACK = "127.0.0.1"
# A service that was seen is asked for its texts; it answers at once or is gone.
RESOLVE_S = 3.0
# Boards start before their network does.
RETRY_S = 30.0
# How often the addresses of this machine are looked at: networks come and change.
LOOK_S = 10.0
# How long `close` waits for the goodbye to be sent.
CLOSE_S = 5.0
# Services that are kept in mind; strangers could announce any number.
SERVICES_MAX = 1024
# Addresses of one peer that listens at all of them.
ADDRESSES_MAX = 4
# One text of a service, with its name: RFC 6763, section 6.1.
TEXT_BYTES_MAX = 255


class Announcement(NamedTuple):
    """What this peer tells the network about itself."""

    peer_id: bytes
    name: str
    cluster: str
    endpoint: str
    protocol: int


class Discovery:
    """Announces one peer and finds others, until closed."""

    def __init__(self, me: Announcement, found: Callable[[str], None]) -> None:
        """Prepare; nothing is sent before `start`.

        Args:
            me: What is announced.
            found: Told each address of a peer of the same cluster when it appears, and
                again when it went and came back. Called from the thread of this object:
                it hands the address over and returns.

        Raises:
            ConfigurationError: zeroconf is not installed, or the endpoint cannot be
                announced.
        """
        try:
            import zeroconf
        except ImportError:
            raise ConfigurationError(
                "discover",
                "needs the module 'zeroconf': pip install 'activestore[discover]', or "
                "name a peer with --join",
            ) from None
        if not me.endpoint.startswith("tcp://"):
            raise ConfigurationError(
                "discover",
                f"{me.endpoint} is for processes of this machine; listen at a tcp:// "
                "address to be found",
            )
        self._zeroconf: Any = zeroconf
        self._me = me
        self._found = found
        self._is_local = False
        self._changes: queue.Queue[tuple[str, bool] | None] = queue.Queue(SERVICES_MAX)
        self._told: dict[str, list[str]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="discovery", daemon=True)
        # Why it does not work just now, "" where it does; for `status`.
        self.trouble = ""

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def close(self) -> None:
        """Say goodbye to the network, and end."""
        self._over.set()
        try:
            self._changes.put_nowait(None)
        except queue.Full:  # Then it looks soon enough by itself.
            pass
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)

    # -- the thread --------------------------------------------------------------------

    def _run(self) -> None:
        while not self._over.is_set():
            if not self._has_served():
                self._over.wait(RETRY_S)

    def _has_served(self) -> bool:
        try:
            self._serve()
        # The boundary of a thread: a network can fail in any way, and the peer goes on.
        except Exception as error:  # noqa: BLE001
            text = str(error) or type(error).__name__
            if text != self.trouble:
                self.trouble = text
                _log.warning(
                    "discovery does not work here reason=%s; tried again each %g s, "
                    "peers named with --join are joined all the same",
                    text,
                    RETRY_S,
                )
            return False
        return True

    def _serve(self) -> None:
        """Announce and look until closed, or until this machine's addresses change.

        Raises:
            OSError: there is no network that takes multicasts.
            Error: another peer announces the same id; one of zeroconf's own.
        """
        library = self._zeroconf
        # Here, for it may ask a name server.
        self._is_local = not exposure_of(self._me.endpoint)
        addresses = own_addresses()
        if not addresses and not self._is_local:
            raise OSError("no interface but loopback is up")
        everywhere = library.InterfaceChoice.All
        network = library.Zeroconf([LOOPBACK] if self._is_local else everywhere)
        # On a network that changed all are told again, for they may be lost meanwhile.
        self._told.clear()
        try:
            # Before the registration, which takes a second to see that we are unique.
            browser = library.ServiceBrowser(network, SERVICE, [self._on_change])
            try:
                network.register_service(self._service(library))
            except library.NonUniqueNameException:
                raise ConfigurationError(
                    "discover",
                    f"a peer with the id {self._me.peer_id.hex()} is on this network "
                    "already: is its data directory a copy?",
                ) from None
            self.trouble = ""
            where = LOOPBACK if self._is_local else "every interface"
            _log.info("announced on=%s cluster=%s", where, self._me.cluster)
            while not self._over.is_set() and own_addresses() == addresses:
                self._look(network)
            browser.cancel()
        finally:
            network.close()  # Says goodbye for what is registered.

    def _service(self, library: Any) -> Any:
        me = self._me
        host, _, port = me.endpoint.removeprefix("tcp://").rpartition(":")
        texts = {
            "cluster": me.cluster,
            "name": me.name,
            "peer": me.peer_id.hex(),
            "protocol": str(me.protocol),
        }
        if not _is_wildcard(host) and len(me.endpoint) < TEXT_BYTES_MAX - len(
            "endpoint="
        ):
            texts["endpoint"] = me.endpoint
        return library.ServiceInfo(
            SERVICE,
            f"{me.peer_id.hex()}.{SERVICE}",
            port=int(port),
            properties=texts,
            server=f"activestore-{me.peer_id.hex()}.local.",
            parsed_addresses=self._addresses(host),
        )

    def _addresses(self, host: str) -> list[str]:
        """Return the IPv4 addresses at which the peer is reached."""
        if self._is_local:
            return [LOOPBACK]
        if not _is_wildcard(host):
            try:
                found = socket.getaddrinfo(host, None, socket.AF_INET)
                return [str(found[0][4][0])]
            except OSError:
                pass  # IPv6, or a name that others know: they have it from the text.
        return own_addresses()[:ADDRESSES_MAX]

    def _on_change(
        self, zeroconf: Any, service_type: str, name: str, state_change: Any
    ) -> None:
        """Note that a service came, changed or went; called by zeroconf's thread."""
        del zeroconf, service_type
        is_gone = state_change is self._zeroconf.ServiceStateChange.Removed
        try:
            self._changes.put_nowait((name, is_gone))
        except queue.Full:
            pass  # A flood; who is real announces itself again.

    def _look(self, network: Any) -> None:
        """Deal with the next service that came or went, if one does within a while."""
        try:
            change = self._changes.get(timeout=LOOK_S)
        except queue.Empty:
            return
        if change is None:
            return
        name, is_gone = change
        if is_gone:
            self._told.pop(name, None)
            return
        info = network.get_service_info(SERVICE, name, int(RESOLVE_S * 1000))
        if info is None:
            return
        addresses = [str(address) for address in info.parsed_addresses()]
        endpoints = endpoints_of(
            info.properties, addresses, int(info.port or 0), self._me
        )
        if endpoints == self._told.get(name, []):
            return
        if name not in self._told and len(self._told) >= SERVICES_MAX:
            self._told.pop(next(iter(self._told)))
        self._told[name] = endpoints
        for endpoint in endpoints:
            _log.info("found endpoint=%s", endpoint)
            self._found(endpoint)


def own_addresses() -> list[str]:
    """Return the IPv4 addresses of this machine beyond loopback, of what is up."""
    states = psutil.net_if_stats()
    return sorted(
        address.address
        for interface, addresses in psutil.net_if_addrs().items()
        if interface in states and states[interface].isup
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    )


def endpoints_of(
    properties: dict[bytes, bytes | None],
    addresses: list[str],
    port: int,
    me: Announcement,
) -> list[str]:
    """Return the addresses of an announced peer; none where it is not for us.

    Args:
        properties: The texts of the service, as they came from the network.
        addresses: The IP addresses that it gave for itself.
        port: Its port.
        me: Who looks.
    """
    texts = {_text(key): _text(value or b"") for key, value in properties.items()}
    if texts.get("cluster") != me.cluster or texts.get("peer") == me.peer_id.hex():
        return []
    if "endpoint" in texts:
        given = [texts["endpoint"]]
    else:
        hosts = [f"[{one}]" if ":" in one else one for one in addresses]
        given = [f"tcp://{host}:{port}" for host in hosts[:ADDRESSES_MAX]]
    return [one for one in given if one != me.endpoint and _can_be_joined(one)]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _can_be_joined(endpoint: str) -> bool:
    if not endpoint.startswith("tcp://"):
        return False
    try:
        check_endpoint(endpoint, "discover", port_min=1)
    except ConfigurationError as error:
        _log.debug("a peer announced what is no address error=%s", error)
        return False
    return True


def _is_wildcard(host: str) -> bool:
    return host in ("*", "0.0.0.0", "[::]")  # noqa: S104 - recognized, not bound
