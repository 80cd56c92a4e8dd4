"""Power cuts and crashes under load: nothing acknowledged is lost, nothing runs twice.

Rules of this file: chance comes from one seed, which is printed; `ACTIVESTORE_KILLS`
and `ACTIVESTORE_SEED` choose another length and another run.

Source: design section 5 ("Exactly once"), section 6.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import activestore
from activestore.errors import (
    BusyError,
    ExecutorCrashedError,
    UnavailableError,
)

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.serial]

KILLS = int(os.environ.get("ACTIVESTORE_KILLS", "20"))
SEED = int(os.environ.get("ACTIVESTORE_SEED", "4711"))
WRITERS = 6
# Between two kills, in seconds: long enough for hundreds of commits.
PAUSE_S = (0.1, 0.6)


class Writer(threading.Thread):
    """One client that calls as fast as it gets answers, and notes which it got."""

    def __init__(self, number: int, endpoint: str | list[str], alias: str) -> None:
        super().__init__(name=f"writer-{number}", daemon=True)
        self.number = number
        self.endpoint = endpoint
        self.alias = alias
        self.acknowledged: dict[str, int] = {}
        self.unknown: set[str] = set()
        self.refused: set[str] = set()
        self.failure: BaseException | None = None
        self.is_over = threading.Event()

    def run(self) -> None:
        """Call until told to end."""
        try:
            while not self.is_over.is_set():
                try:
                    self._serve_one_connection()
                except UnavailableError:
                    time.sleep(0.02)
        except BaseException as error:
            self.failure = error

    def _serve_one_connection(self) -> None:
        with activestore.connect(self.endpoint, timeout_s=10.0) as store:
            counter = store.get(self.alias)
            while not self.is_over.is_set():
                counted = len(self.acknowledged) + len(self.unknown) + len(self.refused)
                mark = f"{self.number}:{counted}"
                # Unknown until there is an answer.
                self.unknown.add(mark)
                try:
                    position = counter.note(mark)
                except (BusyError, ExecutorCrashedError):
                    # These promise that nothing was committed.
                    self.unknown.discard(mark)
                    self.refused.add(mark)
                    continue
                self.unknown.discard(mark)
                self.acknowledged[mark] = position


def kill_something(peer, chance: random.Random) -> str:
    """Kill the daemon, an executor, or both; return what, for the log of a failure."""
    what = chance.choice(("daemon", "executor", "both"))
    if what != "daemon":
        executors = peer.executors()
        if executors:
            try:
                chance.choice(executors).send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                pass
    if what != "executor":
        peer.restart()
    return what


@pytest.mark.scaled
@pytest.mark.timeout(60 + 3 * KILLS)
def test_every_acknowledged_change_survives_random_kills(peer, store):
    """Acknowledged: there, once. Not acknowledged: there once, or absent."""
    print(f"seed={SEED} kills={KILLS}")
    chance = random.Random(SEED)
    store.create("models.Counter", alias="hits")
    writers = [Writer(n, peer.endpoint, "hits") for n in range(WRITERS)]
    for writer in writers:
        writer.start()

    killed = []
    for _ in range(KILLS):
        time.sleep(chance.uniform(*PAUSE_S))
        killed.append(kill_something(peer, chance))
    time.sleep(0.3)
    for writer in writers:
        writer.is_over.set()
    for writer in writers:
        writer.join(timeout=30.0)
        assert not writer.is_alive(), f"{writer.name} hangs after {killed}"
        assert writer.failure is None, (writer.name, killed)
    peer.restart()
    counter = peer.connect().get("hits")
    seen, value = counter.seen, counter.value

    acknowledged = {m: p for w in writers for m, p in w.acknowledged.items()}
    unknown = {m for w in writers for m in w.unknown}
    print(f"acknowledged={len(acknowledged)} unknown={len(unknown)} killed={killed}")
    assert len(seen) == len(set(seen)) == value, "a call ran twice, or half"
    lost = {m for m, p in acknowledged.items() if seen[p - 1 : p] != [m]}
    assert not lost, f"acknowledged at a position where it is not: {sorted(lost)[:10]}"
    assert set(seen) - set(acknowledged) <= unknown
    assert len(acknowledged) > 10 * KILLS, "too little load for a test of kills"


@pytest.mark.timeout(60)
def test_retried_calls_have_run_once_over_kills(peer, store):
    """One client that is not told of the kills: the session retries, sums are unique."""
    counter = store.create("models.Counter", alias="hits")
    sums: list[int] = []
    failures: list[BaseException] = []
    is_over = threading.Event()

    def add() -> None:
        while not is_over.is_set():
            try:
                sums.append(counter.add(1))
            except UnavailableError as error:
                failures.append(error)

    threads = [threading.Thread(target=add, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(0.4)
        peer.restart()
    time.sleep(0.3)
    is_over.set()
    for thread in threads:
        thread.join(timeout=30.0)

    assert not any(thread.is_alive() for thread in threads)
    assert len(sums) == len(set(sums)), "one sum was given to two calls"
    assert counter.peek() >= len(sums)
    assert counter.peek() <= len(sums) + len(failures)
    assert len(sums) > 50


@pytest.mark.timeout(60)
def test_read_modify_writes_of_eight_processes_add_up(peer, store, tmp_path):
    counter = store.create("models.Counter", alias="hits")
    script = str(Path(__file__).with_name("client_process.py"))
    command = [
        sys.executable,
        script,
        peer.endpoint,
        "hits",
        "read-modify-write",
        "500",
    ]

    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)
    ]
    answers = []
    for process in processes:
        out, _ = process.communicate(timeout=50)
        assert process.returncode == 0
        answers.append(int(out))

    assert counter.peek() == 4000
    assert max(answers) == 4000
    assert len(set(answers)) == 8


def run_until_killed(peer, work, *, kills: int, pause_s: float) -> None:
    """Run `work(is_over)` in a thread beside `kills` restarts of the peer."""
    is_over = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work(is_over)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    for _ in range(kills):
        time.sleep(pause_s)
        peer.restart()
    time.sleep(pause_s)
    is_over.set()
    thread.join(timeout=30.0)
    assert not thread.is_alive()
    assert not failures, failures


@pytest.mark.timeout(60)
def test_large_states_are_whole_after_kills(peer, store):
    """Two megabytes that live in files beside the store: old or new, never half."""
    chunk = store.create("models.Chunk", 0, 300_000, alias="chunk")
    acknowledged: list[float] = []
    tried: list[int] = []

    def work(is_over: threading.Event) -> None:
        while not is_over.is_set():
            tried.append(1)
            try:
                acknowledged.append(chunk.shift(1.0))
            except UnavailableError:
                continue

    run_until_killed(peer, work, kills=5, pause_s=0.4)
    peer.restart()

    low, high = peer.connect().get("chunk").bounds()
    assert low == high
    assert len(acknowledged) <= low <= len(tried)
    assert acknowledged == sorted(set(acknowledged)), "a call ran twice"
    assert len(acknowledged) > 20


@pytest.mark.timeout(60)
def test_objects_made_in_methods_are_there_with_what_holds_them(peer, store):
    """Parent and child are one commit: no parent without its child."""
    parent = store.create("models.Node", "parent", alias="parent")
    acknowledged: list[int] = []

    def work(is_over: threading.Event) -> None:
        while not is_over.is_set() and len(acknowledged) < 300:
            try:
                acknowledged.append(parent.spawn_kept(str(len(acknowledged))))
            except UnavailableError:
                continue

    run_until_killed(peer, work, kills=4, pause_s=0.4)
    peer.restart()

    again = peer.connect()
    children = again.get("parent").get_kept()
    assert len(children) >= len(acknowledged)
    assert all(child.get_name().isdigit() for child in children)
    rows = [row for row in again.objects() if row["class_name"] == "models.Node"]
    assert len(rows) == len(children) + 1, "a child without its parent"


@pytest.mark.timeout(60)
def test_created_objects_are_found_by_their_alias_after_kills(peer, store):
    """A create that was acknowledged has its object and its alias, both or neither."""
    acknowledged: list[str] = []
    unknown: list[str] = []

    def work(is_over: threading.Event) -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            alias = f"n{number}"
            try:
                store.create("models.Counter", number, alias=alias)
                acknowledged.append(alias)
            except UnavailableError:
                unknown.append(alias)

    run_until_killed(peer, work, kills=4, pause_s=0.4)
    peer.restart()

    again = peer.connect()
    found = {row["alias"]: row for row in again.objects(alias_prefix="n")}
    assert set(acknowledged) <= set(found) <= {*acknowledged, *unknown}
    for alias in acknowledged[::20]:
        assert again.get(alias).peek() == int(alias[1:])
    assert len(acknowledged) > 50
