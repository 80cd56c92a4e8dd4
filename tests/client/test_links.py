"""A session with several peers: redirects, and direct links that die."""

from __future__ import annotations

import itertools

import pytest

from activestore.client import links as links_module
from activestore.client.links import REACH_S, UNREACHABLE_S
from activestore.client.requests import MOVED_S, MOVES_MAX, Request
from activestore.client.session import (
    DEAD_S,
    REDIRECTS_MAX,
)
from activestore.errors import (
    BusyError,
    MovedError,
    NoQuorumError,
    ObjectNotFoundError,
    RemoteProtocolError,
    UnavailableError,
)
from activestore.wire import values
from activestore.wire.messages import (
    Beat,
    Failure,
    Hello,
    Item,
    Ping,
    Pong,
    Refused,
    Reply,
)
from tests.client.sessions import (
    OBJECT,
    failure,
    open_call,
    open_question,
    open_stream,
    welcome,
)
from tests.client.worlds import (
    ID_B,
    ID_D,
    OTHER_OBJECT,
    A,
    B,
    C,
    D,
    World,
    world_of,
)


@pytest.fixture
def world() -> World:
    """A session that A has welcomed, and nobody else is known."""
    return world_of(A)


# -- moved -----------------------------------------------------------------------------


def test_moved_sends_hello_and_then_the_same_request_to_the_named_peer(world):
    request = world.call()

    world.moved(A, request, B)
    before = list(world.sent[B])
    world.greet(B)

    assert before == [world.sent[A][0]]  # The same session, also there.
    assert world.calls(B) == [(1, 0, False)]
    assert world.calls(A) == [(1, 0, False)]


def test_the_next_call_of_that_object_goes_straight_there_and_others_do_not(world):
    world.moved(A, world.call(), B)
    world.greet(B)
    world.come(B, Reply(1))

    world.call()
    other = open_call(world.session, world.now_s)
    other_link = Request(
        9, other.message._replace(object_id=OTHER_OBJECT), world.link(A), 0.0, 0.0, ""
    )
    other_link.choose_link(world.session.links, 0.0, ())

    assert world.calls(B) == [(1, 0, False), (2, 0, False)]
    assert other_link.link is world.link(A)
    assert world.kinds(B).count(Hello) == 1


def test_requests_to_the_peer_itself_stay_at_the_connected_one(world):
    world.moved(A, world.call(), B)
    world.greet(B)

    assert open_question(world.session).link is world.link(A)


def test_calls_before_the_welcome_wait_and_keep_their_order(world):
    first = world.call()
    world.moved(A, first, B)
    for _ in range(3):
        world.call()

    assert world.calls(B) == []
    world.greet(B)
    assert [sequence for sequence, _, _ in world.calls(B)] == [1, 2, 3, 4]


def test_three_redirects_are_followed_and_then_the_connected_peer_forwards(world):
    request = world.call()
    places = [A, B, C, D]
    for epoch, (asked, to) in enumerate(itertools.pairwise(places)):
        world.moved(asked, request, to, epoch)
        world.greet(to)
    assert world.calls(D) == [(1, 0, False)]

    world.moved(D, request, B, epoch=9)

    assert request.redirects == REDIRECTS_MAX + 1
    assert world.calls(B) == [(1, 0, False)]
    assert world.calls(A) == [(1, 0, False), (1, 0, True)]


def test_hint_with_a_lower_epoch_is_ignored_and_the_connected_peer_forwards(world):
    world.moved(A, world.call(), B, epoch=5)
    world.greet(B)
    world.come(B, Reply(1))
    request = world.call()

    world.moved(B, request, C, epoch=4)

    assert C not in world.sent
    assert world.calls(A)[-1] == (2, 0, True)
    world.come(A, Reply(2))
    assert world.call().link is world.link(B)  # The newer of the two is kept.


def test_moved_to_the_connected_peer_goes_there(world):
    world.moved(A, world.call(), B)
    world.greet(B)
    request = open_call(world.session)
    world.begun(request)

    world.moved(B, request, A, epoch=2)

    assert world.calls(A)[-1] == (2, 0, False)


