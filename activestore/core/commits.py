"""Which replies wait for which commits: execution may run ahead of commit, replies may not.

Every mutating call makes the object's next *executed* version and orders a commit. A
reply carries the version that its call saw; it leaves once that version is committed,
in order. A refused commit fails every reply that saw it or anything built on it.

Of an object with copies at other peers a reply that no commit of its own proves also
waits for a *round*: the answer to whether the object is led here still, asked after the
call came.

Rules of this file: commits of one object are answered in the order in which they were
ordered; it never decides what runs.

Source: design section 5, "What a call does to state"; reliability.md 3.4 R5 and R6,
3.5 I7.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from activestore.core.calls import Call, Client, Mailbox, Nested
from activestore.core.effects import (
    Answer,
    Commit,
    Effect,
    Provisional,
    Refuse,
    SendItem,
)
from activestore.errors import ActiveStoreError
from activestore.ids import SessionId
from activestore.wire.state import NamedState, ObjectState, StateDelta

# Sessions per object, and replies of each, whose acknowledgements are followed. A reply
# that is not followed stays on disk until it is too old for a retry.
KNOWN_SESSIONS_MAX = 1024
KNOWN_SEQUENCES_MAX = 4096


class Step(NamedTuple):
    """What a call or a checkpoint leaves to be committed."""

    delta: StateDelta | None = None
    state: ObjectState | None = None
    created: Sequence[NamedState] = ()
    is_delete: bool = False


class Pending(NamedTuple):
    """A commit on its way."""

    mailbox: Mailbox
    version: int
    generation: int
    call: Call | None
    checkpoint: int | None  # the request number that waits for it
    has_state: bool  # whether it changes the object, or only keeps an answer


class Withheld(NamedTuple):
    """Stands where a reply stood that was refused before its commit was decided."""

    origin: Client | Nested


class Ledger:
    """Orders commits and holds replies back until theirs is durable."""

    def __init__(
        self,
        emit: Callable[[Effect], None],
        told: Callable[[Client | Nested], None],
    ) -> None:
        self._emit = emit
        self._told = told
        self._pending: dict[int, Pending] = {}
        self._next_token = 1

    def next_token(self) -> int:
        """Return a fresh token; tokens of a Persist come from here too."""
        token = self._next_token
        self._next_token += 1
        return token

    def order(  # noqa: PLR0913 - a call has that many parts
        self,
        mailbox: Mailbox,
        call: Call,
        step: Step,
        *,
        durability: int,
        code: str = "",
        body: bytes = b"",
        buffers: Sequence[object] = (),
        checkpoint: int | None = None,
        outermost: Provisional | None = None,
    ) -> int:
        """Order the commit of the object's next version; return that version."""
        mailbox.executed_version += 1
        version = mailbox.executed_version
        token = self.next_token()
        self._pending[token] = Pending(
            mailbox, version, mailbox.generation, call, checkpoint,
            step.delta is not None or step.state is not None,
        )  # fmt: skip
        mailbox.pending_commits += 1
        client = call.origin if type(call.origin) is Client else None
        acknowledged: Sequence[tuple[SessionId, int]] = ()
        if client is not None:
            acknowledged = _acknowledged(mailbox, client, call)
        fences = b""
        if mailbox.fences is not None and mailbox.fences.is_unsaved:
            fences = mailbox.fences.to_save()
        self._emit(
            Commit(
                token, mailbox.object_id, version, step.delta, step.state, step.created,
                call.alias, step.is_delete, durability, client, code, body, buffers,
                acknowledged, outermost, call.first_unacked, call.still_open,
                fences,
            )
        )  # fmt: skip
        return version

    def take(self, token: int) -> Pending | None:
        """Return and forget the commit that `token` names."""
        return self._pending.pop(token, None)

    def release(
        self, mailbox: Mailbox, version: int, effect: Answer | Refuse | SendItem
    ) -> bool:
        """Emit an answer now, or once `version` is committed and all before it are out.

        Returns whether it is out.
        """
        if version <= mailbox.committed_version and not mailbox.unreplied:
            self._emit(effect)
            return True
        mailbox.unreplied.append((version, effect, 0))
        return False

    def release_confirmed(
        self,
        mailbox: Mailbox,
        version: int,
        effect: Answer | Refuse | SendItem,
        asked_round: int,
    ) -> bool:
        """Like `release`, but also once `asked_round` is confirmed."""
        if asked_round <= mailbox.confirmed_round:
            return self.release(mailbox, version, effect)
        mailbox.unreplied.append((version, effect, asked_round))
        return False

    def committed(self, mailbox: Mailbox, version: int) -> None:
        """Note a durable version and let out what waited for it."""
        mailbox.committed_version = max(mailbox.committed_version, version)
        waiting = mailbox.unreplied
        while waiting and waiting[0][0] <= mailbox.committed_version:
            if waiting[0][2] > mailbox.confirmed_round:
                return
            effect = waiting.popleft()[1]
            kind = type(effect)
            if kind is not Withheld:
                self._emit(effect)
            if kind is not SendItem:
                self._told(effect.origin)

    def confirmed(self, mailbox: Mailbox, asked_round: int) -> None:
        """Note a confirmed round and let out what waited for it."""
        mailbox.confirmed_round = max(mailbox.confirmed_round, asked_round)
        self.committed(mailbox, mailbox.committed_version)

    def withhold(self, mailbox: Mailbox, origin: Client | Nested) -> None:
        """Let nothing more out to one who was refused before it was decided."""
        kept: list[tuple[int, Any, int]] = []
        for seen, effect, its_round in mailbox.unreplied:
            if effect.origin != origin:
                kept.append((seen, effect, its_round))
            elif type(effect) is not SendItem:
                kept.append((seen, Withheld(origin), its_round))
        mailbox.unreplied.clear()
        mailbox.unreplied.extend(kept)

    def withdraw(self, mailbox: Mailbox) -> list[Pending]:
        """Forget the commits of an object; how they end does not matter here any more."""
        if not mailbox.pending_commits:
            return []
        mailbox.pending_commits = 0
        pending = self._pending
        tokens = [token for token, one in pending.items() if one.mailbox is mailbox]
        return [pending.pop(token) for token in tokens]

    def refused(
        self,
        mailbox: Mailbox,
        version: int,
        error: ActiveStoreError,
        asked_round: int = 0,
    ) -> list[Client | Nested]:
        """Fail every reply that saw `version` or later; return whom they were for.

        They are told once `asked_round` is confirmed: a request that failed here may
        have been run by another leader.
        """
        kept: list[tuple[int, Answer | Refuse | SendItem | Withheld, int]] = []
        failed: list[Client | Nested] = []
        for seen, effect, its_round in mailbox.unreplied:
            if seen < version:
                kept.append((seen, effect, its_round))
            elif type(effect) is Withheld:
                self._told(effect.origin)
            elif effect.origin not in failed:  # A stream may have several items here.
                failed.append(effect.origin)
                refusal = Refuse(effect.origin, error)
                if asked_round > mailbox.confirmed_round:
                    kept.append((0, refusal, asked_round))
                else:
                    self._emit(refusal)
                    self._told(effect.origin)
        mailbox.unreplied.clear()
        mailbox.unreplied.extend(kept)
        self.committed(mailbox, mailbox.committed_version)  # Those behind it are free.
        return failed


def _acknowledged(
    mailbox: Mailbox, client: Client, call: Call
) -> list[tuple[SessionId, int]]:
    """Return the replies that may go with this commit, and note the one that comes."""
    known = mailbox.known_replies
    sequences = known.get(client.session)
    if sequences is None:
        if len(known) >= KNOWN_SESSIONS_MAX:
            del known[next(iter(known))]
        sequences = known[client.session] = deque()
    gone: list[tuple[SessionId, int]] = []
    while sequences and sequences[0] < call.first_unacked:
        gone.append((client.session, sequences.popleft()))
    if call.still_open:
        kept = [n for n in sequences if n in call.still_open or n >= client.sequence]
        gone += [(client.session, n) for n in sequences if n not in kept]
        sequences.clear()
        sequences.extend(kept)
    elif len(sequences) >= KNOWN_SEQUENCES_MAX:
        sequences.popleft()
    if not sequences or sequences[-1] != client.sequence:
        sequences.append(client.sequence)
    return gone
