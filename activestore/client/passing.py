"""Requests of which nothing is heard: by which other peer they are asked again.

A peer that works names what it has not answered every 2 s. Where it does not, the
request or its answer was lost on the way, or whoever has it is cut off from the others,
or stands still; or it says itself that it hears nobody who could answer; or the request
has a deadline, and half of it has passed in silence. The same request then goes by
another peer, as its next attempt; the first one may still answer, and the object's record
of answers has it done once.

Rules of this file: it chooses, the session sends. Only requests whose attempts are
counted are asked again, and none that is large, or a stream.

Source: reliability.md sections 2.2 and 3.7.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from activestore.client.links import Link, Links
from activestore.client.requests import Request
from activestore.errors import ActiveStoreError, NoQuorumError, UnavailableError
from activestore.wire.limits import UNHEARD, UNLED
from activestore.wire.messages import bytes_count

# Named by its peer every 2 s; the rest is for the way, and for peers that are busy.
PASS_S = 3.0
# Other peers that one request is asked by.
PASSES_MAX = 3
# What is larger may take its time, and would fill another line too.
PASS_BYTES_MAX = 1 << 20
# Requests whose deadlines ask for something within this are looked at together; and so much
# longer for each that is open: a look at all of them costs about 1 us for each.
LOOK_S_MIN = 0.02
LOOK_S_EACH = 50e-6
LOOK_S_MAX = 0.25
# Of its deadline, what a peer asked directly for a sign of life has to give one.
ANSWER_SHARE = 0.2
# What another peer may know better; busy objects and ended executors are so for all.
_KNOWN_BETTER = (NoQuorumError, UnavailableError)


def named(requests: Mapping[int, Request], beat: Any, link: Link, now_s: float) -> bool:
    """Take that a peer still has requests; return whether others may reach further."""
    is_unheard = bool(beat[1]) and beat[1].get(UNHEARD) is True
    for sequence in beat[0]:
        known = requests.get(sequence)
        if known is not None:
            known.heard_s = now_s
            known.is_unheard = is_unheard and known.link is link
            if known.is_unheard and UNLED in beat[1]:
                extra = {**(known.message.extra or {}), UNLED: beat[1][UNLED]}
                known.message = known.message._replace(extra=extra)
    return is_unheard


def note_waiting(requests: Iterable[Request], links: Links, now_s: float) -> None:
    """Note at each link since when requests wait there, and how long they can."""
    for link in links.by_route.values():
        link.oldest_s, link.patience_s = now_s, math.inf
    main = links.main
    for request in requests:
        if request.is_sent:
            link = request.link
            link.oldest_s = min(link.oldest_s, request.sent_s)
            if request.deadline_s and link is not main and links.is_direct(link):
                link.patience_s = min(link.patience_s, request.timeout_s / 4)


def note_asked(link: Link, now_s: float) -> None:
    """Note that a link is asked for a sign of life, and since when it is."""
    link.asked_s = now_s
    if link.unanswered_s <= link.heard_s:
        link.unanswered_s = now_s


def look_gap_s(count: int) -> float:
    """Return for how long no deadline has so many open requests looked at again."""
    return min(max(LOOK_S_MIN, count * LOOK_S_EACH), LOOK_S_MAX)


def first_look_s(request: Request, count: int) -> float:
    """Return when the deadline of a new request to a direct peer has that one asked."""
    if not request.deadline_s:
        return math.inf
    return request.sent_s + max(request.timeout_s / 4, look_gap_s(count))


def next_look_s(request: Request, links: Links, now_s: float) -> float:
    """Return when the deadline of a request next asks for something to be done."""
    if request.link is not links.main:
        # Its link is asked; another peer is, later where its link was asked late.
        for share in (3 / 4, 1 / 2, 3 / 8, 1 / 4):
            at_s = request.deadline_s - share * request.timeout_s
            if at_s > now_s:
                return at_s
    return request.given_up_s


def _is_pressed(request: Request, links: Links, now_s: float) -> bool:
    """Whether a peer asked directly has shown no life for half of the request's time.

    It was asked for it, and had time to answer: a method may run for long. The connected
    peer may know what to say in what is left.
    """
    link = request.link
    if not (request.deadline_s and link.asked_s and links.is_direct(link)):
        return False
    silent_s = now_s - max(link.heard_s, request.sent_s)
    is_asked = link.unanswered_s > link.heard_s
    asked_s = now_s - link.unanswered_s
    has_had_time = asked_s >= ANSWER_SHARE * request.timeout_s
    return is_asked and has_had_time and silent_s >= request.timeout_s / 2


def is_due(request: Request, links: Links, now_s: float) -> bool:
    """Return whether it is time to ask by another peer, and may be done."""
    if links.is_looking:
        return False
    # One that came back from a peer that is not reached goes on to the next.
    is_back = request.link in request.tried or request.is_unheard
    is_pressed = _is_pressed(request, links, now_s)
    wait_s = 0.0 if is_pressed or (is_back and request.refusal is None) else PASS_S
    if now_s - max(request.heard_s, request.sent_s) < wait_s:
        return False
    if not request.is_sent or request.is_stream or request.passes >= PASSES_MAX:
        return False
    if request.link.asked_s and not is_pressed:
        return False  # Its line may be full; whether its peer is there is being asked.
    message = request.message
    if not hasattr(message, "attempt"):
        return False
    return len(message[-2]) + sum(map(bytes_count, message[-1])) <= PASS_BYTES_MAX


def next_link(
    request: Request, links: Links, now_s: float, *, is_silent: bool = False
) -> Link | None:
    """Return a link by which a request was not asked yet, None where it may stay.

    Whoever gets it there shall forward it. `is_silent`: nothing is heard by its own link.
    """
    tried = request.tried
    request.is_unheard = False
    if is_silent and request.link not in tried:
        tried.append(request.link)
    if request.link not in tried or request.is_stream:
        return None
    found = _other(tried, links, now_s)
    if found is not None:
        request.link.is_passed |= is_silent
        request.ask_to_forward()
    return found


def _other(tried: list[Link], links: Links, now_s: float) -> Link | None:
    known = [
        one
        for one in links.by_route.values()
        if one.probed is None and one not in tried
    ]
    if known:  # One that is being opened, where none is welcomed.
        return max(known, key=lambda one: (one.is_up, one.heard_s))
    return links.open_spare(now_s)


def note_refusal(request: Request, error: ActiveStoreError, link: Link) -> None:
    """Have the next attempt go by another peer: this one may be cut off from the others.

    Where that one says nothing, what this one has said is the answer.
    """
    if type(error) in _KNOWN_BETTER:
        request.refusal = error
        if link not in request.tried:
            request.tried.append(link)


def answered(request: Request, links: Links, link: Link) -> None:
    """Ask first from now on who has answered, not who was asked in vain."""
    if request.tried and link not in request.tried:
        links.forget(getattr(request.message, "object_id", b""))
    if links.main in request.tried and link is not links.main:
        links.prefer(link)
