"""What a simulated cluster does in one situation each: calls, faults, time, failures."""

from __future__ import annotations

import threading

import pytest

from activestore import remote
from activestore.errors import (
    ActiveStoreError,
    AliasNotFoundError,
    DeadlineExceededError,
    ExecutorCrashedError,
    InvalidRequestError,
    ObjectNotFoundError,
    ReadonlyViolationError,
    StorageFullError,
    UnavailableError,
)
from activestore.testing import (
    DiskSpeed,
    ExecutorSpeed,
    Latency,
    LinkQuality,
    PeerSettings,
    Simulation,
    seeds,
)
from activestore.testing.peers import SimPeer
from tests.simulation.models import Counter, Relay

COUNTER = f"{Counter.__module__}.Counter"
RELAY = f"{Relay.__module__}.Relay"


def simulation(seed: int = 1, **options: object) -> Simulation:
    """Return a simulation of one peer, or of what `options` say."""
    return Simulation(
        seed,
        **{"peers": 1, "classes": [Counter, Relay], **options},  # type: ignore[arg-type]
    )


def slow(method: str, run_s: float, **settings: object) -> PeerSettings:
    """Return peers on which a method takes this long."""
    speed = ExecutorSpeed(runs={method: Latency(run_s, run_s)})
    return PeerSettings(executor=speed, **settings)  # type: ignore[arg-type]


# -- calls -----------------------------------------------------------------------------


def test_object_is_created_called_read_and_found() -> None:
    with simulation() as sim:
        counter = sim.create(COUNTER, 5, alias="hits")

        assert counter.add(2) == 7
        assert counter.count == 7
        assert sim.get("hits") is counter
        assert [row["alias"] for row in sim.store.objects()] == ["hits"]


def test_local_object_becomes_remote_in_place() -> None:
    with simulation() as sim:
        sim.client()
        counter = Counter(3)
        counter.make_persistent(alias="mine")

        assert counter.add() == 4
        assert Counter.get_by_alias("mine") is counter


def test_field_is_set_and_object_deleted() -> None:
    with simulation() as sim:
        counter = sim.create(COUNTER)
        counter.count = 9
        assert counter.peek() == 9
        sim.store.delete(counter)

        with pytest.raises(ObjectNotFoundError):
            counter.peek()


def test_method_calls_another_object_and_waits_for_it() -> None:
    with simulation() as sim:
        counter = sim.create(COUNTER)
        relay = sim.create(RELAY, counter)

        assert relay.add(3) == 3
        assert relay.forwarded == 1


def test_method_makes_an_object() -> None:
    with simulation() as sim:
        relay = sim.create(RELAY, sim.create(COUNTER))
        made = relay.make()

        assert made.add(1) == 8
        assert relay.add(1) == 9


def test_call_chain_comes_back_to_its_object() -> None:
    with simulation() as sim:
        relay = sim.create(RELAY, sim.create(COUNTER))

        assert relay.call_myself(3) == 4
        assert relay.forwarded == 4


def test_generator_yields_its_items_with_credit() -> None:
    """More items than a client grants at once."""
    with simulation() as sim:
        counter = sim.create(COUNTER)

        assert list(counter.numbers.stream(100)) == list(range(100))
        assert counter.count == 100


def test_method_that_raises_leaves_no_trace() -> None:
    with simulation() as sim:
        counter = sim.create(COUNTER)
        with pytest.raises(ValueError, match="never mind"):
            counter.fail_after_adding()

        assert counter.peek() == 0


def test_readonly_method_that_assigns_is_told_so() -> None:
    with simulation() as sim, pytest.raises(ReadonlyViolationError):
        sim.create(COUNTER).cheat()


def test_local_object_is_not_guarded_afterwards() -> None:
    counter = Counter()
    counter.cheat()

    assert counter.count == 1


def test_submitted_calls_run_while_others_wait() -> None:
    with simulation(settings=slow("add_slowly", 1.0, executors=3)) as sim:
        counters = [sim.create(COUNTER) for _ in range(3)]
        begin_s = sim.now_s
        futures = [counter.add_slowly.submit(2) for counter in counters]

        assert [future.result() for future in futures] == [2, 2, 2]
        assert sim.now_s - begin_s < 1.5


# -- time ------------------------------------------------------------------------------


def test_time_passes_only_when_it_is_let_pass() -> None:
    with simulation() as sim:
        assert sim.now_s == 0.0
        sim.run(3600.0)
        assert sim.now_s == 3600.0


