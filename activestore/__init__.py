"""activestore: an active object store for the edge-to-cloud continuum.

This file is the facade: the public names, and nothing else. Importing it loads only zmq
and msgpack; `connect` and the client come with the first use.
"""

from __future__ import annotations

from activestore.model import ActiveObject, activemethod, checkpoint

__all__ = ["ActiveObject", "activemethod", "checkpoint"]
