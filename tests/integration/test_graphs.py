"""Objects that know, call and make each other.

Source: design section 4 (refs, graphs), section 5 (re-entry, 32 levels, slots).
"""

from __future__ import annotations

import threading
import time

import pytest

from activestore.errors import (
    ActiveStoreError,
    AliasExistsError,
    BusyError,
    DeadlineExceededError,
    InvalidRequestError,
)

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(40)]


@pytest.fixture
def pair(shared):
    """Return two objects that know each other."""
    first, second = (shared.create("models.Node", name) for name in "ab")
    first.link(second)
    second.link(first)
    return first, second


def test_method_calls_another_object(pair):
    first, second = pair

    assert first.bump_other() == 1
    assert second.get_value() == 1


def test_chain_that_comes_back_runs_on_the_same_copy(pair):
    """A -> B -> A: what the inner call changed, the outer one sees and commits."""
    first, _ = pair

    assert first.there_and_back() == 102
    assert first.get_value() == 102


def test_recursion_of_thirty_levels_runs(pair):
    first, _ = pair

    assert first.descend(30) == 30


def test_recursion_beyond_the_limit_is_refused(pair):
    first, second = pair

    with pytest.raises(ActiveStoreError) as caught:
        first.descend(50)

    assert "32" in str(caught.value)
    assert first.bump() == 1
    assert second.bump() == 1


def test_object_that_calls_itself_through_the_store(shared):
    only = shared.create("models.Node", "self")
    only.link(only)

    assert only.there_and_back() >= 101
    assert only.descend(10) == 10


def test_two_objects_that_call_each_other_do_not_hang(pair):
    """Each holds itself and wants the other: success or a clear error, in time."""
    outcomes: list[object] = []

    def cross(node) -> None:
        try:
            outcomes.append(node.cross.options(timeout_s=8)(0.3))
        except ActiveStoreError as error:
            outcomes.append(error)

    started_s = time.monotonic()
    threads = [threading.Thread(target=cross, args=(node,)) for node in pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20.0)

    print(outcomes)
    assert time.monotonic() - started_s < 15.0
    assert len(outcomes) == 2
    assert all(isinstance(one, (int, ActiveStoreError)) for one in outcomes)
    assert [node.bump.options(timeout_s=5)(0) >= 0 for node in pair] == [True, True]


def test_two_objects_that_call_each_other_are_told_before_any_deadline(pair):
    """Without a deadline a crossing must end too."""
    outcomes: list[object] = []

    def cross(node) -> None:
        try:
            outcomes.append(node.cross(0.3))
        except ActiveStoreError as error:
            outcomes.append(error)

    threads = [
        threading.Thread(target=cross, args=(node,), daemon=True) for node in pair
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20.0)

    assert len(outcomes) == 2, "a deadlock that nobody breaks"
    assert all(isinstance(one, (int, BusyError)) for one in outcomes), outcomes


def test_object_made_in_a_method_and_kept_survives_a_kill(peer, store):
    parent = store.create("models.Node", "parent", alias="p")
    assert parent.spawn_kept("child") == 1

    peer.restart()
    parent = peer.connect().get("p")
    (child,) = parent.get_kept()

    assert child.get_name() == "child"
    assert child.bump(3) == 3
    assert child.get_other() is parent


def test_object_made_in_a_method_and_returned_is_persistent(peer, store):
    parent = store.create("models.Node", "parent")
    child = parent.spawn_returned("child")
    identity = repr(child).split()[-1].rstrip(">")

    assert child.bump() == 1
    peer.restart()

    again = peer.connect().get(identity)
    assert again.get_name() == "child"
    assert again.get_value() == 1


def test_graph_with_a_cycle_is_kept_whole(peer, store):
    from models import Node

    first, second, third = Node("1"), Node("2"), Node("3")
    first.other, second.other, third.other = second, third, first
    first.kept = [{"deep": (third, second)}]

    first.make_persistent(alias="first", store=store)
    peer.restart()
    store = peer.connect()
    again = store.get_for_class("first", Node)

    assert isinstance(again, Node)
    assert again.other.other.other is again
    deep = again.kept[0]["deep"]
    assert deep[0] is again.other.other
    assert deep[1] is again.other


def test_ref_resolves_to_the_same_python_object(shared):
    node = shared.create("models.Node", "n", alias="same-object")
    other = shared.create("models.Node", "o")
    other.link(node)

    assert other.get_other() is node
    assert shared.get("same-object") is node
    assert other.is_other(node) is True
    assert other.is_other(other) is False
    shared.delete(node)


