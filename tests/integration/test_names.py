"""Aliases and listings of several real peers: one name, one object, wherever one asks.

Source: design section 7.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import models
import pytest

from activestore.errors import (
    AliasExistsError,
    AliasNotFoundError,
    RemoteProtocolError,
    UnavailableError,
)

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(120)]

COUNTER = "models.Counter"


def alive_at(store) -> set[str]:
    return {row["peer"] for row in store.peers() if row["state"] == "alive"}


@pytest.fixture
def three(make_peer, eventually, models_file):
    """Return three peers that know each other, and a client of each."""
    first = make_peer(name="peer-0")
    peers = [
        first,
        *(make_peer(name=f"peer-{n}", join=first.endpoint) for n in (1, 2)),
    ]
    first.settings["join"] = peers[1].endpoint
    stores = [peer.connect() for peer in peers]
    for store in stores:
        eventually(lambda store=store: len(alive_at(store)) == 3)
        store.publish(models_file)
    return peers, stores


def test_alias_claimed_at_one_peer_is_refused_and_found_at_all(three):
    _, stores = three
    made = stores[0].create(COUNTER, 5, alias="sensor")

    for store in stores:
        with pytest.raises(AliasExistsError):
            store.create(COUNTER, 7, alias="sensor")
        assert store.get("sensor") == made or store.get("sensor").peek() == 5


def test_name_and_interface_are_one_question_wherever_the_object_is(three):
    peers, stores = three
    stores[0].create(COUNTER, 5, alias="sensor")

    for peer in peers:
        store = peer.connect()
        asked: list[str] = []
        request = store.request
        store.request = lambda operation, asked=asked, request=request, **parameters: (
            asked.append(operation) or request(operation, **parameters)
        )
        assert store.get("sensor").peek() == 5
        assert asked == ["resolve"]

    with pytest.raises(RemoteProtocolError, match="list of texts"):
        stores[0].request("resolve", alias="sensor", interface_unless="models.Counter")


def test_alias_of_a_persisted_object_is_claimed_too(three):
    _, (first, second, _) = three
    counter = models.Counter(3)
    first.persist(counter, alias="mine")

    with pytest.raises(AliasExistsError):
        second.persist(models.Counter(4), alias="mine")
    assert second.get("mine").peek() == 3


def test_two_that_create_the_same_name_at_once_make_one_object(three):
    _, stores = three
    for number in range(10):
        name = f"race-{number}"
        made, refused = race(stores, name)
        assert len(made) == 1, (name, made, refused)
        assert len(refused) == 2


def race(stores, name):
    """Create one name at every peer at the same time."""
    made, refused = [], []

    def create(store, start):
        try:
            made.append(store.create(COUNTER, start, alias=name))
        except AliasExistsError as error:
            refused.append(error)

    threads = [
        threading.Thread(target=create, args=(store, n))
        for n, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return made, refused


def test_delete_frees_the_alias_everywhere(three, eventually):
    _, (first, second, third) = three
    first.create(COUNTER, 1, alias="short")
    second.delete("short")

    with pytest.raises(AliasNotFoundError):
        third.get("short")
    third.create(COUNTER, 2, alias="short")

    assert first.get("short").peek() == 2


def test_create_that_fails_leaves_the_name_free(three):
    _, (first, second, _) = three
    with pytest.raises(TypeError):
        first.create(COUNTER, 1, 2, 3, alias="failed")

    second.create(COUNTER, 9, alias="failed")

    assert first.get("failed").peek() == 9


def test_names_resolve_and_stay_taken_while_any_peer_is_dead(three, eventually):
    peers, stores = three
    for number in range(12):
        stores[0].create(COUNTER, number, alias=f"kept-{number}")

    peers[2].kill()
    eventually(lambda: len(alive_at(stores[1])) == 2, timeout_s=40)

    for number in range(12):
        assert stores[1].get(f"kept-{number}").peek() == number
        with pytest.raises(AliasExistsError):
            stores[1].create(COUNTER, 0, alias=f"kept-{number}")
    with pytest.raises(AliasNotFoundError):
        stores[1].get("never-made")


def test_name_of_an_object_at_a_dead_peer_stays_its_own(three, eventually):
    peers, stores = three
    stores[2].create(COUNTER, 5, alias="away")
    peers[2].kill()
    eventually(lambda: len(alive_at(stores[0])) == 2, timeout_s=40)

    for store in stores[:2]:
        with pytest.raises(AliasExistsError):
            store.create(COUNTER, 0, alias="away")
        with pytest.raises(UnavailableError, match="peer-2"):
            store.get("away")

    peers[2].start()
    eventually(lambda: len(alive_at(stores[0])) == 3, timeout_s=40)
    assert stores[0].get("away").peek() == 5


def test_names_survive_a_restart_of_all_peers(three, eventually):
    peers, stores = three
    stores[1].create(COUNTER, 5, alias="durable")
    for peer in peers:
        peer.kill()
    for peer in peers:
        peer.start()
    again = [peer.connect() for peer in peers]
    for store in again:
        eventually(lambda store=store: len(alive_at(store)) == 3, timeout_s=40)

    for store in again:
        assert store.get("durable").peek() == 5
        with pytest.raises(AliasExistsError):
            store.create(COUNTER, 0, alias="durable")


def test_objects_of_all_peers_are_listed_wherever_one_asks(three):
    _, stores = three
    for at, store in enumerate(stores):
        for number in range(3):
            store.create(COUNTER, number, alias=f"list-{at}-{number}")
        store.create(COUNTER, 0)

    for at, store in enumerate(stores):
        rows = list(store.objects())
        assert len(rows) == 12
        assert {row["peer"] for row in rows} == {"peer-0", "peer-1", "peer-2"}
        assert len({row["object_id"] for row in rows}) == 12
        assert len(list(store.objects("list-1-"))) == 3
        assert {row["peer"] for row in store.objects(here=True)} == {f"peer-{at}"}


def test_listing_names_the_peers_that_it_cannot_reach(three, eventually):
    peers, stores = three
    for at, store in enumerate(stores):
        store.create(COUNTER, 0, alias=f"there-{at}")
    peers[2].kill()
    eventually(lambda: len(alive_at(stores[0])) == 2, timeout_s=40)
    missing: list[str] = []

    rows = list(stores[0].objects(unreachable=missing))

    assert {row["alias"] for row in rows} == {"there-0", "there-1"}
    assert missing == ["peer-2"]
    command = [sys.executable, "-m", "activestore.cli.main", "objects"]
    at = ["--endpoint", peers[0].endpoint]
    told = subprocess.run([*command, *at], capture_output=True, text=True, check=True)
    here = subprocess.run(
        [*command, "--here", *at], capture_output=True, text=True, check=True
    )
    assert "there-1" in told.stdout
    assert "there-1" not in here.stdout
    assert "cannot be reached: peer-2" in told.stderr
    assert "peer-2" not in here.stderr


def test_name_given_on_both_sides_of_a_partition_stays_with_the_older(
    make_peer, eventually, models_file
):
    """Two peers that never met are two sides; they meet when one is told of the other."""
    old, young = make_peer(name="old"), make_peer(name="young")
    for peer in (old, young):
        peer.connect().publish(models_file)
    old.connect().create(COUNTER, 1, alias="both")
    time.sleep(0.05)
    young.connect().create(COUNTER, 2, alias="both")
    young.connect().create(COUNTER, 3, alias="other")

    young.kill()
    young.settings["join"] = old.endpoint
    young.start()
    stores = [old.connect(), young.connect()]

    eventually(
        lambda: (
            {row["alias"] for row in stores[0].objects()}
            == {"both", "both~young", "other"}
        ),
        timeout_s=30,
    )
    for store in stores:
        assert store.get("both").peek() == 1
        assert store.get("both~young").peek() == 2
        assert store.get("other").peek() == 3
    (renamed,) = stores[1].status()["names"]["renamed"]
    assert (renamed["alias"], renamed["renamed"]) == ("both", "both~young")


def test_each_side_of_a_partition_goes_on_and_the_older_claim_keeps_the_name(
    three, eventually
):
    """One side is down while the other runs, so that neither hears of the other's claim."""
    peers, stores = three
    stores[1].create(COUNTER, 7, alias="before")
    # Two of three keepers are enough; the one that is left has to know as well.
    eventually(lambda: stores[1].status()["names"]["untold"] == 0)
    peers[1].kill()
    peers[2].kill()
    eventually(lambda: alive_at(stores[0]) == {"peer-0"}, timeout_s=60)
    with pytest.raises(AliasExistsError):
        stores[0].create(COUNTER, 0, alias="before")
    stores[0].create(COUNTER, 1, alias="both")
    peers[0].kill()
    for peer in peers[1:]:
        peer.settings["join"] = peers[1].endpoint
        peer.start()
    sides = [peer.connect() for peer in peers[1:]]
    for store in sides:
        eventually(lambda store=store: len(alive_at(store)) == 2, timeout_s=60)
    sides[1].create(COUNTER, 2, alias="both")
    peers[0].start()

    listed = {"before", "both", "both~peer-2"}
    eventually(
        lambda: {row["alias"] for row in sides[0].objects()} == listed, timeout_s=60
    )

    for store in (peers[0].connect(), *sides):
        assert store.get("both").peek() == 1
        assert store.get("both~peer-2").peek() == 2
        assert store.get("before").peek() == 7
        with pytest.raises(AliasExistsError):
            store.create(COUNTER, 0, alias="both~peer-2")
    (renamed,) = sides[1].status()["names"]["renamed"]
    assert renamed["renamed"] == "both~peer-2"
    peers[2].restart()
    (renamed,) = peers[2].connect().status()["names"]["renamed"]
    assert renamed["renamed"] == "both~peer-2"


