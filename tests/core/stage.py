"""A stage for the invocation core: events go in by hand, effects come out.

Where `world` plays random histories, a test here says what happens, one step at a time.
Objects are of one class; its methods are those of METHODS. The core's invariants are
checked after every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from activestore.core import effects, events
from activestore.core.calls import Call, Client, Kind, MethodInfo, Nested
from activestore.core.executors import PoolConfig
from activestore.core.invocation import InvocationConfig, InvocationCore
from activestore.core.mailboxes import MailboxConfig
from activestore.errors import ObjectNotFoundError, StorageFullError
from activestore.ids import ObjectId
from activestore.wire.state import NamedState, ObjectState, StateDelta
from tests.core.world import object_id_of, session_of

CLASS = "model.Counter"
REVISION = b"1" * 16
METHODS = {
    "add": MethodInfo(is_readonly=False, is_stream=False, timeout_s=0.0),
    "peek": MethodInfo(is_readonly=True, is_stream=False, timeout_s=0.0),
    "rows": MethodInfo(is_readonly=False, is_stream=True, timeout_s=0.0),
    "scan": MethodInfo(is_readonly=True, is_stream=True, timeout_s=0.0),
    "bounded": MethodInfo(is_readonly=False, is_stream=False, timeout_s=5.0),
}
OBJECT = object_id_of(1)
OTHER = object_id_of(2)
FULL = StorageFullError(1, 1)
E = TypeVar("E")


class Payload(NamedTuple):
    """Stands for a wire Call."""

    body: bytes = b""
    buffers: tuple[()] = ()


def client(sequence: int, session: int = 1) -> Client:
    """Return the origin of a client's call."""
    return Client(session_of(session), sequence)


def delta(value: int = 1) -> StateDelta:
    """Return a change of the state."""
    return StateDelta(CLASS, REVISION, 0, {"value": bytes([value])}, (), None, (), ())


def state() -> ObjectState:
    """Return a whole state."""
    return ObjectState(CLASS, REVISION, 0, {"value": b"\x00"}, b"", (), ())


def named(object_id: ObjectId) -> NamedState:
    """Return a state with its id."""
    return NamedState(object_id, "", state())


