"""msgpack for what stays on one machine: records on disk, messages between processes.

The rest of the package packs through here, so that msgpack has one home.

Rules of this file: no limits of its own; whoever reads a stranger's bytes uses `codec` or
`values`.
"""

from __future__ import annotations

from typing import Any

import msgpack

# What `unpack` raises for bytes that are no msgpack, and what follows from wrong shapes.
UNPACK_ERRORS = (ValueError, TypeError, msgpack.UnpackException)

pack: Any = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def unpack(data: Any, *, use_list: bool = True) -> Any:
    """Return the value of packed bytes; keys of maps may be anything.

    Raises:
        ValueError, msgpack.UnpackException: the bytes are no msgpack (UNPACK_ERRORS).
    """
    return msgpack.unpackb(data, raw=False, use_list=use_list, strict_map_key=False)


def stream_unpacker(bytes_max: int) -> Any:
    """Return an unpacker to feed with a stream; iterate it for complete values."""
    return msgpack.Unpacker(
        use_list=True, raw=False, max_buffer_size=bytes_max, strict_map_key=False
    )
