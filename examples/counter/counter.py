"""A counter that lives in a peer: `python examples/counter/counter.py [ENDPOINT]`."""

import sys

import activestore
from activestore import ActiveObject, activemethod


class Counter(ActiveObject):
    value: int

    def __init__(self, value: int = 0) -> None:
        self.value = value

    @activemethod
    def add(self, n: int) -> int:
        self.value += n
        return self.value


if __name__ == "__main__":
    with activestore.connect(sys.argv[1] if len(sys.argv) > 1 else None) as store:
        names = [row["alias"] for row in store.objects("visits")]
        visits = store.get("visits") if names else Counter().make_persistent("visits")
        print(f"this is run number {visits.add(1)}")
