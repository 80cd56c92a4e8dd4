"""The storage engine, as the rest of the peer knows it.

One thread writes (`commit`), others may read at the same time. A commit is atomic and
durable when it returns; every acknowledged write went through one.

Rules of this file: names and promises only, no bytes and no files.

Source: design section 6; reliability.md section 4.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from activestore.errors import (
    ActiveStoreError,
    CorruptRecordError,
    UnavailableError,
)
from activestore.ids import OBJECT_ID_BYTES, ObjectId, PeerId, SessionId
from activestore.wire.messages import Buffer
from activestore.wire.state import ObjectState, StateDelta

# The object of a change that is about none, and brings rows only.
ZERO_ID = ObjectId(bytes(OBJECT_ID_BYTES))
# The epoch under which an object begins, and which one has that never moved.
EPOCH_FIRST = 1
EPOCH_MAX = 2**63 - 1

# What rows tell: where an object that left its home is; who claims an alias; that a copy is
# not the object (keyed by its id); that an object moved from here, until those who must
# know it do; what a peer of a cluster must remember over a restart; what a replica
# promised and accepted of an object (keyed by its id); that an object was deleted.
ROW_KINDS = frozenset(
    {"place", "name", "staged", "forward", "cluster", "register", "grave"}
)
# The longest alias fits, and with its kind it fits what LMDB takes as a key.
ROW_KEY_BYTES_MAX = 500
# Rows are facts, not states: a whole kind may be read into memory at a start.
ROW_VALUE_BYTES_MAX = 64 * 1024
# So many dirty 16 MiB of pages in one commit, where each lies on its own.
CHANGE_ROWS_MAX = 4096


class Durability(enum.IntEnum):
    """When a mutating call is answered."""

    COMMIT = 0  # after its commit
    INTERVAL = 1  # at once; committed within 1 s
    NONE = 2  # at once; committed within 60 s, and at a clean stop


@dataclass(frozen=True, slots=True)
class ReplyRecord:
    """The answer to one request, kept with the state that it produced.

    `code`: "" for a result, else the error's code. `body`: the encoded result, or the
    encoded fields of the error. `buffers`: what travels beside the body.

    `first_unacked`, `still_open`: what the request said of those before it, see
    `is_over`.

    `written_s`: when, by the wall clock of who led its object; told, and nothing is
    decided by it. `age_s`: for how long it has been on the disk that it was read from, or
    comes from, while a peer ran on that: no clocks need agree for it.
    """

    session: SessionId
    sequence: int
    code: str
    body: bytes
    written_s: float
    buffers: tuple[bytes, ...] = ()
    first_unacked: int = 0
    still_open: tuple[int, ...] = ()
    age_s: float = field(default=0.0, compare=False)

    def is_over(self, sequence: int) -> bool:
        """Whether the client had the answer to an earlier request when it made this."""
        if sequence < self.first_unacked:
            return True
        is_earlier = bool(self.still_open) and sequence < self.sequence
        return is_earlier and sequence not in self.still_open


class Swept(NamedTuple):
    """What a look at some replies came to; `is_round`: all have been looked at once."""

    dropped_count: int
    is_round: bool


class Row(NamedTuple):
    """A small fact about the cluster: one of ROW_KINDS, a key, and bytes of their writer.

    `value` None takes the row away; it need not be there.
    """

    kind: str
    key: bytes
    value: bytes | None


class Patch(NamedTuple):
    """A large buffer of a change, told by what it differs in from a file.

    `at`: which of the buffers of the state or delta; a FileBuffer without a
    descriptor (-1) stands there. `base`, `base_bytes`: address and size of a file that
    is kept here. `address`, `nbytes`: of what comes out. `spans`: offset and length of
    what is new, ascending; `content`: their bytes, one behind the other. Without spans
    the file is the content.
    """

    at: int
    base: bytes
    base_bytes: int
    address: bytes
    nbytes: int
    spans: Sequence[tuple[int, int]]
    content: Buffer


@dataclass(frozen=True, slots=True)
class Change:
    """One step of one object. At most one of `state`, `delta`, `is_delete` is set.

    With none of them the change only keeps what else it brings: a reply (a call that
    changed nothing but must be answered the same on a retry), rows, an epoch, a name.

    `version`: the object's version after the change. `is_new`: the object must not exist
    yet; where it does, the change fails with InvalidRequestError. A `state` without it
    takes the place of whatever is kept of the object, its alias included, also where
    that is damaged; what it leaves out is gone. `alias` is claimed with a `state`; with
    `is_rename` it takes the place of the old name in any other change ("": no name).
    `group`: changes with the same non-zero number are all done or all refused.

    `rows` are committed with the change, or refused with it; a change may bring nothing
    else, and is then about ZERO_ID or any object. Those of a delete are always taken.
    `epoch`: the object's from now on; 0 leaves it, EPOCH_FIRST for a new one. `replies`
    are kept with the object, as one that moves here brings them. `forgets_replies`: those
    kept until now go, as with an object that moves away; without it they stay until they
    expire, also after a delete. `created_s`: when the object was made, wall clock, where
    that is not now.

    `is_copy`: of an object that another peer leads, which has decided: its name never
    refuses it (where that is another object's here, the name goes on naming the other),
    and a delete, epoch or new name of a missing object is done already.

    `patches`: large buffers that are made of files here; refused with CorruptRecordError
    where a file is not here, or something else comes out. `compared`: where it is a list,
    the commit puts into it what the change's large buffers differ in from those before.
    `addresses`: those that the files of a whole have at its sender, by buffer, b"" where
    there is none to tell; refused with CorruptRecordError where one comes out as another.
    """

    object_id: ObjectId
    version: int = 0
    state: ObjectState | None = None
    delta: StateDelta | None = None
    is_delete: bool = False
    is_new: bool = False
    alias: str = ""
    durability: Durability = Durability.COMMIT
    reply: ReplyRecord | None = None
    drop_replies: Sequence[tuple[SessionId, int]] = ()
    group: int = 0
    rows: Sequence[Row] = ()
    epoch: int = 0
    replies: Sequence[ReplyRecord] = ()
    forgets_replies: bool = False
    is_rename: bool = False
    created_s: float = 0.0
    is_copy: bool = False
    patches: Sequence[Patch] = ()
    compared: list[Patch] | None = None
    addresses: Sequence[bytes] = ()

    @property
    def has_effect(self) -> bool:
        """Whether it changes the object, beyond what is answered of it."""
        return self.is_delete or self.state is not None or self.delta is not None

    @property
    def is_about_object(self) -> bool:
        """Whether the object must be looked at: not where there are rows and no more."""
        return not self.rows or bool(
            self.has_effect or self.reply or self.drop_replies or self.replies
            or self.epoch or self.is_rename or self.forgets_replies
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of an object without its fields' bytes.

    `damage`: what is wrong with a head that cannot be read, in a list; all else but id
    and alias is then empty.
    """

    object_id: ObjectId
    class_name: str
    revision: bytes
    class_version: int
    epoch: int
    version: int
    alias: str
    durability: Durability
    state_bytes: int
    created_s: float
    changed_s: float
    fields: Mapping[str, int] = field(default_factory=dict)  # name to encoded bytes
    graph_fields: Sequence[str] = ()
    damage: str = ""


class Snapshot(NamedTuple):
    """All that is kept of one object, as it was at one moment.

    `row`: the one of the kind that was asked for, None where there is none. `head` and
    `state`: None where the object does not exist. Large buffers come as FileBuffer with
    an open descriptor that the caller owns; `addresses`: of each buffer, b"" where it is
    no file.
    """

    row: bytes | None
    head: Head | None
    state: ObjectState | None
    addresses: Sequence[bytes]
    replies: Sequence[ReplyRecord]


@dataclass(frozen=True, slots=True)
class ClassRecord:
    """One revision of a published class. `interface`: see activestore.model.Interface.

    `package`: the digest of the code that defines it. `published_s`: wall-clock
    seconds.
    """

    class_name: str
    revision: bytes
    package: bytes
    interface: bytes
    published_s: float


@dataclass(frozen=True, slots=True)
class Usage:
    """How full the engine is, in bytes and counts.

    `objects`: without the copies that a row says are not the object.
    """

    objects: int
    used_bytes: int
    budget_bytes: int
    map_bytes: int
    disk_free_bytes: int
    written_bytes: int
    commits: int
    changes: int


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that `verify` found wrong."""

    where: str
    object_id: ObjectId | None
    reason: str


def not_built(object_id: bytes) -> UnavailableError:
    """Return the error of a change whose ground, an earlier change, was refused."""
    return UnavailableError(
        f"object {object_id.hex()}", "an earlier change of it was not committed"
    )


class Engine(Protocol):
    """Keeps objects, aliases, replies and published code of one peer."""

    @property
    def peer_id(self) -> PeerId:
        """The id made with the data directory, the same at every start."""

    def commit(self, changes: Sequence[Change]) -> list[ActiveStoreError | None]:
        """Apply changes in order, in one transaction, durable on return.

        Returns one entry per change: None where it was done, or why it alone was
        refused (AliasExistsError, ObjectNotFoundError for a delta, delete, epoch or new
        name of a missing object, StorageFullError, InvalidRequestError); the others are
        done all the same. After a refused change, later versions of the same object are
        refused too (UnavailableError), but for a whole state: they were made from one
        that is not kept.

        Raises:
            OSError: the disk failed, which a full disk is not. Nothing of the batch that
                was not reported is durable; the peer must stop accepting writes.
        """

    def load(self, object_id: ObjectId) -> tuple[Head, ObjectState] | None:
        """Return the last committed state, None where the object does not exist.

        Large buffers come as FileBuffer with an open descriptor that the caller owns.

        Raises:
            CorruptRecordError: a checksum fails.
        """

    def head(self, object_id: ObjectId) -> Head | None:
        """Return what is known of an object without its fields.

        Raises:
            CorruptRecordError: a checksum fails.
        """

    def resolve(self, alias: str) -> ObjectId | None:
        """Return the object that `alias` names."""

    def heads(
        self,
        *,
        after: ObjectId | None = None,
        alias_prefix: str = "",
        limit: int = 1000,
    ) -> list[Head]:
        """Return up to `limit` heads in id order after `after`.

        With `alias_prefix` only objects whose alias begins so, in alias order; `after`
        is then the object id of the last head seen. A damaged head is listed, with
        `damage`.
        """

    def names(
        self, after: str = "", limit: int = 1000
    ) -> list[tuple[str, ObjectId, float]]:
        """Return up to `limit` aliases behind `after`: alias, object, when it was made.

        Those of damaged heads are left out.
        """

    def reply(
        self, object_id: ObjectId, session: SessionId, sequence: int
    ) -> ReplyRecord | None:
        """Return the recorded answer to a request, if it is still kept.

        Where a later request of the session told that its client has the answer, so that
        it may have been dropped: a refusal. It must not run again.
        """

    def replies_of(self, object_id: ObjectId) -> list[ReplyRecord]:
        """Return every reply that is kept of an object, with its buffers.

        Raises:
            CorruptRecordError: one is damaged; it goes with the next `expire_replies`, but
                where a register tells that others have it.
        """

    def snapshot(
        self, object_id: ObjectId, kind: str, *, is_sent: bool = False
    ) -> Snapshot:
        """Return state, replies and the row of `kind` of an object, of one moment.

        `is_sent`: to where it is taken for the truth; files are checked afresh for that.

        Raises:
            CorruptRecordError: a checksum fails.
        """

    def foreign_ids(self) -> Iterator[ObjectId]:
        """Yield the ids of objects kept here whose home is another peer, in order.

        Costs nothing for the others, however many there are. Changes between two
        objects may be seen or not.
        """

    def row(self, kind: str, key: bytes) -> bytes | None:
        """Return the value of a row, None where there is none.

        Raises:
            CorruptRecordError: its checksum fails.
        """

    def rows(
        self, kind: str, on_damage: Callable[[Damage], None] | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield key and value of every row of a kind, in the order of keys.

        Read page by page: changes between two rows may be seen or not. A damaged row is
        left out, and told to `on_damage`.
        """

    def expire_replies(
        self, ran_s: float, kept_s: float, *, limit: int = 1000
    ) -> Swept:
        """Let all replies grow older by `ran_s`, and look at the next `limit` of them.

        Those that are older than `kept_s` go. Each call goes on where the last one ended.
        """

    def put_code(
        self, package: bytes, archive: bytes, records: Sequence[ClassRecord]
    ) -> None:
        """Keep a package and the classes it defines, durable on return; repeatable.

        Raises:
            InvalidRequestError: the name of a class is too long.
            StorageFullError: there is no room.
            OSError: the disk failed.
        """

    def code(self, package: bytes) -> bytes | None:
        """Return the archive of a package."""

    def classes(self) -> list[ClassRecord]:
        """Return the latest published revision of every class that can be read."""

    def damaged_classes(self) -> dict[str, CorruptRecordError]:
        """Return what is wrong with each class that cannot be read, by name."""

    def class_revision(self, class_name: str, revision: bytes) -> ClassRecord | None:
        """Return one revision of a class."""

    def collect_garbage(self, unreferenced_for_s: float = 3600.0) -> int:
        """Remove large files that nothing references; return the bytes freed."""

    def usage(self) -> Usage:
        """Return how full the engine is."""

    def verify(self) -> Iterator[Damage | int]:
        """Check every record and file; yield each damage, and bytes checked in between.

        The store may be in use; whoever walks on sets the pace.
        """

    def verify_object(self, object_id: ObjectId) -> list[Damage]:
        """Check all that is kept of one object; return what is damaged."""

    def backup(self, directory: str) -> Iterator[tuple[int, int]]:
        """Copy a consistent snapshot to an empty directory; yield (bytes done, total)."""

    def close(self) -> None:
        """Close files and release the lock."""
