"""What this peer tells others of how it is: its load, and what is installed on it.

Both are in its record, which everybody has, so that whoever looks for a peer for a class
knows whom to ask. Of hundreds of distributions only those are told that decide where a
class runs: what classes have required that were published here or asked for by others,
the latest first, those that are lacking among them; then those well-known ones that are
here. What does not fit into a record is asked for, as `missing`.

Load is looked at often and told rarely: where it has changed much, and never faster than
membership tells loads at all.

Rules of this file: nothing is decided by it; what blocks runs in a storage thread.

Source: issue 3, "peer records"; reliability.md 2.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from activestore.core import cluster_events
from activestore.core.peers import Load, fitted, is_material, load_of
from activestore.objects.requirements import names_of
from activestore.peer.cluster import Cluster
from activestore.peer.ports import MachinePort
from activestore.peer.table import Table
from activestore.storage.engine import Engine

# How often load is looked at; it is the mean of what was seen since the last time.
LOOK_S = 10.0
# What decides where models run, most telling first; the rest of a record's room is for
# what classes here really require.
WELL_KNOWN = (
    "torch", "tensorflow", "jax", "onnxruntime", "tflite-runtime", "numpy",
    "scikit-learn", "pandas", "scipy", "transformers", "opencv-python",
)  # fmt: skip
# Distributions that are told; a record has room for about as many.
INSTALLED_MAX = 16
# Required distributions that are remembered, those that do not fit among them.
REQUIRED_MAX = 64
# A longer name or version is no good use of a record.
TOLD_CHARS_MAX = 40


def told_of(required: Iterable[str], installed: dict[str, str]) -> dict[str, str]:
    """Return what a record says is installed, most telling first.

    Args:
        required: What classes required, the latest first; told also where it is lacking.
        installed: What is here of that and of WELL_KNOWN.
    """
    told = {name: installed.get(name, "") for name in required}
    for name in WELL_KNOWN:
        if name in installed:
            told.setdefault(name, installed[name])
    short = [
        (name, version)
        for name, version in told.items()
        if len(name) <= TOLD_CHARS_MAX and len(version) <= TOLD_CHARS_MAX
    ]
    return dict(short[:INSTALLED_MAX])


class Reporting:
    """What one peer says of itself, kept up to date."""

    def __init__(self, table: Table, cluster: Cluster, machine: MachinePort) -> None:
        self._table = table
        self._cluster = cluster
        self._machine = machine
        # In order: the one that was asked for last is the last.
        self._required: dict[str, None] = {}
        self._is_asked = False
        self._is_outdated = True
        self._due_s = 0.0
        self._looks_count = 0
        self._busy_count = 0

    def required(self, requires: Sequence[str]) -> None:
        """Note that a class requires these: others will want to know who has them."""
        for name in names_of(requires):
            self._is_outdated |= name not in self._required
            self._required.pop(name, None)
            self._required[name] = None
        while len(self._required) > REQUIRED_MAX:
            del self._required[next(iter(self._required))]

    def look(self, now_s: float) -> None:
        """Count the busy slots; now and then see whether others should know."""
        executors = self._table.core.pool.executors.values()
        self._looks_count += 1
        self._busy_count += sum(one.busy_slots for one in executors)
        if self._is_asked or (now_s < self._due_s and not self._is_outdated):
            return
        slots = sum(len(one.slots) for one in executors)
        busy = round(self._busy_count / self._looks_count)
        self._looks_count = self._busy_count = 0
        self._due_s = now_s + LOOK_S
        self._is_outdated, self._is_asked = False, True
        required = list(reversed(self._required))

        def measure(engine: Engine) -> tuple[dict[str, str], int, int]:
            installed = self._machine.installed([*required, *WELL_KNOWN])
            per_core, disk_free_mb = self._machine.load()
            usage = engine.usage()
            left = max(0, usage.budget_bytes - usage.used_bytes)
            return installed, per_core, min(disk_free_mb, left // 1_000_000)

        def then(found: Any, error: BaseException | None) -> None:
            self._is_asked = False
            if error is None:
                installed, per_core, disk_free_mb = found
                load = Load(min(busy, slots), slots, per_core, disk_free_mb)
                self._tell(told_of(required, installed), load)

        self._table.storage.read(measure, then)

    def _tell(self, installed: dict[str, str], load: Load) -> None:
        """Have the record say this, where it differs enough from what it says."""
        record = self._cluster.membership.me
        if not is_material(load_of(record), load):
            load = load_of(record) or load
        meta = {**record.meta, "installed": installed, "load": list(load)}
        wanted = fitted(record._replace(meta=meta))
        if wanted.meta != record.meta:
            self._cluster.step(cluster_events.RecordChanged(wanted))