def test_method_takes_the_time_that_was_given() -> None:
    with simulation(settings=slow("Counter.add_slowly", 2.5)) as sim:
        counter = sim.create(COUNTER)
        begin_s = sim.now_s
        counter.add_slowly()

        assert 2.5 < sim.now_s - begin_s < 2.6


def test_call_over_its_deadline_is_interrupted_and_leaves_no_trace() -> None:
    with simulation(settings=slow("add_slowly", 10.0)) as sim:
        counter = sim.create(COUNTER)
        with pytest.raises(DeadlineExceededError):
            counter.add_slowly.options(timeout_s=0.5)()

        assert sim.now_s < 1.0
        assert counter.peek() == 0


def test_cancelled_call_leaves_no_trace() -> None:
    with simulation(settings=slow("add_slowly", 10.0)) as sim:
        counter = sim.create(COUNTER)
        future = counter.add_slowly.submit()
        sim.run(0.5)

        assert future.cancel()
        assert counter.add() == 1


def test_peers_whose_clocks_drift_serve_their_clients() -> None:
    with simulation(peers=2) as sim:
        sim.set_clock("peer-1", drift=0.1, skew_s=-3600.0)
        sim.set_clock("peer-2", drift=-0.1)
        stores = [sim.client("peer-1"), sim.client("peer-2")]
        counters = [store.create(COUNTER) for store in stores]
        sim.run(100.0)

        assert [counter.add() for counter in counters] == [1, 1]
        clocks = [peer.clock for peer in sim.peers.values()]
        before_s = [clock.monotonic_s() for clock in clocks]
        sim.run(10.0)
        passed_s = [c.monotonic_s() - s for c, s in zip(clocks, before_s, strict=True)]
        assert passed_s == pytest.approx([11.0, 9.0])


# -- crashes ---------------------------------------------------------------------------


def test_acknowledged_add_survives_a_crash() -> None:
    with simulation() as sim:
        counter = sim.create(COUNTER, alias="hits")
        counter.add(4)
        sim.crash("peer-1")
        sim.run(2.0)
        sim.restart("peer-1")

        assert counter.peek() == 4
        assert sim.client().get("hits").add() == 5


def test_peer_without_its_disk_is_another_peer() -> None:
    with simulation() as sim:
        sim.create(COUNTER, alias="hits")
        before = sim.peers["peer-1"].peer_id
        sim.crash("peer-1", disk=False)
        sim.restart("peer-1")

        assert sim.peers["peer-1"].peer_id != before
        with pytest.raises(AliasNotFoundError):
            sim.client().get("hits")


@pytest.mark.parametrize("seed", seeds(20))
def test_call_that_was_sent_before_a_crash_counts_once(seed: int) -> None:
    """Wherever in the call the crash falls: before, in, or just after the commit."""
    with simulation(seed) as sim:
        counter = sim.create(COUNTER)
        future = counter.add.submit()
        sim.run(sim.rng.uniform(0.0, 0.004))
        sim.restart("peer-1")

        assert future.result() == 1
        assert counter.peek() == 1


def test_stopped_peer_ends_running_calls_first() -> None:
    with simulation(settings=slow("add_slowly", 1.0)) as sim:
        counter = sim.create(COUNTER)
        future = counter.add_slowly.submit(5)
        sim.run(0.1)
        sim.stop("peer-1")
        sim.run(2.0)

        assert future.done()
        assert not sim.peers["peer-1"].is_up
        sim.restart("peer-1")
        assert counter.peek() == 5


def test_call_whose_executor_dies_is_run_again() -> None:
    with simulation(settings=slow("add_slowly", 1.0)) as sim:
        counter = sim.create(COUNTER)
        for _ in range(3):
            counter.add_slowly()
        future = counter.add_slowly.submit()
        sim.run(0.5)
        assert sim.crash_executor("peer-1")

        assert future.result() == 4


def test_call_that_kills_each_executor_is_refused_in_the_end() -> None:
    with simulation(settings=slow("add_slowly", 1.0)) as sim:
        counter = sim.create(COUNTER)
        future = counter.add_slowly.submit()
        for _ in range(20):
            sim.run(0.4)
            peer = sim.peers["peer-1"]
            if any(
                slot.queue
                for e in peer.core.pool.executors.values()
                for slot in e.slots
            ):
                sim.crash_executor("peer-1")

        with pytest.raises(ExecutorCrashedError):
            future.result()


# -- disks -----------------------------------------------------------------------------


def test_refused_commit_is_told_and_leaves_no_trace() -> None:
    with simulation() as sim:
        counter = sim.create(COUNTER)
        sim.refuse_commits("peer-1", 1)
        with pytest.raises(StorageFullError):
            counter.add()

        assert counter.add() == 1


