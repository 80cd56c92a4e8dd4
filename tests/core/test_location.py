"""What a peer knows of where objects are: of those that moved, and of those with copies."""

from __future__ import annotations

import random

import pytest

from activestore.core.location import Location, Place
from activestore.ids import ObjectId, PeerId, home_of
from activestore.wire.gossip import OTHERS_MAX
from activestore.wire.replicas import NOBODY

ME, A, B, C, D = (PeerId(letter * 6) for letter in (b"m", b"a", b"b", b"c", b"d"))
AT_HOME = ObjectId(ME + bytes(10))
GUEST = ObjectId(A + bytes(10))
EVERYBODY = (ME, A, B, C, D)
BOTH = pytest.mark.parametrize("object_id", [AT_HOME, GUEST], ids=["home", "guest"])


def location_of(*held: ObjectId) -> Location:
    location = Location(ME)
    for object_id in held:
        location.hold(object_id)
    return location


@BOTH
def test_an_object_that_is_followed_is_not_here(object_id: ObjectId) -> None:
    location = location_of(object_id)
    assert location.is_here(object_id)

    assert location.follow(object_id, Place(B, 3, (ME, C), 1))

    assert not location.is_here(object_id)
    assert location.leader_of(object_id) == B
    assert location.place_of(object_id) == Place(B, 3, (C,), 1)
    location.check()


@BOTH
def test_who_leads_does_not_follow(object_id: ObjectId) -> None:
    location = location_of()
    location.follow(object_id, Place(B, 3, (ME, C), 1))

    location.hold(object_id)

    assert location.is_here(object_id)
    assert not location.followed
    location.check()


@BOTH
def test_leader_then_others_then_home_are_asked(object_id: ObjectId) -> None:
    location = location_of()
    location.follow(object_id, Place(B, 3, (ME, C), 1))
    home = [one for one in [home_of(object_id)] if one != ME]

    assert location.route(object_id, EVERYBODY, [D]) == [B, C, *home, D]
    assert location.route(object_id, [C, D], [D]) == [C, D]


def test_a_suspect_leader_is_asked_after_the_others_and_before_the_home() -> None:
    location = location_of()
    location.hear(GUEST, Place(B, 3, (C, D), 1))

    assert location.route(GUEST, EVERYBODY, [], doubted={B}) == [C, D, B, A]


def test_a_suspect_that_alone_has_the_object_is_asked_first() -> None:
    location = location_of()
    location.hear(GUEST, Place(B, 3))

    assert location.route(GUEST, EVERYBODY, [C], doubted={B}) == [B, A, C]


@BOTH
@pytest.mark.parametrize("leader", [NOBODY, ME], ids=["nobody", "this peer"])
def test_where_nobody_is_known_to_lead_another_member_is_named_as_a_guess(
    object_id: ObjectId, leader: PeerId
) -> None:
    location = location_of()
    location.follow(object_id, Place(leader, 4, (B, C), 2))

    assert location.leader_of(object_id) == NOBODY
    assert location.route(object_id, EVERYBODY, [])[:2] == [B, C]
    guess = location.place_of(object_id)
    assert guess is not None
    assert guess[:3] == (B, 3, (C,))
    assert Place(C, 4, (ME, B), 2).is_newer(guess), (
        "who leads in that epoch is believed"
    )
    location.check()


def test_a_lone_copy_of_which_nobody_is_known_to_lead_names_nobody() -> None:
    location = location_of()
    location.follow(GUEST, Place(ME, 4, (ME,), 2))

    assert location.place_of(GUEST) is None
    assert location.route(GUEST, [B], []) == []
    location.check()


@BOTH
def test_an_old_word_does_not_replace_who_leads(object_id: ObjectId) -> None:
    location = location_of()
    location.follow(object_id, Place(B, 5, (ME,), 2))

    assert not location.follow(object_id, Place(C, 4, (ME,), 9))
    assert not location.hear(object_id, Place(C, 4, (B,), 9))
    location.learn_place(object_id, Place(C, 4, (B,), 9))

    assert location.leader_of(object_id) == B
    place = location.place_of(object_id)
    assert place is not None
    assert place[:2] == (B, 5)


