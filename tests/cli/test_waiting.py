"""How long commands wait, how they learn that a peer died, what they draw meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from activestore.cli import waiting
from activestore.cli.options import Target
from activestore.cli.output import UnreachableError
from activestore.errors import InvalidRequestError, UnavailableError

SLOW_MODULE = """
import time
from activestore import ActiveObject
time.sleep({seconds})
class {name}(ActiveObject):
    n: int
"""


@pytest.fixture
def slow_module(tmp_path: Path) -> Callable[..., str]:
    """Return what writes a module whose import takes a while; each is new to a peer."""

    def write(name: str, seconds: float) -> str:
        path = tmp_path / f"{name.lower()}.py"
        path.write_text(SLOW_MODULE.format(name=name, seconds=seconds))
        return str(path)

    return write


@pytest.fixture
def target(peer: Any) -> Target:
    """Return the shared peer, which is given ten seconds."""
    return Target(peer.endpoint, 5.0, 10.0)


# How long.


@pytest.mark.net
@pytest.mark.slow
def test_publish_waits_longer_than_it_takes_to_connect(
    peer: Any, slow_module: Callable[..., str], terminal: Any
) -> None:
    """A module with heavy imports is described for as long as they take."""
    path = slow_module("Slow", 1.0)

    outcome = peer.run("publish", path, "--connect-timeout", "0.5", err=terminal)

    assert (outcome.code, outcome.out) == (0, "slow.Slow\n")
    # It took long enough to be drawn.
    assert "publish" in outcome.err


@pytest.mark.net
@pytest.mark.slow
def test_publish_that_outlasts_its_timeout_says_that_the_peer_lives(
    make_peer: Callable[..., Any], slow_module: Callable[..., str], tmp_path: Path
) -> None:
    """A beat within the timeout would be a sign of life that prolongs it."""
    settings = tmp_path / "peer.toml"
    settings.write_text("beat_s = 10.0\n")
    peer = make_peer("--config", str(settings))
    path = slow_module("Slower", 1.0)

    outcome = peer.run("publish", path, "--timeout", "0.6")

    assert outcome.code == 1
    assert outcome.err == (
        "error: publish: not done within 0.6 s (--timeout); the peer lives, and may "
        "still finish it\n"
    )


@pytest.mark.parametrize("name", ["publish", "backup"])
def test_work_of_minutes_is_waited_for_by_default(
    cli: Callable[..., Any], name: str
) -> None:
    assert "3600.0" in cli(name, "--help").out


@pytest.mark.net
@pytest.mark.slow
def test_call_outlasts_the_timeout_while_the_peer_gives_signs_of_life(
    make_peer: Callable[..., Any], gadgets: str, tmp_path: Path
) -> None:
    """--timeout bounds silence; a method may run for hours."""
    settings = tmp_path / "peer.toml"
    settings.write_text("beat_s = 0.1\n")
    peer = make_peer("--config", str(settings))
    peer.run("publish", gadgets)
    peer.run("create", "gadgets.Gauge", "--alias", "g")

    outcome = peer.run("call", "g", "rest", "1.4", "--timeout", "0.7")

    assert (outcome.code, outcome.out) == (0, "rested\n"), outcome.err


# The peer dies.


@pytest.mark.net
@pytest.mark.slow
def test_peer_that_dies_while_it_works_is_noticed_before_the_timeout(
    make_peer: Callable[..., Any],
    slow_module: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "LOST_S", 0.5)
    monkeypatch.setattr(waiting, "SHOWN_AFTER_S", 0.1)
    peer = make_peer()
    timer = threading.Timer(0.6, peer.process.kill)
    timer.start()
    started_s = time.monotonic()

    outcome = peer.run("publish", slow_module("Slowest", 5.0))

    timer.join()
    assert outcome.code == 3
    assert outcome.err.startswith(f"error: {peer.endpoint}: lost while it worked: ")
    assert time.monotonic() - started_s < 4.0


@pytest.mark.net
@pytest.mark.slow
def test_peer_that_falls_silent_during_a_call_cannot_be_reached(
    make_peer: Callable[..., Any], gadgets: str
) -> None:
    peer = make_peer()
    peer.run("publish", gadgets)
    peer.run("create", "gadgets.Gauge", "--alias", "g")
    timer = threading.Timer(0.3, peer.process.kill)
    timer.start()

    outcome = peer.run("call", "g", "rest", "3", "--timeout", "0.6")

    timer.join()
    assert outcome.code == 3
    assert peer.endpoint in outcome.err
    assert "nothing was heard" in outcome.err


# The work beside which it is looked.


@pytest.mark.net
@pytest.mark.slow
def test_progress_of_the_peer_is_drawn(
    target: Target, terminal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "SHOWN_AFTER_S", 0.05)
    monkeypatch.setattr("sys.stderr", terminal)
    asked = threading.Event()

    def progress(store: Any) -> tuple[int, int]:
        assert store.peers()[0]["peer"] == "one"
        asked.set()
        return 3 << 20, 4 << 20

    def work(_: Any) -> int:
        assert asked.wait(5.0)
        time.sleep(0.3)  # rich draws ten times a second.
        return 7

    done = waiting.watched(target, "copying", work, progress=progress, quiet=False)

    assert done == 7
    assert "copying" in terminal.getvalue()
    assert "3.0/4.0 MiB" in terminal.getvalue()


@pytest.mark.net
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (InvalidRequestError("no", "somewhere"), InvalidRequestError),
        (ZeroDivisionError("no"), ZeroDivisionError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_error_of_the_work_is_the_error_told(
    target: Target, error: BaseException, raised: type[BaseException]
) -> None:
    def work(_: Any) -> None:
        raise error

    with pytest.raises(raised):
        waiting.watched(target, "work", work, quiet=True)

    assert "beside" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.net
@pytest.mark.slow
def test_progress_that_fails_ends_nothing(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "SHOWN_AFTER_S", 0.0)
    asked = threading.Semaphore(0)

    def progress(_: Any) -> None:
        asked.release()
        raise UnavailableError("status", "queued behind a copy")

    def work(store: Any) -> Any:
        assert asked.acquire(timeout=5.0)
        assert asked.acquire(timeout=5.0)  # Asked again.
        return store.peers()

    assert waiting.watched(target, "work", work, progress=progress, quiet=True)


@pytest.mark.net
def test_nobody_to_work_with_is_told_as_such() -> None:
    nobody = Target("tcp://127.0.0.1:9", 0.1, 0.1)

    with pytest.raises(UnreachableError):
        waiting.watched(nobody, "work", lambda _: None, quiet=True)


# What is drawn, and where.


@pytest.fixture
def backup(peer: Any, tmp_path: Path) -> str:
    """Return a directory with a backup."""
    path = str(tmp_path / "backup")
    assert peer.run("backup", path).code == 0
    return path


@pytest.mark.net
def test_restore_draws_a_bar_on_a_terminal(
    cli: Callable[..., Any], backup: str, tmp_path: Path, terminal: Any
) -> None:
    outcome = cli("restore", backup, str(tmp_path / "new"), err=terminal)

    assert outcome.code == 0
    assert "restore" in outcome.err
    assert "/" in outcome.err


@pytest.mark.net
def test_nothing_is_drawn_with_json(
    cli: Callable[..., Any], backup: str, tmp_path: Path, terminal: Any
) -> None:
    outcome = cli("restore", backup, str(tmp_path / "new"), "--json", err=terminal)

    assert (outcome.code, outcome.err) == (0, "")


@pytest.mark.net
def test_nothing_is_drawn_without_a_terminal(
    cli: Callable[..., Any], backup: str, tmp_path: Path
) -> None:
    outcome = cli("restore", backup, str(tmp_path / "new"))

    assert (outcome.code, outcome.err) == (0, "")


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_long_call_is_drawn_where_people_look(
    peer: Any, terminal: Any, more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "SHOWN_AFTER_S", 0.05)

    outcome = peer.run("call", "g", "rest", "0.5", *more, err=terminal)

    assert outcome.code == 0
    assert ("call" in outcome.err) == (more == [])


@pytest.mark.net
def test_short_call_draws_nothing(peer: Any, terminal: Any) -> None:
    assert peer.run("call", "g", "value", err=terminal).err == ""
