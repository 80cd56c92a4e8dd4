"""activestore: an active object store for the edge-to-cloud continuum.

This file is the facade: the public names, and nothing else. Importing it loads only zmq
and msgpack; classes' code, asyncio and the daemon come when they are used.
"""

from __future__ import annotations

from activestore import errors
from activestore.client.client import RemoteClass, Store, connect
from activestore.errors import ActiveStoreError
from activestore.model import ActiveObject, activemethod, checkpoint
from activestore.remote import Proxy
from activestore.version import VERSION as _VERSION
from activestore.wire.values import Opaque, Ref

__version__ = _VERSION

__all__ = [
    "ActiveObject", "ActiveStoreError", "Array", "Opaque", "Proxy", "Ref", "RemoteClass",
    "Store", "activemethod", "checkpoint", "connect", "errors",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name == "Array":
        from activestore.wire.arrays import Array

        return Array
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
