"""Objects that move between real peers while they are called.

Source: design section 7 (move); issue 3, "It must hold".
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from activestore.errors import ObjectNotFoundError, UnavailableError

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(90)]


def id_of(proxy) -> str:
    return repr(proxy).split()[-1].rstrip(">")


def test_moved_object_is_the_same_object_there(cluster, models_file):
    _, (here, there) = cluster(2)
    for store in (here, there):
        store.publish(models_file)
    counter = here.create("models.Counter", 5, alias="c")
    counter.note("before")

    here.move(counter, "peer-1")

    assert here.locate(counter)["peer"] == "peer-1"
    assert counter.add(1) == 7
    assert counter.seen == ["before"]
    assert there.get(id_of(counter)).peek() == 7


def test_calls_during_moves_are_neither_lost_nor_doubled(cluster, models_file):
    _, stores = cluster(3)
    for store in stores:
        store.publish(models_file)
    counter = stores[0].create("models.Counter", 0)
    object_id = id_of(counter)
    done = threading.Event()
    counts = [0, 0, 0]

    def add(which: int) -> None:
        proxy = stores[which].get(object_id)
        while not done.is_set():
            proxy.add(1)
            counts[which] += 1

    threads = [threading.Thread(target=add, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for number in range(30):
        stores[number % 3].move(object_id, f"peer-{(number + 1) % 3}")
    done.set()
    for thread in threads:
        thread.join()

    assert counter.peek() == sum(counts)
    assert min(counts) > 0


def test_moving_to_nobody_says_who_is_known(cluster, models_file):
    _, (here, _) = cluster(2)
    here.publish(models_file)
    counter = here.create("models.Counter", 1)

    with pytest.raises(UnavailableError, match="known: peer-0, peer-1"):
        here.move(counter, "peer-9")

    assert counter.add(1) == 2


def test_place_of_a_moved_object_is_known_after_restarts(cluster, models_file):
    peers, (here, there) = cluster(2)
    for store in (here, there):
        store.publish(models_file)
    counter = here.create("models.Counter", 5)
    here.move(counter, "peer-1")

    for peer in peers:
        peer.restart()

    assert peers[0].connect().get(id_of(counter)).add(1) == 6


def test_drained_peer_leaves_everything_to_others(cluster, models_file, eventually):
    peers, (here, there) = cluster(2)
    for store in (here, there):
        store.publish(models_file)
    made = [here.create("models.Counter", n, replicas=1) for n in range(19)]
    made.append(here.create("models.Counter", 19, replicas=2))
    ids = [id_of(counter) for counter in made]

    told = here.request("drain", is_told_fewer=True)
    assert told == {"moved": 20, "fewer": 1}
    assert peers[0].wait() == 0

    assert [there.get(object_id).peek() for object_id in ids] == list(range(20))
    assert there.group(ids[-1]).wanted == 2


def test_peers_that_are_drained_at_once_do_not_fill_each_other(cluster, models_file):
    """Each once gave the other what it had, and both said that they were empty."""
    peers, stores = cluster(3)
    for store in stores:
        store.publish(models_file)
    made = [
        store.create("models.Counter", n) for n in range(40) for store in stores[:2]
    ]
    ids = [id_of(counter) for counter in made]

    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda store: store.request("drain"), stores[:2]))
    assert [peer.wait() for peer in peers[:2]] == [0, 0]

    left = stores[2]
    assert [left.get(object_id).peek() for object_id in ids] == [
        n for n in range(40) for _ in stores[:2]
    ]


def test_moving_with_all_that_is_reached(cluster, models_file):
    _, (here, there) = cluster(2)
    for store in (here, there):
        store.publish(models_file)
    first, second = (here.create("models.Node", name) for name in "ab")
    first.link(second)
    second.link(first)

    moved = here.move(first, "peer-1", recursive=True)

    assert len(moved) == 2
    assert here.locate(second)["peer"] == "peer-1"
    assert here.move(first, "peer-1", recursive=True) == []


def test_deleted_object_is_gone_for_its_home_too(cluster, models_file, eventually):
    _, (here, there) = cluster(2)
    for store in (here, there):
        store.publish(models_file)
    counter = here.create("models.Counter", 5)
    here.move(counter, "peer-1")

    there.delete(id_of(counter))

    def is_gone(store) -> bool:
        try:
            store.get(id_of(counter)).peek()
        except ObjectNotFoundError:
            return True
        except UnavailableError:
            return False
        raise AssertionError("it answers")

    for store in (here, there):
        eventually(lambda store=store: is_gone(store))
