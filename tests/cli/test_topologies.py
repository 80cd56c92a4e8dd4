"""Clusters on one machine: what describes them, how they start, stop and recover."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from activestore.cli import blueprint, cluster, topology
from activestore.cli.blueprint import PEERS_MAX, known_topologies, load_topology
from activestore.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]
TWO = """
[settings]
executors = 1
disk_budget_mb = 64

[[peers]]
name = "a"

[[peers]]
name = "b"
settings = { zone = "east" }
"""


class Clusters:
    """Runs `up` and `down` on one directory, and stops what is left at the end."""

    def __init__(self, directory: Path, run: Callable[..., Any]) -> None:
        self.directory = directory / "cluster"
        self.file = directory / "two.toml"
        self.file.write_text(TWO)
        self._run = run

    def up(self, *words: str, **more: Any) -> Any:
        place = ["--dir", str(self.directory)]
        return self._run("up", str(self.file), *place, *words, **more)

    def down(self, *words: str) -> Any:
        return self._run("down", "--dir", str(self.directory), *words)

    def pids(self) -> dict[str, int]:
        state = cluster.read_state(self.directory)
        assert state is not None
        return {entry.name: entry.pid for entry in state.peers}


@pytest.fixture
def clusters(
    tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Clusters]:
    """Return what starts a cluster of two below a directory of the test's own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    made = Clusters(tmp_path, cli)
    yield made
    if (made.directory / cluster.STATE).exists():
        state = cluster.read_state(made.directory)
        assert state is not None
        for _ in cluster.stop_all(made.directory, state.peers, grace_s=5.0):
            pass


# What describes them.


def test_shipped_topologies_are_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    sizes = {name: len(load_topology(name).peers) for name in known_topologies()}

    assert sizes == {"edge-edge-cloud": 3, "five-edges": 5, "edges-and-clouds": 23}


@pytest.mark.slow
def test_shipped_topologies_are_found_where_only_a_wheel_was_installed(
    tmp_path: Path,
) -> None:
    """With the profiles that they name; the checkout is out of reach."""
    pytest.importorskip("setuptools", "77", reason="builds the wheel")
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("activestore", "nodes"):
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=unwanted)
    build = "import setuptools.build_meta as b; b.build_wheel('../wheels')"
    shown = (
        "from activestore.cli import blueprint as b; print(b.__file__); "
        "print({n: len(b.load_topology(n).peers) for n in b.known_topologies()})"
    )

    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, timeout=120)
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    shutil.rmtree(source)
    told = subprocess.run(
        [sys.executable, "-c", shown],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=60,
    ).stdout.splitlines()

    assert told[0].startswith(str(site))
    assert told[1] == "{'edge-edge-cloud': 3, 'edges-and-clouds': 23, 'five-edges': 5}"


