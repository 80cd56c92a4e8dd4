"""One client's session with a peer, without I/O: numbers, retries, silence, resends.

    request -> SENT -> answered | failed
            SENT -> WAITING (a failure that may be retried) -> SENT
    Welcome from another incarnation, or Pong(is_known=False): all requests are sent
    again with the same number and the next attempt; the peer answers what it has
    answered before.

Rules of this file: time is `now_s`, chance is `rng`; what it returns must be sent in
order. A stream is never sent again: what was seen of it cannot be taken back.

Source: design section 5 (two bounds, exactly once); reliability.md 3.7 and 7.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from activestore.errors import (
    ActiveStoreError,
    DeadlineExceededError,
    ExecutorCrashedError,
    RemoteProtocolError,
    UnavailableError,
    error_from_wire,
)
from activestore.ids import SessionId
from activestore.wire import values
from activestore.wire.limits import (
    OPEN_TOLD_EVERY,
    OPEN_TOLD_FROM,
    OPEN_TOLD_MAX,
    PROTOCOL_VERSION,
    PROTOCOL_VERSION_MIN,
)
from activestore.wire.messages import (
    Beat,
    Call,
    Cancel,
    Credit,
    Failure,
    Hello,
    Item,
    Message,
    Ping,
    Pong,
    Refused,
    Reply,
    Welcome,
)

ATTEMPTS_MAX = 3
BACKOFF_S = 0.05
BACKOFF_S_MAX = 2.0
# With requests open and nothing heard for this long, ask whether the peer knows us.
PING_S = 0.5
# The peer says itself that a deadline has passed; after this much more we say so.
DEADLINE_GRACE_S = 0.5
# Items that a stream may be ahead of its reader; granted again in halves.
STREAM_CREDIT = 16

RETRYABLE = frozenset({"unavailable", "busy", "executor_crashed", "no_quorum"})
_NEVER_S = float("-inf")


class Request:
    """One request on its way, and where its outcome goes."""

    __slots__ = (
        "attempt", "deadline_s", "error", "first_sent_s", "heard_s", "is_counted",
        "is_done", "is_stream", "items", "message", "next_item", "on_done",
        "owed_credit", "reply", "retry_s", "sequence", "timeout_s", "waiter", "where",
    )  # fmt: skip

    def __init__(
        self, sequence: int, message: Any, now_s: float, timeout_s: float, where: str
    ) -> None:
        self.sequence = sequence
        self.message = message
        self.where = where
        self.attempt = 0
        self.first_sent_s = now_s
        self.heard_s = now_s
        self.timeout_s = timeout_s
        self.deadline_s = now_s + timeout_s if timeout_s else 0.0
        self.retry_s = 0.0
        self.is_stream = False
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


class Peer(NamedTuple):
    """Who answered Hello, and its limits."""

    peer_id: bytes
    name: str
    incarnation: bytes
    version: int
    message_bytes_max: int


class Session:
    """All requests of one client."""

    def __init__(
        self,
        session_id: SessionId,
        name: str,
        endpoint: str,
        silence_s: float,
        rng: Callable[[], float],
    ) -> None:
        self.session_id = session_id
        self.endpoint = endpoint
        self.silence_s = silence_s
        self.peer: Peer | None = None
        self.refusal: ActiveStoreError | None = None
        self.requests: dict[int, Request] = {}
        self._name = name
        self._rng = rng
        self._next_sequence = 1
        self._next_token = 1
        self._heard_s = 0.0
        self._asked_s = 0.0
        self._greeted_s = _NEVER_S
        self._next_tick_s = 0.0

    def hello(self) -> Hello:
        """Return the first message of every connection."""
        return Hello(
            PROTOCOL_VERSION_MIN, PROTOCOL_VERSION, self.session_id, self._name,
            ["call", "stream"],
        )  # fmt: skip

    @property
    def first_unacked(self) -> int:
        """The lowest sequence that is not answered; numbers only grow in the table."""
        return next(iter(self.requests), self._next_sequence)

    def open(
        self,
        make: Callable[[int, int], Any],
        now_s: float,
        timeout_s: float,
        where: str,
    ) -> Request:
        """Number a request and remember it; the caller sends `request.message`."""
        sequence = self._next_sequence
        self._next_sequence = sequence + 1
        first_unacked = next(iter(self.requests), sequence)
        message = make(sequence, first_unacked)
        if sequence - first_unacked > OPEN_TOLD_FROM and type(message) is Call:
            message = self._with_open(message)
        request = Request(sequence, message, now_s, timeout_s, where)
        self.requests[sequence] = request
        return request

    def _with_open(self, message: Call) -> Call:
        """Say which requests are open, now and then, where one has been for long.

        Else the peer would keep the answers of all that came after it.
        """
        is_turn = message.sequence % OPEN_TOLD_EVERY == 0
        if not is_turn or len(self.requests) > OPEN_TOLD_MAX:
            return message
        extra = {**(message.extra or {}), "open": list(self.requests)}
        return message._replace(extra=extra)

    # -- what comes in -----------------------------------------------------------------

    def take(  # noqa: C901 - one branch per message kind
        self, message: Any, now_s: float
    ) -> tuple[list[Request], list[Message]]:
        """Take one message; return the requests that it ended or fed, and what to send."""
        self._heard_s = now_s
        kind = type(message)
        if kind is Reply:
            request = self.requests.pop(message[0], None)
            if request is None:
                return [], []
            request.reply = message
            request.is_done = True
            return [request], []
        if kind is Beat:
            for sequence in message[0]:
                known = self.requests.get(sequence)
                if known is not None:
                    known.heard_s = now_s
            return [], []
        if kind is Item:
            return self._take_item(message, now_s)
        if kind is Failure:
            return self._take_failure(message, now_s)
        if kind is Welcome:
            return self._take_welcome(message, now_s)
        if kind is Pong:
            return self._take_pong(message, now_s)
        if kind is Refused:
            return self._take_refused(message, now_s)
        raise RemoteProtocolError(f"a client takes no {kind.__name__}", self.endpoint)

    def _take_item(
        self, message: Any, now_s: float
    ) -> tuple[list[Request], list[Message]]:
        request = self.requests.get(message.sequence)
        if request is None or not request.is_stream:
            return [], []
        request.heard_s = now_s
        if message.number != request.next_item:
            error = RemoteProtocolError(
                f"item {message.number} came where {request.next_item} was due",
                request.where,
            )
            return [self._fail(request, error)], [Cancel(request.sequence)]
        request.next_item += 1
        request.items.append(message)
        return [request], []

    def _take_failure(
        self, message: Any, now_s: float
    ) -> tuple[list[Request], list[Message]]:
        request = self.requests.get(message.sequence)
        if request is None:
            return [], []
        error = self._error_of(message)
        if self._may_retry(request, message.code, error):
            request.heard_s = now_s
            backoff_s = min(BACKOFF_S * 2**request.attempt, BACKOFF_S_MAX)
            wait_s = max(self._rng() * backoff_s, getattr(error, "retry_after_s", 0.0))
            request.retry_s = now_s + wait_s
            self._next_tick_s = min(self._next_tick_s, request.retry_s)
            return [], []
        return [self._fail(request, error)], []

    def _error_of(self, message: Any) -> ActiveStoreError:
        """Return the error that a Failure carries; its fields may be anything."""
        fields = values.decode(message.body)
        if type(fields) is not list:
            raise RemoteProtocolError(
                f"the body of a Failure must be a list, got {type(fields).__name__}",
                self.endpoint,
            )
        error = error_from_wire(message.code, tuple(fields))
        for name in ("retry_after_s", "quarantined_s"):
            seen = getattr(error, name, 0.0)
            if type(seen) not in (float, int):
                raise RemoteProtocolError(
                    f"{name} of a Failure must be a number, got {str(seen)[:40]!r}",
                    self.endpoint,
                )
        return error

    @staticmethod
    def _may_retry(request: Request, code: str, error: ActiveStoreError) -> bool:
        if code not in RETRYABLE or request.is_stream:
            return False
        if isinstance(error, ExecutorCrashedError) and (
            error.quarantined_s > 0 or error.is_partial
        ):
            return False
        return request.attempt + 1 < ATTEMPTS_MAX

    def _take_welcome(
        self, message: Any, now_s: float
    ) -> tuple[list[Request], list[Message]]:
        if not PROTOCOL_VERSION_MIN <= message.version <= PROTOCOL_VERSION:
            raise RemoteProtocolError(
                f"it speaks version {message.version}, this client "
                f"{PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}",
                self.endpoint,
            )
        is_first = self.peer is None
        self.peer = Peer(
            message.peer_id, message.peer_name, message.incarnation, message.version,
            message.limits.get("message_bytes_max", 1 << 30),
        )  # fmt: skip
        self._asked_s = 0.0
        self._greeted_s = _NEVER_S
        if is_first:
            return [], []
        return self._send_all_again(now_s)

    def _send_all_again(self, now_s: float) -> tuple[list[Request], list[Message]]:
        ended, out = [], []
        for request in list(self.requests.values()):
            if request.is_stream:
                error = UnavailableError(
                    request.where, "the connection broke; a stream is not resumed"
                )
                ended.append(self._fail(request, error))
            elif not request.retry_s:
                out.append(self._again(request, now_s))
        return ended, out

    def _take_pong(
        self, message: Any, now_s: float
    ) -> tuple[list[Request], list[Message]]:
        self._asked_s = 0.0
        if message.is_known and (
            self.peer is None or message.incarnation == self.peer.incarnation
        ):
            return [], []
        return [], self._greet_again(now_s)

    def _greet_again(self, now_s: float) -> list[Message]:
        """Return Hello, once for all messages that a peer refused for the lack of it.

        Each Welcome has all requests sent again, so one per refusal would be square.
        """
        if now_s - self._greeted_s < PING_S:
            return []
        self._greeted_s = now_s
        return [self.hello()]

    def _take_refused(
        self, message: Any, now_s: float
    ) -> tuple[list[Request], list[Message]]:
        if message.code == "hello_needed":
            return [], self._greet_again(now_s)
        self.refusal = RemoteProtocolError(message.reason, self.endpoint)
        return [self._fail(r, self.refusal) for r in list(self.requests.values())], []

    # -- time --------------------------------------------------------------------------

    def next_tick_s(self) -> float:
        """Return when `tick` is due next."""
        return self._next_tick_s

    def tick(self, now_s: float) -> tuple[list[Request], list[Message]]:
        """Do what time asks for; return the requests that it ended, and what to send."""
        ended: list[Request] = []
        out: list[Message] = []
        self._next_tick_s = now_s + PING_S / 2
        oldest_s = now_s
        for request in list(self.requests.values()):
            oldest_s = min(oldest_s, request.heard_s)
            if request.deadline_s and now_s > request.deadline_s + DEADLINE_GRACE_S:
                error: ActiveStoreError = DeadlineExceededError(
                    request.where, request.timeout_s
                )
                ended.append(self._fail(request, error))
                out.append(Cancel(request.sequence))
            elif now_s - request.heard_s >= self.silence_s:
                ended.append(self._fail(request, self._silent(now_s - request.heard_s)))
            elif request.retry_s and now_s >= request.retry_s:
                request.retry_s = 0.0
                out.append(self._again(request, now_s))
            elif request.retry_s:
                self._next_tick_s = min(self._next_tick_s, request.retry_s)
        quiet_s = now_s - max(self._heard_s, oldest_s, self._asked_s)
        if self.requests and quiet_s >= PING_S:
            self._asked_s = now_s
            out.append(Ping(self._next_token))
            self._next_token += 1
        for request in self.requests.values():
            self._next_tick_s = min(self._next_tick_s, request.heard_s + self.silence_s)
        return ended, out

    def _silent(self, silent_s: float) -> UnavailableError:
        return UnavailableError(
            self.endpoint,
            f"nothing was heard for {silent_s:.1f} s (timeout_s={self.silence_s:g}); is the "
            "peer running and reachable? start one with `activestore-node start`",
        )

    def _again(self, request: Request, now_s: float) -> Message:
        """Return the request as its next attempt."""
        request.attempt += 1
        message = request.message
        if not hasattr(message, "attempt"):
            return message  # type: ignore[no-any-return]  # a Request: asked anew
        extra = dict(message.extra or {})
        extra["age_ms"] = int((now_s - request.first_sent_s) * 1000)
        again = message._replace(attempt=request.attempt, extra=extra)
        if request.deadline_s and hasattr(message, "deadline_ms"):
            left_ms = max(1, int((request.deadline_s - now_s) * 1000))
            again = again._replace(deadline_ms=left_ms)
        return again  # type: ignore[no-any-return]  # the same kind of message

    def _fail(self, request: Request, error: ActiveStoreError) -> Request:
        self.requests.pop(request.sequence, None)
        request.error = error
        request.is_done = True
        return request

    def abandon(self, request: Request, error: ActiveStoreError) -> Message | None:
        """End a request from this side; return what to tell the peer."""
        if request.is_done:
            return None
        self._fail(request, error)
        return Cancel(request.sequence)

    def fail_all(self, error: ActiveStoreError) -> list[Request]:
        """End every request with an error."""
        return [self._fail(request, error) for request in list(self.requests.values())]

    @staticmethod
    def credit_for(request: Request) -> Message | None:
        """Note that an item was taken; return a grant when half the window is owed."""
        request.owed_credit += 1
        if request.owed_credit < STREAM_CREDIT // 2:
            return None
        owed, request.owed_credit = request.owed_credit, 0
        return Credit(request.sequence, owed)
