"""Hosts on this machine: network namespaces on one switch, with peers and programs.

    network.host("edge-1")              a host with an address of its own
    host.peer(executors=1)              a daemon on it, reachable from the others
    host.python(CODE, peer.endpoint)    a program on it; returns what it prints as JSON
    network.delay("edge-1", "cloud", 0.05)   .loss  .rate  .cut  .heal  .partition

Rules of this file: names carry the id of the process that made them, so that runs beside
each other never meet, and what a killed run left is swept by the next one; every
process is ended by its id; a peer's log is there when its test fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

from switch import TUN, Path, Switch, Traffic

PREFIX = "activestore"
PORT = 7400
# A shared machine under load starts a peer in seconds; an idle one in half a second.
START_S_MAX = 30.0
PROGRAM_S_MAX = 60.0
LOG_CHARS_SHOWN = 6000
HOSTS_MAX = 250
COMMAND = [sys.executable, "-m", "activestore.cli.main"]


def unable() -> str:
    """Return why this machine cannot do it, "" where it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need `ip` (apt install iproute2)"
    if not os.path.exists(TUN):
        return f"{TUN} is not there: the kernel has no tap devices, or hides them"
    name = f"{PREFIX}-{os.getpid()}-try"
    tried = _ip("netns", "add", name, is_checked=False)
    if tried.returncode:
        return f"`ip netns add` is refused here: {tried.stderr.strip()}"
    _ip("netns", "del", name)
    try:
        os.close(os.open(TUN, os.O_RDWR))
    except OSError as error:
        return f"{TUN} cannot be opened: {error.strerror}"
    return ""


def address_of(number: int) -> str:
    """Return the address of the host of that number."""
    return f"10.77.0.{number + 1}"


def sweep() -> list[str]:
    """Take away what runs left that were killed; return the names."""
    swept = []
    for line in _ip("netns", "list", is_checked=False).stdout.splitlines():
        match = re.match(rf"({PREFIX}-(\d+)-\S+)", line)
        if match and not os.path.exists(f"/proc/{match[2]}"):
            _ip("netns", "del", match[1], is_checked=False)
            swept.append(match[1])
    return swept


def _ip(*words: str, is_checked: bool = True) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if is_checked and result.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {result.stderr.strip()}")
    return result


