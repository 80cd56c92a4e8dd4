"""One request of a client on its way, and the error that a peer may answer it with.

Rules of this file: no I/O; the session decides where a request goes and when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from activestore.client.links import Link, Links
from activestore.errors import (
    ActiveStoreError,
    ExecutorCrashedError,
    MovedError,
    NoQuorumError,
    RemoteProtocolError,
    UnavailableError,
    error_from_wire,
)
from activestore.wire import values
from activestore.wire.limits import (
    NESTED_EARLY_S,
    OPEN_TOLD_EVERY,
    OPEN_TOLD_MAX,
    early_s,
)
from activestore.wire.messages import Call, Credit, Delete, Item, Message, Reply

ATTEMPTS_MAX = 3
# Items that a stream may be ahead of its reader; granted again in halves.
STREAM_CREDIT = 16
# A forwarded request may still be told `moved`, by peers that disagree for a moment or by an
# answer to an earlier attempt. It did not run, so it is tried again: this often in all, and
# for so long: after the loss of a peer others take over what it led within that.
MOVES_MAX = 10
MOVED_S = 20.0
# What the connected peer is asked once more, where another one that had the object says so.
ASKED_AGAIN = frozenset({"object_not_found", "no_quorum"})
# Requests about one peer, or its own copy: what it refuses is asked of no other one.
OF_ONE_PEER = frozenset({"drain", "stop", "force", "export", "discard"})
RETRYABLE = frozenset({"unavailable", "busy", "executor_crashed", "no_quorum"})
# Peers refuse a little before the deadline what has no majority, and methods a little more
# than that. The rest: what is left of a deadline travels in whole milliseconds.
LATE_S = NESTED_EARLY_S + 0.05
# The peer says itself that a deadline has passed; after this much more we say so.
DEADLINE_GRACE_S = 0.5


class Request:
    """One request on its way, and where its outcome goes."""

    __slots__ = (
        "attempt", "deadline_s", "error", "first_sent_s", "heard_s", "is_counted",
        "is_done", "is_forwarded", "is_sent", "is_stream", "is_unheard", "items", "link",
        "message", "next_item", "on_done", "owed_credit", "passes", "redirects",
        "refusal", "reply", "retry_s", "sent_s", "sequence", "timeout_s", "tried",
        "waiter", "where",
    )  # fmt: skip

    def __init__(
        self, sequence: int, message: Any, link: Link, now_s: float, timeout_s: float,
        where: str,
    ) -> None:  # fmt: skip
        self.sequence = sequence
        self.message = message
        self.link = link
        self.is_sent = link.is_up
        self.sent_s = now_s
        self.is_forwarded = False  # The connected peer was asked to forward it.
        self.redirects = 0
        self.passes = 0  # How often another peer was asked because nothing was heard.
        self.refusal: ActiveStoreError | None = None  # That another peer may not share.
        self.tried: list[Link] = []  # Links by which it was asked without an answer.
        self.where = where
        self.attempt = 0
        self.first_sent_s = now_s
        self.heard_s = now_s
        self.timeout_s = timeout_s
        self.deadline_s = now_s + timeout_s if timeout_s else 0.0
        self.retry_s = 0.0
        self.is_stream = False
        self.is_unheard = False  # Its peer says that it hears nobody who can answer it.
        self.items: list[Item] = []
        self.next_item = 0
        self.owed_credit = 0
        self.is_counted = False  # as one that no thread waits for
        self.is_done = False
        self.reply: Reply | None = None
        self.error: ActiveStoreError | None = None
        self.waiter: Any = None
        self.on_done: Callable[[Request], None] | None = None

    def outcome(self) -> Reply:
        """Return the reply, or raise what the request failed with."""
        if self.error is not None:
            raise self.error
        assert self.reply is not None
        return self.reply

    @property
    def given_up_s(self) -> float:
        """When nothing more is waited for, 0 for never: peers tell of a deadline themselves.

        Not where one has said that there is no majority, and no other has been heard since.
        """
        if not self.deadline_s:
            return 0.0
        is_heard = self.heard_s > self.sent_s and not self.retry_s
        if type(self.refusal) is NoQuorumError and not is_heard:
            return self.deadline_s - early_s(self.timeout_s)
        return self.deadline_s + DEADLINE_GRACE_S

    @property
    def may_have_run(self) -> bool:
        """Whether a peer was sent it, on this link or on one that is gone."""
        return self.is_sent or self.attempt > 0

    def choose_link(self, links: Links, now_s: float, busy: Iterable[Link]) -> None:
        """Go to where the object is known to be, or ask the connected peer to forward."""
        message = self.message
        if message.extra and message.extra.get("direct") is False:
            self.is_forwarded = True
            return
        if type(message) is not Call and type(message) is not Delete:
            return
        place = links.place_of(message, now_s)
        if place is None:
            return
        link = links.link_to(place, now_s, busy)
        if link is None:
            self.ask_to_forward()
        else:
            self.link = link
            self.is_sent = link.is_up

    def credit_due(self) -> Message | None:
        """Note that an item was taken; return a grant when half the window is owed."""
        self.owed_credit += 1
        if self.owed_credit < STREAM_CREDIT // 2:
            return None
        owed, self.owed_credit = self.owed_credit, 0
        return Credit(self.sequence, owed)

    def may_retry(self, code: str, error: ActiveStoreError, now_s: float) -> bool:
        """Return whether what failed so may be tried again."""
        if self.is_stream:
            return False
        if code == MovedError.code:
            self.redirects += 1
            is_new = now_s - self.first_sent_s < MOVED_S
            return is_new or self.redirects <= MOVES_MAX
        if code not in RETRYABLE:
            return False
        if getattr(self.message, "operation", "") in OF_ONE_PEER:
            return False
        if code == "no_quorum" and 0 < self.deadline_s <= now_s + LATE_S:
            return False  # It says more than that the deadline passed.
        if isinstance(error, ExecutorCrashedError) and (
            error.quarantined_s > 0 or error.is_partial
        ):
            return False
        return self.attempt - self.passes + 1 < ATTEMPTS_MAX

    def why_silent(
        self, now_s: float, silence_s: float, dead_s: float
    ) -> UnavailableError:
        """Return what it fails with when nothing was heard of it for too long."""
        link, silent_s = self.link, now_s - self.heard_s
        what = f"nothing was heard for {silent_s:.1f} s (timeout_s={silence_s:g})"
        is_heard = now_s - link.heard_s < min(dead_s, silent_s / 2)
        if is_heard and hasattr(self.message, "object_id"):
            why = f"{link.endpoint} answers, whoever has the object does not"
            what = f"{what}; {why}: see `activestore-node peers`"
            return UnavailableError(self.where, what)
        ask = (
            "is the peer running and reachable? start one with `activestore-node start`"
        )
        return UnavailableError(link.endpoint, f"{what}; {ask}")

    def ask_to_forward(self) -> None:
        """Have whoever gets the request forward it, instead of naming another peer."""
        self.is_forwarded = True
        extra = {**(self.message.extra or {}), "direct": False}
        self.message = self.message._replace(extra=extra)

    def as_sent(self, now_s: float) -> Message:
        """Return the message as this attempt is sent now."""
        message = self.message
        if not hasattr(message, "attempt"):
            return message  # type: ignore[no-any-return]  # a Request: asked anew
        attempt = self.attempt or int(self.link.is_passed)
        if attempt:
            extra = dict(message.extra or {})
            extra["age_ms"] = int((now_s - self.first_sent_s) * 1000)
            message = message._replace(attempt=attempt, extra=extra)
        if self.deadline_s and hasattr(message, "deadline_ms"):
            left_ms = max(1, int((self.deadline_s - now_s) * 1000))
            message = message._replace(deadline_ms=left_ms)
        return message  # type: ignore[no-any-return]  # the same kind of message


# What fields of errors must be where something is done with them here.
_NUMBERS: tuple[type, ...] = (float, int)
_KINDS: dict[str, tuple[type, ...]] = {
    "retry_after_s": _NUMBERS,
    "quarantined_s": _NUMBERS,
}
_MOVED_KINDS: dict[str, tuple[type, ...]] = {
    "object_id": (bytes,),
    "peer_id": (bytes,),
    "endpoint": (str,),
    "epoch": (int,),
}
_WORDS = {float: "a number", bytes: "bytes", str: "a text", int: "an integer"}


def with_open(message: Call, requests: Mapping[int, Request]) -> Call:
    """Say which requests are open, now and then, where one has been for long.

    Else the peer would keep the answers of all that came after it.
    """
    is_turn = message.sequence % OPEN_TOLD_EVERY == 0
    if not is_turn or len(requests) > OPEN_TOLD_MAX:
        return message
    extra = {**(message.extra or {}), "open": list(requests)}
    return message._replace(extra=extra)


def error_of(message: Any, where: str) -> ActiveStoreError:
    """Return the error that a Failure carries; its fields may be anything.

    Raises:
        RemoteProtocolError: they are not what they must be; `where` says who sent them.
    """
    fields = values.decode(message.body)
    if type(fields) is not list:
        raise RemoteProtocolError(
            f"the body of a Failure must be a list, got {type(fields).__name__}", where
        )
    error = error_from_wire(message.code, tuple(fields))
    kinds = _MOVED_KINDS if isinstance(error, MovedError) else _KINDS
    for name, expected in kinds.items():
        if not hasattr(error, name):
            continue
        seen = getattr(error, name)
        if type(seen) not in expected:
            raise RemoteProtocolError(
                f"{name} of a Failure must be {_WORDS[expected[0]]}, "
                f"got {str(seen)[:40]!r}",
                where,
            )
    return error