class Stage:
    """A core, and shorthands for what can happen to it."""

    def __init__(
        self,
        config: InvocationConfig | None = None,
        mailboxes: MailboxConfig | None = None,
        *,
        is_started: bool = True,
        **pool: Any,
    ) -> None:
        sizes = {"executors": 1, "executors_max": 1, "slots": 2, **pool}
        self.core = InvocationCore(config, mailboxes, PoolConfig(**sizes))
        self.now_s = 100.0
        self.publish()
        spawned = self.core.start(self.now_s)
        if is_started:
            for effect in only(spawned, effects.SpawnExecutor):
                self.step(events.ExecutorStarted(effect.executor))

    def step(self, event: events.Event, after_s: float = 0.0) -> list[effects.Effect]:
        """Take one event, `after_s` later than the one before."""
        self.now_s += after_s
        out = self.core.step(event, self.now_s)
        self.core.check()
        return out

    def wait(self, after_s: float) -> list[effects.Effect]:
        """Let time pass; fire the timers as they become due."""
        until_s = self.now_s + after_s
        out: list[effects.Effect] = []
        while (self.core.deadline_s() or until_s) < until_s:
            due_s = self.core.deadline_s()
            assert due_s is not None
            self.now_s = max(self.now_s, due_s) + 1e-6  # As in life: a little late.
            out += self.step(events.TimerFired())
        self.now_s = max(self.now_s, until_s)
        return out + self.step(events.TimerFired())

    def publish(self, revision: bytes = REVISION, **fields: Any) -> list[Any]:
        """Publish a revision of the class."""
        given = {"package": "model", "durability": 0, "methods": METHODS, **fields}
        return self.step(
            events.ClassPublished(
                class_name=CLASS,
                revision=revision,
                fields=frozenset({"value"}),
                **given,
            )
        )

    # -- calls -------------------------------------------------------------------------

    def call(
        self,
        sequence: int,
        method: str = "add",
        object_id: ObjectId = OBJECT,
        *,
        session: int = 1,
        kind: Kind = Kind.CALL,
        body: bytes = b"",
        **fields: Any,
    ) -> list[effects.Effect]:
        """Have a client's call arrive."""
        return self.step(
            events.CallArrived(
                client(sequence, session), object_id, kind, method, Payload(body),
                **fields,
            )
        )  # fmt: skip

    def nest(
        self,
        parent: Call,
        request: int,
        method: str = "add",
        object_id: ObjectId = OTHER,
        *,
        waits: bool = True,
        **fields: Any,
    ) -> list[effects.Effect]:
        """Have a running method call."""
        fields = {"kind": Kind.CALL, **fields}
        return self.step(
            events.CallArrived(
                Nested(parent.call_id, request, waits), object_id, method=method,
                payload=Payload(), **fields,
            )
        )  # fmt: skip

    def load(
        self,
        object_id: ObjectId = OBJECT,
        *,
        version: int = 1,
        is_reader: bool = False,
        state_bytes: int = 8,
        class_name: str = CLASS,
    ) -> list[effects.Effect]:
        """Have storage hand the object over."""
        return self.step(
            events.ObjectLoaded(
                object_id, is_reader, class_name, version, state_bytes, "state"
            )
        )

    def miss(
        self, object_id: ObjectId = OBJECT, *, is_reader: bool = False
    ) -> list[effects.Effect]:
        """Have storage say that the object does not exist."""
        error = ObjectNotFoundError(object_id)
        return self.step(events.ObjectMissing(object_id, is_reader, error))

    def run(
        self,
        sequence: int,
        method: str = "add",
        object_id: ObjectId = OBJECT,
        **fields: Any,
    ) -> Call:
        """Have a call arrive on a cold object, load it, and return it dispatched."""
        out = self.call(sequence, method, object_id, **fields)
        if only(out, effects.LoadObject):
            out = self.load(object_id)
        (dispatch,) = only(out, effects.Dispatch)
        return dispatch.call

    def end(
        self,
        call: Call,
        *,
        code: str = "",
        change: StateDelta | None = None,
        body: bytes = b"",
        run_s: float = 0.001,
        after_s: float = 0.0,
        attempt: int | None = None,
        **fields: Any,
    ) -> list[effects.Effect]:
        """Have a slot finish a call."""
        return self.step(
            events.CallEnded(
                call.call_id, call.attempt if attempt is None else attempt, code, body,
                (), run_s, change, **fields,
            ),
            after_s,
        )  # fmt: skip

    def commit(self, out: Sequence[effects.Effect]) -> list[effects.Effect]:
        """Have the only commit among `out` become durable."""
        (ordered,) = only(out, effects.Commit)
        return self.step(events.Committed(ordered.token))

    def refuse_commit(self, out: Sequence[effects.Effect]) -> list[effects.Effect]:
        """Have the only commit among `out` refused."""
        (ordered,) = only(out, effects.Commit)
        return self.step(events.CommitRefused(ordered.token, FULL))

    def refuse_states(self, token: int) -> list[effects.Effect]:
        """Have the commit of a Persist refused."""
        return self.step(events.CommitRefused(token, FULL))

    def make_short(self, method: str = "add", object_id: ObjectId = OBJECT) -> None:
        """Let a method earn its name as a short one."""
        for sequence in range(900, 903):
            self.end(self.run(sequence, method, object_id), run_s=0.00001)

    @property
    def boxes(self) -> dict[ObjectId, Any]:
        """The mailboxes that the core remembers."""
        return self.core.boxes.boxes


def only(out: Sequence[effects.Effect], kind: type[E]) -> list[E]:
    """Return the effects of one kind."""
    return [effect for effect in out if type(effect) is kind]  # type: ignore[misc]


def dispatched(out: Sequence[effects.Effect]) -> Call:
    """Return the only call that was sent to a slot."""
    (dispatch,) = only(out, effects.Dispatch)
    return dispatch.call


def answers(out: Sequence[effects.Effect]) -> dict[Any, str]:
    """Return what was answered to whom: "" for a result, else the error's code."""
    found: dict[Any, str] = {}
    for effect in out:
        if type(effect) is effects.Answer:
            assert effect.origin not in found, "answered twice"
            found[effect.origin] = ""
        elif type(effect) is effects.Refuse:
            assert effect.origin not in found, "answered twice"
            code = effect.code or (effect.error.code if effect.error else "")
            found[effect.origin] = code
    return found


def sent_on(out: Sequence[effects.Effect]) -> dict[Any, bool]:
    """Return whose requests were sent on, in order; and whether each may have run."""
    found = [(one.origin, one.may_have_run) for one in only(out, effects.SendOn)]
    assert len(dict(found)) == len(found), "sent on twice"
    return dict(found)


class Group:
    """Stands for the core of replication: counts the rounds that it begins."""

    def __init__(self, stage: Stage) -> None:
        self.asked: list[ObjectId] = []
        stage.core.begin_round = self.begin_round
        self._step = stage.step

    def begin_round(self, object_id: ObjectId) -> int:
        """Begin another round."""
        self.asked.append(object_id)
        return len(self.asked)

    def confirm(
        self, number: int, object_id: ObjectId = OBJECT
    ) -> list[effects.Effect]:
        """Have a round confirmed."""
        return self._step(events.LeadConfirmed(object_id, number))
