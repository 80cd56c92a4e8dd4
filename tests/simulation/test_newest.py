"""Which code of a class is the newest: all peers find the same answer, and fetch it.

Source: issue 3; design section 4, "Publishing a changed class".
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from activestore.objects.packages import digest_of_archive
from activestore.peer import publishing
from activestore.testing import Simulation
from activestore.wire import values
from tests.simulation.models import Counter

COUNTER = "tests.simulation.models.Counter"


def publish(sim: Simulation, peer: str, code: bytes, **changes: Any) -> bytes:
    """Publish Counter at one peer, as another archive; return its revision."""
    loop = sim.peers[peer].loop
    interface = {**loop.classes.interface_of(COUNTER), **changes}
    digest = digest_of_archive(code)
    (record,) = publishing.keep(
        loop.storage.engine, digest, code, [interface], loop.newest.stamp_after
    )
    loop.step(loop.classes.add(record))
    return digest


def revisions(sim: Simulation) -> dict[str, bytes | None]:
    """Return the revision that each peer that is up runs."""
    return {
        name: peer.loop.classes.revision_of(COUNTER)
        for name, peer in sim.peers.items()
        if peer.is_up
    }


def is_everywhere(sim: Simulation, revision: bytes) -> bool:
    return set(revisions(sim).values()) == {revision}


def test_code_that_is_published_at_one_peer_reaches_all() -> None:
    with Simulation(1, peers=5, classes=[Counter]) as sim:
        sim.run(3.0)

        new = publish(sim, "peer-2", b"new")

        assert sim.run_until(lambda: is_everywhere(sim, new), timeout_s=5.0)


def test_code_that_was_the_newest_before_is_so_again() -> None:
    with Simulation(1, peers=3, classes=[Counter]) as sim:
        sim.run(3.0)
        for code in (b"first", b"second", b"first"):
            revision = publish(sim, "peer-1", code)
            assert sim.run_until(
                lambda revision=revision: is_everywhere(sim, revision), timeout_s=5.0
            )


def test_publisher_whose_clock_is_behind_is_newer_than_what_it_has_seen() -> None:
    with Simulation(1, peers=3, classes=[Counter]) as sim:
        sim.set_clock("peer-1", skew_s=3600.0)
        sim.run(3.0)
        ahead = publish(sim, "peer-1", b"ahead")
        assert sim.run_until(lambda: is_everywhere(sim, ahead), timeout_s=5.0)

        later = publish(sim, "peer-3", b"later")

        assert sim.run_until(lambda: is_everywhere(sim, later), timeout_s=5.0)


def test_two_sides_of_a_partition_agree_once_it_heals() -> None:
    with Simulation(1, peers=4, classes=[Counter]) as sim:
        sim.run(3.0)
        sim.partition(["peer-1", "peer-2"], ["peer-3", "peer-4"])
        publish(sim, "peer-1", b"one side")
        sim.run(1.0)
        later = publish(sim, "peer-3", b"other side")
        sim.run(5.0)
        assert len(set(revisions(sim).values())) == 2

        sim.heal()

        assert sim.run_until(lambda: is_everywhere(sim, later), timeout_s=120.0)


def test_peer_that_was_away_learns_of_it_later() -> None:
    """Gossip is over by then: two peers compare what they know."""
    with Simulation(1, peers=4, classes=[Counter]) as sim:
        sim.run(3.0)
        sim.crash("peer-4")
        sim.run(1.0)
        new = publish(sim, "peer-1", b"new")
        sim.run(300.0)

        sim.restart("peer-4")

        assert sim.run_until(lambda: is_everywhere(sim, new), timeout_s=60.0)


def test_code_outlives_the_peer_that_published_it() -> None:
    """Others have it by then, and it is not asked of the publisher alone."""
    with Simulation(1, peers=4, classes=[Counter]) as sim:
        sim.run(3.0)
        sim.pause("peer-4")
        sim.run(0.1)
        new = publish(sim, "peer-1", b"new")
        sim.run(3.0)
        sim.crash("peer-1")
        sim.resume("peer-4")

        assert sim.run_until(lambda: is_everywhere(sim, new), timeout_s=90.0)


def test_code_that_cannot_run_here_leaves_the_old_one_in_place() -> None:
    with Simulation(1, peers=2, classes=[Counter]) as sim:
        sim.run(3.0)
        before = revisions(sim)["peer-2"]
        sim.peers["peer-1"].loop.classes._resources = {"gpu": 4.0}

        publish(sim, "peer-1", b"new", resources={"gpu": 4.0})
        sim.run(60.0)

        assert revisions(sim)["peer-2"] == before
        assert sim.peers["peer-2"].loop.classes.missing_for(COUNTER) is None


def test_idle_peers_ask_each_other_little() -> None:
    with Simulation(1, peers=3, classes=[Counter]) as sim:
        sim.run(10.0)
        asked: list[str] = []
        for peer in sim.peers.values():
            handle = peer.loop.request_handler

            def count(origin: Any, message: Any, handle: Any = handle) -> None:
                asked.append(message.operation)
                handle(origin, message)

            peer.loop.request_handler = count
        sim.run(300.0)

        assert 3 * 300 / 45 - 5 < asked.count("newest") < 3 * 300 / 15


@pytest.mark.parametrize(
    "told",
    [
        [["c"]], [["c", b"short", 1.0, b"peer-1"]], [[1, bytes(16), 1.0, b"peer-1"]],
        [["c", bytes(16), float("inf"), b"peer-1"]],
        [["c", bytes(16), float("nan"), b"peer-1"]],
        [["c" * 201, bytes(16), 1.0, b"peer-1"]], "classes", [[]] * 1025,
    ],
)  # fmt: skip
def test_malformed_classes_are_refused_and_change_nothing(told: Any) -> None:
    from activestore.errors import RemoteProtocolError

    with Simulation(1, peers=1, classes=[Counter]) as sim:
        newest = sim.peers["peer-1"].loop.newest
        before = newest.digest()

        with pytest.raises(RemoteProtocolError):
            newest.answer({"classes": told})

        assert newest.digest() == before
        values.encode(newest.answer({}))


def test_record_of_a_class_says_when_it_was_published() -> None:
    with Simulation(1, peers=1, classes=[Counter]) as sim:
        loop = sim.peers["peer-1"].loop
        record = loop.classes.record_of(COUNTER)
        future = dataclasses.replace(record, published_s=record.published_s + 1e6)
        loop.step(loop.classes.add(future))

        assert loop.newest.stamp_after([COUNTER, "other"]) > future.published_s
        assert loop.newest.stamp_after(["other"]) < future.published_s
