"""ZEO: objects of a file storage; it runs no methods, so its calls are reads of it."""
# ruff: noqa: D102 - Rival says what each method is

from __future__ import annotations

import os
import time
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness import Rival, announce, main


class ZeoRival(Rival):
    """A server over a file storage, and a database over it."""

    package = "ZEO"
    statement = "import transaction, ZEO.ClientStorage, ZODB.DB"
    notes = MappingProxyType({
        "null": "it runs no methods: asks when an object was changed",
        "array_back": "an object loaded past the caches",
        "persist_large": "as a blob, which is not synced: it warns of objects this big",
    })  # fmt: skip

    def serve(self, directory: Path) -> None:
        import ZEO

        address, _ = ZEO.server(
            str(directory / "data.fs"), blob_dir=str(directory / "blobs")
        )
        announce(f"{address[1]} {directory}")
        while True:
            time.sleep(3600)

    def prepare(self, address: str) -> None:
        from BTrees.IOBTree import IOBTree

        self.connect(address)
        self.root.update(value=0, small=IOBTree())
        self.commit()
        self.database.close()

    def connect(self, address: str) -> None:
        import transaction
        import ZEO

        # A cache too small for arrays: a client that reads one asks the server.
        port, directory = address.split(" ", 1)
        self.database = ZEO.DB(
            ("127.0.0.1", int(port)), cache_size=1_000_000,
            blob_dir=str(Path(directory) / f"client-{os.getpid()}"),
        )  # fmt: skip
        self.connection = self.database.open()
        self.root = self.connection.root()
        self.commit = transaction.commit

    def null(self) -> Any:
        return self.database.storage.getTid(self.root._p_oid)  # noqa: SLF001 - documented

    def durable(self) -> None:
        self.root["value"] += 1
        self.commit()

    def make(self, count: int) -> Any:
        from persistent.mapping import PersistentMapping

        if "array" not in self.root:
            import numpy as np

            self.root["array"] = PersistentMapping({"array": np.ones(count)})
            self.commit()
        self.connection.cacheMinimize()
        return self.root["array"]["array"]

    def persist_small(self, count: int) -> int:
        from persistent.mapping import PersistentMapping

        tree = self.root["small"]
        first = len(tree)
        for i in range(first, first + count):
            tree[i] = PersistentMapping({"value": i, "text": "", "array": None})
        self.commit()
        return count

    def persist_large(self, array: Any) -> None:
        from ZODB.blob import Blob

        self.root["large"] = Blob()
        with self.root["large"].open("w") as file:
            file.write(array)
        self.commit()


if __name__ == "__main__":
    main(ZeoRival())
