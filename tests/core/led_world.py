"""A world in which objects have copies elsewhere, and change their leader at any moment.

Beside the core there is a second peer, as simple as can be: while an object is led there,
a call of it happens at once, on what a majority has. A commit of the core is on the disk
here first, and a majority has it later; whoever loses the lead in between cannot know
which of them a majority has, and hears of it later than others act on it. Rounds are
confirmed while the object is led here, else never.

Objects that are not added as such are plain ones of this peer. A relay calls another object:
where that is led elsewhere it goes there. The other peer takes no relays.

What is checked: a request that came is answered or sent on, once; a read sees all that was
acknowledged before it began, and nothing that no majority has.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from activestore.core import effects, events
from activestore.core.calls import Client, Kind, Nested
from activestore.errors import NoQuorumError, StorageFullError
from activestore.ids import ObjectId
from tests.core.world import CLASS, World, check_grown


class Copy(NamedTuple):
    """A state, and the answers that are kept with it."""

    version: int
    value: int
    replies: dict[Client, tuple[str, int]]
    fences: bytes = b""


class Sent(NamedTuple):
    """What a client sends."""

    body: bytes
    object_id: ObjectId
    method: str
    client: Client
    attempt: int
    buffers: tuple[()] = ()


class LedWorld(World):
    """Carries the core's effects out for objects that have copies elsewhere."""

    def __init__(self, seed: int, **options: Any) -> None:
        self.open: set[Client] = set()  # came to the core, neither answered nor sent on
        self.chosen: dict[ObjectId, Copy] = {}  # what a majority has
        self.local: dict[ObjectId, Copy] = {}  # what is on the disk here
        self.leads: dict[ObjectId, int] = {}  # led here, under this number
        self.believes: dict[ObjectId, int] = {}  # what the core was told of that
        self.flying: dict[ObjectId, deque[tuple[int, Copy]]] = {}
        self.rounds = self.moves = 0
        self.read_busy_s = 0.0
        # What each request is for, and the value that it must at least see.
        self.wants: dict[Client, tuple[ObjectId, str, int]] = {}
        super().__init__(seed, **options)
        self.core.begin_round = self.begin_round

    # -- who leads -------------------------------------------------------------------------

    def add(self, object_id: ObjectId) -> None:
        """Make an object that is led here."""
        self.chosen[object_id] = Copy(1, 0, {})
        self.lead(object_id)

    def lead(self, object_id: ObjectId) -> None:
        """Have an object led here from now on, beginning with what a majority has."""
        if object_id in self.believes:
            return
        self.moves += 1
        self.leads[object_id] = self.believes[object_id] = self.moves
        self.local[object_id] = self.chosen[object_id]
        self.flying[object_id] = deque()
        self.broken.pop(object_id, None)
        self.step(events.ObjectLed(object_id, 0, self.moves))

    def depose(self, object_id: ObjectId) -> None:
        """Have another peer lead an object; of what is on its way some may be kept."""
        if self.leads.pop(object_id, None) is None:
            return
        flying = self.flying[object_id]
        for _, copy in list(flying)[: self.rng.randint(0, len(flying))]:
            self.chosen[object_id] = copy
        late_s = self.rng.choice([0.0, self.rng.uniform(0, 0.004)])
        self.later(late_s, lambda: self._tell_deposed(object_id, flying))

    def _tell_deposed(
        self, object_id: ObjectId, flying: deque[tuple[int, Copy]]
    ) -> None:
        del self.believes[object_id]
        self.step(events.ObjectDeposed(object_id))
        for token, _ in flying:  # The disk may tell its end all the same.
            late: Any = self.rng.choice([
                None, events.Committed(token),
                events.CommitRefused(token, StorageFullError(1, 1)),
            ])  # fmt: skip
            if late is not None:
                self.later(self.rng.uniform(0, 0.003), lambda e=late: self.step(e))

    def fail(self, object_id: ObjectId) -> None:
        """Have it said that nobody can lead an object now."""
        error = NoQuorumError("object", "1 of 3 voters answer, 2 must")
        self.step(events.ObjectUnavailable(object_id, error))

    def begin_round(self, object_id: ObjectId) -> int:
        """Ask whether an object is led here still."""
        self.rounds += 1
        number, lead = self.rounds, self.believes[object_id]

        def confirm() -> None:
            if self.leads.get(object_id) == lead:
                self.step(events.LeadConfirmed(object_id, number))

        self.later(self.rng.uniform(0.0001, 0.002), confirm)
        return number

    # -- what comes and goes ---------------------------------------------------------------

    def step(self, event: events.Event) -> None:
        """Step the core; note which requests came."""
        if type(event) is events.CallArrived:
            origin, object_id = event.origin, event.object_id
            if type(origin) is Client:
                self.open.add(origin)
            elif object_id in self.chosen and object_id not in self.believes:
                event = events.NestedLeft(
                    origin, object_id, event.kind, event.method, event.payload,
                    may_change=True,
                )  # type: ignore[arg-type]  # fmt: skip
        super().step(event)

    def carry_out(self, ordered: list[effects.Effect]) -> None:
        """Carry out; a request ends by one answer, or goes on."""
        for effect in ordered:
            if not isinstance(effect, effects.Answer | effects.Refuse | effects.SendOn):
                continue
            if type(effect.origin) is Client:
                assert effect.origin in self.open, f"nobody waits for {effect}"
                self.open.discard(effect.origin)
        super().carry_out(ordered)

    def call(
        self, object_id: ObjectId, method: str, client: Client, *, attempt: int = 0,
        deadline_s: float = 0.0, kind: Kind = Kind.CALL, body: bytes = b"",
    ) -> None:  # fmt: skip
        """Send a call to whoever leads the object now."""
        del deadline_s, kind
        least = self.chosen[object_id].value if object_id in self.chosen else 0
        self.wants.setdefault(client, (object_id, method, least))
        self.arrive(Sent(body, object_id, method, client, attempt))

    def arrive(self, sent: Sent) -> None:
        """Take a call where its object is led, or was."""
        is_here = sent.object_id in self.leads or sent.object_id not in self.chosen
        if sent.object_id in self.believes and not is_here:
            is_here = self.rng.random() < 0.5
        if is_here:
            self.step(
                events.CallArrived(
                    sent.client, sent.object_id, Kind.CALL, sent.method, sent,
                    sent.attempt,
                )
            )  # fmt: skip
        else:
            self.run_elsewhere(sent)

    def do_SendOn(self, effect: effects.SendOn) -> None:
        """Have a request come where its object is led now: here again, perhaps."""
        sent: Any = effect.payload
        if effect.may_have_run:
            sent = sent._replace(attempt=max(sent.attempt, 1))
        self.later(self.rng.uniform(0.0, 0.003), lambda: self.arrive(sent))

    def run_elsewhere(self, sent: Sent) -> None:
        """Run a call at the other peer: at once, and looked up only if it may be known."""
        chosen, client = self.chosen[sent.object_id], sent.client
        answer = chosen.replies.get(client) if sent.attempt else None
        if answer is None and sent.method == "relay":
            answer = ("unavailable", 0)
        if answer is None and sent.method == "peek":
            answer = ("", chosen.value)
        elif answer is None:
            assert client not in chosen.replies, "it runs a second time"
            answer = ("", chosen.value + 1)
            replies = {**chosen.replies, client: answer}
            self.chosen[sent.object_id] = chosen._replace(
                version=chosen.version + 1, value=chosen.value + 1, replies=replies
            )
        code, value = answer
        self.later(0.0005, lambda: self._hear(client, code, value))

    def do_SendAway(self, effect: effects.SendAway) -> None:
        """Run what a method wants at the other peer, or here if it has come back."""

        def come() -> None:
            call = effect.call
            if call.object_id in self.believes:
                self.step(events.AwayReturned(call.call_id))
                return
            chosen = self.chosen[call.object_id]
            self.chosen[call.object_id] = chosen._replace(
                version=chosen.version + 1, value=chosen.value + 1
            )
            answered = events.AwayAnswered(call.call_id, "", bytes(8))
            self.later(0.0005, lambda: self.step(answered))

        if not effect.is_again:
            self.later(self.rng.uniform(0.0, 0.003), come)

    def _hear(self, origin: Any, code: str, value: int) -> None:
        if type(origin) is Nested:
            super()._hear(origin, code, value)
            return
        object_id, method, least = self.wants[origin]
        if not code and object_id in self.chosen and method != "relay":
            chosen = self.chosen[object_id]
            assert value <= chosen.value, "no majority has what was shown"
            if method == "peek":
                assert value >= least, "an older state was read"
            else:
                assert chosen.replies[origin] == (code, value), "not what was kept"
        if self.rng.random() >= self.chances.loss:
            known = self.answers.get(origin)
            if known is None or known[0]:  # A client hears the first of two.
                self.answers[origin] = (code, value)

    # -- the disk --------------------------------------------------------------------------

    def do_LoadObject(self, effect: effects.LoadObject) -> None:
        """Read what is on the disk here when it comes to that, in order."""
        if effect.object_id not in self.chosen:
            super().do_LoadObject(effect)
            return
        self.read_busy_s = max(self.read_busy_s, self.now_s)
        self.read_busy_s += self.rng.uniform(0, 0.001)

        def read() -> None:
            found = self.local[effect.object_id]
            loaded = (found.version, found.value)
            self.later(
                0.0003,
                lambda: self.step(
                    events.ObjectLoaded(
                        effect.object_id, effect.is_reader, CLASS, found.version, 8,
                        loaded,
                    )
                ),
            )  # fmt: skip

        self.later(self.read_busy_s - self.now_s, read)

    def do_Refuse(self, effect: effects.Refuse) -> None:
        """Hear a refusal: what was ended in time is never refused as too late."""
        assert "has called under" not in str(effect.error)
        super().do_Refuse(effect)

    def do_LookUpReply(self, effect: effects.LookUpReply) -> None:
        """Look on the disk here."""
        if effect.object_id not in self.chosen:
            super().do_LookUpReply(effect)
            return

        def look() -> None:
            client = Client(effect.session, effect.sequence)
            found = self.local[effect.object_id].replies.get(client)
            code = None if found is None else found[0]
            body = b"" if found is None else found[1].to_bytes(8, "big")
            self.step(events.ReplyLookedUp(effect.call_id, code, body))

        self.later(self.rng.uniform(0, 0.002), look)

    def do_LookUpFences(self, effect: effects.LookUpFences) -> None:
        """Look on the disk here."""
        if effect.object_id not in self.chosen:
            super().do_LookUpFences(effect)
            return

        def look() -> None:
            kept = self.local[effect.object_id].fences
            self.step(events.FencesLookedUp(effect.object_id, effect.token, kept))

        self.later(self.rng.uniform(0, 0.002), look)

    def do_Commit(self, effect: effects.Commit) -> None:
        """Write to the disk here, then have a majority write it."""
        if effect.object_id not in self.chosen:
            assert effect.outermost is None or (
                effect.outermost.object_id not in self.believes
            ), "others do not know of the outermost call"
            super().do_Commit(effect)
            return
        lead = self.believes[effect.object_id]
        self.disk_busy_s = max(self.disk_busy_s, self.now_s)
        self.disk_busy_s += self.rng.uniform(0.0001, 0.001)
        self.later(self.disk_busy_s - self.now_s, lambda: self._write(effect, lead))

    def _write(self, effect: effects.Commit, lead: int) -> None:
        object_id = effect.object_id
        if self.leads.get(object_id) != lead:
            return  # The leader that ordered it is none any more.
        broken = self.broken.get(object_id)
        is_refused = broken is not None and effect.version > broken
        if not is_refused:
            self.broken.pop(object_id, None)
            is_refused = self.rng.random() < self.chances.refusal
        if is_refused:
            self.broken.setdefault(object_id, effect.version)
            self.step(events.CommitRefused(effect.token, StorageFullError(1, 1)))
            return
        before = self.local[object_id]
        assert effect.version == before.version + 1, "a commit was lost or doubled"
        value, replies = before.value, before.replies
        if effect.delta is not None:
            value = int.from_bytes(effect.delta.fields["value"], "big")
        if effect.client is not None:
            known = replies.get(effect.client)
            assert known is None or known[0], "it runs a second time"
            answer = int.from_bytes(effect.body[-8:], "big")
            replies = {**replies, effect.client: (effect.code, answer)}
        fences = effect.fences or before.fences
        check_grown(before.fences, fences)
        copy = self.local[object_id] = Copy(effect.version, value, replies, fences)
        self.flying[object_id].append((effect.token, copy))
        self.later(
            self.rng.uniform(0.0005, 0.003), lambda: self._agree(object_id, lead)
        )

    def do_CommitStates(self, effect: effects.CommitStates) -> None:
        """Keep what a retry of an outermost call is told, where its object is."""
        top = effect.outermost
        assert top is not None
        lead = self.believes.get(top.object_id)
        told = (top.code, 0)

        def write() -> None:
            if lead is None:
                self.replies.setdefault(
                    (top.object_id, *top.client), (top.code, top.body)
                )
                self.step(events.Committed(effect.token))
            elif self.leads.get(top.object_id) == lead:
                before = self.local[top.object_id]
                replies = {**before.replies, top.client: told}
                copy = self.local[top.object_id] = before._replace(replies=replies)
                self.flying[top.object_id].append((effect.token, copy))
                late_s = self.rng.uniform(0.0005, 0.003)
                self.later(late_s, lambda: self._agree(top.object_id, lead))

        self.disk_busy_s = max(self.disk_busy_s, self.now_s)
        self.disk_busy_s += self.rng.uniform(0.0001, 0.001)
        self.later(self.disk_busy_s - self.now_s, write)

    def _agree(self, object_id: ObjectId, lead: int) -> None:
        if self.leads.get(object_id) == lead:
            token, copy = self.flying[object_id].popleft()
            self.chosen[object_id] = copy
            self.step(events.Committed(token))
