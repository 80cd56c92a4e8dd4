"""Digests of large buffers, at memory speed, and memory to load them into.

The digest decides whether a buffer changed since the last commit; it protects against
nothing but chance (128 bits). Where xxhash is not installed (a developer's client,
which never compares), BLAKE2b stands in at a tenth of the speed.

Source: design section 4, "In-place changes count".
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
from collections.abc import Callable
from typing import TypeAlias

from activestore.wire.values import loaded_library

DIGEST_BYTES = 16

# Numeric kernels sum in an order that depends on how data is aligned. torch aligns at
# 64, so a loaded state must too, or a resumed training is not bit-identical.
ALIGNMENT_BYTES = 64

# From this size memory is mapped, in huge pages where there are any: a first touch of 4
# KiB at a time takes four times as long as the copy itself. Below, page faults do not
# matter.
MAPPED_BYTES_MIN = 1024 * 1024

# (digest, size in bytes): what must agree for two buffers to be the same.
BufferDigest: TypeAlias = "tuple[bytes, int]"


def _blake2b(data: bytes | bytearray | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def _pick() -> Callable[[bytes | bytearray | memoryview], bytes]:
    try:
        import xxhash
    except ImportError:
        return _blake2b
    picked: Callable[[bytes | bytearray | memoryview], bytes] = xxhash.xxh3_128_digest
    return picked


digest_of = _pick()


def address_of(view: memoryview) -> int:
    """Return the address of a contiguous view of bytes, 0 where it cannot be told.

    Without numpy there is no cheap way to the address of readonly memory.
    """
    if not view.nbytes:
        return 0
    numpy = loaded_library("numpy")
    if numpy is not None:
        found = numpy.frombuffer(view, numpy.uint8).__array_interface__["data"][0]
        return int(found)
    if view.readonly:
        return 0
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def aligned_memory(bytes_count: int) -> memoryview:
    """Return fresh writable memory that begins at a multiple of ALIGNMENT_BYTES."""
    if bytes_count >= MAPPED_BYTES_MIN:
        pages = mmap.mmap(-1, bytes_count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        advice = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux only.
        if advice is not None:
            try:
                pages.madvise(advice)
            except OSError:
                pass  # A kernel without huge pages; plain ones do.
        return memoryview(pages)
    block = bytearray(bytes_count + ALIGNMENT_BYTES - 1)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(block)) % ALIGNMENT_BYTES
    return memoryview(block)[start : start + bytes_count]


def owned(buffer: bytes | bytearray | memoryview) -> memoryview:
    """Return writable, aligned memory with the content of `buffer`.

    Writable and aligned memory is taken as it is, without a copy: it belongs to the
    result from now on. Everything else is copied.
    """
    view = memoryview(buffer)
    if not view.nbytes:
        return memoryview(bytearray())
    view = view.cast("B")
    if not view.readonly and address_of(view) % ALIGNMENT_BYTES == 0:
        return view
    fresh = aligned_memory(view.nbytes)
    fresh[:] = view
    return fresh