def test_settings_of_a_peer_stand_over_those_of_all_and_of_its_node(
    tmp_path: Path,
) -> None:
    (tmp_path / "board").mkdir()
    (tmp_path / "board" / "peer.toml").write_text(
        "slots = 2\nspin_us = 0\nbeat_s = 5\nname = 'x'\n"
    )
    (tmp_path / "t").mkdir()
    path = tmp_path / "t" / "mine.toml"
    path.write_text(
        "[settings]\nslots = 3\nspin_us = 1\n"
        "[[peers]]\nname = 'a'\ncount = 2\nnode = 'board'\nsettings = {slots = 4}\n"
        "[[peers]]\nname = 'c'\nnode = '../board/peer.toml'\n"
    )

    described = load_topology(str(path))

    assert (described.name, described.cluster) == ("mine", "mine")
    assert [peer.name for peer in described.peers] == ["a-1", "a-2", "c"]
    assert described.peers[1].settings == {"slots": 4, "spin_us": 1, "beat_s": 5.0}
    assert described.peers[2].settings == {"slots": 3, "spin_us": 1, "beat_s": 5.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "has 0 peers"),
        ("peers = 3", "expected tables"),
        ("peers = [3]", "expected [[peers]]"),
        ("speed = 3", "unknown key 'speed'; known are description, cluster"),
        ("[[peers]]", "has no name"),
        ("[[peers]]\nname = 3", "expected a text"),
        ("[[peers]]\nname = 'a.b'", "no '.' in it"),
        ("[[peers]]\nname = '../a'", "letters, digits"),
        ("[[peers]]\nname = 'a'\ncount = true", "expected a whole number"),
        ("[[peers]]\nname = 'a'\ncount = 0", f"expected 1 to {PEERS_MAX}"),
        ("[[peers]]\nname = 'a'\n[[peers]]\nname = 'a'", "a more than once"),
        ("[[peers]]\nname = 'a'\nnode = 'boat'", "'boat' is no folder of"),
        ("[[peers]]\nname = 'a'\nsettings = {slots = 'x'}", "expected a whole number"),
        ("[[peers]]\nname = 'a'\nsettings = {slot = 1}", "nearest one is slots"),
        ("[settings]\nlisten = 'tcp://0.0.0.0:1'", "holds listen, which `up`"),
        ("[settings]\ninsecure = true", "holds insecure, which `up`"),
        ("cluster = 'a b'", "letters, digits"),
        ("peers = [", "is not TOML"),
    ],
)
def test_description_that_is_wrong(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)

    with pytest.raises(ConfigurationError) as caught:
        load_topology(str(path))

    assert expected in str(caught.value)


def test_unknown_topology_names_the_known_ones(cli: Callable[..., Any]) -> None:
    outcome = cli("up", "edge-egde-cloud")

    assert outcome.code == 4
    assert "edge-edge-cloud, edges-and-clouds, five-edges" in outcome.err
    assert "did you mean edge-edge-cloud?" in outcome.err


# How they start and stop.


@pytest.mark.net
@pytest.mark.slow
def test_cluster_starts_is_used_and_stops(
    clusters: Clusters, cli: Callable[..., Any]
) -> None:
    up = clusters.up("--json")
    assert up.code == 0, up.err
    peers = {peer["name"]: peer for peer in up.json["peers"]}
    pids = clusters.pids()

    status = cli("status", "--json", endpoint=peers["b"]["endpoint"]).json
    settings = (clusters.directory / "b.toml").read_text()
    down = clusters.down("--json")

    assert up.json["topology"] == "two"
    assert all(peer["started"] for peer in peers.values())
    assert (status["name"], status["pid"]) == ("b", pids["b"])
    assert 'zone = "east"' in settings
    assert peers["a"]["endpoint"] in settings, "b joins a"
    assert {row["name"] for row in down.json["stopped"]} == {"a", "b"}
    assert not any(row["killed"] for row in down.json["stopped"])
    assert not any(psutil.pid_exists(pid) for pid in pids.values())
    assert set(clusters.pids().values()) == {0}
    assert clusters.down().out == f"nothing runs in {clusters.directory}\n"


@pytest.mark.net
@pytest.mark.slow
def test_up_again_starts_only_what_is_missing_where_it_was(
    clusters: Clusters, cli: Callable[..., Any]
) -> None:
    first = {peer["name"]: peer for peer in clusters.up("--json").json["peers"]}
    os.kill(first["b"]["pid"], signal.SIGKILL)
    os.waitpid(first["b"]["pid"], 0)

    again = {peer["name"]: peer for peer in clusters.up("--json").json["peers"]}
    third = clusters.up()

    assert again["a"] == {**first["a"], "started": False}
    assert again["b"]["started"]
    assert again["b"]["pid"] != first["b"]["pid"]
    # The same peer at the same address: whoever knew it finds it again.
    for field in ("endpoint", "peer"):
        assert again["b"][field] == first["b"][field]
    assert third.out.count("ran already") == 2


