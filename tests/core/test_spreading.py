"""Which peers get copies. Source: issue 4, hosts and zones first, then capability and space."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from activestore.core.peers import PeerRecord, host_of
from activestore.core.spreading import spread
from activestore.ids import PeerId
from activestore.wire.limits import PROTOCOL_VERSION

IDLE = [0, 8, 0, 50_000]


def peer(number: int, host: str = "", zone: str = "", **meta: Any) -> PeerRecord:
    """Return the record of a peer on a host of its own, unless one is named."""
    told = {"cores": 4, "host": host or f"host-{number}", "load": IDLE, **meta}
    return PeerRecord(
        b"peer" + number.to_bytes(2, "big"), 1, f"p{number}", ("tcp://10.0.0.1:7400",),
        zone, "lan", PROTOCOL_VERSION, told,
    )  # fmt: skip


def ids(*records: PeerRecord) -> tuple[PeerId, ...]:
    return tuple(PeerId(record.peer_id) for record in records)


ME = peer(0, "here", "plant")


# -- what comes first ------------------------------------------------------------------


def test_peer_on_the_same_host_is_taken_last():
    beside, far = peer(1, "here", "plant"), peer(2, "there", "plant")

    assert spread([beside, far], [ME], 1) == ids(far)
    assert spread([beside, far], [ME], 2) == ids(far, beside)


def test_two_new_copies_do_not_share_a_host_either():
    first, second, third = peer(1, "a"), peer(2, "a"), peer(3, "b")

    found = spread([first, second, third], [ME], 2)

    assert third.peer_id in found
    assert len({first.peer_id, second.peer_id} & set(found)) == 1


def test_other_zone_counts_among_other_hosts():
    near, far = peer(1, zone="plant"), peer(2, zone="cloud", load=[8, 8, 400, 100])

    assert spread([near, far], [ME], 1) == ids(far)


def test_other_host_counts_more_than_other_zone():
    """A zone may be a word that somebody mistyped; a host is what burns."""
    same_host = peer(1, "here", "cloud")
    other_host = peer(2, "there", "plant")

    assert spread([same_host, other_host], [ME], 1) == ids(other_host)


def test_peer_known_to_have_what_the_class_needs_comes_before_one_that_may():
    known, unknown, lacking = peer(1), peer(2), peer(3)
    verdicts = {known.peer_id: True, unknown.peer_id: None, lacking.peer_id: False}

    found = spread(
        [unknown, lacking, known], [ME], 3, meets=lambda r: verdicts[r.peer_id]
    )

    assert found == ids(known, unknown)


def test_peer_that_means_to_stay_comes_before_a_laptop():
    laptop, server = peer(1, stable=False), peer(2)

    assert spread([laptop, server], [ME], 1) == ids(server)


def test_emptier_disk_wins_where_it_is_worth_it():
    full, empty = peer(1, load=[0, 8, 0, 1_000]), peer(2, load=[0, 8, 0, 50_000])

    assert spread([full, empty], [ME], 1) == ids(empty)


def test_idle_peer_wins_among_like_disks():
    busy, idle = peer(1, load=[4, 8, 100, 50_000]), peer(2, load=[0, 8, 0, 49_000])

    assert spread([busy, idle], [ME], 1) == ids(idle)


def test_peer_without_room_is_left_out_and_one_that_does_not_say_is_not():
    full, silent = peer(1, load=[0, 8, 0, 99]), peer(2, load=None)

    assert spread([full, silent], [ME], 2, room_mb=100) == ids(silent)


def test_objects_of_one_peer_go_to_many_of_its_equals():
    equals = [peer(number) for number in range(1, 9)]

    found = {spread(equals, [ME], 2, key=b"%016d" % n) for n in range(64)}

    assert len({one for pair in found for one in pair}) == 8


def test_fewer_than_asked_for_where_there_are_fewer():
    assert spread([], [ME], 2) == ()
    assert spread([ME], [ME], 2) == ()
    assert spread([peer(1)], [ME], 0) == ()


def test_record_that_says_nonsense_is_no_error():
    odd = peer(1, cores="many", load=["x"], host=None)

    assert spread([odd], [ME], 1) == ids(odd)


# -- properties ------------------------------------------------------------------------

records = st.lists(
    st.builds(
        lambda n, host, zone, stable, busy, disk: peer(
            n, host, zone, stable=stable, load=[busy, 8, busy * 10, disk]
        ),
        st.integers(1, 40),
        st.sampled_from(["", "a", "b", "c"]),
        st.sampled_from(["", "plant", "cloud"]),
        st.booleans(),
        st.integers(0, 8),
        st.integers(0, 100_000),
    ),
    max_size=10,
    unique_by=lambda record: record.peer_id,
)


@given(records, records, st.integers(0, 7), st.binary(max_size=16))
@settings(max_examples=300)
def test_chosen_are_others_and_as_many_as_there_can_be(found, members, count, key):
    chosen = spread(found, members, count, key=key)

    taken = {record.peer_id for record in members}
    free = {record.peer_id for record in found} - taken
    assert len(set(chosen)) == len(chosen) == min(count, len(free))
    assert set(chosen) <= free


@given(records, records, st.integers(0, 7), st.randoms(use_true_random=False))
def test_order_of_what_is_known_means_nothing(found, members, count, rng):
    shuffled, others = list(found), list(members)
    rng.shuffle(shuffled)
    rng.shuffle(others)

    assert spread(shuffled, others, count) == spread(found, members, count)


@given(records, records, st.integers(0, 6))
def test_first_ones_do_not_depend_on_how_many_are_wanted(found, members, count):
    assert spread(found, members, count + 1)[:count] == spread(found, members, count)


@given(records, records, st.integers(0, 7))
def test_no_other_choice_has_more_hosts(found, members, count):
    by_id = {record.peer_id: record for record in found}
    chosen = [by_id[one] for one in spread(found, members, count)]

    before = {host_of(record) for record in members}
    taken = {record.peer_id for record in members}
    new = {host_of(r) for r in found if r.peer_id not in taken} - before
    assert len({host_of(r) for r in chosen} - before) == min(len(new), count)
