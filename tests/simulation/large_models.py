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


class Chest(ActiveObject):
    """A counter that also writes each count into its block, at another place."""

    block: Any
    count: int

    def __init__(self, size: int) -> None:
        self.block = Block(b"".join(n.to_bytes(8, "big") for n in range(size // 8)))
        self.count = 0

    @activemethod
    def add(self, number: int = 1) -> int:
        """Count on, and change eight bytes of the block."""
        self.count += number
        at = self._place(self.count)
        self.block.content[at : at + 8] = self.count.to_bytes(8, "little")
        return self.count

    @activemethod(readonly=True)
    def peek(self) -> int:
        """Return the count, -1 where the block is not that of this count."""
        for count in range(max(1, self.count - 9), self.count + 1):
            at = self._place(count)
            if self.block.content[at : at + 8] != count.to_bytes(8, "little"):
                return -1
        return self.count

    def _place(self, count: int) -> int:
        # A prime far from any power of two: neighbours lie in other pieces.
        return count * 100_003 * 8 % len(self.block.content)


class Shelf(ActiveObject):
    """Keeps a block of as many bytes as it was told last."""

    block: Any

    def __init__(self, size: int) -> None:
        self.block = Block(bytes([size % 251]) * size)

    @activemethod
    def fill(self, size: int) -> int:
        """Have another block; return how large it was before."""
        before = len(self.block.content)
        # Of one length are those of one content: it depends on the length.
        self.block = Block(bytes([size % 251]) * size)
        return before

    @activemethod(readonly=True)
    def size(self) -> int:
        """Return how large the block is."""
        return len(self.block.content)
