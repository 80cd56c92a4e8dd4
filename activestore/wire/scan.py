"""Looking at msgpack without decoding it: how many elements a body would make.

A decoded element can cost 72 times its bytes, so a large body is counted first.

Rules of this file: it reads lengths and skips contents; malformed bytes are not its
business, the decoder refuses them.

Source: reliability.md 5.3 and 5.4.
"""

from __future__ import annotations

from activestore.errors import TooLargeError
from activestore.wire.limits import VALUE_ELEMENTS_MAX
from activestore.wire.messages import Buffer

# Sizes in bytes of what follows a msgpack type byte, for the types of fixed size.
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4,
          0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8, 0xD4: 2, 0xD5: 3, 0xD6: 5,
          0xD7: 9, 0xD8: 17}  # fmt: skip
# Width of the length field, and what each unit of length adds: bytes, or elements.
_SIZED = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 0), 0xC8: (2, 0),
          0xC9: (4, 0), 0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0), 0xDC: (2, 1),
          0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}  # fmt: skip


def count_elements(data: Buffer) -> None:
    """Refuse a body with too many elements, looking only at lengths."""
    content = bytes(data)
    position, end, elements = 0, len(content), 0
    while position < end:
        kind = content[position]
        position += 1
        if kind <= 0x7F or kind >= 0xE0:
            continue
        if kind >= 0xC0:
            fixed = _FIXED.get(kind)
            if fixed is not None:
                position += fixed
                continue
            width, unit = _SIZED.get(kind, (0, 0))
            length = int.from_bytes(content[position : position + width], "big")
            position += width
            if unit:
                elements += length * unit
            else:
                position += length + (1 if 0xC7 <= kind <= 0xC9 else 0)
        elif kind >= 0xA0:
            position += kind & 0x1F
        else:
            elements += kind & 0x0F if kind >= 0x90 else 2 * (kind & 0x0F)
        if elements > VALUE_ELEMENTS_MAX:
            raise TooLargeError("the number of elements", elements, VALUE_ELEMENTS_MAX)
