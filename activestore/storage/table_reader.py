"""What every engine reads alike from its tables, in any thread.

Rules of this file: it reads and never writes; each reading is one transaction, so what it
returns is of one moment. Where the tables lie is the subclass's business.

Source: design section 6.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from activestore.errors import CorruptRecordError
from activestore.ids import ObjectId, PeerId, SessionId
from activestore.storage import facts, reading
from activestore.storage.batch_files import Files
from activestore.storage.blobs import FILE_MISSING
from activestore.storage.engine import (
    ClassRecord,
    Damage,
    Head,
    ReplyRecord,
    Snapshot,
)
from activestore.storage.reading import KEY_BYTES_MAX, as_key
from activestore.storage.records import decode_class, head_of, unseal
from activestore.storage.work import is_file
from activestore.wire.state import ObjectState

# Ids read in one transaction: a longer one would keep old pages from being reused.
IDS_PER_READ = 10_000
# How often a load begins anew because a file went while it was looked for.
LOADS_MAX = 3

_T = TypeVar("_T")


class TableReader(abc.ABC):
    """Reads objects, aliases, replies and published code of one peer from tables."""

    def __init__(self, tables: Mapping[str, Any], files: Files) -> None:
        self._tables = tables
        self._files = files
        # For how long peers have run on this disk, as far as it was counted: what tells how
        # old a reply is.
        self._ran_s = 0.0

    @property
    @abc.abstractmethod
    def peer_id(self) -> PeerId:
        """The id made with the data."""

    @abc.abstractmethod
    def _reading(self, object_id: bytes = b"") -> AbstractContextManager[Any]:
        """Return a read transaction."""

    def load(self, object_id: ObjectId) -> tuple[Head, ObjectState] | None:
        """Return the last committed state, None where the object does not exist.

        Raises:
            CorruptRecordError: a checksum fails.
        """
        return self._until_found(lambda: self._load(object_id))

    def _load(self, object_id: ObjectId) -> tuple[Head, ObjectState] | None:
        with self._reading(object_id) as transaction:
            return reading.load(transaction, self._tables, object_id, self._files.open)

    def snapshot(
        self, object_id: ObjectId, kind: str, *, is_sent: bool = False
    ) -> Snapshot:
        """Return state, replies and the row of `kind` of an object, of one moment.

        `is_sent`: to where it is taken for the truth; files are checked afresh for that.

        Raises:
            CorruptRecordError: a checksum fails.
        """
        return self._until_found(lambda: self._snapshot(object_id, kind, is_sent))

    def _snapshot(self, object_id: ObjectId, kind: str, is_sent: bool) -> Snapshot:
        open_file = functools.partial(self._files.open, is_afresh=is_sent)
        with self._reading(object_id) as transaction:
            tables = self._tables
            row = facts.row_of(transaction, tables["facts"], kind, object_id)
            replies = reading.replies_of(transaction, tables, object_id, self._ran_s)
            document = reading.document_of(transaction, tables, object_id)
            found = reading.load(transaction, tables, object_id, open_file)
        head, state = found or (None, None)
        parts = () if document is None else document.buffers
        addresses = [part[1] if is_file(part) else b"" for part in parts]
        return Snapshot(row, head, state, addresses, replies)

    def _until_found(self, look: Callable[[], _T]) -> _T:
        """Return what `look` does, which is done anew where a file went meanwhile.

        The writer may have replaced the state, and removed its file, between the look
        at the record and the look for the file.
        """
        for _ in range(LOADS_MAX - 1):
            try:
                return look()
            except CorruptRecordError as error:  # noqa: PERF203 - three times at most
                if error.reason != FILE_MISSING:
                    raise
        return look()

    def head(self, object_id: ObjectId) -> Head | None:
        """Return what is known of an object without its fields.

        Raises:
            CorruptRecordError: a checksum fails.
        """
        with self._reading(object_id) as transaction:
            found = reading.document_of(transaction, self._tables, object_id)
            return None if found is None else head_of(object_id, found)

    def resolve(self, alias: str) -> ObjectId | None:
        """Return the object that `alias` names."""
        value = self._get("aliases", as_key(alias))
        return None if value is None else ObjectId(value)

    def heads(
        self,
        *,
        after: ObjectId | None = None,
        alias_prefix: str = "",
        limit: int = 1000,
    ) -> list[Head]:
        """Return up to `limit` heads after `after`: in id order, or by alias."""
        with self._reading() as transaction:
            return reading.heads(transaction, self._tables, after, alias_prefix, limit)

    def names(
        self, after: str = "", limit: int = 1000
    ) -> list[tuple[str, ObjectId, float]]:
        """Return up to `limit` aliases behind `after`: alias, object, when it was made."""
        with self._reading() as transaction:
            return reading.names(transaction, self._tables, after, limit)

    def reply(
        self, object_id: ObjectId, session: SessionId, sequence: int
    ) -> ReplyRecord | None:
        """Return the recorded answer to a request, or the refusal of one that is over.

        Raises:
            CorruptRecordError: a record that tells it is damaged.
        """
        with self._reading(object_id) as transaction:
            return reading.reply(
                transaction, self._tables, object_id, session, sequence
            )

    def replies_of(self, object_id: ObjectId) -> list[ReplyRecord]:
        """Return every reply that is kept of an object, with its buffers.

        Raises:
            CorruptRecordError: one is damaged; it goes with the next `expire_replies`, but
                where a register tells that others have it.
        """
        with self._reading(object_id) as transaction:
            return reading.replies_of(transaction, self._tables, object_id, self._ran_s)

    def foreign_ids(self) -> Iterator[ObjectId]:
        """Yield the ids of objects kept here whose home is another peer, in order."""
        page: list[ObjectId] = []
        while True:
            after = page[-1] if page else b""
            with self._reading() as transaction:
                page = reading.foreign_ids(
                    transaction, self._tables, self.peer_id, after, IDS_PER_READ
                )
            yield from page
            if len(page) < IDS_PER_READ:
                return

    def row(self, kind: str, key: bytes) -> bytes | None:
        """Return the value of a row, None where there is none.

        Raises:
            CorruptRecordError: its checksum fails.
        """
        with self._reading() as transaction:
            return facts.row_of(transaction, self._tables["facts"], kind, key)

    def rows(
        self, kind: str, on_damage: Callable[[Damage], None] | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield key and value of every row of a kind; damaged ones go to `on_damage`."""
        return facts.rows_of(self._reading, self._tables["facts"], kind, on_damage)

    def _objects_count(self, transaction: Any, heads_count: int) -> int:
        tables = self._tables
        return heads_count - facts.staged_count(
            transaction, tables["facts"], tables["heads"]
        )

    def code(self, package: bytes) -> bytes | None:
        """Return the archive of a package."""
        value = self._get("packages", package)
        where = f"package {package.hex()}"
        return None if value is None else unseal(value, b"", where)

    def classes(self) -> list[ClassRecord]:
        """Return the latest published revision of every class that can be read."""
        with self._reading() as transaction:
            return reading.classes(transaction, self._tables)[0]

    def damaged_classes(self) -> dict[str, CorruptRecordError]:
        """Return what is wrong with each class that cannot be read, by name."""
        with self._reading() as transaction:
            return reading.classes(transaction, self._tables)[1]

    def class_revision(self, class_name: str, revision: bytes) -> ClassRecord | None:
        """Return one revision of a class."""
        name = as_key(class_name)
        value = self._get("classes", name and name + b"\x00" + revision)
        return None if value is None else decode_class(value)

    def _get(self, table: str, key: bytes | None) -> bytes | None:
        if not key or len(key) > KEY_BYTES_MAX:
            return None  # LMDB would take it for an error; it is only not there.
        with self._reading() as transaction:
            value = transaction.get(key, db=self._tables[table])
            return None if value is None else bytes(value)
