"""The files of one commit: large buffers written before the records that name them.

A buffer comes whole, or as a patch of a file that is here. What is written is durable,
and named by nothing until the commit; where that is refused, the engine removes it.

Rules of this file: it writes files and no records; room is asked for before a byte is
written. What is told with an address is refused where it is, or makes, anything else.

Source: design section 6; reliability.md 3.3, big states.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeGuard

from activestore.errors import ActiveStoreError, CorruptRecordError, StorageFullError
from activestore.ids import ObjectId
from activestore.storage.blobs import NO_SPACE, view_of
from activestore.storage.engine import Change, Patch
from activestore.storage.patches import (
    assembled,
    likely_base,
    patch_of,
    spans_between,
)
from activestore.storage.records import CHUNKED_BYTES_MAX, Part
from activestore.storage.room import Room
from activestore.wire.state import AnyBuffer, FileBuffer, buffer_bytes_count

PATCH_FAILED = "a patch of it makes another content than it should"
CAME_DAMAGED = "what came as it is another content: damaged at its sender or on the way"


class Files(Protocol):
    """Where large buffers lie, each at the digest of its content."""

    def write(self, buffer: AnyBuffer) -> bytes:
        """Keep a buffer and return its address; durable on return."""

    def open(
        self, digest: bytes, size: int, object_id: bytes, *, is_afresh: bool = False
    ) -> AnyBuffer:
        """Return the content; CorruptRecordError where it is not there or damaged.

        What was seen of it before may be relied on, but for `is_afresh`.
        """

    def remove(self, digest: bytes) -> None:
        """Remove what nothing references."""

    def unnamed_before(self, before_s: float) -> Iterator[tuple[bytes, int]]:
        """Yield address and size of what was written before a wall-clock time."""


class BatchFiles:
    """Writes the large buffers of one batch, and remembers where each lies."""

    def __init__(
        self,
        files: Files,
        room: Room,
        buffers_of: Callable[[ObjectId], Sequence[Part]],
    ) -> None:
        self._files = files
        self._room = room
        self._buffers_of = buffers_of
        # Identity of a buffer of the batch, to the address of its file.
        self.addresses: dict[int, bytes] = {}
        # Where the buffers of objects lie after the changes seen so far.
        self._latest: dict[ObjectId, Sequence[Part]] = {}

    def write(self, changes: Sequence[Change]) -> dict[int, ActiveStoreError]:
        """Write all files; return, by index, why changes are refused.

        Raises:
            OSError: the disk failed.
        """
        refusals: dict[int, ActiveStoreError] = {}
        for index, change in enumerate(changes):
            source = change.state or change.delta
            if source is None or not source.buffers:
                continue
            buffers = source.buffers
            refusal = self._write(change, buffers)
            if refusal is not None:
                refusals[index] = refusal
            elif change.compared is not None:
                self._compare(change, buffers, change.compared)
        return refusals

    def _write(
        self, change: Change, buffers: Sequence[AnyBuffer | int]
    ) -> ActiveStoreError | None:
        patched = {patch.at for patch in change.patches}
        told = change.addresses or (b"",) * len(buffers)
        whole = [
            (buffer, address)
            for index, (buffer, address) in enumerate(zip(buffers, told, strict=True))
            if index not in patched and _is_large(buffer)
        ]
        if not whole and not patched:
            return None
        made = (patch.nbytes for patch in change.patches if _makes_file(patch))
        refusal: ActiveStoreError | None = self._why_no_room(
            change, sum(buffer_bytes_count(one) for one, _ in whole) + sum(made)
        )
        for patch in change.patches if refusal is None else ():
            refusal = self._make(change, patch, buffers)
            if refusal is not None:
                return refusal
        for buffer, expected in whole if refusal is None else ():
            address = self._put(buffer)
            if isinstance(address, StorageFullError):
                return address
            self.addresses[id(buffer)] = address
            if expected and expected != address:
                return _corrupt(change, expected, CAME_DAMAGED)
        return refusal

    def _why_no_room(self, change: Change, size: int) -> StorageFullError | None:
        room = self._room
        why_not = room.why_not_new if change.state is not None else room.why_not_grow
        return why_not(size) or room.why_not_on_disk(0, size)

    def _put(self, buffer: AnyBuffer) -> bytes | StorageFullError:
        try:
            address = self._files.write(buffer)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            return self._room.full(str(error.strerror))
        self._room.pending_bytes += buffer_bytes_count(buffer)
        self._room.disk_file_bytes -= buffer_bytes_count(buffer)
        return address

    # -- patches -----------------------------------------------------------------------

    def _make(
        self, change: Change, patch: Patch, buffers: Sequence[AnyBuffer | int]
    ) -> ActiveStoreError | None:
        """Make the file that a patch tells, out of one that is here; say why not."""
        try:
            base = self._content(patch.base, patch.base_bytes, change.object_id)
        except CorruptRecordError as error:
            return error
        address: bytes | StorageFullError = patch.base
        if _makes_file(patch):
            address = self._put(assembled(base, patch))
        if isinstance(address, StorageFullError):
            return address
        self.addresses[id(buffers[patch.at])] = address
        if address == patch.address:
            return None
        return _corrupt(change, patch.address, PATCH_FAILED)

    def _compare(
        self,
        change: Change,
        buffers: Sequence[AnyBuffer | int],
        found: list[Patch],
    ) -> None:
        """Note what the files of a change differ in from those of the state before."""
        found.clear()
        if change.state is None and (
            change.delta is None or change.delta.graph is None
        ):
            return
        object_id = change.object_id
        before = self._latest.get(object_id)
        if before is None:
            before = self._buffers_of(object_id)
        self._latest[object_id] = list(self._places(buffers, before))
        for index, buffer in enumerate(buffers):
            address = (
                None if isinstance(buffer, int) else self.addresses.get(id(buffer))
            )
            if address is None or isinstance(buffer, int):
                continue
            base = likely_base(index, buffer_bytes_count(buffer), before)
            patch = base and self._difference(object_id, index, base, buffer, address)
            if patch:
                found.append(patch)

    def _places(
        self, buffers: Sequence[AnyBuffer | int], before: Sequence[Part]
    ) -> Iterator[Part]:
        for buffer in buffers:
            if isinstance(buffer, int):
                yield before[buffer] if buffer < len(before) else b""
                continue
            address = self.addresses.get(id(buffer))
            yield b"" if address is None else (buffer_bytes_count(buffer), address)

    def _difference(
        self,
        object_id: ObjectId,
        index: int,
        base: tuple[int, bytes],
        buffer: AnyBuffer,
        address: bytes,
    ) -> Patch | None:
        try:
            old = self._content(base[1], base[0], object_id)
        except CorruptRecordError:
            return None  # What was damaged is mended by this change, which goes whole.
        new = view_of(buffer)
        return patch_of(index, base, new, address, spans_between(old, new))

    def _content(self, address: bytes, size: int, object_id: ObjectId) -> memoryview:
        """Return the content of a file, mapped; the map keeps it open.

        Raises:
            CorruptRecordError: it is not there, or not what its name says.
        """
        opened = self._files.open(address, size, object_id)
        try:
            return view_of(opened)
        finally:
            if isinstance(opened, FileBuffer):
                os.close(opened.fd)


def _makes_file(patch: Patch) -> bool:
    """Whether a patch makes another file than its base.

    Also without a span: the base may be damaged, and so have another address than its
    content, which is just what is to come out.
    """
    return bool(patch.spans) or patch.base != patch.address


def _corrupt(change: Change, address: bytes, reason: str) -> CorruptRecordError:
    return CorruptRecordError(change.object_id, f"blob {address.hex()[:16]}", reason)


def _is_large(buffer: AnyBuffer | int) -> TypeGuard[AnyBuffer]:
    if isinstance(buffer, int):
        return False
    return buffer_bytes_count(buffer) > CHUNKED_BYTES_MAX
