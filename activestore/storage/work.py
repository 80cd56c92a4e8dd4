"""One object in the middle of a commit: what it was, what it shall be, where parts lie.

Rules of this file: it decides and remembers; what goes into a table is put there by the
batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeGuard

from activestore.storage.blobs import view_of
from activestore.storage.records import (
    INLINE_BYTES_ALWAYS,
    INLINE_BYTES_MAX,
    Document,
    Part,
    part_bytes,
)
from activestore.wire.state import AnyBuffer, StateDelta, buffer_bytes_count


class Work:
    """One object in the middle of a commit."""

    __slots__ = ("document", "new", "removed", "stored")

    def __init__(self, document: Document | None) -> None:
        self.stored = document  # what is on disk
        self.document = document  # what shall be
        self.new: dict[int, bytes] = {}  # part number to content, to be put in chunks
        self.removed: list[Part] = []

    @property
    def next_part(self) -> int:
        """The number of the next part: one that nothing on disk has."""
        documents = (self.stored, self.document)
        return max((d.next_part for d in documents if d is not None), default=1)


class PartPlaces:
    """Chooses where each new part of one object lies."""

    def __init__(self, work: Work, files: Mapping[int, bytes], next_part: int) -> None:
        self._work = work
        self._files = files
        self._inline_bytes = 0
        self.next_part = next_part

    def put(self, buffer: AnyBuffer) -> Part:
        """Take a part; it is inline in the head, or goes to the work's new chunks."""
        digest = self._files.get(id(buffer))
        size = buffer_bytes_count(buffer)
        if digest is not None:
            return (size, digest)
        if size <= INLINE_BYTES_ALWAYS or (
            size <= INLINE_BYTES_MAX
            and self._inline_bytes + size <= 2 * INLINE_BYTES_MAX
        ):
            self._inline_bytes += size
            return bytes(view_of(buffer))
        number = self.next_part
        self.next_part += 1
        self._work.new[number] = bytes(view_of(buffer))
        return (size, number)


def is_chunked(part: Part) -> TypeGuard[tuple[int, int]]:
    """Whether a part lies in chunks."""
    return not isinstance(part, bytes) and isinstance(part[1], int)


def is_file(part: Part) -> TypeGuard[tuple[int, bytes]]:
    """Whether a part lies in a file."""
    return not isinstance(part, bytes) and isinstance(part[1], bytes)


def table_bytes(part: Part) -> int:
    """Return what a part takes of the tables."""
    return 0 if is_file(part) else part_bytes(part)


def values_of(delta: StateDelta) -> list[AnyBuffer]:
    """Return what a delta brings."""
    found: list[AnyBuffer] = list(delta.fields.values())
    if delta.graph is not None:
        found.append(delta.graph)
        found.extend(entry for entry in delta.buffers if not isinstance(entry, int))
    return found


def replaced(stored: Document, delta: StateDelta) -> Iterator[Part]:
    """Yield the parts that a delta takes the place of."""
    for name in {*delta.fields, *delta.removed}:
        if name in stored.fields:
            yield stored.fields[name]
    if delta.graph is not None:
        yield stored.graph
        kept = {entry for entry in delta.buffers if isinstance(entry, int)}
        for index, part in enumerate(stored.buffers):
            if index not in kept:
                yield part
