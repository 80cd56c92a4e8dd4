"""Which code of each class is the newest, in the whole cluster, without a centre.

Every publication has a *stamp*: the publisher's clock, in seconds, or just above the
newest stamp that it has heard of for that class, whichever is later. So what is published
by someone who has seen the revision before is newer than that one, whatever the clocks
say; of two that were published without knowledge of each other the later clock counts,
and at the same stamp the higher revision, which is a hash. All peers agree, whatever they
heard first.

    published here, or heard -> told on by gossip -> fetched, where the class is here
    a random peer's digest differs -> both tell each other what is newer   (each 30 s)

A peer that does not have a class remembers its newest revision all the same, tells it on,
and stamps what it publishes above it. New code that this peer cannot run, where it could
run the old, is not taken: its objects go on with what they have, and the log says so.

Rules of this file: nobody waits for it; code comes by `fetching`; a peer believes its
cluster's peers.

Source: issue 3; design section 4, "Publishing a changed class".
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from activestore.core.calls import Client, Nested
from activestore.errors import ActiveStoreError, RemoteProtocolError, RequirementError
from activestore.ids import PeerId
from activestore.peer.cluster import Cluster
from activestore.peer.fetching import Fetching
from activestore.peer.relays import Relays
from activestore.peer.table import Table
from activestore.storage.engine import ClassRecord
from activestore.wire import packing
from activestore.wire.gossip import (
    CLASS_NAME_CHARS_MAX,
    REVISION_BYTES,
    ClassHint,
    class_hint_of,
)

# Classes that are remembered, 300 bytes each; of more the one that changed first goes.
CLASSES_MAX = 1024
# Between two stamps of one class: more than a float of seconds loses by rounding.
STAMP_STEP_S = 0.001
# How often a peer is asked for its digest: 4 B/s. Gossip is what tells; this repairs.
ASK_S = 30.0
# The first time, so that one who was away does not run old code for long.
FIRST_ASK_S = 2.0
# Peers that hear of a class at once do not all fetch it at once.
SPREAD_S = 1.0
# Code that could not be fetched is asked for again.
RETRY_S = 10.0
DIGEST_BYTES = 8

Origin = Client | Nested


class Newest:
    """What one peer knows of the newest revisions."""

    def __init__(
        self, table: Table, cluster: Cluster, relays: Relays, fetching: Fetching
    ) -> None:
        self._table = table
        self._cluster = cluster
        self._relays = relays
        self._fetching = fetching
        self._hints: OrderedDict[str, ClassHint] = OrderedDict()
        self._digest = b""
        # When to fetch which class.
        self._due: dict[str, float] = {}
        # Revisions that this peer cannot run.
        self._refused: dict[str, bytes] = {}
        self._ask_s = self._table.clock() + FIRST_ASK_S
        table.classes.on_added = self.added
        cluster.on_class_hint = self.hear

    def stamp_after(self, class_names: Iterable[str]) -> float:
        """Return the stamp of what is published now; from any thread."""
        stamp = self._table.wall_clock()
        for name in class_names:
            known = self._hints.get(name)
            if known is not None:
                stamp = max(stamp, known.stamp + STAMP_STEP_S)
        return stamp

    def added(self, record: ClassRecord) -> None:
        """A record is the latest here: others are to know, where it is news."""
        name, revision = record.class_name, record.revision
        if not 0 < len(name) <= CLASS_NAME_CHARS_MAX or len(revision) != REVISION_BYTES:
            return
        me = PeerId(self._table.settings.peer_id)
        self.hear(ClassHint(name, revision, record.published_s, me))
        if self._is_wanted(self._hints[name]):  # An older one came than we heard of.
            self._due.setdefault(name, self._table.clock())

    def hear(self, hint: ClassHint) -> None:
        """Take what may be the newest revision of a class, and tell it on if it is."""
        name = hint.class_name
        if not hint.is_newer(self._hints.get(name)):
            return
        self._hints.pop(name, None)
        self._hints[name] = hint
        self._digest = b""
        if len(self._hints) > CLASSES_MAX:
            self._hints.popitem(last=False)
        self._cluster.tell_class(hint)
        if self._is_wanted(hint):
            now_s = self._table.clock()
            self._due[name] = now_s + SPREAD_S * self._table.random()

    def _is_wanted(self, hint: ClassHint) -> bool:
        """Whether the class is here, in an older revision, and the new one can run."""
        classes = self._table.classes
        if classes.revision_of(hint.class_name) is None:
            return False
        record = classes.record_of(hint.class_name)
        me = PeerId(self._table.settings.peer_id)
        mine = ClassHint(record.class_name, record.revision, record.published_s, me)
        is_refused = self._refused.get(hint.class_name) == hint.revision
        return hint.is_newer(mine) and not is_refused

    def look(self, now_s: float) -> None:
        """Fetch what is due, and compare with another peer now and then."""
        for name in [name for name, due_s in self._due.items() if due_s <= now_s]:
            del self._due[name]
            hint = self._hints.get(name)
            if hint is not None and self._is_wanted(hint):
                self._fetch(hint)
        if now_s >= self._ask_s:
            self._ask_s = now_s + ASK_S * (0.5 + self._table.random())
            alive = self._cluster.alive()
            if alive:
                self._compare(alive[int(self._table.random() * len(alive))])

    def _fetch(self, hint: ClassHint) -> None:
        def then(error: ActiveStoreError | None) -> None:
            if isinstance(error, RequirementError):
                self._refused[hint.class_name] = hint.revision
                self._table.note(
                    "warning", f"newer code is not taken class={hint.class_name} "
                    f"revision={hint.revision.hex()} reason={str(error)!r}: its objects "
                    "here go on with the code that they have; install what is missing, "
                    "or move them",
                )  # fmt: skip
            elif self._hints.get(hint.class_name) == hint and self._is_wanted(hint):
                self._due[hint.class_name] = self._table.clock() + RETRY_S

        first = [PeerId(hint.peer_id)]
        self._fetching.renew(hint.class_name, hint.revision, first, then)

    # -- comparing -----------------------------------------------------------------------

    def digest(self) -> bytes:
        """Return what two peers have alike where they know the same."""
        if not self._digest:
            hasher = hashlib.blake2b(digest_size=DIGEST_BYTES)
            for name in sorted(self._hints):
                hasher.update(packing.pack(list(self._hints[name][:3])))
            self._digest = hasher.digest()
        return self._digest

    def _compare(self, peer_id: PeerId) -> None:
        """Have another peer tell what it knows, if that differs; tell it what we know."""

        def then(answer: Any, error: ActiveStoreError | None) -> None:
            if error is not None or type(answer) is not list:
                return  # It is too old for the question, or too busy: another time.
            try:
                theirs = {hint.class_name: hint for hint in map(class_hint_of, answer)}
            except RemoteProtocolError as malformed:
                self._table.note("warning", f"classes are malformed reason={malformed}")
                return
            for hint in theirs.values():
                self.hear(hint)
            newer = [
                list(hint)
                for name, hint in self._hints.items()
                if hint.is_newer(theirs.get(name))
            ]
            if newer:
                parameters = {"digest": self.digest(), "classes": newer}
                self._relays.ask(peer_id, "newest", parameters, lambda *_: None)

        self._relays.ask(peer_id, "newest", {"digest": self.digest()}, then)

    def answer(self, parameters: dict[str, Any]) -> list[list[Any]] | None:
        """Return all that is known here; None where whoever asks knows the same.

        Raises:
            RemoteProtocolError: what it tells is malformed.
        """
        told = parameters.get("classes", [])
        if type(told) is not list or len(told) > CLASSES_MAX:
            raise RemoteProtocolError(f"classes must be a list of up to {CLASSES_MAX}")
        for row in told:
            self.hear(class_hint_of(row))
        if parameters.get("digest") == self.digest():
            return None
        return [list(hint) for hint in self._hints.values()]