class Network:
    """Hosts on one switch; gone at `close`, whatever happened between."""

    def __init__(self, directory: FilePath, seed: int, switch: Any = None) -> None:
        """Make a network; `switch`: what stands in for a Switch, for benchmarks."""
        self.directory = directory
        self.hosts: dict[str, Host] = {}
        self._switch: Switch = switch or Switch(seed)

    def host(self, name: str) -> Host:
        """Return the host of that name, made at the first use."""
        if name not in self.hosts:
            if len(self.hosts) >= HOSTS_MAX:
                raise RuntimeError(f"expected at most {HOSTS_MAX} hosts")
            device = f"as{os.getpid():x}.{len(self.hosts)}"
            number = self._switch.attach(device)
            # Before anything of it exists, so that `close` finds what fails half way.
            self.hosts[name] = host = Host(self, name, number)
            host.set_up(device)
        return self.hosts[name]

    def every(
        self, *, delay_s: float = 0.0, loss: float = 0.0, bits_per_s: float = 0.0
    ) -> None:
        """Make all paths alike, whole again where they were cut."""
        self._switch.set_all(Path(delay_s, loss, bits_per_s))

    def delay(self, a: str, b: str, delay_s: float) -> None:
        """Let frames between two hosts take so long, each way."""
        self._change(a, b, delay_s=delay_s)

    def loss(self, a: str, b: str, share: float) -> None:
        """Lose a share of the frames between two hosts, 0 to 1, each way."""
        self._change(a, b, loss=share)

    def rate(self, a: str, b: str, bits_per_s: float) -> None:
        """Let no more than that through between two hosts, each way; 0 for no bound."""
        self._change(a, b, bits_per_s=bits_per_s)

    def cut(self, a: str, b: str, *, one_way: bool = False) -> None:
        """Let nothing through any more between two hosts, or from `a` to `b` only."""
        self._change(a, b, one_way=one_way, is_cut=True)

    def heal(self, a: str, b: str) -> None:
        """Let frames through again, as late and as lossy as before the cut."""
        self._change(a, b, is_cut=False)

    def partition(self, *groups: Sequence[str]) -> None:
        """Cut all paths between hosts of different groups, heal those within each."""
        for number, group in enumerate(groups):
            for a in group:
                for b in group:
                    if a != b:
                        self._change(a, b, one_way=True, is_cut=False)
                for other in groups[number + 1 :]:
                    for b in other:
                        self.cut(a, b)

    def traffic(self, source: str, target: str) -> Traffic:
        """Return what has gone from one host to another since the start."""
        return self._switch.traffic(self.host(source).number, self.host(target).number)

    def wait_s(self, seconds: float) -> None:
        """Let time pass on the network; fails where the switch has."""
        time.sleep(seconds)
        if self._switch.failure is not None:
            raise self._switch.failure

    def close(self) -> None:
        """End all processes, take all hosts away."""
        try:
            for host in self.hosts.values():
                host.end_processes()
        finally:
            for host in self.hosts.values():
                host.tear_down()
            self._switch.close()

    def _change(self, a: str, b: str, *, one_way: bool = False, **to: Any) -> None:
        source, target = self.host(a).number, self.host(b).number
        for way in (
            [(source, target)] if one_way else [(source, target), (target, source)]
        ):
            self._switch.set_path(*way, self._switch.path(*way)._replace(**to))


