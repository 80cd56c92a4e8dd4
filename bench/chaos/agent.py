"""One client process: calls every object at once, and prints each call as a JSON line.

It is told what to do in one JSON line on stdin, and ends when stdin does, after its
open calls have ended. Each object has a thread of its own, so that one that cannot be reached
keeps nobody from the others.

Rules of this file: the thin client alone. An operation is printed when it has ended, with
when it was asked; nothing is tried again here, the library does that under one number.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import activestore
from activestore.errors import ActiveStoreError

# Shares of adds, of reads that are the newest; the rest are reads that may be older.
ADDS, READS = 0.6, 0.25
CONNECT_AGAIN_S = 0.1


class Agent:
    """Calls until told to end."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._name: str = order["name"]
        self._is_over = threading.Event()
        self._printing = threading.Lock()

    def run(self) -> None:
        """Call all objects until stdin ends."""
        store = self._connected()
        threads = [
            threading.Thread(target=self._use, args=(store, name, number))
            for number, name in enumerate(self._order["objects"])
        ]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        self._is_over.set()
        for thread in threads:
            thread.join()
        store.close()

    def _connected(self) -> Any:
        return self._patiently(
            lambda: activestore.connect(
                self._order["endpoints"],
                timeout_s=self._order["silence_s"],
                name=self._name,
            )
        )

    def _patiently(self, do: Callable[[], Any]) -> Any:
        """Do it, again where it fails, until told to end; return what it returned."""
        while not self._is_over.is_set():
            with contextlib.suppress(ActiveStoreError):
                return do()
            time.sleep(CONNECT_AGAIN_S)
        return None

    def _use(self, store: Any, name: str, number: int) -> None:
        rng = random.Random(f"{self._order['seed']} {name}")
        proxy = self._patiently(lambda: store.get(name))
        count = 0
        while proxy is not None and not self._is_over.is_set():
            self._is_over.wait(rng.expovariate(1.0 / self._order["think_s"]))
            chance = rng.random()
            count += 1
            if chance < ADDS:
                mark = f"{self._name}:{number}:{count}"
                self._note(name, "add", mark, proxy.add, mark)
            elif chance < ADDS + READS or not self._order["staleness_s"]:
                self._note(name, "read", "", proxy.read)
            else:
                stale = proxy.read.options(staleness_s=self._order["staleness_s"])
                self._note(name, "stale", "", stale)

    def _note(
        self, name: str, call: str, mark: str, method: Any, *args: object
    ) -> None:
        row: dict[str, Any] = {"client": self._name, "object": name, "call": call}
        if mark:
            row["mark"] = mark
        row["asked_s"] = time.monotonic()
        try:
            if self._order["has_info"]:
                row["result"], info = method.with_info(*args)
                row |= {
                    "peer": info.peer, "epoch": info.epoch, "number": info.number,
                    "age_s": info.age_s,
                }  # fmt: skip
            else:
                row["result"] = method(*args)
        except ActiveStoreError as error:
            row["error"] = type(error).code
            row["text"] = str(error)[:300]
            row["is_partial"] = getattr(error, "is_partial", False)
        row["ended_s"] = time.monotonic()
        line = json.dumps(row) + "\n"
        with self._printing:
            sys.stdout.write(line)
            sys.stdout.flush()


if __name__ == "__main__":
    Agent(json.loads(sys.stdin.readline())).run()
