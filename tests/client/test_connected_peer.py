"""A session whose connected peer is found, dies, refuses, or wakes up again."""

from __future__ import annotations

import pytest

from activestore.client import links as links_module
from activestore.client.passing import PASS_BYTES_MAX, PASS_S, PASSES_MAX
from activestore.client.session import (
    DEAD_S,
    FIRST_WAIT_S,
    PING_S,
)
from activestore.errors import (
    NoQuorumError,
    RemoteProtocolError,
    UnavailableError,
)
from activestore.wire.limits import UNHEARD, UNLED
from activestore.wire.messages import (
    Beat,
    Call,
    Cancel,
    Hello,
    Ping,
    Pong,
    Refused,
    Reply,
)
from tests.client.sessions import (
    failure,
    open_call,
    open_stream,
    welcome,
)
from tests.client.worlds import (
    ID_A,
    ID_B,
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


@pytest.fixture
def pair() -> World:
    """A session that A has welcomed; the user named B too."""
    return world_of(A, B)


# -- the connected peer dies -----------------------------------------------------------


def test_connected_peer_without_a_sign_of_life_is_replaced(pair):
    first, second = pair.call(), pair.call()
    stream = pair.begun(open_stream(pair.session))

    pair.pass_time(DEAD_S)
    held = pair.call()
    before = pair.calls(B)
    pair.greet(B)

    assert before == []
    assert pair.calls(B) == [(1, 1, False), (2, 1, False), (4, 0, False)]
    assert pair.ended == [stream]
    assert "not resumed" in str(stream.error)
    assert (first.sequence, second.sequence, held.sequence) == (1, 2, 4)
    assert pair.session.endpoint == B
    assert pair.session.peer.peer_id == ID_B
    assert [link.endpoint for link in pair.session.links.by_route.values()] == [B]


def test_lone_peer_is_waited_for_as_long_as_a_request_may_be_silent(world):
    request = world.call()

    world.pass_time(29.0)
    assert not request.is_done
    world.pass_time(1.5)

    assert isinstance(request.error, UnavailableError)
    assert world.session.links.main is world.link(A)
    assert world.session.links.main.is_up


def stay(world: World, seconds: float, *answering: str, beat: int = 0) -> None:
    """Let time pass while some peers answer pings, and may name a request."""
    for token in range(int(seconds / PING_S)):
        world.pass_time(PING_S)
        for endpoint in answering:
            world.come(endpoint, Pong(token, b"i" * 16, is_known=True))
            if beat:
                world.come(endpoint, Beat([beat]))


def test_connected_peer_that_answers_pings_is_kept(pair):
    pair.call()

    stay(pair, 10.0, A, beat=1)

    assert B not in pair.sent


def test_request_that_its_peer_does_not_name_goes_by_another_too(pair):
    request = pair.call()

    stay(pair, PASS_S + PING_S, A)
    pair.greet(B)
    assert pair.calls(B) == [(1, 1, True)]
    assert pair.session.endpoint == A
    pair.come(A, Reply(1))

    assert pair.ended == [request]
    assert pair.session.endpoint == A, "it was slow, no more"


def test_what_follows_a_request_that_went_by_another_is_no_first_attempt(pair):
    """It may stand still behind that one, and come when others have answered it."""
    pair.call()
    stay(pair, PASS_S + PING_S, A)
    pair.greet(B)

    pair.call()

    assert pair.calls(A) == [(1, 0, False), (2, 1, False)]
    assert pair.calls(B) == [(1, 1, True)]


def test_what_follows_a_refusal_is_a_first_attempt(pair):
    """Nothing stands still where it was answered: no later call need be looked up."""
    pair.call()
    pair.come(A, failure(1, NoQuorumError("object", "1 of 3 voters answer", 1, 2)))
    stay(pair, PING_S, A)
    pair.greet(B)

    pair.call()

    assert pair.calls(A) == [(1, 0, False), (2, 0, False)]
    assert pair.calls(B) == [(1, 1, True)]


def test_what_follows_a_request_that_no_other_peer_was_asked_for_is_a_first_attempt(
    world,
):
    world.call()
    stay(world, PASS_S + PING_S, A)

    world.call()

    assert world.calls(A) == [(1, 0, False), (2, 0, False)]


def test_request_that_its_peer_hears_nobody_answer_goes_by_another_at_once(pair):
    """Once for each word; and only of the peer that it was asked by last."""
    request, other = pair.call(), pair.call()
    unheard = Beat([request.sequence], {UNHEARD: True})

    pair.come(A, unheard)
    pair.pass_time(0.01)
    pair.greet(B)
    pair.come(A, unheard)
    pair.pass_time(0.01)

    assert pair.calls(B) == [(1, 1, True)]
    assert request.passes == 1
    assert not other.is_unheard


def test_who_says_that_it_leads_in_vain_is_told_to_the_next_peer(pair):
    """So that it looks whether that one is there, and does not send the request back."""
    unled = [3, ID_A]
    pair.call()

    pair.come(A, Beat([1], {UNHEARD: True, UNLED: unled}))
    pair.pass_time(0.01)
    pair.greet(B)

    (asked,) = [one for one in pair.sent[B] if type(one) is Call]
    assert asked.extra[UNLED] == unled
    assert asked.attempt == 1


def test_place_of_an_object_whose_leader_did_not_answer_is_forgotten(pair):
    request = pair.call()
    pair.moved(A, request, C)
    pair.greet(C)
    assert pair.session.links.places

    pair.come(C, Beat([1], {UNHEARD: True}))
    pair.pass_time(0.01)
    pair.come(A, Reply(1))

    assert pair.ended == [request]
    assert not pair.session.links.places


def test_word_that_nobody_is_heard_changes_nothing_where_no_other_peer_is_known(world):
    request = world.call()

    world.come(A, Beat([request.sequence], {UNHEARD: True}))
    world.pass_time(1.0)

    assert world.calls(A) == [(1, 0, False)]
    assert not request.is_done


def test_what_was_refused_already_waits_for_the_second_peer(pair):
    """Who takes over may need a moment; the refusal is the answer only after silence."""
    request = pair.call()
    pair.come(A, failure(1, NoQuorumError("add", "1 of 3")))
    pair.pass_time(0.2)
    pair.greet(B)

    pair.come(B, Beat([1], {UNHEARD: True}))
    pair.pass_time(0.5)

    assert not request.is_done


def test_peer_that_answers_what_the_connected_one_did_not_is_asked_first(pair):
    request = pair.call()
    slow = pair.call()
    stay(pair, PASS_S + PING_S, A)
    pair.greet(B)

    pair.come(B, Reply(1))
    pair.call()

    assert pair.ended == [request]
    assert pair.session.endpoint == B
    assert pair.calls(B) == [(1, 1, True), (2, 1, True), (3, 0, False)]
    pair.come(A, Reply(2))
    assert pair.ended == [request, slow], "what comes from the first one still counts"


def test_peer_that_came_to_be_asked_first_is_replaced_as_any_other():
    world = World(A, B, C)
    world.greet(A)
    world.call()
    stay(world, PASS_S + PING_S, A)
    world.greet(B)
    world.come(B, Reply(1))
    world.give_up(A)
    world.call()

    world.pass_time(DEAD_S + PING_S)
    world.greet(C)

    assert world.calls(C) == [(2, 1, False)]
    assert world.session.endpoint == C


def test_stream_and_large_request_stay_where_they_are(pair):
    pair.begun(open_stream(pair.session))
    large = open_call(pair.session, pair.now_s)
    large.message = large.message._replace(buffers=[bytes(PASS_BYTES_MAX)])
    pair.begun(large)

    stay(pair, 10.0, A)

    assert B not in pair.sent


def test_request_is_asked_by_no_more_than_a_few_peers():
    world = world_of(*(f"tcp://127.0.0.1:{port}" for port in range(7401, 7411)))
    world.call()

    stay(world, 25.0, A)

    asked = [endpoint for endpoint in world.sent if endpoint != A]
    assert len(asked) == PASSES_MAX


def test_next_attempt_after_no_majority_goes_by_another_peer(pair):
    request = pair.call()

    pair.come(A, failure(1, NoQuorumError("object", "1 of 3 voters answer", 1, 2)))
    stay(pair, PING_S, A)
    pair.greet(B)
    pair.come(B, Reply(1))

    assert pair.calls(B) == [(1, 1, True)]
    assert pair.ended == [request]
    assert pair.session.endpoint == B


def test_spare_peer_of_another_cluster_is_not_gone_on_with():
    world = World(A, B)
    world.greet(A, cluster="one")
    request = world.call()
    stay(world, PASS_S + PING_S, A)

    with pytest.raises(RemoteProtocolError, match="belongs to cluster"):
        world.greet(B, cluster="two")
    world.give_up(B)

    assert world.session.links.main.endpoint == A
    assert request.link.endpoint == A


def test_full_link_is_not_taken_for_a_dead_peer(pair):
    """A Pong waits behind a large answer; on a second connection it does not."""
    request = pair.call()

    for token in range(10):
        pair.pass_time(1.25)
        pair.come(A, Pong(token, b"i" * 16, is_known=False), is_probe=True)
    pair.come(A, Reply(1))
    pair.pass_time(1.0)

    assert B not in pair.sent
    assert pair.ended == [request]


def test_probe_that_meets_a_restarted_peer_is_no_sign_of_life(pair):
    pair.call()
    pair.pass_time(1.25)

    pair.come(A, Pong(1, b"x" * 16, is_known=False), is_probe=True)
    pair.pass_time(DEAD_S - 1.25)

    assert B in pair.sent


def test_connected_peer_that_wakes_up_before_another_answers_goes_on(pair):
    pair.call()
    pair.pass_time(DEAD_S)
    held = pair.call()

    pair.come(A, Reply(1))

    assert pair.calls(A) == [(1, 0, False), (2, 0, False)]
    assert held.is_sent
    assert [link.endpoint for link in pair.session.links.by_route.values()] == [A]
    assert not pair.session.links.is_looking


def test_connected_peer_that_restarts_while_another_is_looked_for_goes_on(pair):
    pair.call()
    pair.pass_time(DEAD_S)

    pair.come(A, Pong(1, b"j" * 16, is_known=False))
    pair.come(A, welcome(b"j" * 16)._replace(peer_id=ID_A))

    assert pair.calls(A) == [(1, 0, False), (1, 1, False)]
    assert pair.session.endpoint == A


def test_next_address_is_tried_where_the_first_other_is_dead_too():
    world = World(A, B, C)
    world.greet(A)
    world.call()
    world.pass_time(DEAD_S + 0.5)

    world.greet(C)

    assert world.calls(C) == [(1, 1, False)]
    assert [link.endpoint for link in world.session.links.by_route.values()] == [C]


def test_peers_that_the_welcome_named_are_known(world):
    world.greet(A, peers=[A, C, 7, "", "x" * 1000, D])
    world.call()

    world.pass_time(DEAD_S)
    world.greet(C)

    assert world.session.links.learned == (A, C, D)
    assert world.session.endpoint == C


@pytest.mark.parametrize("peers", ["tcp://x", {"a": 1}, 7, [1, 2], [["a"]]])
def test_peers_that_are_no_addresses_are_left_aside(world, peers):
    world.greet(A, peers=peers)

    assert world.session.links.learned == ()


def test_at_most_eight_learned_peers_are_kept(world):
    world.greet(A, peers=[f"tcp://10.0.0.{n}:7400" for n in range(100)])

    assert len(world.session.links.learned) == links_module.LEARNED_MAX


def test_peer_of_another_cluster_is_not_gone_on_with():
    world = World(A, B, C)
    world.greet(A, cluster="edge")
    world.call()
    world.pass_time(DEAD_S)

    with pytest.raises(
        RemoteProtocolError, match="belongs to cluster 'other'"
    ) as caught:
        world.greet(B, cluster="other")
    world._carry(*world.session.give_up(world.link(B), caught.value, world.now_s))
    world.pass_time(0.5)
    world.greet(C, cluster="edge")

    assert world.calls(B) == []
    assert world.session.endpoint == C


def test_connected_peer_that_refuses_is_replaced(pair):
    pair.call()

    pair.come(A, Refused("draining", "this peer stops"))
    pair.pass_time(0.1)
    pair.greet(B)

    assert pair.calls(B) == [(1, 1, False)]
    assert pair.session.refusal is None
    assert [link.endpoint for link in pair.session.links.by_route.values()] == [B]


def test_all_peers_refuse_and_what_waits_fails_with_the_last_reason(pair):
    request = pair.call()

    pair.come(A, Refused("draining", "this peer stops"))
    pair.pass_time(0.1)
    pair.come(B, Refused("version", "this peer speaks version 9"))

    assert isinstance(request.error, RemoteProtocolError)
    assert "version 9" in str(request.error)


def test_refused_peers_are_tried_again_after_a_while(pair):
    pair.call()
    pair.come(A, Refused("draining", "this peer stops"))
    pair.pass_time(0.1)
    pair.come(B, Refused("draining", "this one too"))

    later = pair.call()
    pair.pass_time(29.0)
    pair.call()
    pair.pass_time(2.0)
    pair.greet(A)

    assert isinstance(later.error, UnavailableError)
    assert pair.calls(A)[-1] == (3, 0, False)


def test_lone_peer_that_talks_nonsense_fails_what_is_open_and_stays(world):
    request = world.call()

    world.give_up(A)
    world.call()

    assert isinstance(request.error, RemoteProtocolError)
    assert world.calls(A)[-1] == (2, 0, False)


def test_direct_link_to_the_next_connected_peer_becomes_one_with_it(pair):
    """Its requests are known there: nothing is sent twice, and streams go on."""
    first = pair.call()
    pair.moved(A, first, B)
    pair.greet(B)
    stream = pair.begun(open_stream(pair.session))
    at_main = pair.call(direct=False)
    pair.session.links.main.heard_s = pair.now_s
    for _ in range(8):
        pair.pass_time(DEAD_S / 8)
        direct = next(
            link for link in pair.session.links.by_route.values() if link.expected_id
        )
        pair._carry(*pair.session.take(Beat([1, 2]), pair.now_s, direct))
    pair.pass_time(0.25)
    candidate = pair.session.links.candidates[-1]
    assert candidate.endpoint == B

    hello = welcome()._replace(peer_id=ID_B)
    pair._carry(*pair.session.take(hello, pair.now_s, candidate))

    assert pair.calls(B) == [(1, 0, False), (2, 0, False), (3, 1, True)]
    assert not stream.is_done
    assert {first.link, stream.link, at_main.link} == {candidate}
    assert list(pair.session.links.by_route.values()) == [candidate]
    assert pair.call().link is candidate


def test_cancel_goes_to_where_the_call_went_and_nowhere_where_it_is_held(world):
    request = world.call()
    world.moved(A, request, B)

    assert world.session.abandon(request, UnavailableError("x", "y")) == []
    again = world.call()
    world.greet(B)
    assert world.session.abandon(again, UnavailableError("x", "y")) == [
        (world.link(B), Cancel(2))
    ]


def test_stream_is_ended_at_the_next_peer_which_may_be_the_same_one(pair):
    """Else it would hold its object, and wait for a reader for ever."""
    stream = pair.begun(open_stream(pair.session))
    pair.pass_time(DEAD_S)

    pair.come(B, welcome()._replace(peer_id=ID_A))

    assert stream.is_done
    assert pair.sent[B][-1] == Cancel(1)


# -- the first peer --------------------------------------------------------------------


def test_second_address_is_asked_when_the_first_does_not_answer():
    world = World(A, B)

    world.pass_time(FIRST_WAIT_S / 2)
    assert B not in world.sent
    world.pass_time(FIRST_WAIT_S / 2)
    world.greet(B)

    assert world.session.endpoint == B
    assert world.kinds(B) == [Hello]
    assert [link.endpoint for link in world.session.links.by_route.values()] == [B]


def test_first_address_that_refuses_is_not_waited_for():
    world = World(A, B)

    world.come(A, Refused("version", "this peer speaks version 9"))
    world.pass_time(0.1)
    world.greet(B)

    assert world.session.endpoint == B
    assert world.now_s < FIRST_WAIT_S


def test_slow_first_address_wins_over_a_dead_second():
    world = World(A, B)
    world.pass_time(FIRST_WAIT_S * 3)

    world.greet(A)

    assert world.session.endpoint == A
    assert [link.endpoint for link in world.session.links.by_route.values()] == [A]


def test_candidates_that_do_not_answer_are_asked_again():
    """What was said to a connection that broke is lost; a Ping brings a Hello."""
    world = World(A)

    world.pass_time(5.0)
    world.come(A, Pong(1, b"i" * 16, is_known=False))

    assert world.kinds(A) == [Hello, Ping, Ping, Hello]
