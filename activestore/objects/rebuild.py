"""The functions that stored graphs name, which put storages and the like together.

Their names are in states on disk: never rename or remove one, never change the meaning
of an argument; add another function instead.

Rules of this file: torch is imported only by a state that holds it. Buffers come in as
`unpickle` made them: writable, aligned memory that now belongs to the result, or a
bytearray out of the pickle itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from activestore.errors import ClassNotFoundError, InternalError
from activestore.sources import module_of

# Classes that travel by value, under the names that states give them. In an executor
# the package loader fills it; in a client, `pack_value`.
_named: WeakValueDictionary[tuple[str, str], type] = WeakValueDictionary()
_name_of: WeakKeyDictionary[type, tuple[str, str]] = WeakKeyDictionary()
# The classes that came in one package, for each of them: two packages may hold a helper
# class of the same name, and a state means the one that its own class knows.
_scope_of: WeakKeyDictionary[type, WeakValueDictionary[tuple[str, str], type]] = (
    WeakKeyDictionary()
)


def remember_named(classes: Iterable[type]) -> None:
    """Let states name these classes of one package, which no import can find."""
    scope: WeakValueDictionary[tuple[str, str], type] = WeakValueDictionary()
    for cls in classes:
        key = (module_of(cls), cls.__qualname__)
        _named[key] = scope[key] = cls
        _scope_of[cls] = scope
        _name_of[cls] = key


def forget_named(classes: Iterable[type]) -> None:
    """Undo `remember_named`; a newer class of the same name stays."""
    for cls in classes:
        key = _name_of.pop(cls, None)
        if key is not None and _named.get(key) is cls:
            del _named[key]


def name_of(cls: type) -> tuple[str, str] | None:
    """Return module and qualified name of a class that states may name, else None."""
    return _name_of.get(cls)


def named(module: str, qualname: str) -> type:
    """Return a class that travelled by value with its package.

    Raises:
        ClassNotFoundError: no loaded package defines it.
    """
    cls = _named.get((module, qualname))
    if cls is None:
        known = tuple(sorted(f"{m}.{q}" for m, q in _named))
        raise ClassNotFoundError(f"{module}.{qualname}", known)
    return cls


def find_named(module: str, qualname: str, scope: type | None = None) -> type | None:
    """Return a class that travelled by value, first the one that `scope` came with."""
    key = (module, qualname)
    nearest = _scope_of.get(scope) if scope is not None else None
    found = None if nearest is None else nearest.get(key)
    return _named.get(key) if found is None else found


def ref(object_id: bytes) -> Any:
    """Stand for a reference in a pickle; the unpickler puts its own resolver here."""
    raise InternalError(f"the reference {object_id.hex()} was read without a resolver")


def large_bytes(data: Any) -> bytes:
    """Return a large bytes field."""
    return bytes(data)


def storage(data: Any, device: str) -> Any:
    """Return a torch storage over `data`, on `device` where this process has it."""
    torch = importlib.import_module("torch")
    size = memoryview(data).nbytes
    if size == 0:
        made = torch.UntypedStorage(0)
    else:
        made = torch.frombuffer(data, dtype=torch.uint8).untyped_storage()
        if isinstance(data, bytearray):
            # Out of the pickle, hence not aligned as torch's kernels like it; small.
            made = made.clone()
    return made if device == "cpu" else _on_device(made, device)


def _on_device(made: Any, device: str) -> Any:
    """Move a storage to an accelerator; without one it stays in main memory."""
    torch = importlib.import_module("torch")
    try:
        return made.to(device=torch.device(device))
    except (RuntimeError, AssertionError, NotImplementedError):
        # Each backend says in its own way that it is not there. The state is whole on
        # the CPU, and `on_activate` may move the model where the author wants it.
        return made


def meta_storage(size: int) -> Any:
    """Return a storage without memory, of torch's `meta` device."""
    torch = importlib.import_module("torch")
    return torch.UntypedStorage(size, device="meta")


def typed_storage(untyped: Any, dtype: Any) -> Any:
    """Return torch's typed view of a storage, which its tensors are rebuilt from."""
    torch = importlib.import_module("torch")
    return torch.storage.TypedStorage(wrap_storage=untyped, dtype=dtype, _internal=True)


def generator(device: str, state: bytes) -> Any:
    """Return a torch.Generator in the given state; on the CPU where `device` is absent.

    The state of an accelerator's generator means nothing to a CPU's: there the seed,
    which is in both, is all that is kept.
    """
    torch = importlib.import_module("torch")
    numbers = torch.frombuffer(bytearray(state), dtype=torch.uint8).clone()
    try:
        made = torch.Generator(device=device)
        made.set_state(numbers)
    except (RuntimeError, AssertionError, NotImplementedError):
        made = torch.Generator()
        made.manual_seed(int.from_bytes(state[:8], "little", signed=True))
    return made
