"""The demo's cluster: peers that `activestore-node up` starts and `down` stops.

Rules of this file: a peer is killed by the id that `up` told; whatever happens, `down` is
the last thing that happens, and the directory goes with it; no process is started that
nobody would end, so signals wait until its id is known.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

# A killed process is gone at once, but for what its system does.
GONE_S = 10.0
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Cluster:
    """The peers of a topology on this machine."""

    def __init__(self, topology: str, directory: Path) -> None:
        self.topology = topology
        self._directory = directory
        self._peers: dict[str, dict[str, Any]] = {}
        self._killed: set[str] = set()

    @property
    def names(self) -> list[str]:
        """The peers' names, in the order of the topology."""
        return list(self._peers)

    def endpoint(self, name: str) -> str:
        """Return the address of a peer; it has the same one after a restart."""
        return str(self._peers[name]["endpoint"])

    def up(self) -> float:
        """Start what does not run; return how long it took, in seconds."""
        start_s = time.perf_counter()
        told = self._run("up", self.topology)
        self._peers = {peer["name"]: peer for peer in told["peers"]}
        self._killed.clear()
        return time.perf_counter() - start_s

    def down(self) -> None:
        """Stop what runs."""
        if (self._directory / "cluster.json").exists():
            self._run("down")

    def kill(self, name: str) -> None:
        """End a peer as a power cut would: kill -9."""
        process = psutil.Process(self._peers[name]["pid"])
        process.send_signal(signal.SIGKILL)
        self._killed.add(name)
        until_s = time.monotonic() + GONE_S
        with contextlib.suppress(psutil.NoSuchProcess):
            while process.status() != psutil.STATUS_ZOMBIE:
                if time.monotonic() > until_s:
                    raise SystemExit(f"{name} does not end, pid {process.pid}")
                time.sleep(0.01)

    def is_killed(self, name: str) -> bool:
        """Whether a peer was killed and not brought back."""
        return name in self._killed

    def memory_mb(self, name: str) -> float:
        """Return the peak memory of a peer's daemon and executors, in MB."""
        daemon = psutil.Process(self._peers[name]["pid"])
        return sum(_peak_memory_mb(one.pid) for one in (daemon, *daemon.children()))

    def _run(self, command: str, *words: str) -> dict[str, Any]:
        line = [sys.executable, "-m", "activestore.cli.main", command, *words]
        line += ["--dir", str(self._directory), "--json"]
        # A session of its own: what ends this program reaches it through this program.
        # Interrupted, it writes down what it has started.
        with program(line, ending=signal.SIGINT, start_new_session=True) as process:
            printed, _ = process.communicate()
        told: dict[str, Any] = json.loads(printed) if printed.strip() else {}
        if process.returncode:
            said = told.get("error", {}).get("message", f"exit {process.returncode}")
            raise SystemExit(f"`activestore-node {command}` failed: {said}")
        return told


@contextlib.contextmanager
def program(
    line: list[str], *, ending: int = signal.SIGTERM, start_new_session: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """Yield a running program; it is sent `ending` where the block is left by an error."""
    process: subprocess.Popen[str] | None = None
    try:
        with _endings_held():
            process = subprocess.Popen(
                line,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=start_new_session,
            )
        yield process
        process.wait()
    except BaseException:
        if process is not None:
            process.send_signal(ending)
            process.wait()
        raise
    finally:
        if process is not None and process.stdout is not None:
            process.stdout.close()


@contextlib.contextmanager
def _endings_held() -> Iterator[None]:
    """Let signals that end this program wait until the block is over."""
    came: list[int] = []
    before = [
        signal.signal(one, lambda number, _frame: came.append(number))
        for one in _ENDINGS
    ]
    try:
        yield
    finally:
        for one, handler in zip(_ENDINGS, before, strict=True):
            signal.signal(one, handler)
    for number in came[:1]:
        signal.raise_signal(number)


def _peak_memory_mb(pid: int) -> float:
    """Return the most memory that a process has had, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1000


@contextlib.contextmanager
def running(topology: str) -> Iterator[Cluster]:
    """Yield a running cluster; end it and remove its data afterwards, come what may."""
    with tempfile.TemporaryDirectory(prefix="activestore-demo-") as directory:
        cluster = Cluster(topology, Path(directory) / topology)
        try:
            cluster.up()
            yield cluster
        finally:
            # Told twice to end, it still stops what it has started.
            before = [signal.signal(one, signal.SIG_IGN) for one in _ENDINGS]
            try:
                cluster.down()
            finally:
                _end_strays(directory)
                for one, handler in zip(_ENDINGS, before, strict=True):
                    signal.signal(one, handler)


def _end_strays(directory: str) -> None:
    """Kill what still names our directory: `up` was ended before it wrote that down."""
    for process in psutil.process_iter(["cmdline"]):
        if any(word.startswith(directory) for word in process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.Error):
                process.kill()
                process.wait(GONE_S)


def end_in_order() -> None:
    """Let Ctrl-C, SIGTERM and SIGHUP end this program with all that it cleans up."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in _ENDINGS:
        signal.signal(number, end)
    os.environ.pop("ACTIVESTORE_ENDPOINT", None)  # Nobody else's peers are meant.