def test_peer_whose_disk_fails_stops() -> None:
    with simulation() as sim:
        counter = sim.create(COUNTER)
        sim.fail_disk("peer-1")
        future = counter.add.submit()
        sim.run(1.0)

        assert not sim.peers["peer-1"].is_up
        assert "disk has failed" in sim.peers["peer-1"].failure
        sim.restart("peer-1")
        assert future.result() == 1


def test_slow_disk_makes_slow_answers() -> None:
    disk = DiskSpeed(commit=Latency(0.5, 0.5))
    with simulation(settings=PeerSettings(disk=disk)) as sim:
        counter = sim.create(COUNTER)
        begin_s = sim.now_s
        counter.add()

        assert sim.now_s - begin_s >= 0.5


# -- networks --------------------------------------------------------------------------


def test_call_across_a_partition_fails_after_the_timeout() -> None:
    with simulation() as sim:
        client = sim.client(timeout_s=10.0)
        counter = client.create(COUNTER)
        sim.partition("peer-1")
        begin_s = sim.now_s
        with pytest.raises(UnavailableError):
            counter.add()
        assert 9.0 < sim.now_s - begin_s < 12.0

        sim.heal()
        assert counter.peek() == 0


def test_answer_lost_in_a_one_way_partition_is_given_again() -> None:
    """The call ran; its retry after the heal must not run it again."""
    with simulation() as sim:
        client = sim.client()
        counter = client.create(COUNTER)
        sim.partition("peer-1", client.name, one_way=True)
        future = counter.add.submit()
        sim.run(12.0)  # The connection is given up, what it held is lost.
        assert not future.done()
        sim.heal()

        assert future.result() == 1
        assert counter.peek() == 1


def test_partition_that_is_short_only_delays() -> None:
    with simulation() as sim:
        client = sim.client()
        counter = client.create(COUNTER)
        sim.partition("peer-1", client.name)
        future = counter.add.submit()
        sim.run(1.0)
        assert not future.done()
        sim.heal("peer-1", client.name)

        assert future.result() == 1
        assert sim.network.connections_count == 1


@pytest.mark.parametrize("seed", seeds(10))
def test_broken_connections_are_made_again(seed: int) -> None:
    with simulation(seed) as sim:
        counter = sim.create(COUNTER)
        for number in range(5):
            future = counter.add.submit()
            sim.run(sim.rng.uniform(0.0, 0.003))
            sim.break_connections("peer-1")
            assert future.result() == number + 1


def test_paused_peer_goes_on_where_it_was() -> None:
    with simulation() as sim:
        counter = sim.create(COUNTER)
        sim.pause("peer-1")
        future = counter.add.submit()
        sim.run(4.0)
        assert not future.done()
        sim.resume("peer-1")

        assert future.result() == 1


def test_lost_packets_delay_and_lose_nothing() -> None:
    link = LinkQuality(Latency(0.01, 0.01), loss=0.3)
    with simulation(link=link) as sim:
        counter = sim.create(COUNTER)
        for _ in range(50):
            counter.add()

        assert counter.peek() == 50
        assert sim.now_s > 5.0


def test_distant_client_waits_longer() -> None:
    with simulation() as sim:
        near, far = sim.client(), sim.client()
        sim.set_link(far.name, "peer-1", min_s=0.2, mean_s=0.2)
        near.create(COUNTER, alias="hits")
        took_s = []
        for client in (near, far):
            counter = client.get("hits")
            begin_s = sim.now_s
            counter.add()
            took_s.append(sim.now_s - begin_s)

        assert took_s[0] < 0.01
        assert 0.4 <= took_s[1] < 0.5


def test_client_whose_peer_dies_goes_on_with_another() -> None:
    with simulation(peers=2) as sim:
        client = sim.client("peer-1", "peer-2")
        client.connect()
        sim.crash("peer-1")
        assert client.request("status")["name"] == "peer-2"

        assert client.create(COUNTER).add() == 1
        assert client.endpoint == sim.peers["peer-2"].endpoint


# -- clusters --------------------------------------------------------------------------


def test_peers_find_each_other_and_each_other_s_objects() -> None:
    with simulation(peers=3) as sim:
        sim.run(10.0)
        near, far = sim.client("peer-1"), sim.client("peer-3")
        counter = near.create(COUNTER)
        same = far.get(remote.id_of(counter))

        assert same.add(2) == 2
        assert far.create(RELAY, same).add(3) == 5


