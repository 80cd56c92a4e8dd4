"""Making local objects persistent: each once, many on their way.

An object that one thread is making persistent is not taken up by another, nor by a
later batch of the same thread: they wait until it is remote.

A batch that its peer cannot take, for want of what a class needs, is kept class by class,
each at a peer that has it; later objects of such a class go there at once.

Rules of this file: `_lock` is held while states are taken and while objects become
remote, so nobody sees half of either; never while waiting for the peer to keep them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from activestore import model, remote
from activestore.client.requests import Request
from activestore.errors import ActiveStoreError, InvalidRequestError, RequirementError
from activestore.ids import ObjectId, PeerId
from activestore.wire import messages
from activestore.wire.state import encode_states

# Objects of one Persist of an iterable: one commit each, many on their way.
PERSIST_BATCH = 256
# Persists of an iterable that may be on their way at once.
PERSISTS_OPEN_MAX = 8


# Has something made at a peer: at the one that is meant, or one that can have it.
Place = Callable[[Callable[[PeerId], PeerId]], PeerId]
_Batch = list[tuple[Any, str]]


class _Open(NamedTuple):
    """One Persist on its way."""

    request: Request
    states: list[Any]
    roots: _Batch


class _Run:
    """One call of `keep`: its Persists on their way, oldest first, and what is kept."""

    def __init__(
        self, home: PeerId, progress: Callable[[int], None] | None,
        place: Place | None, asked: dict[str, Any],
    ) -> None:  # fmt: skip
        self.home = home
        self.asked = asked
        self.opened: list[_Open] = []
        self.kept = 0
        self.progress = progress
        self.place = place
        # Batches that their peer refused for want of what a class needs.
        self.refused: list[_Batch] = []
        # Classes that were refused so, and the peer that took them.
        self.homes: dict[type, PeerId] = {}

    def by_home(self, batch: _Batch) -> list[tuple[PeerId, _Batch]]:
        """Return the parts of a batch that go to one peer each."""
        if not self.homes:
            return [(self.home, batch)]
        parts: dict[PeerId, _Batch] = {}
        for root in batch:
            home = self.homes.get(type(root[0]), self.home)
            parts.setdefault(home, []).append(root)
        return list(parts.items())

    def count(self, kept: int) -> None:
        """Note that so many more objects are kept, and tell it."""
        self.kept += kept
        if self.progress is not None:
            self.progress(self.kept)


class Persisting:
    """The Persists of one client."""

    def __init__(
        self,
        connection: Any,
        take: Callable[[_Batch, PeerId], list[Any]],
        adopt: Callable[[Any, ObjectId], None],
        about_code: Callable[[PeerId], dict[str, Any] | None],
    ) -> None:
        self._connection = connection
        self._take = take
        self._adopt = adopt
        self._about_code = about_code
        # Reentrant: taking a state may run a user's __reduce__, which may do anything.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._pending: set[int] = set()  # id() of objects that a Persist holds

    def keep(
        self,
        batches: Iterable[_Batch],
        home: PeerId,
        progress: Callable[[int], None] | None = None,
        place: Place | None = None,
        asked: dict[str, Any] | None = None,
    ) -> None:
        """Keep batches of objects with their aliases, and tell how many are kept.

        `place` finds a peer for what `home` refuses for want of what a class needs;
        without it that is an error. `asked`: what each Persist carries in its `extra`.
        """
        run = _Run(home, progress, place, asked or {})
        try:
            for batch in batches:
                if len(run.opened) >= PERSISTS_OPEN_MAX:
                    self._finish(run)
                self._settle_refused(run)
                for at, part in run.by_home(batch):
                    self._open(part, run, at)
            while run.opened:
                self._finish(run)
            self._settle_refused(run)
        except Exception:
            run.progress = None
            while run.opened:  # What the peer keeps is remote all the same.
                with contextlib.suppress(ActiveStoreError):
                    self._finish(run)
            raise
        finally:
            for one in run.opened:  # An interrupt does not wait.
                self._release(one, is_kept=False)

    def _settle_refused(self, run: _Run) -> None:
        """Keep the batches that were refused, class by class, where that can be."""
        if not run.refused or run.place is None:
            return
        while run.opened:  # What the others hold may be among what these reach.
            self._finish(run)
        for batch in run.refused:
            groups: dict[type, _Batch] = {}
            for root in batch:
                groups.setdefault(type(root[0]), []).append(root)
            for cls, group in groups.items():
                # One that another reaches is kept with that one.
                left = [one for one in group if remote.id_of(one[0]) is None]
                if left:
                    run.homes[cls] = run.place(self._keeper_of(left, run))
        run.refused.clear()

    def _keeper_of(self, roots: _Batch, run: _Run) -> Callable[[PeerId], PeerId]:
        """Return what keeps these at a peer, and tells at which."""

        def keep_at(home: PeerId) -> PeerId:
            own = _Run(home, None, None, run.asked)
            self._open(roots, own, home)
            self._finish(own)
            run.count(own.kept)
            return home

        return keep_at

    def _open(self, batch: _Batch, run: _Run, home: PeerId) -> None:
        """Start a Persist, as soon as no other holds one of its objects."""
        while (opened := self._start(batch, home, run.asked)) is None:
            while run.opened:  # It may be our own, or wait for one of ours.
                self._finish(run)
            self._wait_for_others()
        run.opened.append(opened)

    def _start(
        self, roots: _Batch, home: PeerId, asked: dict[str, Any]
    ) -> _Open | None:
        """Send a Persist; None where another has one of the objects."""
        with self._lock:
            for obj, _ in roots:
                _check(obj)
            if any(id(obj) in self._pending for obj, _ in roots):
                return None
            states = self._take(roots, home)
            if any(id(obj) in self._pending for obj, _ in states):
                return None
            body, buffers = encode_states([named for _, named in states])
            extra = {**(self._about_code(home) or {}), **asked} or None
            request = self._connection.start(
                lambda sequence, first_unacked: messages.Persist(
                    sequence,
                    0,
                    first_unacked,
                    extra,
                    body,
                    buffers,  # type: ignore[arg-type]  # no files here
                ),
                timeout_s=0.0,
                where="persist",
            )
            self._pending.update(id(obj) for obj, _ in states)
        return _Open(request, states, roots)

    def _wait_for_others(self) -> None:
        """Wait until some Persist of another thread has ended."""
        with self._changed:
            if self._pending:
                self._changed.wait()

    def _finish(self, run: _Run) -> None:
        """Wait for the oldest Persist, and make its objects remote."""
        one = run.opened[0]
        is_kept = False
        try:
            self._connection.wait(one.request)
            one.request.outcome()
            is_kept = True
        except RequirementError as error:
            if run.place is None or not error.missing:
                raise
            run.refused.append(one.roots)
        finally:
            del run.opened[0]
            self._release(one, is_kept=is_kept)
        if is_kept:
            run.count(len(one.states))

    def _release(self, one: _Open, *, is_kept: bool) -> None:
        with self._changed:
            for obj, named in one.states:
                if is_kept:
                    self._adopt(obj, ObjectId(named.object_id))
                self._pending.discard(id(obj))
            self._changed.notify_all()


def _check(obj: Any) -> None:
    if not isinstance(obj, model.ActiveObject):
        raise InvalidRequestError(
            f"expected an ActiveObject, got {type(obj).__name__}", "persist"
        )
    object_id = remote.id_of(obj)
    if object_id is not None:
        raise InvalidRequestError(
            f"it is persistent already, as {object_id.hex()}", type(obj).__name__
        )


def batches_of(objects: Iterable[Any]) -> Iterable[_Batch]:
    """Yield the objects, without aliases, in batches."""
    batch: _Batch = []
    for obj in objects:
        batch.append((obj, ""))
        if len(batch) >= PERSIST_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
