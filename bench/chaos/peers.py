"""The daemons of a run: started, killed, stopped for a while, filled, ended by their id.

Rules of this file: a process is signalled by its id, and only while it has not been
waited for, so that the id is still its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from bench.chaos.relay import LOOPBACK, Relay, free_port

START_S_MAX = 60.0
# Executors end with their channel; those that do not are ended.
ORPHAN_S_MAX = 5.0
LOG_LINES_SHOWN = 15
# The two heads of an LMDB file. What a commit writes lies behind them, and comes first.
HEADS_BYTES = 2 * 4096


class ChaosPeer:
    """One data directory, and the daemon that serves it now."""

    def __init__(self, name: str, folder: Path, relay: Relay, join: str) -> None:
        self.name = name
        self._folder = folder / name
        self._folder.mkdir(parents=True)
        self._relay = relay
        self._join = join
        self._port = free_port()
        self.endpoint = relay.serve(name, self._port)
        self._process: subprocess.Popen[bytes] | None = None
        self._executors: list[psutil.Process] = []
        self._was_ready = False
        self.starts_count = 0

    @property
    def is_running(self) -> bool:
        """Whether there is a daemon, stopped or not."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the daemon; `wait_ready` waits for it."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("ACTIVESTORE_")
        }
        command = [sys.executable, "-m", "activestore.cli.main", "start", "--json"]
        command += ["--name", self.name, "--data-dir", str(self._folder / "data")]
        command += ["--listen", f"tcp://{LOOPBACK}:{self._port}"]
        command += ["--advertise", self.endpoint, "--executors", "1"]
        command += ["--join", self._join] if self._join else []
        self._relay.open(self.name)
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, env=environment,
                # Ctrl-C is for the program that ends them in order.
                start_new_session=True,
            )  # fmt: skip
        self._was_ready = False
        self._relay.know(self._process.pid, self.name)
        self.starts_count += 1

    def wait_ready(self) -> None:
        """Wait until the daemon serves.

        Raises:
            RuntimeError: it ended, or took too long; with the end of its log.
        """
        end_s = time.monotonic() + START_S_MAX
        while not self.is_ready():
            if time.monotonic() > end_s:
                raise RuntimeError(
                    f"{self.name} did not start within {START_S_MAX:g} s:\n{self.log()}"
                )
            time.sleep(0.02)

    def is_ready(self) -> bool:
        """Return whether the daemon serves; does not wait.

        Raises:
            RuntimeError: it ended instead; with the end of its log.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        if not self._was_ready:
            heard, _, _ = select.select([self._process.stdout], [], [], 0.0)
            line = self._process.stdout.readline() if heard else b""
            if heard and not line:
                raise RuntimeError(f"{self.name} ended at its start:\n{self.log()}")
            self._was_ready = bool(line) and json.loads(line).get("event") == "ready"
        return self._was_ready

    def kill(self) -> None:
        """End the daemon at once, and the executors that it leaves."""
        if self._process is None:
            return
        self._note_executors()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._relay.shut(self.name)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._end_executors()

    def pause(self) -> None:
        """Let the daemon stand still."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def kill_executor(self) -> None:
        """End one process that runs methods."""
        self._note_executors()
        for executor in self._executors[-1:]:
            with contextlib.suppress(psutil.NoSuchProcess):
                executor.kill()

    def fill_disk(self, *, can_overwrite: bool) -> None:
        """Let none of its files grow, or nothing be written: to it the disk is full.

        A file system that never overwrites is full in the second way.
        """
        largest = 0
        if can_overwrite:
            files = [p for p in (self._folder / "data").rglob("*") if p.is_file()]
            largest = max((p.stat().st_size for p in files), default=0)
        self._bound_files(max(largest, HEADS_BYTES))

    def free_disk(self) -> None:
        """Let them grow again."""
        self._bound_files(resource.RLIM_INFINITY)

    def log(self) -> str:
        """Return the end of what its daemons have logged."""
        lines = (self._folder / "log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES_SHOWN:])

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _bound_files(self, size: int) -> None:
        if self._process is not None and self._process.poll() is None:
            hard = resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (size, hard))

    def _note_executors(self) -> None:
        assert self._process is not None
        with contextlib.suppress(psutil.Error):
            found = psutil.Process(self._process.pid).children(recursive=True)
            self._executors = found

    def _end_executors(self) -> None:
        end_s = time.monotonic() + ORPHAN_S_MAX
        while any(_is_alive(one) for one in self._executors):
            if time.monotonic() > end_s:
                for one in self._executors:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()
                break
            time.sleep(0.02)
        self._executors = []


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
