"""Code that this peer lacks, fetched from another peer that has it.

    bring -> (is it on disk?) -> package -> another peer -> kept -> announced -> then
                                    not there: the next peer, a few in all

Whoever sent the request that needs the class is asked first: it has most likely seen the
class itself. Two requests that need one class wait for one fetch.

Code that does not load here, for want of a module, is published by a peer where it does.

Rules of this file: no class's code runs here; what is announced is on disk; a revision
that is older than the known one is not kept, for objects move to the newest anyway.

Source: design section 4 ("A peer that lacks a class fetches it from one that has it").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from activestore.errors import (
    ActiveStoreError,
    ClassNotFoundError,
    RemoteProtocolError,
    RequirementError,
    UnavailableError,
)
from activestore.ids import PeerId
from activestore.model import DURABILITIES
from activestore.objects.archives import digest_of_archive
from activestore.peer.cluster import Cluster
from activestore.peer.publishing import DESCRIBE_S_MAX, as_error
from activestore.peer.relays import Relays
from activestore.peer.table import Table
from activestore.storage.engine import ClassRecord, Engine
from activestore.wire import values

# Peers that are asked for one class before it counts as published nowhere.
ASKED_MAX = 8
# A package has 16 MiB at most: 13 s at 10 Mbit/s. A peer that dies ends the wait at once.
PACKAGE_S = 60.0
# What another peer may take to look at code: see publishing.DESCRIBE_S_MAX.
PUBLISH_S = DESCRIBE_S_MAX + 10.0
# Older revisions that are remembered as such, so that nobody is asked for them again.
OLDER_MAX = 4096

Then = Callable[[ActiveStoreError | None], None]


class _Quest(NamedTuple):
    """One class that is looked for: who is left to ask, who waits, what went wrong."""

    class_name: str
    revision: bytes
    to_ask: list[PeerId]
    waiting: list[Then]
    silent: list[str]
    is_renewal: bool = False  # the class runs here, in an older revision


class Fetching:
    """All fetches of one peer."""

    def __init__(self, table: Table, cluster: Cluster, relays: Relays) -> None:
        self._table = table
        self._cluster = cluster
        self._relays = relays
        self._quests: dict[tuple[str, bytes], _Quest] = {}
        # Revisions that are known to be older than the latest one here.
        self._older: dict[tuple[str, bytes], None] = {}

    def has(self, class_name: str, revision: bytes = b"") -> bool:
        """Whether a class, and a revision of it, need not be fetched."""
        known = self._table.classes.revision_of(class_name)
        if known is None:
            return False
        return revision in {b"", known} or (class_name, revision) in self._older

    def bring(
        self, class_name: str, revision: bytes, first: Sequence[PeerId], then: Then
    ) -> None:
        """Have a class here; `then(error)` is called once it is, or cannot be.

        Args:
            class_name: "module.Class".
            revision: The one that is needed; empty for any.
            first: Peers that are likely to have it.
            then: Called with None, or with why it cannot be had.
        """
        key = class_name, revision
        quest = self._quests.get(key)
        if quest is not None:
            quest.waiting.append(then)
            return
        quest = _Quest(class_name, revision, self._candidates(first), [then], [])
        self._quests[key] = quest
        if not revision or self._table.classes.revision_of(class_name) is None:
            self._ask_next(quest)
            return

        def read(found: ClassRecord | None, error: BaseException | None) -> None:
            if error is not None:
                self._end(quest, as_error(error))
            elif found is not None:
                self._note_older(quest)
                self._end(quest, None)
            else:
                self._ask_next(quest)

        self._table.storage.read(
            lambda engine: engine.class_revision(class_name, revision), read
        )

    def renew(
        self, class_name: str, revision: bytes, first: Sequence[PeerId], then: Then
    ) -> None:
        """Have a newer revision of a class that is here; see `bring`.

        It may have been the latest here before: what is new then is when it was published.
        `then(RequirementError)` where it lacks something here that the older one does not.
        """
        key = class_name, revision
        quest = self._quests.get(key)
        if quest is not None:
            quest.waiting.append(then)
            return
        quest = _Quest(class_name, revision, self._candidates(first), [then], [], True)
        self._quests[key] = quest
        self._ask_next(quest)

    def publish_elsewhere(
        self,
        parameters: dict[str, Any],
        digest: bytes,
        refusal: ActiveStoreError,
        then: Then,
    ) -> None:
        """Have code that does not load here published by a peer where it does.

        `then(None)` once its classes are known here too: they can be created through
        this peer, at one that can run them. `then(refusal)` where no peer can load it.
        """
        to_ask = self._candidates(())

        def ask_next() -> None:
            if not to_ask:
                then(refusal)
                return
            peer_id = to_ask.pop(0)
            self._relays.ask(
                peer_id, "publish", parameters,
                lambda answer, error: told(peer_id, answer, error), wait_s=PUBLISH_S,
            )  # fmt: skip

        def told(peer_id: PeerId, answer: Any, error: ActiveStoreError | None) -> None:
            try:
                class_name = "" if error is not None else str(answer["classes"][0][0])
            except (KeyError, IndexError, TypeError):
                class_name = ""
            if class_name:
                self.bring(class_name, digest, [peer_id], then)
            else:
                ask_next()

        ask_next()

    def _candidates(self, first: Sequence[PeerId]) -> list[PeerId]:
        alive = self._cluster.alive()
        likely = [one for one in dict.fromkeys(first) if one in alive]
        others = [one for one in alive if one not in likely]
        # From another one each time: the first of all would be asked by everybody.
        start = int(self._table.random() * len(others)) if others else 0
        return [*likely, *others[start:], *others[:start]][:ASKED_MAX]

    def _ask_next(self, quest: _Quest) -> None:
        if not quest.to_ask:
            self._end(quest, self._why_not(quest))
            return
        peer_id = quest.to_ask.pop(0)

        def then(answer: Any, error: ActiveStoreError | None) -> None:
            if error is None:
                try:
                    self._keep(quest, *_checked(answer, quest))
                    return
                except RemoteProtocolError as malformed:
                    error = malformed
            if not isinstance(error, ClassNotFoundError):
                name = self._cluster.name_of(peer_id)
                quest.silent.append(name)
                self._table.note(
                    "warning", f"class not fetched class={quest.class_name} "
                    f"from={name} reason={str(error)!r}",
                )  # fmt: skip
            self._ask_next(quest)

        parameters = {"class_name": quest.class_name, "revision": quest.revision}
        self._relays.ask(peer_id, "package", parameters, then, wait_s=PACKAGE_S)

    def _why_not(self, quest: _Quest) -> ActiveStoreError:
        classes = self._table.classes
        if quest.silent:
            return UnavailableError(
                f"class {quest.class_name}",
                f"it is not here, and of the other peers {', '.join(quest.silent)} "
                "did not tell its code",
            )
        if classes.revision_of(quest.class_name) is None:
            return ClassNotFoundError(quest.class_name, classes.names())
        return UnavailableError(
            f"class {quest.class_name}",
            f"no peer has the revision {quest.revision.hex()} of its code that the "
            "state was made with; publish it again",
        )

    def _keep(
        self, quest: _Quest, digest: bytes, archive: bytes, records: list[ClassRecord]
    ) -> None:
        newer = [record for record in records if self._is_newer(record)]
        if quest.is_renewal:
            refusal = self._why_not_renewed(newer)
            if refusal is not None:
                self._end(quest, refusal)
                return
        if not newer:
            self._note_older(quest)
            self._end(quest, None)
            return

        def write(engine: Engine) -> None:
            engine.put_code(digest, archive, newer)

        def kept(_: Any, error: BaseException | None) -> None:
            if error is not None:
                self._end(quest, as_error(error))
                return
            for record in newer:
                # Another one may have been published while this one was written.
                if self._is_newer(record):
                    self._table.step(self._table.classes.add(record))
                    self._table.note("info", f"class fetched class={record.class_name}")
            self._end(quest, None)

        self._table.storage.write(write, kept)

    def _is_newer(self, record: ClassRecord) -> bool:
        classes = self._table.classes
        if classes.revision_of(record.class_name) is None:
            return True
        known = classes.record_of(record.class_name)
        # See `newest`: all peers must agree which of two it is.
        return (known.published_s, known.revision) < (
            record.published_s, record.revision,
        )  # fmt: skip

    def _why_not_renewed(
        self, records: Sequence[ClassRecord]
    ) -> RequirementError | None:
        """Return what new code lacks here, where the code that it replaces can run."""
        classes = self._table.classes
        for record in records:
            if classes.missing_for(record.class_name) is not None:
                continue
            interface: Any = values.decode(record.interface)
            missing = classes.lacking(interface["requires"], interface["resources"])
            if missing and classes.revision_of(record.class_name) is not None:
                return RequirementError(record.class_name, missing)
        return None

    def _note_older(self, quest: _Quest) -> None:
        self._older[quest.class_name, quest.revision] = None
        if len(self._older) > OLDER_MAX:
            del self._older[next(iter(self._older))]

    def _end(self, quest: _Quest, error: ActiveStoreError | None) -> None:
        self._quests.pop((quest.class_name, quest.revision), None)
        for then in quest.waiting:
            then(error)


def _checked(answer: Any, quest: _Quest) -> tuple[bytes, bytes, list[ClassRecord]]:
    """Return digest, archive and records of an answer to `package`.

    Raises:
        RemoteProtocolError: it is malformed, or tells of another class.
    """
    try:
        digest, archive = bytes(answer["digest"]), bytes(answer["archive"])
        records = [
            ClassRecord(
                str(name), bytes(revision), digest, bytes(interface), float(published_s)
            )
            for name, revision, interface, published_s in answer["records"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise RemoteProtocolError(f"package is malformed: {error}", "Reply") from None
    if digest_of_archive(archive) != digest:
        raise RemoteProtocolError("the code does not match its digest", "Reply")
    for record in records:
        _check_interface(record)
    wanted = quest.class_name, quest.revision
    if not any(
        r.class_name == wanted[0] and wanted[1] in {b"", r.revision} for r in records
    ):
        raise RemoteProtocolError(f"it lacks {wanted[0]}, which it tells of", "Reply")
    return digest, archive, records


def _check_interface(record: ClassRecord) -> None:
    """Check that an interface can be used.

    Raises:
        RemoteProtocolError: it is none, or of another class.
    """
    interface = values.decode(record.interface)
    is_good = (
        type(interface) is dict
        and interface.get("class_name") == record.class_name
        and interface.get("durability") in DURABILITIES
        and all(type(interface.get(name)) is dict for name in ("methods", "resources"))
        and all(name in interface for name in ("fields", "requires"))
    )
    if not is_good:
        raise RemoteProtocolError(f"no interface of {record.class_name}", "Reply")