def test_unpersisted_object_as_an_argument_becomes_persistent(shared):
    from models import Node

    holder = shared.create("models.Node", "holder")
    loose = Node("loose")

    holder.link(loose)

    assert loose.bump(2) == 2, "remote in place"
    assert holder.get_other() is loose
    with pytest.raises(InvalidRequestError):
        loose.make_persistent(store=shared)


def test_deadline_of_the_outer_call_ends_the_nested_one(pair):
    first, second = pair

    started_s = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        first.block_other.options(timeout_s=1)(3.0)

    assert time.monotonic() - started_s < 2.0
    assert first.bump.options(timeout_s=10)() == 1
    assert second.bump.options(timeout_s=10)() == 1


def test_cancelling_the_outer_call_cancels_the_nested_one(pair):
    first, second = pair
    future = first.block_other.submit(60.0)
    time.sleep(0.3)

    assert future.cancel()

    assert first.bump.options(timeout_s=10)() == 1
    assert second.bump.options(timeout_s=10)() == 1


def test_nested_call_from_a_thread_of_the_method_is_refused_clearly(pair):
    first, _ = pair

    assert first.bump_other_from_a_thread() == "InvalidRequestError"
    assert first.bump() == 1


def test_nested_change_stays_when_the_outer_method_raises(pair):
    """There are no transactions over several objects."""
    first, second = pair

    with pytest.raises(ValueError, match="after the nested call"):
        first.bump_other_and_raise()

    assert first.get_value() == 0
    assert second.get_value() == 1


def test_method_catches_what_a_nested_method_raised(pair):
    first, _ = pair

    assert first.catch_from_other().startswith("ValueError")


def test_method_reads_the_stream_of_another_object(shared, pair):
    first, _ = pair
    trainer = shared.create("models.Trainer")

    assert first.sum_stream(trainer, 100) == 4950


def test_method_calls_many_objects_at_once(shared):
    first = shared.create("models.Node", "first")
    others = [shared.create("models.Node", str(n)) for n in range(40)]

    assert first.fan_out(others) == [1] * 40


def test_method_persists_and_finds_by_alias(shared):
    node = shared.create("models.Node", "n")

    assert node.keep_by_alias("made-inside") == "by alias"
    assert shared.get("made-inside").get_name() == "by alias"
    shared.delete("made-inside")


def at_once(count: int, act) -> list[object]:
    """Run `act` in several threads at once; return results and errors."""
    barrier, outcomes = threading.Barrier(count), []

    def one() -> None:
        barrier.wait()
        try:
            outcomes.append(act())
        except ActiveStoreError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20.0)
    return outcomes


def test_object_made_persistent_by_many_threads_at_once_is_one(store):
    from models import Node

    root = Node("root")
    root.kept = [Node("leaf")]

    outcomes = at_once(6, lambda: root.make_persistent(store=store))

    assert outcomes.count(root) == 1
    refused = [one for one in outcomes if one is not root]
    assert len(refused) == 5
    assert all(isinstance(one, InvalidRequestError) for one in refused), refused
    assert len(list(store.objects())) == 2


def test_leaf_that_several_roots_share_is_one_when_threads_persist_them(store):
    from models import Node

    leaf = Node("leaf")
    roots = [Node(str(n), leaf) for n in range(6)]
    left = list(roots)

    outcomes = at_once(6, lambda: left.pop().make_persistent(store=store))

    assert sorted(map(repr, outcomes)) == sorted(map(repr, roots))
    assert len(list(store.objects())) == 7
    assert [root.get_other() is leaf for root in roots] == [True] * 6


def test_leaf_shared_by_batches_of_one_persist_is_one(store):
    from models import Node

    from activestore.client.persisting import PERSIST_BATCH

    leaf = Node("leaf")
    counts: list[int] = []

    many = [Node(str(n), leaf) for n in range(PERSIST_BATCH + 5)]
    store.persist(iter(many), progress=counts.append)

    assert len(list(store.objects())) == len(many) + 1
    assert counts[-1] == len(many) + 1
    assert many[0].get_other() is many[-1].get_other() is leaf


def test_loose_object_passed_by_many_threads_at_once_is_one(store):
    from models import Node

    holders = [store.create("models.Node", str(n)) for n in range(4)]
    loose, left = Node("loose"), list(holders)

    outcomes = at_once(4, lambda: left.pop().link(loose))

    assert outcomes == [None] * 4
    assert len(list(store.objects())) == 5
    assert all(holder.get_other() is loose for holder in holders)


def test_persist_that_fails_leaves_its_objects_free_for_another(store):
    from models import Node

    store.create("models.Node", alias="taken")
    node = Node("late")

    with pytest.raises(AliasExistsError):
        node.make_persistent(alias="taken", store=store)

    assert node.make_persistent(alias="free", store=store).get_name() == "late"
