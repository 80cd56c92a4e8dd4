"""One request on its way to another peer: who waits for it, whom it was sent to.

Rules of this file: data; what becomes of a trip is decided by `relays`.

Source: design section 7.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from activestore.errors import ActiveStoreError
from activestore.ids import ObjectId, PeerId, SessionId
from activestore.peer import extras
from activestore.peer.extras import Unled
from activestore.peer.links import Link
from activestore.peer.table import Session
from activestore.wire.limits import UNLED, early_s
from activestore.wire.messages import Call

# Who has a request, and is asked for a sign, and gives none for so long, is not waited for:
# a client is told so, and at a deadline it is told how it ended.
UNHEARD_S = 1.0
# No line answers sooner for sure: what has less time left is not said to be unheard.
ANSWER_S = 0.02

Then = Callable[[Any, ActiveStoreError | None], None]


class Question:
    """What somebody waits for: of which object, and until when."""

    __slots__ = ("began_s", "is_told", "message", "object_id", "until_s")

    def __init__(self, message: Any, object_id: ObjectId, now_s: float) -> None:
        self.message = message
        self.object_id = object_id
        self.began_s = now_s
        deadline_ms = getattr(message, "deadline_ms", 0)
        # When its deadline will have passed; 0: never.
        self.until_s = now_s + deadline_ms / 1000 if deadline_ms else 0.0
        # Whether its client knows that nobody is heard who leads its object, or has it.
        self.is_told = False

    @property
    def told_s(self) -> float:
        """When it is told at last that no majority answered; 0 for never."""
        if not self.until_s:
            return 0.0
        return self.until_s - early_s(self.until_s - self.began_s)

    @property
    def patience_s(self) -> float:
        """How long who has it may be silent, when asked for a sign."""
        if not self.until_s:
            return UNHEARD_S
        return min(UNHEARD_S, (self.until_s - self.began_s) / 2)

    @property
    def answering_s(self) -> float:
        """How long who is asked for a sign has for it, where others may just have asked.

        What has more time is looked at, and has it asked, a few times before it is judged.
        """
        patience_s = self.patience_s
        return 0.0 if patience_s >= UNHEARD_S else max(patience_s / 2, ANSWER_S)

    def next_look_s(self, now_s: float) -> float:
        """Return when its deadline next asks for something to be done, 0 for never.

        All are looked at a few times a second. Who has one that is urgent is asked between
        those looks, and has time to answer before it is judged.
        """
        if self.answering_s:
            for share in (1 / 2, 1):
                at_s = self.began_s + share * self.patience_s
                if at_s > now_s:
                    return at_s
        return self.told_s if self.told_s > now_s else 0.0

    def in_time(self, now_s: float) -> Any:
        """Return the message with what is left of its deadline."""
        if not self.until_s:
            return self.message
        left_ms = max(1, round((self.until_s - now_s) * 1000))
        return self.message._replace(deadline_ms=left_ms)


class Wait(Question):
    """A request that was relayed to a copy that nobody leads, and waits there."""

    __slots__ = ("session",)

    def __init__(
        self, session: Session, message: Any, object_id: ObjectId, now_s: float
    ) -> None:
        super().__init__(message, object_id, now_s)
        self.session = session


class Trip(Question):
    """One request on its way to another peer."""

    __slots__ = (
        "again", "asked", "attempt", "call_id", "due_s", "is_again", "is_going", "is_here",
        "is_parked", "is_resting", "is_sent", "link", "named_s", "passed", "redirects",
        "sequence", "session", "session_id", "target", "then",
    )  # fmt: skip

    def __init__(
        self, session_id: SessionId, message: Any, object_id: ObjectId, now_s: float
    ) -> None:
        super().__init__(message, object_id, now_s)
        self.session_id = session_id
        self.sequence: int = message.sequence
        self.attempt: int = getattr(message, "attempt", 0)
        self.redirects = 0
        # Whom it was sent to, and how new our knowledge was then.
        self.asked: dict[PeerId, int] = {}
        # Members of a group that may be gone: others are asked instead.
        self.passed: set[PeerId] = set()
        self.target = PeerId(b"")
        self.link: Link | None = None
        # Exactly one of these says who waits.
        self.session: Session | None = None
        self.call_id = 0
        self.then: Then | None = None
        # Of a question: has it answered here, where the object has come here.
        self.again: Callable[[], None] | None = None
        self.due_s = 0.0
        self.is_again = False  # it may have arrived: the next time is another attempt
        self.is_parked = False  # it waits here for somebody to lead the object
        self.is_resting = False  # asked again with the next look
        self.is_sent = False  # some peer may have it
        self.is_here = False  # asked of this peer, as others are
        self.is_going = False  # who had its object does not, and nobody else said so
        # When it was sent, or its peer last told that it has it; of a client's also when
        # the client was told so because a large message got on.
        self.named_s = now_s

    @property
    def is_stream(self) -> bool:
        """Whether it may have been answered in part."""
        return type(self.message) is Call and bool(
            (self.message.extra or {}).get("stream")
        )


def with_unled(message: Any, unled: Unled) -> Any:
    """Return a message that tells who said that nobody leads with a majority."""
    if extras.unled(message.extra) == unled:
        return message
    return message._replace(extra={**(message.extra or {}), UNLED: list(unled)})


def asked_before(message: Any) -> Any:
    """Return a client's message that has waited as a later attempt: it is looked up.

    Meanwhile its client may have asked another peer, and have the answer.
    """
    is_first = getattr(message, "attempt", 1) == 0
    return message._replace(attempt=1) if is_first else message