@pytest.mark.net
@pytest.mark.slow
def test_ports_are_counted_from_the_base_unless_one_is_in_use(
    clusters: Clusters,
) -> None:
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen(1)
        port = used.getsockname()[1]

        outcome = clusters.up("--base-port", str(port - 1), "--json")
    again = clusters.up("--base-port", str(port - 1), "--json")

    assert outcome.code == 4
    assert f"port {port}, for b, is in use" in outcome.json["error"]["message"]
    endpoints = [peer["endpoint"] for peer in again.json["peers"]]
    assert endpoints == [f"tcp://127.0.0.1:{port - 1}", f"tcp://127.0.0.1:{port}"]


@pytest.mark.net
@pytest.mark.slow
def test_peer_that_dies_at_start_tells_its_last_words(clusters: Clusters) -> None:
    clusters.file.write_text(TWO + '\n[[peers]]\nname = "c"\n')
    clusters.directory.mkdir()
    (clusters.directory / "c").write_text("no directory")
    state = cluster.State("two", str(clusters.file), "two", ())
    cluster.write_state(clusters.directory, state)

    outcome = clusters.up()

    assert outcome.code == 4
    assert "c: ended while it started (exit code 4)" in outcome.err
    assert "error: data_dir" in outcome.err
    assert str(clusters.directory / "c.log") in outcome.err


@pytest.mark.net
@pytest.mark.slow
def test_peer_that_does_not_end_is_killed_after_the_grace(clusters: Clusters) -> None:
    pids = {peer["name"]: peer["pid"] for peer in clusters.up("--json").json["peers"]}
    os.kill(pids["a"], signal.SIGSTOP)

    outcome = clusters.down("--grace", "0.5", "--json")

    killed = {row["name"]: row["killed"] for row in outcome.json["stopped"]}
    assert killed == {"a": True, "b": False}
    assert not psutil.pid_exists(pids["a"])


