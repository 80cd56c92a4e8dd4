"""Real daemons for tests: started, killed, stopped for a while, restarted, ended.

Rules of this file: every process that a test starts is ended by its id; a daemon's log
is shown when its test fails; executors must be gone soon after their daemon.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import activestore

HERE = Path(__file__).parent
MODELS = str(HERE / "models.py")
# Models are published from this directory, and imported from it where tests need them.
sys.path.insert(0, str(HERE))

# A shared machine under load starts a peer in seconds; an idle one in half a second.
START_S_MAX = 30.0
# Executors see that their daemon is gone by their channel's end.
ORPHAN_S_MAX = 10.0
LOG_CHARS_SHOWN = 6000


class Peer:
    """One data directory and the daemon that serves it now."""

    def __init__(self, directory: Path, **settings: object) -> None:
        self.directory = directory
        self.log_path = directory / "daemon.log"
        self.settings = {"executors": 2, "executors_max": 4, "name": "one", **settings}
        self.endpoint = "tcp://127.0.0.1:0"
        self.stores: list[Any] = []
        self._process: subprocess.Popen[str] | None = None
        self._children: list[psutil.Process] = []

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> Peer:
        """Start the daemon; from the second time on at the port it had before."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("ACTIVESTORE_")
        }
        for name, value in self.settings.items():
            environment[f"ACTIVESTORE_{name.upper()}"] = str(value)
        environment["ACTIVESTORE_LISTEN"] = self.endpoint
        environment["ACTIVESTORE_DATA_DIR"] = str(self.directory / "data")
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "activestore.cli.main", "start", "--json"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                # A group of its own, so that a test can signal all of it.
                start_new_session=True,
            )
        assert self._process.stdout is not None
        heard, _, _ = select.select([self._process.stdout], [], [], START_S_MAX)
        line = self._process.stdout.readline() if heard else ""
        assert line, f"the peer did not start within {START_S_MAX} s:\n{self.log()}"
        self.endpoint = json.loads(line)["endpoint"]
        return self

    def executors(self) -> list[psutil.Process]:
        """Return the daemon's executor processes."""
        found = psutil.Process(self.pid).children(recursive=True)
        self._children = [*self._children, *found]
        return found

    def kill(self) -> None:
        """End the daemon as a power cut would, as far as a process can tell."""
        self._note_children()
        self.send(signal.SIGKILL)
        self._reap()

    def stop(self) -> int:
        """End the daemon in order; return its exit status."""
        self._note_children()
        self.send(signal.SIGTERM)
        return self._reap()

    def wait(self) -> int:
        """Wait for a daemon that was told to end; return its exit status."""
        return self._reap()

    def restart(self) -> Peer:
        """Kill and start again on the same directory and port."""
        self.kill()
        return self.start()

    def send(self, number: int) -> None:
        """Send the daemon a signal."""
        os.kill(self.pid, number)

    def connect(self, *, timeout_s: float = 20.0) -> Any:
        """Return a new client; closed at the end of the test."""
        store = activestore.connect(self.endpoint, timeout_s=timeout_s)
        self.stores.append(store)
        return store

    def log(self) -> str:
        """Return the end of what the daemons of this directory have logged."""
        text = self.log_path.read_text(errors="replace")
        return text[-LOG_CHARS_SHOWN:]

    def close(self) -> None:
        """End everything; raise where an executor outlives its daemon."""
        for store in self.stores:
            store.close()
        if self._process is not None and self._process.poll() is None:
            self.send(signal.SIGCONT)
            self.kill()
        end_s = time.monotonic() + ORPHAN_S_MAX
        while (alive := [c for c in self._children if is_running(c)]) and (
            time.monotonic() < end_s
        ):
            time.sleep(0.01)
        for child in alive:
            child.kill()
        assert not alive, f"executors outlived their daemon: {alive}"

    def _note_children(self) -> None:
        try:
            self.executors()
        except psutil.Error:
            pass

    def _reap(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        status = self._process.wait(timeout=START_S_MAX)
        self._process.stdout.close()
        return status


def is_running(process: psutil.Process) -> bool:
    """Return whether a process still runs; a dead one may wait for its reaper."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Put the daemons' logs beside the traceback of a failed test."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]  # pluggy's Result
    if report.failed:
        for peer in item.stash.get(PEERS, []):
            report.sections.append((f"log of {peer.directory.name}", peer.log()))


PEERS = pytest.StashKey[list[Peer]]()


@pytest.fixture
def make_peer(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[..., Peer]]:
    """Return a function that starts a peer with settings of the test's choice."""
    peers: list[Peer] = []
    request.node.stash[PEERS] = peers

    def make(**settings: object) -> Peer:
        directory = tmp_path / f"peer-{len(peers)}"
        directory.mkdir()
        peers.append(Peer(directory, **settings))
        return peers[-1].start()

    yield make
    failures = []
    for peer in peers:
        try:
            peer.close()
        except AssertionError as error:
            failures.append(str(error))
    assert not failures, failures


@pytest.fixture
def peer(make_peer: Callable[..., Peer]) -> Peer:
    """Return a running peer of the test's own."""
    return make_peer()


@pytest.fixture
def models_file() -> str:
    """Return the path of the module that tests publish."""
    return MODELS


@pytest.fixture
def store(peer: Peer) -> Any:
    """Return a client of the test's own peer, the models published."""
    made = peer.connect()
    made.publish(MODELS)
    return made


@pytest.fixture(scope="module")
def shared_peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """Return a peer for tests that leave it as they found it."""
    made = Peer(tmp_path_factory.mktemp("shared")).start()
    with activestore.connect(made.endpoint) as store:
        store.publish(MODELS)
    yield made
    made.close()


@pytest.fixture
def shared(request: pytest.FixtureRequest, shared_peer: Peer) -> Iterator[Any]:
    """Return a client of the peer that the tests of a module share."""
    request.node.stash[PEERS] = [shared_peer]
    with activestore.connect(shared_peer.endpoint, timeout_s=20.0) as store:
        yield store


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
    """Look until the condition holds; for what other processes do on their own."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, f"did not come true within {timeout_s} s"
        time.sleep(0.01)


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Return `wait_until`."""
    return wait_until


@pytest.fixture
def cluster(
    make_peer: Callable[..., Peer], eventually: Callable[..., None]
) -> Callable[..., tuple[list[Peer], list[Any]]]:
    """Return a function that starts peers which know each other."""

    def make(count: int, **settings: object) -> tuple[list[Peer], list[Any]]:
        first = make_peer(name="peer-0", **settings)
        peers = [first]
        peers += [
            make_peer(name=f"peer-{number}", join=first.endpoint, **settings)
            for number in range(1, count)
        ]
        stores = [peer.connect() for peer in peers]
        for store in stores:
            eventually(
                lambda store=store: (
                    sum(row["state"] == "alive" for row in store.peers()) == count
                ),
            )
        return peers, stores

    return make
