"""What objects do when one operation follows another: the models that histories are held to.

    model       calls
    Register    read() -> value, write(value), cas((expected, new)) -> whether it was
    Counter     add(amount) -> new value, read() -> value
    Map         get(key) -> value, put((key, value)), delete(key) -> whether it was there

Rules of this file: models are pure, their states are hashable; absent is None.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final, Protocol

from activestore.errors import InvalidRequestError
from activestore.testing.histories import Operation, Outcome


class Anything:
    """The state of which nothing is known; the next operation may tell."""

    def __repr__(self) -> str:
        return "anything"


ANYTHING: Final = Anything()


class Model(Protocol):
    """A kind of object. Make your own for what these three cannot say."""

    def initial(self) -> Hashable:
        """Return the state before the first operation."""
        ...

    def is_read(self, call: str) -> bool:
        """Return whether a call never changes the state."""
        ...

    def apply(self, state: Any, operation: Operation) -> tuple[Hashable, Hashable]:
        """Return the result of the operation on this state, and the state after it."""
        ...

    def before(self, operation: Operation) -> Hashable:
        """Return the state in which an operation would end as it did.

        ANYTHING where there are several which lead to different states. Only how well a
        failure is explained depends on it.
        """
        ...

    def part(self, operation: Operation) -> Hashable:
        """Return which part of the object it is about: parts are judged one by one."""
        ...


class Register:
    """One value that is read, written, or replaced where it is as expected."""

    def __init__(self, start: Hashable = None) -> None:
        self.start = start

    def initial(self) -> Hashable:
        """Return the value at the start."""
        return self.start

    def is_read(self, call: str) -> bool:
        """Only `read` is."""
        return call == "read"

    def apply(self, state: Any, operation: Operation) -> tuple[Hashable, Hashable]:
        """Return the result and the value after."""
        if operation.call == "read":
            return state, state
        if operation.call == "write":
            return None, operation.argument
        if operation.call == "cas":
            expected, new = _pair(operation)
            return (True, new) if state == expected else (False, state)
        raise _unknown_call(operation, "read, write, cas")

    def before(self, operation: Operation) -> Hashable:
        """Return the value that the result tells of."""
        if operation.call == "write":
            return None
        if operation.outcome is Outcome.OK:
            if operation.call == "read":
                return operation.result
            if operation.result is True:
                return _pair(operation)[0]
        return ANYTHING

    def part(self, _operation: Operation) -> Hashable:
        """There is one."""
        return None


class Counter:
    """A number to which is added; every add returns the sum."""

    def __init__(self, start: int = 0) -> None:
        self.start = start

    def initial(self) -> Hashable:
        """Return the number at the start."""
        return self.start

    def is_read(self, call: str) -> bool:
        """Only `read` is."""
        return call == "read"

    def apply(self, state: Any, operation: Operation) -> tuple[Hashable, Hashable]:
        """Return the result and the number after."""
        if operation.call == "read":
            return state, state
        if operation.call == "add":
            after = state + operation.argument
            return after, after
        raise _unknown_call(operation, "add, read")

    def before(self, operation: Operation) -> Hashable:
        """Return the number that the result tells of."""
        result, amount = operation.result, operation.argument
        if operation.outcome is not Outcome.OK or not isinstance(result, (int, float)):
            return ANYTHING
        if operation.call == "read":
            return result
        return result - amount if isinstance(amount, (int, float)) else ANYTHING

    def part(self, _operation: Operation) -> Hashable:
        """There is one."""
        return None


class Map:
    """Values by key; None for a key that is not there."""

    def initial(self) -> Hashable:
        """Return what each key has at the start: nothing."""
        return None

    def is_read(self, call: str) -> bool:
        """Only `get` is."""
        return call == "get"

    def apply(self, state: Any, operation: Operation) -> tuple[Hashable, Hashable]:
        """Return the result and the key's value after."""
        if operation.call == "get":
            return state, state
        if operation.call == "put":
            return None, _pair(operation)[1]
        if operation.call == "delete":
            return state is not None, None
        raise _unknown_call(operation, "get, put, delete")

    def before(self, operation: Operation) -> Hashable:
        """Return the value that the result tells of."""
        if operation.call != "get":
            return None if operation.result is not True else ANYTHING
        return operation.result if operation.outcome is Outcome.OK else ANYTHING

    def part(self, operation: Operation) -> Hashable:
        """Return the key."""
        return _pair(operation)[0] if operation.call == "put" else operation.argument


def _pair(operation: Operation) -> tuple[Hashable, Hashable]:
    argument = operation.argument
    if isinstance(argument, tuple) and len(argument) == 2:
        return argument
    raise InvalidRequestError(
        f"expected a pair as argument of {operation.call}, got {argument!r}", "argument"
    )


def _unknown_call(operation: Operation, known: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"expected one of the calls {known}; got {operation.call!r}", "call"
    )


__all__ = ["ANYTHING", "Anything", "Counter", "Map", "Model", "Register"]
