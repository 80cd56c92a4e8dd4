"""Looking at msgpack without decoding it: how many elements a value would make.

A decoded element can cost 72 times its bytes, so a large body is counted first. Both
sides count the same bytes in the same way: what is sent is what is received.

Rules of this file: it reads lengths and skips contents; malformed bytes are not its
business, the decoder refuses them.

Source: reliability.md 5.3 and 5.4; schemas/protocol.md section 5.
"""

from __future__ import annotations

from collections.abc import Collection

from activestore.errors import TooLargeError
from activestore.wire.messages import Buffer

# Sizes in bytes of what follows a msgpack type byte, for the types of fixed size.
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4,
          0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}  # fmt: skip
# Width of the length field, and what each unit of length adds: bytes, or elements.
_SIZED = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xD9: (1, 0), 0xDA: (2, 0),
          0xDB: (4, 0), 0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}  # fmt: skip
# Extensions: the width of the length field, or the length itself.
_SIZED_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


def count_elements(  # noqa: C901, PLR0915 - one branch per kind of head
    data: Buffer, elements_max: int, value_extensions: Collection[int] = ()
) -> None:
    """Refuse a value with too many elements, looking only at lengths.

    An entry of a map counts two. An extension whose payload is a value counts what that
    value has; the payload of any other counts nothing.

    Args:
        data: One msgpack value.
        elements_max: How many elements it may have, all its containers together.
        value_extensions: The extension types whose payload is a value.

    Raises:
        TooLargeError: it has more.
    """
    content = bytes(data)
    position, end, elements = 0, len(content), 0
    unread = 1  # Values that must still come: bytes behind the last are not looked at.
    while unread and position < end:
        unread -= 1
        kind = content[position]
        position += 1
        if kind <= 0x7F or kind >= 0xE0:
            continue
        inner = 0
        if kind < 0xC0:
            if kind >= 0xA0:
                position += kind & 0x1F
                continue
            inner = kind & 0x0F if kind >= 0x90 else 2 * (kind & 0x0F)
        elif kind in _FIXED:
            position += _FIXED[kind]
            continue
        elif kind in _SIZED:
            width, unit = _SIZED[kind]
            length = int.from_bytes(content[position : position + width], "big")
            position += width
            if not unit:
                position += length
                continue
            inner = length * unit
        else:
            width = _SIZED_EXTENSIONS.get(kind, 0)
            length = _FIXED_EXTENSIONS.get(kind, 0)
            if width:
                length = int.from_bytes(content[position : position + width], "big")
            position += width + 1
            if position <= end and content[position - 1] in value_extensions:
                unread += 1
            else:
                position += length
            continue
        elements += inner
        unread += inner
        if elements > elements_max:
            raise TooLargeError("the number of elements", elements, elements_max)