@BOTH
def test_a_newer_leader_is_believed_however_it_was_heard(object_id: ObjectId) -> None:
    heard, kept = location_of(), location_of()
    for location in (heard, kept):
        location.follow(object_id, Place(B, 5, (ME, C), 2))

    assert heard.hear(object_id, Place(C, 6, (ME, B), 2))
    assert kept.learn_place(object_id, Place(C, 6, (ME, B), 2))

    for location in (heard, kept):
        assert location.leader_of(object_id) == C
        assert not location.is_here(object_id)
        assert location.route(object_id, EVERYBODY, [])[:2] == [C, B]
        location.check()


@BOTH
def test_the_word_that_the_leader_of_an_epoch_is_gone_replaces_it(
    object_id: ObjectId,
) -> None:
    location = location_of()
    location.follow(object_id, Place(B, 5, (ME, C), 2))

    assert location.follow(object_id, Place(NOBODY, 5, (B, ME, C), 2))

    assert location.leader_of(object_id) == NOBODY


def test_a_changed_group_of_the_same_leader_is_newer() -> None:
    location = location_of()
    location.hear(GUEST, Place(B, 3, (C,), 1))

    assert location.hear(GUEST, Place(B, 3, (C, D), 2))
    assert not location.hear(GUEST, Place(B, 3, (C,), 1))

    assert location.place_of(GUEST) == Place(B, 3, (C, D), 2)


def test_home_that_gave_its_copy_away_does_not_say_that_there_is_none() -> None:
    location = location_of()
    location.follow(AT_HOME, Place(B, 5, (ME, C), 2))

    location.unfollow(AT_HOME)

    assert not location.is_here(AT_HOME)
    assert location.place_of(AT_HOME) == Place(B, 5, (C,), 2)
    location.check()


def test_home_of_a_deleted_object_says_that_there_is_none() -> None:
    location = location_of()
    location.follow(AT_HOME, Place(B, 5, (ME, C), 2))

    location.unfollow(AT_HOME, is_gone=True)

    assert location.is_here(AT_HOME)


def test_a_guest_that_gave_its_copy_away_remembers_who_leads() -> None:
    location = location_of()
    location.follow(GUEST, Place(B, 5, (ME, C), 2))

    location.unfollow(GUEST)

    assert location.place_of(GUEST) == Place(B, 5, (C,), 2)
    location.unfollow(GUEST)
    assert location.place_of(GUEST) == Place(B, 5, (C,), 2)


def test_hints_of_a_dead_peer_go_only_where_it_alone_had_the_object() -> None:
    location = location_of()
    other = ObjectId(A + bytes(9) + b"1")
    location.hear(GUEST, Place(B, 3))
    location.hear(other, Place(B, 3, (C,), 1))

    location.doubt_peer(B)

    assert location.place_of(GUEST) is None
    assert location.route(other, EVERYBODY, [], doubted={B}) == [C, B, A]


def test_a_group_larger_than_is_told_is_cut() -> None:
    location = location_of()
    many = tuple(PeerId(bytes([10 + n]) * 6) for n in range(OTHERS_MAX + 3))

    location.follow(GUEST, Place(B, 3, many, 1))

    assert location.followed[GUEST].others == many[:OTHERS_MAX]
    location.check()


@pytest.mark.parametrize("seed", range(60))
def test_whatever_is_heard_in_whatever_order_the_newest_word_wins(seed: int) -> None:
    rng = random.Random(seed)
    location = location_of()
    newest: dict[ObjectId, Place] = {}
    for object_id in (AT_HOME, GUEST):
        newest[object_id] = Place(A, 0, (ME, B))
        location.follow(object_id, newest[object_id])
    for _ in range(300):
        object_id = rng.choice([AT_HOME, GUEST])
        # One leader for each epoch, as the registers see to.
        epoch, version = rng.randrange(1, 12), rng.randrange(3)
        leader = (A, B, C, D)[epoch % 4]
        others = (*(one for one in (A, B, C, D) if one != leader), ME)
        place = Place(leader, epoch, others[: 1 + version], version)
        told = rng.choice([location.follow, location.hear, location.learn_place])
        told(object_id, place)
        location.check()
        if place.is_newer(newest[object_id]):
            newest[object_id] = place
        known = location.place_of(object_id)
        assert known is not None
        assert (known.epoch, known.group_version) == (
            newest[object_id].epoch, newest[object_id].group_version,
        )  # fmt: skip
        assert known.peer_id == newest[object_id].peer_id
        assert not location.is_here(object_id)
