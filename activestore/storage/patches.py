"""What one large buffer differs in from another, and the one made of the other.

Two contents are compared chunk by chunk at the same places. What was changed in place, or
added at the end, is found; what was moved is not, and goes whole.

    between two files here    the chunks themselves are compared
    with a file elsewhere     its chunks' digests are compared, which it has sent

Rules of this file: bytes only. Whoever applies a patch checks the address of what comes
out: a digest of a chunk is short, and only says where to look.

Source: rsync's fixed blocks without its rolling sum (Tridgell, 1999).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import xxhash

from activestore.storage.blobs import PIECE_BYTES
from activestore.storage.engine import Patch
from activestore.storage.records import Part
from activestore.storage.work import is_file
from activestore.wire.messages import PartedBuffer

# Small enough that a change of few bytes ships little, large enough that a comparison
# runs at the speed of memory, and that 2 GiB have 64 KiB of digests.
CHUNK_BYTES = 256 * 1024
DIGEST_BYTES = 8
# A patch that ships more than this share of the content is not worth its work.
WORTH_SHARE = 0.5

Spans = list[tuple[int, int]]


def chunk_digests(content: memoryview) -> bytes:
    """Return the digests of all chunks of a content, one behind the other."""
    return b"".join(
        xxhash.xxh3_64_digest(content[start : start + CHUNK_BYTES])
        for start in range(0, content.nbytes, CHUNK_BYTES)
    )


def spans_between(old: memoryview, new: memoryview) -> Spans:
    """Return where a content differs from another: (offset, length) in the new one."""
    # Compared as bytes: two memoryviews are compared element by element.
    return _spans(
        new.nbytes,
        lambda start, end: bytes(old[start:end]) == bytes(new[start:end]),
    )


def spans_unlike(digests: bytes, new: memoryview) -> Spans:
    """Return where a content differs from the one whose chunks have these digests."""

    def is_same(start: int, end: int) -> bool:
        at = start // CHUNK_BYTES * DIGEST_BYTES
        known = digests[at : at + DIGEST_BYTES]
        return xxhash.xxh3_64_digest(new[start:end]) == known

    return _spans(new.nbytes, is_same)


def _spans(size: int, is_same: Callable[[int, int], bool]) -> Spans:
    spans: Spans = []
    for start in range(0, size, CHUNK_BYTES):
        end = min(start + CHUNK_BYTES, size)
        if is_same(start, end):
            continue
        if spans and sum(spans[-1]) == start:
            spans[-1] = (spans[-1][0], end - spans[-1][0])
        else:
            spans.append((start, end - start))
    return spans


def patch_of(
    at: int, base: tuple[int, bytes], new: memoryview, address: bytes, spans: Spans
) -> Patch | None:
    """Return a buffer as what it differs in; None where it had better go whole.

    `base`: size and address of the file that the spans were found against.
    """
    if sum(length for _, length in spans) > WORTH_SHARE * new.nbytes:
        return None
    content = b"".join(new[start : start + length] for start, length in spans)
    return Patch(at, base[1], base[0], address, new.nbytes, tuple(spans), content)


def likely_base(
    index: int, size: int, before: Sequence[Part]
) -> tuple[int, bytes] | None:
    """Return size and address of the file that a new buffer probably came from."""
    at_its_place = before[index] if index < len(before) else b""
    if is_file(at_its_place) and at_its_place[0] == size:
        return at_its_place
    same_size = (part for part in before if is_file(part) and part[0] == size)
    found = next(same_size, at_its_place)
    return found if is_file(found) else None


def assembled(base: memoryview, patch: Patch) -> PartedBuffer:
    """Return the content that a patch makes of its base, without a copy of what stays."""
    parts: list[memoryview | bytearray] = []
    content, taken = memoryview(patch.content), 0
    spans = list(reversed(patch.spans))
    for start in range(0, patch.nbytes, PIECE_BYTES):
        end = min(start + PIECE_BYTES, patch.nbytes)
        kept = base[start:end]
        if kept.nbytes == end - start and (not spans or spans[-1][0] >= end):
            parts.append(kept)
            continue
        piece = bytearray(end - start)
        piece[: kept.nbytes] = kept
        while spans and spans[-1][0] < end:
            offset, length = spans.pop()
            here = min(length, end - offset)
            at = offset - start
            piece[at : at + here] = content[taken : taken + here]
            taken += here
            if here < length:  # The rest is in the next piece.
                spans.append((end, length - here))
        parts.append(piece)
    return PartedBuffer(parts, patch.nbytes)
