"""The command line, run in this process or in one of its own, and peers for it.

Rules of this file: a command runs through the entry point that is installed; what a
test starts is ended by its id.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from activestore.cli.main import main

GADGETS = str(Path(__file__).parent / "gadgets.py")
# A shared machine under load starts a peer in seconds.
START_S_MAX = 30.0
COMMAND = [sys.executable, "-m", "activestore.cli.main"]


class Terminal(io.StringIO):
    """An output that people look at."""

    def isatty(self) -> bool:
        return True


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run(*words: str, endpoint: str = "", err: io.StringIO | None = None) -> Outcome:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO() if err is None else err
    more = ["--endpoint", endpoint] if endpoint else []
    # Before the arguments: after "--" it would be one of them.
    arguments = [*words[:1], *more, *words[1:]]
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main(arguments)
    return Outcome(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def clean_environment(**more: str) -> dict[str, str]:
    """Return the environment without settings of a peer."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ACTIVESTORE_")}
    return {**kept, **more}


class Peer:
    """One data directory and the peer that serves it, started by the command line."""

    def __init__(self, directory: Path, *flags: str) -> None:
        self.data_dir = str(directory / "data")
        self._log = (directory / "log").open("w+")
        words = ["start", "--listen", "tcp://127.0.0.1:0", "--data-dir", self.data_dir]
        words += ["--executors", "1", "--name", "one", "--json", *flags]
        self.process = subprocess.Popen(
            [*COMMAND, *words],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=clean_environment(),
        )
        assert self.process.stdout is not None
        heard, _, _ = select.select([self.process.stdout], [], [], START_S_MAX)
        line = self.process.stdout.readline() if heard else ""
        assert line, f"the peer did not start: {self.log()}"
        self.ready = json.loads(line)
        self.endpoint: str = self.ready["endpoint"]

    def run(self, *words: str, err: io.StringIO | None = None) -> Outcome:
        """Run a command that talks to this peer."""
        return run(*words, endpoint=self.endpoint, err=err)

    def log(self) -> str:
        """Return what it wrote to its standard error."""
        self._log.flush()
        return Path(self._log.name).read_text()

    def stop(self) -> int:
        """End it in order; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=START_S_MAX)

    def close(self) -> None:
        """End it and what belongs to it."""
        self.stop()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ACTIVESTORE_")]:
        monkeypatch.delenv(name)
    # For what is drawn.
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def cli() -> Callable[..., Outcome]:
    """Return what runs a command in this process."""
    return run


@pytest.fixture
def terminal() -> Terminal:
    """Return a standard error that people look at."""
    return Terminal()


@pytest.fixture
def command() -> list[str]:
    """Return the words that start the command line as a process."""
    return list(COMMAND)


@pytest.fixture
def environment() -> Callable[..., dict[str, str]]:
    """Return `clean_environment`."""
    return clean_environment


@pytest.fixture
def make_peer(tmp_path: Path) -> Iterator[Callable[..., Peer]]:
    """Return a function that starts a peer of the test's own."""
    peers: list[Peer] = []

    def make(*flags: str) -> Peer:
        directory = tmp_path / f"peer-{len(peers)}"
        directory.mkdir()
        peers.append(Peer(directory, *flags))
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()


@pytest.fixture(scope="session")
def shared_peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """Return a peer with gadgets published and the gauge `g`, value 5, label "five"."""
    made = Peer(tmp_path_factory.mktemp("shared"))
    for words in (
        ["publish", GADGETS],
        ["create", "gadgets.Gauge", "5", "five", "--alias", "g"],
    ):
        outcome = made.run(*words)
        assert outcome.code == 0, outcome
    yield made
    made.close()


@pytest.fixture
def peer(shared_peer: Peer) -> Peer:
    """Return the peer that tests share, who leave it as they found it."""
    return shared_peer


@pytest.fixture
def gadgets() -> str:
    """Return the path of the module that tests publish."""
    return GADGETS
