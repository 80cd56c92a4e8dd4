"""Stand-ins of one client: one Python object for each remote object, made on demand.

Rules of this file: where the class's code is in this process and was used with this
store, a ref becomes an instance of that class; else it becomes a proxy of its published
interface.

Source: design section 4 ("Within one process a ref always resolves to the same
object").
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from activestore import remote
from activestore.errors import InvalidRequestError
from activestore.ids import OBJECT_ID_BYTES, ObjectId
from activestore.model import class_name_of

# Interfaces kept per client; each is some kilobytes.
INTERFACES_MAX = 1024


class StandIns:
    """All stand-ins that one client has handed out and that are still in use."""

    def __init__(
        self,
        caller: remote.Caller,
        interface: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    ) -> None:
        self._caller = caller
        self._interface = interface
        self._known: weakref.WeakValueDictionary[ObjectId, Any] = (
            weakref.WeakValueDictionary()
        )
        self._local_classes: dict[str, type] = {}
        self._proxies: dict[str, type[remote.Proxy]] = {}
        self._lock = threading.Lock()

    def use_class(self, cls: type) -> None:
        """From now on objects of this class are instances of it, not proxies."""
        self._local_classes[class_name_of(cls)] = cls

    def local_class(self, class_name: str) -> type | None:
        """Return the class of this name that `use_class` was given, None for none."""
        return self._local_classes.get(class_name)

    def local_classes(self) -> list[type]:
        """Return the classes that `use_class` was given."""
        return list(self._local_classes.values())

    def adopt(self, obj: Any, object_id: ObjectId) -> None:
        """Note a local object that has just become remote in place."""
        self.use_class(remote.original_class(type(obj)))
        with self._lock:
            self._known[object_id] = obj

    def known(self, object_id: ObjectId) -> Any:
        """Return the stand-in of an object, None where none is in use."""
        return self._known.get(object_id)

    def get(self, object_id: ObjectId, class_name: str = "") -> Any:
        """Return the stand-in of an object, asking the peer for its interface if needed."""
        found = self._known.get(object_id)
        if found is not None:
            return found
        cls = self._local_classes.get(class_name) if class_name else None
        if cls is not None:
            made = remote.make_class_stand_in(cls, object_id, self._caller)
        else:
            made = remote.make_proxy(
                self._proxy_class(object_id, class_name), object_id, self._caller
            )
        with self._lock:
            return self._known.setdefault(object_id, made)

    def resolve(self, ref: bytes) -> Any:
        """Return the stand-in that a ref from the wire names: id, then class name."""
        object_id = ObjectId(bytes(ref[:OBJECT_ID_BYTES]))
        return self.get(object_id, bytes(ref[OBJECT_ID_BYTES:]).decode())

    def class_names(self) -> list[str]:
        """Return the classes whose interface is not needed; the latest ones last."""
        return [*self._proxies, *self._local_classes]

    def learn(self, class_name: str, interface: Mapping[str, Any]) -> None:
        """Note the interface of a class, unless it is known."""
        if class_name not in self._proxies and class_name not in self._local_classes:
            self._make(interface)

    def refresh(self, class_name: str) -> None:
        """Forget the interface of a class: it was published anew."""
        self._proxies.pop(class_name, None)

    def interface_class(self, class_name: str) -> type[remote.Proxy]:
        """Return the proxy class of a published class."""
        known = self._proxies.get(class_name)
        if known is None:
            known = self._make(self._interface({"class_name": class_name}))
        return known

    def _proxy_class(self, object_id: ObjectId, class_name: str) -> type[remote.Proxy]:
        if class_name:
            return self.interface_class(class_name)
        return self._make(self._interface({"object_id": object_id}))

    def _make(self, interface: Mapping[str, Any]) -> type[remote.Proxy]:
        cls = remote.proxy_class(interface)
        if len(self._proxies) >= INTERFACES_MAX:
            self._proxies.clear()
        self._proxies[interface["class_name"]] = cls
        return cls


class RemoteClass:
    """A published class without its code: call it to create, or find by alias."""

    def __init__(
        self, store: Any, class_name: str, interface: type[remote.Proxy]
    ) -> None:
        self._store = store
        self._class_name = class_name
        self.__doc__ = interface.__doc__

    @property
    def class_name(self) -> str:
        """Its published name, "module.Class"."""
        return self._class_name

    def __call__(
        self, *args: Any, alias: str = "", peer: str = "",
        replicas: int | None = None, witness: bool | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Create an object; see Store.create."""
        return self._store.create(
            self._class_name, *args, alias=alias, peer=peer, replicas=replicas,
            witness=witness, **kwargs,
        )  # fmt: skip

    def get_by_alias(self, alias: str) -> Any:
        """Return the object that `alias` names.

        Raises:
            AliasNotFoundError: no object has that alias.
            InvalidRequestError: it is of another class.
        """
        object_id, class_name = self._store.identify(alias)
        if class_name != self._class_name:
            raise InvalidRequestError(
                f"{alias!r} is a {class_name}, not a {self._class_name}", "get_by_alias"
            )
        return self._store.get(object_id.hex())

    def __repr__(self) -> str:
        return f"<remote class {self._class_name}>"
