"""The parts of bench/chaos do what they say, and a short run of real peers ends well."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.chaos import judging
from bench.chaos.faults import KINDS, Fault, Nemesis
from bench.chaos.relay import Relay, free_port

ROOT = Path(__file__).resolve().parents[2]
HELD_S = 0.3
ARRIVES_S_MAX = 30.0


def row(call: str, result: int, asked_s: float, ended_s: float, **more: Any) -> Any:
    """Return a row as an agent prints it."""
    made = {"client": "a", "object": "hits", "call": call, "result": result}
    return {**made, "asked_s": asked_s, "ended_s": ended_s, **more}


def tally(rows: list[Any], total: int, staleness_s: float = 2.0) -> judging.Tally:
    (found,) = judging.tallies(rows, {"hits": total}, staleness_s)
    return found


# -- judging ---------------------------------------------------------------------------


def test_run_without_faults_has_nothing_to_complain_of() -> None:
    rows = [row("add", n, n, n + 0.5) for n in range(1, 6)]
    found = tally(rows, 5)

    assert (found.acknowledged, found.lost, found.doubled) == (5, 0, 0)
    assert found.longest_gap_s == 1.0
    assert judging.why_not_linearizable(rows) == ""


def test_add_that_two_clients_got_the_same_sum_for_is_lost() -> None:
    rows = [row("add", 1, 0, 1), row("add", 1, 2, 3)]

    assert tally(rows, 1).lost == 1
    assert "an add is lost" in judging.why_not_linearizable(rows)


def test_total_below_what_was_acknowledged_is_a_loss() -> None:
    assert tally([row("add", n, n, n + 0.5) for n in (1, 2, 3)], 2).lost == 1


def test_total_above_what_was_asked_is_a_doubling() -> None:
    rows = [
        row("add", 1, 0, 1),
        row("add", 0, 2, 3, error="unavailable"),
        row("add", 0, 2, 3, error="storage_full"),
        row("read", 3, 4, 5),
    ]

    found = tally(rows, 3)
    assert (found.failed, found.unknown, found.doubled) == (1, 1, 1)
    assert "an add was done twice" in judging.why_not_linearizable(rows)
    assert tally(rows, 2).doubled == 0


def test_mark_that_is_missing_moved_or_there_twice_is_amiss() -> None:
    rows = [row("add", n, n, n, mark=f"m{n}") for n in (1, 2)]

    assert judging.marks_amiss(rows, ["m1", "m2", "unheard"], "hits") == []
    assert judging.marks_amiss(rows, ["m2", "m1"], "hits") == [
        "m1 is not at 1", "m2 is not at 2",
    ]  # fmt: skip
    assert judging.marks_amiss(rows, ["m1", "m2", "m1"], "hits") == [
        "m1 is there twice"
    ]


def test_read_that_may_be_old_has_the_age_of_the_first_number_it_missed() -> None:
    rows = [row("add", n, n, n + 0.5) for n in (1, 2, 3)]
    rows += [
        row("stale", 1, 5.0, 5.1, client="b"),
        row("stale", 3, 6.0, 6.1, client="b"),
    ]

    found = tally(rows, 3)
    assert (found.stale_reads, found.too_old, found.oldest_s) == (2, 1, 2.5)
    assert found.went_back == 0
    assert judging.why_not_linearizable(rows) == ""


def test_read_below_what_the_same_client_saw_went_back() -> None:
    rows = [row("stale", 2, 1.0, 1.1), row("stale", 1, 2.0, 2.1)]

    assert tally(rows, 2).went_back == 1
    assert tally([rows[0], {**rows[1], "client": "b"}], 2).went_back == 0


def test_takeover_ends_with_the_first_add_that_the_old_leader_did_not_answer() -> None:
    fault = Fault("kill", ("one",), 10.0)
    fault.end_s, fault.led = 20.0, ("hits",)
    rows = [
        row("add", 1, 9.9, 10.05, peer="one"),  # was on its way
        row("add", 3, 13.0, 13.1, peer="two"),
        row("add", 2, 9.9, 12.5, peer="two"),
    ]

    (found,) = judging.takeovers(rows, [fault])
    assert found.took_s == 2.5
    assert judging.takeovers(rows[:1], [fault]) == []


# -- faults ----------------------------------------------------------------------------


class QuietPeer:
    """A peer that faults cannot hurt."""

    def __init__(self, name: str) -> None:
        self.name = name

    def is_ready(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class Groups:
    """Two groups of three over five peers."""

    def leaders(self) -> dict[str, str]:
        return {"x": "p0", "y": "p4"}

    def voters(self) -> dict[str, frozenset[str]]:
        return {"x": frozenset(("p0", "p1", "p2")), "y": frozenset(("p2", "p3", "p4"))}


@pytest.mark.parametrize("is_cruel", [False, True])
def test_only_the_cruel_hit_more_than_a_minority(is_cruel: bool) -> None:
    peers: Any = [QuietPeer(f"p{n}") for n in range(5)]
    relay: Any = QuietPeer("relay")
    nemesis = Nemesis(
        peers,
        relay,
        Groups(),
        random.Random(3),
        ["client-0"],
        kinds=list(KINDS),
        is_cruel=is_cruel,
    )
    worst, kinds = 0, set()
    for turn in range(20_000):
        nemesis.turn(1.0 + turn * 0.05)
        down = {n for one in nemesis._active for n in one.impaired}
        worst = max(worst, *(len(down & v) for v in Groups().voters().values()))
    assert nemesis.end_all(2000.0)
    kinds = {one.kind for one in nemesis.faults}

    assert len(nemesis.faults) > 50
    assert kinds == set(KINDS)
    assert worst == 1 if not is_cruel else worst > 1


def test_leader_is_set_apart_from_a_group_that_it_leads() -> None:
    """Its objects count as led by nobody where it hears no majority of their group."""
    peers: Any = [QuietPeer(f"p{n}") for n in range(5)]
    relay: Any = QuietPeer("relay")
    nemesis = Nemesis(
        peers, relay, Groups(), random.Random(3), [], kinds=["apart"], is_cruel=False
    )
    for turn in range(5_000):
        nemesis.turn(1.0 + turn * 0.05)
    led = {fault.led: fault.names for fault in nemesis.faults if fault.led}

    assert led == {("x",): ("p0", "p1", "p2"), ("y",): ("p4", "p2", "p3")}


# -- relay -----------------------------------------------------------------------------


@pytest.fixture
def relay() -> Iterator[Relay]:
    made = Relay()
    yield made
    made.close()


@pytest.mark.net
@pytest.mark.slow
def test_cut_holds_what_is_sent_and_heal_lets_it_through(relay: Relay) -> None:
    relay.know(os.getpid(), "me")
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as listener:
        address = relay.serve("other", port).rpartition(":")[2]
        relay.open("other")
        with socket.create_connection(("127.0.0.1", int(address))) as dialled:
            accepted, _ = listener.accept()
            with accepted:
                for end in (dialled, accepted):
                    end.settimeout(ARRIVES_S_MAX)
                dialled.sendall(b"1")
                assert accepted.recv(10) == b"1"

                relay.cut("me", "other")
                dialled.sendall(b"2")
                accepted.sendall(b"a")
                assert dialled.recv(10) == b"a", "the other direction is open"
                accepted.settimeout(HELD_S)
                with pytest.raises(TimeoutError):
                    accepted.recv(10)

                accepted.settimeout(ARRIVES_S_MAX)
                relay.heal("me", "other")
                assert accepted.recv(10) == b"2"


@pytest.mark.net
@pytest.mark.slow
def test_end_of_a_connection_is_seen_across_the_relay(relay: Relay) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as listener:
        address = relay.serve("other", port).rpartition(":")[2]
        relay.open("other")
        with socket.create_connection(("127.0.0.1", int(address))) as dialled:
            dialled.settimeout(ARRIVES_S_MAX)
            listener.accept()[0].close()
            assert dialled.recv(10) == b""


@pytest.mark.net
@pytest.mark.slow
def test_peer_that_is_down_is_refused(relay: Relay) -> None:
    address = ("127.0.0.1", int(relay.serve("other", free_port()).rpartition(":")[2]))
    for _ in range(2):
        relay.open("other")
        socket.create_connection(address).close()
        relay.shut("other")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)


# -- a run -----------------------------------------------------------------------------


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.timeout(300)
def test_short_run_of_real_peers_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["--minutes", "0.25", "--peers", "4", "--clients", "3", "--objects", "2"]
    words += ["--seed", "11", "--json", "--out", str(out)]

    done = subprocess.run(
        [sys.executable, "-m", "bench.chaos", *words],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout)
    assert summary["is_linearizable"]
    assert summary["acknowledged"] > 50
    assert sum(summary["faults"].values()) >= 1
    rows = (out / "history.jsonl").read_text().splitlines()
    assert summary["stale_reads"] > 0
    assert {one["object_name"] for one in summary["objects"]} == {
        "counter-0", "counter-1", "journal", "witnessed-0", "witnessed-1",
    }  # fmt: skip
    # Each object is read once more at the end.
    assert len(rows) == summary["operations"]
    assert (out / "timeline.png").stat().st_size > 10_000
