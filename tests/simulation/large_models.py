"""A class with a large buffer, as an array of numpy has one, without numpy."""

from __future__ import annotations

import pickle
from typing import Any

from activestore import ActiveObject, activemethod


class Block:
    """Bytes that are pickled beside everything else, and changed in place."""

    def __init__(self, content: Any) -> None:
        self.content = bytearray(content)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Block, (pickle.PickleBuffer(self.content),)


class Album(ActiveObject):
    """Keeps a block of some MB."""

    block: Any

    def __init__(self, count: int) -> None:
        # No two pieces of it are alike.
        self.block = Block(b"".join(n.to_bytes(8, "big") for n in range(count // 8)))

    @activemethod
    def poke(self, at: int, value: int) -> int:
        """Change one byte in place; return what it was."""
        before: int = self.block.content[at]
        self.block.content[at] = value
        return before

    @activemethod(readonly=True)
    def peek(self, at: int) -> int:
        """Return one byte."""
        return int(self.block.content[at])