@pytest.mark.net
@pytest.mark.slow
def test_settings_in_the_environment_do_not_reach_the_peers(
    clusters: Clusters, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one ACTIVESTORE_NAME would name them all."""
    monkeypatch.setenv("ACTIVESTORE_NAME", "other")
    monkeypatch.setenv("ACTIVESTORE_LISTEN", "tcp://127.0.0.1:1")

    peers = clusters.up("--json").json["peers"]

    status = cli("status", "--json", endpoint=peers[1]["endpoint"]).json
    assert status["name"] == "b"


@pytest.mark.net
@pytest.mark.slow
def test_bar_counts_peers_where_people_look(clusters: Clusters, terminal: Any) -> None:
    outcome = clusters.up(err=terminal)

    assert "up two" in outcome.err
    assert "2/2 peers" in outcome.err


@pytest.mark.net
@pytest.mark.slow
def test_without_a_directory_it_is_below_the_data_home(
    clusters: Clusters, cli: Callable[..., Any], tmp_path: Path
) -> None:
    up = cli("up", str(clusters.file), "--json")
    down = cli("down")
    nothing = cli("down")

    assert up.json["dir"] == str(tmp_path / "home" / "activestore-clusters" / "two")
    lines = sorted(line.split("\t")[0::2] for line in down.out.splitlines())
    assert lines == [["a", "stopped"], ["b", "stopped"]]
    assert nothing.out == "nothing runs\n"


# What is refused, and whose process is whose.


def entry_of(process: psutil.Process) -> cluster.Entry:
    """Return an entry that says that a process is the peer "a"."""
    started_s = process.create_time()
    return cluster.Entry("a", "", "tcp://127.0.0.1:1", "", process.pid, started_s)


def test_process_that_got_the_id_of_a_peer_is_not_stopped(tmp_path: Path) -> None:
    """Ids are used again: this test itself would be ended."""
    entry = entry_of(psutil.Process())

    assert not cluster.is_running(tmp_path, entry)
    assert list(cluster.stop_all(tmp_path, [entry], grace_s=0.1)) == []


def test_process_that_started_at_another_time_is_another_one(tmp_path: Path) -> None:
    code = "import sys, time; print(1, flush=True); time.sleep(60)"
    words = [sys.executable, "-c", code, str(tmp_path / "a.toml")]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        entry = entry_of(psutil.Process(process.pid))
        earlier = entry._replace(started_s=entry.started_s - 60.0)

        found = [cluster.is_running(tmp_path, one) for one in (entry, earlier)]
        process.kill()

    assert found == [True, False]


def test_directory_that_holds_something_else_is_left_alone(clusters: Clusters) -> None:
    clusters.directory.mkdir()
    (clusters.directory / "thesis.tex").write_text("")

    outcome = clusters.up()

    assert outcome.code == 4
    assert "holds thesis.tex" in outcome.err
    assert "choose an empty directory" in outcome.err
    assert [path.name for path in clusters.directory.iterdir()] == ["thesis.tex"]


def test_directory_of_another_topology_is_refused(clusters: Clusters) -> None:
    clusters.directory.mkdir()
    cluster.write_state(clusters.directory, cluster.State("three", "", "three", ()))

    outcome = clusters.up("--json")

    assert outcome.code == 4
    assert "in use by the topology three" in outcome.json["error"]["message"]


def test_directory_where_another_up_works_is_refused(clusters: Clusters) -> None:
    with cluster.locked(clusters.directory):
        outcome = clusters.up()

    assert outcome.code == 4
    assert "another `up` or `down` works there" in outcome.err


@pytest.mark.parametrize("text", ["{", '{"format": 2}', "[]", '{"format": 1}'])
def test_state_that_is_damaged_says_what_to_do(clusters: Clusters, text: str) -> None:
    clusters.directory.mkdir()
    (clusters.directory / cluster.STATE).write_text(text)

    outcome = clusters.up()

    assert outcome.code == 4
    assert "remove the file: the peers' data beside it stay" in outcome.err
    (clusters.directory / cluster.STATE).unlink()


def test_down_where_nothing_was_started(clusters: Clusters) -> None:
    outcome = clusters.down()

    assert outcome.code == 4
    assert "holds no cluster.json" in outcome.err


def test_cluster_is_formed_once_each_sees_all_others_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows without a state are of a peer that keeps no account of others."""
    ids = {"aa": "a", "bb": "b"}
    views: list[list[dict[str, Any]]] = [
        [{"peer_id": b"\xaa", "state": "alive"}],
        [
            {"peer_id": b"\xaa", "state": "alive"},
            {"peer_id": b"\xbb", "state": "suspect"},
        ],
        [
            {"peer_id": b"\xaa", "state": "alive"},
            {"peer_id": b"\xbb", "state": "alive"},
        ],
        [{"peer_id": b"\xaa"}],
    ]

    class Answering:
        def __init__(self, *_: object) -> None:
            pass

        def connected(self) -> Answering:
            return self

        def __enter__(self) -> Answering:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def peers(self) -> list[dict[str, Any]]:
            return views.pop(0)

    monkeypatch.setattr(topology, "Target", Answering)
    entry = cluster.Entry("a", "", "tcp://127.0.0.1:1", "aa")

    seen = [topology._unseen(entry, ids) for _ in range(4)]

    assert seen == [["b"], ["b"], [], []]


def test_log_that_grew_large_is_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "LOG_BYTES_MAX", 10)
    (tmp_path / "a.log").write_text("x" * 11)
    (tmp_path / "a.toml").write_text("slots = 0\n")

    start = cluster.Start(tmp_path, cluster.Entry("a", "", "tcp://127.0.0.1:1"))
    with pytest.raises(ConfigurationError):
        for _ in range(2000):
            start.look()
            time.sleep(0.01)

    assert (tmp_path / "a.log.old").read_text() == "x" * 11
    assert "slots" in (tmp_path / "a.log").read_text()


def test_shipped_topologies_say_why(tmp_path: Path) -> None:
    for name, path in known_topologies().items():
        text = path.read_text(encoding="utf-8")
        assert text.startswith("# "), name
        assert json.dumps(load_topology(name).description) in text


def test_page_of_topologies_names_every_key_of_their_files() -> None:
    page = (ROOT / "nodes/topologies/README.md").read_text(encoding="utf-8")
    told = page[page.index("## A file of your own") :]

    assert all(f"`{key}`" in told for key in (*blueprint._TOP, *blueprint._PEER))
