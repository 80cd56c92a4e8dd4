"""One peer's copy of an object, as it lies on its disk: out of it, and off it.

    export    the copy as bytes, whatever its role
    discard   a quarantined copy goes, by an operator's order

Rules of this file: it asks nobody whether the copy is the newest, for it is wanted where
nobody can say, or where the copy is quarantined; the answer tells which state it is. A
copy that may still count is not removed.

Source: design section 8; schemas/protocol.md section 14.
"""

from __future__ import annotations

import os
from typing import Any

from activestore.core.register import Register, unpack_register
from activestore.errors import (
    InvalidRequestError,
    ObjectNotFoundError,
    TooLargeError,
)
from activestore.ids import ObjectId
from activestore.peer.loop import PeerLoop
from activestore.peer.moving import in_memory
from activestore.peer.publishing import as_error
from activestore.peer.requests import Origin, Requests, check_meant, object_id_of
from activestore.storage.blobs import view_of
from activestore.storage.engine import Engine
from activestore.wire.state import (
    FileBuffer,
    NamedState,
    ObjectState,
    encode_states,
    state_bytes_count,
)

# Of an object that was never replicated, and so has no register.
_ALONE = {"number": 0, "lineage": 0, "is_quarantined": False}


class Exporting:
    """The operations `export` and `discard`."""

    def __init__(self, loop: PeerLoop, requests: Requests) -> None:
        self._loop = loop
        self._requests = requests
        requests.add("export", self._do_export)
        requests.add("discard", self._do_discard)

    def _do_export(self, origin: Origin, parameters: dict[str, Any]) -> None:
        object_id = object_id_of(parameters)
        settings = self._loop.settings
        check_meant(parameters, settings.peer_id)

        def read(engine: Engine) -> dict[str, Any]:
            snapshot = engine.snapshot(object_id, "register", is_sent=True)
            head, state = snapshot.head, snapshot.state
            if head is None or state is None:
                raise ObjectNotFoundError(object_id, (settings.peer_id,))
            _check_size(object_id, state, settings.message_bytes_max)
            state = in_memory(state)
            row = snapshot.row
            register = None if row is None else unpack_register(row)
            body, buffers = encode_states([NamedState(object_id, head.alias, state)])
            return {
                "states": body, "buffers": [bytes(view_of(one)) for one in buffers],
                "alias": head.alias,
                "class_name": head.class_name, "version": head.version,
                "epoch": head.epoch, "peer": settings.peer_name, **_about(register),
            }  # fmt: skip

        self._requests.read(
            origin, read, lambda found: found, run=self._loop.storage.maintain
        )

    def _do_discard(self, origin: Origin, parameters: dict[str, Any]) -> None:
        object_id = object_id_of(parameters)
        check_meant(parameters, self._loop.settings.peer_id)
        replicating = self._loop.replicating
        try:
            replicating.core.discard(object_id)
        except LookupError as error:
            raise InvalidRequestError(
                f"{error}: only what `force` elsewhere has replaced can be discarded",
                "discard",
            ) from None
        replicating.carry_out(replicating.core.take_effects(self._loop.clock()))

        def done(_found: Any, error: BaseException | None) -> None:
            if error is not None:
                self._requests.refuse(origin, as_error(error))
            else:
                self._requests.answer(origin, None)

        # Behind what was just ordered.
        self._loop.storage.write(lambda engine: engine.head(object_id), done)


def _check_size(object_id: ObjectId, state: ObjectState, bytes_max: int) -> None:
    """Make sure that a state can be sent; the files of one that cannot are closed.

    Raises:
        TooLargeError: it is over the limit of a message.
    """
    size = state_bytes_count(state)
    if size <= bytes_max:
        return
    for buffer in state.buffers:
        if isinstance(buffer, FileBuffer):
            os.close(buffer.fd)
    raise TooLargeError(
        f"object {object_id.hex()}", size, bytes_max, "message_bytes_max"
    )


def _about(register: Register | None) -> dict[str, Any]:
    if register is None:
        return _ALONE
    return {
        "epoch": register.epoch.counter, "number": register.number,
        "lineage": register.config.lineage, "is_quarantined": register.is_quarantined,
    }  # fmt: skip
