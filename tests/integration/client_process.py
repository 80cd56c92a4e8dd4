"""A client in a process of its own: `client_process.py ENDPOINT ALIAS COMMAND N`.

Commands: `read-modify-write` calls `add` N times and prints the last sum.
"""

from __future__ import annotations

import sys

import activestore
from activestore.errors import BusyError


def main() -> int:
    """Run one command."""
    endpoint, alias, command, count = sys.argv[1:5]
    assert command == "read-modify-write", command
    with activestore.connect(endpoint, timeout_s=20.0) as store:
        counter = store.get(alias)
        last = 0
        for _ in range(int(count)):
            last = _until_taken(counter)
    print(last)
    return 0


def _until_taken(counter: object) -> int:
    while True:
        try:
            return counter.add(1)  # type: ignore[attr-defined]  # a proxy
        except BusyError:
            continue


if __name__ == "__main__":
    sys.exit(main())