def test_claim_waits_for_stopped_keepers_until_they_are_given_up(three, eventually):
    """Nobody says yes for a silent keeper: it is done once membership has let it go."""
    peers, stores = three
    for peer in peers[1:]:
        peer.send(signal.SIGSTOP)
    try:
        patient = peers[0].connect(timeout_s=60)
        made = patient.create(COUNTER, 1, alias="lonely")
        assert alive_at(stores[0]) == {"peer-0"}
    finally:
        for peer in peers[1:]:
            peer.send(signal.SIGCONT)

    eventually(lambda: len(alive_at(stores[0])) == 3, timeout_s=60)
    assert made.peek() == 1
    for store in stores:
        eventually(lambda store=store: resolves(store, "lonely"), timeout_s=30)
        with pytest.raises(AliasExistsError):
            store.create(COUNTER, 2, alias="lonely")


def resolves(store, alias: str) -> bool:
    try:
        store.get(alias)
    except (AliasNotFoundError, UnavailableError):
        return False
    return True


def test_name_of_an_object_that_moved_is_found_and_freed(three):
    _, (first, second, third) = three
    first.create(COUNTER, 4, alias="nomad")
    first.move("nomad", "peer-1")

    assert third.get("nomad").peek() == 4
    with pytest.raises(AliasExistsError):
        third.create(COUNTER, 0, alias="nomad")
    rows = [row for row in third.objects() if row["alias"] == "nomad"]
    assert [row["peer"] for row in rows] == ["peer-1"]
    third.delete("nomad")
    second.create(COUNTER, 6, alias="nomad")
    assert first.get("nomad").peek() == 6


def test_names_given_before_a_peer_had_company_are_known_to_those_that_join(
    make_peer, eventually, models_file
):
    first = make_peer(name="first")
    store = first.connect()
    store.publish(models_file)
    for number in range(50):
        store.create(COUNTER, number, alias=f"early-{number}")
    second = make_peer(name="second", join=first.endpoint).connect()
    eventually(lambda: len(alive_at(second)) == 2, timeout_s=40)

    for number in range(50):
        assert second.get(f"early-{number}").peek() == number
        with pytest.raises(AliasExistsError):
            second.create(COUNTER, 0, alias=f"early-{number}")
