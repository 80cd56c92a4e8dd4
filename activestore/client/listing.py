"""Listing what a cluster stores: page after page, as long as somebody looks.

Rules of this file: it asks for the next page when the last one was read; what a page's
cursor means only peers know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

# Rows of a page: about 200 kB.
PAGE_ROWS = 1000


def rows_of(
    request: Callable[..., Any],
    alias_prefix: str,
    here: bool,
    unreachable: list[str] | None,
) -> Iterator[dict[str, Any]]:
    """Iterate over the rows of `objects`; `unreachable` gets the names of lost peers."""
    after = None
    while True:
        page = request(
            "objects",
            alias_prefix=alias_prefix,
            after=after,
            limit=PAGE_ROWS,
            here=here,
        )
        if unreachable is not None:
            unreachable += page.get("unreachable", ())
        yield from page["rows"]
        after = page["next"]
        if after is None:
            return
