"""What only a client with the classes' code does: publish it, and pickle what must be.

Imported on demand by `client`, through its name, so that the thin client never loads
it.

Rules of this file: it needs the `node` extra (cloudpickle, xxhash).

Source: design section 4.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from activestore import ids, model, remote
from activestore.errors import ActiveStoreError, InvalidRequestError
from activestore.ids import ObjectId
from activestore.objects import opaque, rebuild
from activestore.objects.packages import Package, is_by_value, pack_source, pack_value
from activestore.objects.snapshot import Snapshotter
from activestore.wire.state import NamedState

RefOf = Callable[[object], "bytes | None"]


def package_of(
    what: str | Path | ModuleType | type, data_files: Sequence[str] = ()
) -> Package:
    """Return the code of a class, a module, a module's name, a file or a directory.

    Raises:
        InvalidRequestError: there is no such module or file, or a class that travels by
            value is to have data files.
        TooLargeError: it is over 16 MiB.
    """
    if isinstance(what, type) and not issubclass(what, model.ActiveObject):
        raise InvalidRequestError("it is no ActiveObject", what.__qualname__)
    if isinstance(what, type) and is_by_value(what):
        if data_files:
            raise InvalidRequestError(
                "a class of a script or notebook travels by value, without files; put "
                "it into a module",
                "data_files",
            )
        return pack_value(what)
    return pack_source(what, data_files=data_files)


def snapshots(
    roots: Sequence[tuple[Any, str]],
    home: ids.PeerId,
    revision_of: Callable[[type], bytes],
    new_id: Callable[[ids.PeerId], ObjectId] = ids.new_object_id,
) -> list[tuple[Any, NamedState]]:
    """Return the states of local objects and of all local objects that they reach.

    `roots`: objects with their aliases. `revision_of` publishes a class where needed.
    `new_id` makes an id of a home; a simulation has its own chance.

    Raises:
        UnsupportedValueError: a field cannot be kept; names its path.
    """
    ids_of: dict[int, ObjectId] = {}
    found: list[Any] = []

    def ref_of(obj: object) -> bytes | None:
        if not isinstance(obj, (model.ActiveObject, remote.Proxy)):
            return None
        object_id = remote.id_of(obj) or ids_of.get(id(obj))
        if object_id is None:
            object_id = ids_of[id(obj)] = new_id(home)
            found.append(obj)
        return object_id + class_name_of_object(obj).encode()

    for obj, _ in roots:
        ref_of(obj)
    aliases = {id(obj): alias for obj, alias in roots}
    snapshotters: dict[type, Snapshotter] = {}
    states: list[tuple[Any, NamedState]] = []
    while len(states) < len(found):  # Taking one may find more.
        obj = found[len(states)]
        cls = type(obj)
        snapshotter = snapshotters.get(cls)
        if snapshotter is None:
            snapshotter = snapshotters[cls] = Snapshotter(
                cls,
                class_name=model.class_name_of(cls),
                revision=revision_of(cls),
                class_version=int(getattr(cls, "class_version", 0)),
                ref_of=ref_of,
                resolve=_never,
                by_value=is_by_value(cls),
            )
        state, _ = snapshotter.take(obj)
        states.append(
            (obj, NamedState(ids_of[id(obj)], aliases.get(id(obj), ""), state))
        )
    return states


def class_name_of_object(obj: Any) -> str:
    """Return the published name of the class of a stand-in or local object."""
    cls = remote.original_class(type(obj))
    if issubclass(cls, remote.Proxy):
        name: str = cls._activestore_interface["class_name"]  # type: ignore[attr-defined]
        return name
    return model.class_name_of(cls)


def dump_value(
    value: object, ref_of: RefOf, classes: Sequence[type] = ()
) -> tuple[str, bytes]:
    """Pickle a value without a wire form, for an executor.

    Args:
        value: What to pickle.
        ref_of: Gives an active object's ref.
        classes: Classes in use here. What they need and was published with them, such
            as an enum beside them in a script, goes by name: a copy of the class would
            be another class there.
    """
    for cls in classes:
        if rebuild.name_of(cls) is None and is_by_value(cls):
            with contextlib.suppress(ActiveStoreError):
                pack_value(cls)
    return opaque.dump_value(value, ref_of)


def load_value(name: str, data: bytes, resolve: Callable[[bytes], object]) -> Any:
    """Unpickle what an executor pickled, in a client that has the code."""
    return opaque.load_value(name, data, resolve)


def _never(_ref: bytes) -> object:
    raise InvalidRequestError("a snapshot is taken, nothing is loaded", "publish")
