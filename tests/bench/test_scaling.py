"""The scripts of bench/scaling measure what they say, at small sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.scaling import idle, lookup, run, starved


@pytest.mark.parametrize("peers_count", [2, 10])
def test_lookup_finds_every_object_in_at_most_two_hops(peers_count: int) -> None:
    cost = lookup.measure(2000, peers_count, lookups=400)

    assert cost.hops_max <= 2
    assert cost.moved_hops_max == min(2, peers_count - 1)
    assert cost.hinted_hops_max == 1
    assert cost.bytes_max == cost.hops_max * lookup.relayed_bytes(b"o" * 16)
    assert cost.state_bytes >= cost.formula_bytes


def test_exceptions_of_a_peer_grow_with_objects_and_shrink_with_peers() -> None:
    few, many = (lookup.measure(n, 10, lookups=50) for n in (2000, 20_000))
    spread = lookup.measure(20_000, 50, lookups=50)

    assert 5 <= many.state_bytes / few.state_bytes <= 20
    assert 2.5 <= many.state_bytes / spread.state_bytes <= 10


def test_idle_traffic_is_that_of_a_probe_and_its_answer_a_second() -> None:
    lan = idle.measure("lan", 5, warm_up_s=60.0, measured_s=60.0)
    edge = idle.measure("edge", 5, warm_up_s=60.0, measured_s=60.0)

    assert 2.0 <= lan.messages_per_s <= 2.5
    assert 0.4 <= edge.messages_per_s <= 0.6
    assert edge.bytes_per_s < lan.bytes_per_s / 3


def test_small_run_writes_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(idle.measure, "__kwdefaults__",
                        {"warm_up_s": 1.0, "measured_s": 5.0})  # fmt: skip

    run.run(tmp_path, peers_max=2, objects_max=1000)

    names = {path.name for path in tmp_path.iterdir()}
    stems = ("scaling-idle", "scaling-lookup")
    assert names == {f"{stem}{end}" for stem in stems for end in (".md", ".png")}
    assert "| lan | 2 |" in (tmp_path / "scaling-idle.md").read_text()


def test_peer_that_stands_still_too_long_is_given_up_once_a_stretch() -> None:
    hasty = starved.LAN._replace(suspicion_mult=1)

    assert starved.false_deaths(hasty, 8, hours=0.1) >= 1
    times = starved.detections_s(hasty, 8, 10)
    assert 0.5 <= times[0] <= times[-1] <= 13.2