def test_dead_peer_is_noticed_and_taken_back() -> None:
    with simulation(peers=3) as sim:
        sim.run(10.0)
        assert living(sim) == {3}
        sim.crash("peer-2")
        sim.run(30.0)
        assert living(sim) == {2}
        sim.restart("peer-2")
        sim.run(30.0)

        assert living(sim) == {3}


def living(sim: Simulation) -> set[int]:
    """Return how many peers the peers that are up believe to live."""
    up = [peer for peer in sim.peers.values() if peer.is_up]
    return {len(list(peer.loop.cluster.membership.live())) for peer in up}


def test_peers_that_were_not_told_of_each_other_stay_alone() -> None:
    with simulation(peers=3, joined=False) as sim:
        sim.run(10.0)

        assert living(sim) == {1}


# -- programs and failures ---------------------------------------------------------------


def test_programs_run_in_turns() -> None:
    with simulation() as sim:
        sim.create(COUNTER, alias="hits")

        def add(times: int) -> int:
            counter = sim.client().get("hits")
            for _ in range(times):
                counter.add()
                sim.sleep(0.01)
            return times

        tasks = [sim.spawn(add, times) for times in (3, 4, 5)]
        sim.run(2.0)

        assert [task.value for task in tasks] == [3, 4, 5]
        assert sim.get("hits").peek() == 12


def test_error_of_a_program_ends_the_run() -> None:
    def fail() -> None:
        raise ValueError("in the program")

    with simulation() as sim:
        sim.spawn(fail)
        with pytest.raises(ValueError, match="in the program"):
            sim.run(1.0)


def test_only_the_test_lets_time_pass_for_all() -> None:
    with simulation() as sim:
        sim.spawn(sim.run, 1.0)
        with pytest.raises(InvalidRequestError, match="only the test itself"):
            sim.run(1.0)


def test_check_of_the_test_is_made_after_every_turn() -> None:
    counts: list[int] = []

    def check(peer: SimPeer) -> None:
        counts.append(len(peer.core.calls))
        assert len(peer.core.calls) < 3, "too many calls"

    with simulation(settings=slow("add_slowly", 1.0)) as sim:
        sim.checks.append(check)
        counter = sim.create(COUNTER)
        for _ in range(5):
            counter.add_slowly.submit()
        with pytest.raises(AssertionError, match="too many calls"):
            sim.run(1.0)
    assert len(counts) > 3


def test_history_says_what_was_asked_and_answered() -> None:
    with simulation() as sim:
        counter = sim.create(COUNTER)
        counter.add(2)
        with pytest.raises(ActiveStoreError):
            counter.cheat()

        adds = [done for done in sim.history if done.what == "add"]
        assert [(done.args, done.is_acknowledged) for done in adds] == [((2,), True)]
        assert not sim.history[-1].is_acknowledged
        assert isinstance(sim.history[-1].error, ReadonlyViolationError)


def test_failure_prints_the_command_that_replays_it(
    capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    with pytest.raises(AssertionError), simulation(seed=4711) as sim:
        sim.create(COUNTER)
        raise AssertionError("found something")

    told = capsys.readouterr().err
    assert f"ACTIVESTORE_SEED=4711 python -m pytest '{request.node.nodeid}'" in told
    assert "message client-1 peer-1" in told


def test_seed_of_the_environment_is_the_only_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ACTIVESTORE_SEED", raising=False)
    assert list(seeds(3, first=5)) == [5, 6, 7]
    monkeypatch.setenv("ACTIVESTORE_SEED", "4711")
    assert list(seeds(3)) == [4711]


def test_closed_simulation_leaves_no_thread() -> None:
    before = threading.active_count()
    with simulation(settings=slow("add_slowly", 100.0)) as sim:
        counter = sim.create(COUNTER)
        relay = sim.create(RELAY, counter)
        counter.add_slowly.submit()
        relay.add.submit()
        sim.spawn(sim.sleep, 1000.0)
        sim.run(1.0)

    assert threading.active_count() == before


@pytest.mark.parametrize("name", ["", "peer-2"])
def test_unknown_peer_is_named(name: str) -> None:
    with (
        simulation() as sim,
        pytest.raises(InvalidRequestError, match="there are peer-1"),
    ):
        sim.crash(name)


def test_unknown_node_is_named() -> None:
    with simulation() as sim, pytest.raises(InvalidRequestError, match="no node"):
        sim.partition("peer-1", "client-9")


def test_simulation_without_peers_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="needs a peer"):
        Simulation(1, peers=0)