class Host:
    """One network namespace: an address, peers and programs."""

    def __init__(self, network: Network, name: str, number: int) -> None:
        self.network = network
        self.name = name
        self.number = number
        self.address = address_of(number)
        self.namespace = f"{PREFIX}-{os.getpid()}-{name}"
        self.peers: list[NetworkPeer] = []
        self._processes: list[subprocess.Popen[Any]] = []

    def set_up(self, device: str) -> None:
        """Make the namespace and move the device into it."""
        _ip("netns", "add", self.namespace)
        _ip("link", "set", device, "netns", self.namespace)
        # The switch reads the host's number from the address.
        hardware = f"02:00:00:00:{self.number >> 8:02x}:{self.number & 255:02x}"
        lines = [
            "link set lo up",
            f"link set {device} name eth0 address {hardware} up",
            f"address add {self.address}/24 dev eth0",
            # For multicast too.
            "route add default dev eth0",
        ]
        no_ipv6 = "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"
        self.run(["sh", "-c", f"[ ! -d /proc/sys/net/ipv6 ] || {no_ipv6}"])
        subprocess.run(
            ["ip", "-n", self.namespace, "-batch", "-"],
            input="\n".join(lines),
            text=True,
            check=True,
        )

    def wrapped(self, words: Sequence[str]) -> list[str]:
        """Return the words that run a program on this host."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def start(self, words: Sequence[str], **more: Any) -> subprocess.Popen[Any]:
        """Start a program on this host; ended with it."""
        process = subprocess.Popen(self.wrapped(words), env=_environment(), **more)
        self._processes.append(process)
        return process

    def run(
        self, words: Sequence[str], *, timeout_s: float = PROGRAM_S_MAX
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on this host to its end; fail where it fails."""
        result = subprocess.run(
            self.wrapped(words),
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert result.returncode == 0, f"{self.name}: {result.stderr or result.stdout}"
        return result

    def python(
        self, code: str, *arguments: object, timeout_s: float = PROGRAM_S_MAX
    ) -> Any:
        """Run Python on this host; return the JSON that it prints last."""
        words = [sys.executable, "-c", code, *map(str, arguments)]
        lines = self.run(words, timeout_s=timeout_s).stdout.splitlines()
        return json.loads(lines[-1]) if lines else None

    def start_python(self, words: Sequence[str]) -> subprocess.Popen[str]:
        """Start Python on this host; what it prints is read from the process."""
        return self.start(
            [sys.executable, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def peer(self, name: str = "", **settings: object) -> NetworkPeer:
        """Start a peer on this host; by default of its name, at the usual port."""
        peer = NetworkPeer(self, name or self.name, settings)
        self.peers.append(peer)
        return peer.start()

    def end_processes(self) -> None:
        """End what runs on this host."""
        for peer in self.peers:
            peer.kill()
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def tear_down(self) -> None:
        """Take the namespace away; its device goes with the switch."""
        _ip("netns", "del", self.namespace, is_checked=False)


class NetworkPeer:
    """A daemon on a host: started, killed, stopped, started again on the same data."""

    def __init__(self, host: Host, name: str, settings: dict[str, object]) -> None:
        self.host = host
        self.name = name
        self.directory = host.network.directory / name
        self.directory.mkdir()
        self.log_path = self.directory / "log"
        self.settings: dict[str, object] = {
            "name": name,
            "listen": f"tcp://{host.address}:{PORT}",
            "data_dir": str(self.directory / "data"),
            # The namespace is a network that nobody else is on.
            "insecure": True,
            "executors": 1,
            "disk_budget_mb": 256,
            **settings,
        }
        self.endpoint = str(self.settings["listen"])
        self.peer_id = ""
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> NetworkPeer:
        """Start it and wait until it is ready."""
        path = self.directory / "peer.toml"
        # JSON is TOML, as far as values of settings go.
        lines = [f"{key} = {json.dumps(value)}" for key, value in self.settings.items()]
        path.write_text("\n".join(lines) + "\n")
        words = [*COMMAND, "start", "--json"]
        offset = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.log_path.open("ab") as log:
            # `ip netns exec` becomes the program: its id is the daemon's.
            self._process = self.host.start(
                [*words, "--config", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until_s = time.monotonic() + START_S_MAX
        while time.monotonic() < until_s and self._process.poll() is None:
            for line in self.log_path.read_bytes()[offset:].splitlines():
                if line.startswith(b'{"event": "ready"'):
                    ready = json.loads(line)
                    self.endpoint, self.peer_id = ready["endpoint"], ready["peer"]
                    return self
            time.sleep(0.02)
        raise AssertionError(f"{self.name} did not start:\n{self.log()}")

    def send(self, number: int) -> None:
        """Send the daemon a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as a power cut would, as far as a process can tell."""
        if self._process is None:  # It never came that far.
            return
        if self._process.poll() is None:
            self.send(signal.SIGKILL)
        self._process.wait(timeout=START_S_MAX)

    def stop(self) -> int:
        """End it in order; return its exit status."""
        assert self._process is not None
        self.send(signal.SIGTERM)
        return self._process.wait(timeout=START_S_MAX)

    def log(self) -> str:
        """Return the end of what it has said."""
        return self.log_path.read_text(errors="replace")[-LOG_CHARS_SHOWN:]


def json_line(program: subprocess.Popen[str], within_s: float = PROGRAM_S_MAX) -> Any:
    """Return the next line that a program prints, which is JSON; fail where it ends."""
    assert program.stdout is not None
    ready, _, _ = select.select([program.stdout], [], [], within_s)
    assert ready, f"it said nothing for {within_s:g} s"
    line = program.stdout.readline()
    try:
        return json.loads(line)
    except ValueError:
        raise AssertionError(line + program.stdout.read()) from None


def _environment() -> dict[str, str]:
    """Return the environment without settings, but with the mark of a CI run."""
    return {
        name: text
        for name, text in os.environ.items()
        if not name.startswith("ACTIVESTORE_") or name == "ACTIVESTORE_CI_RUN"
    }
