"""A move that is cut short at every step: one owner afterwards, and an exact count.

The move is played once to learn when each step happens; then the same history is played
again for each step, up to right before or right after it, and somebody dies there.

Source: design section 7 (move); reliability.md 3.4 R8.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from activestore import remote
from activestore.core.location import Place
from activestore.core.register import Register
from activestore.errors import BusyError
from activestore.ids import PeerId
from activestore.peer import moving
from activestore.peer.shipping import register_row
from activestore.storage.engine import Change
from activestore.testing import Simulation
from activestore.wire.replicas import Ballot, Config
from tests.simulation.clusters import (
    COUNTER,
    Mover,
    Owners,
    Player,
    check_counts,
    has_object,
    join,
    settle,
)
from tests.simulation.models import Counter

SEED = 3
# The source is at home in the first case and a guest's peer in the second.
SOURCE, TARGET, OTHER = "peer-1", "peer-2", "peer-3"
STEPS = (
    "install sent", "install committed", "give committed", "switch sent",
    "switch committed",
)  # fmt: skip
# "Right before" and "right after" in simulated seconds: less than anything takes.
BESIDE_S = 1e-9
DOWN_S = {"soon": 0.5, "late": 20.0}
CALLS, PAUSE_S = 30, 0.002
# A move is looked at from so long before it to so long after it, in simulated seconds.
AROUND_S = 0.003
# How many of the moments of a move somebody dies at.
MOMENTS = int(os.environ.get("ACTIVESTORE_SEEDS", "20"))


class Move(NamedTuple):
    """One history up to the moment at which the move is asked for."""

    sim: Simulation
    object_id: Any
    players: list[Player]
    mover: Mover


def begin(sim: Simulation) -> Move:
    """Have an object at the source, players that add to it, and order its move soon."""
    join(sim)
    # Its home is elsewhere: home, source and target are three.
    counter = sim.client(OTHER).create(COUNTER)
    object_id = remote.id_of(counter)
    assert object_id is not None
    sim.client(OTHER).move(object_id, SOURCE)
    settle(sim)
    Owners(sim, [object_id])
    players = [
        Player(sim, names, [object_id], is_direct=names[0] != OTHER)
        for names in ([SOURCE, OTHER], [TARGET, OTHER], [OTHER])
    ]
    mover = Mover(sim, [OTHER], [object_id], [TARGET])
    for player in players:
        sim.spawn(player.play, CALLS, PAUSE_S)
    sim.spawn(mover.play, 1, 0.02)
    return Move(sim, object_id, players, mover)


def times_of(move: Move) -> dict[str, float]:
    """Play the move undisturbed; return when each of its steps happens."""
    sim, found = move.sim, {}

    def note(step: str) -> None:
        found[step] = sim.now_s

    source, target = sim.peers[SOURCE], sim.peers[TARGET]
    ask = source.loop.relays.ask

    def asking(peer_id: Any, operation: str, *args: Any, **kwargs: Any) -> None:
        if operation in {"install", "switch"}:
            note(f"{operation} sent")
        ask(peer_id, operation, *args, **kwargs)

    def committing(
        engine: Any, steps: dict[tuple[str, bool], str]
    ) -> Callable[..., Any]:
        commit = engine.commit

        def do(changes: Any) -> Any:
            for row in (row for change in changes for row in change.rows):
                step = steps.get((row.kind, row.value is not None))
                if step is not None:
                    note(step)
            return commit(changes)

        return do

    source.loop.relays.ask = asking  # type: ignore[method-assign]
    source.engine.commit = committing(  # type: ignore[method-assign]
        source.engine, {("forward", True): "give committed"}
    )
    target.engine.commit = committing(  # type: ignore[method-assign]
        target.engine,
        {("staged", True): "install committed", ("staged", False): "switch committed"},
    )
    assert sim.run_until(lambda: move.mover.done_count == 1, timeout_s=10.0)
    settle(sim)
    assert has_object(target, move.object_id)
    return found


@pytest.fixture(scope="module")
def times() -> dict[str, float]:
    with new_simulation() as sim:
        return times_of(begin(sim))


def new_simulation() -> Simulation:
    return Simulation(SEED, peers=4, classes=[Counter])


def kill(move: Move, victim: str, down_s: float) -> None:
    """End the source, the target or the client that ordered the move."""
    if victim == "client":
        move.mover.client.crash()
        return
    name = {"source": SOURCE, "target": TARGET}[victim]
    move.sim.crash(name)
    move.sim.agenda.later(down_s, lambda: move.sim.restart(name))


def end(move: Move, down_s: float) -> None:
    """Let everybody come back and end; assert what must hold then."""
    sim = move.sim
    sim.run(down_s + 1.0)
    calls = CALLS * len(move.players)

    def is_over() -> bool:
        return calls == sum(
            len(player.values[move.object_id]) + player.unsure[move.object_id]
            for player in move.players
        )

    assert sim.run_until(is_over, timeout_s=300.0)
    check_counts(sim, move.players, [move.object_id], list(sim.peers))


def test_every_step_of_a_move_happens_once_in_order(times: dict[str, float]) -> None:
    assert sorted(times, key=lambda step: times[step]) == list(STEPS)


@pytest.mark.parametrize("down", list(DOWN_S))
@pytest.mark.parametrize("victim", ["source", "target", "client"])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_object_has_one_owner_after_a_death_beside_a_step(
    times: dict[str, float], step: str, moment: str, victim: str, down: str
) -> None:
    at_s = times[step] + (BESIDE_S if moment == "after" else -BESIDE_S)
    with new_simulation() as sim:
        move = begin(sim)
        sim.agenda.at(at_s, lambda: kill(move, victim, DOWN_S[down]))
        end(move, DOWN_S[down])


def moments_of(times: dict[str, float]) -> list[float]:
    """Return when anything happens anywhere from shortly before the move to its end."""
    found = []
    with new_simulation() as sim:
        begin(sim)
        while sim.now_s < times["switch committed"] + AROUND_S:
            count = sim.agenda.count
            sim.run_until(lambda count=count: sim.agenda.count > count, timeout_s=1.0)
            if sim.now_s > times["install sent"] - AROUND_S:
                found.append(sim.now_s)
    return sorted(set(found))


@pytest.mark.slow
@pytest.mark.scaled
@pytest.mark.parametrize("victim", ["source", "target"])
def test_object_has_one_owner_after_a_death_at_any_moment_of_a_move(
    times: dict[str, float], victim: str
) -> None:
    """Between any two things that happen anywhere from the order to the end."""
    moments = moments_of(times)
    assert len(moments) > len(STEPS)
    for at_s in moments[:: max(1, len(moments) // MOMENTS)]:
        with new_simulation() as sim:
            move = begin(sim)
            sim.agenda.at(
                at_s + BESIDE_S, lambda move=move: kill(move, victim, DOWN_S["soon"])
            )
            end(move, DOWN_S["soon"])


def test_requests_beyond_those_that_may_wait_for_a_copy_are_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They were dropped without a word, and their clients waited for nothing."""
    monkeypatch.setattr(moving, "PARKED_MAX", 2)
    with Simulation(SEED, peers=2, classes=[Counter]) as sim:
        join(sim)
        object_id = remote.id_of(sim.client("peer-1").create(COUNTER))
        target = sim.peers["peer-2"].loop
        target.location.staged[object_id] = Place(sim.peers["peer-1"].peer_id, 2)
        add = sim.client("peer-2").get(object_id).add.options(direct=False)
        for _ in range(2):
            add.submit(1)

        with pytest.raises(BusyError, match="2 requests wait for its move"):
            add(1)


def test_register_that_a_full_disk_kept_goes_with_the_object() -> None:
    """With it the peer would lead, at its next start, what has long been elsewhere."""
    with Simulation(SEED, peers=3, classes=[Counter]) as sim:
        join(sim)
        client = sim.client(OTHER)
        counter = client.create(COUNTER, replicas=2)
        assert counter.add(3) == 3
        object_id = remote.id_of(counter)
        assert object_id is not None
        client.replicate(object_id, 1)
        settle(sim)
        (holder,) = (one for one in sim.peers.values() if has_object(one, object_id))
        me = PeerId(holder.peer_id)
        kept = Register(Ballot(2, me), Ballot(2, me), 5, Config(5, (me,)))
        rows = (register_row(object_id, kept),)
        holder.engine.commit([Change(object_id, is_copy=True, rows=rows)])

        client.move(object_id, TARGET if holder.name != TARGET else SOURCE)
        sim.crash(holder.name)
        sim.restart(holder.name)
        settle(sim)

        assert client.get(object_id).add(1) == 4
        assert holder.engine.row("register", object_id) is None
        assert holder.loop.replicating.core.register_of(object_id) is None
