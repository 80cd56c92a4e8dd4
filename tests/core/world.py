"""A world for the invocation core: disk, executors and clients in virtual time, seeded.

Every object is a counter. Executors run calls after a random time, crash, raise, or give
their copies up; the disk refuses commits now and then. Clients retry with the same request
id, as the protocol asks: after a failure, while the first attempt is still in progress, and
when they lost its answer. Nothing here sleeps, and a seed always gives the same history.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from typing import Any, NamedTuple

from activestore.core import effects, events
from activestore.core.calls import Client, Kind, MethodInfo, Nested
from activestore.core.executors import PoolConfig
from activestore.core.fences import Fences
from activestore.core.invocation import InvocationConfig, InvocationCore
from activestore.core.mailboxes import MailboxConfig
from activestore.errors import ObjectNotFoundError, StorageFullError
from activestore.ids import ObjectId, SessionId
from activestore.wire.state import ObjectState, StateDelta

REVISION = b"r" * 16
CLASS = "model.Counter"
RETRIED = ("executor_crashed", "busy", "unavailable", "no_quorum")
ATTEMPTS_MAX = 50


class Payload(NamedTuple):
    """Stands for a wire Call."""

    body: bytes
    buffers: tuple[()] = ()


class Chances(NamedTuple):
    """How often things go wrong, per call or commit."""

    crash: float = 0.0
    raises: float = 0.0
    refusal: float = 0.0
    slow: float = 0.0
    silence: float = 0.0
    impatience: float = 0.0  # a retry though the first attempt is in progress
    loss: float = 0.0  # an answer that does not arrive


def delta_to(value: int) -> StateDelta:
    """Return the delta that sets the counter."""
    encoded = value.to_bytes(8, "big")
    return StateDelta(CLASS, REVISION, 0, {"value": encoded}, (), None, (), ())


class FakeExecutor:
    """One process: copies, and a queue per slot."""

    def __init__(self) -> None:
        self.copies: dict[int, int] = {}
        self.queues: dict[int, deque[Any]] = {}
        self.running: dict[int, bool] = {}
        self.is_dead = False


class World:
    """Carries the core's effects out at random times and checks what clients see."""

    def __init__(
        self,
        seed: int,
        *,
        chances: Chances | None = None,
        pool: PoolConfig | None = None,
        mailboxes: MailboxConfig | None = None,
        durability: int = 0,
    ) -> None:
        self.rng = random.Random(seed)
        self.chances = chances or Chances()
        self.now_s = 0.0
        self.core = InvocationCore(
            InvocationConfig(), mailboxes, pool or PoolConfig(executors=2, slots=2)
        )
        self.agenda: list[tuple[float, int, Any]] = []
        self.order = 0
        self.disk: dict[ObjectId, tuple[int, int]] = {}
        self.replies: dict[tuple[ObjectId, bytes, int], tuple[str, bytes]] = {}
        self.broken: dict[ObjectId, int] = {}
        self.fences: dict[ObjectId, bytes] = {}
        self.executors: dict[int, FakeExecutor] = {}
        self.answers: dict[Client, tuple[str, int]] = {}
        self.runs: dict[Client, int] = {}
        self.disk_busy_s = 0.0
        self.effects_seen: list[effects.Effect] = []
        methods = {
            "add": MethodInfo(False, False, 0.0),
            "peek": MethodInfo(True, False, 0.0),
            "relay": MethodInfo(False, False, 0.0),
        }
        self.nested: dict[Nested, Any] = {}
        self.step(
            events.ClassPublished(
                CLASS, REVISION, "model", durability, frozenset({"value"}), methods
            )
        )
        self.carry_out(self.core.start(0.0))

    # -- time -----------------------------------------------------------------------------

    def later(self, delay_s: float, action: Any) -> None:
        """Do `action` after a while; ties in order of asking."""
        self.order += 1
        heapq.heappush(self.agenda, (self.now_s + delay_s, self.order, action))

    def step(self, event: events.Event) -> None:
        """Step the core, carry out, check."""
        self.carry_out(self.core.step(event, self.now_s))
        self.core.check()

    def run_until_quiet(self, limit_s: float = 600.0) -> None:
        """Let everything happen until no call is left."""
        while self.core.calls or any(
            not isinstance(action, str) for _, _, action in self.agenda
        ):
            timer_s = self.core.deadline_s()
            next_s = self.agenda[0][0] if self.agenda else float("inf")
            if timer_s is not None and timer_s <= next_s:
                self.now_s = max(self.now_s, timer_s)
                self.step(events.TimerFired())
            else:
                self.now_s, _, action = heapq.heappop(self.agenda)
                action()
            assert self.now_s < limit_s, f"still busy: {list(self.core.calls.values())}"

    # -- effects --------------------------------------------------------------------------

    def carry_out(self, ordered: list[effects.Effect]) -> None:
        """Carry out effects by name of their class."""
        for effect in ordered:
            self.effects_seen.append(effect)
            getattr(self, f"do_{type(effect).__name__}", lambda _: None)(effect)

    def do_SpawnExecutor(self, effect: effects.SpawnExecutor) -> None:
        self.executors[effect.executor] = FakeExecutor()
        self.later(0.1, lambda: self.step(events.ExecutorStarted(effect.executor)))

    def do_PingExecutor(self, effect: effects.PingExecutor) -> None:
        executor = self.executors[effect.executor]
        if self.rng.random() < self.chances.silence:
            return  # Its interpreter is held; the core must do without it.
        if not executor.is_dead:
            self.later(
                0.0002, lambda: self.step(events.ExecutorAnswered(effect.executor))
            )

    def do_RecallCalls(self, effect: effects.RecallCalls) -> None:
        executor = self.executors[effect.executor]
        queue = executor.queues.get(effect.slot, deque())

        def give_back() -> None:
            given = [queue.pop() for _ in range(len(queue) - 1)]
            for call_id, attempt, _, _ in () if executor.is_dead else given:
                self.step(events.CallEnded(call_id, attempt, "not_run", b"", (), 0.0))

        self.later(0.0002, give_back)

    def do_KillExecutor(self, effect: effects.KillExecutor) -> None:
        self.kill(effect.executor, "killed")

    def do_RetireExecutor(self, effect: effects.RetireExecutor) -> None:
        self.kill(effect.executor, "retired")

    def kill(self, executor_id: int, how: str) -> None:
        """End a process; the daemon hears of it a little later."""
        executor = self.executors[executor_id]
        if not executor.is_dead:
            executor.is_dead = True
            self.later(0.001, lambda: self.step(events.ExecutorDied(executor_id, how)))

    def do_LoadObject(self, effect: effects.LoadObject) -> None:
        def read() -> None:
            found = self.disk.get(effect.object_id)
            if found is None:
                error = ObjectNotFoundError(effect.object_id)
                self.step(
                    events.ObjectMissing(effect.object_id, effect.is_reader, error)
                )
                return
            self.step(
                events.ObjectLoaded(
                    effect.object_id, effect.is_reader, CLASS, found[0], 8, found
                )
            )

        self.later(self.rng.uniform(0, 0.002), read)

    def do_LookUpReply(self, effect: effects.LookUpReply) -> None:
        def look() -> None:
            key = (effect.object_id, effect.session, effect.sequence)
            code, body = self.replies.get(key, (None, b""))
            self.step(events.ReplyLookedUp(effect.call_id, code, body))

        self.later(self.rng.uniform(0, 0.002), look)

    def do_LookUpFences(self, effect: effects.LookUpFences) -> None:
        def look() -> None:
            kept = self.fences.get(effect.object_id, b"")
            self.step(events.FencesLookedUp(effect.object_id, effect.token, kept))

        self.later(self.rng.uniform(0, 0.002), look)

    def do_Activate(self, effect: effects.Activate) -> None:
        executor = self.executors[effect.executor]
        value = 0
        if not effect.is_new:
            value = effect.loaded[1]
        executor.copies[effect.copy_id] = value

    def do_DropCopy(self, effect: effects.DropCopy) -> None:
        self.executors[effect.executor].copies.pop(effect.copy_id, None)

    def do_Dispatch(self, effect: effects.Dispatch) -> None:
        executor = self.executors[effect.executor]
        call = effect.call
        order = (call.call_id, call.attempt, effect.copy_id, call)
        queue = executor.queues.setdefault(effect.slot, deque())
        queue.append(order)
        if not executor.running.get(effect.slot):
            self._begin(effect.executor, effect.slot)

    def _begin(self, executor_id: int, slot: int) -> None:
        executor = self.executors[executor_id]
        queue = executor.queues[slot]
        if not queue or executor.is_dead:
            executor.running[slot] = False
            return
        executor.running[slot] = True
        is_slow = self.rng.random() < self.chances.slow
        run_s = (
            self.rng.uniform(0.1, 0.5) if is_slow else self.rng.uniform(0.00001, 0.0003)
        )

        def end() -> None:
            if executor.is_dead:
                return
            call_id, attempt, copy_id, call = queue[0]
            if call.method == "relay" and copy_id in executor.copies:
                relay(call)
                return
            queue.popleft()
            self._end(executor_id, call_id, attempt, copy_id, call, run_s)
            self._begin(executor_id, slot)

        def relay(call: Any) -> None:
            """Add to the object that the call names, then end as that went."""
            inner = Nested(call.call_id, call.attempt)
            self.nested[inner] = relayed
            target = ObjectId(call.payload.body)
            self.step(
                events.CallArrived(
                    inner, target, Kind.CALL, "add", Payload(bytes(target)), 0, 0, 0.0,
                    0.0, 0, "",
                )
            )  # fmt: skip

        def relayed(code: str) -> None:
            if executor.is_dead:
                return
            call_id, attempt, _, _ = queue.popleft()
            ended = events.CallEnded(call_id, attempt, code, bytes(8), (), run_s)
            self.later(0.0001, lambda: self.step(ended))
            self._begin(executor_id, slot)

        self.later(run_s, end)

    def _end(
        self,
        executor_id: int,
        call_id: int,
        attempt: int,
        copy_id: int,
        call: Any,
        run_s: float,
    ) -> None:
        executor = self.executors[executor_id]
        if copy_id not in executor.copies:
            self.step(
                events.CallEnded(
                    call_id, attempt, "not_run", b"", (), 0.0, is_dropped=True
                )
            )
            return
        if self.rng.random() < self.chances.crash:
            self.kill(executor_id, "crashed")
            return
        value = executor.copies[copy_id]
        if call.method == "peek":
            body = value.to_bytes(8, "big")
            self.step(events.CallEnded(call_id, attempt, "", body, (), run_s))
            return
        if self.rng.random() < self.chances.raises:
            del executor.copies[copy_id]
            self.step(
                events.CallEnded(
                    call_id, attempt, "method", b"", (), run_s, is_dropped=True
                )
            )
            return
        value += 1
        executor.copies[copy_id] = value
        body = value.to_bytes(8, "big")
        state = None
        delta: StateDelta | None = delta_to(value)
        if call.kind is Kind.CREATE:
            delta = None
            encoded = value.to_bytes(8, "big")
            state = ObjectState(CLASS, REVISION, 0, {"value": encoded}, b"", (), ())
        self.step(
            events.CallEnded(
                call_id, attempt, "", body, (), run_s, delta, state, (), False, 8
            )
        )

    def do_Commit(self, effect: effects.Commit) -> None:
        write_s = self.rng.uniform(0.0001, 0.001)
        if effect.durability:
            write_s += self.rng.uniform(0.0, 0.05)  # It waits for company.
        self.disk_busy_s = max(self.disk_busy_s, self.now_s) + write_s

        def write() -> None:
            broken = self.broken.get(effect.object_id)
            is_refused = broken is not None and effect.version > broken
            if not is_refused:
                self.broken.pop(effect.object_id, None)
                is_refused = self.rng.random() < self.chances.refusal
            if is_refused:
                self.broken.setdefault(effect.object_id, effect.version)
                self.step(events.CommitRefused(effect.token, StorageFullError(1, 1)))
                return
            version, _ = self.disk.get(effect.object_id, (0, 0))
            assert effect.version == version + 1, "a commit was lost or doubled"
            if effect.is_delete:
                del self.disk[effect.object_id]
            elif effect.delta is None and effect.state is None:
                _, value = self.disk[effect.object_id]
                self.disk[effect.object_id] = (effect.version, value)
            else:
                fields = effect.delta.fields if effect.delta else effect.state.fields
                self.disk[effect.object_id] = (
                    effect.version, int.from_bytes(fields["value"], "big")
                )  # fmt: skip
            if effect.fences:
                check_grown(self.fences.get(effect.object_id, b""), effect.fences)
                self.fences[effect.object_id] = effect.fences
            if effect.client is not None:
                key = (effect.object_id, *effect.client)
                self.replies[key] = (effect.code, effect.body)
            if effect.outermost is not None:
                top = effect.outermost
                self.replies.setdefault(
                    (top.object_id, *top.client), (top.code, top.body)
                )
            self.step(events.Committed(effect.token))

        self.later(self.disk_busy_s - self.now_s, write)

    def do_Answer(self, effect: effects.Answer) -> None:
        value = int.from_bytes(effect.body[-8:], "big") if len(effect.body) == 8 else 0
        self._hear(effect.origin, "", value)

    def do_Refuse(self, effect: effects.Refuse) -> None:
        code = effect.code or (effect.error.code if effect.error else "?")
        self._hear(effect.origin, code, 0)

    def _hear(self, origin: Any, code: str, value: int) -> None:
        if type(origin) is Nested:
            relayed = self.nested.pop(origin, None)
            if relayed is not None:
                relayed(code)
            return
        assert origin not in self.answers, "answered twice"
        if self.rng.random() < self.chances.loss:
            return
        self.answers[origin] = (code, value)

    # -- clients ---------------------------------------------------------------------------

    def call(
        self, object_id: ObjectId, method: str, client: Client, *, attempt: int = 0,
        deadline_s: float = 0.0, kind: Kind = Kind.CALL, body: bytes = b"",
    ) -> None:  # fmt: skip
        """Send a call now."""
        self.step(
            events.CallArrived(
                client, object_id, kind, method, Payload(body or bytes(client.session)),
                attempt, 0, deadline_s, 0.0, 0, CLASS if kind is Kind.CREATE else "",
            )
        )  # fmt: skip

    def call_until_done(
        self, object_id: ObjectId, method: str, client: Client, body: bytes = b""
    ) -> None:
        """Send a call, and again with the same id after failures that may be retried."""

        def attempt(number: int) -> None:
            answer = self.answers.get(client)
            if answer is not None and answer[0] not in RETRIED:
                return  # It came while a retry was on its way.
            self.answers.pop(client, None)
            self.call(object_id, method, client, attempt=number, body=body)
            watch(number)

        def watch(number: int) -> None:
            answer = self.answers.get(client)
            if answer is None:
                is_impatient = self.rng.random() < self.chances.impatience
                again = (lambda: attempt(number + 1)) if is_impatient else None
                wait_s = self.rng.uniform(0.0001, 0.01)
                self.later(wait_s, again or (lambda: watch(number)))
            elif answer[0] in RETRIED and number < ATTEMPTS_MAX:
                self.later(self.rng.uniform(0.05, 0.2), lambda: attempt(number + 1))

        attempt(0)


def check_grown(before: bytes, after: bytes) -> None:
    """Assert that no epoch of a caller went back."""
    newest, old = Fences(after), Fences(before)
    for caller in old.callers:
        assert newest.epoch_of(caller) >= old.epoch_of(caller), "a fence went back"


def object_id_of(number: int) -> ObjectId:
    """Return a readable object id."""
    return ObjectId(b"home66\x00" + number.to_bytes(9, "big"))


def session_of(number: int) -> SessionId:
    """Return a readable session id."""
    return SessionId(number.to_bytes(16, "big"))