def test_peer_that_says_that_it_moved_to_itself_is_asked_to_forward(world):
    request = world.call()

    world.moved(A, request, A)

    assert world.calls(A) == [(1, 0, False), (1, 0, True)]


def test_moved_without_an_address_has_the_connected_peer_forward(world):
    request = world.call()

    world.moved(A, request, "")

    assert world.calls(A) == [(1, 0, False), (1, 0, True)]


def test_forwarded_call_that_is_answered_moved_is_tried_again_later(world):
    request = world.call(direct=False)

    world.moved(A, request, B)
    world.pass_time(0.1)

    assert B not in world.sent
    assert world.calls(A) == [(1, 0, True), (1, 1, True)]


def test_forwarded_call_is_tried_again_for_as_long_as_a_take_over_may_take(world):
    request = world.call(direct=False)
    for _ in range(2 * MOVES_MAX):
        world.moved(A, request, B)
        world.pass_time(MOVED_S / (2 * MOVES_MAX + 1))

    world.moved(A, request, B)

    assert world.ended == []


def test_forwarded_call_that_stays_moved_fails_with_that(world):
    request = world.call(direct=False)
    for _ in range(MOVES_MAX):
        world.moved(A, request, B)
        world.pass_time(2.1)
    assert world.ended == []

    world.moved(A, request, B)

    assert world.ended == [request]
    assert isinstance(request.error, MovedError)


def test_direct_false_never_leaves_the_connected_peer(world):
    world.moved(A, world.call(), B)
    world.greet(B)

    assert world.call(direct=False).link is world.link(A)


def test_moved_of_a_stream_before_its_first_item_is_followed(world):
    request = world.begun(open_stream(world.session))

    world.moved(A, request, B)
    world.greet(B)
    world.come(B, Item(1, 0, None, values.encode(1)[0]))

    assert world.calls(B) == [(1, 0, False)]
    assert len(request.items) == 1


def test_retry_goes_to_where_the_call_was_sent(world):
    request = world.call()
    world.moved(A, request, B)
    world.greet(B)

    world.come(B, failure(1, BusyError("mailbox", "full")))
    world.pass_time(0.2)

    assert world.calls(B) == [(1, 0, False), (1, 1, False)]


@pytest.mark.parametrize(
    "error",
    [ObjectNotFoundError(OBJECT), NoQuorumError("hits", "1 of 3 voters answers")],
    ids=["gone", "cut off"],
)
def test_what_was_not_done_where_it_was_remembered_is_asked_of_the_connected_peer(
    world, error
):
    """A leader that is cut off from its group is not cut off from the client."""
    world.moved(A, world.call(), B)
    world.greet(B)
    world.come(B, Reply(1))
    request = world.call()

    world.come(B, failure(2, error))
    forwarded = list(world.calls(A))
    world.come(A, failure(2, ObjectNotFoundError(OBJECT)))

    assert forwarded[-1] == (2, 0, True)
    assert isinstance(request.error, ObjectNotFoundError)


@pytest.mark.parametrize(
    "fields",
    [
        [OBJECT, ID_B, B, "1"],
        [OBJECT, ID_B, 7, 1],
        [OBJECT, "peer-b", B, 1],
        ["text", ID_B, B, 1],
    ],
)
def test_moved_with_wrong_fields_breaks_the_protocol(world, fields):
    world.call()

    with pytest.raises(RemoteProtocolError, match="of a Failure must be"):
        world.come(A, Failure(1, "moved", None, values.encode(fields)[0]))


def test_places_are_bounded_and_the_ones_in_use_stay(world, monkeypatch):
    monkeypatch.setattr(links_module, "PLACES_MAX", 3)
    known = world.session.links
    calls = [
        world.call().message._replace(object_id=b"%016d" % number)
        for number in range(4)
    ]
    place = links_module.Place(ID_B, B, 1)
    for call in calls[:3]:
        known.remember(call, call.object_id, place, 0.0)
    known.place_of(calls[0], 0.0)

    known.remember(calls[3], calls[3].object_id, place, 0.0)

    assert [int(object_id) for object_id in known.places] == [2, 0, 3]


