"""Which values of fields are plain: immutable, small, and stored field by field.

Rules of this file: it looks at types and lengths, never into what it does not know.

Source: design section 4, "Fields that share objects stay shared".
"""

from __future__ import annotations

import datetime
import decimal
import uuid
from typing import Any

from activestore.model import ActiveObject
from activestore.remote import Proxy

# Longer texts and bytes are no plain values: every change would write them whole.
PLAIN_BYTES_MAX = 64 * 1024
# Longer tuples and frozensets go to the graph.
PLAIN_ELEMENTS_MAX = 1000

_ATOMS = frozenset({
    type(None), bool, int, float, complex, decimal.Decimal, datetime.date,
    datetime.timedelta, uuid.UUID,
})  # fmt: skip
_TEXTS = frozenset({str, bytes})
_CLOCKS = frozenset({datetime.datetime, datetime.time})
_ROWS = frozenset({tuple, frozenset})


def is_plain(value: Any) -> bool:
    """Return whether a value is plain: see the header of snapshot.py."""
    kind = type(value)
    if kind in _ATOMS:
        return True
    if kind in _TEXTS:
        return len(value) < PLAIN_BYTES_MAX
    return _is_plain_beyond(value, PLAIN_ELEMENTS_MAX)


def _is_plain_beyond(value: Any, elements_max: int) -> bool:
    """Return whether a value is plain that is neither atom nor text."""
    kind = type(value)
    if kind in _CLOCKS:
        # A named zone and the second pass of an hour are more than an offset can say.
        return not value.fold and type(value.tzinfo) in (type(None), datetime.timezone)
    if kind in _ROWS:
        if len(value) > elements_max:
            return False
        rest = elements_max - len(value)
        return all(
            len(part) < PLAIN_BYTES_MAX // (len(value) + 1) or len(value) == 1
            if type(part) in _TEXTS
            else type(part) in _ATOMS or _is_plain_beyond(part, rest // len(value))
            for part in value
        )
    return isinstance(value, (ActiveObject, Proxy))
