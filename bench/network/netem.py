"""The kernel's own network emulation, behind the same methods as the tests' switch.

Where the kernel has netem it does with frames what the switch does in Python, at the
speed of the kernel:

    host's eth0 ==veth== port | bridge          in a namespace of their own
                         htb at each port: a class for each source, told by its address,
                         netem below it: delay, rate, loss, a queue in frames

Rules of this file: what `tc` is to do is decided by pure functions, run by one method;
paths are those of IPv4, address resolution is neither late nor lost.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import Any

import hosts
from switch import Path, Traffic

FRAME_BYTES = 1514
# A class has 16 bits; far more hosts than a table has.
HOSTS_MAX = 200
# For htb wants a rate: above that of every line.
UNBOUNDED = "40gbit"
QUEUE_FRAMES_MIN = 64


def unable() -> str:
    """Return why the kernel's emulation cannot be used here, "" where it can."""
    if shutil.which("tc") is None:
        return "there is no `tc` (apt install iproute2)"
    name = f"{hosts.PREFIX}-{os.getpid()}-try"
    _run(["ip", "netns", "add", name])
    try:
        for words in (
            ["tc", "qdisc", "add", "dev", "lo", "root", "handle", "1:", "htb"],
            ["tc", "class", "add", "dev", "lo", "parent", "1:", "classid", "1:1", "htb",
             "rate", UNBOUNDED],
            ["tc", "qdisc", "add", "dev", "lo", "parent", "1:1", *leaf_words(Path(0.001))],
            ["tc", *filter_words("lo", 0)],
        ):  # fmt: skip
            tried = _run(["ip", "netns", "exec", name, *words], is_checked=False)
            if tried.returncode:
                return f"`{' '.join(words)}`: {tried.stderr.strip().splitlines()[0]}"
    finally:
        _run(["ip", "netns", "del", name])
    return ""


def leaf_words(path: Path) -> list[str]:
    """Return the words of `tc` for how frames travel on a path."""
    bound = path.queue_bytes + path.bits_per_s / 8 * path.delay_s
    # Frames that are late wait in the same queue as those that the rate holds back.
    # Without a bound there is nothing to hold back: as many as a long line has.
    frames = int(bound / FRAME_BYTES) if path.bits_per_s else 100_000
    words = ["netem", "limit", str(max(frames, QUEUE_FRAMES_MIN))]
    if path.delay_s:
        words += ["delay", f"{round(path.delay_s * 1e6)}us"]
    if path.bits_per_s:
        words += ["rate", f"{round(path.bits_per_s)}bit"]
    share = 1.0 if path.is_cut else path.loss
    if share:
        words += ["loss", f"{share * 100:.4f}%"]
    return words


def filter_words(port: str, source: int) -> list[str]:
    """Return the words of `tc` that tell what comes from a host."""
    return [
        "filter", "add", "dev", port, "parent", "1:", "protocol", "ip", "prio", "1",
        "u32", "match", "ip", "src", f"{hosts.address_of(source)}/32",
        "flowid", f"1:{class_of(source):x}",
    ]  # fmt: skip


def class_of(source: int) -> int:
    """Return the class of what comes from a host; 1 is that of all else."""
    return source + 2


def _run(words: list[str], *, is_checked: bool = True) -> Any:
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    if is_checked and result.returncode:
        raise RuntimeError(f"{' '.join(words)}: {result.stderr.strip()}")
    return result


class NetemSwitch:
    """Carries frames between the hosts that are attached to it, in the kernel."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self._namespace = f"{hosts.PREFIX}-{os.getpid()}-switch"
        self._ports: list[str] = []
        self._paths: dict[tuple[int, int], Path] = {}
        self._default = Path()
        _run(["ip", "netns", "add", self._namespace])
        self._do("ip", "link", "add", "bridge", "type", "bridge")
        self._do("ip", "link", "set", "bridge", "up")

    def _do(self, *words: str) -> str:
        found = _run(["ip", "netns", "exec", self._namespace, *words])
        return str(found.stdout)

    def attach(self, device: str) -> int:
        """Make a device whose other end is a port of the bridge; return its number."""
        number = len(self._ports)
        if number >= HOSTS_MAX:
            raise RuntimeError(f"expected at most {HOSTS_MAX} hosts")
        port = f"port{number}"
        _run(["ip", "link", "add", device, "type", "veth",
              "peer", "name", port, "netns", self._namespace])  # fmt: skip
        self._do("ip", "link", "set", port, "master", "bridge", "up")
        self._do("tc", "qdisc", "add", "dev", port, "root", "handle", "1:",
                 "htb", "default", "1")  # fmt: skip
        self._add_class(port, 1)
        self._ports.append(port)
        for other in range(number):
            self._add_path(other, number)
            self._add_path(number, other)
        return number

    def _add_class(self, port: str, minor: int) -> None:
        self._do("tc", "class", "add", "dev", port, "parent", "1:",
                 "classid", f"1:{minor:x}", "htb", "rate", UNBOUNDED)  # fmt: skip

    def _add_path(self, source: int, target: int) -> None:
        port = self._ports[target]
        self._add_class(port, class_of(source))
        self._do("tc", *filter_words(port, source))
        self._lay(source, target)

    def _lay(self, source: int, target: int) -> None:
        minor = class_of(source)
        self._do("tc", "qdisc", "replace", "dev", self._ports[target],
                 "parent", f"1:{minor:x}", "handle", f"{minor:x}:",
                 *leaf_words(self.path(source, target)))  # fmt: skip

    def path(self, source: int, target: int) -> Path:
        """Return how frames travel from one host to another."""
        return self._paths.get((source, target), self._default)

    def set_path(self, source: int, target: int, path: Path) -> None:
        """Change how frames travel from now on; those under way are not touched."""
        self._paths[source, target] = path
        self._lay(source, target)

    def set_all(self, path: Path) -> None:
        """Change how frames travel between all hosts, also those to come."""
        self._default = path
        self._paths = {}
        count = len(self._ports)
        for source in range(count):
            for target in range(count):
                if source != target:
                    self._lay(source, target)

    def traffic(self, source: int, target: int) -> Traffic:
        """Return what has gone from one host to another."""
        shown = self._do("tc", "-s", "-j", "qdisc", "show", "dev", self._ports[target])
        handle = f"{class_of(source):x}:"
        for row in json.loads(shown):
            if row["handle"] == handle:
                return Traffic(row["packets"], row["bytes"], row["drops"])
        raise RuntimeError(f"`tc` shows no queue {handle} at {self._ports[target]}")

    def close(self) -> None:
        """Take it away, with the devices."""
        _run(["ip", "netns", "del", self._namespace], is_checked=False)