def test_direct_links_are_bounded_and_the_idle_one_makes_room(world, monkeypatch):
    monkeypatch.setattr(links_module, "DIRECT_LINKS_MAX", 2)
    for epoch, to in enumerate((B, C)):
        request = world.call(direct=True) if epoch else world.call()
        world.moved(request.link.endpoint, request, to, epoch)
        world.greet(to)
    request = world.session.requests[2]
    world.come(B, Reply(1)) if request.link.endpoint == C else None

    world.moved(C, request, D, epoch=9)

    open_endpoints = {link.endpoint for link in world.session.links.by_route.values()}
    assert open_endpoints == {A, C, D}


# -- a direct link that is not there, or dies ------------------------------------------


def test_peer_that_does_not_welcome_in_time_is_not_reachable(world):
    request = world.call()
    world.moved(A, request, B)

    world.pass_time(REACH_S)

    assert world.calls(B) == []
    assert world.calls(A) == [(1, 0, False), (1, 0, True)]
    assert {link.endpoint for link in world.session.links.by_route.values()} == {A}


def test_unreachable_peer_is_not_tried_again_for_a_while(world):
    world.moved(A, world.call(), B)
    world.pass_time(REACH_S)
    world.come(A, Reply(1))

    request = world.call()
    world.moved(A, request, B)
    third = world.call()
    forwarded = world.calls(A)[1:]
    world.come(A, Reply(2))
    world.come(A, Reply(3))
    world.pass_time(UNREACHABLE_S)
    fourth = world.call()

    assert third.is_forwarded
    assert forwarded == [(1, 0, True), (2, 0, False), (2, 0, True), (3, 0, True)]
    assert fourth.link is world.link(B)
    assert world.kinds(B) == [Hello, Hello]


def test_another_peer_at_the_named_address_is_not_reachable(world):
    """An address of a private network may be one's own neighbour's."""
    world.moved(A, world.call(), B)
    hello = welcome()._replace(peer_id=ID_D)

    with pytest.raises(RemoteProtocolError, match="another peer") as caught:
        world.come(B, hello)
    world._carry(*world.session.give_up(world.link(B), caught.value, world.now_s))

    assert world.calls(B) == []
    assert world.calls(A)[-1] == (1, 0, True)


def test_direct_link_that_dies_hands_its_requests_to_the_connected_peer(world):
    first = world.call()
    world.moved(A, first, B)
    world.greet(B)
    stream = world.begun(open_stream(world.session))

    world.pass_time(DEAD_S)

    assert world.calls(A)[-1] == (1, 1, True)
    assert isinstance(stream.error, UnavailableError)
    assert not world.session.links.places
    assert [link.endpoint for link in world.session.links.by_route.values()] == [A]


def test_direct_link_that_answers_pings_or_beats_lives(world):
    world.moved(A, world.call(), B)
    world.greet(B)

    for _ in range(10):
        world.pass_time(DEAD_S / 2)
        world.come(B, Beat([1]))

    assert world.calls(A) == [(1, 0, False)]
    assert Ping in world.kinds(B)


def test_idle_direct_link_is_not_asked_and_does_not_die(world):
    world.moved(A, world.call(), B)
    world.greet(B)
    world.come(B, Reply(1))

    world.pass_time(100.0)
    world.call()

    assert world.calls(B)[-1] == (2, 0, False)
    assert Ping not in world.kinds(B)


def test_peer_that_restarts_behind_a_direct_link_gets_its_requests_again(world):
    world.moved(A, world.call(), B)
    world.greet(B)
    at_main = world.call(direct=False)

    world.come(B, Refused("hello_needed", "Call before Hello"))
    world.come(B, welcome(b"j" * 16)._replace(peer_id=ID_B))

    assert world.calls(B) == [(1, 0, False), (1, 1, False)]
    assert at_main.attempt == 0


