"""activestore: an active object store for the edge-to-cloud continuum.

This file is the facade: the public names, and nothing else. The programming model comes
with the import; the client, and with it zmq, with the first use of its names, so that an
executor that runs a user's class does not pay for a socket library.
"""

from __future__ import annotations

import importlib
import typing

from activestore import errors
from activestore.errors import ActiveStoreError
from activestore.model import ActiveObject, activemethod, checkpoint
from activestore.version import VERSION as _VERSION

if typing.TYPE_CHECKING:
    from activestore.client.client import Store, connect
    from activestore.client.proxy import RemoteClass
    from activestore.remote import Proxy
    from activestore.wire.arrays import Array
    from activestore.wire.kept import Opaque, Ref

__version__ = _VERSION

__all__ = [
    "ActiveObject",
    "ActiveStoreError",
    "Array",
    "Opaque",
    "Proxy",
    "Ref",
    "RemoteClass",
    "Store",
    "activemethod",
    "checkpoint",
    "connect",
    "errors",
]

_HOMES = {
    "Array": "activestore.wire.arrays",
    "Opaque": "activestore.wire.kept",
    "Proxy": "activestore.remote",
    "Ref": "activestore.wire.kept",
    "RemoteClass": "activestore.client.proxy",
    "Store": "activestore.client.client",
    "connect": "activestore.client.client",
    "aio": "",
}


def __getattr__(name: str) -> typing.Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not home:
        return importlib.import_module(f"{__name__}.{name}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value  # The next use costs a dictionary look-up.
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
