"""Values that a receiver keeps as they came: refs without stand-ins, pickles.

Rules of this file: nothing is unpickled here, and nothing guesses what is inside.

Source: schemas/protocol.md section 5.
"""

from __future__ import annotations

from typing import Any

from activestore.wire.messages import Buffer

_ADVICE = (
    "return a part of it, or connect(..., unpickle=True) where the peer is trusted"
)


class Ref:
    """An object's id as a value, where nobody can make a stand-in of it."""

    __slots__ = ("class_name", "object_id")

    def __init__(self, object_id: bytes, class_name: str = "") -> None:
        self.object_id = object_id
        self.class_name = class_name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and other.object_id == self.object_id

    def __hash__(self) -> int:
        return hash(self.object_id)

    def __repr__(self) -> str:
        return f"Ref({self.object_id.hex()!r})"


class Opaque:
    """A value that only its peers can read; it can be handed back to them.

    Such are enums, dataclasses, deques, models: what has no wire form travels as a
    pickle, and a client runs no pickle of a peer's unless it connected with
    `unpickle=True`. To show a part of it to any client, return that part.
    """

    __slots__ = ("_pickled", "type_name")

    def __init__(self, type_name: str, pickled: Buffer) -> None:
        self.type_name = type_name
        self._pickled = pickled

    @property
    def bytes_count(self) -> int:
        """Its size in bytes."""
        return memoryview(self._pickled).nbytes

    def __eq__(self, other: object) -> bool:
        """Compare with another opaque value; with a plain one nobody can tell.

        Raises:
            TypeError: the other one is not opaque: False would be a guess.
        """
        if not isinstance(other, Opaque):
            raise TypeError(
                f"a {self.type_name} is opaque here and cannot be compared with a "
                f"{type(other).__qualname__}: {_ADVICE}"
            )
        return (self.type_name, bytes(self._pickled)) == (
            other.type_name, bytes(other._pickled)
        )  # fmt: skip

    def __hash__(self) -> int:
        return hash((self.type_name, bytes(self._pickled)))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in self.__slots__:
            raise AttributeError(name)
        raise AttributeError(
            f"a {self.type_name} is opaque here and shows no {name!r}: {_ADVICE}"
        )

    def __repr__(self) -> str:
        return f"<Opaque {self.type_name}, {self.bytes_count} bytes>"