# -- reads that any copy may answer ----------------------------------------------------

STALE = {"staleness_ms": 5000}


def test_read_that_may_be_stale_asks_the_connected_peer_first(world):
    """It may have a copy: then the leader, known from a write, is not needed."""
    world.moved(A, world.call(), B)
    world.greet(B)
    world.come(B, Reply(1))

    world.call(**STALE)
    world.call()

    assert [sequence for sequence, *_ in world.calls(A)] == [1, 2]
    assert [sequence for sequence, *_ in world.calls(B)] == [1, 3]


def test_connected_peer_without_a_copy_is_asked_once(world):
    world.moved(A, world.call(**STALE), B)
    world.greet(B)
    world.come(B, Reply(1))

    world.call(**STALE)

    assert [sequence for sequence, *_ in world.calls(B)] == [1, 2]


def test_connected_peer_whose_copy_was_behind_is_asked_again_later(world):
    world.moved(A, world.call(**STALE), B)
    world.greet(B)
    world.come(B, Reply(1))

    world.now_s += links_module.COPIES_S + 1
    world.call(**STALE)

    assert [sequence for sequence, *_ in world.calls(A)] == [1, 2]


def test_where_a_copy_is_read_is_not_where_the_object_is_written(world):
    world.moved(A, world.call(**STALE), B)
    world.greet(B)
    world.come(B, Reply(1))

    world.call()

    assert [sequence for sequence, *_ in world.calls(A)] == [1, 2]


def test_copy_that_is_gone_is_looked_for_again_through_the_connected_peer(world):
    world.moved(A, world.call(**STALE), B)
    world.greet(B)
    world.come(B, Reply(1))
    second = world.call(**STALE)

    world.come(B, failure(second.sequence, ObjectNotFoundError(OBJECT)))

    assert world.calls(A)[-1] == (2, 0, True)
    assert not world.session.links.copies


def test_places_of_copies_end_with_their_link(world):
    world.moved(A, world.call(**STALE), B)
    world.greet(B)
    world.come(B, Reply(1))

    world.session.links.end(world.link(B))

    assert not world.session.links.copies


def test_other_connected_peer_is_asked_whether_it_has_a_copy():
    world = world_of(A, B)
    world.moved(A, world.call(**STALE), C)
    world.greet(C)
    world.come(C, Reply(1))
    world.call()  # Nobody answers it: A is given up.
    world.pass_time(2 * DEAD_S)
    world.greet(B)

    stale = world.call(**STALE)

    assert (stale.sequence, 0, False) in world.calls(B)


# -- short deadlines -------------------------------------------------------------------


def direct_call(world: World, timeout_s: float) -> Request:
    """Open a call to an object that is at B, over a link of its own."""
    world.moved(A, world.call(), B)
    world.greet(B)
    world.come(B, Reply(1))
    request = open_call(world.session, world.now_s, timeout_s=timeout_s)
    assert request.link is world.link(B)
    return world.begun(request)


def test_peer_that_is_asked_for_a_sign_has_time_to_give_it(world):
    """Though nobody looked before half of the deadline had passed."""
    request = direct_call(world, 0.4)

    world.pass_time(0.22)

    assert world.kinds(B)[-1] is Ping
    assert not request.passes


def test_peer_that_was_asked_in_time_and_is_silent_is_passed_by(world):
    world.pass_time(0.01)
    request = direct_call(world, 0.4)
    first_s = world.session.next_tick_s() - world.now_s

    world.pass_time(first_s)
    asked = world.kinds(B)[-1]
    world.pass_time(0.201 - first_s)

    assert (asked, request.passes) == (Ping, 1)
    assert world.calls(A)[-1] == (request.sequence, 1, True)


def test_peer_that_gives_a_sign_is_waited_for(world):
    request = direct_call(world, 0.4)

    world.pass_time(0.1)
    world.come(B, Pong(1, b"i" * 16, is_known=True))
    for _ in range(5):
        world.pass_time(0.04)

    assert not request.passes
